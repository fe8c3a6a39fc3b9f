//! Every kind of fault of a plan, and what the host makes of it: which error, how soon, and nobody else's business.
//!
//! Everything here is simulated. Bounds are for a slow machine; only a hang reaches them.

#[allow(dead_code, reason = "shared with the tests of the fleet")]
#[path = "fleet/common.rs"]
mod common;

use std::time::{Duration, Instant};

use common::{blob, hash_of, unique_input};
use ncs2::runtime::{FleetConfig, LoadOptions, SubmitOptions};
use ncs2::{ErrorKind, Fleet};
use ncs2_device::{Engine, FaultKind, FaultPlan, PlannedFault, Rack, RackOptions, Timing, Way};

/// From the start of the fleet to its last answer.
const BOUND: Duration = Duration::from_secs(30);
const REQUESTS: u64 = 40;

/// What became of a run.
#[derive(Debug, Default)]
struct Outcome {
    /// The fleet did not open, or the graph did not load.
    refused: Option<ErrorKind>,
    right: u64,
    errors: Vec<ErrorKind>,
    /// Per stick: its failure's text.
    failures: Vec<Option<String>>,
    completed: Vec<u64>,
    resets: u32,
    retried: u64,
}

fn rack(sticks: usize, fault: PlannedFault) -> Rack {
    let faults = Some(FaultPlan { seed: Some(3), ..FaultPlan::of(fault) });
    let options =
        RackOptions { sticks, engine: Engine::Hash, timing: Timing::Zero, faults, ..Default::default() };
    Rack::start(options).expect("virtual sticks start")
}

fn run(sticks: usize, fault: PlannedFault) -> Outcome {
    let lost = fault.kind == FaultKind::NoOutput;
    let name = format!("{sticks} sticks, {fault:?}");
    let begun = Instant::now();
    let rack = rack(sticks, fault);
    let config = FleetConfig {
        open_timeout: Duration::from_secs(1),
        job_timeout: Duration::from_millis(300),
        ..FleetConfig::default()
    };
    let mut outcome = Outcome::default();
    let builder = rack.ports().into_iter().fold(Fleet::builder().config(config), |b, p| b.port(p));
    let fleet = match builder.open() {
        Ok(fleet) => fleet,
        Err(error) => {
            outcome.refused = Some(error.kind());
            return outcome;
        }
    };
    let blob = blob("tiny_u8_s1");
    // Outputs carry no number: one that is lost without a sign is noticed only where no other can take its place.
    let depth = if lost { 1 } else { LoadOptions::default().depth };
    let options = LoadOptions { depth, timeout: Duration::from_secs(5), ..LoadOptions::default() };
    match fleet.load(&blob, options) {
        Ok(graph) => {
            let tickets: Vec<_> = (0..REQUESTS)
                .map(|n| {
                    let mut lease = graph.input()?;
                    lease.copy_from(&unique_input(&blob, n))?;
                    graph.submit(lease, SubmitOptions::default())
                })
                .collect();
            for (n, ticket) in tickets.into_iter().enumerate() {
                match ticket.and_then(|mut t| t.wait_timeout(BOUND)) {
                    Ok(Some(output)) => {
                        let expected = hash_of(&blob, &unique_input(&blob, n as u64));
                        assert!(output.bytes() == expected, "{name}: request {n} got a wrong answer");
                        outcome.right += 1;
                    }
                    Ok(None) => panic!("{name}: request {n} hangs"),
                    Err(error) => outcome.errors.push(error.kind()),
                }
            }
        }
        Err(error) => outcome.refused = Some(error.kind()),
    }
    let _ = fleet.refresh_telemetry(Duration::from_secs(2));
    let stats = fleet.stats();
    outcome.failures = stats.sticks.iter().map(|s| s.failure.clone()).collect();
    outcome.completed = stats.sticks.iter().map(|s| s.completed).collect();
    outcome.resets = stats.sticks[0].resets;
    outcome.retried = stats.retried;
    let _ = fleet.close(Duration::from_secs(5));
    assert!(begun.elapsed() < BOUND, "{name}: {:?}", begun.elapsed());
    outcome
}

/// The fault on `sim0` beside a sound stick: all answers come, and the other one worked without a failure.
fn beside_a_sound_stick(fault: &PlannedFault) -> Outcome {
    let outcome = run(2, fault.clone().on("sim0"));
    assert_eq!((outcome.right, outcome.errors.len()), (REQUESTS, 0), "{fault:?}: {outcome:?}");
    assert!(outcome.failures[1].is_none() && outcome.completed[1] > 0, "{fault:?}: {outcome:?}");
    outcome
}

/// What a caller sees whose only stick has the fault.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Alone {
    /// The fleet does not open, or the graph does not load.
    Refused(ErrorKind),
    /// The same, and which depends on whose answer it was: a ping's, a command's.
    Unreadable,
    /// Every answer is right, though the stick was reset so often.
    Right(u32),
    /// No answer but this error.
    Fails(ErrorKind),
}

