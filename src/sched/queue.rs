//! Waiting jobs: strict priorities, fair shares of device time inside one, earliest deadline among those in their share,
//! and a bound on waiting.
//!
//! Start-time fair queueing on two levels: models of a priority share device time by weight, callers of a model share
//! equally. A *node* is one model at one priority in one lane; its callers are its *flows*. A node whose sticks have no
//! room is blocked until one has.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use crate::clock::Instant;

use super::event::{CallerNo, GraphNo, JobId, StickNo};
use super::sorted::Sorted;

/// Number of priorities.
pub const PRIORITIES: usize = 32;
/// An earlier deadline may overtake this much device time of other shares, nanoseconds.
const QUANTUM_NS: u64 = 20_000_000;
/// A node that was blocked keeps at most this much credit, nanoseconds of device time.
const CREDIT_NS: u64 = 200_000_000;
/// Shares looked at for an earlier deadline: a constant, so that a decision stays O(log).
const LOOK: usize = 8;
/// Of so many dispatches, one may go to a job that waited beyond the bound.
const AGED_SHARE: u32 = 4;

/// Which jobs of a model and priority stand together: those behind one another only if the same sticks would do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lane {
    /// Any stick.
    Any,
    /// This stick alone.
    Only(StickNo),
    /// Any but this one, where the job failed.
    Not(StickNo),
}

/// What a node stands for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NodeKey {
    /// Model.
    pub graph: GraphNo,
    /// Priority, 0 to 31.
    pub priority: u8,
    /// Lane.
    pub lane: Lane,
}

/// Where a job waits. `seq` tells a live entry from one that was taken or withdrawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Node.
    pub node: u32,
    /// Flow of the node.
    pub flow: u32,
    /// Number of the entry.
    pub seq: u64,
}

#[derive(Debug)]
struct Flow {
    heap: BinaryHeap<Reverse<(Instant, u64, JobId)>>,
    live: u32,
    start: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Empty,
    Ready,
    Blocked,
}

#[derive(Debug)]
struct Node {
    key: NodeKey,
    weight: f64,
    start: u64,
    vtime: u64,
    live: u32,
    state: State,
    flows: Vec<Flow>,
    of_caller: HashMap<CallerNo, u32>,
    order: Sorted<(u64, u32)>,
}

/// All waiting jobs.
#[derive(Debug)]
pub struct FairQueue {
    nodes: Vec<Node>,
    by_key: HashMap<NodeKey, u32>,
    of_graph: HashMap<GraphNo, Vec<u32>>,
    /// (31 − priority, start tag, node)
    ready: Sorted<(u8, u64, u32)>,
    vtime: [u64; PRIORITIES],
    /// By arrival, per priority; entries of jobs that wait no more are dropped as they come to the front.
    aged: [VecDeque<(Instant, JobId, Place)>; PRIORITIES],
    /// Priorities whose `aged` is not empty.
    aging: u32,
    next_seq: u64,
    live: usize,
    /// Live entries with a deadline: without any, nobody looks for the earliest.
    urgent: usize,
    since_aged: u32,
}

impl Default for FairQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl FairQueue {
    /// Empty.
    pub fn new() -> Self {
        FairQueue {
            nodes: Vec::new(),
            by_key: HashMap::new(),
            of_graph: HashMap::new(),
            ready: Sorted::new(),
            vtime: [0; PRIORITIES],
            aged: std::array::from_fn(|_| VecDeque::new()),
            aging: 0,
            next_seq: 0,
            live: 0,
            urgent: 0,
            since_aged: 0,
        }
    }

    /// Jobs waiting.
    pub fn len(&self) -> usize {
        self.live
    }

    /// True when none waits.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Jobs waiting for a model.
    pub fn len_of(&self, graph: GraphNo) -> usize {
        self.nodes_of(graph).map(|n| self.nodes[n as usize].live as usize).sum()
    }

    /// Jobs waiting in a node.
    pub fn len_at(&self, node: u32) -> usize {
        self.nodes[node as usize].live as usize
    }

    /// What a node stands for.
    pub fn key(&self, node: u32) -> NodeKey {
        self.nodes[node as usize].key
    }

