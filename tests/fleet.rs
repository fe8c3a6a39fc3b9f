//! The fleet on virtual sticks, through the public API only. Everything measured here is simulated.

#[path = "fleet/common.rs"]
mod common;
#[path = "fleet/fallback.rs"]
mod fallback;
#[path = "fleet/faults.rs"]
mod faults;
#[path = "fleet/files.rs"]
mod files;
#[path = "fleet/process.rs"]
mod process;
#[path = "fleet/refusals.rs"]
mod refusals;
#[path = "fleet/socket.rs"]
mod socket;
#[path = "fleet/speed.rs"]
mod speed;

use std::collections::{HashSet, VecDeque};

use common::{LONG, Rng, blob, difference, fleet, hash_of, rack, reference_input, unique_input};
use ncs2::Graph;
use ncs2::runtime::{FleetConfig, LoadOptions, StickState, SubmitOptions};
use ncs2::sched::Policy;
use ncs2_device::Engine;

#[test]
fn three_sticks_compute_what_the_reference_says() {
    let rack = rack(3, Engine::Execute);
    let turns = FleetConfig { policy: Policy::RoundRobin, ..FleetConfig::default() };
    let fleet = common::fleet_with(&rack, turns);
    for name in ["tiny_u8_s1", "tiny_fp16_s2", "mlp_fp16_s1", "squeezenet1_1_u8_s1", "ssd_head_u8_s1"] {
        let blob = blob(name);
        let graph = fleet.load(&blob, LoadOptions::default()).expect(name);
        let input = reference_input(name, &blob);
        let tickets: Vec<_> = (0..3)
            .map(|_| {
                let mut lease = graph.input().expect("memory");
                lease.as_mut_slice().copy_from_slice(&input);
                graph.submit(lease, SubmitOptions::default()).expect("a queue")
            })
            .collect();
        let mut sticks = HashSet::new();
        for mut ticket in tickets {
            let output = ticket.wait_timeout(LONG).expect(name).expect("an answer in time");
            let off = difference(name, &blob, |i| output.tensor(i).to_vec());
            assert!(off <= 0.01, "{name} on {}: {off} of the largest value", output.stick());
            sticks.insert(output.stick().clone());
        }
        assert_eq!(sticks.len(), 3, "{name}: round-robin over three idle sticks");
    }
    fleet.close(LONG).expect("closes");
}

/// Keeps `window` requests with inputs of their own in flight and checks each answer against its own input.
fn hammer(graph: &Graph, count: u64, window: usize, seed: u64) {
    let mut rng = Rng(seed);
    let mut flying = VecDeque::new();
    let check = |(ticket, input): (ncs2::runtime::Ticket, Vec<u8>)| {
        let output = ticket.wait().expect("an answer");
        assert!(output.bytes() == hash_of(graph.blob(), &input), "another request's answer (seed {seed})");
    };
    for _ in 0..count {
        let input = unique_input(graph.blob(), rng.next());
        let mut lease = graph.input().expect("memory");
        lease.copy_from(&input).expect("the right size");
        flying.push_back((graph.submit(lease, SubmitOptions::default()).expect("a queue"), input));
        if flying.len() >= window {
            flying.pop_front().map(check);
        }
        // Sometimes the latest first: answers wait for their callers, in any order.
        if rng.below(8) == 0 {
            flying.pop_back().map(check);
        }
    }
    flying.into_iter().for_each(check);
}

#[test]
fn each_answer_belongs_to_its_own_input() {
    for (sticks, depth, instances) in [(1, 1, 1), (1, 2, 2), (2, 4, 1), (3, 3, 2), (4, 8, 1), (1, 8, 4)] {
        let rack = rack(sticks, Engine::Hash);
        let fleet = fleet(&rack);
        let options = LoadOptions { depth, instances, ..LoadOptions::default() };
        let graph = fleet.load(&blob("tiny_u8_s1"), options).expect("loads");
        hammer(&graph, 300, 2 * sticks * (depth * instances) as usize, u64::from(depth));
        let stats = fleet.stats();
        assert_eq!((stats.submitted, stats.completed, stats.failed), (300, 300, 0));
        assert_eq!(stats.latency.count(), 300);
        assert!(stats.sticks.iter().all(|s| s.in_flight == 0 && s.completed > 0), "{sticks} sticks");
        fleet.close(LONG).expect("closes");
        assert_clean(&rack);
    }
}

#[test]
fn several_threads_and_graphs_at_once() {
    for ordering in [ncs2::stick::Ordering::Vendor, ncs2::stick::Ordering::Pipelined] {
        let rack = rack(2, Engine::Hash);
        let config = FleetConfig { ordering, ..Default::default() };
        let fleet = common::fleet_with(&rack, config);
        let small = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
        let large = fleet.load(&blob("squeezenet1_1_u8_s1"), LoadOptions::default()).expect("loads");
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (small, large) = (&small, &large);
                scope.spawn(move || hammer(small, 200, 5, seed));
                scope.spawn(move || hammer(large, 50, 3, 100 + seed));
            }
        });
        assert_eq!(fleet.stats().completed, 1000);
        fleet.close(LONG).expect("closes");
        assert_clean(&rack);
    }
}

