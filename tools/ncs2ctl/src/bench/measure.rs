//! Warm-up, then windows of counts and samples of heat, until the time is over or the user has seen enough.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ncs2::runtime::{FleetStats, MarkCollector, StickStats};
use ncs2::{Error, ErrorKind, Fleet, Graph, StickId};

use super::host::{Cost, Sample};
use super::load::{Load, Plan, Served, Tally};
use super::machine::{self, Machine};
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::timeline::Timeline;

/// How often the bar moves and the end is looked for.
const TICK: Duration = Duration::from_millis(100);
/// How often sticks are asked for their temperature.
const THERMAL_EVERY: Duration = Duration::from_secs(1);
/// A stick that takes longer is not waited for.
const THERMAL_TIMEOUT: Duration = Duration::from_millis(200);
/// A depth that has not changed for so many answers of its graph is found: more than twice what its controller judges
/// by while it climbs, twice so that a change on the way would have shown.
const SETTLED_AFTER: u64 = 150;
/// Longest wait for that.
const SETTLE_WITHIN: Duration = Duration::from_secs(20);
/// Most marks of requests from one tick to the next.
const MARKS_BETWEEN_TICKS: usize = 65_536;
/// At least so many windows, or stability says nothing.
const MIN_WINDOWS: u32 = 3;
/// At most so many, or the report of a long soak is nothing but windows.
const MAX_WINDOWS: u32 = 100;

/// For how long.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Before measuring.
    pub warmup: Duration,
    /// Measuring.
    pub duration: Duration,
}

/// Temperatures seen, °C.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Heat {
    /// Coldest.
    pub min: f32,
    /// Hottest.
    pub max: f32,
    /// Sum of all, for the mean.
    pub sum: f64,
    /// How many.
    pub count: u32,
}

/// What one stick did while it was measured.
#[derive(Clone, Debug)]
pub struct StickRun {
    /// As at the end.
    pub stats: StickStats,
    /// Time with something in flight.
    pub busy: Duration,
    /// In flight, summed over time.
    pub depth_time: Duration,
    /// Errors.
    pub failed: u64,
    /// Resets.
    pub resets: u32,
    /// Leases of host memory from kept buffers, and such that allocated.
    pub pool: (u64, u64),
    /// Requests that found their graph on the stick, and such that had to load it.
    pub cache: (u64, u64),
    /// `None` where it never said.
    pub heat: Option<Heat>,
    /// Highest level; `None` where it never said.
    pub throttle_level_max: Option<u8>,
}

/// What was measured.
#[derive(Debug)]
pub struct Measured {
    /// How long.
    pub elapsed: Duration,
    /// What came before, warm-up and search for depths.
    pub warmed: Duration,
    /// Between both ends of the measurement, per stick.
    pub sticks: Vec<StickRun>,
    /// What the load generator saw, of all networks together.
    pub tally: Tally,
    /// Requests that the load generator sent, from the first on.
    pub sent: u64,
    /// The same for each network.
    pub served: Vec<Served>,
    /// The first error of any.
    pub error: Option<Error>,
    /// Answers that the fleet says that it gave, from the first request on.
    pub fleet_completed: u64,
    /// Attempts after a failed one.
    pub retried: u64,
    /// Attempts that the retry budget refused.
    pub retries_refused: u64,
    /// Inferences a second, per window.
    pub windows: Vec<f64>,
    /// Length of a window.
    pub window: Duration,
    /// Host cost.
    pub cost: Cost,
    /// What the whole computer did meanwhile.
    pub machine: Machine,
    /// Ctrl-C.
    pub interrupted: bool,
    /// Every worker gave up before the end.
    pub gave_up: bool,
}

impl StickRun {
    /// Largest depth in force of its graphs; `None` before it was open.
    pub fn depth_in_force(&self) -> Option<u32> {
        depth_in_force(&self.stats)
    }
}

impl Measured {
    /// No answer came, and the user did not end it either.
    pub fn is_nothing(&self) -> bool {
        self.tally.completed() == 0 && !self.interrupted
    }

