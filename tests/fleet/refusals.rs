//! Bad arguments, full queues, deadlines and dropped tickets: each has its defined error, and nothing is lost.

use std::time::Duration;

use ncs2::blob::Blob;
use ncs2::runtime::{FleetConfig, LoadOptions, SubmitOptions};
use ncs2::{ErrorKind, Fleet, Graph, StickId};
use ncs2_device::Engine;

use super::common::{LONG, blob, fleet, fleet_with, hash_of, rack, unique_input};

fn ticket(graph: &Graph, number: u64, options: SubmitOptions) -> ncs2::Result<ncs2::runtime::Ticket> {
    let mut lease = graph.input()?;
    lease.copy_from(&unique_input(graph.blob(), number))?;
    graph.submit(lease, options)
}

#[test]
fn no_stick_is_not_found() {
    let error = Fleet::builder().open().expect_err("no port");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("plug one in"), "{error}");
}

#[test]
fn a_stick_that_does_not_answer_is_named() {
    let rack = rack(2, Engine::Hash);
    rack.stick(0).expect("there").unplug();
    let fleet = fleet(&rack);
    let stats = fleet.stats();
    let failure = stats.sticks[0].failure.as_deref().expect("said why");
    assert!(failure.contains("not in its port"), "{failure}");
    fleet.close(LONG).expect("closes");
    rack.stick(1).expect("there").unplug();
    let builder = rack.ports().into_iter().fold(Fleet::builder(), |b, port| b.port(port));
    let error = builder.open().expect_err("no stick is left");
    assert_eq!((error.kind(), error.stick()), (ErrorKind::Unplugged, Some(&StickId::sim(0))));
}

