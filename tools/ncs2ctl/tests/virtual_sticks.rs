//! `info`, `run` and `bench` from end to end on virtual sticks.

mod tool;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tool::{json, model, run};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn list_and_info_say_simulated() {
    let (code, list) = json(&["--sim", "3", "list"], "list");
    assert_eq!((code, &list["simulated"]), (0, &Value::Bool(true)));
    let ids: Vec<&str> =
        list["devices"].as_array().expect("list").iter().filter_map(|d| d["id"].as_str()).collect();
    assert_eq!(ids, ["sim0", "sim1", "sim2"]);
    assert!(list["devices"].as_array().expect("list").iter().all(|d| d["simulated"] == true));
    assert!(run(&["--sim", "1", "list"]).stdout.contains("simulated"));

    let (code, info) = json(&["--sim", "2", "--device", "sim1", "info"], "info");
    assert_eq!((code, &info["simulated"]), (0, &Value::Bool(true)));
    let devices = info["devices"].as_array().expect("list");
    assert_eq!(devices.len(), 1);
    assert_eq!((&devices[0]["id"], &devices[0]["state"]), (&"sim1".into(), &"ready".into()));
    assert_eq!(devices[0]["chip"], "Myriad X");
    assert!(number(&devices[0]["max_memory_bytes"]) > 1e8);
    assert!((-20.0..=120.0).contains(&number(&devices[0]["temperature_c"])), "{info}");
    let said = run(&["--sim", "1", "info"]);
    assert!(said.stdout.contains("simulated") && said.stdout.contains("Myriad X"), "{}", said.stdout);
}

#[test]
fn run_gives_the_answers_of_the_references() {
    let folder = tempfile::tempdir().expect("temporary folder");
    for (name, input, output) in
        [("tiny_fp16_s1", "data", "prob"), ("tiny_u8_s1", "data", "prob"), ("mlp_fp16_s1", "data", "prob")]
    {
        let blob = model(&format!("{name}.blob"));
        let input = model(&format!("{name}.in.{input}.npy"));
        let reference = model(&format!("{name}.out.{output}.npy"));
        let out = folder.path().join(name);
        let args = [
            "--sim",
            "1",
            "run",
            text(&blob),
            "--input",
            text(&input),
            "--check",
            text(&reference),
            "--tolerance",
            "1%",
            "--top",
            "3",
            "--output",
            text(&out),
        ];
        let (code, d) = json(&args, "run");
        assert_eq!(code, 0, "{name}: {d}");
        assert_eq!(
            (&d["simulated"], &d["engine"], &d["device"]),
            (&true.into(), &"execute".into(), &"sim0".into())
        );
        let first = &d["outputs"][0];
        assert_eq!((&first["name"], &first["dtype"]), (&output.into(), &"f16".into()));
        assert_eq!(first["shape"], serde_json::json!([1, 10]));
        let top = first["top"].as_array().expect("asked for");
        assert_eq!(top.len(), 3);
        assert!(number(&top[0]["value"]) >= number(&top[1]["value"]));
        assert_eq!(d["checks"][0]["pass"], true, "{name}: {d}");
        assert!(number(&d["latency_ms"]) > 0.0);
        let file = out.join(format!("{output}.npy"));
        assert_eq!(first["file"], text(&file));
        // What was written can be checked against itself, to the last bit.
        let again = [
            "--sim",
            "1",
            "run",
            text(&blob),
            "--input",
            text(&input),
            "--check",
            text(&file),
            "--tolerance",
            "0",
        ];
        assert_eq!(run(&again).code, 0, "{name}");
    }
}

#[test]
fn a_check_that_fails_exits_1() {
    let (blob, input) = (model("tiny_fp16_s1.blob"), model("tiny_fp16_s1.in.data.npy"));
    // The same shape, another network's answer.
    let wrong = model("mlp_fp16_s1.out.prob.npy");
    let args = ["--sim", "1", "run", text(&blob), "--input", text(&input), "--check", text(&wrong)];
    let (code, d) = json(&args, "run");
    assert_eq!((code, &d["checks"][0]["pass"]), (1, &false.into()));
    let said = run(&args);
    assert_eq!(said.code, 1);
    assert!(said.stdout.contains("NOT within"), "{}", said.stdout);
}

