//! What the scheduler knows of one stick.

use std::time::Duration;

use crate::cache::StickCache;
use crate::clock::Instant;

use super::breaker::{Breaker, Gate};
use super::config::SchedConfig;
use super::depth::DepthControl;
use super::estimate::Estimate;
use super::event::{GraphNo, GraphSpec, Guards, RunId, ThermalReading};
use super::heat::RcModel;
use super::throttle::{HeatView, inferred_level};

/// Throttle levels.
pub const LEVELS: usize = 3;
/// The undisturbed service time may rise only this slowly, seconds: a throttled stick must not become the norm.
const BASE_RISE_S: f64 = 1800.0;

/// Service times of one batch size on one stick.
#[derive(Clone, Debug, Default)]
pub struct Service {
    at: [Estimate; LEVELS],
    base_us: f64,
    base_at: Instant,
}

impl Service {
    /// Adds a measured time at a throttle level.
    pub fn record(&mut self, us: f64, level: u8, now: Instant) {
        let at = &mut self.at[usize::from(level).min(LEVELS - 1)];
        at.record(us, now);
        let Some(value) = at.us().filter(|_| at.is_settled()) else { return };
        if self.base_us == 0.0 || value < self.base_us {
            self.base_us = value;
        } else if level == 0 {
            let dt = now.saturating_since(self.base_at).as_secs_f64();
            self.base_us += (value - self.base_us) * (dt / BASE_RISE_S).min(1.0);
        }
        self.base_at = now;
    }

    /// Measured time at a level; a level not seen yet counts as the one below it: optimistic.
    pub fn us(&self, level: u8) -> Option<f64> {
        (0..=usize::from(level).min(LEVELS - 1)).rev().find_map(|l| self.at[l].us())
    }

    /// Time of this stick when nothing slows it, once known.
    pub fn base_us(&self) -> Option<f64> {
        (self.base_us > 0.0).then_some(self.base_us)
    }

    /// Measured at a level, for the stats.
    pub fn all(&self) -> [Option<f64>; LEVELS] {
        [self.at[0].us(), self.at[1].us(), self.at[2].us()]
    }

    /// Lets what nobody confirmed since `before` fade towards `prior_us`.
    pub fn fade(&mut self, before: Instant, prior_us: f64) {
        for at in &mut self.at {
            if at.last() < before {
                at.fade(prior_us);
            }
        }
    }
}

/// One graph on one stick.
#[derive(Debug)]
pub struct Slot {
    /// Which.
    pub graph: GraphNo,
    /// Usable.
    pub ready: bool,
    /// In flight.
    pub in_flight: u32,
    /// Controller.
    pub depth: DepthControl,
    /// Per batch size.
    pub service: Vec<Service>,
    /// Usable since, and what loading took.
    pub loaded: (Instant, Duration),
}

impl Slot {
    /// A graph that is being loaded.
    pub fn loading(graph: GraphNo, spec: &GraphSpec, config: &SchedConfig) -> Self {
        let elements = spec.max_depth.unwrap_or(u32::MAX).min(spec.needs.elements);
        let depth = match spec.fixed_depth.or(config.fixed_depth) {
            Some(depth) => DepthControl::fixed(depth, elements),
            None => DepthControl::new(elements, config.target_latency),
        };
        let service = vec![Service::default(); spec.variants.len()];
        Slot { graph, ready: false, in_flight: 0, depth, service, loaded: (Instant::ZERO, Duration::ZERO) }
    }
}

/// Heat of one stick.
#[derive(Debug)]
pub struct StickHeat {
    /// Fit.
    pub model: RcModel,
    /// Guards.
    pub guards: Guards,
    /// Last reading of degrees.
    pub celsius: Option<f64>,
    /// Level in force.
    pub level: u8,
    /// The sensor said so itself.
    pub reported: bool,
    /// When the level last rose.
    pub rose: Instant,
    /// Last reading at all.
    pub heard: Instant,
    /// When degrees were last read: what is older is not believed.
    pub felt: Instant,
    /// Its level outlasts the cold.
    pub latched: bool,
    /// It was warned of.
    pub warned: bool,
    /// Degrees at which its level was seen to rise; a guard learned, for forecasts alone.
    pub seen_guard_c: Option<f64>,
    /// Resting since, or awake since.
    pub resting: bool,
    /// Since when.
    pub since: Instant,
    /// Rests so far.
    pub rests: u32,
}

