//! `bench` beyond one measurement: sweeps of depth, comparison with a saved report, soak.

mod tool;

use std::fs;

use tool::{fails, json, model, run};

#[test]
fn a_range_of_depths_is_a_table_with_a_knee() {
    let blob = model("squeezenet1_1_u8_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    let args = ["--sim", "1", "bench", blob, "--depth", "1..3", "--duration", "400ms", "--warmup", "100ms"];
    let (code, d) = json(&args, "bench");
    assert_eq!(code, 0, "{d}");
    let points = d["sweep"]["points"].as_array().expect("list");
    assert_eq!(points.iter().map(|p| p["depth"].as_u64().expect("number")).collect::<Vec<_>>(), [1, 2, 3]);
    let best = points.iter().map(|p| p["fps"].as_f64().expect("number")).fold(0.0, f64::max);
    let knee = points.iter().find(|p| p["fps"].as_f64() >= Some(0.95 * best)).expect("one is the best");
    assert_eq!(d["sweep"]["knee_depth"], knee["depth"]);
    assert_eq!(
        (&d["config"]["depth"], &d["fps"]),
        (&knee["depth"], &knee["fps"]),
        "the report is the knee's"
    );
    let ran = run(&args);
    assert_eq!(ran.stdout.matches("knee").count(), 2, "a heading and a mark in\n{}", ran.stdout);
}

#[test]
fn a_saved_report_is_compared_with() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let saved = folder.path().join("a.json");
    let saved = saved.to_str().expect("UTF-8");
    let blob = model("tiny_u8_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    let base = ["--sim", "1", "bench", blob, "--rate", "100", "--duration", "600ms", "--warmup", "100ms"];
    let (code, before) = json(&[&base[..], &["--save", saved]].concat(), "bench");
    assert_eq!(code, 0);
    assert!(before.get("compare").is_none());
    let (code, d) = json(&[&base[..], &["--compare", saved, "--depth", "2"]].concat(), "bench");
    assert_eq!(code, 0, "{d}");
    let c = &d["compare"];
    assert_eq!(c["fps_before"], before["fps"]);
    assert!(c["significant"].is_boolean() && c["t"].is_number(), "{c}");
    assert_eq!(c["differences"], serde_json::json!(["depth: 4 before, 2 now"]));
    let ran = run(&[&base[..], &["--compare", saved]].concat());
    assert!(ran.stdout.contains("noise of the windows"), "{}", ran.stdout);

    // Against a tenth of the speed the difference is no noise.
    let mut slow = before.clone();
    slow["fps"] = 10.0.into();
    slow["fps_windows"] = serde_json::json!([10.0, 10.1, 9.9]);
    fs::write(saved, slow.to_string()).expect("written");
    let (_, d) = json(&[&base[..], &["--compare", saved]].concat(), "bench");
    assert_eq!(d["compare"]["significant"], true, "{}", d["compare"]);

    fs::write(saved, "{}").expect("written");
    fails(&[&base[..], &["--compare", saved]].concat(), "bench", 2, "InvalidInput", &["a.json", "--save"]);
}

#[test]
fn a_soak_ends_when_the_heat_is_level() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let profile = folder.path().join("quick.toml");
    let built_in =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../device/profiles/ncs2.toml"))
            .expect("committed");
    fs::write(
        &profile,
        built_in.replace("tau_s = 450.0", "tau_s = 0.05").replace("full_w = 2.2", "full_w = 1.2"),
    )
    .expect("written");
    let sim = format!("1,{}", profile.display());
    let blob = model("tiny_u8_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    let args =
        ["--sim", &sim, "bench", blob, "--soak", "--rate", "50", "--duration", "300ms", "--warmup", "1s"];
    // Work warms this one no more than rest does, so it levels soon; one that never did would hang: time is bounded.
    let output = tool::ncs2ctl()
        .arg("--json")
        .args(args)
        .timeout(std::time::Duration::from_secs(100))
        .output()
        .expect("it starts");
    let d: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert_eq!(output.status.code(), Some(0), "{d}");
    assert!(d["soak"]["stretches"].as_u64() >= Some(3) && d["soak"]["level"] == true, "{}", d["soak"]);
    fails(
        &["--sim", "1", "bench", blob, "--soak", "--depth", "1..2"],
        "bench",
        64,
        "Usage",
        &["--soak", "range"],
    );
}
