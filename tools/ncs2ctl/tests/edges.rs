//! Manners: colours, ASCII, quiet, the log, and `bench` on a terminal.

mod tool;

use std::process::{Command, Stdio};

use tool::redact::figures;
use tool::screen::Screen;
use tool::{model, ncs2ctl, run};

fn blob(name: &str) -> String {
    model(name).to_str().expect("UTF-8").to_owned()
}

#[test]
fn colour_is_for_terminals_and_for_those_who_ask() {
    let args = ["--sim", "1", "list"];
    let colored = |args: &[&str], no_color: bool| {
        let mut command = ncs2ctl();
        command.args(args);
        if no_color {
            command.env("NO_COLOR", "1");
        }
        String::from_utf8(command.output().expect("it starts").stdout).expect("UTF-8").contains('\x1b')
    };
    assert!(!colored(&args, false), "a pipe");
    assert!(colored(&[&["--color", "always"], &args[..]].concat(), false));
    assert!(colored(&[&["--color", "always"], &args[..]].concat(), true), "the flag is the stronger word");
    assert!(!colored(&[&["--color", "never"], &args[..]].concat(), false));
}

#[test]
fn bench_on_a_terminal_shows_progress_and_then_the_report() {
    let tiny = blob("tiny_u8_s1.blob");
    let args = ["--sim", "1", "bench", &tiny, "--duration", "2s", "--warmup", "500ms", "--depth", "2"];
    let screen = Screen::start(&args);
    let during = screen.until("the bar", |t| t.contains("measure") && t.contains('['));
    assert!(during.contains("fps") || during.contains('█') || during.contains('['), "{during}");
    let after = screen.until("the report", |t| t.contains("-bound:") || t.contains("queue-starved:"));
    assert!(!after.contains("measure "), "the bar is gone:\n{after}");
    let (code, bytes) = screen.end();
    assert_eq!(code, 0, "{bytes}");
    assert!(bytes.contains("\x1b[1m"), "figures that matter stand out: {bytes:?}");

    let plain = Screen::start_with(&args, &[("NO_COLOR", "1"), ("LC_ALL", "C")]);
    let during = plain.until("the bar", |t| t.contains("measure") && t.contains("[#"));
    assert!(during.is_ascii(), "{during}");
    let (code, bytes) = plain.end();
    assert_eq!(code, 0, "{bytes}");
    assert!(bytes.is_ascii(), "{bytes}");
    // Cursor moves are no colours.
    assert!(!bytes.contains("\x1b[1m") && !bytes.contains("\x1b[33m"), "{bytes:?}");
}

#[test]
fn a_screen_of_bench_is_as_reviewed() {
    let tiny = blob("tiny_u8_s1.blob");
    let args = ["--sim", "1", "--timing", "zero", "bench", &tiny, "--duration", "500ms", "--warmup", "0s"];
    let screen = Screen::start(&[&args[..], &["--depth", "2", "--quiet"]].concat());
    let shown = screen.until("the report", |t| t.contains("host-bound:"));
    assert_eq!(screen.end().0, 0);
    // Labels, columns and the verdict; what the lines say is in the snapshots of `texts.rs`.
    let labels: Vec<String> = figures(&shown)
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("not told"))
        .map(|line| line.split_whitespace().next().unwrap_or_default().to_owned())
        .collect();
    insta::assert_snapshot!("bench-screen", labels.join("\n"));
}

#[test]
fn quiet_says_nothing_beside_the_result_and_verbose_more() {
    let tiny = blob("tiny_u8_s1.blob");
    let bench =
        ["--sim", "1", "bench", &tiny, "--duration", "200ms", "--warmup", "0s", "--min-fps", "1000000"];
    let said = run(&bench);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("below --min-fps"), "{}", said.stderr);
    for flag in ["--quiet", "-q"] {
        let silent = run(&[&[flag], &bench[..]].concat());
        assert_eq!((silent.code, silent.stderr.as_str()), (1, ""));
    }
    let loud =
        |flags: &[&str]| run(&[flags, &["--sim", "1", "--timing", "zero", "info"]].concat()).stderr.len();
    let (none, short, long) = (loud(&[]), loud(&["-vv"]), loud(&["--verbose", "--verbose"]));
    assert!(none == 0 && short > 0 && long > 0, "{none} {short} {long}");
}

#[test]
fn version_tells_the_commit() {
    let output = Command::new(env!("CARGO_BIN_EXE_ncs2ctl"))
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .expect("it starts");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let mut words = text.split_whitespace();
    assert_eq!((words.next(), words.next()), (Some("ncs2ctl"), Some(env!("CARGO_PKG_VERSION"))), "{text}");
    // Outside a checkout there is none to tell.
    if let Some(commit) = words.next() {
        let digits = commit.trim_matches(['(', ')']).trim_end_matches("-dirty");
        assert!(digits.len() >= 7 && digits.chars().all(|c| c.is_ascii_hexdigit()), "{text}");
    }
}
