//! `selftest` on virtual sticks: it names every knob's setting, stays in its time, hides who ran it, and its report can be
//! replayed and turned into a profile. Everything here is simulated.

mod tool;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use tool::{fails, ncs2ctl, run};

/// A profile with these settings under `[firmware]`, in a folder whose name must not be told.
fn profile(folder: &TempDir, settings: &str) -> PathBuf {
    let path = folder.path().join("mine.toml");
    fs::write(&path, format!("base = \"ncs2\"\n[firmware]\n{settings}\n")).expect("written");
    path
}

/// Runs it; the report.
fn report(sim: &str, more: &[&str], folder: &Path) -> Value {
    let file = folder.join("report.json");
    let mut command = ncs2ctl();
    command.args(["--sim", sim, "selftest", "--report"]).arg(&file).args(more);
    let output = command.output().expect("it starts");
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    serde_json::from_str(&fs::read_to_string(&file).expect("written")).expect("one document")
}

fn answer<'a>(report: &'a Value, name: &str) -> &'a str {
    report["unknowns"][name]["answer"].as_str().unwrap_or_else(|| panic!("{name}: no answer"))
}

/// The setting of one knob, and what the selftest must say of it. Start and end of an execution differ only where it takes
/// time; all else needs none.
fn names(setting: &str, name: &str, wanted: &str) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = profile(&folder, setting);
    let timing = if name == "input_release" { "model" } else { "zero" };
    let report = report(&format!("1,{}", path.display()), &["--yes", "--timing", timing], folder.path());
    assert_eq!(answer(&report, name), wanted, "{setting}: {}", report["unknowns"][name]);
    assert_eq!(report["unknowns"][name]["observed"], true);
}

macro_rules! knobs {
    ($($test:ident: $setting:expr, $name:expr, $wanted:expr;)*) => {
        $(#[test] fn $test() { names($setting, $name, $wanted); })*
        /// Knobs of which every listed setting is named.
        const NAMED: &[&str] = &[$($name),*];
    };
}

knobs! {
    input_released_at_the_start: "input_release = \"start\"", "input_release", "start";
    input_released_at_the_end: "input_release = \"end\"", "input_release", "end";
    status_before_the_output: "status = \"before\"", "status", "before";
    status_after_the_output: "status = \"after\"", "status", "after";
    outputs_whole: "output_piece_bytes = 0", "output_piece_bytes", "0";
    outputs_in_pieces_of_7: "output_piece_bytes = 7", "output_piece_bytes", "7";
    outputs_in_pieces_of_512: "output_piece_bytes = 512", "output_piece_bytes", "512";
    no_streams_of_its_own: "creates_streams = false", "creates_streams", "false";
    streams_of_its_own: "creates_streams = true", "creates_streams", "true";
    zero_length_never: "zero_length = \"never\"", "zero_length", "never";
    zero_length_after_full_packets: "zero_length = \"full\"", "zero_length", "full";
    zero_length_always: "zero_length = \"always\"", "zero_length", "always";
    reset_answered: "answers_reset = true", "answers_reset", "true";
    reset_mute: "answers_reset = false", "answers_reset", "false";
    refused_input_released: "refused_input = \"release\"", "refused_input", "release";
    refused_input_kept: "refused_input = \"keep\"", "refused_input", "keep";
    two_graphs: "max_graphs = 2", "max_graphs", "2";
    eight_fifos: "max_fifos = 8", "max_fifos", "8";
    one_executor: "max_executors = 1", "max_executors", "1";
    four_executors: "max_executors = 4", "max_executors", "4";
    other_firmware: "fw_version = [0, 0x2480, 4294967295, 7]", "fw_version", "[0, 9344, 4294967295, 7]";
    other_tensors: "tensor_version = [0, 7]", "tensor_version", "[0, 7]";
    less_memory: "[memory]\ndram_bytes = 268435456\nfirmware_bytes = 1048576", "max_memory_bytes", "267386880";
}

/// Knobs that the tests below measure: times, not words.
const MEASURED: [&str; 2] = ["ack_delay_us", "watchdog_s"];

#[test]
fn no_knob_is_without_a_test() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../device/profiles/ncs2.toml");
    let profile: toml::Table = fs::read_to_string(path).expect("readable").parse().expect("TOML");
    for knob in profile["firmware"].as_table().expect("a section").keys() {
        assert!(NAMED.contains(&knob.as_str()) || MEASURED.contains(&knob.as_str()), "{knob} has no test");
    }
}

