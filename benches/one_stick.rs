//! One stick at full speed: the figures that `host_ceiling` does not print. Every line is measured in this run, beside its goal.
//!
//! `cargo bench --bench one_stick [-- --models DIR] [NAME…]`: a NAME runs only the lines that it is a part of. All of it is
//! simulated; what has `model` timing takes the time that the profile gives, the rest is this machine's own.

#[path = "host_ceiling/meter.rs"]
#[allow(dead_code, reason = "shared with host_ceiling, which prints all of it")]
mod meter;

use std::collections::VecDeque;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use half::f16;
use meter::Meter;
use ncs2::blob::Blob;
use ncs2::convert::{Affine, f16_to_f32, f32_to_f16, u8_to_f16};
use ncs2::runtime::{FleetConfig, LoadOptions, SubmitOptions, Ticket};
use ncs2::stick::Ordering;
use ncs2::{Fleet, Graph};
use ncs2_device::face::{self, Address, Face, ServeOptions};
use ncs2_device::{Engine, Rack, RackOptions, Timing};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

const TITLE: &str = "one stick at full speed (simulated)";
const SMALL: &str = "squeezenet1_1_u8_s1";
/// A link as the figures name it: 60 µs for each transfer, 3.2 ms for each MiB, no wait for a boot.
const LINK: &str = "base = \"ncs2\"\n[link]\ntransfer_us = 60.0\nbytes_per_s = 327_680_000\n[boot]\nstart_ms = 0.0\nleave_ms = 0.0\n";

/// Where blobs lie, and what is to be measured.
struct Bench {
    models: PathBuf,
    wanted: Vec<String>,
    all: CpuSet,
    /// Profiles are files.
    folder: tempfile::TempDir,
}

/// Dropped in this order: the fleet before the sticks that it talks to.
struct Rig {
    graph: Graph,
    fleet: Fleet,
    rack: Option<Rack>,
    _server: Option<face::Server>,
}

impl Rig {
    /// As fast as answers come, `window` at a time.
    fn run(&self, window: usize, time: Duration) -> u64 {
        let mut flying: VecDeque<Ticket> = VecDeque::with_capacity(window + 1);
        let (begun, mut done) = (Instant::now(), 0);
        loop {
            let over = begun.elapsed() >= time;
            if !over {
                flying.push_back(self.submit());
            }
            while flying.len() >= window || over && !flying.is_empty() {
                let Some(ticket) = flying.pop_front() else { break };
                drop(ticket.wait().expect("an answer"));
                done += 1;
            }
            if over {
                return done;
            }
        }
    }

    fn submit(&self) -> Ticket {
        let mut lease = self.graph.input().expect("memory");
        lease.overwrite()[0] = 1;
        self.graph.submit(lease, SubmitOptions::default()).expect("room")
    }

    /// One after the other; sorted.
    fn one_by_one(&self, count: usize) -> Vec<Duration> {
        let mut times: Vec<Duration> = (0..count)
            .map(|_| {
                let begun = Instant::now();
                drop(self.submit().wait().expect("an answer"));
                begun.elapsed()
            })
            .collect();
        times.sort_unstable();
        times
    }
}

fn quantile(sorted: &[Duration], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e6
}

fn line(what: &str, measured: String, goal: &str) {
    println!("{what:58} {measured:42} {goal}");
}

