//! Requests that no stick takes, on the CPU in its place: marked, counted apart, never for one stick alone, never too late.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ncs2::blob::Blob;
use ncs2::runtime::{Fallback, FleetConfig, LoadOptions, SubmitOptions, Ticket};
use ncs2::{Error, ErrorKind, Graph, StickId};
use ncs2_device::{Engine, Rack, RackOptions, Timing};

use super::common::{LONG, blob, fleet_with, hash_of, rack, unique_input};

/// Answers as a stick with the hash engine would, with every bit turned round, so that the two are told apart.
#[derive(Debug, Default)]
struct Cpu {
    runs: AtomicU64,
    /// Refuses, or panics, at its first run.
    refuses: bool,
    panics: bool,
}

impl Fallback for Cpu {
    fn name(&self) -> &str {
        "cpu-test"
    }

    fn run(&self, blob: &Blob, input: &[u8], output: &mut [u8]) -> Result<(), Error> {
        let first = self.runs.fetch_add(1, Ordering::SeqCst) == 0;
        assert!(!(first && self.panics), "as the test wants it");
        if first && self.refuses {
            return Err(Error::new(ErrorKind::Unsupported, "test").detail("this one not"));
        }
        for (to, from) in output.iter_mut().zip(hash_of(blob, input)) {
            *to = !from;
        }
        Ok(())
    }
}

fn config(cpu: &Arc<Cpu>) -> FleetConfig {
    FleetConfig {
        open_timeout: Duration::from_millis(300),
        fallback: Some(cpu.clone()),
        ..FleetConfig::default()
    }
}

fn submit(graph: &Graph, number: u64, options: SubmitOptions) -> Ticket {
    let mut lease = graph.input().expect("memory");
    lease.copy_from(&unique_input(graph.blob(), number)).expect("fits");
    graph.submit(lease, options).expect("a queue")
}

/// Whether the fallback gave it; the answer is right in either case.
fn is_from_cpu(graph: &Graph, number: u64, mut ticket: Ticket) -> bool {
    let output = ticket.wait_timeout(LONG).expect("an answer").expect("in time");
    let mut expected = hash_of(graph.blob(), &unique_input(graph.blob(), number));
    if output.is_fallback() {
        expected.iter_mut().for_each(|byte| *byte = !*byte);
        assert_eq!(output.stick(), &StickId::new("cpu-test"));
    }
    assert!(output.bytes() == expected, "request {number} has another's answer");
    output.is_fallback()
}

#[test]
fn with_all_sticks_unplugged_the_cpu_answers_and_says_so() {
    let rack = rack(2, Engine::Hash);
    let cpu = Arc::new(Cpu::default());
    let fleet = fleet_with(&rack, config(&cpu));
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    for n in 0..10 {
        assert!(!is_from_cpu(&graph, n, submit(&graph, n, SubmitOptions::default())), "sticks are there");
    }
    for stick in 0..2 {
        rack.stick(stick).expect("there").hold();
    }
    let tickets: Vec<_> = (10..40).map(|n| (n, submit(&graph, n, SubmitOptions::default()))).collect();
    for stick in 0..2 {
        rack.stick(stick).expect("there").unplug();
    }
    for (n, ticket) in tickets {
        assert!(is_from_cpu(&graph, n, ticket), "request {n}");
    }
    // Those that come when everybody has long gone do not wait for the next attempt to reconnect, some seconds away.
    let waited: Duration = (100..120)
        .map(|n| {
            let begun = Instant::now();
            assert!(is_from_cpu(&graph, n, submit(&graph, n, SubmitOptions::default())));
            begun.elapsed()
        })
        .sum();
    assert!(waited < Duration::from_secs(5), "{waited:?} for 20 of them");
    // One that is for a stick is not for anybody else.
    let lease = graph.input().expect("memory");
    let pinned = SubmitOptions { stick: Some(StickId::sim(0)), ..SubmitOptions::default() };
    let error = graph.submit(lease, pinned).map(|mut t| t.wait_timeout(LONG)).expect_err("its stick is gone");
    assert_eq!(error.kind(), ErrorKind::Unplugged);
    let stats = fleet.stats();
    assert_eq!((stats.completed, stats.failed, stats.fallback), (60, 0, 50));
    let of_sticks: u64 = stats.sticks.iter().map(|s| s.completed).sum();
    assert_eq!(of_sticks, 10, "the CPU's work counts into no stick's");
    assert_eq!(stats.latency.count(), 10, "nor into the sticks' latency");
    fleet.close(LONG).expect("closes");
}

