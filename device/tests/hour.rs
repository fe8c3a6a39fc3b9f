//! An hour of full load in virtual time: the same model code, with time as a number.

#[allow(dead_code, reason = "shared by several tests, none of which uses all of it")]
mod host;

use std::time::{Duration, Instant};

use host::{Host, config};
use ncs2_device::{Engine, Timing};

/// Slow enough inferences that an hour has few thousands of them; everything else as on a stick.
fn hour(law: &str) -> (f64, f64, Duration, f64) {
    let mut config = config(Engine::Hash, Timing::Model);
    let text = format!("base = \"ncs2\"\n[heat]\nlaw = \"{law}\"\n[timing]\ntrigger_us = 2e6\n");
    config.profile = ncs2_device::Profile::parse("hour", &text).expect("good");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/models/tiny_u8_s1.blob");
    let blob = std::fs::read(file).expect("a committed blob");
    let begun = Instant::now();
    let mut host = Host::open(config);
    let graph = host.load(0, &blob, 1, 4);
    let cold = host.throughput(&graph, 4, 100);
    let start = host.now;
    let mut hot = 0.0;
    while host.now.saturating_since(start) < Duration::from_secs(3600) {
        hot = host.throughput(&graph, 4, 100);
    }
    (cold, hot, begun.elapsed(), host.stick.heat().0)
}

#[test]
fn an_hour_of_load_passes_in_a_moment_and_heats_as_the_law_says() {
    for law in ["cliff", "linear", "latched"] {
        let (cold, hot, took, celsius) = hour(law);
        println!(
            "simulated, {law}: {cold:.3} then {hot:.3} inferences/s at {celsius:.1} C, {took:?} of real time"
        );
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert!((65.0..=85.0).contains(&celsius), "{law}: {celsius} C");
        assert!(hot < 0.98 * cold, "{law}: {cold} then {hot}");
        assert_eq!(hour(law).1, hot, "the same each time");
    }
}
