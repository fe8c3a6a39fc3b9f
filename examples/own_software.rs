//! How to test software of yours without a stick: `cargo run --example own_software`.
//!
//! The software under test is [`answers`], which sees nothing but a [`Fleet`]: the same code runs on real sticks, whose ports
//! come from `ncs2::transport::usb::boot`. The test around it takes two virtual sticks, pulls one out in the middle of the
//! work and asks whether every answer came, and was right. What comes from here is simulated.

use std::time::Duration;

use ncs2::Fleet;
use ncs2::blob::Blob;
use ncs2::error::Result;
use ncs2::runtime::{FleetConfig, LoadOptions, SubmitOptions};
use ncs2::sched::Policy;
use ncs2_device::execute::Program;
use ncs2_device::{Engine, FaultKind, FaultPlan, PlannedFault, Rack, RackOptions, Timing};

const INPUTS: u16 = 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// The software under test: one answer for each input, in order.
fn answers(fleet: &Fleet, network: &Blob, inputs: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
    let graph = fleet.load(network, LoadOptions::default())?;
    let mut tickets = Vec::new();
    for input in inputs {
        let mut lease = graph.input()?;
        lease.copy_from(input)?;
        tickets.push(graph.submit(lease, SubmitOptions::default())?);
    }
    let mut answers = Vec::new();
    for mut ticket in tickets {
        let answer = ticket.wait_timeout(PATIENCE)?;
        answers.push(answer.map(|answer| answer.bytes().to_vec()).unwrap_or_default());
    }
    Ok(answers)
}

/// What the network makes of an input, computed without any stick.
fn expected(network: &Blob, input: &[u8]) -> Vec<u8> {
    let graph = network.graph();
    let program = Program::prepare(network.bytes(), graph).expect("a network that the engine knows");
    let mut output = vec![0; graph.output_bytes];
    program.run(&mut program.arena(), input, &mut output);
    output
}

/// Runs the test; panics where the software is wrong.
pub fn main() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/tiny_u8_s1.blob");
    let network = Blob::open(file).expect("a committed network");
    let bytes = network.graph().input_bytes;
    let inputs: Vec<Vec<u8>> =
        (0..INPUTS).map(|n| (0..bytes).map(|i| (i as u16 * 7 + n * 31) as u8 % 4).collect()).collect();
    // The first stick is pulled out at its second inference and put back 200 ms later.
    let unplug = PlannedFault::nth(FaultKind::Unplug, 2).on("sim0").lasting(200.0);
    let rack = Rack::start(RackOptions {
        sticks: 2,
        engine: Engine::Execute,
        timing: Timing::Zero,
        faults: Some(FaultPlan::of(unplug)),
        ..RackOptions::default()
    })
    .expect("virtual sticks");
    // In turn, so that the first stick surely comes to its second inference.
    let config = FleetConfig { policy: Policy::StrictRoundRobin, ..FleetConfig::default() };
    let builder = rack.ports().into_iter().fold(Fleet::builder().config(config), |b, port| b.port(port));
    let fleet = builder.open().expect("opens");
    let found = answers(&fleet, &network, &inputs).expect("the software goes on without one of its sticks");
    for (n, (found, input)) in found.iter().zip(&inputs).enumerate() {
        assert_eq!(*found, expected(&network, input), "answer {n}");
    }
    assert_eq!(found.len(), inputs.len());
    let each: Vec<u64> = rack.stats().iter().map(|stick| stick.inferences).collect();
    let stats = fleet.stats();
    assert!(stats.retried > 0 || stats.sticks[0].resets > 0, "the fault was never met: {each:?}");
    fleet.close(PATIENCE).expect("closes");
    println!("simulated: {INPUTS} right answers, one of two sticks pulled out; inferences of each: {each:?}");
}
