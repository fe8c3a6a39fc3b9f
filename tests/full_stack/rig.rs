//! The scheduler, a pipeline per stick (with the `stick` and `xlink` rooms below it) and virtual sticks on one clock that is
//! a number: one thread, one seed. What stands here is what `runtime` does with threads: carry out what the scheduler
//! decides, drive each pipeline against its transport, connect a lost stick again. The rest is the code of production.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ncs2::blob::Blob;
use ncs2::cache::{CacheKey, GraphNeeds, LoadKey, StickLimits};
use ncs2::clock::Instant;
use ncs2::pipeline::{self, GraphId, Job, Pipeline, PipelineConfig, Reason};
use ncs2::pool::{Lease, Pool, Use};
use ncs2::sched::{
    self, Action, Attempt, Event, Fault, GiveUpReason, GraphNo, Guards, JobId, JobSpec, Jobs, RunId,
    Scheduler, StickNo, ThermalReading, VariantSpec,
};
use ncs2::stats::{Latency, StageTimes};
use ncs2::stick::{GraphKey, LoadRequest, StickConfig, StickError};
use ncs2::transport::{PipeHost, Transport};
use ncs2::wire::{ThermalStats, WireVersion};
use ncs2_device::{SteppedRack, hash};

use super::plan::{Break, Setup};
use super::sim::{Rng, asked_seed};

/// As `runtime::worker` has them.
const TELEMETRY_PERIOD: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
const JOB_TIMEOUT: Duration = Duration::from_secs(30);
const GRAPH: GraphNo = GraphNo(0);
/// All that came must end so long after the last request.
const DRAIN: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct Tag {
    run: RunId,
    job: JobId,
}

/// A connection to a stick.
struct Link {
    pipeline: Pipeline<Tag>,
    transport: PipeHost,
    opened: bool,
    open_until: Instant,
    copy: Option<GraphId>,
    load_began: Instant,
    next_telemetry: Instant,
    thermal_due: bool,
    drain_until: Option<Instant>,
    lost: Vec<(Job<Tag>, bool)>,
}

enum Phase {
    /// Tries again then.
    Away(Instant),
    Booting,
    Up(Box<Link>),
}

struct Node {
    phase: Phase,
    pool: Pool,
    backoff: Duration,
    orders: VecDeque<(Tag, Lease, Instant)>,
    reset: bool,
    /// Broken since then, and nobody noticed yet.
    broken: Option<Instant>,
    due: Instant,
    in_flight: usize,
}

struct Request {
    number: u64,
    since: Instant,
    /// While no stick has it.
    input: Option<Lease>,
    /// By the run that answered it.
    answered: Option<RunId>,
}

/// What a run showed. All of it simulated.
#[derive(Default)]
pub struct Outcome {
    pub arrived: u64,
    pub answered: u64,
    /// Ends without an answer, by reason.
    pub without: BTreeMap<String, u64>,
    pub stuck: usize,
    pub latency: Latency,
    /// Of requests that came while a stick was broken and unnoticed or away, and were answered by another.
    pub latency_beside: Latency,
    pub stages: [Latency; StageTimes::COUNT],
    pub per_stick: Vec<u64>,
    /// From the break until the scheduler was told that the stick is lost.
    pub detection: Vec<Duration>,
    pub deaths: u64,
    pub resets: u64,
    pub refused: u64,
    pub retried: u64,
    pub poison_deaths: Vec<usize>,
    pub silent_polls: u64,
    /// Readings at throttle level 0, 1, 2.
    pub levels: [u64; 3],
    /// Bytes that the host sent, over all connections that still stand.
    pub sent_bytes: u64,
    pub simulated: Duration,
    pub ready_at: Vec<Instant>,
    pub busy: f64,
    pub turns: u64,
}

