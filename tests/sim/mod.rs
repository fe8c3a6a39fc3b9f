//! The scheduler against simple sticks on a clock that is a number: one thread, one seed. A run can be repeated from its
//! printed seed: `SEED=7 cargo test --test sched_faults -- --nocapture` runs that seed alone and prints every event.
//! Everything here is simulated; no figure says anything about a real stick.
#![allow(dead_code, reason = "each test uses its part")]

pub mod heat;
pub mod report;
pub mod setup;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use ncs2::cache::StickLimits;
use ncs2::clock::Instant;
use ncs2::sched::{
    Action, CallerNo, Event, Fault, GiveUpReason, GraphNo, Guards, JobId, JobSpec, Jobs, RunId, Scheduler,
    StickNo, ThermalReading,
};
use ncs2::stats::Latency;

pub use setup::{Arrivals, End, Rng, SimConfig, SimStickSpec, model};

use heat::{HYSTERESIS_K, Heat, LOWER_C, UPPER_C};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum What {
    Arrive(u32),
    Done { stick: u32, epoch: u32, run: u64 },
    Loaded { stick: u32, epoch: u32, graph: u32 },
    Heat,
    Unplug(u32),
    Hang(u32),
    ShortOutput(u32),
    Silence(u32),
    Speak(u32),
    Up(u32),
    Lost(u32),
}

struct Flight {
    run: RunId,
    graph: usize,
    variant: usize,
    jobs: Jobs,
    refused: bool,
}

struct SimStick {
    spec: SimStickSpec,
    heat: Heat,
    up: bool,
    hung: Option<f64>,
    silent: bool,
    resting: bool,
    epoch: u32,
    loaded: Vec<usize>,
    queue: VecDeque<Flight>,
    busy_s: f64,
    done: u64,
    max_in_flight: usize,
}

/// What a run showed.
pub struct Outcome {
    pub seed: u64,
    pub seconds: f64,
    pub ends: BTreeMap<End, u64>,
    pub arrived: u64,
    /// Latency of answers, per model.
    pub latency: Vec<Latency>,
    pub answers: Vec<u64>,
    pub per_stick: Vec<u64>,
    pub above_guard_s: Vec<f64>,
    pub resets: u64,
    pub rests: u64,
    pub detection_s: Vec<f64>,
    pub history_len: usize,
    pub loads: u64,
    pub stuck: usize,
    pub sched: ncs2::sched::SchedStats,
    pub batches: u64,
    /// Longest wait of an answered job per model, seconds.
    pub longest_s: Vec<f64>,
    pub poisoned: Vec<(u64, usize)>,
    /// Device seconds per model.
    pub device_s: Vec<f64>,
    pub deaths_s: Vec<f64>,
}

impl Outcome {
    pub fn answered(&self) -> u64 {
        self.answers.iter().sum()
    }

    pub fn per_second(&self) -> f64 {
        self.answered() as f64 / self.seconds
    }

    pub fn all_latency(&self) -> Latency {
        let mut all = Latency::new();
        self.latency.iter().for_each(|l| all.merge(l));
        all
    }
}

pub struct Sim {
    config: SimConfig,
    pub sched: Scheduler,
    rng: Rng,
    now: f64,
    seq: u64,
    events: BinaryHeap<Reverse<(u64, u64, What)>>,
    sticks: Vec<SimStick>,
    jobs: HashMap<JobId, (f64, usize)>,
    next_job: u64,
    finished: HashMap<RunId, Jobs>,
    log: bool,
    out: Outcome,
}

fn at(s: f64) -> Instant {
    Instant::from_nanos((s * 1e9) as u64)
}

/// The one seed that the environment asks for.
pub fn asked_seed() -> Option<u64> {
    std::env::var("SEED").ok().and_then(|s| s.parse().ok())
}

