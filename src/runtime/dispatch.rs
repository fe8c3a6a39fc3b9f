//! Carries out what the scheduler decides: requests go to sticks, graphs are loaded and evicted, requests end.

use super::StickState;
use super::core::{Core, Phase, Rings, Shared, cancelled, number, unwanted};
use super::failure::Cause;
use super::graphs::Presence;
use super::inbox::{Command, Order};
use super::jobs::{Members, Remaining, RunTag, Waiting};
use super::ticket::late;
use crate::clock::Instant;
use crate::error::{Error, ErrorKind};
use crate::pipeline::Job;
use crate::sched::{Action, Attempt, Event, Fault, GiveUpReason, GraphNo, JobId, Jobs, RunId, StickNo};

impl Shared {
    /// Carries out all actions of the scheduler. Call after every [`Core::tell`], under the same lock.
    pub(super) fn carry_out(&self, core: &mut Core) -> Rings {
        let mut rings = Rings::default();
        loop {
            let ended = self.carry_out_some(core, &mut rings);
            if !ended {
                break;
            }
            // Which may let go of graphs, and that is an event again.
            self.after_ends(core);
        }
        self.bell.at(core.sched.poll_timeout());
        rings
    }

    /// True when requests have ended.
    fn carry_out_some(&self, core: &mut Core, rings: &mut Rings) -> bool {
        let mut ended = false;
        while let Some(action) = core.sched.poll_action() {
            match action {
                Action::Assign { run, stick, graph, variant, jobs } => {
                    self.assign(core, (run, stick, graph, variant), jobs, rings);
                }
                Action::Load { stick, graph, evict } => {
                    for victim in evict {
                        self.evict(core, stick, victim);
                    }
                    self.load(core, stick, graph);
                }
                Action::Evict { stick, graph } => self.evict(core, stick, graph),
                Action::Reset { stick } => self.sticks[stick.0 as usize].inbox.command(Command::Reset),
                Action::Deliver { job, .. } => ended |= self.forget(core, job).is_some(),
                Action::GiveUp { job, reason, history } => {
                    self.end_job(core, job, |core, graph| self.why_given_up(core, graph, reason, &history));
                    ended = true;
                }
                Action::Expire { job } => {
                    self.end_job(core, job, |_, _| late());
                    ended = true;
                }
                Action::Cancel { job } => {
                    self.end_job(core, job, |_, _| cancelled());
                    ended = true;
                }
                Action::Reject { job } => {
                    self.end_job(core, job, |_, _| {
                        Error::new(ErrorKind::QueueFull, "submit")
                            .detail("the queue is full; take answers, wait, or raise the queue limit")
                    });
                    ended = true;
                }
                Action::Warn { stick, celsius } => self.warn(stick, celsius),
                Action::Rest { stick } => {
                    tracing::info!(stick = %self.sticks[stick.0 as usize].id, "rests, to cool down");
                }
                Action::Wake { stick } => {
                    tracing::info!(stick = %self.sticks[stick.0 as usize].id, "works again");
                }
                Action::Retry { job, attempt } => {
                    let stick = &self.sticks[attempt.stick.0 as usize].id;
                    tracing::debug!(job = job.0, %stick, "tried again after {:?}", attempt.fault);
                }
            }
        }
        ended
    }

    fn warn(&self, stick: StickNo, celsius: f64) {
        let id = &self.sticks[stick.0 as usize].id;
        tracing::warn!(stick = %id, "{celsius:.1} degrees Celsius, above the limit");
        if let Some(hook) = &self.config.on_warm {
            self.bell.run_hook(hook.clone(), id.clone(), celsius);
        }
    }