#[test]
fn several_inputs_are_several_inferences_in_order() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (blob, input) = (model("tiny_u8_s1.blob"), model("tiny_u8_s1.in.data.npy"));
    let zeros = folder.path().join("zeros.bin");
    fs::write(&zeros, vec![0u8; 2 * 3 * 32 * 32]).expect("written");
    let out = folder.path().join("out");
    let args = [
        "--sim",
        "2",
        "--timing",
        "zero",
        "run",
        text(&blob),
        "--input",
        text(&zeros),
        text(&input),
        "--output",
        text(&out),
    ];
    let (code, d) = json(&args, "run");
    assert_eq!(code, 0);
    let inferences = d["inferences"].as_array().expect("several");
    assert_eq!(inferences.len(), 3, "two in the .bin, one in the .npy");
    let read = |n: usize| fs::read(out.join(format!("{n}.prob.npy"))).expect("written");
    assert_eq!(read(0), read(1), "the same input");
    assert_ne!(read(0), read(2), "another input");
    // The third is what it is alone.
    let alone = folder.path().join("alone");
    let args = ["--sim", "1", "run", text(&blob), "--input", text(&input), "--output", text(&alone)];
    assert_eq!(run(&args).code, 0);
    assert_eq!(fs::read(alone.join("prob.npy")).expect("written"), read(2));
}

#[test]
fn run_in_text_has_labels_and_says_what_the_values_are() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let labels = folder.path().join("labels.txt");
    fs::write(&labels, (0..10).map(|n| format!("thing {n}\n")).collect::<String>()).expect("written");
    let blob = model("tiny_fp16_s1.blob");
    let args = ["--sim", "1", "run", text(&blob), "--random", "7", "--top", "2", "--labels", text(&labels)];
    let first = run(&args);
    assert_eq!(first.code, 0);
    assert_eq!(first.stdout.matches("thing ").count(), 2, "{}", first.stdout);
    assert!(first.stdout.contains("simulated: profile ncs2, engine execute"), "{}", first.stdout);
    let hash = run(&["--sim", "1", "--engine", "hash", "run", text(&blob), "--random", "7"]);
    assert!(hash.stdout.contains("not the network's answer"), "{}", hash.stdout);
}

#[test]
fn run_takes_every_output_of_a_network_with_several() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (blob, input) = (model("lstm_fp16_s1.blob"), model("lstm_fp16_s1.in.seq.npy"));
    let checks: Vec<String> = ["cn", "hn", "out"]
        .iter()
        .map(|name| format!("{name}={}", text(&model(&format!("lstm_fp16_s1.out.{name}.npy")))))
        .collect();
    let input = format!("seq={}", text(&input));
    let args = [
        "--sim",
        "1",
        "run",
        text(&blob),
        "--input",
        &input,
        "--output",
        text(folder.path()),
        "--check",
        &checks[0],
        &checks[1],
        &checks[2],
    ];
    let (code, d) = json(&args, "run");
    assert_eq!(code, 0, "{d}");
    let written: BTreeSet<_> =
        fs::read_dir(folder.path()).expect("made").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(written, ["cn.npy", "hn.npy", "out.npy"].map(Into::into).into());
}

#[test]
fn bench_counts_agree_with_each_other() {
    let blob = model("squeezenet1_1_u8_s1.blob");
    let args = ["--sim", "3", "bench", text(&blob), "--duration", "1s", "--warmup", "300ms"];
    let (code, d) = json(&args, "bench");
    assert_eq!(code, 0, "{d}");
    assert_eq!(
        (&d["simulated"], &d["profile"], &d["engine"], &d["timing"]),
        (&true.into(), &"ncs2".into(), &"hash".into(), &"model".into())
    );
    let completed = number(&d["completed"]);
    assert!(completed > 0.0);
    for counter in ["failed", "lost", "duplicated", "mismatched", "retried"] {
        assert_eq!(d[counter], 0, "{counter}: {d}");
    }
    let (fps, seconds) = (number(&d["fps"]), number(&d["seconds"]));
    // How much longer than asked for is this machine's affair.
    assert!(seconds >= 1.0, "{seconds}");
    assert!((fps * seconds - completed).abs() <= 0.01 * completed + 1.0, "{d}");
    let devices = d["devices"].as_array().expect("list");
    assert_eq!(devices.len(), 3);
    let sum = |field: &str| devices.iter().map(|d| number(&d[field])).sum::<f64>();
    assert_eq!(sum("completed"), completed);
    assert!((sum("fps") - fps).abs() < 0.1, "{d}");
    let windows = d["fps_windows"].as_array().expect("list");
    assert_eq!(windows.len(), 3, "a short run still has three");
    let l = &d["latency_ms"];
    let order = ["p50", "p90", "p95", "p99", "max"].map(|q| number(&l[q]));
    assert!(order.is_sorted(), "{order:?}");
    if d["paced"] == true {
        let tops = number(&d["tops"]);
        let macs = number(&d["model"]["macs"]);
        assert!((tops - 2.0 * macs * fps / 1e12).abs() <= 1e-3 * tops + 1e-6, "{d}");
        assert!((number(&d["percent_of_peak"]) - 100.0 * tops / 3.0).abs() < 0.01, "{d}");
        assert!(tops < 1.5, "a share of the peak that no real network reaches: {d}");
    }
    assert_eq!(number(&d["model"]["ops_per_inference"]), 698_303_872.0);
}

