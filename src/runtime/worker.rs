//! The thread of one stick: connect, drive the pipeline and the transport, reconnect after a loss.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::core::{CLOSE_GRACE, Phase, Shared, cancelled, number, unwanted};
use super::dispatch::Report;
use super::failure::Cause;
use super::inbox::{Command, Order};
use super::jobs::{Members, RunJob, RunTag, Waiting, members_of};
use super::ticket::{JobTag, Output, Sleeper, late};
use super::{StickState, batch};
use crate::blob::Blob;
use crate::cache::StickLimits;
use crate::clock::{Clock, Instant};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::{Done, Event, Failure, GraphId, GraphSpec, Job, Pipeline, PipelineConfig, Reason};
use crate::pool::{Lease, Source, Use};
use crate::sched::{self, Fault, ThermalReading};
use crate::stats::StageTimes;
use crate::stick::{StickConfig, StickError};
use crate::transport::{Connection, Direction, Port, Reactor, Token, Transport};
use crate::wire::{Capabilities, ThermalStats, TimingData};

const TELEMETRY_PERIOD: Duration = Duration::from_secs(1);
/// The memory in use changes with the graphs, and is asked for then; otherwise so often.
const MEMORY_PERIOD: Duration = Duration::from_secs(10);
/// How long a stick with nothing to do may take to end the transfers of a command and its answer. They end one by one,
/// and each would wake the thread.
const LINGER: Duration = Duration::from_millis(10);
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// How long cancelled transfers may take to come back.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// Kept host buffers that were not needed for so long are freed.
const TRIM_PERIOD: Duration = Duration::from_secs(10);

/// What one stick's thread owns.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) index: usize,
    pub(super) port: Port,
    pub(super) reactor: Reactor,
}

/// How a connection ended.
enum Ended {
    Closed,
    Lost(Cause, Vec<(RunJob, bool)>),
}

/// Tells the fleet that the thread is gone, however it went.
struct Exit {
    shared: Arc<Shared>,
    index: usize,
}

impl Drop for Exit {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let detail =
                "its thread panicked, which is a defect of this library; open the fleet again".into();
            self.shared.stick_lost(self.index, Cause { kind: ErrorKind::Closed, detail }, Vec::new());
        }
        let mut core = self.shared.core.lock();
        let entry = &mut core.sticks[self.index];
        entry.state = StickState::Closed;
        entry.settled = true;
        entry.exited = true;
        self.shared.fail_hopeless(&mut core);
        let rings = self.shared.carry_out(&mut core);
        drop(core);
        self.shared.changed.notify_all();
        self.shared.ring(rings);
    }
}