    /// Gives a run to its stick. Requests that nobody wants any more are left out of it.
    fn assign(
        &self,
        core: &mut Core,
        (run, stick, graph, variant): (RunId, StickNo, GraphNo, u32),
        jobs: Jobs,
        rings: &mut Rings,
    ) {
        let at = stick.0 as usize;
        let now = self.now();
        let mut one: Option<Waiting> = None;
        let mut many: Vec<Waiting> = Vec::new();
        for &id in jobs.as_slice() {
            let Some(job) = core.jobs.send(id) else { continue };
            if let Some(error) = obsolete(&job, now) {
                core.failed += 1;
                job.tag.end(Err(error));
                core.tell(Event::Cancelled { job: id }, now);
            } else if jobs.as_slice().len() == 1 {
                one = Some(job);
            } else {
                many.push(job);
            }
        }
        let place = core.graph(graph).and_then(|g| {
            let batch = g.variants.get(variant as usize)?.batch;
            Some((g.on[at].copy_of(variant)?, batch))
        });
        let Some((copy, batch)) = place.filter(|_| one.is_some() || !many.is_empty()) else {
            // Nobody wants it, or the graph has gone meanwhile: as if it had never been given.
            for job in one.into_iter().chain(many) {
                self.put_back(core, job);
            }
            core.tell(Event::Failed { run, fault: Fault::NotSent }, now);
            return;
        };
        let order = match one {
            Some(Waiting { tag, graph, pinned, input, submitted }) if batch == 1 => Order::Run(Job {
                tag: RunTag { run, graph, members: Members::One(tag, pinned) },
                graph: copy,
                input,
                submitted,
            }),
            one => Order::Batch { run, graph, copy, variant, jobs: one.into_iter().chain(many).collect() },
        };
        self.sticks[at].inbox.add_order(order);
        self.wake_later(at, rings);
    }

    fn load(&self, core: &mut Core, stick: StickNo, graph: GraphNo) {
        let Core { graphs, sticks, next_copy, .. } = core;
        let at = stick.0 as usize;
        let Some(entry) = graphs.get_mut(graph.0 as usize).and_then(Option::as_mut) else { return };
        if sticks[at].state != StickState::Ready {
            return;
        }
        for spec in entry.begin_load(at, next_copy, self.now()) {
            self.sticks[at].inbox.command(Command::Load(spec));
        }
    }

    fn evict(&self, core: &mut Core, stick: StickNo, graph: GraphNo) {
        let Some(entry) = core.graph_mut(graph) else { return };
        for copy in entry.on[stick.0 as usize].leave() {
            self.sticks[stick.0 as usize].inbox.command(Command::Unload(copy));
        }
    }

    /// Takes a request's name out of the books. What remains to be told is the caller's of this.
    pub(super) fn forget(&self, core: &mut Core, job: JobId) -> Option<Option<Remaining>> {
        let (graph, remaining) = core.jobs.remove(job)?;
        if let Some(entry) = core.graph_mut(graph) {
            entry.active -= 1;
        }
        Some(remaining)
    }

    /// Ends a request by the scheduler's word. One that is on a stick ends for its caller; it is counted when it comes
    /// back from there.
    fn end_job(&self, core: &mut Core, id: JobId, why: impl FnOnce(&Core, GraphNo) -> Error) {
        let Some(remaining) = self.forget(core, id) else { return };
        match remaining {
            Some(Remaining::Waiting(job)) => {
                let error = why(core, job.graph);
                self.fall_back_or_end(core, job, error);
            }
            Some(Remaining::Away(preempt)) => preempt.end(late()),
            None => {}
        }
    }

    /// A request that came back from a stick waits again. True unless its name is gone: then it ended meanwhile.
    pub(super) fn put_back(&self, core: &mut Core, job: Waiting) {
        match core.jobs.came_back(job) {
            Some(job) => {
                core.failed += 1;
                let error = if job.tag.is_late(self.now()) { late() } else { unwanted() };
                job.tag.end(Err(error));
            }
            // Its time for the fallback may have come while it was away.
            None if self.config.fallback.is_some() => self.bell.at(self.now()),
            None => {}
        }
    }

    /// Ends waiting requests that `why` gives an error for.
    pub(super) fn end_waiting(&self, core: &mut Core, why: impl Fn(&Core, &Waiting) -> Option<Error>) {
        let now = self.now();
        let ending: Vec<(JobId, Error)> =
            core.jobs.waiting().filter_map(|job| Some((job.tag.id, why(core, job)?))).collect();
        for (id, error) in ending {
            self.end_job(core, id, |_, _| error);
            core.tell(Event::Cancelled { job: id }, now);
        }
    }