impl StickHeat {
    fn new(guards: Guards) -> Self {
        StickHeat {
            model: RcModel::default(),
            guards,
            celsius: None,
            level: 0,
            reported: false,
            rose: Instant::ZERO,
            heard: Instant::ZERO,
            felt: Instant::ZERO,
            latched: false,
            warned: false,
            seen_guard_c: None,
            resting: false,
            since: Instant::ZERO,
            rests: 0,
        }
    }

    /// Takes a reading; `load` is the mean share of full power since the last one.
    pub fn read(&mut self, reading: ThermalReading, load: f64, now: Instant) {
        let sane = reading.celsius.filter(|c| (-40.0..=150.0).contains(c));
        if let Some(c) = sane {
            self.model.sample(now, c, load);
            self.celsius = Some(c);
            self.felt = now;
        }
        if let Some(level) = reading.level.filter(|l| usize::from(*l) < LEVELS) {
            self.heard = now;
            self.reported = true;
            if level > self.level && self.level == 0 {
                self.seen_guard_c = sane;
            }
            self.set_level(level, now);
        }
    }

    fn set_level(&mut self, level: u8, now: Instant) {
        if level > self.level {
            self.rose = now;
        }
        self.level = level;
    }

    /// The sensor is silent: the level is what the service time betrays. True if it changed.
    pub fn infer(&mut self, ratio: Option<f64>, config: &SchedConfig, now: Instant) -> bool {
        if now.saturating_since(self.felt) > config.heat.silent_after {
            self.celsius = None;
        }
        if self.reported && now.saturating_since(self.heard) <= config.heat.silent_after {
            return false;
        }
        self.reported = false;
        let before = self.level;
        if let Some(ratio) = ratio.filter(|_| !self.resting) {
            self.set_level(inferred_level(ratio, before), now);
        }
        before != self.level
    }

    /// As the rest plan sees it.
    pub fn view(&self, up: bool, explorer: bool) -> HeatView {
        HeatView {
            up,
            resting: self.resting,
            since: self.since,
            celsius: self.celsius,
            level: self.level,
            level_reported: self.reported,
            guards: self.guards,
            latched: self.latched,
            explorer,
        }
    }
}

/// The view of a place without a stick.
pub fn absent() -> HeatView {
    StickHeat::new(Guards::Reported).view(false, false)
}

/// One stick.
#[derive(Debug)]
pub struct Stick {
    /// Open.
    pub up: bool,
    /// A reset was asked for.
    pub resetting: bool,
    /// Kept free for suspects.
    pub reserved: bool,
    /// Ledger of its memory.
    pub cache: StickCache,
    /// Graphs on it.
    pub slots: Vec<Slot>,
    /// In flight, oldest first.
    pub runs: Vec<RunId>,
    /// Predicted device time in flight, microseconds.
    pub backlog_us: f64,
    /// Device time given so far, microseconds.
    pub served_us: f64,
    /// Share in the weighted policy.
    pub weight: f64,
    /// Assignment that it got last.
    pub turn: u64,
    /// Health.
    pub breaker: Breaker,
    /// Heat.
    pub heat: StickHeat,
    /// The latency class was here until then.
    pub shared_until: Instant,
    /// Device time of the latency class's runs, microseconds.
    pub latency_us: f64,
    /// Heavy runs in flight.
    pub heavy: u32,
    /// Last completion.
    pub done_at: Instant,
    /// Of what.
    pub done_graph: Option<GraphNo>,
    /// When its oldest run is thought to have begun.
    pub head_since: Instant,
    /// Busy since, while anything is in flight.
    pub busy_since: Instant,
    /// Busy time, nanoseconds, up to the last moment of rest.
    pub busy_ns: u64,
    /// Busy time and clock at the last reading.
    pub read_at: (u64, Instant),
    /// Graphs that it would not load, until then.
    pub refused: Vec<(GraphNo, Instant)>,
    /// Answered, failed, died.
    pub completed: u64,
    /// Runs that failed.
    pub failed: u64,
    /// Times that it was lost.
    pub deaths: u32,
    /// Resets asked for.
    pub resets: u32,
}