pub struct Rig {
    setup: Setup,
    pub now: Instant,
    sched: Scheduler,
    rack: SteppedRack,
    nodes: Vec<Node>,
    blob: Blob,
    blob_bytes: pipeline::BlobBytes,
    requests: BTreeMap<JobId, Request>,
    next_job: u64,
    next_copy: u64,
    next_pool: usize,
    rng: Rng,
    next_arrival: Instant,
    plan: VecDeque<(Instant, usize, Break)>,
    /// Sticks that have something to do now.
    dirty: Vec<bool>,
    log: bool,
    expected: Vec<u8>,
    pub out: Outcome,
}

struct Bytes(Blob);

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// An input element that no other number gives.
pub fn fill(input: &mut [u8], number: u64) {
    let mut word = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for chunk in input.chunks_mut(8) {
        word = word.wrapping_add(0xD1B5_4A32_D192_ED03).rotate_left(5);
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
    input[..8].copy_from_slice(&number.to_le_bytes());
}

impl Rig {
    pub fn new(setup: Setup) -> Rig {
        let now = Instant::ZERO;
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/tiny_u8_s1.blob");
        let blob = Blob::open(path).expect("a committed blob");
        let sticks = setup.sticks;
        let nodes = (0..sticks).map(|n| Node {
            phase: Phase::Away(now),
            pool: Pool::new(&format!("sim{n}"), 64 << 20),
            backoff: FIRST_BACKOFF,
            orders: VecDeque::new(),
            reset: false,
            broken: None,
            due: now,
            in_flight: 0,
        });
        let mut rng = Rng::new(setup.seed);
        let plan = setup.breaks(&mut rng);
        let mut rig = Rig {
            now,
            sched: Scheduler::new(setup.sched.clone()),
            rack: SteppedRack::new(setup.device(), sticks, Some(&setup.device_faults), now),
            nodes: nodes.collect(),
            blob_bytes: Arc::new(Bytes(blob.clone())),
            expected: vec![0; blob.graph().output_bytes],
            blob,
            requests: BTreeMap::new(),
            next_job: 0,
            next_copy: 1,
            next_pool: 0,
            rng,
            next_arrival: now + setup.first_arrival,
            plan,
            dirty: vec![true; sticks],
            log: asked_seed().is_some(),
            out: Outcome {
                per_stick: vec![0; sticks],
                ready_at: vec![Instant::ZERO; sticks],
                ..Outcome::default()
            },
            setup,
        };
        let options = LoadKey { executors: rig.setup.executors, elements: rig.setup.depth, instances: 1 };
        let key = CacheKey { hash: rig.blob.hash(), options };
        let mut spec = sched::GraphSpec::new(key, GraphNeeds::of(rig.blob.graph(), options));
        spec.variants = vec![VariantSpec { size: 1, hint_us: Some(rig.setup.hint_us) }];
        spec.fixed_depth = rig.setup.fixed_depth.then_some(rig.setup.depth);
        rig.tell(Event::GraphAdded { graph: GRAPH, spec });
        rig
    }

    fn note(&self, what: impl FnOnce() -> String) {
        if self.log {
            eprintln!("{:?} {}", self.now, what());
        }
    }

    fn tell(&mut self, event: Event) {
        self.note(|| format!("in  {event:?}"));
        self.sched.handle(event, self.now);
        self.act();
    }

    /// Until all requests of the plan have come and ended, or the time is over.
    pub fn run(mut self) -> Outcome {
        let seed = self.setup.seed;
        let until = Instant::ZERO + self.setup.time;
        let mut quiet = 0;
        loop {
            let before = self.now;
            self.step();
            quiet = if self.now == before { quiet + 1 } else { 0 };
            assert!(quiet < 10_000, "seed {seed}: time stands still at {:?}", self.now);
            let all_came = self.out.arrived >= self.setup.requests || self.now >= until;
            let all_there = self.setup.requests > 0 || self.out.ready_at.iter().all(|at| *at > Instant::ZERO);
            if all_came && self.requests.is_empty() && (all_there || self.now >= until)
                || self.now >= until + DRAIN
            {
                break;
            }
        }
        self.out.stuck = self.requests.len();
        self.out.simulated = self.now - Instant::ZERO;
        let (busy, up) = (0..self.nodes.len()).fold((0.0, 0.0), |(busy, up), n| {
            self.out.sent_bytes += self.rack.stick(n).received_bytes();
            let spent = self.rack.stick(n).stats().busy.as_secs_f64();
            (busy + spent, up + self.out.simulated.as_secs_f64())
        });
        self.out.busy = busy / up;
        self.out.retried = self.sched.stats(self.now).counters.retried;
        self.out
    }

    /// Does all that is due now, then goes on to what is due next.
    fn step(&mut self) {
        while self.plan.front().is_some_and(|(at, ..)| *at <= self.now) {
            let Some((_, n, what)) = self.plan.pop_front() else { break };
            self.suffer(n, what);
        }
        self.arrivals();
        if self.sched.poll_timeout() <= self.now {
            self.tell(Event::Tick);
        }
        for n in 0..self.nodes.len() {
            if self.dirty[n] || self.nodes[n].due <= self.now {
                self.dirty[n] = false;
                self.turn(n);
            }
        }
        if self.dirty.contains(&true) {
            return;
        }
        let mut next = self.sched.poll_timeout().min(self.next_due_arrival());
        next = self.plan.front().map_or(next, |(at, ..)| next.min(*at));
        for node in &self.nodes {
            next = next.min(node.due);
        }
        // A timer may say "now" once more; time must go on all the same.
        self.now = next.max(self.now + Duration::from_nanos(1)).min(Instant::ZERO + self.setup.time + DRAIN);
    }

    fn next_due_arrival(&self) -> Instant {
        let over = self.out.arrived >= self.setup.requests || self.setup.rate.is_none();
        if over { Instant::FAR_FUTURE } else { self.next_arrival }
    }

    fn arrivals(&mut self) {
        let until = Instant::ZERO + self.setup.time;
        match self.setup.rate {
            Some(rate) => {
                while self.next_arrival <= self.now.min(until) && self.out.arrived < self.setup.requests {
                    self.arrive();
                    let wait = self.rng.exp(1.0 / rate);
                    self.next_arrival += Duration::from_secs_f64(wait);
                }
            }
            None => {
                let begun = self.now >= Instant::ZERO + self.setup.first_arrival;
                while begun
                    && self.now < until
                    && self.out.arrived < self.setup.requests
                    && self.requests.len() < self.setup.outstanding
                {
                    self.arrive();
                }
            }
        }
    }

    fn arrive(&mut self) {
        let number = self.out.arrived;
        self.out.arrived += 1;
        let bytes = self.blob.graph().input_bytes;
        self.next_pool = (self.next_pool + 1) % self.nodes.len();
        let mut input =
            self.nodes[self.next_pool].pool.try_lease(bytes, Use::Input).expect("64 MiB are enough");
        fill(input.as_mut_slice(), number);
        let job = JobId(self.next_job);
        self.next_job += 1;
        self.requests.insert(job, Request { number, since: self.now, input: Some(input), answered: None });
        self.tell(Event::Arrived { job, spec: JobSpec::new(GRAPH) });
    }

    fn suffer(&mut self, n: usize, what: Break) {
        self.note(|| format!("--- sim{n}: {what:?}"));
        let stick = self.rack.stick(n);
        match what {
            Break::Unplug => stick.unplug(),
            Break::Replug if !stick.is_plugged() => stick.plug(),
            Break::Hang => {
                let faults = ncs2_device::Faults { hung: true, ..stick.faults() };
                stick.set_faults(faults, self.now);
            }
            Break::MidTransfer(way, bytes, kind) => stick.break_after(way, bytes, kind),
            // Whoever owns a stick that stays dead pulls it out and puts it in again.
            Break::Revive if stick.faults().hung => {
                stick.unplug();
                stick.plug();
            }
            Break::Replug | Break::Revive => {}
        }
        self.dirty[n] = true;
    }

    /// One turn of a stick and its driver.
    fn turn(&mut self, n: usize) {
        self.out.turns += 1;
        self.rack.serve(n, self.now);
        let broken = !self.rack.stick(n).is_plugged() || self.rack.stick(n).faults().hung;
        let node = &mut self.nodes[n];
        if broken && matches!(node.phase, Phase::Up(_)) && node.in_flight > 0 {
            node.broken.get_or_insert(self.now);
        }
        match node.phase {
            Phase::Away(again) if again <= self.now => {
                self.nodes[n].phase = match self.rack.power_cycle(n, self.now) {
                    true => Phase::Booting,
                    false => self.nodes[n].wait(self.now),
                };
            }
            Phase::Booting if broken => self.nodes[n].phase = self.nodes[n].wait(self.now),
            Phase::Booting => {
                if let Some(transport) = self.rack.attach(n) {
                    self.connect(n, transport);
                    self.dirty[n] = true;
                }
            }
            Phase::Up(_) => self.drive(n),
            Phase::Away(_) => {}
        }
        let own = match &self.nodes[n].phase {
            Phase::Away(again) => Some(*again),
            Phase::Booting => None,
            Phase::Up(link) => Some(link.next_wake(self.now)),
        };
        let device = self.rack.poll_timeout(n, self.now);
        self.nodes[n].due = own.into_iter().chain(device).min().unwrap_or(Instant::FAR_FUTURE);
    }

    fn connect(&mut self, n: usize, transport: PipeHost) {
        let config = PipelineConfig {
            stick: StickConfig {
                version: WireVersion::V1,
                ordering: self.setup.ordering,
                ..StickConfig::default()
            },
            max_packet_bytes: transport.info().max_packet_bytes,
            job_timeout: JOB_TIMEOUT,
            memory_timeout: Duration::from_secs(60),
            wanted: |_| true,
        };
        let node = &mut self.nodes[n];
        let mut pipeline = Pipeline::new(config, node.pool.clone(), self.now);
        pipeline.open(self.now);
        node.reset = false;
        node.phase = Phase::Up(Box::new(Link {
            pipeline,
            transport,
            opened: false,
            open_until: self.now + OPEN_TIMEOUT,
            copy: None,
            load_began: self.now,
            next_telemetry: Instant::FAR_FUTURE,
            thermal_due: false,
            drain_until: None,
            lost: Vec::new(),
        }));
    }

    /// Pipeline and transport of a connected stick, until neither has more to do now.
    fn drive(&mut self, n: usize) {
        loop {
            let now = self.now;
            let mut moved = false;
            self.rack.serve(n, now);
            {
                let Some(link) = self.nodes[n].link() else { return };
                while let Some(completion) = link.transport.poll() {
                    link.pipeline.handle_completion(completion, now);
                    moved = true;
                }
            }
            if self.events(n) {
                return;
            }
            self.orders(n);
            let Some(link) = self.nodes[n].link() else { return };
            link.timers(now);
            if link.thermal_is_silent(now) {
                self.out.silent_polls += 1;
                self.tell(Event::Thermal { stick: StickNo(n as u32), reading: None });
            }
            let Some(link) = self.nodes[n].link() else { return };
            link.ask_telemetry(now);
            while let Some(transfer) = link.pipeline.poll_transfer(now) {
                moved = true;
                if let Err(rejected) = link.transport.submit(transfer) {
                    link.pipeline.handle_rejected(rejected, now);
                }
            }
            if link.pipeline.wants_cancel() {
                link.transport.cancel_all();
                link.drain_until = Some(now + DRAIN_LIMIT);
                moved = true;
            }
            if self.events(n) {
                return;
            }
            if !moved && self.nodes[n].orders.is_empty() && !self.nodes[n].reset {
                return;
            }
        }
    }

    fn orders(&mut self, n: usize) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let reset = std::mem::take(&mut node.reset);
        let Phase::Up(link) = &mut node.phase else { return };
        while let Some((tag, input, submitted)) = node.orders.pop_front() {
            let graph = link.copy.unwrap_or(GraphId(0));
            link.pipeline.submit(Job { tag, graph, input, submitted }, now);
        }
        if reset {
            let failure = StickError::Timeout { step: "inference", after: JOB_TIMEOUT };
            link.pipeline.abort(failure.into(), now);
        }
    }

    /// True when the connection is over.
    fn events(&mut self, n: usize) -> bool {
        let stick = StickNo(n as u32);
        while let Some(event) = self.nodes[n].link().and_then(|link| link.pipeline.poll_event()) {
            match event {
                pipeline::Event::Opened(has) => {
                    let limits = StickLimits::myriad_x(
                        u64::from(has.max_memory_bytes),
                        has.max_graphs,
                        has.max_fifos,
                        has.max_executors.max(1),
                    );
                    let now = self.now;
                    if let Some(link) = self.nodes[n].link() {
                        link.opened = true;
                        link.next_telemetry = now;
                    }
                    self.nodes[n].backoff = FIRST_BACKOFF;
                    self.nodes[n].broken = None;
                    self.tell(Event::StickUp { stick, limits, guards: Guards::Reported, weight: 1.0 });
                }
                pipeline::Event::Loaded { .. } => {
                    let began = self.nodes[n].link().map_or(self.now, |link| link.load_began);
                    self.out.ready_at[n] = self.now;
                    self.tell(Event::GraphLoaded { stick, graph: GRAPH, took: self.now - began });
                }
                pipeline::Event::LoadFailed(_, error) => {
                    self.note(|| format!("--- sim{n} refused the graph: {error}"));
                    self.tell(Event::LoadFailed { stick, graph: GRAPH });
                }
                pipeline::Event::Unloaded(_) => {}
                pipeline::Event::Done(done) => self.answer(n, done),
                pipeline::Event::Returned(job, reason) => self.returned(n, job, reason),
                pipeline::Event::InputLost(tag) => {
                    self.nodes[n].in_flight -= 1;
                    self.end(tag.job, "input lost");
                    self.tell(Event::Cancelled { job: tag.job });
                    self.tell(Event::Failed { run: tag.run, fault: Fault::NotSent });
                }
                pipeline::Event::Thermal(thermal) => self.thermal(n, &thermal),
                pipeline::Event::UsedMemory(bytes) => {
                    self.tell(Event::MemoryUsed { stick, bytes: u64::from(bytes) });
                }
                pipeline::Event::Closed | pipeline::Event::Failed(_) => {
                    self.note(|| format!("--- sim{n} is over: {event:?}"));
                    self.lose(n);
                    return true;
                }
                other => panic!("{other:?}"),
            }
        }
        let over = self.nodes[n].link().is_none_or(|link| link.pipeline.is_over());
        if !over {
            // Given back by a stick that goes on: its graph is not there.
            let lost = self.nodes[n].link().map(|link| std::mem::take(&mut link.lost)).unwrap_or_default();
            for (job, _) in lost {
                self.back(n, job, Some(Fault::NotSent));
            }
        }
        over
    }

    fn thermal(&mut self, n: usize, thermal: &ThermalStats) {
        if let Some(link) = self.nodes[n].link() {
            link.thermal_due = false;
        }
        if let Some(level) = thermal.throttle_level() {
            self.out.levels[level as usize] += 1;
        }
        let reading = ThermalReading {
            celsius: thermal.temperature_c().map(f64::from),
            level: thermal.throttle_level().map(|level| level as u8),
        };
        self.tell(Event::Thermal { stick: StickNo(n as u32), reading: Some(reading) });
    }

    fn answer(&mut self, n: usize, done: pipeline::Done<Tag>) {
        let seed = self.setup.seed;
        let Tag { run, job } = done.tag;
        self.nodes[n].in_flight -= 1;
        let request = self.requests.get_mut(&job);
        let Some(request) = request else { panic!("seed {seed}: an answer for {job:?}, which has ended") };
        assert_eq!(request.answered, None, "seed {seed}: {job:?} was answered twice");
        let mut input = vec![0; self.blob.graph().input_bytes];
        fill(&mut input, request.number);
        hash::output(&self.blob.hash(), &input, &mut self.expected);
        let answer = &done.output.as_slice()[..self.expected.len()];
        assert!(answer == self.expected, "seed {seed}: {job:?} got another's answer from sim{n}");
        request.answered = Some(run);
        let latency = self.now - request.since;
        self.out.latency.record(latency);
        if self.nodes.iter().enumerate().any(|(at, other)| at != n && !other.is_ready()) {
            self.out.latency_beside.record(latency);
        }
        for (stage, ns) in self.out.stages.iter_mut().zip(done.times.as_array()) {
            stage.record(Duration::from_nanos(ns));
        }
        self.out.per_stick[n] += 1;
        self.tell(Event::Completed { run });
    }

    fn returned(&mut self, n: usize, job: Job<Tag>, reason: Reason) {
        match reason {
            Reason::Lost { sent } => {
                if let Some(link) = self.nodes[n].link() {
                    link.lost.push((job, sent));
                }
            }
            Reason::Refused(error) => {
                self.out.refused += 1;
                let fault = match error {
                    StickError::Timeout { .. } => Fault::Timeout,
                    _ => Fault::Refused,
                };
                self.back(n, job, Some(fault));
            }
            Reason::Unwanted | Reason::NoMemory(_) => panic!("seed {}: {reason:?}", self.setup.seed),
        }
    }

    /// A request waits again; its run failed by `fault`, or died with the stick.
    fn back(&mut self, n: usize, job: Job<Tag>, fault: Option<Fault>) {
        self.nodes[n].in_flight -= 1;
        if let Some(request) = self.requests.get_mut(&job.tag.job) {
            assert_eq!(request.answered, None, "seed {}: answered and handed back", self.setup.seed);
            request.input = Some(job.input);
        }
        if let Some(fault) = fault {
            self.tell(Event::Failed { run: job.tag.run, fault });
        }
    }

    fn lose(&mut self, n: usize) {
        let stick = StickNo(n as u32);
        let phase = self.nodes[n].wait(self.now);
        let link = std::mem::replace(&mut self.nodes[n].phase, phase);
        let Phase::Up(link) = link else { return };
        self.out.deaths += 1;
        if let Some(since) = self.nodes[n].broken.take() {
            self.out.detection.push(self.now - since);
        }
        self.tell(Event::StickHalted { stick });
        let unread: Vec<_> = self.nodes[n].orders.drain(..).collect();
        for (tag, input, submitted) in unread {
            self.back(n, Job { tag, graph: GraphId(0), input, submitted }, Some(Fault::NotSent));
        }
        for (job, sent) in link.lost {
            self.back(n, job, (!sent).then_some(Fault::NotSent));
        }
        self.nodes[n].reset = false;
        assert_eq!(self.nodes[n].in_flight, 0, "seed {}: sim{n} kept a request", self.setup.seed);
        self.tell(Event::StickLost { stick });
        self.dirty[n] = true;
    }

    fn act(&mut self) {
        while let Some(action) = self.sched.poll_action() {
            self.note(|| format!("out {action:?}"));
            match action {
                Action::Assign { run, stick, jobs, .. } => self.assign(run, stick.0 as usize, &jobs),
                Action::Load { stick, .. } => self.load(stick.0 as usize),
                Action::Evict { .. } => panic!("one graph has room everywhere"),
                Action::Reset { stick } => {
                    self.out.resets += 1;
                    self.nodes[stick.0 as usize].reset = true;
                    self.dirty[stick.0 as usize] = true;
                }
                Action::Deliver { job, run } => {
                    let request = self.requests.remove(&job);
                    let by = request.and_then(|r| r.answered);
                    assert_eq!(
                        by,
                        Some(run),
                        "seed {}: {job:?} was not answered by {run:?}",
                        self.setup.seed
                    );
                    self.out.answered += 1;
                }
                Action::GiveUp { job, reason, history } => {
                    if reason == GiveUpReason::Poison {
                        let died = |a: &&Attempt| a.fault == Fault::StickDied;
                        self.out.poison_deaths.push(history.iter().filter(died).count());
                    }
                    self.end(job, &format!("{reason:?}"));
                }
                Action::Reject { job } => self.end(job, "rejected"),
                Action::Expire { job } => self.end(job, "expired"),
                Action::Cancel { job } => self.end(job, "cancelled"),
                Action::Rest { .. } | Action::Wake { .. } | Action::Warn { .. } | Action::Retry { .. } => {}
            }
        }
    }

    fn end(&mut self, job: JobId, why: &str) {
        let request = self.requests.remove(&job);
        let answered = request.map(|r| r.answered);
        assert_eq!(answered, Some(None), "seed {}: {job:?} ended twice: {why}", self.setup.seed);
        *self.out.without.entry(why.to_owned()).or_default() += 1;
    }

    fn assign(&mut self, run: RunId, n: usize, jobs: &Jobs) {
        let [job] = jobs.as_slice() else { panic!("no batches here: {jobs:?}") };
        let request = self.requests.get_mut(job).expect("the scheduler knows only what has not ended");
        let Some(input) = request.input.take() else {
            panic!("seed {}: {job:?} is on two sticks", self.setup.seed);
        };
        self.nodes[n].in_flight += 1;
        self.nodes[n].orders.push_back((Tag { run, job: *job }, input, request.since));
        self.dirty[n] = true;
    }

    fn load(&mut self, n: usize) {
        let graph = self.blob.graph();
        let header = self.blob.bytes().first_chunk().expect("a blob is longer than its header");
        let request = LoadRequest {
            key: GraphKey(0),
            header: *header,
            blob_bytes: self.blob.bytes().len() as u32,
            input_bytes: graph.input_bytes as u32,
            output_bytes: graph.output_bytes as u32,
            stages: graph.stages.len() as u32,
            executors: self.setup.executors,
            fifo_elements: self.setup.depth,
        };
        let id = GraphId(self.next_copy);
        self.next_copy += 1;
        let (now, blob) = (self.now, self.blob_bytes.clone());
        let Some(link) = self.nodes[n].link() else { return };
        (link.copy, link.load_began) = (Some(id), now);
        link.pipeline.load(pipeline::GraphSpec { id, request, blob, instances: 1 }, now);
        self.dirty[n] = true;
    }
}

