//! `bench` beyond one measurement: sweeps of depth, comparison with a saved report, soak.

mod tool;

use std::fs;

use tool::schema::holds;
use tool::{fails, json, model, run};

#[test]
fn a_range_of_depths_is_a_table_with_a_knee() {
    let blob = model("squeezenet1_1_u8_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    let args = ["--sim", "1", "bench", blob, "--depth", "1..3", "--duration", "400ms", "--warmup", "100ms"];
    let (code, d) = json(&args, "bench");
    assert_eq!(code, 0, "{d}");
    holds("bench", &d);
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
    let base = [&base[..], &["--depth", "4"]].concat();
    let (code, before) = json(&[&base[..], &["--save", saved]].concat(), "bench");
    assert_eq!(code, 0);
    assert!(before.get("compare").is_none());
    let shallow = [&base[..base.len() - 1], &["2", "--compare", saved]].concat();
    let (code, d) = json(&shallow, "bench");
    assert_eq!(code, 0, "{d}");
    holds("bench", &d);
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
    holds("bench", &d);
    assert!(d["soak"]["stretches"].as_u64() >= Some(3) && d["soak"]["level"] == true, "{}", d["soak"]);
    fails(
        &["--sim", "1", "bench", blob, "--soak", "--depth", "1..2"],
        "bench",
        64,
        "Usage",
        &["--soak", "range"],
    );
}

#[test]
fn levels_show_what_each_lever_buys() {
    let blob = model("tiny_u8_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    let args =
        ["--sim", "1", "bench", blob, "--levels", "--depth", "4", "--duration", "300ms", "--warmup", "100ms"];
    let (code, d) = json(&args, "bench");
    assert_eq!(code, 0, "{d}");
    holds("bench", &d);
    let levels = d["levels"].as_array().expect("list");
    let of = |field: &str| levels.iter().map(|l| l[field].clone()).collect::<Vec<_>>();
    assert_eq!(of("level"), ["baseline", "depth", "graphs", "pipelined", "all"]);
    assert_eq!(of("depth"), [1, 4, 1, 1, 4]);
    assert_eq!(of("graphs"), [1, 1, 4, 1, 4]);
    assert_eq!(of("ordering"), ["vendor", "vendor", "vendor", "pipelined", "pipelined"]);
    assert_eq!(levels[0]["gain"], 1.0);
    // Timing is the model's: four in flight keep the stick busy where one leaves gaps.
    if d["paced"] == true {
        assert!(levels[1]["gain"].as_f64() > Some(1.1), "{d}");
    } else {
        println!("skipped: this computer did not keep the model's pace, so gains are its own");
    }
    assert_eq!(
        (&d["config"]["depth"], &d["fps"]),
        (&levels[4]["depth"], &levels[4]["fps"]),
        "the report is of all"
    );
    fails(
        &["--sim", "1", "bench", blob, "--levels", "--depth", "1..2"],
        "bench",
        64,
        "Usage",
        &["--levels", "range"],
    );
}

#[test]
fn several_networks_share_the_sticks() {
    let (tiny, mlp) = (model("tiny_u8_s1.blob"), model("mlp_fp16_s1.blob"));
    let (tiny, mlp) = (tiny.to_str().expect("UTF-8"), mlp.to_str().expect("UTF-8"));
    let times = ["--duration", "600ms", "--warmup", "100ms"];
    let rated = ["--sim", "2", "bench", tiny, mlp, "--shares", "3,1", "--rate", "200"];
    let (code, d) = json(&[&rated[..], &times].concat(), "bench");
    assert_eq!(code, 0, "{d}");
    holds("bench", &d);
    let models = d["models"].as_array().expect("list");
    assert_eq!((&models[0]["share"], &models[1]["share"]), (&0.75.into(), &0.25.into()));
    let completed: Vec<u64> = models.iter().map(|m| m["completed"].as_u64().expect("number")).collect();
    assert_eq!(completed.iter().sum::<u64>(), d["completed"].as_u64().expect("number"));
    // Far below what the sticks can: the rate decides, and it is 3 to 1. A few are under way at both ends.
    let (heavy, light) = (completed[0] as f64, completed[1] as f64);
    assert!((heavy - 3.0 * light).abs() <= 0.2 * heavy + 6.0, "{completed:?}");
    assert_eq!((&d["mismatched"], &d["lost"]), (&0.into(), &0.into()));
    let tops: f64 = models.iter().filter_map(|m| m["tops"].as_f64()).sum();
    match d["tops"].as_f64() {
        Some(all) => assert!((tops - all).abs() < 1e-5, "{d}"),
        // Where the model's pace was not kept.
        None => assert!(d["paced"] == false && d["tops_reason"].is_string(), "{d}"),
    }
    let ran = run(&[&rated[..], &times].concat());
    assert!(ran.stdout.contains("75.0 %") && ran.stdout.contains("mlp_fp16_s1"), "{}", ran.stdout);

    fails(
        &["--sim", "1", "bench", tiny, mlp, "--shares", "1"],
        "bench",
        64,
        "Usage",
        &["2 networks", "found 1"],
    );
    fails(&["--sim", "1", "bench", tiny, tiny], "bench", 64, "Usage", &["twice"]);
    fails(&["--sim", "1", "bench", tiny, mlp, "--input", "x.npy"], "bench", 64, "Usage", &["--input"]);
    fails(&["--sim", "1", "bench", tiny, mlp, "--batch", "4"], "bench", 64, "Usage", &["one network"]);
}

#[test]
fn batch_variants_are_measured_side_by_side() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (net, four) = (folder.path().join("net.blob"), folder.path().join("net@4.blob"));
    let blobs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/blobs");
    fs::copy(model("tiny_u8_s1.blob"), &net).expect("copied");
    fs::copy(format!("{blobs}/tiny_b4_u8_s2.blob"), &four).expect("copied");
    let net = net.to_str().expect("UTF-8");
    let args = |more: &[&'static str]| {
        let first = ["--sim", "1", "bench", net, "--duration", "300ms", "--warmup", "100ms"];
        [&first[..], more].concat()
    };
    let (code, d) = json(&args(&["--batch-sizes", "4,1"]), "bench");
    assert_eq!(code, 0, "{d}");
    holds("bench", &d);
    let points = d["batches"]["points"].as_array().expect("list");
    assert_eq!(points.iter().map(|p| p["batch"].as_u64().expect("number")).collect::<Vec<_>>(), [1, 4]);
    for point in points {
        let (fps, elements) = (point["fps"].as_f64().expect("number"), point["elements_per_s"].as_f64());
        let batch = point["batch"].as_f64().expect("number");
        assert!((elements.expect("number") - batch * fps).abs() < 0.01, "{point}");
    }
    assert_eq!(d["config"]["batch"], d["batches"]["best_batch"], "the report is the best one's");
    // These two differ in the type of their output: the fleet may not take the one for the other.
    fails(&args(&["--batch", "auto"]), "bench", 2, "InvalidInput", &["net@4", "another network"]);
    let (_, fixed) = json(&args(&["--batch", "4"]), "bench");
    assert_eq!((&fixed["config"]["batch"], &fixed["model"]["name"]), (&4.into(), &"net@4".into()));
    fails(&args(&["--batch", "8"]), "bench", 2, "NotFound", &["net@8.blob", "ncs2ctl compile"]);
    fs::copy(&four, folder.path().join("net@2.blob")).expect("copied");
    fails(&args(&["--batch", "2"]), "bench", 2, "InvalidBlob", &["expected batch 2, found batch 4"]);
    for name in ["net@2.blob", "net@4.blob"] {
        fs::remove_file(folder.path().join(name)).expect("removed");
    }
    let (code, auto) = json(&args(&["--batch", "auto"]), "bench");
    holds("bench", &auto);
    assert_eq!((code, &auto["config"]["batch_variants"]), (0, &serde_json::json!([1])), "{auto}");
}

#[test]
fn targets_are_kept_or_missed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("targets.toml");
    let targets = file.to_str().expect("UTF-8");
    let blob = model("tiny_u8_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    let args =
        ["--sim", "1", "bench", blob, "--targets", targets, "--duration", "300ms", "--warmup", "100ms"];
    let budgets =
        "[networks.tiny_u8_s1]\nfps = 1\np99_ms = 60000\nstick_memory_mb = 512\nhost_memory_mb = 512\n";
    fs::write(&file, budgets).expect("written");
    let (code, d) = json(&args, "bench");
    assert_eq!(code, 0, "{d}");
    holds("bench", &d);
    let rows = d["targets"].as_array().expect("list");
    assert!(rows.len() == 4 && rows.iter().all(|r| r["met"] == true && r["measured"].is_number()), "{d}");
    fs::write(&file, format!("{budgets}max_ms = 0.001\n")).expect("written");
    let ran = run(&args);
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    assert_eq!(ran.stdout.matches("NO").count(), 1, "{}", ran.stdout);
    assert!(ran.stderr.contains("1 of the budgets not kept"), "{}", ran.stderr);
    fs::write(&file, "[networks.other]\nfps = 1\n").expect("written");
    fails(&args, "bench", 2, "InvalidInput", &["networks.tiny_u8_s1", "found other"]);
}

#[test]
fn threads_are_pinned_where_asked() {
    let blob = model("tiny_u8_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    let cpu = ncs2::topology::allowed_cpus()[0].to_string();
    let args = |pin: &'static str| {
        ["--sim", "1", "bench", blob, "--duration", "200ms", "--warmup", "0s", "--pin", pin]
    };
    let (code, d) = json(&[&args("none")[..9], &[&cpu]].concat(), "bench");
    assert_eq!((code, &d["config"]["pin"]["reactor"][0].to_string()), (0, &cpu), "{d}");
    let (_, d) = json(&args("none"), "bench");
    assert_eq!(d["config"]["pin"], serde_json::json!({"policy": "none", "reactor": []}));
    fails(&args("1023"), "bench", 2, "InvalidInput", &["name some of"]);
    fails(&args("all"), "bench", 64, "Usage", &["auto, none"]);
}

#[test]
fn policies_show_their_differences() {
    let blob = model("tiny_u8_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    let args = |policy: &'static str| {
        [
            "--sim",
            "2",
            "bench",
            blob,
            "--depth",
            "2",
            "--duration",
            "500ms",
            "--warmup",
            "100ms",
            "--policy",
            policy,
        ]
    };
    let completed =
        |d: &serde_json::Value, at: usize| d["devices"][at]["completed"].as_f64().expect("number");
    for policy in ["thermal", "fastest", "least-loaded", "round-robin", "strict-round-robin"] {
        let (code, d) = json(&args(policy), "bench");
        holds("bench", &d);
        assert_eq!((code, d["config"]["policy"].as_str()), (0, Some(policy)), "{d}");
        assert!(completed(&d, 0) > 0.0 && completed(&d, 1) > 0.0, "{policy}: {d}");
        assert_eq!(d["cache"]["hit_rate"], 1.0, "{policy}: the graph was there before the first request");
    }
    // At a rate that either stick could bear alone, the weights decide.
    let rated = [&args("weighted=sim0:3,sim1:1")[..], &["--rate", "150"]].concat();
    let (code, d) = json(&rated, "bench");
    assert_eq!((code, d["config"]["policy"].as_str()), (0, Some("weighted=sim0:3,sim1:1")), "{d}");
    assert!(completed(&d, 0) > 1.5 * completed(&d, 1), "{d}");
    fails(&args("weighted=sim7:1"), "bench", 64, "Usage", &["sim7", "sim0, sim1"]);
    fails(&args("weighted=sim0"), "bench", 64, "Usage", &["weighted=STICK:WEIGHT"]);
    fails(&args("hottest"), "bench", 64, "Usage", &["hottest"]);
}

#[test]
fn depth_is_found_and_keeps_a_target_latency() {
    let blob = model("tiny_u8_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    let args = ["--sim", "1", "bench", blob, "--duration", "600ms", "--warmup", "100ms"];
    let (code, free) = json(&args, "bench");
    assert_eq!(code, 0, "{free}");
    holds("bench", &free);
    assert_eq!(free["config"]["depth_mode"], "auto");
    let depth = |d: &serde_json::Value| d["config"]["depth"].as_u64().expect("number");
    assert!((1..=16).contains(&depth(&free)), "{}", free["config"]);
    if free["paced"] == true {
        assert!(depth(&free) > 1, "one at a time leaves gaps: {}", free["config"]);
    }
    assert_eq!(free["devices"][0]["depth"], free["config"]["depth"]);
    // Less than one inference takes: nothing can be kept in flight beside it.
    let (_, tight) = json(&[&args[..], &["--target-latency", "0.1"]].concat(), "bench");
    assert_eq!(
        (depth(&tight), &tight["config"]["target_latency_ms"]),
        (1, &0.1.into()),
        "{}",
        tight["config"]
    );
    let fixed = [&args[..], &["--target-latency", "5", "--depth", "2"]].concat();
    fails(&fixed, "bench", 64, "Usage", &["--target-latency", "--depth"]);
}
