//! What the scheduler shows of itself. Values, no references.

use std::time::Duration;

use crate::cache::CacheStats;
use crate::clock::Instant;

use super::event::{GraphNo, StickNo};
use super::heat::{Fit, Forecast};
use super::scheduler::{Counters, Scheduler};
use super::stick::LEVELS;
use super::throttle::Law;

/// One graph on one stick.
#[derive(Clone, PartialEq, Debug)]
pub struct SlotStats {
    /// Which.
    pub graph: GraphNo,
    /// Usable.
    pub ready: bool,
    /// In flight.
    pub in_flight: u32,
    /// Depth in force.
    pub depth: u32,
    /// Least depth that could reach the best rate seen; `None` before that is known.
    pub product: Option<f64>,
    /// Device time of one inference of the smallest batch at throttle levels 0, 1, 2, microseconds.
    pub device_us: [Option<f64>; LEVELS],
}

/// One stick.
#[derive(Clone, PartialEq, Debug)]
pub struct StickSchedStats {
    /// Which.
    pub stick: StickNo,
    /// Open.
    pub up: bool,
    /// Resting because of heat.
    pub resting: bool,
    /// Rests so far.
    pub rests: u32,
    /// A reset was asked for.
    pub resetting: bool,
    /// In flight.
    pub in_flight: u32,
    /// Expected time of what is in flight.
    pub backlog: Duration,
    /// Time with anything in flight.
    pub busy: Duration,
    /// Degrees Celsius, if its sensor speaks.
    pub celsius: Option<f64>,
    /// Throttle level in force.
    pub level: u8,
    /// The level is the sensor's own; otherwise it is inferred from service times.
    pub level_reported: bool,
    /// Its level outlasts the cold.
    pub latched: bool,
    /// Time until it throttles under full load.
    pub forecast: Forecast,
    /// The RC model behind it, where it is believed.
    pub fit: Option<Fit>,
    /// Runs answered.
    pub completed: u64,
    /// Runs failed.
    pub failed: u64,
    /// Times lost.
    pub deaths: u32,
    /// Resets asked for.
    pub resets: u32,
    /// Times that its breaker opened.
    pub breaker_opened: u32,
    /// Its graph cache.
    pub cache: CacheStats,
    /// Its graphs.
    pub graphs: Vec<SlotStats>,
}

/// The scheduler.
#[derive(Clone, PartialEq, Debug)]
pub struct SchedStats {
    /// Jobs waiting.
    pub queued: usize,
    /// Runs in flight.
    pub in_flight: usize,
    /// Jobs waiting to run alone.
    pub suspects: usize,
    /// Counters.
    pub counters: Counters,
    /// Retries made, and refused by the budget.
    pub retry_budget: (u64, u64),
    /// What throttling does here, as far as it was seen.
    pub law: Law,
    /// Staying below the guards brings more work than running into them.
    pub rest_pays: bool,
    /// Sticks, by number.
    pub sticks: Vec<StickSchedStats>,
}

impl Scheduler {
    /// Snapshot.
    pub fn stats(&self, now: Instant) -> SchedStats {
        let sticks = self.sticks.iter().enumerate().filter_map(|(i, s)| Some((i, s.as_ref()?)));
        SchedStats {
            queued: self.queue.len(),
            in_flight: self.runs.len(),
            suspects: self.suspects.len(),
            counters: self.counters,
            retry_budget: self.budget.counts(),
            law: self.law.law(),
            rest_pays: self.rest_pays,
            sticks: sticks
                .map(|(i, s)| StickSchedStats {
                    stick: StickNo(i as u32),
                    up: s.up,
                    resting: s.heat.resting,
                    rests: s.heat.rests,
                    resetting: s.resetting,
                    in_flight: s.runs.len() as u32,
                    backlog: Duration::from_secs_f64(s.backlog_us / 1e6),
                    busy: Duration::from_nanos(s.busy_now(now)),
                    celsius: s.heat.celsius,
                    level: s.heat.level,
                    level_reported: s.heat.reported,
                    latched: s.heat.latched,
                    forecast: self.seconds_to_throttle(StickNo(i as u32), 1.0),
                    fit: s.heat.model.fit(),
                    completed: s.completed,
                    failed: s.failed,
                    deaths: s.deaths,
                    resets: s.resets,
                    breaker_opened: s.breaker.opened(),
                    cache: s.cache.stats(),
                    graphs: (s.slots.iter())
                        .map(|slot| SlotStats {
                            graph: slot.graph,
                            ready: slot.ready,
                            in_flight: slot.in_flight,
                            depth: slot.depth.depth(),
                            product: slot.depth.product(),
                            device_us: slot.service.first().map_or([None; LEVELS], |s| s.all()),
                        })
                        .collect(),
                })
                .collect(),
        }
    }
}
