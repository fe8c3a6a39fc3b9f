//! The driver on virtual sticks that share a hub. Real time, and everything is simulated.

use std::time::{Duration, Instant};

use ncs2::Fleet;
use ncs2::blob::Blob;
use ncs2::runtime::{LoadOptions, SubmitOptions};
use ncs2_device::{Engine, Rack, RackOptions};

const LONG: Duration = Duration::from_secs(60);

/// The driver on sticks behind one hub: all bytes pass its bandwidth, however busy this machine is, and each stick has its share.
/// Without a hub each has its own link, and the same work is far from that bound.
#[test]
fn a_fleet_shares_the_bandwidth_of_a_hub() {
    const BYTES_PER_S: f64 = 5e5;
    const JOBS: u64 = 200;
    let folder = tempfile::tempdir().expect("temporary folder");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/tiny_fp16_s1.blob");
    let blob = Blob::open(model).expect("a committed blob");
    let input_bytes = blob.graph().input_bytes;
    let run = |hub: f64| {
        let path = folder.path().join("hub.toml");
        let text = format!(
            "base = \"ncs2\"\n[hub]\nbytes_per_s = {hub:.1}\n[timing]\ntrigger_us = 1.0\nstage_us = 1.0\nnce_stage_us = 1.0\n"
        );
        std::fs::write(&path, text).expect("a profile");
        let options = RackOptions {
            sticks: 2,
            profile: path.display().to_string(),
            engine: Engine::Hash,
            ..RackOptions::default()
        };
        let rack = Rack::start(options).expect("starts");
        let fleet = rack.ports().into_iter().fold(Fleet::builder(), |b, p| b.port(p)).open().expect("opens");
        let graph = fleet.load(&blob, LoadOptions::default()).expect("loads");
        let begin = Instant::now();
        let tickets: Vec<_> = (0..JOBS)
            .map(|n| {
                let mut lease = graph.input().expect("memory");
                lease.copy_from(&vec![n as u8; input_bytes]).expect("fits");
                graph.submit(lease, SubmitOptions::default()).expect("a queue")
            })
            .collect();
        for mut ticket in tickets {
            ticket.wait_timeout(LONG).expect("an answer").expect("in time");
        }
        let took = begin.elapsed().as_secs_f64();
        let each: Vec<u64> = rack.stats().iter().map(|stick| stick.inferences).collect();
        fleet.close(LONG).expect("closes");
        (took, each)
    };
    let least = JOBS as f64 * input_bytes as f64 / BYTES_PER_S;
    let (shared, each) = run(BYTES_PER_S);
    println!(
        "simulated: {JOBS} inferences on 2 sticks behind 0.5 MB/s: {shared:.2} s, {each:?}; at least {least:.2} s"
    );
    assert!(shared >= least, "{shared} s for what takes {least} s");
    assert!(each.iter().all(|&n| n >= JOBS / 4), "{each:?}");
    let (free, _) = run(0.0);
    println!("simulated: each with its own link: {free:.2} s");
    assert!(free < least, "{free} s with a link each, {least} s on one hub");
}