impl Worker {
    /// Runs until the fleet is closed.
    pub(super) fn run(mut self) {
        let exit = Exit { shared: self.shared.clone(), index: self.index };
        let (mut backoff, mut again) = (FIRST_BACKOFF, false);
        loop {
            let ended = match self.port.connect(self.shared.config.open_timeout) {
                Ok(connection) => {
                    self.shared.core.lock().sticks[self.index].resets += u32::from(again);
                    again = true;
                    let began = self.shared.clock.now();
                    let ended = self.drive(connection);
                    if self.shared.clock.now() - began > LONGEST_BACKOFF {
                        backoff = FIRST_BACKOFF;
                    }
                    ended
                }
                Err(error) => Ended::Lost(Cause::of_error(&error), Vec::new()),
            };
            match ended {
                Ended::Closed => break,
                Ended::Lost(cause, jobs) => self.shared.stick_lost(self.index, cause, jobs),
            }
            if !self.pause(backoff) {
                break;
            }
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
        drop(exit);
    }

    /// Waits before the next attempt; false when the fleet closes.
    fn pause(&mut self, time: Duration) -> bool {
        let me = &self.shared.sticks[self.index];
        let until = self.shared.clock.now() + time;
        let mut ready = Vec::new();
        loop {
            while let Some(command) = me.inbox.take_command() {
                // The others concern graphs and telemetry of the lost connection; what is loaded stands in the core.
                if matches!(command, Command::Close) {
                    return false;
                }
            }
            let left = until - self.shared.clock.now();
            if left.is_zero() {
                return true;
            }
            if self.reactor.turn(Some(left), &mut ready).is_err() {
                // Without a reactor the thread cannot sleep well, but it must not spin.
                std::thread::park_timeout(left);
            }
        }
    }

    fn drive(&mut self, connection: Connection) -> Ended {
        let Connection { transport, version } = connection;
        let shared = self.shared.clone();
        let me = &shared.sticks[self.index];
        let token = match register(&mut self.reactor, &*transport) {
            Ok(token) => token,
            Err(error) => return Ended::Lost(Cause::of_error(&error), Vec::new()),
        };
        let config = PipelineConfig {
            stick: StickConfig { version, ordering: shared.config.ordering, ..StickConfig::default() },
            max_packet_bytes: transport.info().max_packet_bytes,
            job_timeout: shared.config.job_timeout,
            memory_timeout: shared.config.wait_timeout,
            wanted: RunTag::is_wanted,
        };
        let now = shared.clock.now();
        me.pool.set_source(transport.memory().map(|memory| {
            let memory = memory.clone();
            let source: Source = Box::new(move |len, purpose| match purpose {
                Use::Input => memory.take(len, Direction::Out),
                Use::Output => memory.take(len, Direction::In),
            });
            source
        }));
        let mut session = Session {
            pipeline: Pipeline::new(config, me.pool.clone(), now),
            transport,
            token,
            index: self.index,
            opened: false,
            open_until: now + shared.config.open_timeout,
            next_telemetry: Instant::FAR_FUTURE,
            next_memory: now,
            telemetry: Telemetry::default(),
            next_trim: now + TRIM_PERIOD,
            close_until: None,
            drain_until: None,
            orders: VecDeque::with_capacity(64),
            ended: Vec::with_capacity(64),
            blobs: Vec::new(),
            unloading: Vec::new(),
            loads_later: Vec::new(),
            recorded_in_flight: 0,
            lost: Vec::new(),
            refused_open: None,
            sleepers: Vec::with_capacity(32),
        };
        session.pipeline.open(now);
        let ended = session.run(&shared, &mut self.reactor);
        me.pool.set_source(None);
        self.reactor.deregister(token);
        ended
    }
}

fn register(reactor: &mut Reactor, transport: &dyn Transport) -> Result<Token> {
    let op = "watch the stick";
    let Some(wait) = transport.wait_on() else {
        return Err(Error::new(ErrorKind::Unsupported, op).detail(
            "this transport is driven by a simulation and cannot be waited for; use one with a descriptor",
        ));
    };
    reactor.register(wait.fd, wait.interest()).map_err(|error| {
        Error::new(ErrorKind::OutOfMemory, op)
            .detail(format!("{error}; raise the limit of open files"))
            .caused_by(error)
    })
}

#[derive(Default)]
struct Telemetry {
    /// Round whose answers are due.
    round: u64,
    /// A newer round that somebody waits for.
    wanted: u64,
    /// Somebody waits for the round whose answers are due.
    awaited: bool,
    thermal_due: bool,
    memory_due: bool,
}

/// One connection to the stick.
struct Session {
    pipeline: Pipeline<RunTag>,
    transport: Box<dyn Transport>,
    /// Of the transport's descriptor.
    token: Token,
    index: usize,
    opened: bool,
    open_until: Instant,
    next_telemetry: Instant,
    next_memory: Instant,
    telemetry: Telemetry,
    next_trim: Instant,
    close_until: Option<Instant>,
    drain_until: Option<Instant>,
    orders: VecDeque<Order>,
    /// Runs that ended since the last report.
    ended: Vec<Report>,
    /// Blobs of the graphs that answers came from.
    blobs: Vec<(GraphId, Blob)>,
    /// Copies on their way off the stick, and loads that wait for the room.
    unloading: Vec<GraphId>,
    loads_later: Vec<GraphSpec>,
    recorded_in_flight: u32,
    lost: Vec<(RunJob, bool)>,
    refused_open: Option<Cause>,
    /// Callers whose answers are there, to be woken at the end of the turn.
    sleepers: Vec<Sleeper>,
}

impl Session {
    fn run(mut self, shared: &Shared, reactor: &mut Reactor) -> Ended {
        let mut ready = Vec::with_capacity(2);
        let mut sent_at = Instant::ZERO;
        loop {
            let mut now = shared.clock.now();
            while let Some(completion) = self.transport.poll() {
                self.pipeline.handle_completion(completion, now);
            }
            if let Some(ended) = self.handle_events(shared) {
                return ended;
            }
            // Before the inbox: what has ended makes room for the next, and who put it there did not ring.
            self.report(shared);
            self.read_inbox(shared);
            now = shared.clock.now();
            self.handle_timers(shared, now);
            while let Some(transfer) = self.pipeline.poll_transfer(now) {
                sent_at = now;
                if let Err(rejected) = self.transport.submit(transfer) {
                    self.pipeline.handle_rejected(rejected, now);
                }
            }
            if self.pipeline.wants_cancel() {
                self.transport.cancel_all();
                self.drain_until = Some(now + DRAIN_LIMIT);
            }
            if let Some(ended) = self.handle_events(shared) {
                return ended;
            }
            let reported = self.report(shared);
            let ready_now = self.transport.arm();
            // Last, since a caller may take our place on this CPU: by now the stick has all that there is for it.
            self.wake_callers();
            if reported || ready_now || reactor.take_wake() {
                continue;
            }
            let now = shared.clock.now();
            let retry = self.transport.retry_after().map(|after| now + after);
            let wait = retry.into_iter().chain([self.next_wake()]).min().unwrap_or(now).saturating_since(now);
            if wait.is_zero() {
                continue;
            }
            if retry.is_none() && self.is_resting() {
                // With nothing asked of the stick, what still comes (a release, the end of a transfer) waits for the next
                // thing to do. That it was pulled out is noticed then, too.
                let answered = self.pipeline.is_quiet();
                let left = if answered { wait } else { wait.min((sent_at + LINGER).saturating_since(now)) };
                if !left.is_zero() {
                    reactor.linger(left);
                    continue;
                }
            }
            // Whoever adds to the inbox wakes the reactor, before or during the turn.
            let turned = self.watch(reactor).and_then(|()| reactor.turn(Some(wait), &mut ready));
            if let Err(error) = turned {
                let detail = format!("waiting for the stick failed: {error}");
                self.refused_open = Some(Cause { kind: ErrorKind::Protocol, detail });
                let failure = StickError::Invalid("the reactor failed");
                self.pipeline.abort(Failure::Stick(failure), shared.clock.now());
                self.pipeline.handle_abandon(shared.clock.now());
            }
        }
    }