impl Stick {
    /// Just opened, empty.
    pub fn new(cache: StickCache, guards: Guards, weight: f64, config: &SchedConfig) -> Self {
        Stick {
            up: true,
            resetting: false,
            reserved: false,
            cache,
            slots: Vec::new(),
            runs: Vec::new(),
            backlog_us: 0.0,
            served_us: 0.0,
            weight: weight.max(1e-3),
            turn: 0,
            breaker: Breaker::new(config.stick_breaker),
            heat: StickHeat::new(guards),
            shared_until: Instant::ZERO,
            latency_us: 0.0,
            heavy: 0,
            done_at: Instant::ZERO,
            done_graph: None,
            head_since: Instant::ZERO,
            busy_since: Instant::ZERO,
            busy_ns: 0,
            read_at: (0, Instant::ZERO),
            refused: Vec::new(),
            completed: 0,
            failed: 0,
            deaths: 0,
            resets: 0,
        }
    }

    /// Not there for work, whatever its heat: lost or being reset.
    pub fn is_out(&self) -> bool {
        !self.up || self.resetting
    }

    /// Runs that it may have in flight over all graphs: the depth that keeps it busy with one keeps it busy with several.
    pub fn places(&self) -> u32 {
        self.slots.iter().filter(|s| s.ready).map(|s| s.depth.depth()).max().unwrap_or(0)
    }

    /// The graph's slot.
    pub fn slot(&self, graph: GraphNo) -> Option<&Slot> {
        self.slots.iter().find(|s| s.graph == graph)
    }

    /// The graph's slot.
    pub fn slot_mut(&mut self, graph: GraphNo) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|s| s.graph == graph)
    }

    /// Open, healthy, awake: may be given ordinary work.
    pub fn takes_work(&self, now: Instant) -> bool {
        self.up
            && !self.resetting
            && !self.reserved
            && !self.heat.resting
            && match self.breaker.gate(now) {
                Gate::Closed => true,
                Gate::Trial => self.runs.is_empty(),
                Gate::Open(_) => false,
            }
    }

    /// How much slower it is than when nothing slows it; `None` before that is known.
    pub fn slowness(&self) -> Option<f64> {
        let level = self.heat.level;
        let ratios = self.slots.iter().flat_map(|s| &s.service);
        ratios.filter_map(|s| Some(s.us(level)? / s.base_us()?)).reduce(f64::max)
    }

    /// When all that is in flight is expected to be done, nanoseconds of the clock.
    pub fn ready_ns(&self) -> u64 {
        self.head_since.as_nanos().saturating_add((self.backlog_us * 1e3) as u64)
    }

    /// Busy time up to now, nanoseconds.
    pub fn busy_now(&self, now: Instant) -> u64 {
        let running = if self.runs.is_empty() { 0 } else { (now - self.busy_since).as_nanos() as u64 };
        self.busy_ns + running
    }

    /// Mean share of full power since the last reading; begins a new interval.
    pub fn load_since_reading(&mut self, now: Instant) -> f64 {
        let (busy, then) = self.read_at;
        let now_busy = self.busy_now(now);
        self.read_at = (now_busy, now);
        let span = (now - then).as_nanos() as f64;
        if span <= 0.0 {
            return 0.0;
        }
        let share = now_busy.saturating_sub(busy) as f64 / span;
        // Sleeping between inferences saves power: a throttled stick that is busy all the time is not at full load.
        (share / self.slowness().unwrap_or(1.0).max(1.0)).clamp(0.0, 1.0)
    }
}
