//! The bus: sticks, hubs and their power, speed, sleep, memory of usbfs.

use super::{Check, Machine};

const VENDOR: &str = "03e7";
/// The stick once it has booted.
const BOOTED: &str = "f63b";
/// Memory that usbfs lends by default, MB.
const DEFAULT_MB: u32 = 16;
/// What our own setting asks for.
const GOOD_MB: u32 = 128;
/// Each stick has this much mapped for its transfers, MB.
const STICK_MB: usize = 4;
/// What a port gives a hub without a supply of its own, mA.
const BUS_POWER_MA: [(u32, u32); 2] = [(5000, 900), (0, 500)];
/// Bit of bmAttributes: the hub has its own supply.
const SELF_POWERED: u8 = 0x40;

/// A device on USB, as the kernel's files show it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Device {
    /// `1-2.3`, or `usb1` for a root hub.
    pub(super) name: String,
    vendor: String,
    product: String,
    /// It is a hub.
    hub: bool,
    speed_mbps: u32,
    /// What it asks for.
    power_ma: u32,
    attributes: u8,
    bus: u32,
    address: u32,
    /// `on` or `auto`.
    sleep: Option<String>,
}

impl Device {
    pub(super) fn is_stick(&self) -> bool {
        self.vendor == VENDOR && ["2485", BOOTED].contains(&&*self.product)
    }

    fn is_booted(&self) -> bool {
        self.product == BOOTED
    }

    /// Its file, without the leading slash.
    pub(super) fn node(&self) -> String {
        format!("dev/bus/usb/{:03}/{:03}", self.bus, self.address)
    }

    /// `1-2` for `1-2.3`, `usb1` for `1-2`; none for a root hub.
    fn hub_name(&self) -> Option<String> {
        match (self.name.rsplit_once('.'), self.name.split_once('-')) {
            (Some((hub, _)), _) => Some(hub.to_owned()),
            (None, Some((bus, _))) => Some(format!("usb{bus}")),
            (None, None) => None,
        }
    }
}

/// Everything on the bus.
pub(super) fn devices(machine: &Machine) -> Vec<Device> {
    const FOLDER: &str = "sys/bus/usb/devices";
    let names = machine.names(FOLDER).into_iter().filter(|name| !name.contains(':'));
    names
        .filter_map(|name| {
            let text = |file: &str| machine.text(format!("{FOLDER}/{name}/{file}"));
            let number = |file: &str| text(file)?.trim().parse::<u32>().ok();
            // A device that leaves this moment has files missing: it is not there.
            Some(Device {
                vendor: text("idVendor")?,
                product: text("idProduct")?,
                hub: text("bDeviceClass").is_some_and(|class| class == "09"),
                speed_mbps: number("speed").unwrap_or(0),
                power_ma: text("bMaxPower")
                    .and_then(|p| p.trim_end_matches("mA").trim().parse().ok())
                    .unwrap_or(0),
                attributes: text("bmAttributes").and_then(|a| u8::from_str_radix(&a, 16).ok()).unwrap_or(0),
                bus: number("busnum")?,
                address: number("devnum")?,
                sleep: text("power/control"),
                name,
            })
        })
        .collect()
}

pub(super) fn sticks(machine: &Machine, sticks: &[Device]) -> Check {
    const NAME: &str = "sticks";
    if !machine.has("sys/bus/usb") {
        return Check::warn(
            NAME,
            "this kernel has no USB: /sys/bus/usb is not there",
            "use another machine, or virtual sticks: ncs2ctl --sim 1 list",
        );
    }
    if sticks.is_empty() {
        return Check::warn(
            NAME,
            "none on USB (03e7:2485, or 03e7:f63b once booted)",
            "check plug, cable and hub power, then lsusb -d 03e7:",
        );
    }
    let state = |d: &Device| if d.is_booted() { "booted" } else { "unbooted" };
    let list: Vec<String> = sticks.iter().map(|d| format!("{} {}", d.name, state(d))).collect();
    Check::pass(NAME, list.join(", "))
}

