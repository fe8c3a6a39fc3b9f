//! The state of the scheduler, its events, and its timers.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

use crate::clock::Instant;

use super::breaker::{Breaker, Gate};
use super::config::{Policy, SchedConfig};
use super::estimate::Estimate;
use super::event::{
    Action, Attempt, Event, Fault, GiveUpReason, GraphNo, GraphSpec, JobId, JobSpec, RunId, StickNo,
    ThermalSource,
};
use super::queue::{FairQueue, Lane, NodeKey, PRIORITIES, Place};
use super::ranking::Board;
use super::retry::RetryBudget;
use super::runs::Runs;
use super::stick::Stick;
use super::throttle::LawProbe;

/// Time between two rounds of housekeeping: watchdogs, rests, fading estimates.
const ROUND: Duration = Duration::from_millis(250);

/// Where a job is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Where {
    Waiting(Place),
    /// Its stick died: waits to run alone.
    Suspect,
    Running(RunId),
}

/// One job that has not ended.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) spec: JobSpec,
    pub(super) arrived: Instant,
    pub(super) place: Where,
    pub(super) retries: u32,
    pub(super) deaths: u32,
    pub(super) history: Vec<Attempt>,
}

/// One model of the fleet.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) spec: GraphSpec,
    /// Sticks by the policy; out are those without the graph or without room.
    pub(super) board: Board,
    /// Device time over all sticks, per batch size; what an unmeasured stick is judged by.
    pub(super) service: Vec<Estimate>,
    pub(super) breaker: Breaker,
    pub(super) in_flight: u32,
    /// Stick where it failed last, while it has not succeeded since.
    pub(super) failed_on: Option<StickNo>,
    /// Starts that the rate limit allows now, and when that was counted.
    pub(super) tokens: (f64, Instant),
    pub(super) next_load: Instant,
    pub(super) strict_next: usize,
    pub(super) removed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Timer {
    Deadline(JobId),
    /// Something about the stick changes with time alone: breaker, latency class.
    Stick(StickNo),
    /// A blocked model may go on: rate limit, batch, breaker.
    Model(GraphNo),
}

/// Job names are counters: one multiplication spreads them.
#[derive(Default)]
pub(super) struct JobHasher(u64);

impl Hasher for JobHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u64(u64::from(*b)));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(26);
    }
}

pub(super) type JobMap = HashMap<JobId, Job, BuildHasherDefault<JobHasher>>;

/// Counters of the fleet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Requests that came.
    pub arrived: u64,
    /// Answered.
    pub delivered: u64,
    /// Ended with an error.
    pub given_up: u64,
    /// Refused, the queue being full.
    pub rejected: u64,
    /// Ended by their deadline.
    pub expired: u64,
    /// Ended by their caller.
    pub cancelled: u64,
    /// Attempts after a failed one.
    pub retried: u64,
    /// Answers that fitted nothing: of a run that was over.
    pub stale: u64,
}

/// See the [module](super) for the calling order.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) config: SchedConfig,
    pub(super) models: Vec<Option<Model>>,
    pub(super) sticks: Vec<Option<Stick>>,
    pub(super) jobs: JobMap,
    pub(super) runs: Runs,
    pub(super) queue: FairQueue,
    pub(super) actions: VecDeque<Action>,
    pub(super) timers: BinaryHeap<Reverse<(Instant, Timer)>>,
    pub(super) budget: RetryBudget,
    pub(super) law: LawProbe,
    pub(super) explorer: Option<StickNo>,
    pub(super) rest_pays: bool,
    pub(super) suspects: VecDeque<JobId>,
    pub(super) suspect_stick: Option<StickNo>,
    pub(super) turn: u64,
    pub(super) next_round: Instant,
    pub(super) next_fade: Instant,
    pub(super) counters: Counters,
}

