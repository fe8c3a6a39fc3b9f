//! What to change so that a fleet does more: a pure function of its statistics. Each piece of advice has its evidence and
//! one suggestion; without evidence there is none.

use super::{FleetStats, StickState, StickStats};
use crate::id::StickId;

/// Answers that say something; fewer are chance.
const MIN_COMPLETED: u64 = 50;
/// Mb/s of a USB 3 link.
const USB3_MBPS: u32 = 5000;
/// Share of the places in force that should be taken while a stick works.
const TAKEN: f64 = 0.6;
/// Share of the time on a stick beyond which overlapping transfers with computing gains little.
const EXECUTE_SHARE: f64 = 0.9;
/// Time on the host beside each inference, as a share of its time on the stick, from which the host is in the way.
const HOST_SHARE: f64 = 0.5;
/// Share of leases refused, and of requests that had to load their graph, that costs time.
const REFUSED_SHARE: f64 = 0.01;
const MISS_SHARE: f64 = 0.05;

/// What a piece of advice is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Finding {
    /// A stick slows itself down because it is hot.
    Throttled,
    /// A stick is linked slower than it could be.
    SlowLink,
    /// The sticks have room for more at a time.
    MoreDepth,
    /// The host takes long beside each inference.
    HostBound,
    /// Host memory for inputs and outputs runs out.
    PoolTooSmall,
    /// Graphs push one another off a stick.
    CacheThrash,
}

impl Finding {
    /// One or two words, as reports have them.
    pub fn as_str(self) -> &'static str {
        match self {
            Finding::Throttled => "throttled",
            Finding::SlowLink => "slow-link",
            Finding::MoreDepth => "more-depth",
            Finding::HostBound => "host-bound",
            Finding::PoolTooSmall => "pool-too-small",
            Finding::CacheThrash => "cache-thrash",
        }
    }
}

/// What to change, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Advice {
    /// What it is about.
    pub finding: Finding,
    /// The stick that it concerns; `None` for all together.
    pub stick: Option<StickId>,
    /// The figures behind it.
    pub evidence: String,
    /// The one thing to do about it.
    pub suggestion: &'static str,
}

impl std::fmt::Display for Advice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(stick) = &self.stick {
            write!(f, "{stick}: ")?;
        }
        write!(f, "{}; {}", self.evidence, self.suggestion)
    }
}

/// What these statistics advise: first what explains the most. They run from the fleet's opening, so that a fleet that was
/// idle for long is judged by what it did while it worked.
pub fn advise(stats: &FleetStats) -> Vec<Advice> {
    let ready = || stats.sticks.iter().filter(|s| s.state == StickState::Ready);
    let each = |find: fn(&StickStats) -> Option<Advice>| ready().filter_map(find);
    let mut advice: Vec<Advice> = each(throttled).chain(each(slow_link)).collect();
    advice.extend(host_bound(stats));
    advice.extend(ready().filter_map(|stick| more_depth(stats, stick)));
    advice.extend(each(pool_too_small).chain(each(cache_thrash)));
    advice
}

fn about(stick: &StickStats, finding: Finding, evidence: String, suggestion: &'static str) -> Option<Advice> {
    Some(Advice { finding, stick: Some(stick.id.clone()), evidence, suggestion })
}

fn throttled(stick: &StickStats) -> Option<Advice> {
    let sched = stick.sched.as_ref();
    let (level, source) = match (stick.throttle_level, sched) {
        (Some(level), _) => (level, "it reports"),
        (None, Some(sched)) => (sched.level, "its inference times suggest"),
        (None, None) => return None,
    };
    if level == 0 {
        return None;
    }
    let degrees = stick.temperature_c.map(|c| format!(" at {c:.1} degrees Celsius")).unwrap_or_default();
    about(
        stick,
        Finding::Throttled,
        format!("{source} throttle level {level}{degrees}"),
        "give it air, or more room to the sticks beside it",
    )
}

fn slow_link(stick: &StickStats) -> Option<Advice> {
    // 0: there is no bus.
    if stick.speed_mbps == 0 || stick.speed_mbps >= USB3_MBPS {
        return None;
    }
    about(
        stick,
        Finding::SlowLink,
        format!("linked at {} of {USB3_MBPS} Mb/s", stick.speed_mbps),
        "plug it into a USB 3 port, without a USB 2 hub or cable between",
    )
}

