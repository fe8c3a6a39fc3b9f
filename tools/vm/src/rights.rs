//! Who may open a stick: nobody without the udev rule, members of its group with it.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ncs2::ErrorKind;
use ncs2::transport::usb::discover::Found;
use ncs2::transport::usb::usbfs::UsbfsPort;

use crate::bench::Bench;
use crate::{Verdict, ensure};

const NOBODY: u32 = 65534;
/// How long udevd may take to hand a device over.
const PATIENCE: Duration = Duration::from_secs(5);
const RULES: &str = "/run/udev/rules.d/70-ncs2.rules";

/// What `main` does when it was started by [`open_as`]: opens one device and says how that went.
pub(crate) fn open_for_parent(bus: &str, address: &str) -> String {
    let (Ok(bus), Ok(address)) = (bus.parse(), address.parse()) else { return "usage".into() };
    match UsbfsPort::open(bus, address) {
        Ok(_) => "opened".into(),
        Err(e) if e.kind() == ErrorKind::Permission => "refused".into(),
        Err(e) => e.to_string(),
    }
}

/// Another process, of the user `nobody` and one group, opens the stick.
fn open_as(group: u32, found: &Found) -> Result<String, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let out = Command::new(program)
        .args(["--open", &found.bus.to_string(), &found.address.to_string()])
        .uid(NOBODY)
        .gid(group)
        .output()
        .map_err(|e| format!("as nobody: {e}"))?;
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn udevadm(args: &[&str]) -> Verdict {
    let status = Command::new("udevadm").args(args).status().map_err(|e| format!("udevadm: {e}"))?;
    ensure!(status.success(), "udevadm {args:?}: {status}");
    Ok(())
}

fn group(name: &str) -> Result<u32, String> {
    let text = std::fs::read_to_string("/etc/group").map_err(|e| e.to_string())?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split(':').nth(1)?.parse().ok())
        .ok_or_else(|| format!("no group {name}"))
}

pub(crate) fn users_may_open_with_the_rule_alone(bench: &mut Bench) -> Verdict {
    if !Path::new("/run/udev/control").exists() {
        bench.note("not looked at: no udevd in this machine");
        return Ok(());
    }
    let plugdev = group("plugdev")?;
    let _ = std::fs::remove_file(RULES);
    udevadm(&["control", "--reload"])?;
    let found = bench.fresh(5)?;
    udevadm(&["settle"])?;
    let without = [open_as(NOBODY, &found)?, open_as(plugdev, &found)?];
    ensure!(without == ["refused", "refused"], "without the rule: expected refused twice, found {without:?}");

    let rule = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../udev/70-ncs2.rules");
    std::fs::create_dir_all("/run/udev/rules.d").map_err(|e| e.to_string())?;
    std::fs::copy(&rule, RULES).map_err(|e| format!("{}: {e}", rule.display()))?;
    udevadm(&["control", "--reload"])?;
    for booted in [false, true] {
        let found = if booted { bench.booted(5)? } else { bench.fresh(5)? };
        udevadm(&["settle"])?;
        // `settle` waits for what udevd has heard of; the kernel may be about to tell it more.
        let until = Instant::now() + PATIENCE;
        let with = loop {
            let with = [open_as(NOBODY, &found)?, open_as(plugdev, &found)?];
            if with[1] == "opened" || Instant::now() >= until {
                break with;
            }
            udevadm(&["settle"])?;
        };
        ensure!(
            with == ["refused", "opened"],
            "with the rule, booted {booted}: expected refused and opened, found {with:?}"
        );
        if booted {
            let control = format!("/sys/bus/usb/devices/{}-6/power/control", found.bus);
            let control = std::fs::read_to_string(&control).map_err(|e| format!("{control}: {e}"))?;
            ensure!(control.trim() == "on", "autosuspend of a booted stick: expected on, found {control}");
        }
    }
    let _ = std::fs::remove_file(RULES);
    udevadm(&["control", "--reload"])
}
