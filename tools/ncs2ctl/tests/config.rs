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

/// What no command would take is not shown as if it were in force.
#[test]
fn values_that_cannot_be_used_are_named_with_where_they_come_from() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("c.toml");
    let file = path.to_str().expect("UTF-8");
    let refused = |text: &str, words: &[&str]| {
        fs::write(&path, text).expect("written");
        fails(&["--config", file, "config"], "config", 64, "Usage", &[words, &["c.toml"]].concat());
    };
    refused("sim = 0\n", &["--sim", "found `0`", "sim in"]);
    refused("[bench]\nduration = '10'\n", &["bench.duration", "500ms", "found `10`", "bench.duration in"]);
    refused("[bench]\ndepth = 17\n[run]\ntolerance = 'x'\n", &["bench.depth", "`17`", "run.tolerance"]);
    refused("[bench]\nfallback = 'gpu'\n", &["bench.fallback", "gpu"]);
    refused("[thermal]\nalert = -1\n", &["thermal.alert"]);
    refused("sim = '1,no-such'\n", &["sim: load profile: no-such", "ncs2-fan", "sim in"]);
    refused("firmware = '/no/such.mvcmd'\n", &["firmware: /no/such.mvcmd", "found none"]);

    let with = |variables: &[(&str, &str)], args: &[&str]| {
        let output = ncs2ctl().envs(variables.iter().copied()).args(args).output().expect("it starts");
        (output.status.code().expect("an exit"), String::from_utf8(output.stderr).expect("UTF-8"))
    };
    let (code, said) = with(&[("NCS2_BENCH_GRAPHS", "9")], &["config"]);
    assert_eq!(code, 64, "{said}");
    assert!(said.contains("bench.graphs") && said.contains("from NCS2_BENCH_GRAPHS"), "{said}");
    // The same words where the value is first needed.
    let (code, said) = with(&[("NCS2_SIM", "many")], &["list"]);
    assert_eq!(code, 64, "{said}");
    assert!(said.contains("found `many`, from NCS2_SIM"), "{said}");
    let (code, said) = with(&[("NCS2_SIM", "1")], &["list", "--sim", "many"]);
    assert_eq!(code, 64, "{said}");
    assert!(said.contains("found `many`") && !said.contains("from NCS2_SIM"), "{said}");
    // A flag beats the variable, whatever that holds.
    let (code, said) = with(&[("NCS2_SIM", "many")], &["--sim", "1", "config"]);
    assert_eq!((code, said.as_str()), (0, ""));
    let (code, said) = with(&[("NCS2_SIM", "many")], &["list", "--sim=1"]);
    assert_eq!((code, said.as_str()), (0, ""));

    fs::write(&path, "sim = 1\n[bench]\nduration = '2s'\nfallback = 'none'\n[thermal]\nalert = 70\n")
        .expect("written");
    assert_eq!(json(&["--config", file, "config"], "config").0, 0);
}
