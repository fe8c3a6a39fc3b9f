//! Where we stand: inferences per second and CPU per inference with a virtual stick that costs next to nothing.
//!
//! `cargo test --release -p ncs2 --test fleet -- --ignored --nocapture speed`, pinned with `taskset -c 0` for the figure
//! of one CPU. It counts the whole process, so the virtual stick's CPU is in it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ncs2::runtime::{FleetConfig, LoadOptions, SubmitOptions};
use ncs2::stick::Ordering;
use ncs2_device::Engine;
use rustix::time::{ClockId, clock_gettime};

use super::common::{blob, fleet_with, rack};

fn cpu_time() -> Duration {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

#[test]
#[ignore = "a measurement, for --release"]
fn speed() {
    println!("simulated, hash engine, zero timing, in-process pipe: the host's ceiling without USB");
    for name in ["squeezenet1_1_u8_s1", "mlp_fp16_s1"] {
        for ordering in [Ordering::Vendor, Ordering::Pipelined] {
            for depth in [1, 4, 8] {
                run(name, ordering, depth);
            }
        }
    }
}

fn run(name: &str, ordering: Ordering, depth: u32) {
    let rack = rack(1, Engine::Hash);
    let fleet = fleet_with(&rack, FleetConfig { ordering, ..FleetConfig::default() });
    let blob = blob(name);
    let graph = fleet.load(&blob, LoadOptions { depth, ..LoadOptions::default() }).expect("loads");
    let mut flying = VecDeque::new();
    let window = if depth == 1 { 1 } else { 2 * depth as usize };
    let mut turn = |count: u64| {
        for _ in 0..count {
            let mut lease = graph.input().expect("memory");
            // As a caller that lays its tensor straight into the lease; the bytes themselves do not matter here.
            lease.overwrite()[0] = 1;
            flying.push_back(graph.submit(lease, SubmitOptions::default()).expect("a queue"));
            while flying.len() >= window {
                drop(flying.pop_front().expect("some").wait().expect("an answer"));
            }
        }
    };
    turn(500);
    let (wall, cpu) = (Instant::now(), cpu_time());
    let mut count = 0;
    while wall.elapsed() < Duration::from_secs(1) {
        turn(100);
        count += 100;
    }
    let (wall, cpu) = (wall.elapsed(), cpu_time() - cpu);
    let stats = fleet.stats();
    println!(
        "{name:22} {:7} bytes  {:10} depth {depth}  {:8.0} inferences/s  {:6.1} us CPU each  p50 {:?} p99 {:?}",
        blob.graph().input_bytes,
        format!("{ordering:?}"),
        count as f64 / wall.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / count as f64,
        stats.latency.quantile(0.5),
        stats.latency.quantile(0.99),
    );
}
