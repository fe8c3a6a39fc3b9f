//! `doctor` on the machine that runs the tests, and `firmware fetch` without a network.

mod tool;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tool::{conforms, ncs2ctl, run};

#[test]
fn doctor_gives_evidence_and_a_mend_for_every_check() {
    let empty = tempfile::tempdir().expect("temporary folder");
    let doctor = |args: &[&str]| {
        let output = ncs2ctl()
            .args(args)
            .env("HOME", empty.path())
            .env("XDG_DATA_HOME", empty.path())
            .output()
            .expect("it starts");
        (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
    };
    let (code, text) = doctor(&["doctor", "--json"]);
    let d: serde_json::Value = serde_json::from_str(&text).expect("one document");
    conforms("doctor", &d);
    let checks = d["checks"].as_array().expect("list");
    let names: Vec<&str> = checks.iter().filter_map(|c| c["name"].as_str()).collect();
    let all = [
        "kernel",
        "io",
        "container",
        "sticks",
        "udev-rule",
        "group",
        "access",
        "usbfs-memory",
        "autosuspend",
        "hubs",
        "speed",
        "firmware",
        "stats",
    ];
    assert_eq!(names, all);
    for check in checks {
        assert!(check["evidence"].as_str().is_some_and(|e| !e.is_empty()), "{check}");
        let bad = check["status"] == "warn" || check["status"] == "fail";
        assert_eq!(check["mend"].is_string(), bad, "{check}");
    }
    // Without firmware no stick boots; this home folder has none.
    let firmware = &checks[11];
    assert_eq!((code, &firmware["status"]), (Some(1), &"fail".into()), "{firmware}");
    assert!(firmware["mend"].as_str().is_some_and(|m| m.contains("firmware fetch")), "{firmware}");
    let (code, text) = doctor(&["doctor"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("fail  firmware") && text.contains(" failed\n"), "{text}");
    assert!(text.lines().all(|l| l.chars().count() <= 120 || l.contains('/')), "{text}");
}

#[test]
fn fetch_goes_through_the_users_pip_and_says_what_is_missing() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let with = |python: &str| {
        let output = ncs2ctl()
            .args(["firmware", "fetch"])
            .env("NCS2_PYTHON", python)
            .env("XDG_CACHE_HOME", folder.path())
            .env("XDG_DATA_HOME", folder.path())
            .output()
            .expect("it starts");
        (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
    };
    let (code, said) = with("/no/such/python");
    assert_eq!(code, Some(2));
    assert!(said.contains("/no/such/python") && said.contains("ncs2ctl firmware install WHEEL"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    // A Python without pip, and one whose pip brings a wheel without firmware.
    let fake = |name: &str, script: &str| {
        let path = folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
        path.to_str().expect("UTF-8").to_owned()
    };
    let (code, said) = with(&fake("nopip", "echo 'No module named pip' >&2; exit 1"));
    assert!(code == Some(2) && said.contains("expected pip"), "{said}");
    let (code, said) = with(&fake("offline", "echo 'ERROR: no matching distribution' >&2; exit 1"));
    assert!(code == Some(2) && said.contains("no matching distribution"), "{said}");
    let args =
        "while [ $# -gt 1 ]; do [ \"$1\" = --dest ] && d=$2; shift; done; echo no >\"$d/openvino.whl\"";
    let (code, said) = with(&fake("empty", args));
    assert!(code == Some(2) && said.starts_with("error: "), "{said}");
    let left: Vec<_> = fs::read_dir(folder.path().join("ncs2")).expect("made").collect();
    assert!(left.is_empty(), "what was fetched is not kept: {left:?}");
}

#[test]
fn version_names_the_commit() {
    let said = run(&["--version"]).stdout;
    let commit = said.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map(|(commit, _)| commit);
    match commit {
        Some(commit) => assert!(commit.len() >= 7 && commit.bytes().all(|b| b.is_ascii_hexdigit()), "{said}"),
        None => println!("skipped: built outside of a repository: {said}"),
    }
}