    /// A socket that is full is waited for until it has room again, and then no longer.
    fn watch(&self, reactor: &mut Reactor) -> std::io::Result<()> {
        match self.transport.wait_on() {
            Some(wait) => reactor.set_interest(self.token, wait.interest()),
            None => Ok(()),
        }
    }

    /// Only the stick's state of health is asked for, and nobody waits for it.
    fn is_resting(&self) -> bool {
        self.opened && self.close_until.is_none() && !self.telemetry.awaited && self.pipeline.is_resting()
    }

    fn wake_callers(&mut self) {
        self.sleepers.clear();
    }

    fn next_wake(&self) -> Instant {
        let fixed = [self.next_telemetry, self.next_trim];
        let open = (!self.opened).then_some(self.open_until);
        let rest = [self.pipeline.poll_timeout(), self.close_until, self.drain_until, open];
        fixed.into_iter().chain(rest.into_iter().flatten()).min().unwrap_or(self.next_trim)
    }

    fn read_inbox(&mut self, shared: &Shared) {
        let me = &shared.sticks[self.index];
        me.inbox.take_orders(&mut self.orders);
        let now = shared.clock.now();
        while let Some(order) = self.orders.pop_front() {
            match order {
                Order::Run(job) => self.pipeline.submit(job, now),
                Order::Batch { .. } => self.submit_batch(shared, order, now),
            }
        }
        if me.inbox.take_kick() {
            self.pipeline.handle_timeout(now);
        }
        while let Some(command) = me.inbox.take_command() {
            match command {
                Command::Load(spec) if !self.unloading.is_empty() => self.loads_later.push(spec),
                Command::Load(spec) => self.load(shared, spec, now),
                Command::Unload(id) => {
                    self.unloading.push(id);
                    self.pipeline.unload(id, now);
                }
                Command::Telemetry(round) => {
                    self.telemetry.wanted = self.telemetry.wanted.max(round);
                    self.ask_telemetry(now);
                }
                Command::StageTimes(copy) => {
                    if let Err(error) = self.pipeline.request_stage_times(copy, now) {
                        self.tell_stage_times(shared, copy, Err(Cause::of_stick(&error)));
                    }
                }
                Command::Reset => {
                    let after = shared.config.job_timeout;
                    self.pipeline.abort(StickError::Timeout { step: "inference", after }.into(), now);
                }
                Command::Close => self.close(now),
            }
        }
    }

