//! What a run consists of: sticks, load, what breaks and when. All drawn from the seed.

use std::collections::VecDeque;
use std::time::Duration;

use ncs2::clock::Instant;
use ncs2::sched::SchedConfig;
use ncs2::stick::Ordering;
use ncs2_device::{Config, Engine, FaultKind, FaultPlan, PlannedFault, Profile, Timing, Way};

use super::sim::Rng;

/// What happens to a stick from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Break {
    Unplug,
    Replug,
    Hang,
    /// After so many more bytes: in the middle of a transfer.
    MidTransfer(Way, u64, FaultKind),
    /// Out and in again, if it hangs.
    Revive,
}

#[derive(Clone)]
pub struct Setup {
    pub seed: u64,
    pub sticks: usize,
    pub sched: SchedConfig,
    pub ordering: Ordering,
    pub depth: u32,
    pub fixed_depth: bool,
    pub executors: u32,
    /// Milliseconds that every inference takes beside its stages.
    pub trigger_ms: f64,
    /// More of the profile, TOML.
    pub profile: String,
    pub hint_us: f64,
    /// Requests a second at random; `None` keeps `outstanding` under way.
    pub rate: Option<f64>,
    pub outstanding: usize,
    pub requests: u64,
    /// No request comes later.
    pub time: Duration,
    pub first_arrival: Duration,
    /// Mean seconds between two breaks of one stick.
    pub break_every_s: f64,
    pub device_faults: FaultPlan,
}

impl Setup {
    /// A network of about 20 ms, as many as come in `time`.
    pub fn new(seed: u64, sticks: usize) -> Setup {
        Setup {
            seed,
            sticks,
            sched: SchedConfig {
                queue_limit: 100_000,
                unmeasured_limit: Some(Duration::from_secs(30)),
                ..SchedConfig::default()
            },
            ordering: Ordering::Pipelined,
            depth: 4,
            fixed_depth: true,
            executors: 1,
            trigger_ms: 20.0,
            profile: String::new(),
            hint_us: 10_000.0,
            rate: None,
            outstanding: 6 * sticks,
            requests: u64::MAX,
            time: Duration::from_secs(60),
            first_arrival: Duration::from_secs(2),
            break_every_s: f64::INFINITY,
            device_faults: FaultPlan::default(),
        }
    }

    pub fn device(&self) -> Config {
        let timing = format!("[timing]\ntrigger_us = {}\n", self.trigger_ms * 1e3);
        let text = format!("base = \"ncs2\"\n{timing}{}", self.profile);
        let profile = Profile::parse("full-stack", &text).expect("a good profile");
        Config { profile, engine: Engine::Hash, timing: Timing::Model, seed: self.seed }
    }

    /// Everything that the issue names: unplug and hang by time or in a transfer, refused triggers, short outputs, sensors
    /// that say nothing.
    pub fn with_faults(mut self, break_every_s: f64) -> Setup {
        let chance =
            |kind, chance| PlannedFault { nth: None, chance: Some(chance), ..PlannedFault::nth(kind, 1) };
        self.break_every_s = break_every_s;
        self.device_faults = FaultPlan {
            seed: Some(self.seed),
            fault: vec![
                chance(FaultKind::RefuseTrigger, 0.002),
                chance(FaultKind::ShortOutput, 0.0005),
                chance(FaultKind::SilentSensor, 0.01),
            ],
        };
        self
    }

    /// When what breaks, in the order of time.
    pub fn breaks(&self, rng: &mut Rng) -> VecDeque<(Instant, usize, Break)> {
        let mut plan = Vec::new();
        if self.break_every_s.is_finite() {
            for n in 0..self.sticks {
                let mut at = 3.0;
                loop {
                    at += rng.exp(self.break_every_s);
                    if at > self.time.as_secs_f64() {
                        break;
                    }
                    let way = if rng.below(2) == 0 { Way::Out } else { Way::In };
                    let bytes = rng.below(20_000);
                    let back = 1.0 + 4.0 * rng.unit();
                    let (what, then) = match rng.below(4) {
                        0 => (Break::Unplug, Break::Replug),
                        1 => (Break::MidTransfer(way, bytes, FaultKind::Unplug), Break::Replug),
                        2 => (Break::Hang, Break::Revive),
                        _ => (Break::MidTransfer(way, bytes, FaultKind::Hang), Break::Revive),
                    };
                    let time = |s: f64| Instant::ZERO + Duration::from_secs_f64(s);
                    plan.push((time(at), n, what));
                    plan.push((time(at + back), n, then));
                    at += back;
                }
            }
        }
        plan.sort_by_key(|(at, n, _)| (*at, *n));
        plan.into()
    }
}