/// The virtual sticks saw nothing that the protocol forbids.
fn assert_clean(rack: &ncs2_device::Rack) {
    let sticks = (0..).map_while(|n| rack.stick(n));
    for (n, stick) in sticks.enumerate() {
        let found = stick.inspect(|s| format!("{:?}", s.violations()));
        assert_eq!(found, format!("{:?}", ncs2_device::Violations::default()), "stick {n}");
    }
}

#[test]
fn a_graph_is_shared_by_content_and_stays_until_its_room_is_wanted() {
    let rack = rack(2, Engine::Hash);
    let fleet = fleet(&rack);
    let used = || {
        fleet.refresh_telemetry(LONG).expect("sticks answer");
        fleet.stats().sticks[1].used_memory_bytes.expect("it was just asked")
    };
    let empty = used();
    let first = fleet.load(&blob("mlp_fp16_s1"), LoadOptions::default()).expect("loads");
    let loaded = used();
    assert!(loaded > empty);
    let second = fleet.load(&blob("mlp_fp16_s1"), LoadOptions::default()).expect("is there");
    assert_eq!(used(), loaded, "the same graph lies on the stick once");
    let other = LoadOptions { depth: 2, ..LoadOptions::default() };
    let third = fleet.load(&blob("mlp_fp16_s1"), other).expect("loads");
    assert!(used() > loaded, "another depth is another graph on the stick");
    drop((first, third));
    let input = vec![0; second.blob().graph().input_bytes];
    second.infer(&input).expect("the second handle keeps it");
    drop(second);
    let resident = used();
    assert!(resident > empty, "nobody needs its room");
    let uploads = || fleet.stats().sticks.iter().flat_map(|s| &s.sched).map(|s| s.cache.loads).sum::<u64>();
    let before = uploads();
    let again = fleet.load(&blob("mlp_fp16_s1"), LoadOptions::default()).expect("is there still");
    again.infer(&input).expect("runs");
    assert_eq!((used(), uploads()), (resident, before), "nothing was sent again");
    drop(again);
    fleet.evict_unused();
    // Unloading takes several round trips; each look is one more.
    assert!((0..1000).any(|_| used() == empty), "{} bytes remain", used() - empty);
    fleet.close(LONG).expect("closes");
    assert_clean(&rack);
}

#[test]
fn stage_times_add_up_to_the_latency() {
    let rack = rack(1, Engine::Hash);
    let fleet = fleet(&rack);
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    let input = unique_input(graph.blob(), 1);
    for _ in 0..20 {
        let begun = std::time::Instant::now();
        let output = graph.infer(&input).expect("an answer");
        assert!(output.latency() <= begun.elapsed());
        assert_eq!(output.latency(), output.times().total());
        assert!(output.times().upload_ns > 0 && output.stick().as_str() == "sim0");
    }
    let stats = fleet.stats();
    let stick = &stats.sticks[0];
    assert!(stick.busy > std::time::Duration::ZERO && stick.busy <= stats.elapsed);
    assert!(stick.depth_time >= stick.busy);
    assert_eq!((stick.state, stick.simulated.as_deref()), (StickState::Ready, Some("ncs2")));
    assert!(stick.capabilities.is_some() && stick.failure.is_none());
    fleet.close(LONG).expect("closes");
}

#[test]
fn marks_are_kept_for_whoever_collects_them() {
    let rack = rack(1, Engine::Hash);
    let fleet = fleet(&rack);
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    let send = || graph.submit(graph.input().expect("memory"), SubmitOptions::default()).expect("a queue");
    let ticket = send();
    fleet.mark(ticket.id(), "nobody collects");
    ticket.wait().expect("an answer");

    let collector = fleet.collect_marks(3).expect("the first");
    let second = fleet.collect_marks(3).expect_err("the ring is taken");
    assert_eq!(second.kind(), ncs2::ErrorKind::InUse, "{second}");
    let (first, second) = (send(), send());
    let ids = [first.id(), second.id()];
    fleet.mark(ids[0], "sent");
    fleet.mark(ids[1], "sent");
    first.wait().expect("an answer");
    fleet.mark(ids[0], "shown");
    let taken = collector.take();
    let seen: Vec<_> = taken.marks.iter().map(|m| (m.request, m.event.as_str())).collect();
    assert_eq!((seen, taken.dropped), (vec![(ids[0], "sent"), (ids[1], "sent"), (ids[0], "shown")], 0));
    assert!(taken.marks.is_sorted_by_key(|m| m.at) && taken.marks.iter().all(|m| m.at <= taken.now));
    (0..5).for_each(|_| fleet.mark(ids[1], "again"));
    assert_eq!((collector.take().dropped, collector.take().marks.len()), (2, 0), "three had room");
    drop(collector);
    fleet.collect_marks(1).expect("the ring is free again");
    drop(second);
    fleet.close(LONG).expect("closes");
}
