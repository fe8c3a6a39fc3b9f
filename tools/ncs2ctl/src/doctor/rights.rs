//! Whether this user may reach the sticks.

use std::os::unix::fs::MetadataExt as _;

use rustix::fs::Access;

use super::usb::Device;
use super::{Check, Machine};

/// Where udev reads rules.
const RULES: [&str; 4] = ["etc/udev/rules.d", "run/udev/rules.d", "usr/lib/udev/rules.d", "lib/udev/rules.d"];
/// The group of our rule.
const GROUP: &str = "plugdev";
const INSTALL: &str = "sudo ncs2ctl udev install, then plug the sticks in again";

/// The rule for the vendor's id: file and text.
fn installed(machine: &Machine) -> Option<(String, String)> {
    RULES.iter().find_map(|folder| {
        machine.names(folder).into_iter().filter(|name| name.ends_with(".rules")).find_map(|name| {
            let file = format!("{folder}/{name}");
            let text = machine.text(&file)?;
            let active: String = text.lines().filter(|l| !l.trim_start().starts_with('#')).collect();
            active.contains("03e7").then(|| (format!("/{file}"), active))
        })
    })
}

pub(super) fn rule(machine: &Machine) -> Check {
    const NAME: &str = "udev-rule";
    let Some((file, text)) = installed(machine) else {
        let evidence = format!("no rule names 03e7 in /{}", RULES.join(", /"));
        return if machine.uid == 0 {
            Check::warn(NAME, format!("{evidence}: root needs none, other users do"), INSTALL)
        } else {
            Check::fail(NAME, evidence, INSTALL)
        };
    };
    // A rule for the boot ROM alone shuts the user out as soon as the stick has booted.
    let one_of_two = text.contains("2485") && !text.contains("f63b");
    if one_of_two {
        let evidence = format!("{file} names 2485 and not f63b, which the stick is once it has booted");
        return Check::fail(NAME, evidence, INSTALL);
    }
    if !machine.has("run/udev/control") {
        let evidence = format!("{file}, but no udevd runs here, so it does nothing");
        return Check::warn(
            NAME,
            evidence,
            "start udevd, or give the rights by hand: sudo chmod a+rw /dev/bus/usb/*/*",
        );
    }
    Check::pass(NAME, file)
}

pub(super) fn group(machine: &Machine) -> Check {
    const NAME: &str = "group";
    if machine.uid == 0 {
        return Check::pass(NAME, "root needs none");
    }
    let Some((_, rule)) = installed(machine) else {
        return Check::skip(NAME, "no rule, so no group matters");
    };
    if !rule.contains(GROUP) {
        return Check::skip(NAME, format!("the installed rule does not use the group {GROUP}"));
    }
    let text = machine.text("etc/group").unwrap_or_default();
    let gid = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(GROUP)).then(|| fields.nth(1)?.parse::<u32>().ok()).flatten()
    });
    let Some(gid) = gid else {
        return Check::warn(
            NAME,
            format!("there is no group {GROUP}, which the rule gives the sticks to"),
            format!("sudo groupadd -r {GROUP} && sudo usermod -aG {GROUP} $USER, then log in again"),
        );
    };
    let ours = rustix::process::getgroups().unwrap_or_default();
    if ours.iter().any(|group| group.as_raw() == gid) || rustix::process::getegid().as_raw() == gid {
        return Check::pass(NAME, format!("in {GROUP}"));
    }
    Check::warn(
        NAME,
        format!("not in {GROUP}: the sticks are yours only while you sit at this machine"),
        format!("sudo usermod -aG {GROUP} $USER, then log in again"),
    )
}

pub(super) fn access_of(machine: &Machine, stick: &Device) -> Result<(), String> {
    let node = stick.node();
    let path = machine.path(&node);
    let Err(error) = rustix::fs::access(&path, Access::READ_OK | Access::WRITE_OK) else { return Ok(()) };
    let owner = path.metadata().map_or_else(
        |e| e.to_string(),
        |m| format!("mode {:o}, user {}, group {}", m.mode() & 0o777, m.uid(), m.gid()),
    );
    Err(format!("{}: /{node} ({owner}): {error}", stick.name))
}

pub(super) fn access(machine: &Machine, sticks: &[Device]) -> Check {
    const NAME: &str = "access";
    if sticks.is_empty() {
        return Check::skip(NAME, "no stick to reach");
    }
    let denied: Vec<String> = sticks.iter().filter_map(|s| access_of(machine, s).err()).collect();
    match &*denied {
        [] => Check::pass(NAME, format!("{} of {} sticks can be opened", sticks.len(), sticks.len())),
        _ => Check::fail(NAME, denied.join("; "), INSTALL),
    }
}
