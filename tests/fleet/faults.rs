//! Sticks that leave, hang or come back while they work: every ticket ends, every answer is right, none comes twice.

use std::time::{Duration, Instant};

use ncs2::runtime::{FleetConfig, LoadOptions, StickState, SubmitOptions, Ticket};
use ncs2::{ErrorKind, Graph, StickId};
use ncs2_device::Engine;

use super::common::{LONG, blob, fleet, fleet_with, hash_of, rack, unique_input};

fn submit(graph: &Graph, number: u64) -> Ticket {
    let mut lease = graph.input().expect("memory");
    lease.copy_from(&unique_input(graph.blob(), number)).expect("fits");
    graph.submit(lease, SubmitOptions::default()).expect("a queue")
}

fn check(graph: &Graph, number: u64, ticket: Ticket) {
    let output = ticket.wait().unwrap_or_else(|e| panic!("request {number}: {e:?}"));
    let expected = hash_of(graph.blob(), &unique_input(graph.blob(), number));
    assert!(output.bytes() == expected, "request {number} has another's answer");
}

#[test]
fn what_a_lost_stick_had_is_answered_by_another() {
    let rack = rack(2, Engine::Hash);
    let fleet = fleet(&rack);
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    rack.stick(0).expect("there").hold();
    let tickets: Vec<_> = (0..40).map(|n| submit(&graph, n)).collect();
    // What was not yet sent moves too, but does not count as retried.
    while fleet.stats().sticks[0].in_flight == 0 {
        std::thread::yield_now();
    }
    rack.stick(0).expect("there").unplug();
    for (n, ticket) in tickets.into_iter().enumerate() {
        check(&graph, n as u64, ticket);
    }
    let stats = fleet.stats();
    assert_eq!((stats.completed, stats.failed), (40, 0));
    assert!(stats.retried >= 1, "the held ones moved");
    assert_eq!(stats.sticks[0].state, StickState::Lost);
    assert!(stats.sticks[0].failure.is_some());
    fleet.close(LONG).expect("closes");
}

#[test]
fn a_stick_that_comes_back_works_again_with_its_graphs() {
    let rack = rack(1, Engine::Hash);
    let fleet = fleet(&rack);
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    for round in 0..3 {
        let stick = rack.stick(0).expect("there");
        stick.hold();
        let tickets: Vec<_> = (0..10).map(|n| submit(&graph, n)).collect();
        stick.unplug();
        stick.resume();
        stick.replug();
        for (n, ticket) in tickets.into_iter().enumerate() {
            check(&graph, n as u64, ticket);
        }
        assert!(fleet.stats().sticks[0].resets > round, "round {round}");
    }
    fleet.close(LONG).expect("closes");
}

#[test]
fn a_stick_that_crashes_at_random_moments_loses_nothing() {
    let seed = 11;
    println!("seed {seed}");
    let mut rng = super::Rng(seed);
    let rack = rack(3, Engine::Hash);
    let config = FleetConfig { retries: 1000, ..FleetConfig::default() };
    let fleet = fleet_with(&rack, config);
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    let mut tickets = std::collections::VecDeque::new();
    for n in 0..600u64 {
        tickets.push_back((n, submit(&graph, n)));
        if tickets.len() > 30 {
            let (n, ticket) = tickets.pop_front().expect("some");
            check(&graph, n, ticket);
        }
        if rng.below(60) == 0 {
            rack.stick(rng.below(3) as usize).expect("there").crash();
        }
    }
    for (n, ticket) in tickets {
        check(&graph, n, ticket);
    }
    let stats = fleet.stats();
    assert_eq!((stats.submitted, stats.completed, stats.failed), (600, 600, 0));
    fleet.close(LONG).expect("closes");
}

#[test]
fn the_last_stick_gone_ends_every_ticket() {
    let rack = rack(1, Engine::Hash);
    let config = FleetConfig { open_timeout: Duration::from_millis(300), ..FleetConfig::default() };
    let fleet = fleet_with(&rack, config);
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    rack.stick(0).expect("there").hold();
    let tickets: Vec<_> = (0..20).map(|n| submit(&graph, n)).collect();
    rack.stick(0).expect("there").unplug();
    for mut ticket in tickets {
        let error = ticket.wait_timeout(LONG).expect_err("no stick is left");
        assert_eq!((error.kind(), error.stick()), (ErrorKind::Unplugged, Some(&StickId::sim(0))), "{error}");
    }
    let error =
        graph.submit(graph.input().expect("memory"), SubmitOptions::default()).expect_err("refused at once");
    assert_eq!(error.kind(), ErrorKind::Unplugged);
    assert_eq!(fleet.stats().failed, 20);
    fleet.close(LONG).expect("closes");
}