    /// The sticks went away, or requests failed that no window counts: what the windows say is not the whole truth.
    pub fn was_cut_short(&self) -> bool {
        let all_lost = self.tally.fallback.is_none() && self.sticks.iter().all(|s| s.stats.failure.is_some());
        self.gave_up || all_lost || self.tally.total_failed > self.tally.failed
    }

    /// Largest depth in force of any graph on any stick; 0 without one.
    pub fn depth_in_force(&self) -> u32 {
        self.sticks.iter().filter_map(StickRun::depth_in_force).max().unwrap_or(0)
    }
}

fn depth_in_force(stats: &StickStats) -> Option<u32> {
    stats.sched.as_ref()?.graphs.iter().map(|g| g.depth).max()
}

/// Length of a window for a run of `duration`: a second, or so that there are enough and not too many.
pub fn window(duration: Duration) -> Duration {
    let shortest = duration / MAX_WINDOWS;
    let longest = duration / MIN_WINDOWS;
    Duration::from_secs(1).clamp(shortest, longest)
}

/// Over the last three windows, all within 10 % of their mean.
pub fn is_stable(windows: &[f64]) -> bool {
    let Some(last) = windows.last_chunk::<3>() else { return false };
    let mean = last.iter().sum::<f64>() / 3.0;
    mean > 0.0 && last.iter().all(|fps| (fps - mean).abs() <= 0.1 * mean)
}

/// Who watches a run.
#[derive(Clone, Copy)]
pub struct Watchers<'a> {
    /// Ctrl-C.
    pub interrupt: &'a Interrupt,
    /// Where the bar is drawn.
    pub output: &'a Output,
    /// Where times are written down.
    pub timeline: Option<&'a Timeline>,
    /// Counters of the processor.
    pub counters: &'a machine::Counters,
    /// Go on with the warm-up until the fleet has found its depths, then offer no more than those take.
    pub settle: bool,
}

/// Runs the load and watches it.
pub fn measure(
    fleet: &Fleet,
    plans: Vec<(Graph, Plan)>,
    times: Times,
    watchers: Watchers<'_>,
) -> Result<Measured> {
    let Watchers { interrupt, output, timeline, counters, settle } = watchers;
    let mark = |name: &str| {
        if let Some(timeline) = timeline {
            timeline.mark(name);
        }
    };
    let earlier = fleet.stats();
    mark("warm-up");
    let collector = timeline.map(|_| fleet.collect_marks(MARKS_BETWEEN_TICKS)).transpose()?;
    let marks = timeline.zip(collector);
    let load = Load::start(plans, timeline.map(|timeline| (timeline, fleet))).map_err(|e| {
        Failure::new(ErrorKind::OutOfMemory, format!("could not start threads: {e}"), "use less depth")
    })?;
    let bar = output.bar(times.warmup + times.duration);
    bar.set_prefix("warm-up");
    let begin = Instant::now();
    let mut watch = Watch {
        fleet,
        load: &load,
        interrupt,
        timeline,
        marks: marks.as_ref(),
        heat: BTreeMap::new(),
        asked: begin,
    };
    while begin.elapsed() < times.warmup && watch.goes_on(times.warmup.saturating_sub(begin.elapsed())) {
        bar.set_position(millis(begin.elapsed()));
        bar.set_message(format!("{} of {:?}", seconds(begin.elapsed()), times.warmup));
        watch.heat_is_due();
    }

    if settle {
        bar.set_prefix("depth");
        let found = watch.depths_settle();
        tracing::debug!("depths in force: {found:?}");
        load.set_places(&found);
        watch.surplus_ends(found.len() as u64);
    }

    watch.heat.clear();
    watch.sample_heat();
    let before = fleet.stats();
    let host_before = Sample::take();
    let machine_before = machine::Sample::take(counters);
    mark("measure");
    load.set_measuring(true);
    tracing::debug!("measuring");
    let start = Instant::now();
    let warmed = start - begin;
    let window = window(times.duration);
    let (mut windows, mut window_start, mut window_count) = (Vec::new(), start, 0);
    bar.set_prefix("measure");
    while start.elapsed() < times.duration {
        let next = (window_start + window).min(start + times.duration);
        if !watch.goes_on(next.saturating_duration_since(Instant::now())) {
            break;
        }
        // The last window ends with the measurement, whatever the sleeps summed up to.
        let (now, count) = (Instant::now(), load.completed());
        if now >= window_start + window || now >= start + times.duration {
            let length = now - window_start;
            // A sliver at the end is no window.
            if length * 2 >= window {
                windows.push((count - window_count) as f64 / length.as_secs_f64());
            }
            (window_start, window_count) = (now, count);
        }
        bar.set_position(millis(times.warmup + start.elapsed()));
        let fps = count as f64 / start.elapsed().as_secs_f64();
        bar.set_message(format!("{fps:.1} fps, {} of {:?}", seconds(start.elapsed()), times.duration));
        watch.heat_is_due();
    }
    load.set_measuring(false);
    let elapsed = start.elapsed();
    let cost = Sample::take().since(&host_before);
    let machine = machine::Sample::take(counters).since(&machine_before);
    mark("drain");
    let after = fleet.stats();
    watch.sample_heat();
    let (heat, gave_up) = (watch.heat, !load.is_alive());
    bar.set_prefix("drain");
    let mut served = load.finish();
    take_marks(marks.as_ref());
    let mut tally = Tally::default();
    served.iter().for_each(|s| tally.merge(&s.tally));
    let error = served.iter_mut().find_map(|s| s.tally.error.take());
    bar.finish_and_clear();
    let end = fleet.stats();
    Ok(Measured {
        elapsed,
        warmed,
        sticks: sticks(&before, &after, &heat),
        sent: served.iter().map(|s| s.sent).sum(),
        served,
        error,
        fleet_completed: end.completed.saturating_sub(earlier.completed),
        retried: after.retried.saturating_sub(before.retried),
        retries_refused: after.retries_refused.saturating_sub(before.retries_refused),
        tally,
        windows,
        window,
        cost,
        machine,
        interrupted: interrupt.is_pressed(),
        gave_up,
    })
}