    fn load(&mut self, shared: &Shared, mut spec: GraphSpec, now: Instant) {
        // What the stick has counts more than what the blob would like.
        let core = shared.core.lock();
        if let Some(Capabilities { max_executors, .. }) = core.sticks[self.index].capabilities {
            spec.request.executors = spec.request.executors.min(max_executors.max(1));
        }
        drop(core);
        self.pipeline.load(spec, now);
    }

    /// A copy is off the stick: what waited for its room may follow.
    fn left(&mut self, shared: &Shared, copy: GraphId) {
        self.blobs.retain(|(id, _)| *id != copy);
        self.unloading.retain(|id| *id != copy);
        if self.unloading.is_empty() && !self.loads_later.is_empty() {
            let now = shared.clock.now();
            for spec in std::mem::take(&mut self.loads_later) {
                self.load(shared, spec, now);
            }
        }
    }

    fn close(&mut self, now: Instant) {
        if self.close_until.is_some() {
            return;
        }
        // Their callers hear it now; the answers that still come are thrown away.
        for tag in self.pipeline.tags().flat_map(RunTag::tags) {
            tag.preempt(cancelled());
        }
        self.close_until = Some(now + CLOSE_GRACE / 2);
        self.next_telemetry = Instant::FAR_FUTURE;
        self.pipeline.close(now);
    }

    fn handle_timers(&mut self, shared: &Shared, now: Instant) {
        if self.pipeline.poll_timeout().is_some_and(|t| t <= now) {
            self.pipeline.handle_timeout(now);
            // Together with the ping, so that both wake an idle machine once.
            if self.pipeline.is_resting() && self.next_telemetry < now + TELEMETRY_PERIOD / 2 {
                self.next_telemetry = now;
            }
        }
        if !self.opened && now >= self.open_until {
            let after = shared.config.open_timeout;
            self.pipeline.abort(StickError::Timeout { step: "open", after }.into(), now);
            self.open_until = Instant::FAR_FUTURE;
        }
        if now >= self.next_telemetry {
            if self.telemetry.thermal_due {
                // Asked a period ago and not answered: the sensor is silent.
                let stick = number(self.index);
                let mut core = shared.core.lock();
                core.tell(sched::Event::Thermal { stick, reading: None }, now);
                let rings = shared.carry_out(&mut core);
                drop(core);
                shared.ring(rings);
            }
            self.ask_telemetry(now);
            self.next_telemetry = now + TELEMETRY_PERIOD;
        }
        if now >= self.next_trim {
            shared.sticks[self.index].pool.trim();
            self.next_trim = now + TRIM_PERIOD;
        }
        if self.close_until.is_some_and(|t| now >= t) {
            self.close_until = Some(Instant::FAR_FUTURE);
            let after = CLOSE_GRACE / 2;
            self.pipeline.abort(StickError::Timeout { step: "close", after }.into(), now);
        }
        if self.drain_until.is_some_and(|t| now >= t) {
            self.drain_until = None;
            self.pipeline.handle_abandon(now);
        }
    }

    fn ask_telemetry(&mut self, now: Instant) {
        let t = &mut self.telemetry;
        // One round at a time, so that an answer belongs to a known question.
        if self.opened && !t.thermal_due && !t.memory_due {
            t.awaited = t.wanted > t.round;
            t.round = t.wanted;
            (t.thermal_due, t.memory_due) = (true, t.awaited || now >= self.next_memory);
            if t.memory_due {
                self.next_memory = now + MEMORY_PERIOD;
            }
            self.pipeline.request_telemetry(t.memory_due, now);
        }
    }

