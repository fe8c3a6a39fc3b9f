//! The report from made-up measurements: what is counted where, and what is not claimed.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Parser;
use ncs2::StickId;
use ncs2::blob::Blob;
use ncs2::pool::PoolStats;
use ncs2::runtime::{FleetConfig, LoadOptions, StickState, StickStats, SubmitOptions};
use ncs2::stats::Latency;
use ncs2_device::{Engine, Timing};
use serde_json::{Value, json};

use super::host::Cost;
use super::load::{Load, Plan, Served, StickTally, Tally};
use super::machine::Machine;
use super::measure::{Heat, Measured, StickRun};
use super::network::{Network, Source};
use super::report::{Config, Context, Pinned, Report};
use super::text;
use crate::cli::Cli;
use crate::open::{Simulation, Sticks};
use crate::output::Output;
use crate::tensor::input;
use crate::timeline::{About, Timeline};

fn blob() -> Blob {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/models/squeezenet1_1_u8_s1.blob");
    Blob::open(path).expect("committed")
}

fn stick(n: usize, speed_mbps: u32) -> StickRun {
    StickRun {
        stats: StickStats {
            id: StickId::sim(n),
            simulated: Some("ncs2".into()),
            paced: None,
            state: StickState::Ready,
            failure: None,
            capabilities: None,
            speed_mbps,
            used_memory_bytes: None,
            temperature_c: None,
            throttle_level: None,
            memory: None,
            completed: 0,
            failed: 0,
            in_flight: 0,
            busy: Duration::ZERO,
            depth_time: Duration::ZERO,
            resets: 0,
            latency: Latency::new(),
            host_pool: PoolStats { high_water_bytes: 1 << 20, ..PoolStats::default() },
            sched: None,
            memory_kind: None,
        },
        busy: Duration::from_millis(9900),
        depth_time: Duration::from_secs(39),
        failed: 0,
        resets: 0,
        pool: (300, 100),
        cache: (400, 0),
        heat: Some(Heat { min: 40.0, max: 42.0, sum: 123.0, count: 3 }),
        throttle_level_max: Some(0),
    }
}

/// Two sticks for ten seconds; `sim0` answers 1000 and `sim1` 800, each in 20 ms.
fn measured(speed_mbps: u32) -> Measured {
    let mut tally = Tally { total_answered: 1900, total_failed: 1, ..Tally::default() };
    let mut sticks = BTreeMap::new();
    for (n, count) in [(0, 1000), (1, 800)] {
        let mut latency = Latency::new();
        (0..count).for_each(|_| latency.record(Duration::from_millis(20)));
        tally.latency.merge(&latency);
        tally.stages[3].merge(&latency);
        sticks.insert(StickId::sim(n), StickTally { completed: count, latency });
    }
    tally.sticks = sticks;
    let mut served = Tally::default();
    served.merge(&tally);
    Measured {
        warmed: Duration::from_secs(1),
        elapsed: Duration::from_secs(10),
        sticks: vec![stick(0, speed_mbps), stick(1, speed_mbps)],
        served: vec![Served { tally: served, sent: 1903 }],
        tally,
        sent: 1903,
        error: None,
        fleet_completed: 1904,
        retried: 5,
        retries_refused: 0,
        windows: vec![180.0, 181.0, 179.0],
        window: Duration::from_secs(1),
        cost: Cost { cpu: Duration::from_millis(180), threads: 9, switches: 3600, ..Cost::default() },
        machine: Machine { throttles: Ok(0), cache_misses: Ok(3600), ..Machine::default() },
        interrupted: false,
        gave_up: false,
    }
}

fn simulation(timing: Timing) -> Simulation {
    Simulation { profile: "ncs2".into(), engine: Engine::Hash, timing }
}

fn report(measured: &Measured, simulation: Option<&Simulation>, paced: Option<bool>) -> Report {
    let networks = [Network::new(blob(), &Source::random(0), 1.0).expect("inputs")];
    let config = Config {
        duration_s: 10.0,
        warmup_s: 1.0,
        depth: 4,
        depth_mode: "fixed",
        graphs: 1,
        batch: 1,
        batch_variants: vec![1],
        policy: "round-robin".into(),
        ordering: "vendor",
        rate_fps: None,
        target_latency_ms: None,
        retries: 2,
        pin: Pinned { policy: "none".into(), reactor: Vec::new() },
        input: "random 0".into(),
        sticks: 2,
    };
    let (target_tops, reactor, zero_copy) = (Some(0.5), "io_uring", Some("in-process"));
    let context = Context { networks: &networks, simulation, paced, config, target_tops, reactor, zero_copy };
    Report::new(&context, measured)
}

fn document(report: &Report) -> Value {
    serde_json::to_value(report).expect("string keys")
}