impl Sim {
    pub fn new(config: SimConfig) -> Self {
        let models = config.models.len();
        let sched = Scheduler::new(config.sched.clone());
        let now = Instant::ZERO;
        let out = Outcome {
            seed: config.seed,
            seconds: 0.0,
            ends: BTreeMap::new(),
            arrived: 0,
            latency: vec![Latency::new(); models],
            answers: vec![0; models],
            per_stick: vec![0; config.sticks.len()],
            above_guard_s: Vec::new(),
            resets: 0,
            rests: 0,
            detection_s: Vec::new(),
            history_len: 0,
            loads: 0,
            stuck: 0,
            sched: sched.stats(now),
            batches: 0,
            longest_s: vec![0.0; models],
            poisoned: Vec::new(),
            device_s: vec![0.0; models],
            deaths_s: Vec::new(),
        };
        let sticks = config.sticks.iter().map(|spec| SimStick {
            heat: Heat::new(config.law, spec.ambient_c),
            spec: spec.clone(),
            up: false,
            hung: None,
            silent: !spec.sensor,
            resting: false,
            epoch: 0,
            loaded: Vec::new(),
            queue: VecDeque::new(),
            busy_s: 0.0,
            done: 0,
            max_in_flight: 0,
        });
        let mut sim = Sim {
            rng: Rng::new(config.seed),
            sticks: sticks.collect(),
            sched,
            now: 0.0,
            seq: 0,
            events: BinaryHeap::new(),
            jobs: HashMap::new(),
            next_job: 0,
            finished: HashMap::new(),
            log: asked_seed().is_some(),
            out,
            config,
        };
        for (g, m) in sim.config.models.clone().into_iter().enumerate() {
            sim.tell(Event::GraphAdded { graph: GraphNo(g as u32), spec: m.spec });
        }
        for s in 0..sim.sticks.len() {
            sim.later(0.0, What::Up(s as u32));
            let f = sim.config.faults;
            for (mean, what) in [
                (f.unplug_s, What::Unplug(s as u32)),
                (f.hang_s, What::Hang(s as u32)),
                (f.short_output_s, What::ShortOutput(s as u32)),
                (f.silence_s, What::Silence(s as u32)),
            ] {
                sim.again(mean, what);
            }
        }
        for g in 0..models {
            let many = if let Arrivals::Saturate(n) = sim.config.models[g].arrivals { n } else { 1 };
            // Once the graphs are there.
            for _ in 0..many {
                sim.later(0.2, What::Arrive(g as u32));
            }
        }
        sim.later(0.5, What::Heat);
        sim
    }

    fn again(&mut self, mean: f64, what: What) {
        if mean.is_finite() {
            let wait = self.rng.exp(mean);
            self.later(wait, what);
        }
    }

    fn later(&mut self, wait: f64, what: What) {
        self.seq += 1;
        self.events.push(Reverse((((self.now + wait) * 1e9) as u64, self.seq, what)));
    }

    fn tell(&mut self, event: Event) {
        if self.log {
            eprintln!("{:12.6} in  {event:?}", self.now);
        }
        self.sched.handle(event, at(self.now));
        self.act();
    }

    /// Runs to the end, then drains.
    pub fn run(mut self) -> Outcome {
        let end = self.config.seconds;
        let mut drained_since = None;
        loop {
            let arrivals_over = self.out.arrived >= self.config.jobs || self.now >= end;
            if arrivals_over {
                // All that came must end: an hour is plenty.
                let since = *drained_since.get_or_insert(self.now);
                if self.jobs.is_empty()
                    || self.now > since + 3600.0
                    || end.is_finite() && self.config.jobs == u64::MAX
                {
                    break;
                }
            }
            let tick = self.sched.poll_timeout();
            let next = self.events.peek().map(|Reverse((t, ..))| *t);
            match next {
                Some(t) if t <= tick.as_nanos() => {
                    let Some(Reverse((t, _, what))) = self.events.pop() else { break };
                    self.now = (t as f64 / 1e9).max(self.now);
                    self.happen(what);
                }
                _ if tick != Instant::FAR_FUTURE => {
                    self.now = ((tick.as_nanos() + 1) as f64 / 1e9).max(self.now);
                    self.tell(Event::Tick);
                }
                _ => break,
            }
        }
        self.out.seconds = self.now - 0.2;
        self.out.stuck = if self.config.jobs == u64::MAX { 0 } else { self.jobs.len() };
        self.out.above_guard_s = self.sticks.iter().map(|s| s.heat.above_s).collect();
        self.out.per_stick = self.sticks.iter().map(|s| s.done).collect();
        self.out.sched = self.sched.stats(at(self.now));
        self.out
    }

