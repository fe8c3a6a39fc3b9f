//! What every command prints as text: a snapshot without the figures, no line over 120 columns, and no word of complaint
//! when the reader of a pipe goes away.

mod tool;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use tool::redact::figures;
use tool::{model, ncs2ctl, run, run_at};

/// A name, the arguments, and the exit code.
type Case = (&'static str, Vec<String>, i32);

fn case(name: &'static str, args: &str, code: i32) -> Case {
    (name, args.split(' ').map(str::to_owned).collect(), code)
}

/// All commands that print text of their own and need neither a stick, nor the vendor's compiler, nor root. What depends
/// on the machine (`doctor`, `firmware list`) has tests with a machine of their own.
fn cases(folder: &Path) -> Vec<Case> {
    let file = |name: &str| model(name).canonicalize().expect("committed").display().to_string();
    let [squeezenet, tiny, input] =
        ["squeezenet1_1_u8_s1.blob", "tiny_u8_s1.blob", "tiny_u8_s1.in.data.npy"].map(file);
    let at = |name: &str| folder.join(name).display().to_string();
    fs::write(at("batch.jsonl"), "{\"random\": 7, \"id\": \"a\"}\n{\"input\": \"no-such.npy\"}\n")
        .expect("written");
    let zero = "--sim 1 --timing zero";
    let short = "--duration 200ms --warmup 0s";
    vec![
        case("list", "--sim 2 list", 0),
        case("info", &format!("{zero} info"), 0),
        case("boot", &format!("{zero} boot"), 0),
        case("reset", &format!("{zero} reset"), 0),
        case("reset-power", &format!("{zero} reset --power"), 0),
        case("blob-info", &format!("blob info {squeezenet} --layers"), 0),
        case("run", &format!("{zero} run {tiny} --input {input} --top 3"), 0),
        case("run-layers", &format!("--sim 1 run {tiny} --random 1 --timing"), 0),
        case("run-hash", &format!("{zero} --engine hash run {tiny} --random 1 --layers"), 0),
        case("batch", &format!("{zero} batch {} --blob {tiny} --top 1", at("batch.jsonl")), 1),
        case(
            "bench",
            &format!("--sim 2 --timing zero bench {tiny} {short} --depth 2 --save {}", at("saved.json")),
            0,
        ),
        case(
            "bench-compare",
            &format!("--sim 2 --timing zero bench {tiny} {short} --depth 2 --compare {}", at("saved.json")),
            0,
        ),
        case("bench-sweep", &format!("{zero} bench {tiny} {short} --depth 1..2 --target-tops 1"), 0),
        case("bench-levels", &format!("{zero} bench {tiny} {short} --levels"), 0),
        case("bench-shares", &format!("{zero} bench {tiny} {squeezenet} {short} --shares 3,1 --depth 2"), 0),
        case("bench-trace", &format!("{zero} bench {tiny} {short} --trace-out {}", at("trace.json")), 0),
        case("trace", &format!("trace {} --stage execute", at("trace.json")), 0),
        case("thermal", &format!("{zero} thermal"), 0),
        case("thermal-watch", &format!("{zero} thermal watch --count 2 --interval 100ms"), 0),
        case("thermal-alert", &format!("{zero} thermal watch --count 1 --alert 5"), 1),
        case("top", &format!("{zero} top --once"), 0),
        case("config", "config", 0),
        case("udev-print", "udev print", 0),
        case("capture", &format!("{zero} --trace {} run {tiny} --random 1", at("run.log")), 0),
        case("decode", &format!("decode {} --stream graphMonitor --direction out", at("run.log")), 0),
        case("calibrate", "sim calibrate", 0),
    ]
}

/// Phrases that depend on how busy this machine is, or on what it has.
fn settle(text: &str, folder: &Path) -> String {
    let models = model("").canonicalize().expect("committed").display().to_string();
    let text = text.replace(&folder.display().to_string(), "DIR").replace(&models, "MODELS");
    text.replace("epoll", "io_uring")
        .replace("not stable: the last three windows are not within 10 %", "STABILITY")
        .replace("stable: the last three windows within 10 %", "STABILITY")
        .replace("too short to say whether it is stable", "STABILITY")
        // Which of two depths wins without any pace is chance.
        .replace("  ◄ knee", "")
}

/// A line of the snapshot; `None` for one that only some machines have.
fn machine(line: &str) -> Option<String> {
    let label = line.trim_start();
    if label.starts_with("not told") {
        None
    } else if label.starts_with("host ") {
        // What follows depends on the counters of this machine.
        line.split(" resident").next().map(|l| format!("{l} resident …"))
    } else {
        Some(line.to_owned())
    }
}

#[test]
fn texts_are_as_reviewed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    for (name, args, code) in cases(folder.path()) {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        // Checks the width, too.
        let ran = run(&args);
        assert_eq!(ran.code, code, "{name}: {}{}", ran.stdout, ran.stderr);
        if args.contains(&"--sim") || name == "calibrate" {
            assert!(ran.stdout.contains("simulated"), "{name}: {}", ran.stdout);
        }
        if name == "decode" {
            // Ids follow the turns of threads: no snapshot, `traces.rs` looks at what it says.
            assert!(ran.stdout.contains("graphMonitor"), "{}", ran.stdout);
            continue;
        }
        // The comparison stands last, and breaks where its figures let it.
        let (report, compared) = ran.stdout.rsplit_once("\n  host-bound").unwrap_or((&ran.stdout, ""));
        if name == "bench-compare" {
            assert!(compared.contains(" fps against ") && compared.contains("p99 "), "{}", ran.stdout);
        }
        let joined = figures(&settle(report, folder.path()));
        let shown: String = joined.lines().filter_map(machine).map(|line| line + "\n").collect();
        insta::assert_snapshot!(name, shown);
    }
}

