//! What all threads of a fleet share: the queue, who is ready, which graph lies where.
//!
//! Order of locks: `core`, then a slot, an inbox, a record or a pool; never the other way round. Nothing waits for
//! anything but `room` and `changed` while it holds `core`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::config::{FleetConfig, LoadOptions};
use super::dispatch::{self, Candidate};
use super::failure::Cause;
use super::inbox::{Command, Inbox};
use super::ticket::{QueuedJob, Slots, late};
use super::{StickState, graph};
use crate::blob::Blob;
use crate::clock::{Clock, Instant, Monotonic};
use crate::error::{Error, ErrorKind};
use crate::id::StickId;
use crate::pipeline::{GraphId, GraphSpec, Load};
use crate::pool::Pool;
use crate::stats::{Latency, StageTimes};
use crate::transport::MemoryReport;
use crate::wire::Capabilities;

pub(super) struct Shared {
    pub(super) config: FleetConfig,
    pub(super) clock: Arc<Monotonic>,
    pub(super) slots: Arc<Slots>,
    pub(super) sticks: Vec<StickShared>,
    pub(super) core: Mutex<Core>,
    /// The queue became shorter, or the fleet closes.
    pub(super) room: Condvar,
    /// A stick, a graph or the phase changed.
    pub(super) changed: Condvar,
    /// Whose pool the next input comes from.
    pub(super) next_pool: AtomicUsize,
}

/// One stick, as other threads than its own see it.
pub(super) struct StickShared {
    pub(super) id: StickId,
    pub(super) simulated: Option<String>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) pool: Pool,
    pub(super) record: Mutex<Record>,
}

/// What a stick has done.
#[derive(Default)]
pub(super) struct Record {
    pub(super) completed: u64,
    pub(super) failed: u64,
    /// Requests that ended in an error at this stick; [`Core::failed`] counts those that ended elsewhere.
    pub(super) failed_requests: u64,
    pub(super) latency: Latency,
    pub(super) stages: [Latency; StageTimes::COUNT],
    /// Of former connections.
    pub(super) load_before: Load,
    /// Of this connection, until `load_at`.
    pub(super) load: Load,
    pub(super) load_at: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Open,
    /// Takes no more work.
    Draining,
    Closed,
}

pub(super) struct Core {
    pub(super) phase: Phase,
    pub(super) sticks: Vec<StickEntry>,
    pub(super) graphs: Vec<GraphEntry>,
    pub(super) next_graph: u64,
    /// Requests that no stick has.
    pub(super) queued: usize,
    /// Callers that wait for room in the queue.
    pub(super) room_waiters: usize,
    pub(super) submitted: u64,
    /// Requests that ended in an error without a stick.
    pub(super) failed: u64,
    pub(super) retried: u64,
    next_stick: usize,
    pub(super) telemetry_round: u64,
}

pub(super) struct StickEntry {
    pub(super) state: StickState,
    /// Why it is lost.
    pub(super) cause: Option<Cause>,
    pub(super) lost_since: Option<Instant>,
    /// The first attempt to open it has ended, either way.
    pub(super) settled: bool,
    /// Its thread has ended.
    pub(super) exited: bool,
    pub(super) capabilities: Option<Capabilities>,
    pub(super) speed_mbps: u32,
    pub(super) memory: Option<MemoryReport>,
    pub(super) used_memory_bytes: Option<u32>,
    pub(super) temperature_c: Option<f32>,
    pub(super) throttle_level: Option<u8>,
    pub(super) resets: u32,
    /// Latest round that was answered.
    pub(super) telemetry_round: u64,
}

/// Where a graph stands on one stick.
#[derive(Clone, Debug)]
pub(super) enum Presence {
    Absent,
    Loading,
    Loaded { instances: u32 },
    Refused(Cause),
}

pub(super) struct OnStick {
    pub(super) presence: Presence,
    pub(super) assigned: u32,
    /// Requests for this stick only.
    pinned: VecDeque<QueuedJob>,
}