#[test]
fn a_stick_that_hangs_is_lost_in_time_and_the_others_go_on() {
    let rack = rack(2, Engine::Hash);
    let fleet = fleet(&rack);
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    rack.stick(1).expect("there").hang();
    let begun = Instant::now();
    let tickets: Vec<_> = (0..20).map(|n| submit(&graph, n)).collect();
    for (n, ticket) in tickets.into_iter().enumerate() {
        check(&graph, n as u64, ticket);
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "liveness of the link is judged apart from jobs");
    fleet.close(LONG).expect("closes");
}

#[test]
fn a_stick_that_does_not_open_delays_the_others_only_a_little_and_joins_when_it_comes() {
    let rack = rack(3, Engine::Hash);
    rack.stick(1).expect("there").hang();
    let config = FleetConfig {
        open_timeout: LONG,
        straggler_timeout: Duration::from_millis(200),
        ..FleetConfig::default()
    };
    let begun = Instant::now();
    let fleet = fleet_with(&rack, config);
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    let tickets: Vec<_> = (0..20).map(|n| submit(&graph, n)).collect();
    for (n, ticket) in tickets.into_iter().enumerate() {
        check(&graph, n as u64, ticket);
    }
    assert!(begun.elapsed() < LONG / 2, "nobody waited for the one that hangs");
    assert_eq!(fleet.stats().sticks[1].state, StickState::Starting);
    // Its cable is pulled and put in again, which ends what hung.
    let stick = rack.stick(1).expect("there");
    stick.unplug();
    stick.replug();
    let on_it = SubmitOptions { stick: Some(StickId::sim(1)), ..SubmitOptions::default() };
    let mut lease = graph.input().expect("memory");
    lease.copy_from(&unique_input(graph.blob(), 20)).expect("fits");
    let mut ticket = graph.submit(lease, on_it).expect("it may come yet");
    let output = ticket.wait_timeout(LONG).expect("answered").expect("in time");
    assert!(output.bytes() == hash_of(graph.blob(), &unique_input(graph.blob(), 20)));
    fleet.close(LONG).expect("closes");
}

#[test]
fn a_job_that_takes_too_long_is_moved_at_most_as_often_as_allowed() {
    let rack = rack(1, Engine::Hash);
    let config = FleetConfig { retries: 1, job_timeout: Duration::from_millis(50), ..FleetConfig::default() };
    let fleet = fleet_with(&rack, config);
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    // Held across its reset: the same job is late twice.
    rack.stick(0).expect("there").hold();
    let mut ticket = submit(&graph, 1);
    let error = ticket.wait_timeout(LONG).expect_err("late twice");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains("2 sticks"), "{error}");
    assert_eq!(fleet.stats().retried, 1);
    rack.stick(0).expect("there").resume();
    check(&graph, 2, submit(&graph, 2));
    fleet.close(LONG).expect("closes");
}

#[test]
fn closing_while_busy_drains_or_cancels() {
    for hold in [false, true] {
        let rack = rack(2, Engine::Hash);
        let fleet = fleet(&rack);
        let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
        if hold {
            rack.stick(0).expect("there").hold();
            rack.stick(1).expect("there").hold();
        }
        let tickets: Vec<_> = (0..50).map(|n| submit(&graph, n)).collect();
        let timeout = if hold { Duration::from_millis(10) } else { LONG };
        fleet.close(timeout).expect("closes");
        for (n, ticket) in tickets.into_iter().enumerate() {
            if hold {
                assert_eq!(ticket.wait().expect_err("cancelled").kind(), ErrorKind::Cancelled);
            } else {
                check(&graph, n as u64, ticket);
            }
        }
    }
}

#[test]
fn dropping_the_last_fleet_cancels_and_ends() {
    let rack = rack(1, Engine::Hash);
    let fleet = fleet(&rack);
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    rack.stick(0).expect("there").hold();
    let ticket = submit(&graph, 1);
    let clone = fleet.clone();
    drop(fleet);
    drop(clone);
    assert_eq!(ticket.wait().expect_err("cancelled").kind(), ErrorKind::Cancelled);
}