    fn telemetry_came(&mut self, shared: &Shared) {
        if self.telemetry.thermal_due || self.telemetry.memory_due {
            return;
        }
        self.telemetry.awaited = false;
        shared.core.lock().sticks[self.index].telemetry_round = self.telemetry.round;
        shared.changed.notify_all();
        if self.telemetry.wanted > self.telemetry.round {
            self.ask_telemetry(shared.clock.now());
        }
    }

    /// `Some` when the connection is over.
    fn handle_events(&mut self, shared: &Shared) -> Option<Ended> {
        while let Some(event) = self.pipeline.poll_event() {
            match event {
                Event::Opened(capabilities) => self.opened(shared, capabilities),
                Event::Loaded { graph, .. } => {
                    self.next_memory = shared.clock.now();
                    shared.copy_loaded(self.index, graph);
                }
                Event::LoadFailed(graph, error) => {
                    let now = shared.clock.now();
                    for copy in shared.copy_refused(self.index, graph, &error) {
                        self.unloading.push(copy);
                        self.pipeline.unload(copy, now);
                    }
                    self.left(shared, graph);
                }
                Event::Unloaded(graph) => {
                    self.next_memory = shared.clock.now();
                    self.left(shared, graph);
                }
                Event::Done(done) => self.answer(shared, done),
                Event::Returned(job, reason) => self.returned(shared, job, reason),
                Event::InputLost(tag) => {
                    let detail =
                        "the stick was lost and the transport kept the input; submit the request again";
                    let id = &shared.sticks[self.index].id;
                    self.end_run(shared, tag, || {
                        Error::new(ErrorKind::Unplugged, "infer").on(id).detail(detail)
                    });
                }
                Event::Thermal(thermal) => self.thermal(shared, &thermal),
                Event::UsedMemory(bytes) => {
                    let now = shared.clock.now();
                    // What is mapped grows with the graphs.
                    let mapped = self.transport.memory().map(|memory| memory.report());
                    let mut core = shared.core.lock();
                    let entry = &mut core.sticks[self.index];
                    entry.used_memory_bytes = Some(bytes);
                    entry.memory = mapped;
                    let used = u64::from(bytes);
                    core.tell(sched::Event::MemoryUsed { stick: number(self.index), bytes: used }, now);
                    let rings = shared.carry_out(&mut core);
                    drop(core);
                    shared.ring(rings);
                    self.telemetry.memory_due = false;
                    self.telemetry_came(shared);
                }
                Event::StageTimes(copy, times) => self.tell_stage_times(shared, copy, Ok(times)),
                Event::Closed => return Some(self.over(shared, None)),
                Event::Failed(failure) => return Some(self.over(shared, Some(failure))),
            }
        }
        None
    }

    fn opened(&mut self, shared: &Shared, capabilities: Capabilities) {
        self.opened = true;
        let now = shared.clock.now();
        {
            let mut core = shared.core.lock();
            if core.phase == Phase::Closed {
                drop(core);
                self.close(now);
                return;
            }
            let entry = &mut core.sticks[self.index];
            entry.state = StickState::Ready;
            entry.cause = None;
            entry.lost_since = None;
            entry.settled = true;
            entry.capabilities = Some(capabilities);
            entry.speed_mbps = self.transport.info().speed_mbps;
            entry.memory_kind = Some(self.transport.info().memory);
            entry.memory = self.transport.memory().map(|memory| memory.report());
            let limits = StickLimits::myriad_x(
                u64::from(capabilities.max_memory_bytes),
                capabilities.max_graphs,
                capabilities.max_fifos,
                capabilities.max_executors.max(1),
            );
            let stick = number(self.index);
            let weight = shared.config.weight_of(&shared.sticks[self.index].id);
            let guards = shared.config.guards;
            core.tell(sched::Event::StickUp { stick, limits, guards, weight }, now);
            let rings = shared.carry_out(&mut core);
            shared.ring(rings);
        }
        shared.changed.notify_all();
        self.ask_telemetry(now);
        self.next_telemetry = now + TELEMETRY_PERIOD;
    }