#[test]
fn the_same_port_twice_is_refused() {
    let rack = rack(1, Engine::Hash);
    let ports = rack.ports().into_iter().chain(rack.ports());
    let error = ports.fold(Fleet::builder(), |b, p| b.port(p)).open().expect_err("twice");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn arguments_out_of_range_are_refused() {
    let rack = rack(1, Engine::Hash);
    let fleet = fleet(&rack);
    let blob = blob("tiny_u8_s1");
    for options in [
        LoadOptions { depth: 0, ..LoadOptions::default() },
        LoadOptions { depth: 17, ..LoadOptions::default() },
        LoadOptions { instances: 0, ..LoadOptions::default() },
        LoadOptions { instances: 5, ..LoadOptions::default() },
        LoadOptions { executors: 4, ..LoadOptions::default() },
    ] {
        let error = fleet.load(&blob, options).expect_err("out of range");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    let graph = fleet.load(&blob, LoadOptions::default()).expect("loads");
    for wrong in [0, 1, blob.graph().input_bytes - 1, blob.graph().input_bytes + 1] {
        let error = graph.infer(&vec![0; wrong]).expect_err("the wrong size");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let text = error.to_string();
        assert!(
            text.contains(&wrong.to_string()) && text.contains(&blob.graph().input_bytes.to_string()),
            "{text}"
        );
    }
    let other = fleet.load(&super::blob("mlp_fp16_s1"), LoadOptions::default()).expect("loads");
    let error =
        graph.submit(other.input().expect("memory"), SubmitOptions::default()).expect_err("another graph's");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let options = SubmitOptions { stick: Some(StickId::new("9-9")), ..SubmitOptions::default() };
    let error = ticket(&graph, 1, options).expect_err("no such stick");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("sim0"), "{error}");
    fleet.close(LONG).expect("closes");
}

#[test]
fn a_request_runs_where_it_is_told() {
    let rack = rack(3, Engine::Hash);
    let fleet = fleet(&rack);
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    for n in 0..30 {
        let stick = StickId::sim(n % 3);
        let options = SubmitOptions { stick: Some(stick.clone()), ..SubmitOptions::default() };
        assert_eq!(
            ticket(&graph, n as u64, options).expect("a queue").wait().expect("an answer").stick(),
            &stick
        );
    }
    fleet.close(LONG).expect("closes");
}

#[test]
fn an_input_that_was_not_written_is_zero() {
    let rack = rack(1, Engine::Hash);
    let fleet = fleet(&rack);
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    let zero = hash_of(graph.blob(), &vec![0; graph.blob().graph().input_bytes]);
    graph.infer(&unique_input(graph.blob(), 1)).expect("leaves its bytes in the pool");
    let lease = graph.input().expect("the same memory again");
    let answer = graph.submit(lease, SubmitOptions::default()).expect("a queue").wait().expect("an answer");
    assert!(answer.bytes() == zero);
    let mut lease = graph.input().expect("memory");
    assert!(lease.as_mut_slice().iter().all(|&b| b == 0));
    fleet.close(LONG).expect("closes");
}

#[test]
fn a_full_queue_hands_the_input_back() {
    let rack = rack(1, Engine::Hash);
    let config =
        FleetConfig { queue_limit: 3, wait_timeout: Duration::from_millis(20), ..FleetConfig::default() };
    let fleet = fleet_with(&rack, config);
    let options = LoadOptions { depth: 2, ..LoadOptions::default() };
    let graph = fleet.load(&blob("tiny_u8_s1"), options).expect("loads");
    let stick = rack.stick(0).expect("there");
    stick.hold();
    let mut tickets = Vec::new();
    let refused = loop {
        let mut lease = graph.input().expect("memory");
        lease.copy_from(&unique_input(graph.blob(), tickets.len() as u64)).expect("fits");
        match graph.try_submit(lease, SubmitOptions::default()) {
            Ok(ticket) => tickets.push(ticket),
            Err((error, lease)) => {
                assert_eq!(error.kind(), ErrorKind::QueueFull);
                break lease;
            }
        }
    };
    // Two on the stick, three in the queue.
    assert_eq!(tickets.len(), 5);
    let error = graph.submit(refused, SubmitOptions::default()).expect_err("still full");
    assert_eq!(error.kind(), ErrorKind::QueueFull);
    let options = SubmitOptions { deadline: Some(Duration::from_millis(1)), ..SubmitOptions::default() };
    let error = ticket(&graph, 7, options).expect_err("no room before its deadline");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    // A dropped ticket in the queue makes room.
    drop(tickets.pop());
    let last = ticket(&graph, 8, SubmitOptions::default()).expect("room for one");
    stick.resume();
    for (number, ticket) in tickets.into_iter().enumerate() {
        let expected = hash_of(graph.blob(), &unique_input(graph.blob(), number as u64));
        assert!(ticket.wait().expect("an answer").bytes() == expected);
    }
    assert!(last.wait().expect("an answer").bytes() == hash_of(graph.blob(), &unique_input(graph.blob(), 8)));
    fleet.close(LONG).expect("closes");
}

#[test]
fn a_dropped_ticket_costs_nobody_else_his_answer() {
    let rack = rack(1, Engine::Hash);
    let fleet = fleet(&rack);
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    rack.stick(0).expect("there").hold();
    let tickets: Vec<_> =
        (0..20).map(|n| ticket(&graph, n, SubmitOptions::default()).expect("a queue")).collect();
    let kept: Vec<_> = tickets.into_iter().enumerate().filter(|(n, _)| n % 3 == 1).collect();
    rack.stick(0).expect("there").resume();
    for (number, ticket) in kept {
        let expected = hash_of(graph.blob(), &unique_input(graph.blob(), number as u64));
        assert!(ticket.wait().expect("an answer").bytes() == expected);
    }
    let ran = rack.stats()[0].inferences;
    assert!(ran < 20, "{ran} of 20 ran, though 13 tickets were dropped before most were sent");
    fleet.close(LONG).expect("closes");
}

#[test]
fn a_deadline_ends_the_ticket_and_not_the_stick() {
    let rack = rack(1, Engine::Hash);
    let fleet = fleet(&rack);
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    let stick = rack.stick(0).expect("there");
    stick.hold();
    let soon = SubmitOptions { deadline: Some(Duration::from_millis(5)), ..SubmitOptions::default() };
    let late: Vec<_> = (0..12).map(|n| ticket(&graph, n, soon.clone()).expect("a queue")).collect();
    let mut patient = ticket(&graph, 99, SubmitOptions::default()).expect("a queue");
    for ticket in late {
        assert_eq!(ticket.wait().expect_err("held").kind(), ErrorKind::DeadlineExceeded);
    }
    assert!(patient.wait_timeout(Duration::ZERO).expect("no error").is_none(), "the stick holds it");
    stick.resume();
    let answer = patient.wait_timeout(LONG).expect("no error").expect("in time");
    assert!(answer.bytes() == hash_of(graph.blob(), &unique_input(graph.blob(), 99)));
    assert_eq!(patient.wait_timeout(LONG).expect_err("taken").kind(), ErrorKind::InvalidInput);
    let stats = fleet.stats();
    assert_eq!((stats.sticks[0].resets, stats.failed), (0, 12));
    fleet.close(LONG).expect("closes");
}

#[test]
fn memory_that_callers_keep_is_named_when_it_runs_out() {
    let rack = rack(1, Engine::Hash);
    let blob = blob("squeezenet1_1_u8_s1");
    let config = FleetConfig {
        pool_bytes: 8 * blob.graph().input_bytes,
        wait_timeout: Duration::from_millis(20),
        ..FleetConfig::default()
    };
    let fleet = fleet_with(&rack, config);
    let graph = fleet.load(&blob, LoadOptions::default()).expect("loads");
    let mut kept = Vec::new();
    let error = loop {
        match graph.input() {
            Ok(lease) => kept.push(lease),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert!(error.to_string().contains("host pool sim0"), "{error}");
    assert!(!kept.is_empty() && kept.len() <= 8);
    // What was reserved for outputs still serves a request.
    let lease = kept.pop().expect("one");
    graph.submit(lease, SubmitOptions::default()).expect("a queue").wait().expect("memory for the output");
    drop(kept);
    graph.input().expect("memory came back");
    fleet.close(LONG).expect("closes");
}

#[test]
fn a_blob_that_brings_code_is_refused_until_it_is_allowed() {
    let original = blob("tiny_fp16_s1");
    let mut bytes = original.bytes().to_vec();
    let stage = original.graph().stages.iter().find(|s| s.nce.is_none()).expect("a stage of the SHAVEs");
    // Its kind stands behind its length and before its end mark.
    for at in [stage.record.start + 4, stage.record.end - 8] {
        bytes[at..at + 4].copy_from_slice(&115_u32.to_le_bytes());
    }
    let custom = Blob::from_bytes("custom", &bytes).expect("a blob");
    let rack = rack(1, Engine::Hash);
    let fleet = fleet(&rack);
    for load in [
        fleet.load(&custom, LoadOptions::default()),
        fleet.load_batched(&[custom.clone()], LoadOptions::default()),
    ] {
        let error = load.err().expect("somebody's code");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let text = error.to_string();
        assert!(text.contains("custom: 1 of its stages") && text.contains("--allow-custom"), "{text}");
    }
    assert_eq!(rack.stats()[0].inferences, 0);
    fleet.close(LONG).expect("closes");

    let fleet = fleet_with(&rack, FleetConfig { allow_custom: true, ..FleetConfig::default() });
    let graph = fleet.load(&custom, LoadOptions::default()).expect("the user said so");
    let input = unique_input(&custom, 1);
    assert!(graph.infer(&input).expect("an answer").bytes() == hash_of(&custom, &input));
    fleet.close(LONG).expect("closes");
}

#[test]
fn a_graph_without_room_waits_for_nobody_and_takes_no_room_that_is_in_use() {
    let rack = rack(1, Engine::Hash);
    let fleet = fleet(&rack);
    // The profile's stick takes ten graphs; every depth makes another.
    let load = |depth| {
        let options = LoadOptions { depth, instances: 2, ..LoadOptions::default() };
        fleet.load(&blob("mlp_fp16_s1"), options)
    };
    let graphs: Vec<_> = (1..=5).map(|depth| load(depth).expect("has room")).collect();
    let stick = rack.stick(0).expect("there");
    stick.hold();
    let busy: Vec<_> =
        graphs.iter().map(|g| ticket(g, 7, SubmitOptions::default()).expect("a queue")).collect();
    // At most four are in flight on a stick's behalf per graph; all five graphs are in use.
    let error = load(6).expect_err("nothing may be evicted");
    assert_eq!((error.kind(), error.stick()), (ErrorKind::OutOfMemory, Some(&StickId::sim(0))), "{error}");
    assert!(error.to_string().contains("would have to go"), "{error}");
    stick.resume();
    let expected = hash_of(graphs[0].blob(), &unique_input(graphs[0].blob(), 7));
    for ticket in busy {
        assert!(ticket.wait().expect("an answer").bytes() == expected);
    }
    // Now the least recently used makes room, and comes back when it is asked for.
    let more: Vec<_> = (6..=9).map(|depth| load(depth).expect("room is made")).collect();
    for graph in graphs.iter().chain(&more) {
        let input = unique_input(graph.blob(), 8);
        assert!(graph.infer(&input).expect("wherever it lies").bytes() == hash_of(graph.blob(), &input));
    }
    let cache = fleet.stats().sticks[0].sched.clone().expect("it is open").cache;
    assert!(cache.evictions >= 4 && cache.graphs <= 10, "{cache:?}");
    fleet.close(LONG).expect("closes");
}

#[test]
fn after_close_everything_says_closed() {
    let rack = rack(1, Engine::Hash);
    let fleet = fleet(&rack);
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    let lease = graph.input().expect("memory");
    let other = fleet.clone();
    fleet.close(LONG).expect("closes");
    assert_eq!(graph.submit(lease, SubmitOptions::default()).expect_err("closed").kind(), ErrorKind::Closed);
    let error = other.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect_err("closed");
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(other.refresh_telemetry(LONG).expect_err("closed").kind(), ErrorKind::Closed);
    other.close(LONG).expect("closing twice changes nothing");
}