/// What the fleet's callers marked goes into the timeline.
fn take_marks(from: Option<&(&Timeline, MarkCollector)>) {
    if let Some((timeline, collector)) = from {
        timeline.marks_of_requests(collector.take());
    }
}

/// What is looked at while the load runs.
struct Watch<'a> {
    fleet: &'a Fleet,
    load: &'a Load,
    interrupt: &'a Interrupt,
    timeline: Option<&'a Timeline>,
    marks: Option<&'a (&'a Timeline, MarkCollector)>,
    heat: BTreeMap<StickId, (Option<Heat>, Option<u8>)>,
    asked: Instant,
}

impl Watch<'_> {
    /// Waits for at most a tick; false when the run is over before its time.
    fn goes_on(&self, at_most: Duration) -> bool {
        // The channel wakes at once on Ctrl-C; whether it was pressed is asked of the counter.
        let _ = self.interrupt.channel().recv_timeout(at_most.min(TICK));
        take_marks(self.marks);
        !self.interrupt.is_pressed() && self.load.is_alive()
    }

    /// Waits until no depth has changed for as many answers as its controller judges by, and tells for each stick the
    /// sum over its graphs. Gives up after a while: a caller who is too slow for the sticks teaches the controller nothing.
    fn depths_settle(&mut self) -> Vec<u32> {
        let depths = |stats: &FleetStats| -> Vec<Vec<u32>> {
            let of = |s: &StickStats| s.sched.iter().flat_map(|s| &s.graphs).map(|g| g.depth).collect();
            stats.sticks.iter().map(of).collect()
        };
        let counts = |stats: &FleetStats| -> Vec<u64> { stats.sticks.iter().map(|s| s.completed).collect() };
        let begin = Instant::now();
        let stats = self.fleet.stats();
        let (mut known, mut since) = (depths(&stats), counts(&stats));
        while begin.elapsed() < SETTLE_WITHIN && self.goes_on(TICK) {
            self.heat_is_due();
            let stats = self.fleet.stats();
            let now = depths(&stats);
            if now != known {
                (known, since) = (now, counts(&stats));
            }
            let graphs = |at: usize| known[at].len().max(1) as u64;
            let done =
                counts(&stats).iter().zip(&since).enumerate().all(|(at, (now, then))| {
                    known[at].is_empty() || now - then >= SETTLED_AFTER * graphs(at)
                });
            if done {
                break;
            }
        }
        known.iter().map(|graphs| graphs.iter().sum()).collect()
    }

    /// Waits until hardly more than one request for each stick waits: those from the search would count as latency.
    fn surplus_ends(&mut self, sticks: u64) {
        let begin = Instant::now();
        while self.fleet.stats().queued > sticks && begin.elapsed() < SETTLE_WITHIN && self.goes_on(TICK) {
            self.heat_is_due();
        }
        // What was taken before the last of them is still on its way.
        self.goes_on(TICK);
    }

    fn heat_is_due(&mut self) {
        if self.asked.elapsed() >= THERMAL_EVERY {
            self.sample_heat();
        }
    }

    fn sample_heat(&mut self) {
        self.asked = Instant::now();
        // A silent sensor is no reason to end a benchmark; it shows as null.
        let _: Result<(), Error> = self.fleet.refresh_telemetry(THERMAL_TIMEOUT);
        for stick in self.fleet.stats().sticks {
            let (heat, level) = self.heat.entry(stick.id.clone()).or_default();
            if let Some(t) = stick.temperature_c {
                if let Some(timeline) = self.timeline {
                    timeline.heat(&stick.id, t, stick.throttle_level);
                }
                let h = heat.get_or_insert(Heat { min: t, max: t, sum: 0.0, count: 0 });
                *h = Heat {
                    min: h.min.min(t),
                    max: h.max.max(t),
                    sum: h.sum + f64::from(t),
                    count: h.count + 1,
                };
            }
            *level = (*level).max(stick.throttle_level);
        }
    }
}