    fn thermal(&mut self, shared: &Shared, thermal: &ThermalStats) {
        let mut core = shared.core.lock();
        let entry = &mut core.sticks[self.index];
        entry.temperature_c = thermal.temperature_c();
        entry.throttle_level = thermal.throttle_level().map(|level| level as u8);
        let reading =
            ThermalReading { celsius: entry.temperature_c.map(f64::from), level: entry.throttle_level };
        let stick = number(self.index);
        core.tell(sched::Event::Thermal { stick, reading: Some(reading) }, shared.clock.now());
        let rings = shared.carry_out(&mut core);
        drop(core);
        shared.ring(rings);
        self.telemetry.thermal_due = false;
        self.telemetry_came(shared);
    }

    fn tell_stage_times(&self, shared: &Shared, copy: GraphId, times: Result<TimingData, Cause>) {
        shared.core.lock().sticks[self.index].stage_times.answered(copy, times);
        shared.changed.notify_all();
    }

    /// Lays a batch together and gives it to the stick.
    fn submit_batch(&mut self, shared: &Shared, order: Order, now: Instant) {
        let Order::Batch { run, graph, copy, variant, jobs } = order else { return };
        let me = &shared.sticks[self.index];
        let blobs = {
            let core = shared.core.lock();
            let entry = core.graph(graph);
            entry.and_then(|g| Some((g.blob().clone(), g.variants.get(variant as usize)?.blob.clone())))
        };
        let Some((unit, batched)) = blobs else {
            self.ended.push(Report::Back { run, fault: Fault::NotSent, cause: None, jobs });
            return;
        };
        let submitted = jobs.iter().map(|j| j.submitted).min().unwrap_or(now);
        match batch::gather(&me.pool, &unit, &batched, &jobs) {
            Ok(input) => {
                let tag = RunTag { run, graph, members: Members::Many(jobs) };
                self.pipeline.submit(Job { tag, graph: copy, input, submitted }, now);
            }
            Err(error) => {
                let tag = RunTag { run, graph, members: Members::Many(jobs) };
                self.end_run(shared, tag, || Error::from(error.clone()).on(&me.id));
            }
        }
    }

    /// Ends all requests of a run without an answer.
    fn end_run(&mut self, shared: &Shared, tag: RunTag, why: impl Fn() -> Error) {
        let run = tag.run;
        let mut tags = Vec::new();
        for tag in tag.into_tags() {
            tags.push(tag.id);
            shared.sticks[self.index].record.lock().failed_requests += 1;
            tag.end(Err(why()));
        }
        self.ended.push(Report::Ended { run, tags });
    }

    fn answer(&mut self, shared: &Shared, done: Done<RunTag>) {
        let Done { tag, graph: copy, output, mut times, last_byte } = done;
        let now = shared.clock.now();
        times.finish_ns = (now - last_byte).as_nanos() as u64;
        self.ended.push(Report::Answered { run: tag.run, at: last_byte });
        let blob = self.blob_of(shared, copy);
        match tag.members {
            Members::One(tag, _) => self.hand_over(shared, tag, blob.map(|b| (output, b)), times, now),
            Members::Many(jobs) => {
                let unit = shared.core.lock().graph(tag.graph).map(|g| g.blob().clone());
                let pool = &shared.sticks[self.index].pool;
                for (place, job) in jobs.into_iter().enumerate() {
                    let part = unit.as_ref().zip(blob.as_ref()).and_then(|(unit, batched)| {
                        let lease = batch::part(pool, unit, batched, output.as_slice(), place).ok()?;
                        Some((lease, unit.clone()))
                    });
                    // Each request's own wait; the inference is common to all.
                    let own = (now - job.submitted).as_nanos() as u64;
                    let shared_ns = times.total().as_nanos() as u64 - times.queue_ns;
                    let times = StageTimes { queue_ns: own.saturating_sub(shared_ns), ..times };
                    let Waiting { tag, .. } = job;
                    self.hand_over(shared, tag, part, times, now);
                }
            }
        }
    }