    /// Drops from the queue what nobody wants any more.
    pub(super) fn purge_queue(&self, core: &mut Core) {
        let now = self.now();
        self.end_waiting(core, |_, job| obsolete(job, now));
    }

    /// Fails what no stick can answer in the foreseeable future.
    pub(super) fn fail_hopeless(&self, core: &mut Core) {
        let now = self.now();
        self.end_waiting(core, |core, job| self.no_hope(core, job.graph, job.pinned, now));
    }

    /// Why no stick will take a request; `None` when one may.
    pub(super) fn no_hope(
        &self,
        core: &Core,
        graph: GraphNo,
        pinned: Option<usize>,
        now: Instant,
    ) -> Option<Error> {
        let entry = core.graph(graph)?;
        let hopeful = |at: usize| {
            let stick = &core.sticks[at];
            match stick.state {
                StickState::Starting => true,
                StickState::Ready => !matches!(entry.on[at].presence, Presence::Refused(_)),
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
        let of = |at: usize| match &entry.on[at].presence {
            Presence::Refused(cause) => Some(cause.clone()),
            _ => core.sticks[at].cause.clone(),
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

    /// The error of a request that the scheduler gave up.
    fn why_given_up(&self, core: &Core, graph: GraphNo, reason: GiveUpReason, history: &[Attempt]) -> Error {
        let name = core.graph(graph).map_or("the graph", |g| g.blob().name());
        let last = history.last().map(|a| a.stick.0 as usize);
        let died = history.iter().filter(|a| a.fault == Fault::StickDied).count();
        let cause = last.and_then(|at| core.sticks[at].cause.clone());
        let tried = || {
            let sticks: Vec<&str> =
                history.iter().map(|a| self.sticks[a.stick.0 as usize].id.as_str()).collect();
            sticks.join(", then ")
        };
        match (reason, cause, last) {
            (GiveUpReason::NoStick, ..) => {
                let refused = core.sched.refusals(graph).into_iter().next();
                match refused {
                    Some((stick, refusal)) => Cause::of_refusal(&refusal)
                        .error("infer", &self.sticks[stick.0 as usize].id),
                    None => Error::new(ErrorKind::NotFound, "infer")
                        .detail(format!("no stick can take {name}")),
                }
            }
            (GiveUpReason::GraphBroken, ..) => Error::new(ErrorKind::Protocol, "infer").detail(format!(
                "{name} failed wherever it ran and is given no more work for a while; check the blob with `blob info`"
            )),
            (GiveUpReason::Input, ..) => Error::new(ErrorKind::InvalidInput, "infer")
                .detail(format!("{name} was unloaded while the request waited; load it again")),
            (GiveUpReason::Poison | GiveUpReason::Retries, Some(mut cause), Some(at)) if died > 0 => {
                cause.detail = format!("lost with {died} sticks in turn ({}), the last: {}", tried(), cause.detail);
                cause.error("infer", &self.sticks[at].id)
            }
            (GiveUpReason::Budget, ..) => Error::new(ErrorKind::Protocol, "infer").detail(format!(
                "failed on {}; not tried again, since more than a tenth of all requests fail: check the sticks with `list`",
                tried()
            )),
            _ => {
                let refusal = last.and_then(|at| Some((at, core.sticks[at].last_refusal.clone()?)));
                match refusal {
                    Some((at, mut cause)) => {
                        if history.len() > 1 {
                            cause.detail = format!("failed on {}, the last: {}", tried(), cause.detail);
                        }
                        cause.error("infer", &self.sticks[at].id)
                    }
                    None => Error::new(ErrorKind::Protocol, "infer")
                        .detail(format!("{name} failed {} times ({})", history.len(), tried())),
                }
            }
        }
    }

    /// Requests have ended: lets go of graphs that nobody needs, tells those who wait.
    pub(super) fn after_ends(&self, core: &mut Core) {
        self.let_go(core);
        if core.phase != Phase::Open {
            self.changed.notify_all();
        }
        if core.room_waiters > 0 {
            self.room.notify_all();
        }
    }

    /// What ended at a stick since the last time. True when others may have put something into its inbox upon it.
    pub(super) fn runs_ended(&self, at: usize, reports: &mut Vec<Report>) {
        let mut core = self.core.lock();
        for report in reports.drain(..) {
            match report {
                Report::Answered { run, at } => core.tell(Event::Completed { run }, at),
                Report::Ended { run, tags } => {
                    let now = self.now();
                    for id in tags {
                        drop(self.forget(&mut core, id));
                        core.tell(Event::Cancelled { job: id }, now);
                    }
                    core.tell(Event::Failed { run, fault: Fault::NotSent }, now);
                }
                Report::Back { run, fault, cause, jobs } => {
                    let now = self.now();
                    if cause.is_some() {
                        core.sticks[at].last_refusal = cause;
                    }
                    for job in jobs {
                        self.put_back(&mut core, job);
                    }
                    core.tell(Event::Failed { run, fault }, now);
                }
            }
        }
        // The caller looks into its own inbox next.
        let rings = self.carry_out(&mut core).without(at);
        drop(core);
        self.ring(rings);
    }

    /// A stick was lost (or could not be reached). `runs` come back from it, with true where they were sent; in order.
    pub(super) fn stick_lost(&self, at: usize, cause: Cause, runs: Vec<(super::jobs::RunJob, bool)>) {
        let now = self.now();
        let mut core = self.core.lock();
        {
            let mut record = self.sticks[at].record.lock();
            record.failed += runs.iter().filter(|(_, sent)| *sent).count() as u64;
            record.end_connection();
        }
        let entry = &mut core.sticks[at];
        if matches!(entry.state, StickState::Ready) {
            tracing::warn!(stick = %self.sticks[at].id, "lost: {}", cause.detail);
        }
        entry.state = StickState::Lost;
        entry.cause = Some(cause);
        entry.lost_since.get_or_insert(now);
        entry.settled = true;
        // Nobody knows them now; the last ones would pass for those of a stick that works.
        (entry.temperature_c, entry.throttle_level, entry.used_memory_bytes) = (None, None, None);
        entry.stage_times.clear();
        for graph in core.graphs.iter_mut().flatten() {
            drop(graph.on[at].leave());
        }
        core.tell(Event::StickHalted { stick: number(at) }, now);
        // What came while nobody looked: under the lock, after the stick stopped being a candidate.
        let mut unread = std::collections::VecDeque::new();
        self.sticks[at].inbox.take_orders(&mut unread);
        let mut unsent = Vec::new();
        for order in unread {
            let run = order.run();
            order.into_members().into_iter().for_each(|job| self.put_back(&mut core, job));
            unsent.push(run);
        }
        for (job, sent) in runs {
            if !sent {
                unsent.push(job.tag.run);
            }
            super::jobs::members_of(job).into_iter().for_each(|job| self.put_back(&mut core, job));
        }
        for run in unsent {
            core.tell(Event::Failed { run, fault: Fault::NotSent }, now);
        }
        core.tell(Event::StickLost { stick: number(at) }, now);
        if core.phase == Phase::Closed {
            self.end_waiting(&mut core, |_, _| Some(cancelled()));
        }
        self.purge_queue(&mut core);
        self.fail_hopeless(&mut core);
        let rings = self.carry_out(&mut core);
        self.after_ends(&mut core);
        drop(core);
        self.changed.notify_all();
        self.ring(rings);
    }
}

/// How a run ended, for the scheduler.
pub(super) enum Report {
    /// Its callers have their answers; the last byte came then.
    Answered { run: RunId, at: Instant },
    /// Its callers were told that it ends without one, and no other stick is to be asked.
    Ended { run: RunId, tags: Vec<JobId> },
    /// It did not run to its end; its requests are to be tried again or given up.
    Back { run: RunId, fault: Fault, cause: Option<Cause>, jobs: Vec<Waiting> },
}

/// Why a request that was not sent need not be sent.
fn obsolete(job: &Waiting, now: Instant) -> Option<Error> {
    if !job.tag.is_wanted() {
        return Some(unwanted());
    }
    (job.tag.deadline.is_some() && job.tag.is_late(now)).then(late)
}
