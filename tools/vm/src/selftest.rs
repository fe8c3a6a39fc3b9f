//! `ncs2ctl selftest` over a real kernel's USB: the descriptors, the resets, and the mark that keeps a virtual stick's report
//! out of every table. Then what a report of a real stick would change there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bench::Bench;
use crate::owner::program;
use crate::{Verdict, ensure, fleet};

/// Plugged in for this test, executing its networks.
const STICK: usize = 1;
/// Its watchdog need not be waited for long.
const PROFILE: &str = "alert";
const HOME: &str = "/tmp/selftest";

/// Runs the tool on that stick; what it printed.
fn tool(id: &str, args: &[&str]) -> Result<String, String> {
    let program: PathBuf = program()?.with_file_name("ncs2ctl");
    let out = Command::new(&program)
        .args(["--any-firmware", "--device", id, "--firmware"])
        .arg(fleet::firmware()?)
        .args(args)
        .env("HOME", HOME)
        .output()
        .map_err(|e| format!("{}: {e}", program.display()))?;
    let (said, why) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    ensure!(out.status.success(), "ncs2ctl {}: {}\n{said}{why}", args.join(" "), out.status);
    Ok(said.into_owned())
}

/// The answer to one of the report's questions.
fn answer<'a>(report: &'a str, name: &str) -> &'a str {
    let behind = report.split_once(&format!("\"{name}\": {{")).map_or("", |(_, rest)| rest);
    let answer = behind.split_once("\"answer\": \"").map_or("", |(_, rest)| rest);
    answer.split_once('"').map_or("", |(answer, _)| answer)
}

pub(crate) fn a_virtual_stick_on_usb_proves_nothing(bench: &mut Bench) -> Verdict {
    let found = bench.fresh_that_executes(STICK, PROFILE)?;
    let id = found.id.as_str();
    let failed = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    let reports = Path::new(HOME).join(".local/share/ncs2/field");
    fs::create_dir_all(&reports).map_err(|e| failed(&reports, e))?;
    let file = Path::new(HOME).join("report.json");
    // In an emulated machine that shares its cores, each step takes many times as long as elsewhere.
    let within = ["--within", "600"];
    let summary =
        tool(id, &[&["selftest", "--yes", "--report", &file.to_string_lossy()], &within[..]].concat())?;
    for line in summary.lines().filter(|line| line.contains(" ms ")) {
        bench.note(line);
    }
    let report = fs::read_to_string(&file).map_err(|e| failed(&file, e))?;
    ensure!(
        report.contains("\"simulated\": true"),
        "a virtual stick on USB passes for a real one:\n{summary}"
    );
    let descriptors = answer(&report, "usb_descriptors");
    let both = descriptors.contains("03e7:2485") && descriptors.contains("03e7:f63b");
    ensure!(both, "expected both sets of descriptors, found {descriptors}");
    ensure!(report.contains("\"seen\": \"off the bus\""), "the boot's timeline is not there");
    for name in ["pipelined_commands", "refused_input", "missing_acks", "usb_reset"] {
        ensure!(!["", "not observed"].contains(&answer(&report, name)), "{name}: nothing seen\n{summary}");
    }
    let rungs = answer(&report, "pipelined_commands");
    ensure!(rungs == "all", "expected every rung of the ladder, found {rungs}\n{summary}");
    bench.note(format!("usb_reset: {}", answer(&report, "usb_reset")));
    // What it would be worth if a real stick had said it.
    let mine = reports.join("mine.json");
    for (text, ordering) in [
        (report.clone(), "vendor"),
        (report.replace("\"simulated\": true", "\"simulated\": false"), "pipelined"),
    ] {
        fs::write(&mine, text).map_err(|e| failed(&mine, e))?;
        let stick = bench.fresh_that_executes(STICK, PROFILE)?;
        let tiny = fleet::models().join("tiny_fp16_s1.blob");
        let flags = ["--json", "bench", "--duration", "500ms", "--warmup", "10ms"];
        let document = tool(stick.id.as_str(), &[&flags[..], &[&tiny.to_string_lossy()]].concat())?;
        let found = document.split_once("\"ordering\":").map_or("", |(_, rest)| rest.trim_start());
        ensure!(found.starts_with(&format!("\"{ordering}\"")), "expected {ordering}, found {found:.20}");
    }
    fs::remove_dir_all(HOME).map_err(|e| failed(Path::new(HOME), e))
}