fn rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|w| name.contains(w.as_str()))
    }

    fn blob(&self, name: &str) -> Option<Blob> {
        let path = self.models.join(format!("{name}.blob"));
        match Blob::open(&path) {
            Ok(blob) => Some(blob),
            Err(_) => {
                line(name, "not measured: no such blob in the models' folder".into(), "");
                None
            }
        }
    }

    fn pin(&self, pinned: bool) {
        let mut one = CpuSet::new();
        one.set((0..CpuSet::MAX_CPU).find(|&n| self.all.is_set(n)).unwrap_or(0));
        sched_setaffinity(None, if pinned { &one } else { &self.all }).expect("one's own affinity");
    }

    fn profile(&self, text: &str) -> String {
        let path = self.folder.path().join("bench.toml");
        std::fs::write(&path, text).expect("a temporary file");
        path.display().to_string()
    }

    fn rig(&self, blob: &Blob, options: RackOptions, ordering: Ordering, depth: u32) -> Rig {
        let rack = Rack::start(options).expect("virtual sticks start");
        let config = FleetConfig { ordering, ..FleetConfig::default() };
        let builder = rack.ports().into_iter().fold(Fleet::builder().config(config), |b, p| b.port(p));
        let fleet = builder.open().expect("the fleet opens");
        let graph = fleet.load(blob, LoadOptions { depth, ..LoadOptions::default() }).expect("loads");
        Rig { graph, fleet, rack: Some(rack), _server: None }
    }

    fn zero(&self, blob: &Blob, sticks: usize, ordering: Ordering, depth: u32) -> Rig {
        let options =
            RackOptions { sticks, engine: Engine::Hash, timing: Timing::Zero, ..RackOptions::default() };
        self.rig(blob, options, ordering, depth)
    }

    /// Rates count bytes read and written, so that a conversion to half the size is not flattered.
    fn conversions(&self) {
        self.pin(true);
        for (what, count) in [("1x3x224x224", 3 * 224 * 224), ("4 Mi numbers", 4 << 20)] {
            let (bytes, mut copied) = (vec![7u8; 4 * count], vec![0u8; 4 * count]);
            let (pixels, singles) = (vec![7u8; count], vec![0.7f32; count]);
            let (mut halves, mut wide) = (vec![f16::ZERO; count], vec![0f32; count]);
            let affine = Affine::mean_scale(123.7, 1.0 / 58.4);
            let rate = |moved: usize, work: &mut dyn FnMut()| {
                work();
                let mut best = f64::INFINITY;
                for _ in 0..20 {
                    let begun = Instant::now();
                    work();
                    best = best.min(begun.elapsed().as_secs_f64());
                }
                moved as f64 / best / 1e9
            };
            let memcpy = rate(8 * count, &mut || black_box(&mut copied).copy_from_slice(black_box(&bytes)));
            let ways = [
                ("f32 to f16, mean and scale", {
                    rate(6 * count, &mut || f32_to_f16(black_box(&singles), black_box(&mut halves), affine))
                }),
                ("u8 to f16, mean and scale", {
                    rate(3 * count, &mut || u8_to_f16(black_box(&pixels), black_box(&mut halves), affine))
                }),
                ("f16 to f32", rate(6 * count, &mut || f16_to_f32(black_box(&halves), black_box(&mut wide)))),
            ];
            for (way, found) in ways {
                let measured =
                    format!("{found:.1} GB/s of {memcpy:.1}: {:.0} % of memcpy", 100.0 * found / memcpy);
                line(&format!("{way}, {what}"), measured, "60 %");
            }
        }
    }

    fn socket_pair(&self) {
        let Some(blob) = self.blob(SMALL) else { return };
        for (pinned, place) in [(false, "not pinned"), (true, "pinned to one CPU")] {
            self.pin(pinned);
            let path = self.folder.path().join("sticks.sock");
            let options = ServeOptions {
                faces: vec![Face::Socket(Address::Unix(path.clone()))],
                engine: Engine::Hash,
                timing: Timing::Zero,
                ..ServeOptions::default()
            };
            let server = face::serve(options).expect("a server");
            let config = FleetConfig { ordering: Ordering::Pipelined, ..FleetConfig::default() };
            let ports = face::ports(&path).expect("its sticks");
            let fleet = ports.into_iter().fold(Fleet::builder().config(config), |b, p| b.port(p)).open();
            let fleet = fleet.expect("the fleet opens");
            let graph = fleet.load(&blob, LoadOptions { depth: 8, ..LoadOptions::default() }).expect("loads");
            let rig = Rig { graph, fleet, rack: None, _server: Some(server) };
            rig.run(16, Duration::from_millis(200));
            let before = Meter::now();
            let done = rig.run(16, Duration::from_secs(1));
            let used = Meter::now().since(&before, done);
            let measured = format!("{:.0}/s, {:.1} us CPU each", used.per_second, used.cpu_us);
            line(&format!("socket: 150 KB input, pipelined, depth 8, {place}"), measured, "18 000/s");
        }
    }

    fn three_sticks(&self) {
        let Some(blob) = self.blob(SMALL) else { return };
        self.pin(false);
        for sticks in [1, 3] {
            let rig = self.zero(&blob, sticks, Ordering::Pipelined, 8);
            rig.run(16 * sticks, Duration::from_millis(200));
            let before = Meter::now();
            let done = rig.run(16 * sticks, Duration::from_secs(1));
            let used = Meter::now().since(&before, done);
            let measured = format!("{:.0}/s, {:.1} us CPU each", used.per_second, used.cpu_us);
            line(
                &format!("{sticks} sticks: 150 KB input, pipelined, not pinned"),
                measured,
                if sticks == 3 { "30 000/s" } else { "" },
            );
        }
    }

    fn memory(&self) {
        let Some(blob) = self.blob(SMALL) else { return };
        self.pin(false);
        // The first one pays for what is the process's.
        drop(self.zero(&blob, 1, Ordering::Pipelined, 4));
        let before = rss_bytes();
        let sticks = 8;
        let rig = self.zero(&blob, sticks, Ordering::Pipelined, 4);
        rig.run(64, Duration::from_millis(300));
        let stats = rig.fleet.stats();
        let tensors: usize =
            stats.sticks.iter().map(|s| s.host_pool.in_use_bytes + s.host_pool.idle_bytes).sum();
        let each = rss_bytes().saturating_sub(before).saturating_sub(tensors as u64) as f64 / sticks as f64;
        let measured = format!("{:.1} MB each of {sticks}, virtual stick included", each / 1e6);
        line("RSS beside tensors", measured, "8 MB");
    }

    fn waiting_callers(&self) {
        let Some(blob) = self.blob(SMALL) else { return };
        for ordering in [Ordering::Pipelined, Ordering::Vendor] {
            let name = format!("{ordering:?}").to_lowercase();
            for (pinned, place) in [(true, "pinned"), (false, "not pinned")] {
                self.pin(pinned);
                let rig = self.zero(&blob, 1, ordering, 1);
                rig.one_by_one(500);
                let times = rig.one_by_one(10_000);
                let goal = match (ordering, pinned) {
                    (Ordering::Pipelined, true) => "p50 30, p99 100",
                    (_, true) => "p50 60",
                    _ => "",
                };
                let measured =
                    format!("p50 {:.1} us, p99 {:.1} us", quantile(&times, 0.5), quantile(&times, 0.99));
                line(&format!("sync, {name}, {place}"), measured, goal);
            }
        }
        self.pin(false);
        let rig = self.zero(&blob, 1, Ordering::Pipelined, 4);
        rig.one_by_one(500);
        let stop = Arc::new(AtomicBool::new(false));
        let loops: Vec<_> = (0..2)
            .map(|_| {
                let stop = stop.clone();
                std::thread::spawn(move || {
                    while !stop.load(Relaxed) {
                        std::hint::spin_loop();
                    }
                })
            })
            .collect();
        let times = rig.one_by_one(3_000);
        stop.store(true, Relaxed);
        loops.into_iter().for_each(|l| l.join().expect("a loop ends"));
        let measured = format!("p50 {:.1} us, p99 {:.1} us", quantile(&times, 0.5), quantile(&times, 0.99));
        line("sync, pipelined, beside two busy loops", measured, "printed");
        self.poisson(&rig);
    }

    /// Requests at random times, at 80 % of what the stick was just seen to do; latency counts from the intended time.
    fn poisson(&self, rig: &Rig) {
        let window = 8;
        rig.run(window, Duration::from_millis(200));
        let (begun, done) = (Instant::now(), rig.run(window, Duration::from_millis(500)));
        let capacity = done as f64 / begun.elapsed().as_secs_f64();
        let mean = Duration::from_secs_f64(1.0 / (0.8 * capacity));
        let (to, from) = crossbeam_channel::unbounded::<Instant>();
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        let (begun, mut at) = (Instant::now(), Duration::ZERO);
        let mut sent = 0u64;
        while begun.elapsed() < Duration::from_secs(1) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = ((state >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
            at += mean.mul_f64(-uniform.ln());
            while begun.elapsed() < at {
                std::thread::yield_now();
            }
            let (to, due) = (to.clone(), begun + at);
            rig.submit().then(move |outcome| {
                drop(outcome.expect("an answer"));
                // The bench listens until all have come.
                let _ = to.send(due + due.elapsed());
                let _ = to.send(due);
            });
            sent += 1;
        }
        let mut times: Vec<Duration> = (0..sent)
            .map(|_| {
                let (came, due) = (from.recv().expect("an answer"), from.recv().expect("its time"));
                came - due
            })
            .collect();
        times.sort_unstable();
        let measured = format!("p50 {:.1} us, p99 {:.1} us", quantile(&times, 0.5), quantile(&times, 0.99));
        line(&format!("Poisson load, 80 % of {capacity:.0}/s, pipelined"), measured, "printed");
    }

    fn depth_gain(&self) {
        let Some(blob) = self.blob("squeezenet1_1_u8_s2") else { return };
        self.pin(false);
        for (ordering, goal) in [(Ordering::Pipelined, "1.8"), (Ordering::Vendor, "")] {
            let [one, four] = [1u32, 4].map(|depth| {
                let options = RackOptions {
                    profile: self.profile(LINK),
                    engine: Engine::Hash,
                    timing: Timing::Model,
                    ..RackOptions::default()
                };
                let rig = self.rig(&blob, options, ordering, depth);
                // No more waits at the host than what is on the stick: depth is what is measured.
                rig.run(depth as usize, Duration::from_millis(300));
                let (begun, done) = (Instant::now(), rig.run(depth as usize, Duration::from_secs(3)));
                done as f64 / begun.elapsed().as_secs_f64()
            });
            let measured = format!("{one:.1}/s to {four:.1}/s: {:.2} times", four / one);
            line(&format!("depth 1 to 4, 60 us link, {ordering:?}, model").to_lowercase(), measured, goal);
        }
    }

    fn busy(&self) {
        let Some(blob) = self.blob("resnet18_u8_s1") else { return };
        self.pin(false);
        for depth in 1..=4 {
            let options =
                RackOptions { engine: Engine::Hash, timing: Timing::Model, ..RackOptions::default() };
            let rig = self.rig(&blob, options, Ordering::Pipelined, depth);
            rig.run(depth as usize, Duration::from_millis(300));
            let stats = || rig.rack.as_ref().expect("a rack").stats().remove(0).busy;
            let (begun, before) = (Instant::now(), stats());
            let done = rig.run(depth as usize, Duration::from_secs(3));
            let share = (stats() - before).as_secs_f64() / begun.elapsed().as_secs_f64();
            let measured = format!("{:.1} % busy, {done} done", 100.0 * share);
            line(&format!("resnet18, model, depth {depth}"), measured, if depth >= 3 { "97 %" } else { "" });
        }
    }

    fn loads(&self) {
        let Some(blob) = self.blob(SMALL) else { return };
        self.pin(false);
        let rig = self.zero(&blob, 1, Ordering::Pipelined, 4);
        let path = self.models.join(format!("{SMALL}.blob"));
        let depth = LoadOptions { depth: 4, ..LoadOptions::default() };
        let time = |load: &dyn Fn() -> Graph| {
            drop(load());
            let mut times: Vec<Duration> = (0..1_000)
                .map(|_| {
                    let begun = Instant::now();
                    drop(load());
                    begun.elapsed()
                })
                .collect();
            times.sort_unstable();
            format!("p50 {:.1} us, p99 {:.1} us", quantile(&times, 0.5), quantile(&times, 0.99))
        };
        line(
            "load of a graph that is on the stick",
            time(&|| rig.fleet.load(&blob, depth.clone()).expect("a hit")),
            "100 us",
        );
        line(
            "the same by its file's name",
            time(&|| rig.fleet.load_file(&path, depth.clone()).expect("a hit")),
            "100 us",
        );
        let options = RackOptions {
            profile: self.profile(LINK),
            engine: Engine::Hash,
            timing: Timing::Model,
            ..RackOptions::default()
        };
        let begun = Instant::now();
        let rig = self.rig(&blob, options, Ordering::Vendor, 4);
        let loaded = begun.elapsed();
        drop(rig.submit().wait().expect("an answer"));
        let first = begun.elapsed();
        let measured = format!(
            "{:.1} ms, of it open and load {:.1} ms",
            first.as_secs_f64() * 1e3,
            loaded.as_secs_f64() * 1e3
        );
        line("from link up to the first result, load included, model", measured, "150 ms");
    }
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let (mut models, mut wanted) =
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models"), Vec::new());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--models" => models = args.next().expect("--models DIR").into(),
            name => wanted.push(name.to_owned()),
        }
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let all = sched_getaffinity(None).expect("one's own affinity");
    let bench = Bench { models, wanted, all, folder };
    println!("{TITLE}");
    println!("{}", meter::machine());
    println!("{:58} {:42} goal", "figure", "measured");
    type Part = (&'static str, fn(&Bench));
    let parts: [Part; 8] = [
        ("convert", Bench::conversions),
        ("socket", Bench::socket_pair),
        ("sticks", Bench::three_sticks),
        ("memory", Bench::memory),
        ("sync", Bench::waiting_callers),
        ("depth", Bench::depth_gain),
        ("busy", Bench::busy),
        ("load", Bench::loads),
    ];
    for (name, part) in parts {
        if bench.wants(name) {
            part(&bench);
        }
    }
}
