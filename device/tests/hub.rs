//! Several sticks behind one hub, by the manual clock: what one sends, the others cannot. Everything here is simulated.

#[allow(dead_code, reason = "shared by several tests, none of which uses all of it")]
mod host;

use std::sync::Arc;
use std::time::Duration;

use host::{Host, Loaded, config};
use ncs2::clock::Instant;
use ncs2_device::{Engine, Hub, Profile, Timing};

/// What the hub carries each way.
const HUB_BYTES_PER_S: f64 = 10e6;
const SPAN: Duration = Duration::from_secs(1);

/// Inferences of each of so many sticks in a second, all of them kept busy; and the bytes of one on the way to the stick.
fn inferences(sticks: usize, hub_bytes_per_s: f64) -> (Vec<usize>, usize) {
    let mut config = config(Engine::Hash, Timing::Model);
    // Compute that costs next to nothing: the way is what is measured.
    let text = format!(
        "base = \"ncs2\"\n[hub]\nbytes_per_s = {hub_bytes_per_s}\n[timing]\ntrigger_us = 1\nstage_us = 1\nnce_stage_us = 1\n"
    );
    config.profile = Profile::parse("hub", &text).expect("good");
    let hub = Hub::new(&config.profile, sticks).map(Arc::new);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/models/tiny_fp16_s1.blob");
    let blob = std::fs::read(file).expect("a committed blob");
    let mut hosts: Vec<(Host, Loaded, usize, usize)> = (0..sticks)
        .map(|n| {
            let mut host = Host::open_behind(config.clone(), hub.clone().map(|hub| (hub, n)));
            let graph = host.load(0, &blob, 1, 4);
            (host, graph, 0, 0)
        })
        .collect();
    let begin = hosts.iter().map(|(host, ..)| host.now).max().expect("sticks");
    let mut now = begin;
    while now.saturating_since(begin) < SPAN {
        let mut next = Instant::FAR_FUTURE;
        for (host, graph, sent, done) in &mut hosts {
            host.now = now;
            host.stick.handle_timeout(now);
            host.drive();
            while host.take(host::GRAPH).is_some() {}
            while host.take(graph.output).is_some() {
                *done += 1;
            }
            let input = vec![*sent as u8; graph.input_bytes];
            while *sent - *done < 3 && host.room(graph.input, input.len()) {
                host.trigger(graph, &input);
                *sent += 1;
            }
            host.drive();
            next = host.poll_timeout().into_iter().chain([next]).min().expect("two");
        }
        // Never backwards, never still.
        now = next.max(now + Duration::from_nanos(1));
    }
    let bytes = hosts[0].1.input_bytes;
    (hosts.into_iter().map(|(_, _, _, done)| done).collect(), bytes)
}

#[test]
fn sticks_share_what_their_hub_carries() {
    let (alone, bytes) = inferences(1, HUB_BYTES_PER_S);
    // The rest of an inference's way to the stick: headers, the trigger, acknowledgements, releases.
    let most = HUB_BYTES_PER_S / bytes as f64;
    assert!(alone[0] as f64 > 2.0 * most, "one stick alone has the link for itself: {alone:?}");
    for sticks in [2, 4] {
        let (done, _) = inferences(sticks, HUB_BYTES_PER_S);
        let total: usize = done.iter().sum();
        println!(
            "simulated: {sticks} sticks behind a hub of 10 MB/s: {done:?} inferences of {bytes} bytes in 1 s"
        );
        assert!((0.75 * most..=most).contains(&(total as f64)), "{sticks}: {total} of {most:.0}");
        let fair = total as f64 / sticks as f64;
        assert!(done.iter().all(|&n| (n as f64 - fair).abs() < 0.1 * fair), "{sticks}: {done:?}");
        // A hub that shares nothing: each as if alone.
        let (free, _) = inferences(sticks, 0.0);
        assert!(free.iter().all(|&n| n.abs_diff(alone[0]) * 50 <= alone[0]), "{free:?} {alone:?}");
    }
}