impl Node {
    fn link(&mut self) -> Option<&mut Link> {
        match &mut self.phase {
            Phase::Up(link) => Some(link),
            _ => None,
        }
    }

    fn is_ready(&self) -> bool {
        matches!(&self.phase, Phase::Up(link) if link.opened && link.copy.is_some()) && self.broken.is_none()
    }

    /// Away until the next attempt.
    fn wait(&mut self, now: Instant) -> Phase {
        let again = now + self.backoff;
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
        Phase::Away(again)
    }
}

impl Link {
    fn next_wake(&self, now: Instant) -> Instant {
        let open = (!self.opened).then_some(self.open_until);
        let timers = [self.pipeline.poll_timeout(), self.drain_until, open, Some(self.next_telemetry)];
        let retry = self.transport.retry_after().map(|after| now + after);
        timers.into_iter().chain([retry]).flatten().min().unwrap_or(Instant::FAR_FUTURE)
    }

    fn timers(&mut self, now: Instant) {
        if self.pipeline.poll_timeout().is_some_and(|t| t <= now) {
            self.pipeline.handle_timeout(now);
        }
        if !self.opened && now >= self.open_until {
            let failure = StickError::Timeout { step: "open", after: OPEN_TIMEOUT };
            self.pipeline.abort(failure.into(), now);
            self.open_until = Instant::FAR_FUTURE;
        }
        if self.drain_until.is_some_and(|t| now >= t) {
            self.drain_until = None;
            self.pipeline.handle_abandon(now);
        }
    }

    /// Asked a period ago and not answered.
    fn thermal_is_silent(&mut self, now: Instant) -> bool {
        let silent = now >= self.next_telemetry && self.thermal_due;
        if silent {
            self.next_telemetry = now + TELEMETRY_PERIOD;
        }
        silent
    }

    fn ask_telemetry(&mut self, now: Instant) {
        if now >= self.next_telemetry {
            self.thermal_due = true;
            self.next_telemetry = now + TELEMETRY_PERIOD;
            self.pipeline.request_telemetry(true, now);
        }
    }
}