    fn warm(&mut self, s: usize) {
        if !self.config.no_heat {
            let stick = &mut self.sticks[s];
            let busy = stick.up && !stick.queue.is_empty();
            stick.heat.advance(self.now, busy);
        }
    }

    fn arrive(&mut self, g: usize) {
        if self.out.arrived >= self.config.jobs || self.now >= self.config.seconds {
            return;
        }
        let m = &self.config.models[g];
        let id = JobId(self.next_job);
        self.next_job += 1;
        self.out.arrived += 1;
        let spec = JobSpec {
            caller: CallerNo(self.rng.below(u64::from(m.callers)) as u32),
            priority: m.priority,
            stick: m.stick,
            deadline: m.deadline_s.map_or(Instant::FAR_FUTURE, |d| at(self.now + d)),
            ..JobSpec::new(GraphNo(g as u32))
        };
        self.jobs.insert(id, (self.now, g));
        self.tell(Event::Arrived { job: id, spec });
    }

    fn happen(&mut self, what: What) {
        let f = self.config.faults;
        match what {
            What::Arrive(g) => {
                let g = g as usize;
                match self.config.models[g].arrivals {
                    Arrivals::Saturate(_) => self.arrive(g),
                    Arrivals::Poisson(rate) => {
                        self.arrive(g);
                        self.again(1.0 / rate, What::Arrive(g as u32));
                    }
                    Arrivals::Bursts(n, every) => {
                        (0..n).for_each(|_| self.arrive(g));
                        self.later(every, What::Arrive(g as u32));
                    }
                    Arrivals::Silent => {}
                }
            }
            What::Done { stick, epoch, run } => self.done(stick as usize, epoch, RunId(run)),
            What::Loaded { stick, epoch, graph } => {
                let s = &mut self.sticks[stick as usize];
                if s.up && s.epoch == epoch {
                    s.loaded.push(graph as usize);
                    let took = Duration::from_millis(30);
                    self.tell(Event::GraphLoaded { stick: StickNo(stick), graph: GraphNo(graph), took });
                }
            }
            What::Heat => {
                self.later(1.0, What::Heat);
                if self.config.no_heat {
                    return;
                }
                for s in 0..self.sticks.len() {
                    self.warm(s);
                    let stick = &self.sticks[s];
                    if !stick.up {
                        continue;
                    }
                    let spoken = !stick.silent && stick.hung.is_none();
                    // The sensor shows tenths of a degree.
                    let celsius = (stick.heat.celsius * 10.0).round() / 10.0;
                    let reading = spoken
                        .then_some(ThermalReading { celsius: Some(celsius), level: Some(stick.heat.level) });
                    self.tell(Event::Thermal { stick: StickNo(s as u32), reading });
                }
            }
            What::Unplug(s) => {
                self.again(f.unplug_s, what);
                let back = 1.0 + self.rng.unit() * 4.0;
                self.lose(s as usize, back);
            }
            What::ShortOutput(s) => {
                self.again(f.short_output_s, what);
                // Doubt about the order ends the epoch: reset, a second later it is back.
                self.lose(s as usize, 1.0);
            }
            What::Hang(s) => {
                self.again(f.hang_s, what);
                let stick = &mut self.sticks[s as usize];
                if stick.up && stick.hung.is_none() {
                    stick.hung = Some(self.now);
                    stick.epoch += 1;
                }
            }
            What::Silence(s) => {
                self.again(f.silence_s, what);
                self.sticks[s as usize].silent = true;
                self.later(30.0, What::Speak(s));
            }
            What::Speak(s) => self.sticks[s as usize].silent = false,
            What::Lost(s) => self.lose(s as usize, 2.0),
            What::Up(s) => {
                let stick = &mut self.sticks[s as usize];
                if stick.up {
                    return;
                }
                stick.up = true;
                stick.hung = None;
                stick.resting = false;
                stick.epoch += 1;
                let guards = if stick.spec.guards_known {
                    Guards::Known { lower_c: LOWER_C, upper_c: UPPER_C, hysteresis_k: HYSTERESIS_K }
                } else {
                    Guards::Reported
                };
                let (no, weight) = (StickNo(s), stick.spec.weight);
                let limits = StickLimits::myriad_x(522_060_000, 10, 100, 3);
                self.tell(Event::StickUp { stick: no, limits, guards, weight });
            }
        }
    }

