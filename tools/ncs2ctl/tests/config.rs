//! Defaults from a file and from variables, and where `config` says that they came from.

mod tool;

use std::fs;

use serde_json::Value;
use tool::{fails, json, model, ncs2ctl, run};

fn setting<'a>(d: &'a Value, key: &str) -> (&'a Value, &'a str) {
    let all = d["settings"].as_array().expect("list");
    let s = all.iter().find(|s| s["key"] == key).unwrap_or_else(|| panic!("no {key} in {d}"));
    (&s["value"], s["origin"].as_str().expect("text"))
}

#[test]
fn a_flag_beats_a_variable_beats_the_file() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("c.toml");
    fs::write(
        &path,
        "sim = 2\nengine = 'hash'\ntiming = 'zero'\n[bench]\nduration = '50ms'\nwarmup = '0s'\n",
    )
    .expect("written");
    let file = path.to_str().expect("UTF-8");
    let (code, d) = json(&["--config", file, "config"], "config");
    assert_eq!((code, &d["file"]), (0, &file.into()));
    assert_eq!(setting(&d, "sim"), (&"2".into(), "file"));
    assert_eq!(setting(&d, "bench.duration"), (&"50ms".into(), "file"));
    assert_eq!(setting(&d, "bench.depth"), (&"auto".into(), "built in"));
    let (_, d) = json(&["--config", file, "config", "--sim", "3"], "config");
    assert_eq!(setting(&d, "sim"), (&"3".into(), "flag"));
    let output = ncs2ctl()
        .env("NCS2_SIM", "1")
        .env("NCS2_BENCH_DURATION", "70ms")
        .args(["--config", file, "--json", "config"])
        .output()
        .expect("it starts");
    let d: Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert_eq!(setting(&d, "sim"), (&"1".into(), "variable"));
    assert_eq!(setting(&d, "bench.duration"), (&"70ms".into(), "variable"));

    // And they are in force.
    assert_eq!(json(&["--config", file, "list"], "list").1["devices"].as_array().map(Vec::len), Some(2));
    let blob = model("tiny_u8_s1.blob");
    let (code, d) = json(&["--config", file, "bench", blob.to_str().expect("UTF-8")], "bench");
    assert_eq!((code, &d["config"]["duration_s"], &d["timing"]), (0, &0.05.into(), &"zero".into()), "{d}");
    let text = run(&["config"]).stdout;
    assert!(text.contains("built in") && text.contains("NCS2_SIM") && text.contains("file: none"), "{text}");
}

#[test]
fn files_that_are_wrong_are_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("c.toml");
    let file = path.to_str().expect("UTF-8");
    fails(&["--config", file, "info"], "info", 2, "NotFound", &["c.toml"]);
    fs::write(&path, "simm = 2\n").expect("written");
    fails(
        &["--config", file, "list"],
        "list",
        2,
        "InvalidInput",
        &["unknown key `simm`", "did you mean `sim`?"],
    );
    fs::write(&path, "sim = 0\n").expect("written");
    fails(&["--config", file, "list"], "list", 64, "Usage", &["found `0`"]);
    // A standing default for virtual sticks is no error without them.
    fs::write(&path, "engine = 'hash'\n").expect("written");
    assert!([0, 1].contains(&run(&["--config", file, "list"]).code));
}
