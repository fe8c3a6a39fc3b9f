//! Work that is cut short: what was done is kept and shown, and the exit code does not call it done.

mod tool;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tool::{Running, conforms, json, model, run, start, start_and_listen};

fn tiny() -> String {
    model("tiny_u8_s1.blob").to_str().expect("UTF-8").to_owned()
}

fn signal(running: &Running, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(running.0.id()).expect("a pid")).expect("not 0");
    kill_process(pid, signal).expect("ours");
}

fn code(mut running: Running) -> Option<i32> {
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        if let Some(status) = running.0.try_wait().expect("ours") {
            return status.code();
        }
        assert!(Instant::now() < end, "it does not end");
        std::thread::yield_now();
    }
}

fn document(path: &Path, schema: &str) -> Value {
    let document = serde_json::from_slice(&fs::read(path).expect("written")).expect("a document");
    conforms(schema, &document);
    document
}

#[test]
fn a_stick_that_hangs_costs_no_answers_of_the_others() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    fs::write(at("f.toml"), "[[fault]]\nkind = \"hang\"\nstick = \"sim1\"\nat_ms = 1500\n").expect("written");
    let (plan, saved, tiny) = (at("f.toml"), at("saved.json"), tiny());
    let sim = ["--sim=2", "--fault", &plan, "bench", &tiny, "--duration=3s", "--warmup=0s", "--depth=2"];
    let ran = run(&[&sim[..], &["--save", &saved]].concat());
    assert!(ran.stdout.contains("sim0") && ran.stdout.contains("fps"), "{}{}", ran.stdout, ran.stderr);
    assert!(!ran.stderr.contains("error:"), "{}", ran.stderr);
    let report = document(Path::new(&saved), "bench");
    assert!(report["completed"].as_u64() > Some(0), "{report}");
}

#[test]
fn a_bench_without_an_answer_is_no_measurement() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let plan = folder.path().join("held.toml");
    // Away for longer than the measurement takes, then back: nothing failed, and nothing was measured.
    fs::write(&plan, "[[fault]]\nkind = \"unplug\"\nnth = 1\nms = 4000\n").expect("written");
    let plan = plan.to_str().expect("UTF-8");
    let bench =
        ["--sim=1", "--fault", plan, "bench", &tiny(), "--duration=1s", "--warmup=100ms", "--depth=2"];
    let (code, d) = json(&bench, "bench");
    assert_ne!(code, 0, "{d}");
    let said = d["error"]["message"].as_str().expect("an error");
    assert!(said.contains("bench: no answer"), "{d}");
}

#[test]
fn a_failure_of_lines_is_a_line() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let plan = folder.path().join("dead.toml");
    fs::write(&plan, "[[fault]]\nkind = \"unplug\"\nat_ms = 0\n").expect("written");
    let lines = folder.path().join("work.jsonl");
    fs::write(&lines, "{\"random\": 1}\n").expect("written");
    let (plan, lines) = (plan.to_str().expect("UTF-8"), lines.to_str().expect("UTF-8"));
    let ran = run(&["--json", "--sim=1", "--fault", plan, "batch", lines, "--blob", "no-such-file.blob"]);
    assert_ne!(ran.code, 0, "{}", ran.stdout);
    assert_eq!(ran.stdout.lines().count(), 1, "{}", ran.stdout);
    let said: Value = serde_json::from_str(ran.stdout.trim()).expect("a document");
    assert!(said["error"]["message"].is_string(), "{said}");
}

#[test]
fn what_cannot_be_saved_is_shown_at_least() {
    let folder = tempfile::tempdir().expect("temporary folder");
    // The name that it is written under at first is longer still, and too long for any file system.
    let saved = folder.path().join("s".repeat(250));
    let (saved, tiny) = (saved.to_str().expect("UTF-8"), tiny());
    let sim = ["--sim=1", "--timing=zero"];
    let bench = [&sim[..], &["bench", &tiny, "--duration=200ms", "--warmup=0s", "--save", saved]].concat();
    let ran = run(&bench);
    assert_eq!(ran.code, 2);
    assert!(ran.stdout.contains("fps"), "{}", ran.stdout);
    assert!(ran.stderr.contains("error: ") && ran.stderr.contains("could not write"), "{}", ran.stderr);
    let (code, document) = json(&bench, "bench");
    assert_eq!((code, &document["error"]["kind"]), (2, &Value::from("Io")), "{document}");
    assert!(document["completed"].as_u64() > Some(0), "{document}");
    let ran = run(&[&sim[..], &["selftest", "--report", saved]].concat());
    assert_eq!(ran.code, 2);
    assert!(ran.stdout.contains("first inferences"), "{}", ran.stdout);
    assert!(ran.stderr.contains("could not write") && !ran.stderr.contains("written to"), "{}", ran.stderr);
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
}

#[test]
fn a_server_that_dies_is_in_the_report() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (socket, saved, trace, tiny) = (at("sock"), at("saved.json"), at("trace.log"), tiny());
    let server = start(&["-vv", "sim", "serve", "--socket", &socket, "--sticks", "2"], &[], "serving");
    let sim = format!("unix:{socket}");
    // Longer than this test: it ends because its sticks are gone.
    let flags = ["--duration=10m", "--warmup=0s", "--depth=2", "--save", &saved];
    let global = ["--sim", &sim, "-vv", "--trace", &trace, "bench", &tiny];
    let bench = start(&[&global[..], &flags].concat(), &[], "measuring");
    // Some answers come before.
    let traced = || fs::metadata(&trace).map_or(0, |m| m.len());
    let (begin, end) = (traced(), Instant::now() + Duration::from_secs(60));
    while traced() < begin + 200_000 {
        assert!(Instant::now() < end, "nothing crosses the link");
        std::thread::yield_now();
    }
    signal(&server, Signal::KILL);
    assert_eq!(code(bench), Some(2));
    let report = document(Path::new(&saved), "bench");
    assert!(report["completed"].as_u64() > Some(0), "{report}");
    assert!(report["error"]["message"].is_string(), "{report}");
}

