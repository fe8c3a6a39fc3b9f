//! `--on-warm`: the user's command when a stick becomes warm, by flag, variable and file.

mod tool;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tool::{fails, json, ncs2ctl, run};

/// Waits for this many lines: the command runs beside the tool, and may end after it.
fn lines(path: &Path, n: usize) -> Vec<String> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        if text.ends_with('\n') && lines.len() >= n {
            return lines;
        }
        assert!(Instant::now() < end, "expected {n} lines in {}, found {text:?}", path.display());
        std::thread::yield_now();
    }
}

/// A virtual stick is at 25 °C when it starts: above 20, below 65.
const WATCH: [&str; 8] = ["--sim", "2", "thermal", "watch", "--interval", "100ms", "--count", "5"];

#[test]
fn the_command_runs_once_for_each_stick_that_becomes_warm() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let told = folder.path().join("told");
    let command = format!(
        "echo $NCS2_STICK $NCS2_TEMPERATURE_C $NCS2_LIMIT_C $NCS2_SIMULATED | tee -a {}",
        told.display()
    );
    let ran = run(&[&["--on-warm", &command, "--warm-at", "20"], &WATCH[..]].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", ran.stdout);
    assert!(!ran.stdout.contains(" true"), "its output is not the tool's: {}", ran.stdout);
    let mut said = lines(&told, 2);
    said.sort();
    assert_eq!(said.len(), 2, "once a crossing: {said:?}");
    for (line, stick) in said.iter().zip(["sim0", "sim1"]) {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, degrees, limit, simulated] = *words else { panic!("{line}") };
        let degrees: f64 = degrees.parse().expect("a number");
        assert!((20.0..40.0).contains(&degrees), "{line}");
        assert_eq!((name, limit, simulated), (stick, "20", "true"), "{line}");
    }
}

#[test]
fn a_variable_and_a_file_name_it_too_and_a_cool_stick_runs_nothing() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (told, file) = (folder.path().join("told"), folder.path().join("config.toml"));
    let command = format!("echo $NCS2_STICK >> {}", told.display());
    fs::write(&file, format!("on_warm = \"{command}\"\n")).expect("written");
    let file = file.to_str().expect("UTF-8");
    // Of the built-in 65 °C nothing here comes near.
    assert_eq!(run(&[&["--config", file], &WATCH[..]].concat()).code, 0);
    assert!(!told.exists());
    fs::write(file, format!("on_warm = \"{command}\"\nwarm_at = 20.5\n")).expect("written");
    assert_eq!(run(&[&["--config", file], &WATCH[..]].concat()).code, 0);
    assert_eq!(lines(&told, 2).len(), 2);
    let (_, d) = json(&["--config", file, "config"], "config");
    let of = |key: &str| d["settings"].as_array().and_then(|all| all.iter().find(|s| s["key"] == key));
    assert_eq!(of("warm_at").map(|s| (&s["value"], &s["origin"])), Some((&"20.5".into(), &"file".into())));
    assert_eq!(of("on_warm").map(|s| &s["value"]), Some(&command.into()));

    let other = folder.path().join("other");
    let output = ncs2ctl()
        .args(WATCH)
        .env("NCS2_ON_WARM", format!("echo x >> {}", other.display()))
        .env("NCS2_WARM_AT", "20")
        .output()
        .expect("it starts");
    assert!(output.status.success());
    assert_eq!(lines(&other, 2), ["x", "x"]);
}

#[test]
fn a_command_that_fails_costs_no_stick_and_is_told() {
    let ran = run(&[&["--on-warm", "exit 3", "--warm-at", "20"], &WATCH[..]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    // Told when the shell has ended, which on a busy machine may be after five looks: this one watches until then.
    let watch = ["--sim", "1", "thermal", "watch", "--interval", "100ms"];
    let args = [&["--on-warm", "exit 3", "--warm-at", "20"], &watch[..]].concat();
    tool::start(&args, &[], "the command of --on-warm failed: exit status: 3");
    fails(
        &["--sim", "1", "--warm-at", "hot", "thermal"],
        "thermal",
        64,
        "Usage",
        &["--warm-at", "number above 0"],
    );
}