pub(super) fn memory(machine: &Machine, sticks: usize) -> Check {
    const NAME: &str = "usbfs-memory";
    const FILE: &str = "sys/module/usbcore/parameters/usbfs_memory_mb";
    let Some(mb) = machine.number::<u32>(FILE) else {
        return Check::skip(NAME, format!("/{FILE} is not there"));
    };
    let wanted = (sticks * STICK_MB).max(DEFAULT_MB as usize);
    if mb == 0 || mb as usize >= wanted {
        let limit = if mb == 0 { "no limit".to_owned() } else { format!("{mb} MB for all USB programs") };
        return Check::pass(NAME, limit);
    }
    Check::warn(
        NAME,
        format!("{mb} MB for all USB programs, {sticks} sticks want {wanted}: the rest is copied"),
        format!("echo {GOOD_MB} | sudo tee /{FILE}; to keep it: sudo ncs2ctl udev install"),
    )
}

pub(super) fn autosuspend(machine: &Machine, sticks: &[Device]) -> Check {
    const NAME: &str = "autosuspend";
    let booted: Vec<&Device> = sticks.iter().filter(|d| d.is_booted()).collect();
    if booted.is_empty() {
        return Check::skip(NAME, "no booted stick to look at; the rule keeps booted ones awake");
    }
    // Negative: the kernel suspends nothing by itself.
    let never = machine.number::<i32>("sys/module/usbcore/parameters/autosuspend").is_some_and(|s| s < 0);
    let asleep: Vec<&str> = booted
        .iter()
        .filter(|d| !never && d.sleep.as_deref() == Some("auto"))
        .map(|d| d.name.as_str())
        .collect();
    match &*asleep {
        [] => Check::pass(NAME, "off for booted sticks"),
        [first, ..] => Check::warn(
            NAME,
            format!("the kernel may suspend {}", asleep.join(", ")),
            format!(
                "echo on | sudo tee /sys/bus/usb/devices/{first}/power/control; to keep it: sudo ncs2ctl udev install"
            ),
        ),
    }
}

/// Sum of what the sticks ask for at each hub, and what it can give.
pub(super) fn hubs(devices: &[Device]) -> Check {
    const NAME: &str = "hubs";
    let hubs: Vec<&Device> = devices.iter().filter(|d| d.hub).collect();
    let (mut lines, mut over) = (Vec::new(), Vec::new());
    for hub in &hubs {
        let on: Vec<&Device> =
            devices.iter().filter(|d| d.hub_name().as_deref() == Some(hub.name.as_str())).collect();
        let sticks = on.iter().filter(|d| d.is_stick()).count();
        if sticks == 0 {
            continue;
        }
        let asked: u32 = on.iter().map(|d| d.power_ma).sum();
        let root = hub.hub_name().is_none();
        let own = root || hub.attributes & SELF_POWERED != 0;
        let supply = if root {
            "root hub"
        } else if own {
            "own supply"
        } else {
            "no supply of its own"
        };
        lines.push(format!("{}: {sticks} sticks, {asked} mA asked, {supply}", hub.name));
        let gives = BUS_POWER_MA.iter().find(|(speed, _)| hub.speed_mbps >= *speed).map_or(0, |(_, ma)| *ma);
        if !own && asked + hub.power_ma > gives {
            over.push(format!("{} asks for {asked} mA, its port gives {gives}", hub.name));
        }
    }
    if lines.is_empty() {
        return Check::skip(NAME, "no stick on any hub");
    }
    let evidence = lines.join("; ");
    match &*over {
        [] => Check::pass(NAME, evidence),
        _ => Check::warn(
            NAME,
            format!("{evidence}: {}", over.join(", ")),
            "use a hub with its own supply, or fewer sticks on this one",
        ),
    }
}

pub(super) fn speed(sticks: &[Device]) -> Check {
    const NAME: &str = "speed";
    let booted: Vec<&Device> = sticks.iter().filter(|d| d.is_booted()).collect();
    if booted.is_empty() {
        return Check::skip(NAME, "no booted stick: the boot ROM is at 480 Mb/s on every port");
    }
    let list = |of: &[&Device]| {
        of.iter().map(|d| format!("{} at {} Mb/s", d.name, d.speed_mbps)).collect::<Vec<_>>().join(", ")
    };
    let slow: Vec<&Device> = booted.iter().copied().filter(|d| d.speed_mbps < 5000).collect();
    match &*slow {
        [] => Check::pass(NAME, list(&booted)),
        _ => Check::warn(
            NAME,
            list(&slow),
            "use a USB 3 port, cable and hub: inputs of 150 kB take 4 ms more at USB 2",
        ),
    }
}