#[test]
fn figures_follow_from_the_counts() {
    let sim = simulation(Timing::Model);
    let d = document(&report(&measured(0), Some(&sim), Some(true)));
    assert_eq!(d["completed"], 1800);
    assert_eq!(d["fps"], 180.0);
    assert_eq!(d["lost"], 2, "1903 sent, 1900 answered, 1 failed");
    assert_eq!(d["duplicated"], 1);
    // 2 × 349 151 936 × 180 / 10^12.
    assert_eq!(d["tops"], 0.125_695);
    assert_eq!(d["tops_peak"], 2.0);
    assert_eq!(d["percent_of_peak"], 6.284_735);
    assert_eq!(d["target_ratio"], 0.251_389);
    assert_eq!(d["scaling_efficiency"], 0.9, "180 of twice 100");
    assert_eq!(d["latency_ms"]["p99"].as_f64().map(f64::round), Some(20.0));
    assert_eq!(d["host"]["cpu_us_per_inference"], 100.0);
    assert_eq!(d["host"]["context_switches_per_inference"], 2.0);
    assert_eq!(d["host"]["cache_misses_per_inference"], 2.0);
    assert_eq!((&d["host"]["throttled"], &d["host"]["usb_interrupts"]), (&json!(false), &Value::Null));
    assert_eq!(d["host"]["usb_interrupts_reason"], "not measured");
    assert_eq!(d["io"]["zero_copy"], "in-process");
    assert_eq!(
        (&d["models"][0]["completed"], &d["models"][0]["share_completed"]),
        (&json!(1800), &json!(1.0))
    );
    assert_eq!(d["models"][0]["tops"], d["tops"]);
    // Two sticks, busy 99 % of the time, at 1.66 to 2.21 W; 180 inferences a second.
    assert_eq!(d["energy"]["estimated"], true);
    assert_eq!(d["energy"]["joules_per_inference"], json!({"low": 0.018393, "high": 0.024443}));
    assert_eq!(d["devices"][1]["completed"], 800);
    assert_eq!(d["devices"][0]["temperature_c"], json!({"min": 40.0, "mean": 41.0, "max": 42.0}));
    assert_eq!(d["devices"][0]["depth_mean"], 3.9);
    assert_eq!(d["link_ceiling_fps"], Value::Null, "no bus, no ceiling");
    assert_eq!(d["pool"], json!({"hits": 600, "misses": 200, "hit_rate": 0.75, "high_water_bytes": 2 << 20}));
    assert_eq!(d["diagnosis"], "device-bound");
    assert_eq!(d["stable"], true);
}

#[test]
fn every_field_of_the_contract_is_there() {
    let sim = simulation(Timing::Model);
    let d = document(&report(&measured(0), Some(&sim), Some(true)));
    let contract = json!({
        "simulated": 0, "profile": 0, "model": {"name": 0, "sha256": 0, "ops_per_inference": 0, "ops_source": 0},
        "engine": 0, "timing": 0, "paced": 0,
        "config": {"duration_s": 0, "depth": 0, "graphs": 0, "batch": 0, "policy": 0, "ordering": 0},
        "completed": 0, "failed": 0, "lost": 0, "duplicated": 0, "retried": 0, "mismatched": 0,
        "fps": 0, "fps_windows": 0, "stable": 0,
        "latency_ms": {"mean": 0, "p50": 0, "p90": 0, "p95": 0, "p99": 0, "max": 0},
        "stage_us": {"queue": {}, "prepare": {}, "upload": {}, "execute": {}, "download": {}, "finish": {}},
        "tops": 0, "tops_nce": 0, "tops_peak": 0, "percent_of_peak": 0, "tops_reason": 0,
        "target_tops": 0, "target_ratio": 0, "scaling_efficiency": 0, "link_ceiling_fps": 0,
        "host": {"cpu_us_per_inference": 0, "threads": 0, "context_switches_per_inference": 0, "rss_bytes": 0,
                 "page_faults": 0, "involuntary_switches": 0, "throttled": 0},
        "cache": 0, "pool": 0, "io": {"reactor": 0, "zero_copy": 0},
        "diagnosis": 0
    });
    fn check(path: &str, contract: &Value, found: &Value) {
        for (key, inner) in contract.as_object().into_iter().flatten() {
            let path = format!("{path}.{key}");
            let value = found.get(key).unwrap_or_else(|| panic!("{path} is missing"));
            check(&path, inner, value);
        }
    }
    check("", &contract, &d);
    let device = json!({"id": 0, "fps": 0, "tops": 0, "completed": 0, "busy_ratio": 0, "depth_mean": 0,
        "temperature_c": {"min": 0, "mean": 0, "max": 0}, "throttle_level_max": 0, "resets": 0,
        "success_rate": 0, "latency_ms": {}});
    check("devices[0]", &device, &d["devices"][0]);
}