/// Times, not words: between half and twice.
#[test]
fn late_acknowledgements_are_measured() {
    // Long beside what a busy machine adds.
    for us in [3000.0, 20000.0] {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = profile(&folder, &format!("ack_delay_us = {us:.1}"));
        let report = report(&format!("1,{}", path.display()), &["--timing", "zero"], folder.path());
        let found: f64 = answer(&report, "ack_delay_us").parse().expect("a number");
        assert!((us * 0.5..us * 2.0).contains(&found), "{us}: {found}");
    }
}

/// The watchdog's time, with a profile that has a short one; and the whole of `--full` in its time.
#[test]
fn a_full_selftest_measures_the_watchdog_in_under_three_minutes() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = profile(&folder, "watchdog_s = 3.0");
    let report = report(&format!("1,{}", path.display()), &["--full", "--yes"], folder.path());
    println!("full: {} s", report["seconds"]);
    let found: f64 = answer(&report, "watchdog_s").parse().expect("a number");
    assert!((2.5..5.0).contains(&found), "{found}");
    // Nothing is left open but what needs a bus.
    let all = report["unknowns"].as_object().expect("a table").iter();
    let open: Vec<_> = all.filter(|(_, f)| f["observed"] == false).map(|(name, _)| name.as_str()).collect();
    assert_eq!(open, ["boot_rom_on_errors", "port_power", "usb_descriptors", "usb_reset"]);
    tool::schema::holds("selftest", &report);
    assert!(report["seconds"].as_f64().expect("a number") < 180.0, "{}", report["seconds"]);
    assert_eq!(answer(&report, "missing_acks"), "tolerated");
    assert_eq!(answer(&report, "pipelined_commands"), "all");
}

#[test]
fn a_quick_one_stays_in_its_time_and_says_what_it_did_not_see() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = profile(&folder, "");
    let report = report(&format!("1,{}", path.display()), &[], folder.path());
    assert_eq!((&report["simulated"], &report["passed"]), (&true.into(), &true.into()));
    assert!(report["seconds"].as_f64().expect("a number") < 60.0, "{}", report["seconds"]);
    for name in ["watchdog_s", "refused_input", "usb_descriptors", "boot_rom_on_errors"] {
        assert_eq!(answer(&report, name), "not observed");
        assert_eq!(report["unknowns"][name]["observed"], false, "{name}");
    }
    assert_eq!(answer(&report, "wire_variant"), "V1");
    assert_eq!(answer(&report, "nce_overflow"), "infinity");
    assert_eq!(report["unknowns"].as_object().expect("a table").len(), 26);
    println!("quick: {} s", report["seconds"]);
    let sizes: Vec<_> =
        report["sizes"].as_array().expect("sizes").iter().map(|s| (&s["bytes"], &s["good"])).collect();
    let wanted = [64, 4 << 10, 256 << 10, 4 << 20].map(|n: u64| (Value::from(n), Value::from(true)));
    assert_eq!(sizes, wanted.iter().map(|(n, good)| (n, good)).collect::<Vec<_>>());
    assert_eq!(report["profile"], "own", "a profile's name is somebody's word");
    // Nobody's name, machine or folder.
    let text = fs::read_to_string(folder.path().join("report.json")).expect("written");
    let mut secrets = vec![folder.path().display().to_string(), env!("CARGO_MANIFEST_DIR").to_owned()];
    secrets.extend(fs::read_to_string("/proc/sys/kernel/hostname").map(|h| h.trim().to_owned()));
    secrets.extend(std::env::var("HOME").ok().filter(|h| h.len() > 1));
    for secret in secrets.iter().filter(|s| s.len() > 3) {
        assert!(!text.contains(secret.as_str()), "the report names {secret}");
    }
    tool::schema::holds("selftest", &report);
    replays(folder.path());
    fits(folder.path());
}

