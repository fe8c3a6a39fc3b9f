//! What becomes of a run: answered, failed, or lost with its stick.

use crate::clock::Instant;

use super::event::{Action, Attempt, Fault, GiveUpReason, GraphNo, JobId, RunId, StickNo};
use super::queue::Lane;
use super::retry::{Verdict, judge};
use super::runs::Run;
use super::scheduler::{Scheduler, Timer, Where, blames_graph};
use super::throttle::Law;

/// A level that rose longer ago tells nothing about the law just behind the guard.
const FRESH_LEVEL_S: f64 = 10.0;

impl Scheduler {
    pub(super) fn completed(&mut self, id: RunId, now: Instant) {
        let Some(run) = self.unbook(id, now) else {
            self.counters.stale += 1;
            return;
        };
        self.measure(&run, now);
        for job in run.jobs.as_slice() {
            if self.withdraw(*job).is_some() {
                self.counters.delivered += 1;
                self.actions.push_back(Action::Deliver { job: *job, run: id });
            }
        }
        if let Some(stick) = self.stick_mut(run.stick) {
            stick.completed += 1;
            stick.breaker.succeeded();
        }
        if let Some(model) = self.model_mut(run.graph) {
            model.failed_on = None;
            let tried = model.breaker.gate(now) != super::breaker::Gate::Closed;
            model.breaker.succeeded();
            if tried {
                self.queue.unblock(run.graph);
            }
        }
        self.drop_removed(run.stick, run.graph);
        self.refresh(run.stick, now);
    }

    /// Takes a run out of all books; `None` for one that is over.
    fn unbook(&mut self, id: RunId, now: Instant) -> Option<Run> {
        let run = self.runs.remove(id)?;
        let key = self.model(run.graph).map(|m| m.spec.key);
        if let Some(model) = self.model_mut(run.graph) {
            model.in_flight -= 1;
        }
        let stick = self.stick_mut(run.stick)?;
        stick.runs.retain(|r| *r != id);
        stick.head_since = now;
        stick.backlog_us = if stick.runs.is_empty() { 0.0 } else { (stick.backlog_us - run.own_us).max(0.0) };
        stick.heavy -= u32::from(run.heavy);
        if let Some(slot) = stick.slots.iter_mut().find(|s| s.graph == run.graph) {
            slot.in_flight -= 1;
            if slot.in_flight == 0
                && let Some(key) = key
            {
                stick.cache.unpin(&key);
            }
        }
        if stick.runs.is_empty() {
            stick.busy_ns += (now - stick.busy_since).as_nanos() as u64;
        }
        Some(run)
    }

    /// Device time of an answered run: since it was given, or since the answer before it.
    fn measure(&mut self, run: &Run, now: Instant) {
        let law_unknown = self.law.law() == Law::Unknown;
        let Some(stick) = self.stick_mut(run.stick) else { return };
        let begun = run.assigned.max(stick.done_at);
        stick.done_at = now;
        let device_us = now.saturating_since(begun).as_nanos() as f64 / 1e3;
        stick.served_us += device_us - run.own_us;
        let level = stick.heat.level;
        let fresh = level >= 1 && now.saturating_since(stick.heat.rose).as_secs_f64() < FRESH_LEVEL_S;
        let only = stick.runs.len() as u32 <= stick.slot(run.graph).map_or(0, |s| s.in_flight);
        let alone = only && stick.done_graph == Some(run.graph);
        stick.done_graph = Some(run.graph);
        let Some(slot) = stick.slot_mut(run.graph) else { return };
        let service = &mut slot.service[run.variant as usize];
        let ratio = service.base_us().filter(|_| law_unknown && fresh).map(|base| device_us / base);
        service.record(device_us, level, now);
        slot.depth.completed(now, now.saturating_since(run.assigned), run.full, alone);
        if let Some(ratio) = ratio
            && self.law.sample(ratio)
        {
            self.explorer = None;
        }
        if let Some(model) = self.model_mut(run.graph)
            && level == 0
        {
            model.service[run.variant as usize].record(device_us, now);
        }
        // The share was charged with an estimate.
        let error = device_us - run.own_us;
        if let Some(place) = run.place
            && error.abs() > 0.1 * run.own_us
        {
            self.queue.charge(place, (error * 1e3) as i64, false);
        }
    }

