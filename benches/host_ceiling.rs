//! The host ceiling without USB: what driver, runtime and a virtual stick that computes next to nothing cost together.
//!
//! `cargo bench --bench host_ceiling` prints, for two sizes, both orderings and depths 1, 4 and 8, pinned to one CPU and
//! not: inferences per second, CPU of the whole process (the virtual stick's too), sleeps and latency as the caller sees
//! it. With `-- --syscalls` it runs itself under `strace` and prints system calls per inference instead; with `-- --accounting`
//! what recording the stage times costs. An argument that is part of a row's name (`pipelined/4`) runs only those rows.

#[path = "host_ceiling/meter.rs"]
mod meter;

use std::collections::VecDeque;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use meter::Meter;
use ncs2::Fleet;
use ncs2::blob::Blob;
use ncs2::runtime::{FleetConfig, LoadOptions, SubmitOptions};
use ncs2::stats::{Latency, StageTimes};
use ncs2::stick::Ordering;
use ncs2_device::{Engine, Rack, RackOptions, Timing};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

const TITLE: &str = "host ceiling without USB (simulated: hash engine, zero timing, in-process pipe)";
const WARM_UP: u64 = 1_000;
const TIME: Duration = Duration::from_millis(700);

#[derive(Clone)]
struct Row {
    model: &'static str,
    ordering: Ordering,
    depth: u32,
    pinned: bool,
}

impl Row {
    fn name(&self) -> String {
        let place = if self.pinned { "pinned" } else { "free" };
        format!("{}/{}/{}/{place}", self.model, format!("{:?}", self.ordering).to_lowercase(), self.depth)
    }
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for pinned in [true, false] {
        for model in ["squeezenet1_1_u8_s1", "mlp_fp16_s1"] {
            for ordering in [Ordering::Vendor, Ordering::Pipelined] {
                for depth in [1, 4, 8] {
                    rows.push(Row { model, ordering, depth, pinned });
                }
            }
        }
    }
    rows
}

/// A fleet of one stick that computes nothing, and requests in a window.
struct Bench {
    // Dropped in this order: the fleet before the sticks that it talks to.
    flying: VecDeque<(ncs2::runtime::Ticket, Instant)>,
    graph: ncs2::Graph,
    _fleet: Fleet,
    _rack: Rack,
    window: usize,
    latencies: Vec<Duration>,
}

impl Bench {
    fn new(row: &Row) -> Self {
        let options = RackOptions { engine: Engine::Hash, timing: Timing::Zero, ..RackOptions::default() };
        let rack = Rack::start(options).expect("a virtual stick starts");
        let config = FleetConfig { ordering: row.ordering, ..FleetConfig::default() };
        let builder = rack.ports().into_iter().fold(Fleet::builder().config(config), |b, p| b.port(p));
        let fleet = builder.open().expect("the fleet opens");
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
        let blob = Blob::open(models.join(format!("{}.blob", row.model))).expect("a committed blob");
        let options = LoadOptions { depth: row.depth, ..LoadOptions::default() };
        let graph = fleet.load(&blob, options).expect("the graph loads");
        // One is the sync case; else as many wait at the host as are on the stick.
        let window = if row.depth == 1 { 1 } else { 2 * row.depth as usize };
        let flying = VecDeque::with_capacity(window + 1);
        Bench { flying, graph, _fleet: fleet, _rack: rack, window, latencies: Vec::with_capacity(1 << 20) }
    }

    fn run(&mut self, count: u64) {
        for _ in 0..count {
            let begun = Instant::now();
            let mut lease = self.graph.input().expect("memory");
            // As a caller that lays its tensor straight into the lease; the bytes themselves do not matter here.
            lease.overwrite()[0] = 1;
            let ticket = self.graph.submit(lease, SubmitOptions::default()).expect("room");
            self.flying.push_back((ticket, begun));
            while self.flying.len() >= self.window {
                let (ticket, begun) = self.flying.pop_front().expect("not empty");
                drop(ticket.wait().expect("an answer"));
                if self.latencies.len() < self.latencies.capacity() {
                    self.latencies.push(begun.elapsed());
                }
            }
        }
    }

    fn quantile_us(&mut self, q: f64) -> f64 {
        self.latencies.sort_unstable();
        let at = ((self.latencies.len() - 1) as f64 * q) as usize;
        self.latencies[at].as_secs_f64() * 1e6
    }
}

fn measure(row: &Row) -> f64 {
    let mut bench = Bench::new(row);
    bench.run(WARM_UP);
    bench.latencies.clear();
    let before = Meter::now();
    let mut count = 0;
    while before.at.elapsed() < TIME {
        bench.run(100);
        count += 100;
    }
    let used = Meter::now().since(&before, count);
    println!(
        "{:42} {:8.0} {:8.1} {:8.1} {:8.2} {:8.2} {:9.1} {:9.1}",
        row.name(),
        used.per_second,
        used.cpu_us,
        used.system_us,
        used.sleeps,
        used.preempted,
        bench.quantile_us(0.5),
        bench.quantile_us(0.99),
    );
    used.cpu_us
}

