//! The text format of Prometheus, version 0.0.4, from a snapshot of a fleet.

use std::fmt::Write;
use std::time::{Duration, Instant};

use ncs2::Fleet;
use ncs2::runtime::{FleetStats, StickState, StickStats};
use ncs2::stats::{Latency, StageTimes};

use crate::failure::one_line;

/// Upper ends of the histograms' buckets, seconds.
const BUCKETS_S: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Rates are taken over at least so long: two readers at once must not halve each other's window.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// What is served, and what it needs to know from the reading before.
pub(super) struct Page {
    fleet: Fleet,
    rates: Rates,
}

/// Speed of each stick since a moment that lies at least a window back.
struct Rates {
    at: Instant,
    completed: Vec<u64>,
    fps: Vec<f64>,
}

impl Rates {
    fn new(stats: &FleetStats, now: Instant) -> Self {
        let completed: Vec<u64> = stats.sticks.iter().map(|s| s.completed).collect();
        Rates { at: now, fps: vec![0.0; completed.len()], completed }
    }

    fn update(&mut self, stats: &FleetStats, now: Instant) {
        let seconds = now.saturating_duration_since(self.at);
        if seconds < RATE_WINDOW {
            return;
        }
        let counts = stats.sticks.iter().map(|s| s.completed);
        let since = |(now, before): (u64, &u64)| now.saturating_sub(*before) as f64 / seconds.as_secs_f64();
        self.fps = counts.clone().zip(&self.completed).map(since).collect();
        (self.at, self.completed) = (now, counts.collect());
    }
}

impl Page {
    pub(super) fn new(fleet: Fleet) -> Self {
        let rates = Rates::new(&fleet.stats(), Instant::now());
        Page { fleet, rates }
    }

    pub(super) fn render(&mut self) -> String {
        let stats = self.fleet.stats();
        self.rates.update(&stats, Instant::now());
        render(&stats, &self.rates.fps)
    }
}

/// Lines of one metric after another.
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP ncs2_{name} {help}\n# TYPE ncs2_{name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.0, "ncs2_{name}{{{labels}}} {value}");
    }

    /// One value of the whole fleet.
    fn fleet(&mut self, name: &str, kind: &str, help: &str, labels: &str, value: f64) {
        self.head(name, kind, help);
        self.value(name, labels, value);
    }

    /// One value of each stick; none where it is not known.
    fn sticks(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        stats: &FleetStats,
        value: impl Fn(&StickStats) -> Option<f64>,
    ) {
        self.head(name, kind, help);
        for stick in &stats.sticks {
            if let Some(value) = value(stick) {
                self.value(name, &labels(stick), value);
            }
        }
    }

    fn histogram(&mut self, name: &str, labels: &str, times: &Latency) {
        for end in BUCKETS_S {
            let count = times.count_up_to(Duration::from_secs_f64(end));
            let _ = writeln!(self.0, "ncs2_{name}_bucket{{{labels},le=\"{end}\"}} {count}");
        }
        let count = times.count();
        let _ = writeln!(self.0, "ncs2_{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        // The histogram keeps no sum; its mean is good to three digits.
        let _ = writeln!(self.0, "ncs2_{name}_sum{{{labels}}} {}", times.mean().as_secs_f64() * count as f64);
        let _ = writeln!(self.0, "ncs2_{name}_count{{{labels}}} {count}");
    }
}

/// Device strings come from outside: no control byte, quote or backslash of theirs reaches the format.
fn escape(text: &str) -> String {
    one_line(text).replace('\\', "\\\\").replace('"', "\\\"")
}

fn labels(stick: &StickStats) -> String {
    format!("stick=\"{}\",simulated=\"{}\"", escape(stick.id.as_str()), stick.simulated.is_some())
}

