//! The machine itself: kernel, reactor, container, firmware, runtime folder.

use std::io;

use ncs2::runtime::stats_socket;
use ncs2::transport::usb::firmware::Firmware;
use ncs2::transport::{Reactor, ReactorKind};

use ncs2_device::Engine;

use super::{Check, Machine};
use crate::flags::Global;
use crate::open::Sticks;

/// First kernel whose io_uring has the multishot poll that the reactor uses.
const GOOD_KERNEL: (u32, u32) = (5, 13);
/// Digits of a hash that tell files apart.
const HASH_DIGITS: usize = 16;

pub(super) fn kernel(machine: &Machine) -> Check {
    const NAME: &str = "kernel";
    let Some(release) = machine.text("proc/sys/kernel/osrelease") else {
        return Check::skip(NAME, "/proc/sys/kernel/osrelease cannot be read");
    };
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < GOOD_KERNEL => Check::warn(
            NAME,
            format!("Linux {release}: its io_uring is too old, epoll serves instead"),
            format!("use Linux {}.{} or newer", GOOD_KERNEL.0, GOOD_KERNEL.1),
        ),
        _ => Check::pass(NAME, format!("Linux {release}")),
    }
}

pub(super) fn reactor() -> Check {
    const NAME: &str = "io";
    let detected = ReactorKind::detect();
    let Some(error) = detected.why_not else { return Check::pass(NAME, detected.kind.as_str()) };
    if let Err(error) = Reactor::new(detected.kind) {
        let evidence = format!("neither io_uring nor epoll: {error}");
        return Check::fail(NAME, evidence, "raise the limit of open files: ulimit -n 4096");
    }
    let mend = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "sudo sysctl kernel.io_uring_disabled=0; in a container also a seccomp profile that allows io_uring"
        }
        _ => "use a kernel with io_uring, Linux 5.13 or newer",
    };
    Check::warn(NAME, format!("epoll, because io_uring says: {error}"), mend)
}

/// The virtual sticks that `--sim` asks for.
pub(super) fn simulated(global: &Global) -> Check {
    const NAME: &str = "virtual";
    match Sticks::find(global, Engine::Hash) {
        Ok(sticks) => {
            let profile = sticks.profile().unwrap_or_default();
            let count = sticks.ids().count();
            Check::pass(
                NAME,
                format!("{count} simulated, profile {profile}: they need no USB, rule or firmware"),
            )
        }
        Err(failure) => match failure.into_report() {
            Some(report) => Check::fail(NAME, report.message, report.hint),
            None => Check::skip(NAME, "not looked at"),
        },
    }
}

pub(super) fn container(machine: &Machine) -> Check {
    const NAME: &str = "container";
    let kind = if machine.has(".dockerenv") {
        "docker"
    } else if machine.has("run/.containerenv") {
        "podman"
    } else if machine.text("proc/1/cgroup").is_some_and(|t| {
        ["/docker", "/lxc", "/kubepods", "/machine.slice"].iter().any(|word| t.contains(word))
    }) {
        "cgroup of a container"
    } else {
        return Check::pass(NAME, "none");
    };
    if !machine.has("dev/bus/usb") {
        return Check::warn(
            NAME,
            format!("{kind}: /dev/bus/usb is not inside, so no stick can be reached"),
            "docker run -v /dev/bus/usb:/dev/bus/usb --device-cgroup-rule='c 189:* rmw' …",
        );
    }
    let udev =
        if machine.has("run/udev/control") { "" } else { ", no udev inside: new sticks are polled for" };
    Check::pass(NAME, format!("{kind}, with /dev/bus/usb{udev}"))
}

pub(super) fn firmware(global: &Global) -> Check {
    const NAME: &str = "firmware";
    match Firmware::find(global.firmware.as_deref(), global.any_firmware) {
        Ok(found) => {
            let hash = found.sha256.get(..HASH_DIGITS).unwrap_or_default();
            let what = match &found.known {
                Some(known) => format!("{} of {}", known.name, known.release),
                None => "unknown to this version, accepted because of --any-firmware".to_owned(),
            };
            Check::pass(NAME, format!("{}: {what}, sha256 {hash}…", found.path.display()))
        }
        Err(error) => {
            let text = error.to_string();
            let evidence = text.split(": take it out of").next().unwrap_or_default();
            Check::fail(NAME, evidence, "ncs2ctl firmware fetch, or ncs2ctl firmware install WHEEL")
        }
    }
}

pub(super) fn stats(global: &Global) -> Check {
    const NAME: &str = "stats";
    if !global.stats_socket {
        return Check::warn(
            NAME,
            "stats_socket = false: top and thermal cannot look at sticks that a program holds",
            "take stats_socket out of the settings: see ncs2ctl config",
        );
    }
    let folder = stats_socket::folder();
    match stats_socket::prepare(&folder) {
        Ok(()) => {
            let fleets = stats_socket::readers().len();
            Check::pass(NAME, format!("{}, {fleets} other processes tell theirs", folder.display()))
        }
        Err(error) => Check::warn(
            NAME,
            format!(
                "{}: {error}: top and thermal cannot look at sticks that a program holds",
                folder.display()
            ),
            "set XDG_RUNTIME_DIR to a folder of yours",
        ),
    }
}
