//! Sticks of another process: its statistics in `thermal` and `top`, and virtual sticks behind a socket.

mod tool;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tool::{conforms, fails, json, lines, model, ncs2ctl, start};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Runs with this runtime folder, `--json` and a document for each line.
fn beside(folder: &Path, args: &[&str], schema: &str) -> (i32, Vec<Value>) {
    let output = ncs2ctl()
        .args(["--json"])
        .args(args)
        .env("XDG_RUNTIME_DIR", folder)
        .env("NCS2_STATS_SOCKET", "true")
        .output()
        .expect("it starts");
    let code = output.status.code().expect("it exits by itself");
    if output.stdout.starts_with(b"{\n") {
        let document = serde_json::from_slice(&output.stdout).expect("a document");
        conforms(schema, &document);
        return (code, vec![document]);
    }
    (code, lines(&output.stdout, schema))
}

#[test]
fn thermal_and_top_read_what_the_process_that_holds_the_sticks_tells() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let blob = model("squeezenet1_1_u8_s1.blob");
    let bench = start(
        &["--sim", "2", "-vv", "bench", text(&blob), "--duration", "10m", "--warmup", "0s"],
        &[("XDG_RUNTIME_DIR", folder.path())],
        "measuring",
    );
    let pid = bench.0.id();

    let (code, looks) =
        beside(folder.path(), &["thermal", "watch", "--count", "2", "--interval", "300ms"], "thermal");
    assert_eq!((code, looks.len()), (0, 2));
    let device = &looks[1]["devices"][0];
    assert_eq!((&device["process"], &device["simulated"]), (&pid.into(), &true.into()), "{}", looks[1]);
    assert!(device["temperature_c"].as_f64().is_some_and(|t| (20.0..80.0).contains(&t)), "{device}");
    assert!(device["load_share"].as_f64().is_some_and(|s| (0.1..0.9).contains(&s)), "{device}");

    // Between two looks a busy machine may have answered nothing; sooner or later it does.
    let end = Instant::now() + Duration::from_secs(60);
    let top = loop {
        let (code, top) = beside(folder.path(), &["top", "--interval", "300ms"], "top");
        assert_eq!((code, &top[0]["simulated"]), (0, &true.into()));
        if top[0]["totals"]["fps"].as_f64().is_some_and(|fps| fps > 0.0) {
            break top;
        }
        assert!(Instant::now() < end, "{}", top[0]);
    };
    assert_eq!(top[0]["fleets"][0]["process"], pid);
    assert_eq!(top[0]["fleets"][0]["models"], serde_json::json!(["squeezenet1_1_u8_s1"]));
    // A busy computer may not keep the model's pace; what is printed is the model's, or the reason why not.
    let (tops, why) = (&top[0]["totals"]["tops"], &top[0]["totals"]["tops_reason"]);
    match tops.as_f64() {
        Some(tops) => assert!((1e-6..1.0).contains(&tops) && why.is_null(), "{}", top[0]),
        None => assert!(why.as_str().is_some_and(|why| why.contains("did not keep the pace")), "{}", top[0]),
    }

    let (code, one) = beside(folder.path(), &["--device", "sim1", "thermal"], "thermal");
    assert_eq!((code, one[0]["devices"].as_array().map(Vec::len)), (0, Some(1)));
    let (code, _) = beside(folder.path(), &["thermal", "--attach", &pid.to_string()], "thermal");
    assert_eq!(code, 0);
    let (code, none) = beside(folder.path(), &["thermal", "--attach", "1"], "thermal");
    assert_eq!((code, &none[0]["error"]["kind"]), (2, &"NotFound".into()));
    let (code, busy) = beside(folder.path(), &["top", text(&blob)], "top");
    assert_eq!((code, &busy[0]["error"]["kind"]), (2, &"InUse".into()), "{}", busy[0]);

    // Killed, it leaves its socket behind; the next look finds nobody there and removes it.
    drop(bench);
    let sockets = || fs::read_dir(folder.path().join("ncs2")).expect("made").count();
    assert_eq!(sockets(), 1);
    let (code, gone) = beside(folder.path(), &["thermal"], "thermal");
    assert_eq!((code, &gone[0]["error"]["kind"]), (2, &"NotFound".into()), "{}", gone[0]);
    assert_eq!(sockets(), 0);
}