    /// The stick leaves; what had not been started comes back, the rest is gone.
    fn lose(&mut self, s: usize, back: f64) {
        if !self.sticks[s].up {
            return;
        }
        self.warm(s);
        let stick = &mut self.sticks[s];
        stick.up = false;
        stick.hung = None;
        stick.epoch += 1;
        stick.loaded.clear();
        stick.queue.clear();
        self.out.deaths_s.push(self.now);
        self.tell(Event::StickLost { stick: StickNo(s as u32) });
        self.later(back, What::Up(s as u32));
    }

    /// The stick begins what stands first in its queue.
    fn begin(&mut self, s: usize) {
        let stick = &self.sticks[s];
        let Some(first) = stick.queue.front() else { return };
        let m = &self.config.models[first.graph];
        if first.jobs.as_slice().iter().any(|j| self.config.poison.contains(&j.0)) {
            return self.lose(s, 2.0);
        }
        let size = f64::from(m.spec.variants[first.variant].size);
        let base = m.batch_s.get(first.variant).copied().unwrap_or(m.service_s * size);
        let speed = if self.config.no_heat { 1.0 } else { stick.heat.speed() };
        let noise = 1.0 + m.noise * (2.0 * self.rng.unit() - 1.0);
        let (run, graph) = (first.run, first.graph);
        let (epoch, slow) = (stick.epoch, stick.spec.slow);
        let time = if first.refused { 0.0005 } else { base * slow * noise / speed };
        self.out.device_s[graph] += time;
        self.sticks[s].busy_s += time;
        if self.sticks[s].hung.is_none() {
            self.later(time, What::Done { stick: s as u32, epoch, run: run.0 });
        }
    }

    fn done(&mut self, s: usize, epoch: u32, run: RunId) {
        self.warm(s);
        let stick = &mut self.sticks[s];
        if !stick.up || stick.epoch != epoch {
            return;
        }
        let Some(flight) = stick.queue.pop_front() else { return };
        assert_eq!(flight.run, run, "seed {}: the stick answers in order", self.config.seed);
        self.begin(s);
        if flight.refused {
            return self.tell(Event::Failed { run, fault: Fault::Refused });
        }
        self.sticks[s].done += flight.jobs.as_slice().len() as u64;
        self.finished.insert(run, flight.jobs);
        self.tell(Event::Completed { run });
        self.finished.remove(&run);
    }

