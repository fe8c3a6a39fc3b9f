//! As in a container: no udev, no network, `/dev/bus/usb` bound into a `/dev` of its own, a read-only `/sys`, io_uring denied.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::bench::Bench;
use crate::owner::{Owner, program};
use crate::{Verdict, ensure, fleet};

const MODEL: &str = "tiny_u8_s1";
/// `io_uring_setup`, `io_uring_enter`, `io_uring_register`: the same numbers on every architecture that Rust has.
const IO_URING: [i64; 3] = [425, 426, 427];
/// What the default filters of container runtimes answer.
const EPERM: u32 = 1;

/// What this program does when it was started with `--without-io-uring PROGRAM ARGUMENTS`.
pub(crate) fn exec_without_io_uring(words: &[String]) -> ExitCode {
    let Some((program, arguments)) = words.split_first() else { return ExitCode::from(64) };
    let why = match deny_io_uring() {
        Ok(()) => Command::new(program).args(arguments).exec().to_string(),
        Err(why) => why,
    };
    println!("error {program}: {why}");
    ExitCode::from(126)
}

fn deny_io_uring() -> Verdict {
    let failed = |e: seccompiler::BackendError| format!("seccomp filter: {e}");
    let rules: BTreeMap<_, _> = IO_URING.iter().map(|number| (*number, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().map_err(failed)?;
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(EPERM), arch).map_err(failed)?;
    let program: BpfProgram = filter.try_into().map_err(failed)?;
    seccompiler::apply_filter(&program).map_err(|e| format!("seccomp filter: {e}"))
}

/// A command that runs this program without io_uring, which then runs the words.
fn without_io_uring(words: &[&str]) -> Result<Command, String> {
    let mut command = Command::new(program()?);
    command.arg("--without-io-uring").args(words);
    Ok(command)
}

fn ncs2ctl() -> Result<PathBuf, String> {
    let path = program()?.with_file_name("ncs2ctl");
    ensure!(path.exists(), "{} is not there: build ncs2ctl", path.display());
    Ok(path)
}

fn says_epoll(kind: &str) -> Verdict {
    ensure!(
        kind.starts_with("epoll, because ") && kind.contains("not permitted"),
        "expected epoll and why, found {kind}"
    );
    Ok(())
}

pub(crate) fn io_uring_refused_by_a_filter(bench: &mut Bench) -> Verdict {
    let found = bench.fresh(5)?;
    let program = program()?;
    let mut owner =
        Owner::spawn(without_io_uring(&[&program.to_string_lossy(), "--own", found.id.as_str(), MODEL])?)?;
    let kind = owner.owns()?;
    says_epoll(&kind)?;
    bench.note(kind);
    owner.runs(100)?;
    owner.closes()?;

    // And the tool tells its user.
    let found = bench.fresh(5)?;
    let (tool, firmware) = (ncs2ctl()?, fleet::firmware()?);
    let (tool, firmware) = (tool.to_string_lossy(), firmware.to_string_lossy());
    let words =
        [&tool, "-v", "--device", found.id.as_str(), "--any-firmware", "--firmware", &firmware, "info"];
    let out = without_io_uring(&words)?.output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.success(), "ncs2ctl info: {}: {said}", out.status);
    let line = said.lines().find(|line| line.contains("epoll"));
    let line = line.ok_or_else(|| format!("expected ncs2ctl -v to name epoll, found {said}"))?;
    ensure!(line.contains("not permitted"), "expected why it is epoll, found {line}");
    Ok(())
}

/// What a container runtime does with `-v /dev/bus/usb:/dev/bus/usb`, and no more.
const CONTAINER: &str = r#"
set -e
mkdir -p /tmp/usb
mount --bind /dev/bus/usb /tmp/usb
mount -t tmpfs none /dev
mkdir -p /dev/bus/usb
mknod /dev/null c 1 3
mknod /dev/zero c 1 5
mknod /dev/urandom c 1 9
mount --bind /tmp/usb /dev/bus/usb
mount -t tmpfs none /run
mount --bind /sys /sys
mount -o remount,bind,ro /sys
test ! -e /run/udev/control
exec "$0" "$@"
"#;

pub(crate) fn as_in_a_container(bench: &mut Bench) -> Verdict {
    let found = bench.fresh(5)?;
    let program = program()?;
    let program = program.to_string_lossy();
    let command = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--propagation", "private", "bash", "-c", CONTAINER]);
        command.args([&program, "--without-io-uring", &program, "--own", found.id.as_str(), MODEL]);
        command
    };
    // Twice: the second finds the stick that the first gave back, under another address.
    for _ in 0..2 {
        let start = Instant::now();
        let mut owner = Owner::spawn(command())?;
        let kind = owner.owns()?;
        let owned = start.elapsed();
        says_epoll(&kind)?;
        owner.runs(50)?;
        owner.closes()?;
        bench.note(format!(
            "owned after {} ms, closed after {} ms",
            owned.as_millis(),
            start.elapsed().as_millis()
        ));
    }
    // A stick that is pulled and put back while the container runs.
    let mut owner = Owner::spawn(command())?;
    owner.owns()?;
    owner.runs(5)?;
    let found = bench.fresh(5)?;
    let start = Instant::now();
    owner.runs(20).map_err(|e| format!("after {} was plugged in again: {e}", found.id))?;
    bench.note(format!("plugged in again, it answers after {} ms", start.elapsed().as_millis()));
    owner.closes()
}
