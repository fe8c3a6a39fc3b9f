//! Our driver under pairwise combinations of what nobody knows about the firmware: the answers are right under each.
//!
//! Everything here is simulated.

#![allow(clippy::needless_range_loop, reason = "pairs of knobs are pairs of indices")]

#[allow(dead_code, reason = "shared with the tests of the fleet")]
#[path = "fleet/common.rs"]
mod common;

use std::time::Duration;

use common::{LONG, Rng, blob, hash_of, unique_input};
use ncs2::blob::Blob;
use ncs2::runtime::{FleetConfig, LoadOptions, SubmitOptions};
use ncs2::stick::Ordering;
use ncs2::{Fleet, Graph};
use ncs2_device::{Engine, FaultKind, FaultPlan, PlannedFault, Rack, RackOptions, Timing};

/// So many requests at once, each with an input of its own: each answer comes and is that input's.
fn check_answers(graph: &Graph, blob: &Blob, count: u64, under: &str) {
    let tickets: Vec<_> = (0..count)
        .map(|i| {
            let mut lease = graph.input().expect("memory");
            lease.copy_from(&unique_input(blob, i)).expect("fits");
            graph.submit(lease, SubmitOptions::default()).expect("a queue")
        })
        .collect();
    for (i, mut ticket) in tickets.into_iter().enumerate() {
        let answer = ticket.wait_timeout(LONG).unwrap_or_else(|e| panic!("{under}: {e}"));
        let answer = answer.unwrap_or_else(|| panic!("{under}: no answer"));
        let expected = hash_of(blob, &unique_input(blob, i as u64));
        assert!(answer.bytes() == expected, "{under}: request {i} has a wrong answer");
    }
}

/// Not of a profile: whether the fifth TRIGGER is refused.
const REFUSED: &str = "a refused trigger";

/// Each knob with its values, as a profile writes them.
const KNOBS: [(&str, &[&str]); 15] = [
    ("input_release", &["\"start\"", "\"end\""]),
    ("status", &["\"before\"", "\"after\""]),
    ("output_piece_bytes", &["0", "7", "512"]),
    ("creates_streams", &["false", "true"]),
    ("zero_length", &["\"never\"", "\"full\"", "\"always\""]),
    ("ack_delay_us", &["0.0", "300.0", "5000.0"]),
    ("answers_reset", &["true", "false"]),
    ("refused_input", &["\"release\"", "\"keep\""]),
    ("watchdog_s", &["2.0", "12.0", "60.0"]),
    ("max_executors", &["1", "2", "3", "4"]),
    ("max_graphs", &["2", "10"]),
    ("max_fifos", &["4", "100"]),
    // What no host uses of the capabilities may be anything.
    ("fw_version", &["[2, 0x2480, 0, 0]", "[0, 0x2480, 4294967295, 7]"]),
    ("tensor_version", &["[2, 3]", "[0, 0]"]),
    (REFUSED, &["never", "the fifth"]),
];

type Case = [usize; KNOBS.len()];

/// Rows in which every pair of values of every two knobs occurs, greedily from random candidates.
#[allow(clippy::needless_range_loop, reason = "pairs of knobs are named by their numbers")]
fn pairwise(rng: &mut Rng) -> Vec<Case> {
    let mut missing: std::collections::BTreeSet<(usize, usize, usize, usize)> = Default::default();
    for i in 0..KNOBS.len() {
        for j in i + 1..KNOBS.len() {
            let values = (0..KNOBS[i].1.len()).flat_map(|a| (0..KNOBS[j].1.len()).map(move |b| (a, b)));
            missing.extend(values.map(|(a, b)| (i, a, j, b)));
        }
    }
    let mut rows = Vec::new();
    while let Some(&(i, a, j, b)) = missing.first() {
        let candidate = |rng: &mut Rng| {
            let mut row: Case = std::array::from_fn(|k| rng.below(KNOBS[k].1.len() as u64) as usize);
            (row[i], row[j]) = (a, b);
            let gain = missing.iter().filter(|(i, a, j, b)| row[*i] == *a && row[*j] == *b).count();
            (gain, row)
        };
        let (_, row) = (0..50).map(|_| candidate(rng)).max().expect("fifty candidates");
        missing.retain(|&(i, a, j, b)| row[i] != a || row[j] != b);
        rows.push(row);
    }
    rows
}

fn profile(row: &Case) -> String {
    let mut text = String::from("base = \"ncs2\"\n[firmware]\n");
    for ((name, values), &value) in KNOBS.iter().zip(row).filter(|((name, _), _)| *name != REFUSED) {
        text += &format!("{name} = {}\n", values[value]);
    }
    text
}