#[test]
fn what_waits_too_long_because_all_are_hot_goes_to_the_cpu_in_time() {
    // At level 2 from the start, at a hundredth of its speed: 0.3 s an inference and more.
    let folder = tempfile::tempdir().expect("temporary folder");
    let profile = folder.path().join("oven.toml");
    let oven = "base = \"ncs2\"\n[timing]\ntrigger_us = 3000.0\n[heat]\nambient_c = 110.0\ntau_s = 0.001\nlower_speed = 0.01\nupper_speed = 0.01\n";
    std::fs::write(&profile, oven).expect("written");
    let rack = Rack::start(RackOptions {
        sticks: 2,
        engine: Engine::Hash,
        timing: Timing::Model,
        profile: profile.to_str().expect("UTF-8").to_owned(),
        ..RackOptions::default()
    })
    .expect("virtual sticks start");
    let cpu = Arc::new(Cpu::default());
    let fleet = fleet_with(&rack, FleetConfig { fallback: Some(cpu.clone()), ..FleetConfig::default() });
    let options = LoadOptions { depth: 1, ..LoadOptions::default() };
    let graph = fleet.load(&blob("tiny_u8_s1"), options).expect("loads");
    let deadline = Duration::from_secs(5);
    let in_time = SubmitOptions { deadline: Some(deadline), ..SubmitOptions::default() };
    // Ten seconds and more of work for these two.
    let tickets: Vec<_> = (0..80).map(|n| (n, submit(&graph, n, in_time.clone()))).collect();
    let mut from_cpu = 0;
    for (n, mut ticket) in tickets {
        let output = ticket.wait_timeout(LONG).expect("an answer").expect("in time");
        from_cpu += u64::from(output.is_fallback());
        assert!(output.latency() < deadline, "request {n}: {:?}", output.latency());
    }
    assert!(from_cpu >= 40, "{from_cpu} of 80 from the CPU");
    let stats = fleet.stats();
    assert_eq!((stats.completed, stats.failed, stats.fallback), (80, 0, from_cpu));
    fleet.close(LONG).expect("closes");
}

#[test]
fn a_deadline_passes_where_there_is_no_fallback() {
    let rack = rack(1, Engine::Hash);
    let fleet = fleet_with(&rack, FleetConfig::default());
    let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
    rack.stick(0).expect("there").hold();
    let soon = SubmitOptions { deadline: Some(Duration::from_millis(50)), ..SubmitOptions::default() };
    let tickets: Vec<_> = (0..20).map(|n| submit(&graph, n, soon.clone())).collect();
    for ticket in tickets {
        assert_eq!(ticket.wait().expect_err("nobody answers").kind(), ErrorKind::DeadlineExceeded);
    }
    assert_eq!(fleet.stats().fallback, 0);
    rack.stick(0).expect("there").resume();
    fleet.close(LONG).expect("closes");
}

#[test]
fn a_fallback_that_fails_or_panics_fails_its_request_alone() {
    for (refuses, panics, word) in [(true, false, "this one not"), (false, true, "panicked")] {
        let rack = rack(1, Engine::Hash);
        let cpu = Arc::new(Cpu { refuses, panics, ..Cpu::default() });
        let fleet = fleet_with(&rack, config(&cpu));
        let graph = fleet.load(&blob("tiny_u8_s1"), LoadOptions::default()).expect("loads");
        rack.stick(0).expect("there").unplug();
        let mut first = submit(&graph, 0, SubmitOptions::default());
        let error = first.wait_timeout(LONG).expect_err("refused").to_string();
        assert!(error.contains(word) && error.contains("cpu-test"), "{error}");
        assert!(is_from_cpu(&graph, 1, submit(&graph, 1, SubmitOptions::default())));
        let stats = fleet.stats();
        assert_eq!((stats.completed, stats.failed, stats.fallback), (1, 1, 1));
        fleet.close(LONG).expect("closes");
    }
}