#[test]
fn a_fleet_that_shall_not_tell_does_not() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let blob = model("tiny_u8_s1.blob");
    let bench = start(
        &[
            "--sim",
            "1",
            "-vv",
            "--stats-socket",
            "false",
            "bench",
            text(&blob),
            "--duration",
            "10m",
            "--warmup",
            "0s",
        ],
        &[("XDG_RUNTIME_DIR", folder.path())],
        "measuring",
    );
    assert!(!folder.path().join("ncs2").exists());
    drop(bench);
}

#[test]
fn the_document_of_the_socket_is_as_its_schema_says() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let blob = model("tiny_u8_s1.blob");
    let bench = start(
        &["--sim", "2", "-vv", "bench", text(&blob), "--duration", "10m", "--warmup", "0s"],
        &[("XDG_RUNTIME_DIR", folder.path())],
        "measuring",
    );
    let socket = folder.path().join("ncs2").join(format!("{}-0.sock", bench.0.id()));
    let mut reader = ncs2::runtime::stats_socket::StatsReader::connect(&socket).expect("it listens");
    for _ in 0..3 {
        let document = reader.next().expect("a document");
        conforms("stats", &document);
        assert_eq!(
            (&document["simulated"], &document["process"]["pid"]),
            (&true.into(), &bench.0.id().into())
        );
    }
}

#[test]
fn sticks_of_a_server_work_in_every_command() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let socket = folder.path().join("sticks.sock");
    let server = start(
        &[
            "sim",
            "serve",
            "--socket",
            text(&socket),
            "--sticks",
            "2",
            "--engine",
            "execute",
            "--timing",
            "zero",
        ],
        &[],
        "serving",
    );
    let sim = format!("unix:{}", socket.display());
    let (code, d) = json(&["--sim", &sim, "list"], "list");
    assert_eq!((code, d["devices"].as_array().map(Vec::len), &d["simulated"]), (0, Some(2), &true.into()));
    let (code, d) = json(&["--sim", &sim, "info"], "info");
    assert_eq!((code, &d["devices"][1]["state"]), (0, &"ready".into()), "{d}");
    let (code, d) = json(&["--sim", &sim, "boot"], "boot");
    assert_eq!(
        (code, &d["devices"][0]["state"], &d["simulated"]),
        (0, &"booted".into(), &true.into()),
        "{d}"
    );
    let (code, d) = json(&["--sim", &sim, "--device", "sim1", "reset"], "reset");
    assert_eq!((code, &d["devices"][0]["state"]), (0, &"unbooted".into()), "{d}");
    assert_eq!(d["devices"].as_array().map(Vec::len), Some(1));
    assert_eq!(json(&["--sim", &sim, "reset", "--power"], "reset").0, 0);
    let (blob, input, reference) =
        (model("tiny_u8_s1.blob"), model("tiny_u8_s1.in.data.npy"), model("tiny_u8_s1.out.prob.npy"));
    let args = ["--sim", &sim, "run", text(&blob), "--input", text(&input), "--check", text(&reference)];
    let (code, d) = json(&args, "run");
    assert_eq!((code, &d["engine"], &d["timing"]), (0, &"execute".into(), &"zero".into()), "{d}");
    let args = ["--sim", &sim, "bench", text(&blob), "--duration", "200ms", "--warmup", "0s"];
    let (code, d) = json(&args, "bench");
    assert_eq!((code, &d["tops"], &d["simulated"]), (0, &Value::Null, &true.into()), "{d}");
    assert!(d["completed"].as_u64().is_some_and(|n| n > 0));
    assert_eq!(json(&["--sim", &sim, "thermal"], "thermal").0, 0);
    assert_eq!(json(&["--sim", &sim, "top", text(&blob), "--interval", "100ms"], "top").0, 0);

    fails(&["--sim", &sim, "--engine", "hash", "info"], "info", 64, "Usage", &["--engine", "sim serve"]);
    fails(&["--sim", &sim, "--device", "sim7", "info"], "info", 2, "NotFound", &["sim7", "sim0 to sim1"]);
    drop(server);
    // The kernel may hold the listener of a killed process for a moment longer, with its ring.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while std::os::unix::net::UnixStream::connect(&sim["unix:".len()..]).is_ok() {
        assert!(std::time::Instant::now() < until, "a killed server still listens");
        std::thread::yield_now();
    }
    fails(&["--sim", &sim, "info"], "info", 2, "NotFound", &["sticks.sock", "ncs2ctl sim serve"]);
}

