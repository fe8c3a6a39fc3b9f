//! Machines made of files.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

struct Made {
    folder: tempfile::TempDir,
}

impl Made {
    fn new() -> Made {
        Made { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    fn put(&self, path: &str, text: &str) -> &Self {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("made");
        fs::write(path, text).expect("written");
        self
    }

    /// A device below /sys/bus/usb.
    fn device(&self, name: &str, id: &str, speed: u32, more: &[(&str, &str)]) -> &Self {
        let (vendor, product) = id.split_once(':').expect("vendor and product");
        let number = self.folder.path().join("sys/bus/usb/devices").read_dir().map_or(0, |d| d.count()) + 1;
        let (number, speed) = (number.to_string(), speed.to_string());
        let usual = [
            ("idVendor", vendor),
            ("idProduct", product),
            ("busnum", "1"),
            ("devnum", &number),
            ("speed", &speed),
            ("bMaxPower", "500mA"),
            ("bmAttributes", "80"),
            ("bDeviceClass", "00"),
        ];
        for (file, text) in usual.iter().chain(more) {
            self.put(&format!("sys/bus/usb/devices/{name}/{file}"), &format!("{text}\n"));
        }
        self.put(&format!("dev/bus/usb/001/{:03}", number.parse::<u32>().expect("a number")), "")
    }

    fn machine(&self, uid: u32) -> Machine {
        Machine { root: self.folder.path().to_owned(), uid }
    }
}

fn sticks(machine: &Machine) -> Vec<usb::Device> {
    usb::devices(machine).into_iter().filter(usb::Device::is_stick).collect()
}

fn is(check: &Check, status: Status, words: &[&str]) {
    assert_eq!(check.status, status, "{check:?}");
    let said = format!("{} {}", check.evidence, check.mend.as_deref().unwrap_or_default());
    for word in words {
        assert!(said.contains(word), "expected `{word}` in {said}");
    }
    let needs_mend = matches!(status, Status::Warn | Status::Fail);
    assert_eq!(check.mend.is_some(), needs_mend, "{check:?}");
}

#[test]
fn an_empty_machine_is_told_what_it_lacks() {
    let made = Made::new();
    let user = made.machine(1000);
    is(&host::kernel(&user), Status::Skip, &["osrelease"]);
    is(&host::container(&user), Status::Pass, &["none"]);
    is(&usb::sticks(&user, &[]), Status::Warn, &["no USB", "--sim"]);
    is(&rights::rule(&user), Status::Fail, &["03e7", "sudo ncs2ctl udev install"]);
    is(&rights::rule(&made.machine(0)), Status::Warn, &["root needs none"]);
    is(&rights::group(&user), Status::Skip, &["no rule"]);
    is(&rights::access(&user, &[]), Status::Skip, &["no stick"]);
    is(&usb::memory(&user, 0), Status::Skip, &["usbfs_memory_mb"]);
    is(&usb::autosuspend(&user, &[]), Status::Skip, &["no booted stick"]);
    is(&usb::hubs(&[]), Status::Skip, &["no stick"]);
    is(&usb::speed(&[]), Status::Skip, &["no booted stick"]);
}

#[test]
fn kernels_are_told_apart() {
    for (release, status) in [
        ("6.1.0-56-amd64", Status::Pass),
        ("5.13.0", Status::Pass),
        ("5.4.0-150-generic", Status::Warn),
        ("4.19.0", Status::Warn),
        ("nonsense", Status::Pass),
    ] {
        let made = Made::new();
        made.put("proc/sys/kernel/osrelease", release);
        is(&host::kernel(&made.machine(1000)), status, &[release]);
    }
}

#[test]
fn containers_are_seen_with_and_without_usb() {
    let made = Made::new();
    made.put(".dockerenv", "");
    is(&host::container(&made.machine(0)), Status::Warn, &["docker", "-v /dev/bus/usb"]);
    made.put("dev/bus/usb/001/001", "");
    is(&host::container(&made.machine(0)), Status::Pass, &["no udev inside"]);
    let made = Made::new();
    made.put("proc/1/cgroup", "0::/kubepods/besteffort/pod1");
    is(&host::container(&made.machine(0)), Status::Warn, &["container"]);
}

#[test]
fn rules_are_read_and_not_only_found() {
    let made = Made::new();
    made.put("etc/udev/rules.d/97-old.rules", "# 03e7 f63b in a comment\n");
    is(&rights::rule(&made.machine(1000)), Status::Fail, &["no rule names 03e7"]);
    made.put("etc/udev/rules.d/97-old.rules", "ATTR{idVendor}==\"03e7\", ATTR{idProduct}==\"2485\"\n");
    is(&rights::rule(&made.machine(1000)), Status::Fail, &["97-old.rules", "f63b"]);
    made.put("etc/udev/rules.d/97-old.rules", crate::cmd::udev::RULE);
    is(&rights::rule(&made.machine(1000)), Status::Warn, &["no udevd"]);
    made.put("run/udev/control", "");
    is(&rights::rule(&made.machine(1000)), Status::Pass, &["/etc/udev/rules.d/97-old.rules"]);
    is(&rights::group(&made.machine(1000)), Status::Warn, &["no group plugdev", "groupadd"]);
    made.put("etc/group", "root:x:0:\nplugdev:x:4294900000:nobody\n");
    is(&rights::group(&made.machine(1000)), Status::Warn, &["usermod -aG plugdev"]);
    let own = rustix::process::getegid().as_raw();
    made.put("etc/group", &format!("plugdev:x:{own}:\n"));
    is(&rights::group(&made.machine(1000)), Status::Pass, &["in plugdev"]);
}

#[test]
fn sticks_hubs_power_and_speed() {
    let made = Made::new();
    let hub = [("bDeviceClass", "09"), ("bMaxPower", "100mA"), ("bmAttributes", "a0")];
    made.device("usb1", "1d6b:0002", 480, &[("bDeviceClass", "09"), ("bMaxPower", "0mA")])
        .device("1-1", "05e3:0610", 480, &hub)
        .device("1-1.1", "03e7:2485", 480, &[])
        .device("1-1.2", "03e7:f63b", 480, &[("power/control", "auto")])
        .device("1-1.3", "046d:c077", 12, &[("bMaxPower", "100mA")])
        .device("1-2", "03e7:f63b", 5000, &[("power/control", "on")]);
    let machine = made.machine(0);
    let found = sticks(&machine);
    assert_eq!(found.len(), 3);
    is(&usb::sticks(&machine, &found), Status::Pass, &["1-1.1 unbooted", "1-1.2 booted", "1-2 booted"]);
    let hubs = usb::hubs(&usb::devices(&machine));
    is(&hubs, Status::Warn, &["1-1: 2 sticks, 1100 mA", "gives 500", "usb1: 1 sticks", "root hub"]);
    is(&usb::speed(&found), Status::Warn, &["1-1.2 at 480 Mb/s", "USB 3"]);
    is(&usb::autosuspend(&machine, &found), Status::Warn, &["suspend 1-1.2", "power/control"]);
    made.put("sys/module/usbcore/parameters/autosuspend", "-1\n");
    is(&usb::autosuspend(&machine, &found), Status::Pass, &["off"]);
    made.put("sys/bus/usb/devices/1-1/bmAttributes", "e0\n");
    is(&usb::hubs(&usb::devices(&machine)), Status::Pass, &["own supply"]);
    is(&rights::access(&machine, &found), Status::Pass, &["3 of 3"]);
}

#[test]
fn memory_of_usbfs_is_held_against_the_number_of_sticks() {
    let made = Made::new();
    let with = |mb: &str, sticks: usize| {
        made.put("sys/module/usbcore/parameters/usbfs_memory_mb", mb);
        usb::memory(&made.machine(0), sticks)
    };
    is(&with("16\n", 0), Status::Pass, &["16 MB"]);
    is(&with("16\n", 4), Status::Pass, &["16 MB"]);
    is(&with("16\n", 8), Status::Warn, &["8 sticks want 32", "sudo tee"]);
    is(&with("128\n", 8), Status::Pass, &["128 MB"]);
    is(&with("0\n", 60), Status::Pass, &["no limit"]);
    is(&with("8\n", 1), Status::Warn, &["8 MB"]);
}

#[test]
fn a_node_that_may_not_be_opened_is_shown_with_its_mode() {
    if rustix::process::geteuid().is_root() {
        println!("skipped: root may open everything");
        return;
    }
    let made = Made::new();
    made.device("1-2", "03e7:2485", 480, &[]);
    let node = made.folder.path().join("dev/bus/usb/001/001");
    fs::set_permissions(&node, fs::Permissions::from_mode(0o000)).expect("ours");
    let machine = made.machine(1000);
    is(&rights::access(&machine, &sticks(&machine)), Status::Fail, &["1-2", "mode 0", "udev install"]);
}

/// What a user reads, of a machine with one of each trouble, and of one where all is well.
#[test]
fn what_is_said_of_two_machines_is_as_reviewed() {
    let troubled = Made::new();
    troubled.put("proc/sys/kernel/osrelease", "6.1.0-test\n").put(".dockerenv", "");
    troubled.put("sys/module/usbcore/parameters/usbfs_memory_mb", "2\n");
    troubled.put("sys/module/usbcore/parameters/autosuspend", "2\n");
    troubled.device("usb1", "1d6b:0002", 480, &[("bDeviceClass", "09"), ("bMaxPower", "0mA")]);
    let suspends = [("power/control", "auto")];
    troubled.device("1-1", "03e7:f63b", 480, &suspends).device("1-2", "03e7:2485", 480, &[]);
    let well = Made::new();
    well.put("proc/sys/kernel/osrelease", "6.1.0-test\n");
    well.put("etc/udev/rules.d/70-ncs2.rules", crate::cmd::udev::RULE);
    well.put("sys/module/usbcore/parameters/usbfs_memory_mb", "128\n");
    well.put("sys/module/usbcore/parameters/autosuspend", "-1\n");
    well.device("usb2", "1d6b:0003", 5000, &[("bDeviceClass", "09"), ("bMaxPower", "0mA")]);
    well.device("2-1", "03e7:f63b", 5000, &[("power/control", "on")]);
    let mut text = String::new();
    for (name, made, uid) in [("troubled", &troubled, 1000), ("well", &well, 0)] {
        let machine = made.machine(uid);
        let devices = usb::devices(&machine);
        let found = sticks(&machine);
        let checks = [
            host::kernel(&machine),
            host::container(&machine),
            usb::sticks(&machine, &found),
            rights::rule(&machine),
            rights::group(&machine),
            usb::memory(&machine, found.len()),
            usb::autosuspend(&machine, &found),
            usb::hubs(&devices),
            usb::speed(&found),
        ];
        text.push_str(&format!("{name}\n"));
        for Check { name, status, evidence, mend } in checks {
            text.push_str(&format!("{}  {name:<12}  {evidence}\n", status.as_str()));
            text.extend(mend.map(|mend| format!("                    -> {mend}\n")));
        }
    }
    for made in [&troubled, &well] {
        text = text.replace(&*made.folder.path().to_string_lossy(), "");
    }
    insta::assert_snapshot!("machines", text);
}