#[test]
fn no_tops_where_no_stick_set_the_pace() {
    for (timing, paced, word) in [(Timing::Zero, true, "timing zero"), (Timing::Model, false, "pace")] {
        let sim = simulation(timing);
        let report = report(&measured(0), Some(&sim), Some(paced));
        let d = document(&report);
        for field in ["tops", "tops_nce", "percent_of_peak", "target_ratio"] {
            assert_eq!(d[field], Value::Null, "{field}");
        }
        assert_eq!(d["devices"][0]["tops"], Value::Null);
        assert!(d["tops_reason"].as_str().is_some_and(|r| r.contains(word)), "{d}");
        assert_eq!(d["diagnosis"], "host-bound");
        let text = text::report(&Output::bare(false, "bench"), &report, Some(&sim));
        assert!(text.contains("no TOPS") && !text.contains("% of the peak"), "{text}");
    }
}

#[test]
fn what_the_fallback_answered_is_in_no_figure_of_the_sticks() {
    let sim = simulation(Timing::Model);
    let before = document(&report(&measured(0), Some(&sim), Some(true)));
    assert_eq!(before["fallback"], Value::Null);
    let mut measured = measured(0);
    let mut latency = Latency::new();
    (0..500).for_each(|_| latency.record(Duration::from_millis(40)));
    let tally = StickTally { completed: 500, latency };
    let part = Tally { fallback: Some((StickId::new("cpu-execute"), tally)), ..Tally::default() };
    measured.tally.merge(&part);
    let report = report(&measured, Some(&sim), Some(true));
    let d = document(&report);
    for field in
        ["tops", "tops_nce", "percent_of_peak", "target_ratio", "fps", "completed", "latency_ms", "devices"]
    {
        assert_eq!(d[field], before[field], "{field}");
    }
    assert_eq!((&d["fallback"]["name"], &d["fallback"]["fps"]), (&"cpu-execute".into(), &50.0.into()));
    assert_eq!(d["fallback"]["completed"], 500);
    let text = text::report(&Output::bare(false, "bench"), &report, Some(&sim));
    assert!(text.contains("500 answers beside these, 50.0 fps by cpu-execute"), "{text}");
}

#[test]
fn real_sticks_are_not_called_simulated_and_have_a_link() {
    let d = document(&report(&measured(5000), None, None));
    assert_eq!(d["simulated"], false);
    assert_eq!((&d["profile"], &d["engine"], &d["paced"]), (&Value::Null, &Value::Null, &Value::Null));
    assert_eq!(d["mismatched"], Value::Null, "nothing to compare with");
    // Two USB 3 links of 350 MB/s, 150 528 bytes in.
    assert_eq!(d["link_ceiling_fps"].as_f64().map(f64::round), Some(4650.0));
    assert!(d["tops"].is_number());
}

#[test]
fn an_empty_run_divides_by_nothing() {
    let sim = simulation(Timing::Model);
    let mut nothing = measured(0);
    nothing.tally = Tally::default();
    nothing.served = vec![Served::default()];
    nothing.elapsed = Duration::ZERO;
    nothing.windows = Vec::new();
    let report = report(&nothing, Some(&sim), Some(true));
    let d = document(&report);
    assert_eq!((&d["fps"], &d["scaling_efficiency"]), (&json!(0.0), &Value::Null));
    assert_eq!(d["host"]["cpu_us_per_inference"], Value::Null);
    assert_eq!(d["stable"], false);
    text::report(&Output::bare(false, "bench"), &report, Some(&sim));
}

#[test]
fn an_answer_that_is_not_the_reference_is_counted() {
    let cli = Cli::parse_from(["ncs2ctl", "--sim", "1", "--timing", "zero", "list"]);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/models/tiny_u8_s1.blob");
    let blob = Blob::open(path).expect("committed");
    let opened = Sticks::find(&cli.global, Engine::Hash).and_then(|s| s.open(FleetConfig::default()));
    let opened = opened.expect("a virtual stick opens");
    let inputs = input::random(blob.graph(), 1, 2);
    let right = |input: &input::Element| {
        let mut bytes = vec![0; blob.graph().output_bytes];
        ncs2_device::hash::output(&blob.hash(), &input.bytes, &mut bytes);
        bytes
    };
    // Inputs take turns: with the answers swapped every one is wrong, with one answer for both every second.
    let [first, second] = [right(&inputs[0]), right(&inputs[1])];
    for (references, wrong) in [
        ([first.clone(), second.clone()], 0.0),
        ([second.clone(), first.clone()], 1.0),
        ([first.clone(), first.clone()], 0.5),
    ] {
        let graph = opened.fleet.load(&blob, LoadOptions::default()).expect("it fits");
        let plan = Plan {
            inputs: inputs.clone(),
            references: Some(references.to_vec()),
            in_flight: 3,
            batch: 1,
            rate: None,
        };
        let load = Load::start(vec![(graph, plan)], None).expect("threads");
        load.set_measuring(true);
        while load.completed() < 100 {
            std::thread::yield_now();
        }
        let mut served = load.finish();
        let Served { tally, sent } = served.remove(0);
        let (completed, mismatched) = (tally.completed() as f64, tally.mismatched as f64);
        assert_eq!(sent, tally.total_answered);
        assert!((mismatched - wrong * completed).abs() <= 2.0 * (wrong * (1.0 - wrong)), "{tally:?}");
    }
    opened.close(&Output::bare(false, "bench")).expect("it closes");
}