/// With each answer 0.2 s late, the first step alone needs more than there is: nothing failed, and nothing is made up.
#[test]
fn what_has_no_time_is_skipped_and_said() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = profile(&folder, "ack_delay_us = 200000.0\nwatchdog_s = 60.0");
    let report = report(&format!("1,{}", path.display()), &["--within", "20"], folder.path());
    println!("within 20: {} s", report["seconds"]);
    // The step under way ends first, and a busy machine takes its time for that.
    assert!(report["seconds"].as_f64().expect("a number") < 45.0, "{}", report["seconds"]);
    let steps = report["steps"].as_array().expect("steps");
    let skipped: Vec<_> = steps
        .iter()
        .filter(|step| step["detail"].as_str().is_some_and(|why| why.contains("--within")))
        .collect();
    assert!(!skipped.is_empty(), "{steps:#?}");
    assert!(skipped.iter().all(|step| step["outcome"] == "skipped"), "{steps:#?}");
}

/// The report replays; a changed one does not.
fn replays(folder: &Path) {
    let file = folder.join("report.json");
    let path = file.to_str().expect("UTF-8");
    let ran = run(&["selftest", "--replay", path]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("replayed as recorded"), "{}", ran.stdout);
    let mut report: Value = serde_json::from_str(&fs::read_to_string(&file).expect("there")).expect("JSON");
    let other = folder.join("other.json");
    let path = other.to_str().expect("UTF-8");
    report["unknowns"]["status"]["answer"] = "after".into();
    fs::write(&other, report.to_string()).expect("written");
    fails(&["selftest", "--replay", path], "selftest", 2, "Protocol", &["status", "after", "before"]);
    // A transfer less: what we send next is not what was sent then.
    report["timeline"].as_array_mut().expect("lines").remove(30);
    fs::write(&other, report.to_string()).expect("written");
    assert_eq!(run(&["selftest", "--replay", path]).code, 2);
    fs::write(&other, "{}").expect("written");
    fails(&["selftest", "--replay", path], "selftest", 2, "InvalidInput", &["other.json"]);
}

/// The report makes a profile that a virtual stick takes.
fn fits(folder: &Path) {
    let file = folder.join("report.json");
    let ran = run(&["sim", "calibrate", "--from", file.to_str().expect("UTF-8")]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for part in ["VIRTUAL", "base = \"ncs2\"", "trigger_us", "input_release = \"end\"", "max_graphs = 10"] {
        assert!(ran.stdout.contains(part), "expected {part} in:\n{}", ran.stdout);
    }
    let fitted = folder.join("fitted.toml");
    fs::write(&fitted, &ran.stdout).expect("written");
    let (code, info) = tool::json(&["--sim", &format!("1,{}", fitted.display()), "info"], "info");
    assert_eq!(code, 0, "{info}");
}

/// Fitted to a stick of other settings, the profile has them.
#[test]
fn a_fitted_profile_has_the_settings_of_the_stick() {
    let folder = tempfile::tempdir().expect("temporary folder");
    // At rest 54.3 C. A machine that computes slowly loads it little: a twentieth of the full load brings it over its guard.
    let heat = "[heat]\ntau_s = 1.0\nfull_w = 4.0\nlower_guard_c = 56.0\nhysteresis_k = 1.0";
    let path = profile(&folder, &format!("watchdog_s = 60.0\n{heat}"));
    let report = report(&format!("1,{}", path.display()), &["--heat", "--heat-seconds", "3"], folder.path());
    let points = report["heat"].as_array().expect("points");
    let level = |p: &Value| p["level"].as_f64().expect("a number");
    assert!(points.iter().any(|p| level(p) >= 1.0 && p["service_ms"].as_f64() > Some(0.0)), "{points:?}");
    let last = points.last().expect("a point");
    assert!(level(last) < 1.0, "its level was followed to its end: {points:?}");
    let seconds: Vec<_> = points.iter().map(|p| p["seconds"].as_f64().expect("a number")).collect();
    assert!(seconds.windows(2).all(|s| s[1] - s[0] >= 1.0), "{seconds:?}");
    tool::schema::holds("selftest", &report);
}

/// Steps that disturb a stick wait for a word, and each says so.
#[test]
fn nothing_disturbs_a_stick_without_consent() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let report = report("1", &["--full", "--timing", "zero"], folder.path());
    let steps = report["steps"].as_array().expect("steps");
    for name in ["refused trigger", "missing acks", "stop in mid-tensor", "watchdog"] {
        let step = steps.iter().find(|s| s["name"] == name).unwrap_or_else(|| panic!("no step {name}"));
        assert_eq!(step["outcome"], "skipped", "{step}");
        assert!(step["detail"].as_str().is_some_and(|d| d.contains("--yes")), "{step}");
    }
    // The first that disturbs comes behind the last that does not.
    let place = |name| steps.iter().position(|s| s["name"] == name).expect("a step");
    assert!(place("ordering ladder") < place("refused trigger"));
}

