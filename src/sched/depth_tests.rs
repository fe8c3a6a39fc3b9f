//! The controller against a small model of a pipeline: upload, executors, download, each with noise.

use std::collections::BinaryHeap;

use super::*;

struct Rng(u64);

impl Rng {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as f64) / (1u64 << 31) as f64
    }
}

/// Times in seconds.
#[derive(Clone, Copy)]
struct Pipe {
    up: f64,
    work: f64,
    executors: usize,
    down: f64,
    noise: f64,
}

struct Sim {
    rng: Rng,
    now: f64,
    link_up: f64,
    exec: Vec<f64>,
    link_down: f64,
    /// (−end, −start) in nanoseconds, so that the earliest end is the largest.
    flying: BinaryHeap<(i64, i64)>,
}

impl Sim {
    fn new(seed: u64) -> Self {
        Sim {
            rng: Rng(seed),
            now: 0.0,
            link_up: 0.0,
            exec: vec![0.0; 4],
            link_down: 0.0,
            flying: BinaryHeap::new(),
        }
    }

    fn start(&mut self, p: &Pipe) {
        let mut around = |x: f64| x * (1.0 + p.noise * (2.0 * self.rng.unit() - 1.0));
        let (up, work, down) = (around(p.up), around(p.work), around(p.down));
        self.link_up = self.link_up.max(self.now) + up;
        let e = (0..p.executors).min_by(|a, b| self.exec[*a].total_cmp(&self.exec[*b])).expect("executors");
        self.exec[e] = self.exec[e].max(self.link_up) + work;
        self.link_down = self.link_down.max(self.exec[e]) + down;
        self.flying.push((-(self.link_down * 1e9) as i64, -(self.now * 1e9) as i64));
    }

    /// Runs until `end`, the depth from `control` or fixed; returns completions.
    fn run(&mut self, p: &Pipe, end: f64, control: &mut DepthControl, log: &mut Vec<(f64, u32)>) -> u64 {
        let mut done = 0;
        while self.now < end {
            while self.flying.len() < control.depth() as usize {
                self.start(p);
            }
            let full = self.flying.len() as u32 >= control.depth();
            let (end_ns, start_ns) = self.flying.pop().expect("in flight");
            self.now = -end_ns as f64 / 1e9;
            done += 1;
            let latency = Duration::from_nanos((start_ns - end_ns) as u64);
            if let Some(depth) = control.completed(Instant::from_nanos(-end_ns as u64), latency, full, true) {
                log.push((self.now, depth));
            }
        }
        done
    }
}

fn rate_at(p: &Pipe, depth: u32, seed: u64) -> f64 {
    let mut sim = Sim::new(seed);
    let jobs = 4000.0 * p.work.max(p.up).max(p.down);
    sim.run(p, jobs, &mut DepthControl::fixed(depth, 16), &mut Vec::new()) as f64 / jobs
}

const PIPES: [(&str, Pipe); 6] = [
    ("work only", Pipe { up: 0.0001, work: 0.02, executors: 1, down: 0.0001, noise: 0.0 }),
    ("two executors", Pipe { up: 0.001, work: 0.02, executors: 2, down: 0.0005, noise: 0.02 }),
    ("three executors", Pipe { up: 0.001, work: 0.02, executors: 3, down: 0.001, noise: 0.05 }),
    ("long link", Pipe { up: 0.004, work: 0.005, executors: 2, down: 0.003, noise: 0.05 }),
    ("link bound", Pipe { up: 0.010, work: 0.004, executors: 1, down: 0.001, noise: 0.1 }),
    ("noisy", Pipe { up: 0.002, work: 0.010, executors: 1, down: 0.001, noise: 0.3 }),
];