impl Scheduler {
    /// Without sticks and graphs.
    pub fn new(config: SchedConfig) -> Self {
        Scheduler {
            budget: RetryBudget::new(config.retry_share),
            config,
            models: Vec::new(),
            sticks: Vec::new(),
            jobs: JobMap::default(),
            runs: Runs::default(),
            queue: FairQueue::new(),
            actions: VecDeque::new(),
            timers: BinaryHeap::new(),
            law: LawProbe::default(),
            explorer: None,
            rest_pays: true,
            suspects: VecDeque::new(),
            suspect_stick: None,
            turn: 0,
            next_round: Instant::ZERO,
            next_fade: Instant::ZERO,
            counters: Counters::default(),
        }
    }

    /// Settings.
    pub fn config(&self) -> &SchedConfig {
        &self.config
    }

    /// Takes one event that happened by `now`.
    pub fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::GraphAdded { graph, spec } => self.graph_added(graph, spec, now),
            Event::GraphRemoved { graph } => self.graph_removed(graph),
            Event::Arrived { job, spec } => self.arrived(job, spec, now),
            Event::Cancelled { job } => self.end_early(job, Action::Cancel { job }),
            Event::Started { .. } => {}
            Event::Completed { run } => self.completed(run, now),
            Event::Failed { run, fault } => self.failed(run, fault, now),
            Event::StickUp { stick, limits, guards, weight } => {
                self.stick_up(stick, limits, guards, weight, now)
            }
            Event::StickHalted { stick } => self.stick_halted(stick, now),
            Event::StickLost { stick } => self.stick_lost(stick, now),
            Event::GraphLoaded { stick, graph, took } => self.graph_loaded(stick, graph, took, now),
            Event::LoadFailed { stick, graph } => self.load_failed(stick, graph, now),
            Event::MemoryUsed { stick, bytes } => {
                if let Some(stick) = self.stick_mut(stick).filter(|s| s.up) {
                    stick.cache.reported_used(bytes);
                }
            }
            Event::Thermal { stick, reading } => self.thermal(stick, reading, now),
            Event::Tick => {}
        }
        self.advance(now);
        self.dispatch(now);
    }

    /// Reads each stick's heat. To be called about once a second.
    pub fn read_heat(&mut self, source: &mut dyn ThermalSource, now: Instant) {
        for i in 0..self.sticks.len() {
            let stick = StickNo(i as u32);
            if self.sticks[i].as_ref().is_some_and(|s| s.up) {
                let reading = source.read(stick, now);
                self.thermal(stick, reading, now);
            }
        }
        self.advance(now);
        self.dispatch(now);
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Tick`] is due.
    pub fn poll_timeout(&self) -> Instant {
        let timer = self.timers.peek().map_or(Instant::FAR_FUTURE, |Reverse((at, _))| *at);
        // Without jobs there is nothing to keep house for but rests: an idle fleet must not wake the machine. Readings of
        // heat come by themselves, and each does a round that is due.
        let idle = self.jobs.is_empty() && self.sticks.iter().flatten().all(|s| !s.up || !s.heat.resting);
        if idle { timer } else { timer.min(self.next_round) }
    }

    /// Changes how sticks are chosen, from the next job on. Sticks that rest are woken where the new policy knows no rest.
    pub fn set_policy(&mut self, policy: Policy, now: Instant) {
        self.config.policy = policy;
        for i in 0..self.sticks.len() {
            let no = StickNo(i as u32);
            if let Some(stick) = self.stick_mut(no).filter(|s| s.heat.resting && policy != Policy::Thermal) {
                (stick.heat.resting, stick.heat.since) = (false, now);
                self.actions.push_back(Action::Wake { stick: no });
            }
            self.refresh(no, now);
        }
        self.dispatch(now);
    }

    /// Requests that wait, those that wait to run alone included.
    pub fn queued(&self) -> usize {
        self.queue.len() + self.suspects.len()
    }

    /// True while a new request would be accepted, for callers that wait.
    pub fn has_room(&self) -> bool {
        self.queue.len() < self.config.queue_limit
    }

    pub(super) fn model(&self, graph: GraphNo) -> Option<&Model> {
        self.models.get(graph.0 as usize)?.as_ref()
    }

    pub(super) fn model_mut(&mut self, graph: GraphNo) -> Option<&mut Model> {
        self.models.get_mut(graph.0 as usize)?.as_mut()
    }

    pub(super) fn stick(&self, stick: StickNo) -> Option<&Stick> {
        self.sticks.get(stick.0 as usize)?.as_ref()
    }

    pub(super) fn stick_mut(&mut self, stick: StickNo) -> Option<&mut Stick> {
        self.sticks.get_mut(stick.0 as usize)?.as_mut()
    }

    pub(super) fn later(&mut self, at: Instant, timer: Timer) {
        self.timers.push(Reverse((at, timer)));
    }

    fn arrived(&mut self, job: JobId, mut spec: JobSpec, now: Instant) {
        self.counters.arrived += 1;
        spec.priority = spec.priority.min(PRIORITIES as u8 - 1);
        let known = self.model(spec.graph).filter(|m| !m.removed);
        let refusal = match known {
            None => Some(GiveUpReason::Input),
            Some(m) if matches!(m.breaker.gate(now), Gate::Open(_)) => Some(GiveUpReason::GraphBroken),
            Some(_) => None,
        };
        if self.jobs.contains_key(&job) {
            // A name used twice: the second is the owner's mistake and may not disturb the first.
            return;
        }
        if let Some(reason) = refusal {
            self.counters.given_up += 1;
            self.actions.push_back(Action::GiveUp { job, reason, history: Vec::new() });
        } else if spec.deadline <= now {
            self.counters.expired += 1;
            self.actions.push_back(Action::Expire { job });
        } else if !self.has_room() {
            self.counters.rejected += 1;
            self.actions.push_back(Action::Reject { job });
        } else {
            if spec.deadline != Instant::FAR_FUTURE {
                self.later(spec.deadline, Timer::Deadline(job));
            }
            let new =
                Job { spec, arrived: now, place: Where::Suspect, retries: 0, deaths: 0, history: Vec::new() };
            self.jobs.insert(job, new);
            self.budget.earn();
            self.enqueue(job, Lane::Any);
            let batches = self.model(spec.graph).is_some_and(|m| m.spec.variants.len() > 1);
            if batches {
                self.queue.unblock(spec.graph);
            }
        }
    }

    /// Puts a job into the queue.
    pub(super) fn enqueue(&mut self, id: JobId, lane: Lane) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let spec = job.spec;
        let weight = self.models[spec.graph.0 as usize].as_ref().map_or(1.0, |m| m.spec.weight);
        let key =
            NodeKey { graph: spec.graph, priority: spec.priority, lane: spec.stick.map_or(lane, Lane::Only) };
        let place = self.queue.push(key, spec.caller, weight, id, spec.deadline, job.arrived);
        job.place = Where::Waiting(place);
    }

    /// Takes a job out of wherever it waits. A running one stays with its run, whose answer then fits nobody.
    pub(super) fn withdraw(&mut self, id: JobId) -> Option<Job> {
        let job = self.jobs.remove(&id)?;
        match job.place {
            Where::Waiting(place) => self.queue.remove(place, job.spec.deadline),
            Where::Suspect => self.suspects.retain(|s| *s != id),
            Where::Running(_) => {}
        }
        Some(job)
    }

    fn end_early(&mut self, id: JobId, action: Action) {
        if self.withdraw(id).is_none() {
            return;
        }
        match action {
            Action::Expire { .. } => self.counters.expired += 1,
            _ => self.counters.cancelled += 1,
        }
        self.actions.push_back(action);
    }

    pub(super) fn give_up(&mut self, id: JobId, reason: GiveUpReason) {
        let Some(job) = self.withdraw(id) else { return };
        self.counters.given_up += 1;
        self.actions.push_back(Action::GiveUp { job: id, reason, history: job.history });
    }

    /// Ends all waiting jobs of a model.
    pub(super) fn flush(&mut self, graph: GraphNo, end: impl Fn(&mut Self, JobId)) {
        let waiting = {
            let jobs = &self.jobs;
            self.queue.jobs_of(graph, |id, seq| is_live(jobs, id, seq))
        };
        let suspects: Vec<JobId> = self
            .suspects
            .iter()
            .filter(|id| self.jobs.get(id).is_some_and(|j| j.spec.graph == graph))
            .copied()
            .collect();
        for id in waiting.into_iter().chain(suspects) {
            end(self, id);
        }
    }

    fn graph_removed(&mut self, graph: GraphNo) {
        let Some(model) = self.model_mut(graph) else { return };
        model.removed = true;
        self.flush(graph, |this, job| this.end_early(job, Action::Cancel { job }));
        for i in 0..self.sticks.len() {
            self.drop_removed(StickNo(i as u32), graph);
        }
    }

    fn advance(&mut self, now: Instant) {
        while self.timers.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((_, timer))) = self.timers.pop() else { break };
            match timer {
                Timer::Deadline(job) => {
                    if self.jobs.get(&job).is_some_and(|j| j.spec.deadline <= now) {
                        self.end_early(job, Action::Expire { job });
                    }
                }
                Timer::Stick(stick) => self.refresh(stick, now),
                Timer::Model(graph) => self.queue.unblock(graph),
            }
        }
        if now >= self.next_round {
            self.next_round = now + ROUND;
            self.round(now);
        }
    }

    fn round(&mut self, now: Instant) {
        self.watch(now);
        self.last_hope(now);
        self.keep_cool(now);
        self.retry_loads(now);
        if now >= self.next_fade {
            let before = Instant::from_nanos(now.as_nanos().saturating_sub(30_000_000_000));
            self.next_fade = now + Duration::from_secs(10);
            self.fade(before, now);
            self.weigh_resting();
        }
    }

    /// Where no stick takes work, open breakers protect nobody: those sticks are tried at once.
    fn last_hope(&mut self, now: Instant) {
        let works = |s: &Stick| s.up && !s.resetting && (s.takes_work(now) || !s.runs.is_empty());
        let idle = self.queue.is_empty() && self.suspects.is_empty();
        if idle || self.sticks.iter().flatten().any(works) {
            return;
        }
        for i in 0..self.sticks.len() {
            if let Some(stick) = self.sticks[i].as_mut().filter(|s| s.up) {
                stick.breaker.try_now(now);
                self.refresh(StickNo(i as u32), now);
            }
        }
    }

    /// Fails a stick's watchdog where the oldest run should long have been answered.
    fn watch(&mut self, now: Instant) {
        for i in 0..self.sticks.len() {
            let Some(stick) = &self.sticks[i] else { continue };
            if !stick.up || stick.resetting {
                continue;
            }
            let factor = self.config.deadline_factor[usize::from(stick.heat.level).min(2)];
            let runs = || stick.runs.iter().filter_map(|id| self.runs.peek(*id));
            let limit = |us: f64| self.config.job_slack + Duration::from_secs_f64(us * factor / 1e6);
            // A run is due after what was ahead of it; and some run is due within the longest one's time after the last.
            let longest = runs().map(|r| r.own_us + r.unsure_us).fold(0.0, f64::max);
            let begun = runs().map(|r| r.assigned).min().unwrap_or(now).max(stick.done_at);
            let late = now.saturating_since(begun) > limit(longest)
                || runs()
                    .any(|r| now.saturating_since(r.assigned) > limit(r.ahead_us + r.own_us + r.unsure_us));
            let overdue = now.as_nanos() > stick.ready_ns() && !stick.runs.is_empty();
            if late {
                self.reset_stick(StickNo(i as u32), now);
            } else if overdue && let Some(stick) = &mut self.sticks[i] {
                // Its finish lies in the past and would look better than any other's: count anew from here.
                stick.head_since = now;
                self.refresh(StickNo(i as u32), now);
            }
        }
    }
}

/// Whether a queue entry is its job's present one.
pub(super) fn is_live(jobs: &JobMap, id: JobId, seq: u64) -> bool {
    jobs.get(&id).is_some_and(|j| matches!(j.place, Where::Waiting(p) if p.seq == seq))
}

/// What an attempt's end says about the graph, as opposed to the stick.
pub(super) fn blames_graph(fault: Fault, suspect: bool) -> bool {
    match fault {
        Fault::Refused | Fault::Timeout => true,
        Fault::StickDied => suspect,
        Fault::NotSent | Fault::Input => false,
    }
}
