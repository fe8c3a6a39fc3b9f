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
    let options = RackOptions { sticks, engine: Engine::Hash, timing: Timing::Zero, faults, ..Default::default() };
    Rack::start(options).expect("virtual sticks start")
}

fn run(sticks: usize, fault: PlannedFault) -> Outcome {
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
    match fleet.load(&blob, LoadOptions { timeout: Duration::from_secs(5), ..LoadOptions::default() }) {
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

#[test]
#[ignore = "prints what the host makes of every fault"]
fn print_outcomes() {
    use FaultKind as F;
    for kind in [
        F::Hold, F::Complete, F::Delay, F::Fail, F::Corrupt, F::Short, F::Unplug, F::Hang, F::Babble,
        F::SilentSensor, F::LyingSensor, F::Capabilities, F::BootNack, F::Vanish, F::ShortOutput, F::NoStatus,
        F::NoOutput, F::LateRelease, F::RefuseAllocation,
    ] {
        let transfer = matches!(kind, F::Hold | F::Complete | F::Delay | F::Fail | F::Corrupt | F::Short);
        let fault = PlannedFault::nth(kind, if transfer { 60 } else { 1 }).lasting(20.0);
        for sticks in [2, 1] {
            let fault = PlannedFault { direction: transfer.then_some(Way::In), ..fault.clone().on("sim0") };
            let begun = Instant::now();
            let found = std::panic::catch_unwind(|| run(sticks, fault));
            println!("{kind:?} {sticks} {:?}: {found:?}", begun.elapsed());
        }
    }
}