fn sticks(
    before: &FleetStats,
    after: &FleetStats,
    heat: &BTreeMap<StickId, (Option<Heat>, Option<u8>)>,
) -> Vec<StickRun> {
    after
        .sticks
        .iter()
        .map(|stats| {
            let earlier = before.sticks.iter().find(|s| s.id == stats.id);
            let (heat, throttle_level_max) = heat.get(&stats.id).copied().unwrap_or_default();
            StickRun {
                busy: stats.busy.saturating_sub(earlier.map_or(Duration::ZERO, |s| s.busy)),
                depth_time: stats.depth_time.saturating_sub(earlier.map_or(Duration::ZERO, |s| s.depth_time)),
                failed: stats.failed.saturating_sub(earlier.map_or(0, |s| s.failed)),
                resets: stats.resets.saturating_sub(earlier.map_or(0, |s| s.resets)),
                pool: (
                    stats.host_pool.hits.saturating_sub(earlier.map_or(0, |s| s.host_pool.hits)),
                    stats.host_pool.misses.saturating_sub(earlier.map_or(0, |s| s.host_pool.misses)),
                ),
                cache: {
                    let counts =
                        |s: &StickStats| s.sched.as_ref().map_or((0, 0), |s| (s.cache.hits, s.cache.misses));
                    let (now, before) = (counts(stats), earlier.map_or((0, 0), counts));
                    (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1))
                },
                stats: stats.clone(),
                heat,
                throttle_level_max,
            }
        })
        .collect()
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

fn seconds(d: Duration) -> String {
    format!("{:.1}s", d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_a_second_where_that_makes_sense() {
        assert_eq!(window(Duration::from_secs(10)), Duration::from_secs(1));
        assert_eq!(window(Duration::from_millis(900)), Duration::from_millis(300));
        assert_eq!(window(Duration::from_secs(1000)), Duration::from_secs(10));
    }

    #[test]
    fn stable_looks_at_the_last_three() {
        assert!(is_stable(&[1.0, 100.0, 105.0, 95.0]));
        assert!(!is_stable(&[100.0, 100.0, 125.0]));
        assert!(!is_stable(&[100.0, 100.0]));
        assert!(!is_stable(&[0.0, 0.0, 0.0]), "nothing at all is no steady state");
    }
}