/// A stick that dies in the middle of it costs no more than the time of its mode, and what was seen before is in the report.
#[test]
fn a_dead_stick_ends_in_a_report_in_time() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (plan, file) = (folder.path().join("plan.toml"), folder.path().join("report.json"));
    fs::write(&plan, "[[fault]]\nkind = \"hang\"\nnth = 7\n").expect("written");
    let mut command = ncs2ctl();
    command.args(["--sim", "1", "--timing", "zero", "--fault"]).arg(&plan);
    let output = command.args(["selftest", "--report"]).arg(&file).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_str(&fs::read_to_string(&file).expect("written")).expect("JSON");
    assert_eq!((&report["passed"], &report["simulated"]), (&false.into(), &true.into()));
    // Its mode ends below a minute, the step under way a little later.
    assert!(report["seconds"].as_f64().expect("a number") < 90.0, "{}", report["seconds"]);
    assert!(!report["timeline"].as_array().expect("lines").is_empty());
    let failed = report["steps"].as_array().expect("steps").iter().find(|s| s["outcome"] == "failed");
    assert!(failed.is_some_and(|s| s["name"] == "first inferences"), "{failed:?}");
}

/// What a report has proven is what the tool takes by default: seen from the outside at the firmware file. A virtual stick's
/// report, in the same folder, proves nothing.
#[test]
fn a_report_of_a_real_stick_changes_the_defaults_for_its_firmware() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let made = report("1", &["--timing", "zero"], folder.path());
    let (firmware, data) = (folder.path().join("made-up.mvcmd"), folder.path().join("data"));
    let reports = data.join("ncs2/field");
    fs::create_dir_all(&reports).expect("a folder");
    // No stick boots this; that it is accepted at all is --any-firmware.
    fs::write(&firmware, [7_u8; 4096]).expect("written");
    let ask = || {
        let mut command = ncs2ctl();
        command
            .env("XDG_DATA_HOME", &data)
            .args(["--any-firmware", "--json", "firmware", "verify"])
            .arg(&firmware);
        let output = command.output().expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).expect("a document")
    };
    let before = ask();
    assert_eq!(before["proven"], serde_json::json!({"reports": 0, "pipelined": false, "guards": null}));
    let mut report = made;
    report["stick"]["firmware_sha256"] = before["sha256"].clone();
    fs::write(reports.join("mine.json"), report.to_string()).expect("written");
    assert_eq!(ask()["proven"]["reports"], 0, "a virtual stick proves nothing");
    report["simulated"] = false.into();
    fs::write(reports.join("mine.json"), report.to_string()).expect("written");
    assert_eq!(ask()["proven"], serde_json::json!({"reports": 1, "pipelined": true, "guards": null}));
}

/// Wrong answers are found: the `hash` engine does not compute the network.
#[test]
fn wrong_outputs_fail() {
    let ran = run(&["--sim", "1", "--engine", "hash", "--timing", "zero", "selftest"]);
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    assert!(ran.stdout.contains("FAILED") && ran.stdout.contains("simulated"), "{}", ran.stdout);
}

#[test]
fn usage_and_files_are_judged_first() {
    fails(
        &["--sim", "1", "selftest", "--report", "/nowhere/at/all.json"],
        "selftest",
        2,
        "NotFound",
        &["/nowhere/at"],
    );
    fails(&["selftest", "--quick", "--full"], "selftest", 64, "Usage", &["--full"]);
}

/// Steps and questions; what was answered is in the tests above, how long it took is this computer's.
#[test]
fn what_people_read_is_as_reviewed() {
    let ran = run(&["--sim", "1", "--timing", "zero", "selftest", "--quick"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, "--report FILE writes all of it, ready to be sent\n"));
    let (steps, unknowns) = ran.stdout.rsplit_once("\n\n").expect("two parts");
    let mut text = tool::redact::figures(steps);
    for line in unknowns.lines().filter(|line| !line.starts_with(' ')) {
        text.push_str(&format!("{} …\n", line.split_whitespace().next().expect("a name")));
    }
    insta::assert_snapshot!("selftest-quick", text);
}
