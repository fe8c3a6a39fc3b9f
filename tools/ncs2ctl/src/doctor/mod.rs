//! What sticks need of a machine, looked at one by one: evidence, verdict, and the command that mends it.
//!
//! Nothing is opened and nothing is changed, so it needs no stick and no rights. All is read below one root folder, so
//! that a test can make a machine.

mod host;
mod rights;
mod usb;

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::failure::one_line;
use crate::flags::Global;

/// How a check came out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Pass,
    /// There is nothing here to look at; the evidence says why.
    Skip,
    /// Works, but not as well as it could, or not for everybody.
    Warn,
    /// Sticks do not work like this.
    Fail,
}

impl Status {
    /// As documents have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pass => "pass",
            Status::Skip => "skip",
            Status::Warn => "warn",
            Status::Fail => "fail",
        }
    }
}

/// One thing looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// Stable name.
    pub name: &'static str,
    /// Verdict.
    pub status: Status,
    /// What was found, and where.
    pub evidence: String,
    /// What to do: a command where there is one. `None` for what is well.
    pub mend: Option<String>,
}

impl Check {
    fn pass(name: &'static str, evidence: impl AsRef<str>) -> Check {
        Check { name, status: Status::Pass, evidence: one_line(evidence.as_ref()), mend: None }
    }

    fn skip(name: &'static str, evidence: impl AsRef<str>) -> Check {
        Check { status: Status::Skip, ..Check::pass(name, evidence) }
    }

    fn warn(name: &'static str, evidence: impl AsRef<str>, mend: impl AsRef<str>) -> Check {
        Check { status: Status::Warn, mend: Some(one_line(mend.as_ref())), ..Check::pass(name, evidence) }
    }

    fn fail(name: &'static str, evidence: impl AsRef<str>, mend: impl AsRef<str>) -> Check {
        Check { status: Status::Fail, ..Check::warn(name, evidence, mend) }
    }
}

/// The machine as its files show it.
#[derive(Clone, Debug)]
pub struct Machine {
    root: PathBuf,
    /// Effective user id.
    uid: u32,
}

impl Machine {
    /// This one.
    pub fn this() -> Machine {
        Machine { root: "/".into(), uid: rustix::process::geteuid().as_raw() }
    }

    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    fn has(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    /// Without the end of its line; `None` for what is not there or no text.
    fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        Some(fs::read_to_string(self.path(path)).ok()?.trim_end().to_owned())
    }

    fn number<T: std::str::FromStr>(&self, path: impl AsRef<Path>) -> Option<T> {
        self.text(path)?.trim().parse().ok()
    }

    /// Names in a folder, sorted; none where there is no folder.
    fn names(&self, folder: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten();
        let mut names: Vec<String> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

/// All checks, in the order in which they help.
pub fn checks(machine: &Machine, global: &Global) -> Vec<Check> {
    let devices = usb::devices(machine);
    let sticks: Vec<usb::Device> = devices.iter().filter(|d| d.is_stick()).cloned().collect();
    let mut checks = vec![
        host::kernel(machine),
        host::reactor(),
        host::container(machine),
        usb::sticks(machine, &sticks),
        rights::rule(machine),
        rights::group(machine),
        rights::access(machine, &sticks),
        usb::memory(machine, sticks.len()),
        usb::autosuspend(machine, &sticks),
        usb::hubs(&devices),
        usb::speed(&sticks),
        host::firmware(global),
        host::stats(global),
    ];
    if global.sim.is_some() {
        checks.insert(0, host::simulated(global));
    }
    checks
}

#[cfg(test)]
mod tests;