#[test]
fn an_interrupted_batch_is_not_done() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("lines.jsonl");
    let lines: String = (0..20_000).map(|n| format!("{{\"random\": {n}}}\n")).collect();
    fs::write(&path, lines).expect("written");
    let batch = ["--sim=1", "-vv", "batch", path.to_str().expect("UTF-8"), "--blob", &tiny()];
    let running = start(&batch, &[], "batch begins");
    signal(&running, Signal::INT);
    assert_eq!(code(running), Some(1));
}

#[test]
fn an_interrupted_selftest_writes_its_report() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("report.json");
    let args = ["--sim=1", "-vv", "selftest", "--full", "--report", path.to_str().expect("UTF-8")];
    let running = start(&args, &[], "selftest: networks");
    signal(&running, Signal::INT);
    assert_eq!(code(running), Some(1));
    let report = document(&path, "selftest");
    assert_eq!((&report["passed"], &report["interrupted"]), (&Value::from(false), &Value::from(true)));
    let steps = report["steps"].as_array().expect("steps");
    // How far it came before it heard of it is this machine's affair; from there on all is skipped.
    let first = steps.iter().position(|step| step["outcome"] == "skipped").expect("it is interrupted");
    assert!(first > 0 && steps[..first].iter().all(|step| step["outcome"] == "passed"), "{steps:?}");
    for step in &steps[first..] {
        assert_eq!(step["outcome"], "skipped", "{step}");
        assert!(step["detail"].as_str().is_some_and(|d| d.starts_with("interrupted")), "{step}");
    }
}

/// The same of one that never boots: there is a report, and it says why it holds nothing.
#[test]
fn a_selftest_is_interrupted_while_its_stick_boots() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (plan, path) = (folder.path().join("plan.toml"), folder.path().join("report.json"));
    fs::write(&plan, "[[fault]]\nkind = \"boot-nack\"\nevery = 1\n").expect("written");
    let [plan, file] = [&plan, &path].map(|p| p.to_str().expect("UTF-8"));
    let args = ["--sim=1", "-vv", "--fault", plan, "selftest", "--report", file];
    let running = start(&args, &[], "planned fault");
    signal(&running, Signal::INT);
    assert_eq!(code(running), Some(1));
    let report = document(&path, "selftest");
    assert_eq!((&report["passed"], &report["interrupted"]), (&Value::from(false), &Value::from(true)));
    // One that was deaf would have a stick that failed to boot.
    for step in report["steps"].as_array().expect("steps") {
        assert_eq!(step["outcome"], "skipped", "{step}");
        assert!(step["detail"].as_str().is_some_and(|d| d.starts_with("interrupted")), "{step}");
    }
}

/// A stick that does not boot keeps everybody waiting; who has had enough is heard at once.
#[test]
fn an_interrupt_is_heard_while_sticks_open() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let plan = folder.path().join("plan.toml");
    fs::write(&plan, "[[fault]]\nkind = \"boot-nack\"\nevery = 1\n").expect("written");
    let (plan, tiny) = (plan.to_str().expect("UTF-8"), tiny());
    let sim = ["--sim=1", "-vv", "--fault", plan];
    for (press, command) in [
        (Signal::INT, &["run", &*tiny, "--random", "1"][..]),
        (Signal::TERM, &["bench", &tiny]),
        (Signal::INT, &["thermal", "watch"]),
    ] {
        // The plan says so at the boot, that is while it is waited for.
        let (running, said) = start_and_listen(&[&sim[..], command].concat(), &[], "planned fault");
        signal(&running, press);
        assert_eq!(code(running), Some(1));
        let said = said.join().expect("no panic");
        // Who was deaf would say that the stick did not boot.
        assert!(said.contains("interrupted while the sticks were opening"), "{command:?}: {said}");
    }
}

/// Whatever the first was waiting for.
#[test]
fn a_second_interrupt_ends_at_once() {
    let folder = tempfile::tempdir().expect("temporary folder");
    // A pipe that nobody reads: whoever opens it to write waits for ever.
    let trace = folder.path().join("trace.log");
    let made = std::process::Command::new("mkfifo").arg(&trace).status().expect("coreutils");
    assert!(made.success());
    let tiny = tiny();
    let mut command = tool::ncs2ctl();
    let program = command.get_program().to_owned();
    command.args(["--sim=1", "--trace"]).arg(&trace).args(["run", &tiny, "--random", "1"]);
    let child = std::process::Command::new(program)
        .args(command.get_args())
        .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("it starts");
    let running = Running(child);
    // It listens once the kernel has its handlers.
    let handlers = 1 << (Signal::INT.as_raw() - 1) | 1 << (Signal::TERM.as_raw() - 1);
    let end = Instant::now() + Duration::from_secs(60);
    let status = format!("/proc/{}/status", running.0.id());
    let listens = || {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        caught
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask & handlers == handlers)
    };
    while !listens() {
        assert!(Instant::now() < end, "it does not take over Ctrl-C");
        std::thread::yield_now();
    }
    // Two of a kind might become one on their way.
    signal(&running, Signal::INT);
    signal(&running, Signal::TERM);
    assert_eq!(code(running), Some(130));
}