pub(super) struct GraphEntry {
    pub(super) id: GraphId,
    pub(super) blob: Blob,
    pub(super) options: LoadOptions,
    pub(super) spec: GraphSpec,
    /// Callers' [`super::Graph`]s.
    pub(super) handles: usize,
    /// Requests that have not ended.
    pub(super) active: usize,
    queue: VecDeque<QueuedJob>,
    pub(super) on: Vec<OnStick>,
}

/// Sticks to wake, once the lock is gone.
#[must_use]
#[derive(Default)]
pub(super) struct Rings(u128);

impl Core {
    pub(super) fn new(sticks: usize) -> Self {
        let entry = || StickEntry {
            state: StickState::Starting,
            cause: None,
            lost_since: None,
            settled: false,
            exited: false,
            capabilities: None,
            speed_mbps: 0,
            memory: None,
            used_memory_bytes: None,
            temperature_c: None,
            throttle_level: None,
            resets: 0,
            telemetry_round: 0,
        };
        Core {
            phase: Phase::Open,
            sticks: (0..sticks).map(|_| entry()).collect(),
            graphs: Vec::new(),
            next_graph: 0,
            queued: 0,
            room_waiters: 0,
            submitted: 0,
            failed: 0,
            retried: 0,
            next_stick: 0,
            telemetry_round: 0,
        }
    }

    pub(super) fn graph(&mut self, id: GraphId) -> Option<&mut GraphEntry> {
        self.graphs.iter_mut().find(|g| g.id == id)
    }

    pub(super) fn active(&self) -> usize {
        self.graphs.iter().map(|g| g.active).sum()
    }
}

impl GraphEntry {
    /// Puts a job that a stick gave back where it is taken next.
    fn requeue(&mut self, job: QueuedJob) {
        match job.tag.pinned {
            Some(at) => self.on[at].pinned.push_front(job),
            None => self.queue.push_front(job),
        }
    }

    pub(super) fn new(id: GraphId, blob: Blob, options: LoadOptions, spec: GraphSpec, sticks: usize) -> Self {
        let on = || OnStick { presence: Presence::Absent, assigned: 0, pinned: VecDeque::new() };
        GraphEntry {
            id,
            blob,
            options,
            spec,
            handles: 0,
            active: 0,
            queue: VecDeque::with_capacity(64),
            on: (0..sticks).map(|_| on()).collect(),
        }
    }

    fn candidate(&self, at: usize, state: StickState) -> Candidate {
        let on = &self.on[at];
        match on.presence {
            Presence::Loaded { instances } => Candidate {
                ready: state == StickState::Ready,
                assigned: on.assigned,
                depth: instances * self.options.depth,
                // One per instance waits at the stick, so that it is fed without asking us first.
                ahead: instances,
            },
            _ => Candidate::default(),
        }
    }

    fn is_queue_empty(&self) -> bool {
        self.queue.is_empty() && self.on.iter().all(|o| o.pinned.is_empty())
    }
}

impl Shared {
    pub(super) fn ring(&self, rings: Rings) {
        for (at, stick) in self.sticks.iter().enumerate().take(128) {
            if rings.0 & (1 << at) != 0 {
                stick.inbox.ring();
            }
        }
    }

    /// Puts a new request into the queue.
    pub(super) fn enqueue(&self, core: &mut Core, job: QueuedJob) {
        let Some(entry) = core.graph(job.graph) else { return };
        entry.active += 1;
        match job.tag.pinned {
            Some(at) => entry.on[at].pinned.push_back(job),
            None => entry.queue.push_back(job),
        }
        core.queued += 1;
        core.submitted += 1;
    }

    /// Gives queued requests to sticks that have room.
    pub(super) fn pump(&self, core: &mut Core) -> Rings {
        let mut rings = Rings::default();
        if core.queued == 0 {
            return rings;
        }
        let before = core.queued;
        for at in 0..core.graphs.len() {
            self.pump_graph(core, at, &mut rings);
        }
        if core.queued < before && core.room_waiters > 0 {
            self.room.notify_all();
        }
        rings
    }