/// On a narrow terminal every word is one that a wide one shows, too. (Its width is looked at in `run_at`.)
#[test]
fn narrow_terminals_break_no_word() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let words = |text: &str| -> BTreeSet<String> {
        let words = text.split_whitespace().map(|word| word.trim_matches([',', ';', ':', '.', '(', ')']));
        words.filter(|w| w.chars().all(char::is_alphabetic)).map(str::to_owned).collect()
    };
    for (name, args, code) in cases(folder.path()) {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        if ["calibrate", "decode", "udev-print"].contains(&name) {
            // A file to keep, which is as wide as it is.
            continue;
        }
        let wide = words(&run(&args).stdout);
        let ran = run_at(60, &args);
        assert_eq!(ran.code, code, "{name}: {}", ran.stderr);
        let broken: Vec<String> =
            words(&ran.stdout).into_iter().filter(|w| !wide.contains(w) && !may_say(w)).collect();
        assert!(broken.is_empty(), "{name}: {broken:?} in\n{}", ran.stdout);
    }
}

/// Words that depend on how busy this machine is: units and verdicts.
fn may_say(word: &str) -> bool {
    let words = "µs ms s B kB MB GB GOP not stable unstable the last three windows within too short to say whether it is are \
        knee more less than noise faster slower no significant difference by";
    words.split_whitespace().any(|known| known == word)
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = tempfile::tempdir().expect("temporary folder");
    for (name, args, code) in cases(folder.path()) {
        let program = ncs2ctl().get_program().to_owned();
        let mut command = std::process::Command::new(program);
        command.args(&args).env("NCS2_STATS_SOCKET", "false").env("XDG_CONFIG_HOME", folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        // As `| head -0` does, before a byte was written.
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panic") && !said.contains("error:"), "{name}: {said}");
        let left = output.status.code();
        assert!(left == Some(0) || left == Some(code), "{name}: {left:?} {said}");
    }
}