#[test]
fn bench_without_time_claims_no_tops() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let saved = folder.path().join("report.json");
    let blob = model("tiny_u8_s1.blob");
    let args = [
        "--sim",
        "2",
        "--timing",
        "zero",
        "bench",
        text(&blob),
        "--duration",
        "300ms",
        "--warmup",
        "0s",
        "--save",
        text(&saved),
        "--target-tops",
        "1",
        "--ordering",
        "pipelined",
        "--depth",
        "8",
    ];
    let (code, d) = json(&args, "bench");
    assert_eq!(code, 0, "{d}");
    for field in ["tops", "tops_nce", "percent_of_peak", "target_ratio"] {
        assert_eq!(d[field], Value::Null, "{field}");
    }
    assert!(d["tops_reason"].as_str().is_some_and(|r| r.contains("timing zero")));
    assert_eq!((&d["config"]["ordering"], &d["config"]["depth"]), (&"pipelined".into(), &8.into()));
    let saved: Value = serde_json::from_slice(&fs::read(saved).expect("written")).expect("a document");
    assert_eq!(saved, d);
}

#[test]
fn bench_too_slow_exits_1_and_a_rate_is_kept() {
    let blob = model("mlp_fp16_s1.blob");
    let args = [
        "--sim",
        "1",
        "bench",
        text(&blob),
        "--rate",
        "50",
        "--duration",
        "1s",
        "--warmup",
        "100ms",
        "--min-fps",
        "1000",
    ];
    let (code, d) = json(&args, "bench");
    assert_eq!(code, 1, "{d}");
    // Without the rate it would be over a thousand; a machine that stalls answers fewer, or catches up.
    assert!(number(&d["fps"]) > 0.0 && number(&d["fps"]) <= 150.0, "{d}");
    assert_eq!(d["config"]["rate_fps"], 50.0);
}

#[test]
fn bench_in_text_shows_the_report() {
    let blob = model("tiny_u8_s1.blob");
    let args =
        ["--sim", "3", "bench", text(&blob), "--duration", "300ms", "--warmup", "0s", "--target-tops", "1"];
    let ran = run(&args);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    for words in ["simulated: profile ncs2", "fps", "p99", "peak", "sim2", "0 lost"] {
        assert!(ran.stdout.contains(words), "{words} in\n{}", ran.stdout);
    }
    assert_eq!(ran.stderr, "", "no progress where nobody watches");
}

#[test]
fn interrupt_still_prints_the_report() {
    use std::io::Read;
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_ncs2ctl"))
        .args(["--sim", "1", "--json", "-vv", "bench", "--duration", "10m", "--warmup", "0s"])
        .arg(model("tiny_u8_s1.blob"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // The tool says on stderr, at -vv, when it begins to measure: no guess about time is needed.
    let mut stderr = child.stderr.take().expect("piped");
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !String::from_utf8_lossy(&said).contains("measuring") {
        assert_eq!(stderr.read(&mut byte).expect("pipe"), 1, "{}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
    // Nobody reads the log from here on; it must not stop the tool either.
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("not 0");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("ours");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    let d: Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert_eq!((&d["interrupted"], &d["schema"]), (&true.into(), &"ncs2ctl.bench/1".into()));
    assert!(number(&d["seconds"]) < 600.0);
}