    fn pump_graph(&self, core: &mut Core, at: usize, rings: &mut Rings) {
        let Core { graphs, sticks, queued, next_stick, failed, .. } = core;
        let entry = &mut graphs[at];
        for (stick, StickEntry { state, .. }) in sticks.iter().enumerate() {
            while !entry.on[stick].pinned.is_empty() {
                let c = entry.candidate(stick, *state);
                if !c.ready || c.assigned >= c.depth + c.ahead {
                    break;
                }
                if let Some(job) = entry.on[stick].pinned.pop_front() {
                    *queued -= 1;
                    self.assign(entry, stick, job, failed, rings);
                }
            }
        }
        while !entry.queue.is_empty() {
            let picked = dispatch::pick(*next_stick, sticks.len(), |s| entry.candidate(s, sticks[s].state));
            let Some(stick) = picked else { break };
            let Some(job) = entry.queue.pop_front() else { break };
            *queued -= 1;
            if self.assign(entry, stick, job, failed, rings) {
                *next_stick = stick + 1;
            }
        }
    }

    /// False when nobody wants the job any more.
    fn assign(
        &self,
        entry: &mut GraphEntry,
        stick: usize,
        job: QueuedJob,
        failed: &mut u64,
        rings: &mut Rings,
    ) -> bool {
        if let Some(error) = self.obsolete(&job) {
            entry.active -= 1;
            *failed += 1;
            job.tag.end(Err(error));
            return false;
        }
        let free_place = {
            let c = entry.candidate(stick, StickState::Ready);
            c.assigned < c.depth
        };
        entry.on[stick].assigned += 1;
        self.sticks[stick].inbox.add_job(job);
        // One that is to wait there needs no wake-up: the end of one ahead of it is told under this lock, and after
        // that the stick's thread looks into its inbox before it sleeps.
        if free_place && stick < 128 {
            rings.0 |= 1 << stick;
        } else if free_place {
            self.sticks[stick].inbox.ring();
        }
        true
    }

    /// Why a job that was not sent need not be sent.
    fn obsolete(&self, job: &QueuedJob) -> Option<Error> {
        if !job.tag.is_wanted() {
            return Some(Error::new(ErrorKind::Cancelled, "infer").detail("the ticket was dropped"));
        }
        let late_now = job.tag.deadline.is_some() && job.tag.is_late(self.clock.now());
        late_now.then(late)
    }

