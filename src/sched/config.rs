//! Settings of the scheduler.

use std::time::Duration;

use super::breaker::BreakerConfig;

/// How the stick for a job is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// In turn, passing over sticks without room.
    RoundRobin,
    /// In turn, waiting for the next stick in order: all get the same number.
    StrictRoundRobin,
    /// Fewest in flight.
    LeastLoaded,
    /// Earliest expected finish.
    Fastest,
    /// Device time in proportion to the sticks' weights.
    Weighted,
    /// Earliest expected finish, under heat limits.
    #[default]
    Thermal,
}

impl Policy {
    /// All of them.
    pub const ALL: [Policy; 6] = [
        Policy::RoundRobin,
        Policy::StrictRoundRobin,
        Policy::LeastLoaded,
        Policy::Fastest,
        Policy::Weighted,
        Policy::Thermal,
    ];

    /// As users type it.
    pub fn as_str(self) -> &'static str {
        match self {
            Policy::RoundRobin => "round-robin",
            Policy::StrictRoundRobin => "strict-round-robin",
            Policy::LeastLoaded => "least-loaded",
            Policy::Fastest => "fastest",
            Policy::Weighted => "weighted",
            Policy::Thermal => "thermal",
        }
    }
}

impl std::str::FromStr for Policy {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Policy::ALL.into_iter().find(|p| p.as_str() == s).ok_or_else(|| {
            let names: Vec<&str> = Policy::ALL.iter().map(|p| p.as_str()).collect();
            format!("unknown policy {s:?}; known are {}", names.join(", "))
        })
    }
}

/// Limits of heat.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct HeatConfig {
    /// Warn above this, °C.
    pub warn_c: f64,
    /// Rest this far below a known guard, kelvin.
    pub margin_k: f64,
    /// Wake this far below where rest began, kelvin.
    pub band_k: f64,
    /// Shortest rest, and shortest time awake between two.
    pub dwell: Duration,
    /// Rest of a stick whose sensor fell silent meanwhile (recovery takes 45 to 90 s by estimate, NCS2_FACTS section 3).
    pub blind_rest: Duration,
    /// A level that outlasts this much rest is latched.
    pub latched_after: Duration,
    /// Readings older than this are no readings.
    pub silent_after: Duration,
    /// Time between two readings.
    pub poll: Duration,
}

impl Default for HeatConfig {
    fn default() -> Self {
        HeatConfig {
            warn_c: 65.0,
            margin_k: 0.4,
            band_k: 0.5,
            dwell: Duration::from_secs(2),
            blind_rest: Duration::from_secs(60),
            latched_after: Duration::from_secs(600),
            silent_after: Duration::from_secs(5),
            poll: Duration::from_secs(1),
        }
    }
}

/// Settings of the scheduler.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedConfig {
    /// How sticks are chosen.
    pub policy: Policy,
    /// Jobs that may wait; one more is rejected.
    pub queue_limit: usize,
    /// How often a job may be tried again.
    pub retries: u32,
    /// Retries as a share of traffic.
    pub retry_share: f64,
    /// A job that waits longer than this is served ahead of its class, in one dispatch of four.
    pub starvation_bound: Duration,
    /// From this priority on, a job is of the latency class.
    pub latency_priority: u8,
    /// Heavy runs in flight on a stick that the latency class shares.
    pub heavy_in_flight: u32,
    /// A graph is heavy if it takes this many times as long as the latency class's.
    pub heavy_factor: f64,
    /// Depth is chosen so that the mean time in the stick stays below this.
    pub target_latency: Option<Duration>,
    /// A fixed depth instead of the controller.
    pub fixed_depth: Option<u32>,
    /// Time beyond the predicted one before a stick counts as hung.
    pub job_slack: Duration,
    /// Time allowed for an inference whose time was never measured; without it three times the guess from its operations,
    /// or two seconds.
    pub unmeasured_limit: Option<Duration>,
    /// The predicted time is multiplied by this at throttle levels 0, 1, 2.
    pub deadline_factor: [f64; 3],
    /// Breaker of a stick.
    pub stick_breaker: BreakerConfig,
    /// Breaker of a graph.
    pub graph_breaker: BreakerConfig,
    /// Heat.
    pub heat: HeatConfig,
}

impl Default for SchedConfig {
    fn default() -> Self {
        let s = Duration::from_secs;
        SchedConfig {
            policy: Policy::default(),
            queue_limit: 1024,
            retries: 2,
            retry_share: 0.1,
            starvation_bound: s(5),
            latency_priority: 24,
            heavy_in_flight: 1,
            heavy_factor: 4.0,
            target_latency: None,
            fixed_depth: None,
            job_slack: s(1),
            unmeasured_limit: None,
            deadline_factor: [4.0, 8.0, 16.0],
            stick_breaker: BreakerConfig { failures: 5, backoff: s(1), max_backoff: s(60), successes: 8 },
            graph_breaker: BreakerConfig { failures: 8, backoff: s(1), max_backoff: s(60), successes: 4 },
            heat: HeatConfig::default(),
        }
    }
}
