//! Nothing remains of a fleet: buffers come back to their pools, descriptors and threads are gone after close.
//!
//! One test in a process of its own, since it counts what the process has.

#[path = "fleet/common.rs"]
#[allow(dead_code, reason = "shared with the tests of the fleet")]
mod common;

use std::path::Path;

use common::{LONG, blob, fleet_with, hash_of, rack, unique_input};
use ncs2::runtime::{FleetConfig, LoadOptions, SubmitOptions};
use ncs2_device::Engine;

fn entries(folder: &str) -> usize {
    std::fs::read_dir(Path::new(folder)).expect("procfs").count()
}

/// Open descriptors and threads of this process.
fn held() -> (usize, usize) {
    (entries("/proc/self/fd"), entries("/proc/self/task"))
}

#[test]
fn nothing_remains_of_a_fleet() {
    // Blobs and the harness's own threads exist before and after.
    let (small, large) = (blob("tiny_u8_s1"), blob("squeezenet1_1_u8_s1"));
    let before = held();
    for round in 0..4u64 {
        let rack = rack(3, Engine::Hash);
        let config = FleetConfig { retries: 100, ..FleetConfig::default() };
        let fleet = fleet_with(&rack, config);
        let graphs = [&small, &large].map(|b| fleet.load(b, LoadOptions::default()).expect("loads"));
        let mut tickets = Vec::new();
        for n in 0..60u64 {
            let graph = &graphs[n as usize % 2];
            let mut lease = graph.input().expect("memory");
            let input = unique_input(graph.blob(), n);
            lease.copy_from(&input).expect("fits");
            let ticket = graph.submit(lease, SubmitOptions::default()).expect("a queue");
            // Some callers go, and a stick or two with them.
            if n % 7 != 0 {
                tickets.push((ticket, hash_of(graph.blob(), &input)));
            }
            if round > 0 && n == 30 {
                rack.stick(0).expect("there").unplug();
                rack.stick(1).expect("there").crash();
            }
        }
        let mut outputs = Vec::new();
        for (ticket, expected) in tickets {
            let output = ticket.wait().expect("an answer");
            assert!(output.bytes() == expected);
            outputs.push(output);
        }
        let leased: usize = fleet.stats().sticks.iter().map(|s| s.host_pool.leases).sum();
        assert!(leased >= outputs.len(), "outputs are leases");
        drop(graphs);
        let other = fleet.clone();
        fleet.close(LONG).expect("closes");
        // Outputs outlive the fleet that gave them.
        assert!(outputs.iter().all(|o| !o.bytes().is_empty()));
        drop(outputs);
        for stick in other.stats().sticks {
            let pool = stick.host_pool;
            assert_eq!(
                (pool.leases, pool.in_use_bytes, pool.slack_bytes),
                (0, 0, 0),
                "round {round}: {}",
                stick.id
            );
            assert_eq!(pool.reserved_bytes, 0, "round {round}: {}", stick.id);
        }
        drop((other, rack));
        // A thread that was joined may stand in procfs for a moment longer.
        let mut after = held();
        for _ in 0..100_000 {
            if after == before {
                break;
            }
            std::thread::yield_now();
            after = held();
        }
        assert_eq!(after, before, "round {round}: descriptors and threads");
    }
}