    pub(super) fn failed(&mut self, id: RunId, fault: Fault, now: Instant) {
        let Some(run) = self.unbook(id, now) else {
            self.counters.stale += 1;
            return;
        };
        self.blame(&run, fault, now);
        self.settle(&run, fault, now);
        self.drop_removed(run.stick, run.graph);
        self.refresh(run.stick, now);
    }

    /// Counts a failure against the stick or the graph.
    fn blame(&mut self, run: &Run, fault: Fault, now: Instant) {
        let graph = run.graph;
        if matches!(fault, Fault::NotSent | Fault::Input) {
            return;
        }
        let mut graphs_fault = false;
        let mut broke = false;
        if blames_graph(fault, run.suspect)
            && let Some(model) = self.model_mut(graph)
        {
            // The same graph failed elsewhere just before: hardly this stick's fault.
            graphs_fault = model.failed_on.is_some_and(|s| s != run.stick);
            model.failed_on = Some(run.stick);
            broke = model.breaker.failed(now);
        }
        if broke {
            self.flush(graph, |this, job| this.give_up(job, GiveUpReason::GraphBroken));
        }
        let Some(stick) = self.stick_mut(run.stick) else { return };
        stick.failed += 1;
        if !graphs_fault && fault != Fault::StickDied && stick.breaker.failed(now) {
            self.wake_after_breaker(run.stick, now);
        }
    }

    pub(super) fn wake_after_breaker(&mut self, stick: StickNo, now: Instant) {
        if let Some(super::breaker::Gate::Open(until)) = self.stick(stick).map(|s| s.breaker.gate(now)) {
            self.later(until, Timer::Stick(stick));
        }
    }

    /// Decides on each job of a failed run.
    fn settle(&mut self, run: &Run, fault: Fault, now: Instant) {
        let attempt = Attempt { stick: run.stick, fault, at: now };
        for &id in run.jobs.as_slice() {
            let limit = self.config.retries;
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            if fault != Fault::NotSent {
                job.history.push(attempt);
            }
            job.deaths += u32::from(fault == Fault::StickDied);
            let was_suspect = job.deaths > 0;
            match judge(fault, job.deaths, job.retries, limit, &mut self.budget) {
                Verdict::GiveUp(reason) => self.give_up(id, reason),
                verdict => {
                    if fault != Fault::NotSent {
                        job.retries += 1;
                        self.counters.retried += 1;
                        self.actions.push_back(Action::Retry { job: id, attempt });
                    }
                    self.again(id, run.graph, run.stick, was_suspect || verdict == Verdict::AloneNow, fault);
                }
            }
        }
    }

    fn again(&mut self, id: JobId, graph: GraphNo, stick: StickNo, alone: bool, fault: Fault) {
        if self.model(graph).is_none_or(|m| m.removed) {
            return self.give_up(id, GiveUpReason::Input);
        }
        if alone {
            if let Some(job) = self.jobs.get_mut(&id) {
                job.place = Where::Suspect;
            }
            self.suspects.push_back(id);
        } else {
            self.enqueue(id, if fault == Fault::NotSent { Lane::Any } else { Lane::Not(stick) });
        }
    }

    /// Everything that was in flight on a lost stick died with it.
    pub(super) fn fail_all(&mut self, no: StickNo, now: Instant) {
        let Some(stick) = self.stick(no) else { return };
        for id in stick.runs.clone() {
            if let Some(run) = self.unbook(id, now) {
                self.blame(&run, Fault::StickDied, now);
                self.settle(&run, Fault::StickDied, now);
            }
        }
    }
}