    /// Ends queued requests that `why` gives an error for.
    pub(super) fn end_queued(
        &self,
        core: &mut Core,
        mut why: impl FnMut(&StickSituation<'_>, &QueuedJob) -> Option<Error>,
    ) {
        let Core { graphs, sticks, queued, failed, .. } = core;
        for entry in graphs.iter_mut().filter(|g| !g.is_queue_empty()) {
            let mut active = entry.active;
            let presences: Vec<Presence> = entry.on.iter().map(|o| o.presence.clone()).collect();
            let situation = StickSituation { sticks, presences: &presences };
            let queues = std::iter::once(&mut entry.queue).chain(entry.on.iter_mut().map(|o| &mut o.pinned));
            for queue in queues {
                for _ in 0..queue.len() {
                    let Some(job) = queue.pop_front() else { break };
                    match why(&situation, &job) {
                        None => queue.push_back(job),
                        Some(error) => {
                            *queued -= 1;
                            *failed += 1;
                            active -= 1;
                            job.tag.end(Err(error));
                        }
                    }
                }
            }
            entry.active = active;
        }
        self.after_ends(core);
    }

    /// Drops from the queue what nobody wants any more.
    pub(super) fn purge_queue(&self, core: &mut Core) {
        self.end_queued(core, |_, job| self.obsolete(job));
    }

    /// Fails what no stick can answer in the foreseeable future.
    pub(super) fn fail_hopeless(&self, core: &mut Core) {
        let now = self.clock.now();
        self.end_queued(core, |situation, job| self.no_hope(situation, job.tag.pinned, now));
    }

    /// Why no stick will take a request; `None` when one may.
    pub(super) fn no_hope(
        &self,
        situation: &StickSituation<'_>,
        pinned: Option<usize>,
        now: Instant,
    ) -> Option<Error> {
        let hopeful = |at: usize| {
            let stick = &situation.sticks[at];
            match stick.state {
                StickState::Starting => true,
                StickState::Ready => {
                    matches!(situation.presences[at], Presence::Loaded { .. } | Presence::Loading)
                }
                StickState::Lost => {
                    stick.lost_since.is_some_and(|since| now < since + self.config.open_timeout)
                }
                StickState::Closed => false,
            }
        };
        let mut eligible = match pinned {
            Some(at) => at..at + 1,
            None => 0..self.sticks.len(),
        };
        if eligible.clone().any(hopeful) {
            return None;
        }
        let of = |at: usize| match &situation.presences[at] {
            Presence::Refused(cause) => Some(cause.clone()),
            _ => situation.sticks[at].cause.clone(),
        };
        let first = eligible.find_map(|at| of(at).map(|cause| (at, cause)));
        Some(match first {
            Some((at, cause)) if self.sticks.len() == 1 || pinned.is_some() => {
                cause.error("infer", &self.sticks[at].id)
            }
            Some((at, cause)) => Error::new(cause.kind, "infer").detail(format!(
                "no stick of {} is left for this graph; {}: {}",
                self.sticks.len(),
                self.sticks[at].id,
                cause.detail
            )),
            None => {
                Error::new(ErrorKind::Closed, "infer").detail("the sticks are closed; open a fleet again")
            }
        })
    }

    /// Requests have ended: unloads what nobody needs, tells those who wait for the fleet to drain.
    pub(super) fn after_ends(&self, core: &mut Core) {
        if core.graphs.iter().any(|g| g.handles == 0 && g.active == 0) {
            for entry in core.graphs.iter().filter(|g| g.handles == 0 && g.active == 0) {
                graph::unload_everywhere(self, core, entry);
            }
            core.graphs.retain(|g| g.handles > 0 || g.active > 0);
        }
        if core.phase != Phase::Open {
            self.changed.notify_all();
        }
        if core.room_waiters > 0 {
            self.room.notify_all();
        }
    }

    /// A stick's thread reports `ended` requests and as many free places of each graph.
    pub(super) fn jobs_ended(&self, at: usize, ended: &mut Vec<(GraphId, u32)>) {
        let mut core = self.core.lock();
        let mut last = false;
        for (id, count) in ended.drain(..) {
            if let Some(entry) = core.graph(id) {
                entry.on[at].assigned = entry.on[at].assigned.saturating_sub(count);
                entry.active -= count as usize;
                last |= entry.active == 0;
            }
        }
        if last {
            self.after_ends(&mut core);
        }
        let mut rings = self.pump(&mut core);
        drop(core);
        // The caller looks into its own inbox next.
        rings.0 &= !1u128.checked_shl(at as u32).unwrap_or(0);
        self.ring(rings);
    }

    /// A stick was lost (or could not be reached). `jobs` come back from it, with true where they were sent; in order.
    pub(super) fn stick_lost(&self, at: usize, cause: Cause, jobs: Vec<(QueuedJob, bool)>) {
        let now = self.clock.now();
        let mut core = self.core.lock();
        {
            let mut record = self.sticks[at].record.lock();
            record.failed += jobs.iter().filter(|(_, sent)| *sent).count() as u64;
            record.end_connection();
        }
        let entry = &mut core.sticks[at];
        if matches!(entry.state, StickState::Ready) {
            tracing::warn!(stick = %self.sticks[at].id, "lost: {}", cause.detail);
        }
        entry.state = StickState::Lost;
        entry.cause = Some(cause.clone());
        entry.lost_since.get_or_insert(now);
        entry.settled = true;
        for graph in &mut core.graphs {
            graph.on[at].presence = Presence::Absent;
            graph.on[at].assigned = 0;
        }
        // What came while nobody looked: under the lock, after the stick stopped being a candidate.
        let mut unread = VecDeque::new();
        self.sticks[at].inbox.take_jobs(&mut unread);
        let jobs: Vec<_> = jobs.into_iter().chain(unread.into_iter().map(|job| (job, false))).collect();
        // From the back, so that they stand in their old order at the head of the queue.
        for (mut job, sent) in jobs.into_iter().rev() {
            job.tag.attempts += u32::from(sent);
            let error = if core.phase == Phase::Closed {
                Some(cancelled())
            } else if job.tag.attempts > self.config.retries {
                let mut cause = cause.clone();
                cause.detail =
                    format!("lost with {} sticks in turn, the last: {}", job.tag.attempts, cause.detail);
                Some(cause.error("infer", &self.sticks[at].id))
            } else {
                self.obsolete(&job)
            };
            let Core { graphs, queued, failed, retried, .. } = &mut *core;
            let Some(entry) = graphs.iter_mut().find(|g| g.id == job.graph) else { continue };
            if let Some(error) = error {
                entry.active -= 1;
                *failed += 1;
                job.tag.end(Err(error));
                continue;
            }
            *retried += u64::from(sent);
            *queued += 1;
            entry.requeue(job);
        }
        self.after_ends(&mut core);
        self.fail_hopeless(&mut core);
        let rings = self.pump(&mut core);
        drop(core);
        self.changed.notify_all();
        self.ring(rings);
    }

    /// A stick that goes on gives back jobs that it did not send.
    pub(super) fn jobs_handed_back(&self, at: usize, jobs: &mut Vec<(QueuedJob, bool)>) {
        let mut core = self.core.lock();
        for (job, _) in jobs.drain(..).rev() {
            let closed = core.phase == Phase::Closed;
            let Core { graphs, queued, failed, .. } = &mut *core;
            let Some(entry) = graphs.iter_mut().find(|g| g.id == job.graph) else { continue };
            entry.on[at].assigned = entry.on[at].assigned.saturating_sub(1);
            if closed {
                entry.active -= 1;
                *failed += 1;
                job.tag.end(Err(cancelled()));
                continue;
            }
            *queued += 1;
            entry.requeue(job);
        }
        self.after_ends(&mut core);
        self.fail_hopeless(&mut core);
        let rings = self.pump(&mut core);
        drop(core);
        self.ring(rings);
    }

    /// Sends a command to every ready stick.
    pub(super) fn command_ready(&self, core: &Core, mut command: impl FnMut() -> Command) {
        for (stick, entry) in self.sticks.iter().zip(&core.sticks) {
            if entry.state == StickState::Ready {
                stick.inbox.command(command());
            }
        }
    }
}

/// What is known of the sticks, for one graph.
pub(super) struct StickSituation<'a> {
    pub(super) sticks: &'a [StickEntry],
    pub(super) presences: &'a [Presence],
}

impl Record {
    /// The load sums up to `now`.
    pub(super) fn load_until(&self, now: Instant) -> Load {
        let mut load = self.load;
        let since = now.saturating_since(self.load_at);
        if load.in_flight > 0 {
            load.busy += since;
            load.depth_time += since * load.in_flight;
        }
        load.busy += self.load_before.busy;
        load.depth_time += self.load_before.depth_time;
        load
    }

    fn end_connection(&mut self) {
        self.load_before.busy += self.load.busy;
        self.load_before.depth_time += self.load.depth_time;
        self.load = Load::default();
    }
}

/// The fleet was closed under the request.
pub(super) fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "infer").detail("the fleet was closed before the answer came")
}

/// The longest of the waits that have no setting of their own.
pub(super) const CLOSE_GRACE: Duration = Duration::from_secs(4);