    fn hand_over(
        &mut self,
        shared: &Shared,
        tag: JobTag,
        answer: Option<(Lease, Blob)>,
        mut times: StageTimes,
        now: Instant,
    ) {
        // What a worker did before it was submitted lies in what the pipeline takes for waiting.
        times.prepare_ns += tag.worked.prepare_ns;
        times.queue_ns = times.queue_ns.saturating_sub(tag.worked.prepare_ns);
        let me = &shared.sticks[self.index];
        let outcome = match answer {
            _ if tag.is_late(now) => Err(late()),
            Some((lease, blob)) => Ok(Output { lease, blob, stick: me.id.clone(), fallback: false, times }),
            None => Err(cancelled()),
        };
        // Before the caller hears of it, so that what he asks next agrees with what he knows.
        {
            let mut record = me.record.lock();
            (record.load, record.load_at) = (self.pipeline.load_figures(now), now);
            self.recorded_in_flight = record.load.in_flight;
            if outcome.is_ok() {
                record.completed += 1;
                if !tag.worked.finish_later {
                    record_times(&mut record, &times);
                }
            } else {
                record.failed_requests += 1;
            }
        }
        self.sleepers.extend(tag.end_quietly(outcome));
    }

    fn blob_of(&mut self, shared: &Shared, id: GraphId) -> Option<Blob> {
        if let Some((_, blob)) = self.blobs.iter().find(|(known, _)| *known == id) {
            return Some(blob.clone());
        }
        let blob = shared.core.lock().blob_of(self.index, id)?;
        self.blobs.push((id, blob.clone()));
        Some(blob)
    }

    fn returned(&mut self, shared: &Shared, job: RunJob, reason: Reason) {
        let me = &shared.sticks[self.index];
        match reason {
            // Told with the end of the connection, whose reason is not known yet; or it waits for another stick.
            Reason::Lost { sent } => self.lost.push((job, sent)),
            Reason::Unwanted => self.end_run(shared, job.tag, unwanted),
            Reason::NoMemory(error) => {
                self.end_run(shared, job.tag, || Error::from(error.clone()).on(&me.id));
            }
            Reason::Refused(error) => {
                me.record.lock().failed += 1;
                let fault = match error {
                    StickError::Timeout { .. } => Fault::Timeout,
                    _ => Fault::Refused,
                };
                let cause = Some(Cause::of_stick(&error));
                self.ended.push(Report::Back { run: job.tag.run, fault, cause, jobs: members_of(job) });
            }
        }
    }

    /// Reports what has ended since the last time. True when others may have put something into our inbox upon it.
    fn report(&mut self, shared: &Shared) -> bool {
        if !self.pipeline.is_over() {
            // Given back by a stick that goes on: their graph is no longer on it, or it closes.
            for (job, _) in self.lost.drain(..) {
                let run = job.tag.run;
                self.ended.push(Report::Back {
                    run,
                    fault: Fault::NotSent,
                    cause: None,
                    jobs: members_of(job),
                });
            }
        }
        if self.pipeline.in_flight() != self.recorded_in_flight {
            let now = shared.clock.now();
            let mut record = shared.sticks[self.index].record.lock();
            (record.load, record.load_at) = (self.pipeline.load_figures(now), now);
            self.recorded_in_flight = record.load.in_flight;
        }
        let reported = !self.ended.is_empty();
        if reported {
            shared.runs_ended(self.index, &mut self.ended);
        }
        reported
    }

    fn over(&mut self, shared: &Shared, failure: Option<Failure>) -> Ended {
        let lost = std::mem::take(&mut self.lost);
        self.report(shared);
        self.wake_callers();
        let closing = self.close_until.is_some();
        let cause = match (self.refused_open.take(), &failure) {
            (Some(cause), _) => cause,
            (None, Some(failure)) => Cause::of_failure(failure),
            (None, None) => Cause { kind: ErrorKind::Closed, detail: "the stick is closed".into() },
        };
        if closing {
            // Ends what is left, as cancelled.
            shared.stick_lost(self.index, cause, lost);
            return Ended::Closed;
        }
        Ended::Lost(cause, lost)
    }
}

pub(super) fn record_times(record: &mut super::core::Record, times: &StageTimes) {
    record.latency.record(times.total());
    for (stage, ns) in record.stages.iter_mut().zip(times.as_array()) {
        stage.record(Duration::from_nanos(ns));
    }
}
