//! `thermal` and `thermal watch` on virtual sticks, whose guards are known.

mod tool;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tool::{Running, fails, json, ncs2ctl, run};

/// Runs `ncs2ctl` until `seen` has seen in its lines what it waits for.
fn watch_until(args: &[&str], seen: &mut dyn FnMut(&str) -> bool) {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_ncs2ctl"))
        .args(args)
        .env_clear()
        .env("XDG_RUNTIME_DIR", env!("CARGO_TARGET_TMPDIR"))
        .env("NCS2_STATS_SOCKET", "false")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    let running = Running(child);
    // Ends it where nothing is seen; whoever reads then comes to the end of the pipe.
    let pid = i32::try_from(running.0.id()).expect("a pid");
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        if stopped.recv_timeout(Duration::from_secs(90)).is_err_and(|e| e == RecvTimeoutError::Timeout) {
            let _ = kill_process(Pid::from_raw(pid).expect("not 0"), Signal::KILL);
        }
    });
    let mut all = String::new();
    let found = stdout.lines().any(|line| {
        let line = line.expect("a pipe");
        all.push_str(&line);
        all.push('\n');
        seen(&line)
    });
    drop(stop);
    guard.join().expect("no panic");
    drop(running);
    assert!(found, "{args:?}: not seen in {all}");
}

#[test]
fn thermal_tells_temperature_level_and_headroom() {
    let (code, d) = json(&["--sim", "2", "thermal"], "thermal");
    assert_eq!((code, &d["simulated"]), (0, &true.into()));
    let devices = d["devices"].as_array().expect("list");
    assert_eq!(devices.len(), 2);
    for device in devices {
        let t = device["temperature_c"].as_f64().expect("told");
        let headroom = device["headroom_c"].as_f64().expect("the guards of a profile are known");
        assert!((t + headroom - 75.0).abs() < 0.2, "{device}");
        assert_eq!(device["throttle_level"], 0);
        assert_eq!(device["seconds_to_throttle"], Value::Null);
        assert!(device["reason"].as_str().is_some_and(|r| !r.is_empty()), "{device}");
    }
    let ran = run(&["--sim", "1", "thermal"]);
    assert!(ran.stdout.contains("simulated") && ran.stdout.contains("sim0"), "{}", ran.stdout);
}

#[test]
fn watch_gives_a_line_for_each_look() {
    let output = ncs2ctl()
        .args(["--sim", "1", "--json", "thermal", "watch", "--interval", "20ms", "--count", "3"])
        .output()
        .expect("it starts");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let lines: Vec<Value> =
        text.lines().map(|l| serde_json::from_str(l).expect("a document a line")).collect();
    assert_eq!(lines.len(), 3);
    assert!(text.lines().all(|l| l.starts_with("{\"schema\":\"ncs2ctl.thermal/1\",")), "{text}");
    // The second look knows the load: nothing runs, so it levels off.
    let reason = lines[1]["devices"][0]["reason"].as_str().expect("said");
    assert!(reason.contains("levels off"), "{reason}");
    let csv = run(&["--sim", "2", "thermal", "watch", "--csv", "--interval", "10ms", "--count", "2"]);
    assert_eq!(csv.stdout.lines().count(), 1 + 2 * 2, "{}", csv.stdout);
    assert!(csv.stdout.lines().skip(1).all(|l| l.split(',').count() == 8 && l.ends_with(",true")));
}

#[test]
fn an_alert_exits_1_at_once() {
    let (code, d) = json(&["--sim", "1", "thermal", "--alert", "20"], "thermal");
    assert_eq!((code, &d["events"][0]["kind"]), (1, &"alert".into()));
    assert_eq!(json(&["--sim", "1", "thermal", "--alert", "99"], "thermal").0, 0);
    let ran = run(&["--sim", "1", "thermal", "watch", "--alert", "20", "--interval", "1h"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains("the alert is at 20"), "{}", ran.stdout);
}

#[test]
fn a_change_of_level_is_an_event() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let profile = folder.path().join("hot.toml");
    let built_in =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../device/profiles/ncs2.toml"))
            .expect("committed");
    // Idle alone brings this one over its guard, after some seconds.
    let hot = built_in
        .replace("tau_s = 450.0", "tau_s = 12.0")
        .replace("lower_guard_c = 75.0", "lower_guard_c = 38.0");
    fs::write(&profile, hot).expect("written");
    let sim = format!("1,{}", profile.display());
    let mut predicted = Vec::new();
    watch_until(&["--sim", &sim, "--json", "thermal", "watch", "--interval=100ms"], &mut |line| {
        let look: Value = serde_json::from_str(line).expect("a document a line");
        tool::conforms("thermal", &look);
        let Some(change) = look["events"].as_array().expect("list").first() else {
            predicted.extend(look["devices"][0]["seconds_to_throttle"].as_f64());
            return false;
        };
        assert_eq!(
            (&change["kind"], &change["from"], &change["to"]),
            (&"level-changed".into(), &0.into(), &1.into())
        );
        true
    });
    // Announced, and ever nearer.
    assert!(!predicted.is_empty() && predicted.iter().all(|s| *s < 12.0), "{predicted:?}");
    assert!(predicted.last() <= predicted.first(), "{predicted:?}");
}

#[test]
fn thermal_refuses_what_cannot_be() {
    fails(&["--sim", "1", "thermal", "--alert", "hot"], "thermal", 64, "Usage", &["--alert"]);
    fails(&["--sim", "1", "thermal", "watch", "--interval", "0s"], "thermal", 64, "Usage", &["10ms"]);
    fails(&["--sim", "1", "thermal", "watch", "--count", "0"], "thermal", 64, "Usage", &["--count"]);
}

#[test]
fn a_lost_stick_is_called_lost() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let plan = folder.path().join("plan.toml");
    fs::write(&plan, "[[fault]]\nkind = \"unplug\"\nstick = \"sim1\"\nat_ms = 2000\n").expect("written");
    let plan = plan.to_str().expect("UTF-8");
    let watch = ["--sim=2", "--fault", plan, "thermal", "watch", "--interval=50ms"];
    let mut told = None;
    watch_until(&[&["--json"], &watch[..]].concat(), &mut |line| {
        let look: Value = serde_json::from_str(line).expect("a document a line");
        tool::conforms("thermal", &look);
        let events = look["events"].as_array().expect("list");
        if let Some(lost) = events.iter().find(|event| event["kind"] == "lost") {
            assert_eq!(lost["id"], "sim1");
            assert!(told.is_none(), "told once: {lost}");
            told = lost["reason"].as_str().map(str::to_owned);
        }
        let stick =
            |id: &str| look["devices"].as_array().expect("list").iter().find(|d| d["id"] == id).cloned();
        let (alive, gone) = (stick("sim0").expect("there"), stick("sim1").expect("it stays in the list"));
        assert_eq!(alive["state"], "ready", "{look}");
        if gone["state"] != "lost" {
            return false;
        }
        assert!(gone["reason"].as_str().is_some_and(|r| r.starts_with("the stick is lost")), "{gone}");
        assert_eq!((&gone["headroom_c"], &gone["seconds_to_throttle"]), (&Value::Null, &Value::Null));
        assert!(told.as_ref().is_some_and(|why| !why.is_empty()), "{look}");
        true
    });
    let mut row = false;
    watch_until(&watch, &mut |line| {
        row |= line.contains("sim1") && line.split_whitespace().any(|word| word == "lost");
        row && line.trim_start().starts_with("sim1: lost: ")
    });
}