#[test]
fn a_reset_of_a_served_stick_ends_when_its_boot_rom_is_there() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let socket = folder.path().join("sticks.sock");
    // With the timing of the model a stick is away from the bus for a while.
    let args = ["-vv", "sim", "serve", "--socket", text(&socket), "--sticks", "2"];
    let _server = tool::start(&args, &[], "serving");
    let sim = format!("unix:{}", socket.display());
    let states = |what: &str| -> Vec<(String, u64)> {
        let (code, d) = json(&["sim", "status", text(&socket)], "sim");
        assert_eq!(code, 0, "{what}");
        let sticks = d["sticks"].as_array().expect("list").iter();
        sticks
            .map(|s| (s["state"].as_str().unwrap_or("").to_owned(), s["resets"].as_u64().unwrap_or(0)))
            .collect()
    };
    for flags in [&["reset"][..], &["reset", "--power"]] {
        let (code, d) = json(&[&["--sim", &sim], flags].concat(), "reset");
        assert_eq!((code, &d["devices"][1]["state"]), (0, &"unbooted".into()), "{d}");
        let seen = states("behind it");
        assert!(
            seen.iter().all(|(state, resets)| state == "unbooted" && *resets == 1),
            "{flags:?}: {seen:?}"
        );
    }

    // One that a process holds is left alone, and `list` says so.
    let blob = model("tiny_u8_s1.blob");
    let args = ["-vv", "--sim", &sim, "--device", "sim1", "bench", text(&blob), "--duration", "10m"];
    let _bench = tool::start(&args, &[], "measuring");
    let (_, d) = json(&["--sim", &sim, "list"], "list");
    let listed: Vec<&Value> = d["devices"].as_array().expect("list").iter().map(|s| &s["state"]).collect();
    assert_eq!(listed, ["unbooted", "busy"]);
    let (code, d) = json(&["--sim", &sim, "reset"], "reset");
    assert_eq!((code, &d["devices"][0]["state"]), (1, &"unbooted".into()), "{d}");
    assert_eq!(d["devices"][1]["error"]["kind"], "InUse", "{d}");
    assert_eq!(json(&["--sim", &sim, "--device", "sim1", "reset"], "reset").0, 2);
    assert_eq!(json(&["sim", "status", text(&socket), "--detach", "sim0"], "sim").0, 0);
    let (_, d) = json(&["--sim", &sim, "list"], "list");
    assert_eq!(d["devices"].as_array().map(Vec::len), Some(1), "what is in no port is in no list: {d}");
}

#[test]
fn boot_of_virtual_sticks_ends_in_devices_or_a_reason() {
    let (code, d) = json(&["--sim", "3", "boot"], "boot");
    assert_eq!((code, &d["profile"]), (0, &"ncs2".into()));
    let devices = d["devices"].as_array().expect("three");
    assert!(
        devices.len() == 3 && devices.iter().all(|d| d["state"] == "booted" && d["error"].is_null()),
        "{d}"
    );
    for flags in [&["reset"][..], &["reset", "--power"]] {
        let (code, d) = json(&[&["--sim", "3", "--device", "sim1"], flags].concat(), "reset");
        let devices = d["devices"].as_array().expect("one");
        assert_eq!((code, devices.len(), &devices[0]["id"]), (0, 1, &"sim1".into()), "{d}");
        assert_eq!((&devices[0]["state"], &devices[0]["simulated"]), (&"unbooted".into(), &true.into()));
    }
    let (code, _) = json(&["list"], "list");
    if code == 0 {
        println!("skipped: this machine has sticks");
        return;
    }
    fails(&["boot"], "boot", 2, "NotFound", &["no Neural Compute Stick 2", "--sim"]);
    fails(&["reset"], "reset", 2, "NotFound", &["no Neural Compute Stick 2", "ncs2ctl list"]);
    fails(&["reset", "--power"], "reset", 2, "NotFound", &["no Neural Compute Stick 2"]);
    // In JSON it is one look, which needs no terminal, but a stick.
    let live = tool::run(&["top"]);
    assert!(
        live.code == 64 && live.stderr.contains("terminal") && live.stderr.contains("--once"),
        "{}",
        live.stderr
    );
    assert_eq!(json(&["top"], "top").0, 2);
    fails(&["--sim", "1", "sim", "attach"], "sim", 64, "Usage", &["--sim"]);
}
