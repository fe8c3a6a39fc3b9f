//! The commands of the README's section "With a real stick", word for word, by a user who is not root.
//!
//! Three things are not as with a real stick, and only these: the stick is virtual and plugged in by the emulator, the wheel
//! holds a file of the right size that this test made up, and `ncs2ctl` is therefore told `--any-firmware` each time.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use zip::write::SimpleFileOptions;

use crate::bench::Bench;
use crate::owner::program;
use crate::{Verdict, ensure, fleet};

const README: &str = include_str!("../../../README.md");
const SECTION: &str = "## With a real stick";
/// What a hand does, as the README says it.
const PLUG_IN: &str = "plug the stick in";
const LOG_IN: &str = "log out and in again";
/// The stick of the README's reader.
const STICK: usize = 0;
const USER: &str = "reader";
const HOME: &str = "/home/reader";
const WHEEL: &str = "openvino-2021.4.2-3976-cp38-cp38-manylinux2014_x86_64.whl";
const INSTALLED: [&str; 2] = ["/etc/udev/rules.d/70-ncs2.rules", "/etc/modprobe.d/ncs2.conf"];

/// A line of the section's console.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Line {
    /// Typed by the user.
    Command(&'static str),
    /// Behind `sudo`.
    AsRoot(&'static str),
    PlugIn,
    LogIn,
}

/// The console of the section; what programs print there is left out.
fn lines() -> Result<Vec<Line>, String> {
    let section = README.split_once(&format!("\n{SECTION}\n")).ok_or_else(|| format!("no {SECTION}"))?.1;
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut lines = Vec::new();
    for console in section.split("```console\n").skip(1) {
        for line in console.split("```").next().unwrap_or_default().lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                // What a shell takes for a remark.
                let command = command.split("  # ").next().unwrap_or_default().trim_end();
                lines.push(command.strip_prefix("sudo ").map_or(Line::Command(command), Line::AsRoot));
            } else if let Some(act) = line.strip_prefix("# ") {
                lines.push(match act {
                    PLUG_IN => Line::PlugIn,
                    LOG_IN => Line::LogIn,
                    _ => return Err(format!("{SECTION}: nobody knows how to `{act}`")),
                });
            }
        }
    }
    ensure!(!lines.is_empty(), "{SECTION}: no console with commands");
    Ok(lines)
}

/// The user, his folder with what the README names, the tool where all find it.
fn prepare() -> Verdict {
    let failed = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    let home = Path::new(HOME);
    let made = Command::new("useradd").args(["--create-home", "--shell", "/bin/bash", USER]).output();
    let made = made.map_err(|e| format!("useradd: {e}"))?;
    ensure!(made.status.success(), "useradd: {}", String::from_utf8_lossy(&made.stderr));
    let models = home.join("tests/data/models");
    fs::create_dir_all(&models).map_err(|e| failed(&models, e))?;
    for entry in fs::read_dir(fleet::models()).map_err(|e| failed(&models, e))?.flatten() {
        let to = models.join(entry.file_name());
        fs::copy(entry.path(), &to).map_err(|e| failed(&to, e))?;
    }
    let (tool, real) = (Path::new("/usr/local/bin/ncs2ctl"), Path::new("/usr/local/lib/ncs2ctl"));
    let built: PathBuf = program()?.with_file_name("ncs2ctl");
    fs::copy(&built, real).map_err(|e| failed(&built, e))?;
    fs::write(tool, format!("#!/bin/sh\nexec {} --any-firmware \"$@\"\n", real.display()))
        .and_then(|()| fs::set_permissions(tool, fs::Permissions::from_mode(0o755)))
        .map_err(|e| failed(tool, e))?;
    let path = home.join(WHEEL);
    let image = fleet::firmware().and_then(|from| fs::read(&from).map_err(|e| failed(&from, e)))?;
    let mut wheel = zip::ZipWriter::new(File::create(&path).map_err(|e| failed(&path, e))?);
    wheel
        .start_file("openvino/libs/usb-ma2x8x.mvcmd", SimpleFileOptions::default())
        .and_then(|()| Ok(wheel.write_all(&image)?))
        .and_then(|()| wheel.finish())
        .map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(())
}

/// Runs a line with bash in the user's folder, as root or as the user with the groups that he has by now.
fn run(line: &str, root: bool) -> Result<String, String> {
    let mut command = if root {
        Command::new("bash")
    } else {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", USER, "--regid", USER, "--init-groups", "bash"]);
        command
    };
    let out = command
        .args(["-c", line])
        .current_dir(HOME)
        .env("HOME", HOME)
        .env("USER", USER)
        .output()
        .map_err(|e| format!("{line}: {e}"))?;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let why = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "$ {line}\n{said}{why}{}", out.status);
    Ok(said)
}

pub(crate) fn commands_of_the_readme_work(bench: &mut Bench) -> Verdict {
    if !Path::new("/run/udev/control").exists() {
        return Err("no udevd in this machine: the README's way needs one".into());
    }
    let lines = lines()?;
    prepare()?;
    bench.all_gone()?;
    let (mut plugged, mut inferences) = (false, 0);
    for line in &lines {
        let start = Instant::now();
        let (text, root) = match line {
            // Each command of the user is a session of its own.
            Line::LogIn => continue,
            Line::PlugIn => {
                bench.fresh(STICK)?;
                let settled = Command::new("udevadm").arg("settle").status();
                ensure!(settled.is_ok_and(|status| status.success()), "udevadm settle failed");
                plugged = true;
                continue;
            }
            Line::Command(text) => (*text, false),
            Line::AsRoot(text) => (*text, true),
        };
        let said = run(text, root)?;
        bench.note(format!("$ {text}: {} lines, {} ms", said.lines().count(), start.elapsed().as_millis()));
        if text == "ncs2ctl list" {
            ensure!(plugged && said.contains("1-1"), "expected the stick's port 1-1, found\n{said}");
        }
        if text.starts_with("ncs2ctl run ") || text.starts_with("ncs2ctl bench ") {
            let now = bench.status(STICK)?.inferences;
            ensure!(now > inferences, "$ {text}: the stick answered nothing\n{said}");
            inferences = now;
        }
    }
    ensure!(inferences > 0, "the README runs no network");
    for path in INSTALLED {
        ensure!(Path::new(path).exists(), "expected {path} to be installed");
        fs::remove_file(path).map_err(|e| format!("{path}: {e}"))?;
    }
    run("udevadm control --reload", true).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readme_has_the_steps_that_the_machine_performs() {
        let lines = lines().expect("a section with commands");
        let has = |part: &str| {
            lines.iter().any(|l| matches!(l, Line::Command(text) | Line::AsRoot(text) if text.contains(part)))
        };
        for part in ["udev install", "firmware install", "list", "info", "run ", "bench "] {
            assert!(has(part), "{part} is missing in {lines:?}");
        }
        assert!(lines.contains(&Line::PlugIn));
    }
}
