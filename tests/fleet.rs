//! The fleet on virtual sticks, through the public API only. Everything measured here is simulated.

#[path = "fleet/common.rs"]
mod common;

use std::collections::HashSet;

use common::{LONG, blob, difference, fleet, rack, reference_input};
use ncs2::runtime::{LoadOptions, SubmitOptions};
use ncs2_device::Engine;

#[test]
fn three_sticks_compute_what_the_reference_says() {
    let rack = rack(3, Engine::Execute);
    let fleet = fleet(&rack);
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