#[test]
fn marks_of_requests_stand_in_the_timeline_beside_their_stages() {
    let cli = Cli::parse_from(["ncs2ctl", "--sim", "1", "--timing", "zero", "list"]);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/models/tiny_u8_s1.blob");
    let blob = Blob::open(path).expect("committed");
    let opened = Sticks::find(&cli.global, Engine::Hash).and_then(|s| s.open(FleetConfig::default()));
    let opened = opened.expect("a virtual stick opens");
    let fleet = &opened.fleet;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("run.json");
    let timeline = Timeline::create(&file, fleet.sticks().cloned().collect()).expect("created");
    let collector = fleet.collect_marks(100_000).expect("nobody else collects");

    let inputs = input::random(blob.graph(), 1, 1);
    let wrong = vec![0; blob.graph().output_bytes];
    let plan = Plan { inputs, references: Some(vec![wrong]), in_flight: 2, batch: 1, rate: None };
    let graph = fleet.load(&blob, LoadOptions::default()).expect("it fits");
    // Marks of its own, before the answer is there.
    let ticket = graph.submit(graph.input().expect("memory"), SubmitOptions::default()).expect("a queue");
    fleet.mark(ticket.id(), "by hand");
    ticket.wait().expect("an answer");
    let load = Load::start(vec![(graph, plan)], Some((&timeline, fleet))).expect("threads");
    load.set_measuring(true);
    while load.completed() < 20 {
        std::thread::yield_now();
    }
    let answered = load.finish().remove(0).tally.total_answered;
    timeline.marks_of_requests(collector.take());
    let about = About { profile: Some("ncs2"), models: vec!["tiny"], config: json!({}) };
    assert_eq!(timeline.finish(&about).expect("written"), answered);

    let text = std::fs::read_to_string(&file).expect("written");
    let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let events = document["traceEvents"].as_array().expect("list");
    let marks =
        |name: &str| events.iter().filter(|e| e["ph"] == "i" && e["name"] == *name).collect::<Vec<_>>();
    let by_hand = marks("by hand");
    assert_eq!(by_hand.len(), 1);
    assert!(by_hand[0].get("args").is_none(), "its request is not in this timeline: {}", by_hand[0]);
    let wrong = marks("wrong answer");
    assert_eq!(wrong.len() as u64, answered, "every answer is another than the reference");
    let numbers: std::collections::BTreeSet<_> =
        wrong.iter().map(|e| e["args"]["request"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, (0..answered).collect(), "each mark is of a request of its own");
    let end = |e: &&serde_json::Value| e["ts"].as_f64().expect("µs") + e["dur"].as_f64().unwrap_or(0.0);
    for mark in &wrong {
        let own = |e: &&serde_json::Value| e["ph"] == "X" && e["args"]["request"] == mark["args"]["request"];
        let answered = events.iter().filter(own).map(|e| end(&e)).fold(0.0, f64::max);
        assert!(end(mark) >= answered - 1.0, "marked {} µs, answered {answered} µs", end(mark));
    }
    opened.close(&Output::bare(false, "bench")).expect("it closes");
}

#[test]
fn text_fits_and_says_simulated() {
    let sim = simulation(Timing::Model);
    let text = text::report(
        &Output::bare(false, "bench"),
        &report(&measured(0), Some(&sim), Some(true)),
        Some(&sim),
    );
    println!("{text}");
    assert!(text.contains("simulated: profile ncs2, engine hash, timing model"));
    for words in
        ["180.0 fps", "0.126 TOPS (simulated), 6.28 % of the peak of 2.0", "25.1 % of 0.5 TOPS", "2 lost"]
    {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    for line in text.lines() {
        assert!(line.is_ascii(), "{line}");
        assert!(line.len() <= 100, "{line}");
    }
}