#[test]
fn answers_are_right_under_every_pair_of_unknowns() {
    let seed = 5;
    println!("seed {seed}");
    let rows = pairwise(&mut Rng(seed));
    println!("{} combinations", rows.len());
    let folder = std::env::temp_dir().join(format!("ncs2-knobs-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for profiles");
    for (n, row) in rows.iter().enumerate() {
        let text = profile(row);
        let refuses = KNOBS.iter().zip(row).any(|((name, _), &value)| *name == REFUSED && value == 1);
        let path = folder.join(format!("{n}.toml"));
        std::fs::write(&path, &text).expect("a profile");
        for ordering in [Ordering::Vendor, Ordering::Pipelined] {
            let options = RackOptions {
                sticks: 1,
                profile: path.display().to_string(),
                engine: Engine::Hash,
                timing: Timing::Zero,
                seed,
                faults: refuses.then(|| FaultPlan {
                    seed: Some(seed),
                    ..FaultPlan::of(PlannedFault::nth(FaultKind::RefuseTrigger, 5))
                }),
            };
            let rack = Rack::start(options).expect("starts");
            let config =
                FleetConfig { ordering, job_timeout: Duration::from_secs(20), ..FleetConfig::default() };
            let builder = rack.ports().into_iter().fold(Fleet::builder().config(config), |b, p| b.port(p));
            let fleet = builder.open().unwrap_or_else(|e| panic!("{text}{ordering:?}: {e}"));
            for name in ["tiny_u8_s1", "mlp_fp16_s1"] {
                let blob = blob(name);
                let graph = fleet
                    .load(&blob, LoadOptions::default())
                    .unwrap_or_else(|e| panic!("{text}{ordering:?}, {name}: {e}"));
                check_answers(&graph, &blob, 12, &format!("{text}{ordering:?}"));
            }
            // Whether a refused TRIGGER costs a reset is the driver's choice; that it was met is not.
            let stats = fleet.stats();
            let seen = if refuses { stats.retried > 0 } else { stats.sticks[0].resets == 0 };
            assert!(seen, "{text}{ordering:?}: {stats:?}");
            fleet.close(LONG).unwrap_or_else(|e| panic!("{text}{ordering:?}: {e}"));
            let found = rack.stick(0).expect("there").inspect(|s| s.violations());
            assert_eq!(found, ncs2_device::Violations::default(), "{text}{ordering:?}");
        }
    }
    // Left behind where a combination fails, to be looked at.
    std::fs::remove_dir_all(&folder).expect("removes its own folder");
}

/// A TRIGGER is refused in the middle of the work, its input released or kept: either way every answer is right, though a
/// stick that keeps it would give it to the next TRIGGER.
#[test]
fn answers_are_right_after_a_refused_trigger_whose_input_is_kept_or_released() {
    let folder = std::env::temp_dir().join(format!("ncs2-refused-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for profiles");
    for refused in ["release", "keep"] {
        for status in ["before", "after"] {
            let text = format!(
                "base = \"ncs2\"\n[firmware]\nrefused_input = \"{refused}\"\nstatus = \"{status}\"\n"
            );
            let path = folder.join("profile.toml");
            std::fs::write(&path, &text).expect("a profile");
            for ordering in [Ordering::Vendor, Ordering::Pipelined] {
                let fault = PlannedFault::nth(FaultKind::RefuseTrigger, 5);
                let options = RackOptions {
                    sticks: 1,
                    profile: path.display().to_string(),
                    engine: Engine::Hash,
                    timing: Timing::Zero,
                    faults: Some(FaultPlan { seed: Some(5), ..FaultPlan::of(fault) }),
                    ..RackOptions::default()
                };
                let rack = Rack::start(options).expect("starts");
                let config =
                    FleetConfig { ordering, job_timeout: Duration::from_secs(20), ..FleetConfig::default() };
                let builder =
                    rack.ports().into_iter().fold(Fleet::builder().config(config), |b, p| b.port(p));
                let fleet = builder.open().unwrap_or_else(|e| panic!("{text}{ordering:?}: {e}"));
                let blob = blob("tiny_u8_s1");
                let graph = fleet.load(&blob, LoadOptions::default()).expect("loads");
                check_answers(&graph, &blob, 20, &format!("{text}{ordering:?}"));
                assert!(fleet.stats().retried > 0, "{text}{ordering:?}: nothing was refused");
                fleet.close(LONG).unwrap_or_else(|e| panic!("{text}{ordering:?}: {e}"));
            }
        }
    }
    std::fs::remove_dir_all(&folder).expect("removes its own folder");
}

#[test]
fn every_pair_occurs() {
    let rows = pairwise(&mut Rng(5));
    for i in 0..KNOBS.len() {
        for j in i + 1..KNOBS.len() {
            for a in 0..KNOBS[i].1.len() {
                for b in 0..KNOBS[j].1.len() {
                    assert!(rows.iter().any(|r| r[i] == a && r[j] == b), "{} and {}", KNOBS[i].0, KNOBS[j].0);
                }
            }
        }
    }
    assert!(rows.len() < 45, "{} combinations", rows.len());
}