/// Runs one row `count` times, for a tracer.
fn fixed(row: &Row, count: u64) {
    let mut bench = Bench::new(row);
    bench.run(count);
}

/// System calls of `long` inferences minus those of `short`: start and end cancel out.
fn count_system_calls(row: &Row) {
    let count = |n: u64| -> Option<std::collections::BTreeMap<String, i64>> {
        let me = std::env::current_exe().ok()?;
        let out = Command::new("strace")
            .args(["-f", "-c", "-o", "/dev/stderr"])
            .arg(me)
            .args(["--fixed", &n.to_string(), &row.name()])
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        Some(text.lines().filter_map(strace_line).collect())
    };
    let (short, long) = (500, 1500);
    let (Some(few), Some(many)) = (count(short), count(long)) else {
        println!("{:42} not counted: strace does not run here", row.name());
        return;
    };
    let mut parts: Vec<(f64, String)> = many
        .into_iter()
        .map(|(call, n)| ((n - few.get(&call).unwrap_or(&0)) as f64 / (long - short) as f64, call))
        .filter(|(n, call)| *n >= 0.01 && call != "total")
        .collect();
    parts.sort_by(|a, b| b.0.total_cmp(&a.0));
    let sum: f64 = parts.iter().map(|p| p.0).sum();
    let list: Vec<String> = parts.iter().map(|(n, call)| format!("{call} {n:.2}")).collect();
    println!("{:42} {sum:8.2}   {}", row.name(), list.join(", "));
}

/// `% time  seconds  usecs/call  calls  [errors]  name`
fn strace_line(line: &str) -> Option<(String, i64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    fields.first()?.parse::<f64>().ok()?;
    Some((fields.last()?.to_string(), fields.get(3)?.parse().ok()?))
}

/// What the records of one inference cost: seven histograms and the times' arithmetic, as in the stick's thread.
fn accounting(per_inference_us: f64) {
    let mut total = Latency::new();
    let mut stages: [Latency; StageTimes::COUNT] = std::array::from_fn(|_| Latency::new());
    let count = 1_000_000u64;
    let begun = Instant::now();
    for n in 0..count {
        let times = std::hint::black_box(StageTimes {
            queue_ns: 1_000 + n % 9_000,
            upload_ns: 2_000 + n % 700,
            execute_ns: 9_000 + n % 5_000,
            download_ns: n % 1_000,
            ..StageTimes::default()
        });
        total.record(times.total());
        for (stage, ns) in stages.iter_mut().zip(times.as_array()) {
            stage.record(Duration::from_nanos(ns));
        }
    }
    let each_us = begun.elapsed().as_secs_f64() * 1e6 / count as f64;
    std::hint::black_box((total.count(), &stages));
    println!(
        "stage accounting: {each_us:.3} us of {per_inference_us:.1} us CPU per inference: {:.2} %",
        100.0 * each_us / per_inference_us
    );
}

fn pin(row: &Row, all: &CpuSet) {
    let mut one = CpuSet::new();
    let first = (0..CpuSet::MAX_CPU).find(|&n| all.is_set(n)).unwrap_or(0);
    one.set(first);
    // Threads that start later inherit it.
    sched_setaffinity(None, if row.pinned { &one } else { all }).expect("one's own affinity");
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let all = sched_getaffinity(None).expect("one's own affinity");
    if let [flag, count, name] = args.as_slice()
        && flag == "--fixed"
    {
        let row = rows().into_iter().find(|r| r.name() == *name).expect("a row of this name");
        pin(&row, &all);
        return fixed(&row, count.parse().expect("a number"));
    }
    let system_calls = args.iter().any(|a| a == "--syscalls");
    let wanted: Vec<&String> = args.iter().filter(|a| !a.starts_with("--")).collect();
    println!("{TITLE}");
    println!("{}", meter::machine());
    if system_calls {
        println!("{:42} {:>8}   each, per inference", "model/ordering/depth", "calls");
    } else {
        println!(
            "{:42} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9}",
            "model/ordering/depth", "inf/s", "CPU us", "sys us", "sleeps", "preempt", "p50 us", "p99 us"
        );
    }
    let mut least_us = f64::INFINITY;
    for row in rows() {
        if !wanted.is_empty() && !wanted.iter().any(|w| row.name().contains(w.as_str())) {
            continue;
        }
        pin(&row, &all);
        if system_calls {
            count_system_calls(&row);
            continue;
        }
        least_us = measure(&row).min(least_us);
    }
    if args.iter().any(|a| a == "--accounting") {
        accounting(least_us);
    }
}
