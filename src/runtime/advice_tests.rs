//! One test per advice: with its cause there is that advice and no other, just below it there is none.

use std::time::Duration;

use super::*;
use crate::cache::CacheStats;
use crate::pool::PoolStats;
use crate::sched::throttle::Law;
use crate::sched::{Forecast, GraphNo, Policy, SlotStats, StickNo, StickSchedStats};
use crate::stats::{Latency, StageTimes};

fn sched() -> StickSchedStats {
    StickSchedStats {
        stick: StickNo(0),
        up: true,
        resting: false,
        rests: 0,
        resetting: false,
        in_flight: 4,
        backlog: Duration::ZERO,
        busy: Duration::from_secs(9),
        celsius: Some(60.0),
        level: 0,
        level_reported: true,
        latched: false,
        forecast: Forecast::Unsure,
        fit: None,
        completed: 1000,
        failed: 0,
        deaths: 0,
        resets: 0,
        breaker_opened: 0,
        cache: CacheStats { hits: 999, misses: 1, ..CacheStats::default() },
        graphs: vec![SlotStats {
            graph: GraphNo(0),
            ready: true,
            in_flight: 4,
            depth: 4,
            product: None,
            device_us: [None; 3],
        }],
    }
}

/// A stick that nothing is wrong with.
fn stick() -> StickStats {
    StickStats {
        id: StickId::sim(0),
        simulated: Some("ncs2".into()),
        paced: Some(true),
        state: StickState::Ready,
        failure: None,
        capabilities: None,
        speed_mbps: 5000,
        used_memory_bytes: None,
        temperature_c: Some(60.0),
        throttle_level: Some(0),
        completed: 1000,
        failed: 0,
        in_flight: 4,
        busy: Duration::from_secs(9),
        depth_time: Duration::from_secs(35),
        resets: 0,
        latency: Latency::new(),
        memory_kind: None,
        memory: None,
        host_pool: PoolStats { ceiling_bytes: 1 << 20, hits: 1990, misses: 10, ..PoolStats::default() },
        sched: Some(sched()),
    }
}

/// Stage times in microseconds.
fn fleet(sticks: Vec<StickStats>, stages: [u64; StageTimes::COUNT]) -> FleetStats {
    let stage = |us| {
        let mut times = Latency::new();
        (0..1000).for_each(|_| times.record(Duration::from_micros(us)));
        times
    };
    FleetStats {
        elapsed: Duration::from_secs(10),
        sticks,
        submitted: 1000,
        completed: 1000,
        failed: 0,
        retried: 0,
        retries_refused: 0,
        fallback: 0,
        policy: Policy::Thermal,
        law: Law::default(),
        queued: 0,
        latency: stage(12_000),
        stages: stages.map(stage),
    }
}

const SOUND: [u64; 6] = [1000, 50, 500, 9000, 100, 100];

fn of(stick: StickStats) -> Vec<Advice> {
    advise(&fleet(vec![stick], SOUND))
}

/// Exactly one piece of advice, of this kind, that names its figures.
fn only(advice: &[Advice], finding: Finding, words: &[&str]) {
    let [one] = advice else { panic!("{advice:?}") };
    assert_eq!(one.finding, finding, "{one}");
    let text = one.to_string();
    assert!(words.iter().all(|w| text.contains(w)), "{text}");
    assert!(text.is_ascii() && text.len() < 180 && !one.suggestion.ends_with('.'), "{text}");
}

#[test]
fn a_sound_fleet_gets_none() {
    assert_eq!(of(stick()), []);
    let lost = StickStats { state: StickState::Lost, throttle_level: Some(2), speed_mbps: 480, ..stick() };
    assert_eq!(of(lost), [], "a stick that is gone is not to be tuned");
}

#[test]
fn throttled() {
    let hot = StickStats { throttle_level: Some(1), temperature_c: Some(79.5), ..stick() };
    only(&of(hot), Finding::Throttled, &["sim0", "reports throttle level 1", "79.5", "air"]);
    let inferred = StickSchedStats { level: 2, level_reported: false, ..sched() };
    let silent =
        StickStats { throttle_level: None, temperature_c: None, sched: Some(inferred.clone()), ..stick() };
    only(&of(silent), Finding::Throttled, &["times suggest throttle level 2"]);
    let speaks = StickStats { sched: Some(inferred), ..stick() };
    assert_eq!(of(speaks), [], "the sensor says that it is not");
}

#[test]
fn slow_link() {
    only(&of(StickStats { speed_mbps: 480, ..stick() }), Finding::SlowLink, &["480 of 5000 Mb/s", "USB 3"]);
    assert_eq!(of(StickStats { speed_mbps: 0, ..stick() }), [], "in this process there is no bus");
    assert_eq!(of(StickStats { speed_mbps: 10_000, ..stick() }), []);
}

#[test]
fn more_depth() {
    let few = StickStats { depth_time: Duration::from_secs(18), ..stick() };
    only(&of(few), Finding::MoreDepth, &["2.0 inferences", "of 4", "submit more"]);
    let enough = StickStats { depth_time: Duration::from_secs(22), ..stick() };
    assert_eq!(of(enough), []);
    let young = StickStats { depth_time: Duration::from_secs(18), completed: 49, ..stick() };
    assert_eq!(of(young), [], "too few to tell");

    let mut alone = sched();
    alone.graphs[0].depth = 1;
    let one = StickStats { depth_time: Duration::from_secs(9), sched: Some(alone), ..stick() };
    let travels = [1000, 50, 3000, 6000, 1000, 100];
    let advice = advise(&fleet(vec![one.clone()], travels));
    only(&advice, Finding::MoreDepth, &["1.0 inferences", "computes 60 %", "more depth"]);
    assert_eq!(of(one), [], "there is nothing to overlap");
}

#[test]
fn host_bound() {
    let advice = advise(&fleet(vec![stick()], [1000, 3000, 500, 9000, 100, 2500]));
    only(&advice, Finding::HostBound, &["5.5", "9.6", "CPU"]);
    assert_eq!(advise(&fleet(vec![stick()], [1000, 2000, 500, 9000, 100, 2500])), []);
}

#[test]
fn pool_too_small() {
    let pool = |refused| PoolStats { refused, high_water_bytes: 1 << 20, ..stick().host_pool };
    let advice = of(StickStats { host_pool: pool(100), ..stick() });
    only(&advice, Finding::PoolTooSmall, &["100 of 2100", "1048576", "pool_bytes"]);
    assert_eq!(of(StickStats { host_pool: pool(19), ..stick() }), [], "below one in a hundred");
}

#[test]
fn cache_thrash() {
    let with = |cache| StickStats { sched: Some(StickSchedStats { cache, ..sched() }), ..stick() };
    let thrash = CacheStats { hits: 800, misses: 200, evictions: 190, ..CacheStats::default() };
    only(&of(with(thrash)), Finding::CacheThrash, &["20 % of 1000", "190", "fewer graphs"]);
    assert_eq!(of(with(CacheStats { evictions: 1, ..thrash })), [], "a change of graphs, not a habit");
    assert_eq!(of(with(CacheStats { hits: 970, misses: 30, ..thrash })), []);
}

#[test]
fn the_worst_comes_first() {
    let bad = StickStats {
        speed_mbps: 480,
        throttle_level: Some(2),
        depth_time: Duration::from_secs(9),
        ..stick()
    };
    let found: Vec<_> = of(bad).iter().map(|a| a.finding.as_str()).collect();
    assert_eq!(found, ["throttled", "slow-link", "more-depth"]);
}