#[test]
fn comes_within_3_percent_of_the_grid_search() {
    let mut table = String::from("pipe             knee  best/s  found  rate/s  share  product\n");
    for (name, p) in PIPES {
        let grid: Vec<f64> = (1..=16).map(|d| rate_at(&p, d, 7)).collect();
        let best = grid.iter().copied().fold(0.0, f64::max);
        let knee = 1 + grid.iter().position(|r| *r >= 0.985 * best).expect("some");
        let mut control = DepthControl::new(16, None);
        let mut sim = Sim::new(11);
        let mut log = Vec::new();
        sim.run(&p, 100.0, &mut control, &mut log);
        assert!(control.is_at_rest(), "{name}");
        let found = control.depth();
        let share = grid[found as usize - 1] / best;
        table += &format!(
            "{name:<16} {knee:>4} {best:>7.1} {found:>6} {:>7.1} {:>5.1}% {:>7.1}\n",
            grid[found as usize - 1],
            100.0 * share,
            control.product().expect("measured")
        );
        assert!(share >= 0.97, "{table}");
        assert!(found as usize <= knee + 2, "no more than needed:\n{table}");
    }
    insta::assert_snapshot!(table);
}

/// (time, depth) of the changes, as text.
fn show(log: &[(f64, u32)]) -> String {
    log.iter().map(|(t, d)| format!("{t:.0}s→{d}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn traces_of_step_noise_and_throttle() {
    let base = Pipe { up: 0.002, work: 0.010, executors: 2, down: 0.001, noise: 0.05 };
    let step = Pipe { executors: 1, ..base };
    let noisy = Pipe { noise: 0.4, ..base };
    let half = Pipe { work: 0.020, ..base };
    let mut table = String::new();
    for (name, parts) in [
        ("steady", vec![(3600.0, base)]),
        ("step: an executor less after 600 s", vec![(600.0, base), (3600.0, step)]),
        ("noise 40 %", vec![(3600.0, noisy)]),
        ("throttle: half speed from 600 to 1800 s", vec![(600.0, base), (1800.0, half), (3600.0, base)]),
    ] {
        let (mut control, mut sim, mut log, mut done) =
            (DepthControl::new(16, None), Sim::new(3), Vec::new(), 0);
        for (end, pipe) in &parts {
            done += sim.run(pipe, *end, &mut control, &mut log);
        }
        let begin = log.iter().position(|(t, _)| *t > 60.0).unwrap_or(log.len());
        table +=
            &format!("{name}\n  first minute: {}\n  then: {}\n", show(&log[..begin]), show(&log[begin..]));
        // At most one change a minute at rest: no window of ten minutes holds more than ten.
        for (t, _) in &log[begin..] {
            let in_ten = log[begin..].iter().filter(|(u, _)| (*t..*t + 600.0).contains(u)).count();
            assert!(in_ten <= 10, "{table}");
        }
        assert!(done > 0);
    }
    insta::assert_snapshot!(table);
}

#[test]
fn the_target_latency_limits_it() {
    let p = Pipe { up: 0.001, work: 0.020, executors: 3, down: 0.001, noise: 0.02 };
    let mut control = DepthControl::new(16, Some(Duration::from_millis(25)));
    Sim::new(5).run(&p, 300.0, &mut control, &mut Vec::new());
    assert!((2..=3).contains(&control.depth()), "{}", control.depth());
    let mut strict = DepthControl::new(16, Some(Duration::from_millis(1)));
    Sim::new(5).run(&p, 300.0, &mut strict, &mut Vec::new());
    assert_eq!(strict.depth(), 1, "never below 1");
}

#[test]
fn a_single_request_at_a_time_teaches_nothing() {
    let mut control = DepthControl::new(16, None);
    let mut now = Instant::ZERO;
    for _ in 0..10_000 {
        now += Duration::from_millis(20);
        control.completed(now, Duration::from_millis(5), false, true);
    }
    assert_eq!((control.depth(), control.changes()), (1, 0));
}

#[test]
fn a_stick_shared_from_the_start_gets_the_usual_depth() {
    let mut control = DepthControl::new(16, None);
    let mut now = Instant::ZERO;
    for _ in 0..200 {
        now += Duration::from_millis(20);
        control.completed(now, Duration::from_millis(40), true, false);
    }
    assert_eq!((control.depth(), control.changes()), (4, 1));
}