    fn nodes_of(&self, graph: GraphNo) -> impl Iterator<Item = u32> + '_ {
        self.of_graph.get(&graph).into_iter().flatten().copied()
    }

    fn node(&mut self, key: NodeKey, weight: f64) -> u32 {
        if let Some(&n) = self.by_key.get(&key) {
            self.nodes[n as usize].weight = weight;
            return n;
        }
        let n = self.nodes.len() as u32;
        self.nodes.push(Node {
            key,
            weight,
            start: 0,
            vtime: 0,
            live: 0,
            state: State::Empty,
            flows: Vec::new(),
            of_caller: HashMap::new(),
            order: Sorted::new(),
        });
        self.by_key.insert(key, n);
        self.of_graph.entry(key.graph).or_default().push(n);
        n
    }

    fn rank(&self, n: u32) -> (u8, u64, u32) {
        let node = &self.nodes[n as usize];
        ((PRIORITIES - 1) as u8 - node.key.priority, node.start, n)
    }

    /// Adds a job. `arrived` is its first arrival, also when it comes back.
    pub fn push(
        &mut self,
        key: NodeKey,
        caller: CallerNo,
        weight: f64,
        job: JobId,
        deadline: Instant,
        arrived: Instant,
    ) -> Place {
        let n = self.node(key, weight.max(1e-3));
        let seq = self.next_seq;
        self.next_seq += 1;
        let class_now = self.vtime[key.priority as usize];
        let node = &mut self.nodes[n as usize];
        let f = *node.of_caller.entry(caller).or_insert_with(|| {
            node.flows.push(Flow { heap: BinaryHeap::new(), live: 0, start: 0 });
            node.flows.len() as u32 - 1
        });
        let flow = &mut node.flows[f as usize];
        flow.heap.push(Reverse((deadline, seq, job)));
        flow.live += 1;
        if flow.live == 1 {
            flow.start = flow.start.max(node.vtime);
            node.order.insert((flow.start, f));
        }
        node.live += 1;
        let woken = node.state == State::Empty;
        if woken {
            node.start = node.start.max(class_now);
            node.state = State::Ready;
        }
        if woken {
            let rank = self.rank(n);
            self.ready.insert(rank);
        }
        self.live += 1;
        self.urgent += usize::from(deadline != Instant::FAR_FUTURE);
        let place = Place { node: n, flow: f, seq };
        self.note_age(key.priority, arrived, job, place);
        place
    }

    fn note_age(&mut self, priority: u8, arrived: Instant, job: JobId, place: Place) {
        let aged = &mut self.aged[priority as usize];
        self.aging |= 1 << priority;
        // One that comes back is older than those behind: it stands in front.
        if aged.back().is_some_and(|(last, ..)| *last > arrived) {
            aged.push_front((arrived, job, place));
        } else {
            aged.push_back((arrived, job, place));
        }
    }

    /// The node to serve next: the highest priority, the smallest share so far, the earliest deadline among equals.
    pub fn next(&self) -> Option<u32> {
        let &(class, start, first) = self.ready.first()?;
        if self.urgent == 0 {
            return Some(first);
        }
        self.ready
            .iter()
            .take(LOOK)
            .take_while(|(c, s, _)| *c == class && *s <= start.saturating_add(QUANTUM_NS))
            .min_by_key(|(_, s, n)| (self.earliest(*n), *s))
            .map(|(.., n)| *n)
    }

    /// Earliest deadline in a node, as far as its first flows show.
    pub fn earliest(&self, n: u32) -> Instant {
        let node = &self.nodes[n as usize];
        let heads = node.order.iter().take(LOOK).filter_map(|(_, f)| node.flows[*f as usize].heap.peek());
        heads.map(|Reverse((deadline, ..))| *deadline).min().unwrap_or(Instant::FAR_FUTURE)
    }

    /// Takes the next job of a node. `is_live` says whether an entry is still the job's present one.
    pub fn take(&mut self, n: u32, is_live: impl Fn(JobId, u64) -> bool) -> Option<(JobId, Place)> {
        let urgent = self.urgent > 0;
        let node = &mut self.nodes[n as usize];
        let &(start, first) = node.order.first()?;
        let f = if urgent && node.order.len() > 1 {
            let flows = &node.flows;
            node.order
                .iter()
                .take(LOOK)
                .take_while(|(s, _)| *s <= start.saturating_add(QUANTUM_NS))
                .min_by_key(|(s, f)| (flows[*f as usize].heap.peek().map(|Reverse((d, ..))| *d), *s))
                .map_or(first, |(_, f)| *f)
        } else {
            first
        };
        let flow = &mut node.flows[f as usize];
        while let Some(Reverse((_, seq, job))) = flow.heap.pop() {
            if is_live(job, seq) {
                let place = Place { node: n, flow: f, seq };
                return Some((job, place));
            }
        }
        None
    }

    /// The entry no longer waits: it was taken, withdrawn, or expired.
    pub fn remove(&mut self, place: Place, deadline: Instant) {
        self.live -= 1;
        self.urgent -= usize::from(deadline != Instant::FAR_FUTURE);
        let rank = self.rank(place.node);
        let node = &mut self.nodes[place.node as usize];
        node.live -= 1;
        let flow = &mut node.flows[place.flow as usize];
        flow.live -= 1;
        if flow.live == 0 {
            flow.heap.clear();
            node.order.remove(&(flow.start, place.flow));
        }
        if node.live == 0 {
            if node.state == State::Ready {
                self.ready.remove(&rank);
            }
            node.state = State::Empty;
        }
    }

    /// The job at `place` was given `device_ns` of device time: moves the shares of its model and its caller on. Negative
    /// corrects an estimate that was too high.
    pub fn charge(&mut self, place: Place, device_ns: i64, dispatched: bool) {
        let before = self.rank(place.node);
        let node = &mut self.nodes[place.node as usize];
        let class = node.key.priority as usize;
        let add = |tag: u64, weight: f64| tag.saturating_add_signed((device_ns as f64 / weight) as i64);
        let flow = &mut node.flows[place.flow as usize];
        let old = flow.start;
        if dispatched {
            node.vtime = node.vtime.max(flow.start);
            self.vtime[class] = self.vtime[class].max(node.start);
        }
        flow.start = add(flow.start, 1.0);
        if flow.live > 0 && node.order.remove(&(old, place.flow)) {
            node.order.insert((flow.start, place.flow));
        }
        node.start = add(node.start, node.weight);
        if node.state == State::Ready {
            self.ready.remove(&before);
            let after = self.rank(place.node);
            self.ready.insert(after);
        }
    }

    /// No stick has room for this node.
    pub fn block(&mut self, n: u32) {
        let rank = self.rank(n);
        let node = &mut self.nodes[n as usize];
        if node.state == State::Ready {
            node.state = State::Blocked;
            self.ready.remove(&rank);
        }
    }

    /// A stick has room for this model again.
    pub fn unblock(&mut self, graph: GraphNo) {
        let Some(nodes) = self.of_graph.get(&graph) else { return };
        for &n in nodes {
            let node = &mut self.nodes[n as usize];
            if node.state == State::Blocked {
                node.state = State::Ready;
                // Idle by want of room is no right to crowd out the others later.
                let class = node.key.priority;
                node.start = node.start.max(self.vtime[class as usize].saturating_sub(CREDIT_NS));
                self.ready.insert(((PRIORITIES - 1) as u8 - class, node.start, n));
            }
        }
    }

    /// A job that waited beyond `bound` while higher priorities were served, if it is its kind's turn and its node is not
    /// blocked. Within the highest priority at work, fair shares see to it that nobody starves.
    pub fn next_aged(
        &mut self,
        now: Instant,
        bound: Duration,
        is_live: impl Fn(JobId, u64) -> bool,
    ) -> Option<(JobId, Place)> {
        self.since_aged += 1;
        if self.since_aged < AGED_SHARE {
            return None;
        }
        let top = (PRIORITIES - 1) as u8 - self.ready.first()?.0;
        let (mut left, mut oldest): (u32, Option<(Instant, JobId, Place)>) = (self.aging, None);
        while left != 0 {
            let priority = left.trailing_zeros();
            left &= left - 1;
            let aged = &mut self.aged[priority as usize];
            while aged.front().is_some_and(|(_, job, place)| !is_live(*job, place.seq)) {
                aged.pop_front();
            }
            if aged.is_empty() {
                self.aging &= !(1 << priority);
            }
            // One old job at the front must not keep the rest of the list for ever.
            if aged.len() > 2 * self.live + 4096 {
                aged.retain(|(_, job, place)| is_live(*job, place.seq));
            }
            if priority >= u32::from(top) {
                continue;
            }
            let waited = aged.iter().take(LOOK).take_while(|(t, ..)| now.saturating_since(*t) >= bound);
            let found = waited
                .filter(|(_, job, place)| is_live(*job, place.seq))
                .find(|(.., place)| self.nodes[place.node as usize].state == State::Ready);
            if let Some((t, job, place)) = found
                && oldest.is_none_or(|(other, ..)| *t < other)
            {
                oldest = Some((*t, *job, *place));
            }
        }
        self.since_aged = 0;
        oldest.map(|(_, job, place)| (job, place))
    }

    /// All live entries of a model.
    pub fn jobs_of(&self, graph: GraphNo, is_live: impl Fn(JobId, u64) -> bool) -> Vec<JobId> {
        let flows = self.nodes_of(graph).flat_map(|n| self.nodes[n as usize].flows.iter());
        let entries = flows.flat_map(|f| f.heap.iter().map(|Reverse((_, seq, job))| (*seq, *job)));
        let mut jobs: Vec<(u64, JobId)> = entries.filter(|(seq, job)| is_live(*job, *seq)).collect();
        jobs.sort_unstable();
        jobs.into_iter().map(|(_, job)| job).collect()
    }

    /// Oldest waiting entry of a node's next flow, by number of entry; for the age of a batch.
    pub fn head(&self, n: u32) -> Option<JobId> {
        let node = &self.nodes[n as usize];
        let (_, f) = node.order.first()?;
        node.flows[*f as usize].heap.peek().map(|Reverse((.., job))| *job)
    }
}
