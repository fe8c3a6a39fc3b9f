//! `bench --trace-out` and `trace`, which reads what it wrote.

mod tool;

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;
use tool::schema::holds;
use tool::{fails, json, model, run};

const STAGES: [&str; 6] = ["queue", "prepare", "upload", "execute", "download", "finish"];

/// Microseconds of the events are decimal fractions: what adds up in nanoseconds must not fail for a float's last digit.
fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 0.002
}

#[test]
fn every_stage_of_every_inference_is_in_the_file() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("run.json");
    let file = file.to_str().expect("UTF-8");
    let (tiny, mlp) = (model("tiny_u8_s1.blob"), model("mlp_fp16_s1.blob"));
    let (tiny, mlp) = (tiny.to_str().expect("UTF-8"), mlp.to_str().expect("UTF-8"));
    let times = ["--duration", "1200ms", "--warmup", "100ms", "--trace-out", file];
    let (code, d) = json(&[&["--sim", "2", "bench", tiny, mlp][..], &times].concat(), "bench");
    assert_eq!(code, 0, "{d}");

    let text = fs::read_to_string(file).expect("written");
    let document: Value = serde_json::from_str(&text).expect("JSON");
    let about = &document["otherData"];
    assert_eq!((&about["simulated"], &about["profile"]), (&true.into(), &"ncs2".into()));
    assert_eq!(about["models"], serde_json::json!(["tiny_u8_s1", "mlp_fp16_s1"]));
    let events = document["traceEvents"].as_array().expect("list");
    let mut requests: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
    for event in events.iter().filter(|e| e["ph"] == "X") {
        requests.entry(event["args"]["request"].as_u64().expect("number")).or_default().push(event);
    }
    // The warm-up and the drain are in it, too.
    assert!(requests.len() as u64 >= d["completed"].as_u64().expect("number"), "{}", requests.len());
    let time = |e: &Value, field: &str| e[field].as_f64().expect("number");
    let mut lines: BTreeMap<(u64, u64), f64> = BTreeMap::new();
    let mut by_start: Vec<&Vec<&Value>> = requests.values().collect();
    by_start.sort_by(|a, b| time(a[0], "ts").total_cmp(&time(b[0], "ts")));
    for stages in by_start {
        assert_eq!(stages.iter().map(|e| e["name"].as_str().expect("text")).collect::<Vec<_>>(), STAGES);
        for pair in stages.windows(2) {
            assert!(near(time(pair[0], "ts") + time(pair[0], "dur"), time(pair[1], "ts")), "{pair:?}");
        }
        // On one line of a stick nothing overlaps, or the picture is wrong.
        let line = (stages[0]["pid"].as_u64().expect("number"), stages[0]["tid"].as_u64().expect("number"));
        let free = lines.entry(line).or_insert(0.0);
        assert!(*free <= time(stages[0], "ts") + 0.002, "{line:?}: {free} {}", stages[0]);
        *free = time(stages[5], "ts") + time(stages[5], "dur");
    }
    let heat = events.iter().filter(|e| e["name"] == "temperature");
    assert!(heat.clone().count() >= 2, "each stick's temperature");
    assert!(heat.clone().all(|e| e["args"]["celsius"].as_f64().is_some_and(|c| c > 0.0)));
    for mark in ["warm-up", "measure", "drain"] {
        assert_eq!(events.iter().filter(|e| e["ph"] == "i" && e["name"] == mark).count(), 1, "{mark}");
    }

    let (code, t) = json(&["trace", file], "trace");
    assert_eq!(code, 0, "{t}");
    holds("trace", &t);
    assert_eq!((&t["simulated"], t["requests"].as_u64()), (&true.into(), Some(requests.len() as u64)));
    let stages = t["stages"].as_array().expect("list");
    assert_eq!(stages.iter().map(|s| s["stage"].as_str().expect("text")).collect::<Vec<_>>(), STAGES);
    for stage in stages {
        let name = &stage["stage"];
        let own: Vec<f64> =
            events.iter().filter(|e| e["ph"] == "X" && e["name"] == *name).map(|e| time(e, "dur")).collect();
        let total: f64 = own.iter().sum();
        assert!((time(stage, "total_ms") * 1e3 - total).abs() <= 1.0 + 1e-6 * total, "{stage}: {total}");
        assert_eq!(stage["count"].as_u64(), Some(own.len() as u64));
        assert!(near(time(stage, "max_us"), own.iter().copied().fold(0.0, f64::max)), "{stage}");
        assert!(time(stage, "p99_us") <= time(stage, "max_us"));
    }
    let slowest = t["slowest"].as_array().expect("list");
    assert_eq!(slowest.len(), 10);
    assert!(slowest.windows(2).all(|w| time(&w[0], "duration_us") >= time(&w[1], "duration_us")), "{t}");

    // The middle half of what there is, wherever on the clock that lies.
    let mut starts: Vec<f64> = events
        .iter()
        .filter(|e| e["ph"] == "X" && e["name"] == "execute")
        .map(|e| time(e, "ts") / 1e3)
        .collect();
    starts.sort_by(f64::total_cmp);
    let (begin, end) = (starts[starts.len() / 4].floor(), starts[3 * starts.len() / 4].ceil() + 1.0);
    let (from, to) = (begin.to_string(), end.to_string());
    let (_, t) =
        json(&["trace", file, "--stage", "execute", "--from", &from, "--to", &to, "--slowest", "3"], "trace");
    holds("trace", &t);
    assert_eq!(
        (t["stages"].as_array().map(Vec::len), t["slowest"].as_array().map(Vec::len)),
        (Some(1), Some(3))
    );
    for slow in t["slowest"].as_array().expect("list") {
        assert!((begin..end).contains(&time(slow, "start_ms")) && slow["stage"] == "execute", "{slow}");
    }
    let ran = run(&["trace", file]);
    for words in ["simulated: profile ncs2", "execute", "slowest", "sim1"] {
        assert!(ran.stdout.contains(words), "{words} in\n{}", ran.stdout);
    }
    let ran = run(&["trace", file, "--from", "3600000"]);
    assert_eq!(ran.code, 1, "nothing begins after an hour");
}

#[test]
fn files_that_are_no_timeline_are_named() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("x.json");
    let file = path.to_str().expect("UTF-8");
    fails(&["trace", file], "trace", 2, "NotFound", &["x.json"]);
    for bad in ["", "not json", "{}", "{\"traceEvents\": [{\"ph\": \"X\", \"dur\": -1}]}"] {
        fs::write(&path, bad).expect("written");
        fails(&["trace", file], "trace", 2, "InvalidInput", &["x.json", "--trace-out"]);
    }
    fails(&["trace", file, "--from", "5", "--to", "5"], "trace", 64, "Usage", &["--to"]);
    fails(&["trace", file, "--from", "-1"], "trace", 64, "Usage", &["--from"]);
}

#[test]
fn a_timeline_that_cannot_be_written_is_said_at_once() {
    let blob = model("tiny_u8_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    let args = |out: &'static str| ["--sim", "1", "bench", blob, "--duration", "10m", "--trace-out", out];
    fails(&args("/nowhere/at/all/x.json"), "bench", 2, "NotFound", &["/nowhere/at/all/x.json", "folder"]);
    fails(&args("/"), "bench", 2, "InvalidInput", &["a folder"]);
    let range = ["--sim", "1", "bench", blob, "--depth", "1..2", "--trace-out", "x.json"];
    fails(&range, "bench", 64, "Usage", &["--trace-out", "range"]);
}