fn check(fault: PlannedFault, failure: Option<&str>, alone: Alone) {
    let outcome = beside_a_sound_stick(&fault);
    if let Some(word) = failure {
        // Where it has come back already, its resets say so.
        let said = outcome.failures[0].as_ref().is_some_and(|f| f.contains(word));
        assert!(said || outcome.resets > 0, "{fault:?}: {word}? {outcome:?}");
    }
    let outcome = run(1, fault.clone());
    match alone {
        Alone::Refused(kind) => assert_eq!(outcome.refused, Some(kind), "{fault:?}: {outcome:?}"),
        Alone::Unreadable => {
            let known = [Some(ErrorKind::Timeout), Some(ErrorKind::Protocol)];
            assert!(known.contains(&outcome.refused) && outcome.right == 0, "{fault:?}: {outcome:?}");
        }
        Alone::Right(resets) => {
            assert_eq!((outcome.refused, outcome.right), (None, REQUESTS), "{fault:?}: {outcome:?}");
            assert!(outcome.resets >= resets, "{fault:?}: {outcome:?}");
        }
        Alone::Fails(kind) => {
            assert!(outcome.errors.iter().all(|&e| e == kind), "{fault:?}: {outcome:?}");
            assert_eq!((outcome.right, outcome.errors.len() as u64), (0, REQUESTS), "{fault:?}: {outcome:?}");
        }
    }
}

/// The 60th IN transfer is one of those that load the graph: no tensor is in it.
fn transfer(kind: FaultKind) -> PlannedFault {
    PlannedFault { direction: Some(Way::In), ..PlannedFault::nth(kind, 60).lasting(20.0) }
}

macro_rules! faults {
    ($($name:ident: $fault:expr, $failure:expr, $alone:expr;)*) => {
        $(#[test] fn $name() { check($fault, $failure, $alone); })*
    };
}

faults! {
    hold: transfer(FaultKind::Hold), Some("no answer"), Alone::Refused(ErrorKind::Timeout);
    complete: transfer(FaultKind::Complete), None, Alone::Unreadable;
    delay: transfer(FaultKind::Delay), None, Alone::Right(0);
    fail: transfer(FaultKind::Fail), Some("endpoint halted"), Alone::Refused(ErrorKind::Protocol);
    short: transfer(FaultKind::Short), None, Alone::Unreadable;
    unplug: PlannedFault::nth(FaultKind::Unplug, 1).lasting(20.0), Some("left the bus"), Alone::Right(1);
    hang: PlannedFault::nth(FaultKind::Hang, 1), Some("no answer"), Alone::Fails(ErrorKind::Timeout);
    babble: PlannedFault::nth(FaultKind::Babble, 1), Some("link:"), Alone::Right(1);
    silent_sensor: PlannedFault::nth(FaultKind::SilentSensor, 1), None, Alone::Right(0);
    lying_sensor: PlannedFault::nth(FaultKind::LyingSensor, 1), None, Alone::Right(0);
    capabilities: PlannedFault::nth(FaultKind::Capabilities, 1), Some("unknown chip"), Alone::Refused(ErrorKind::Protocol);
    boot_nack: PlannedFault::nth(FaultKind::BootNack, 1), Some("boot"), Alone::Refused(ErrorKind::Timeout);
    vanish: PlannedFault::nth(FaultKind::Vanish, 1), Some("boot"), Alone::Refused(ErrorKind::Timeout);
    short_output: PlannedFault::nth(FaultKind::ShortOutput, 1), Some("expected"), Alone::Right(1);
    no_status: PlannedFault::nth(FaultKind::NoStatus, 1), Some("no answer"), Alone::Right(1);
    no_output: PlannedFault::nth(FaultKind::NoOutput, 1), Some("no answer"), Alone::Right(1);
    refuse_trigger: PlannedFault::nth(FaultKind::RefuseTrigger, 3), Some("TRIGGER"), Alone::Right(0);
    late_release: PlannedFault::nth(FaultKind::LateRelease, 1).lasting(20.0), None, Alone::Right(0);
}

#[test]
fn refuse_allocation() {
    let outcome = run(1, PlannedFault::nth(FaultKind::RefuseAllocation, 1));
    assert_eq!((outcome.refused, outcome.right), (Some(ErrorKind::OutOfMemory), 0), "{outcome:?}");
}

/// Flipped bits of headers; the protocol has no sum over tensors, and USB has its own.
#[test]
fn corrupt() {
    for nth in [1, 3, 5] {
        let fault = PlannedFault { direction: Some(Way::In), ..PlannedFault::nth(FaultKind::Corrupt, nth) };
        beside_a_sound_stick(&fault);
    }
}

#[test]
fn replug_at_its_time() {
    let at = |kind, ms| PlannedFault { at_ms: Some(ms), nth: None, ..PlannedFault::nth(kind, 1) };
    let fault = vec![at(FaultKind::Unplug, 1500.0), at(FaultKind::Replug, 1600.0)];
    let options = RackOptions {
        engine: Engine::Hash,
        timing: Timing::Zero,
        faults: Some(FaultPlan { seed: None, fault }),
        ..RackOptions::default()
    };
    let rack = Rack::start(options).expect("starts");
    let fleet = common::fleet(&rack);
    let blob = blob("tiny_u8_s1");
    let graph = fleet.load(&blob, LoadOptions::default()).expect("loads");
    let begun = Instant::now();
    for n in 0.. {
        let answer = graph.infer(&unique_input(&blob, n)).expect("replayed after the return");
        assert!(answer.bytes() == hash_of(&blob, &unique_input(&blob, n)));
        if fleet.stats().sticks[0].resets > 0 {
            break;
        }
        assert!(begun.elapsed() < BOUND, "never unplugged");
    }
    fleet.close(BOUND).expect("closes");
}

#[test]
fn a_plan_for_a_stick_that_is_not_there_is_refused() {
    let faults = Some(FaultPlan::of(PlannedFault::nth(FaultKind::Hang, 1).on("sim2")));
    let error =
        Rack::start(RackOptions { sticks: 2, faults, ..RackOptions::default() }).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("sim2"), "{error}");
}