/// The whole page. `fps` is for each stick.
fn render(stats: &FleetStats, fps: &[f64]) -> String {
    let simulated = stats.sticks.iter().any(|s| s.simulated.is_some());
    let all = format!("simulated=\"{simulated}\"");
    let mut t = Text(String::with_capacity(8 << 10));
    let about = format!("{all},version=\"{}\"", escape(env!("CARGO_PKG_VERSION")));
    t.fleet("info", "gauge", "Always 1; the version is in the label.", &about, 1.0);
    t.fleet("submitted_total", "counter", "Requests submitted.", &all, stats.submitted as f64);
    t.fleet("completed_total", "counter", "Requests answered.", &all, stats.completed as f64);
    t.fleet("failed_total", "counter", "Requests that ended in an error.", &all, stats.failed as f64);
    t.fleet("retried_total", "counter", "Attempts after a failed one.", &all, stats.retried as f64);
    t.fleet(
        "retries_refused_total",
        "counter",
        "Attempts that the retry budget refused.",
        &all,
        stats.retries_refused as f64,
    );
    t.fleet("fallback_total", "counter", "Requests that no stick answered.", &all, stats.fallback as f64);
    t.fleet("queued", "gauge", "Requests that wait for a stick.", &all, stats.queued as f64);

    t.sticks("stick_ready", "gauge", "1 while the stick takes jobs.", stats, |s| {
        Some(f64::from(u8::from(s.state == StickState::Ready)))
    });
    t.head("stick_fps", "gauge", "Inferences a second since the reading before, over a second or more.");
    for (stick, fps) in stats.sticks.iter().zip(fps) {
        t.value("stick_fps", &labels(stick), *fps);
    }
    type Counter = (&'static str, &'static str, fn(&StickStats) -> f64);
    let counters: [Counter; 4] = [
        ("stick_completed_total", "Inferences answered by the stick.", |s| s.completed as f64),
        ("stick_failed_total", "Inferences that ended in an error on the stick.", |s| s.failed as f64),
        ("stick_resets_total", "Times the stick was reset or reconnected.", |s| f64::from(s.resets)),
        ("stick_busy_seconds_total", "Time with an inference in flight, an estimate of work.", |s| {
            s.busy.as_secs_f64()
        }),
    ];
    for (name, help, value) in counters {
        t.sticks(name, "counter", help, stats, |s| Some(value(s)));
    }
    t.sticks("stick_in_flight", "gauge", "Inferences in flight.", stats, |s| Some(f64::from(s.in_flight)));
    t.sticks("stick_temperature_celsius", "gauge", "Temperature when last asked.", stats, |s| {
        s.temperature_c.map(f64::from)
    });
    t.sticks("stick_throttle_level", "gauge", "Throttle level when last asked: 0, 1 or 2.", stats, |s| {
        s.throttle_level.map(f64::from)
    });
    t.sticks("stick_memory_used_bytes", "gauge", "Memory in use on the stick when last asked.", stats, |s| {
        s.used_memory_bytes.map(f64::from)
    });
    t.sticks("pool_bytes", "gauge", "Host memory held for inputs and outputs.", stats, |s| {
        Some((s.host_pool.in_use_bytes + s.host_pool.idle_bytes) as f64)
    });
    t.sticks("pool_high_water_bytes", "gauge", "Most host memory held so far.", stats, |s| {
        Some(s.host_pool.high_water_bytes as f64)
    });
    t.sticks("pool_hits_total", "counter", "Leases of host memory from kept buffers.", stats, |s| {
        Some(s.host_pool.hits as f64)
    });
    t.sticks("pool_misses_total", "counter", "Leases of host memory that allocated.", stats, |s| {
        Some(s.host_pool.misses as f64)
    });

    t.sticks("stick_resting", "gauge", "1 while the stick rests because of heat.", stats, |s| {
        s.sched.as_ref().map(|s| f64::from(u8::from(s.resting)))
    });
    t.sticks("stick_depth", "gauge", "Inferences to keep in flight, most of its graphs.", stats, |s| {
        s.sched.as_ref()?.graphs.iter().map(|g| f64::from(g.depth)).reduce(f64::max)
    });
    t.sticks("cache_hits_total", "counter", "Requests that found their graph on the stick.", stats, |s| {
        s.sched.as_ref().map(|s| s.cache.hits as f64)
    });
    t.sticks("cache_misses_total", "counter", "Requests that had to load their graph.", stats, |s| {
        s.sched.as_ref().map(|s| s.cache.misses as f64)
    });
    t.sticks("cache_evictions_total", "counter", "Graphs thrown out to make room.", stats, |s| {
        s.sched.as_ref().map(|s| s.cache.evictions as f64)
    });
    t.sticks("cache_used_bytes", "gauge", "What the graphs on the stick take.", stats, |s| {
        s.sched.as_ref().map(|s| s.cache.used_bytes as f64)
    });

    t.head("latency_seconds", "histogram", "From submission to answer.");
    for stick in &stats.sticks {
        t.histogram("latency_seconds", &labels(stick), &stick.latency);
    }
    t.head(
        "stage_seconds",
        "histogram",
        "The six stages of a request; execute is an estimate on real sticks.",
    );
    for (name, times) in StageTimes::NAMES.iter().zip(&stats.stages) {
        t.histogram("stage_seconds", &format!("stage=\"{name}\",{all}"), times);
    }
    t.0
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn labels_cannot_be_broken_out_of() {
        assert_eq!(escape("a\"} 1\nx\\\x1b[31m"), "a\\\"} 1 x\\\\ [31m");
    }
}