/// Mean nanoseconds of the six stages: host side (prepare and finish), and on the stick (upload, execute, download).
fn means(stats: &FleetStats) -> Option<(f64, [f64; 3])> {
    let [_, prepare, upload, execute, download, finish] = &stats.stages;
    if execute.count() < MIN_COMPLETED {
        return None;
    }
    let mean = |l: &crate::stats::Latency| l.mean().as_nanos() as f64;
    Some((mean(prepare) + mean(finish), [mean(upload), mean(execute), mean(download)]))
}

fn host_bound(stats: &FleetStats) -> Option<Advice> {
    let (host, on_stick) = means(stats)?;
    let on_stick: f64 = on_stick.iter().sum();
    // Without more waiting than the sticks hold, the host's time is hidden behind theirs.
    if host < HOST_SHARE * on_stick || on_stick == 0.0 {
        return None;
    }
    Some(Advice {
        finding: Finding::HostBound,
        stick: None,
        evidence: format!(
            "a request spends {:.2} ms in this computer's stages and {:.2} ms on a stick",
            host / 1e6,
            on_stick / 1e6
        ),
        suggestion: "give the process more CPU, or fewer sticks",
    })
}

fn more_depth(stats: &FleetStats, stick: &StickStats) -> Option<Advice> {
    if stick.completed < MIN_COMPLETED || stick.busy.is_zero() {
        return None;
    }
    // While it worked: what it was idle between bursts is not a lack of depth.
    let taken = stick.depth_time.as_secs_f64() / stick.busy.as_secs_f64();
    let graphs = &stick.sched.as_ref()?.graphs;
    let places: u32 = graphs.iter().filter(|g| g.ready).map(|g| g.depth).max()?;
    let evidence = format!("{taken:.1} inferences were on it at a time, of {places} that may be");
    if places > 1 {
        return (taken < TAKEN * f64::from(places)).then(|| {
            let suggestion = "submit more requests before waiting for answers";
            Advice { finding: Finding::MoreDepth, stick: Some(stick.id.clone()), evidence, suggestion }
        });
    }
    // One at a time: while it travels, the stick has nothing to compute.
    let (_, on_stick) = means(stats)?;
    let share = on_stick[1] / on_stick.iter().sum::<f64>();
    (share < EXECUTE_SHARE).then(|| Advice {
        finding: Finding::MoreDepth,
        stick: Some(stick.id.clone()),
        evidence: format!("{evidence}, and it computes {:.0} % of that time", 100.0 * share),
        suggestion: "load the graph with more depth, so that one request waits while one computes",
    })
}

fn pool_too_small(stick: &StickStats) -> Option<Advice> {
    let pool = &stick.host_pool;
    let leases = pool.hits + pool.misses + pool.refused;
    if pool.refused == 0 || (pool.refused as f64) < REFUSED_SHARE * leases as f64 {
        return None;
    }
    about(
        stick,
        Finding::PoolTooSmall,
        format!(
            "{} of {leases} leases of host memory found none free; at most {} of {} bytes were in use",
            pool.refused, pool.high_water_bytes, pool.ceiling_bytes
        ),
        "drop inputs and outputs sooner, or raise FleetConfig::pool_bytes",
    )
}

fn cache_thrash(stick: &StickStats) -> Option<Advice> {
    let cache = &stick.sched.as_ref()?.cache;
    let asked = cache.hits + cache.misses;
    let missed = cache.misses as f64 / asked.max(1) as f64;
    if asked < MIN_COMPLETED || cache.evictions < 2 || missed < MISS_SHARE {
        return None;
    }
    about(
        stick,
        Finding::CacheThrash,
        format!(
            "{:.0} % of {asked} requests had to load their graph, {} loads pushed another off",
            100.0 * missed,
            cache.evictions
        ),
        "use fewer graphs at a time than fit, or less depth for each",
    )
}

#[cfg(test)]
#[path = "advice_tests.rs"]
mod tests;
