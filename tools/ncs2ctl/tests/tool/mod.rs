//! The tool as tests call it: no settings of whoever runs the tests.
#![allow(dead_code, reason = "every test file takes what it needs of this one")]

pub mod redact;
pub mod schema;
pub mod screen;

use std::path::PathBuf;

use assert_cmd::Command;
use serde_json::Value;

/// `ncs2ctl` with a clean environment.
pub fn ncs2ctl() -> Command {
    let mut command = Command::cargo_bin("ncs2ctl").expect("cargo built it");
    for name in ["NCS2_SIM", "NCS2_DEVICE", "NCS2_ENGINE", "NCS2_TIMING", "NO_COLOR"] {
        command.env_remove(name);
    }
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NCS2_")) {
        command.env_remove(name);
    }
    command.env("XDG_CONFIG_HOME", env!("CARGO_TARGET_TMPDIR"));
    // Fleets of other tests, or of whoever runs them, are none of ours.
    command.env("XDG_RUNTIME_DIR", env!("CARGO_TARGET_TMPDIR")).env("NCS2_STATS_SOCKET", "false");
    command.env("COLUMNS", "120").env("LC_ALL", "C.UTF-8");
    command
}

/// A committed model, or an array beside it.
pub fn model(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/models").join(file)
}

/// What a run gave.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs with these arguments. No output may hold ANSI codes or a line over 120 columns: nothing here is a terminal.
pub fn run(args: &[&str]) -> Ran {
    run_at(120, args)
}

/// As [`run`], with this many columns.
pub fn run_at(width: usize, args: &[&str]) -> Ran {
    let output = ncs2ctl().args(args).env("COLUMNS", width.to_string()).output().expect("it starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    let ran = Ran {
        code: output.status.code().expect("it exits by itself"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    };
    assert!(!ran.stdout.contains('\x1b') && !ran.stderr.contains('\x1b'), "{args:?}: ANSI");
    // What `decode` prints into a pipe is the capture itself; on a terminal it is folded.
    let exempt = ["--json", "man", "completions", "decode"];
    if !exempt.iter().any(|word| args.contains(word)) {
        for line in ran.stdout.lines() {
            assert!(columns(line) <= width, "{args:?}: {} columns of {width}: {line}", columns(line));
        }
    }
    ran
}

/// Columns of a line without its paths: one is as long as it is, and is not broken.
pub fn columns(line: &str) -> usize {
    let path = |word: &&str| word.contains('/') && word.chars().count() > 24;
    line.chars().count() - line.split(' ').filter(path).map(|word| word.chars().count()).sum::<usize>()
}

/// Runs with `--json` and checks what every document has.
pub fn json(args: &[&str], schema: &str) -> (i32, Value) {
    let ran = run(&[&["--json"], args].concat());
    assert_eq!(ran.stderr, "", "{args:?}");
    // The schema stands in front, in a document of several lines or of one.
    let dense: String = ran.stdout.split_whitespace().collect();
    assert!(dense.starts_with(&format!("{{\"schema\":\"ncs2ctl.{schema}/1\"")), "{}", ran.stdout);
    let document = serde_json::from_str(&ran.stdout).expect("one document");
    conforms(schema, &document);
    (ran.code, document)
}

/// Where the schemas are.
pub fn schema_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

/// The document is as its schema file says; one of a failure as that of failures does.
pub fn conforms(name: &str, document: &Value) {
    let failed = document.get("error").is_some_and(|e| e.is_object());
    // A line of a batch may be an error of its own.
    let whole = name != "batch" || document.get("line").is_none();
    let name = if failed && whole { "error" } else { name };
    schema::holds(name, document);
}

/// Documents of several lines, each as its schema says.
pub fn lines(stdout: &[u8], schema: &str) -> Vec<Value> {
    let text = std::str::from_utf8(stdout).expect("UTF-8");
    text.lines()
        .map(|line| {
            assert!(line.starts_with(&format!("{{\"schema\":\"ncs2ctl.{schema}/1\",")), "{line}");
            let document = serde_json::from_str(line).expect("a document a line");
            conforms(schema, &document);
            document
        })
        .collect()
}

/// A running `ncs2ctl`, ended when dropped.
pub struct Running(pub std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `ncs2ctl` and goes on when its log at -vv or its remarks have said `word`.
pub fn start(args: &[&str], envs: &[(&str, &std::path::Path)], word: &str) -> Running {
    start_and_listen(args, envs, word).0
}

/// As [`start`]; the thread ends with `ncs2ctl` and gives all that it said on stderr.
pub fn start_and_listen(
    args: &[&str],
    envs: &[(&str, &std::path::Path)],
    word: &str,
) -> (Running, std::thread::JoinHandle<String>) {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};
    let mut command = Command::new(env!("CARGO_BIN_EXE_ncs2ctl"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NCS2_")) {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.env("XDG_CONFIG_HOME", env!("CARGO_TARGET_TMPDIR"));
    for (name, value) in envs {
        command.env(name, value);
    }
    let mut child = command.spawn().expect("it starts");
    let mut said = String::new();
    let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
    while !said.contains(word) {
        let n = stderr.read_line(&mut said).expect("a pipe");
        assert!(n > 0, "it ended before it said {word}: {said}");
    }
    // Whether or not somebody wants the rest: a pipe that nobody reads would stop it.
    let rest = std::thread::spawn(move || {
        let _ = std::io::Read::read_to_string(&mut stderr, &mut said);
        said
    });
    (Running(child), rest)
}

/// Checks a failure in both forms: one line with all of `words`, and the same in a document.
pub fn fails(args: &[&str], schema: &str, code: i32, kind: &str, words: &[&str]) {
    let ran = run(args);
    assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{args:?}: {}", ran.stderr);
    assert!(ran.stderr.starts_with("error: ") && ran.stderr.lines().count() == 1, "{args:?}: {}", ran.stderr);
    let (json_code, document) = json(args, schema);
    assert_eq!(json_code, code, "{args:?}");
    let error = &document["error"];
    assert_eq!(error["kind"], kind, "{args:?}: {error}");
    let (message, hint) = (error["message"].as_str().expect("text"), error["hint"].as_str().expect("text"));
    assert!(!message.is_empty() && !hint.is_empty(), "{error}");
    assert_eq!(ran.stderr.trim_end(), format!("error: {message}; {hint}"));
    for word in words {
        assert!(ran.stderr.contains(word), "{args:?}: expected `{word}` in {}", ran.stderr);
    }
}