    fn act(&mut self) {
        while let Some(action) = self.sched.poll_action() {
            if self.log {
                eprintln!("{:12.6} out {action:?}", self.now);
            }
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        let seed = self.config.seed;
        match action {
            Action::Assign { run, stick, graph, variant, jobs } => {
                let s = stick.0 as usize;
                let refused = self.config.faults.refuse > 0.0 && self.rng.unit() < self.config.faults.refuse;
                let refused = refused || self.config.models[graph.0 as usize].always_refused;
                self.warm(s);
                let m = &self.config.models[graph.0 as usize];
                let target = &mut self.sticks[s];
                assert!(target.up, "seed {seed}: {run:?} was given to a stick that is gone");
                assert!(target.loaded.contains(&(graph.0 as usize)), "seed {seed}: the graph is not there");
                let here = target.queue.iter().filter(|f| f.graph == graph.0 as usize).count();
                assert!(here < m.spec.needs.elements as usize, "seed {seed}: no room in the FIFO");
                assert!(jobs.as_slice().len() <= m.spec.variants[variant as usize].size as usize);
                self.out.batches += u64::from(jobs.as_slice().len() > 1);
                let flight =
                    Flight { run, graph: graph.0 as usize, variant: variant as usize, jobs, refused };
                // A stick that hangs idle shows it with the next run.
                if target.queue.is_empty() && target.hung.is_some() {
                    target.hung = Some(self.now);
                }
                target.queue.push_back(flight);
                target.max_in_flight = target.max_in_flight.max(target.queue.len());
                if target.queue.len() == 1 {
                    self.begin(s);
                }
            }
            Action::Load { stick, graph, evict } => {
                self.out.loads += 1;
                let target = &mut self.sticks[stick.0 as usize];
                for gone in evict {
                    target.loaded.retain(|g| *g != gone.0 as usize);
                    assert!(
                        target.queue.iter().all(|f| f.graph != gone.0 as usize),
                        "seed {seed}: evicted in use"
                    );
                }
                let epoch = target.epoch;
                self.later(0.030, What::Loaded { stick: stick.0, epoch, graph: graph.0 });
            }
            Action::Evict { stick, graph } => {
                self.sticks[stick.0 as usize].loaded.retain(|g| *g != graph.0 as usize);
            }
            Action::Rest { stick } => {
                self.out.rests += 1;
                self.sticks[stick.0 as usize].resting = true;
                assert!(
                    self.sticks.iter().any(|s| s.up && !s.resting),
                    "seed {seed}: the last stick was stopped"
                );
            }
            Action::Wake { stick } => self.sticks[stick.0 as usize].resting = false,
            Action::Reset { stick } => {
                self.out.resets += 1;
                if let Some(since) = self.sticks[stick.0 as usize].hung {
                    self.out.detection_s.push(self.now - since);
                }
                self.later(0.2, What::Lost(stick.0));
            }
            Action::Retry { .. } | Action::Warn { .. } => {}
            Action::Deliver { job, run } => {
                let answer = self.finished.get(&run);
                assert!(
                    answer.is_some_and(|a| a.as_slice().contains(&job)),
                    "seed {seed}: {job:?} got another's answer"
                );
                if let Some((since, g)) = self.end(job, End::Answer) {
                    let took = self.now - since;
                    self.out.answers[g] += 1;
                    self.out.latency[g].record(Duration::from_secs_f64(took));
                    self.out.longest_s[g] = self.out.longest_s[g].max(took);
                }
            }
            Action::GiveUp { job, reason, history } => {
                self.out.history_len = self.out.history_len.max(history.len());
                if reason == GiveUpReason::Poison {
                    let deaths = history.iter().filter(|a| a.fault == Fault::StickDied).count();
                    self.out.poisoned.push((job.0, deaths));
                }
                self.end(job, End::GaveUp(format!("{reason:?}")));
            }
            Action::Reject { job } => {
                self.end(job, End::Rejected);
            }
            Action::Expire { job } => {
                self.end(job, End::Expired);
            }
            Action::Cancel { job } => {
                self.end(job, End::Cancelled);
            }
        }
    }

    fn end(&mut self, job: JobId, end: End) -> Option<(f64, usize)> {
        let found = self.jobs.remove(&job);
        assert!(found.is_some(), "seed {}: {job:?} ended twice: {end:?}", self.config.seed);
        *self.out.ends.entry(end).or_default() += 1;
        if let Some((_, g)) = found
            && matches!(self.config.models[g].arrivals, Arrivals::Saturate(_))
        {
            self.later(0.0, What::Arrive(g as u32));
        }
        found
    }
}
