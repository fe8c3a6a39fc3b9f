//! Which sticks are plugged in, without opening any.
//!
//! libusb (through rusb) enumerates; sysfs adds what libusb cannot say without opening: the peer port, who holds the
//! interface, the serial. Both need no rights beyond reading. One stick alone, looked at again and again while it boots,
//! is read from sysfs ([`find`]): libusb would scan all buses each time. A stick's identity is its port path; the booted stick
//! may appear on the SuperSpeed bus of the same socket, so a path is always given as its high-speed side says
//! (the kernel's `peer` link of the port joins the two).

use std::fs;
use std::path::{Path, PathBuf};

use super::printable::printable;
use crate::error::{Error, ErrorKind, Result};
use crate::id::StickId;

/// Movidius.
pub const VENDOR_ID: u16 = 0x03e7;
/// Myriad X in its boot ROM.
pub const PRODUCT_UNBOOTED: u16 = 0x2485;
/// Myriad X after boot, and the variant that a compile option of the vendor makes.
pub const PRODUCT_BOOTED: [u16; 2] = [0xf63b, 0xf63c];
/// The first stick (Myriad 2) in its boot ROM; known, not supported.
pub const PRODUCT_MYRIAD_2: u16 = 0x2150;

/// What a found stick is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FoundState {
    /// In its boot ROM, waiting for firmware.
    Unbooted,
    /// Firmware runs, nobody holds the interface.
    Booted,
    /// Firmware runs and some process holds the interface.
    Busy,
    /// A product that this driver knows but does not drive.
    Unsupported,
}

impl FoundState {
    /// The word that `list` shows.
    pub fn as_str(self) -> &'static str {
        match self {
            FoundState::Unbooted => "unbooted",
            FoundState::Booted => "booted",
            FoundState::Busy => "busy",
            FoundState::Unsupported => "unsupported",
        }
    }
}

/// One stick on the bus.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Port path of the high-speed side, such as `1-2.3`.
    pub id: StickId,
    /// What it is doing.
    pub state: FoundState,
    /// USB product id.
    pub product_id: u16,
    /// Bus that it is on now.
    pub bus: u8,
    /// Address on that bus; changes at boot.
    pub address: u8,
    /// Port numbers from the root hub to the stick.
    pub ports: Vec<u8>,
    /// Mb/s: 480 unbooted, 5000 on a USB 3 port after boot; 0 when the kernel does not say.
    pub speed_mbps: u32,
    /// As the stick says, control bytes removed. All unbooted sticks say the same.
    pub serial: Option<String>,
}

pub(super) const SYSFS: &str = "/sys/bus/usb/devices";

impl Found {
    /// The device file.
    pub fn node(&self) -> PathBuf {
        PathBuf::from(format!("/dev/bus/usb/{:03}/{:03}", self.bus, self.address))
    }
}

/// The process that has the stick open, such as `process 123 (name)`, as far as this user may look.
pub fn owner(found: &Found) -> Option<String> {
    super::owner::of_node(&found.node(), 0)
}

/// The stick on this port now, from sysfs alone: cheap enough to ask often.
pub fn find(id: &StickId) -> Option<Found> {
    find_under(Path::new(SYSFS), id)
}

/// What the kernel calls a device on this port, at either speed.
pub(super) fn names(id: &StickId) -> Vec<String> {
    names_under(Path::new(SYSFS), id)
}

fn names_under(sysfs: &Path, id: &StickId) -> Vec<String> {
    [Some(id.as_str().to_owned()), peer(sysfs, id.as_str())].into_iter().flatten().collect()
}

fn find_under(sysfs: &Path, id: &StickId) -> Option<Found> {
    names_under(sysfs, id).iter().find_map(|name| read(sysfs, name)).filter(|found| found.id == *id)
}

/// One device by the kernel's name for it. A device that comes or goes this moment has files missing: it is not there.
fn read(sysfs: &Path, name: &str) -> Option<Found> {
    let text = |file: &str| fs::read_to_string(sysfs.join(name).join(file)).ok();
    let hex = |file: &str| u16::from_str_radix(text(file)?.trim(), 16).ok();
    if hex("idVendor")? != VENDOR_ID {
        return None;
    }
    let number = |file: &str| text(file)?.trim().parse::<u8>().ok();
    let ports: Option<Vec<u8>> = text("devpath")?.trim().split('.').map(|port| port.parse().ok()).collect();
    let speed_mbps = text("speed")?.trim().parse().unwrap_or(0);
    describe(sysfs, hex("idProduct")?, number("busnum")?, number("devnum")?, ports?, speed_mbps)
}

/// All sticks on all buses, in order of id. A machine without USB has none.
pub fn list() -> Result<Vec<Found>> {
    list_under(Path::new(SYSFS))
}

fn list_under(sysfs: &Path) -> Result<Vec<Found>> {
    use rusb::UsbContext as _;
    const OP: &str = "list USB devices";
    if !sysfs.exists() {
        return Ok(Vec::new());
    }
    let failed =
        |e: rusb::Error| Error::new(ErrorKind::NotFound, OP).detail("libusb cannot enumerate").caused_by(e);
    let context = rusb::Context::new().map_err(failed)?;
    let devices = context.devices().map_err(failed)?;
    let mut found: Vec<Found> = devices
        .iter()
        .filter_map(|device| {
            // A device that is re-enumerating this moment has no descriptor: skip it, it comes back.
            let descriptor = device.device_descriptor().ok()?;
            if descriptor.vendor_id() != VENDOR_ID {
                return None;
            }
            let ports = device.port_numbers().ok()?;
            describe(
                sysfs,
                descriptor.product_id(),
                device.bus_number(),
                device.address(),
                ports,
                match device.speed() {
                    rusb::Speed::Low => 1,
                    rusb::Speed::Full => 12,
                    rusb::Speed::High => 480,
                    rusb::Speed::Super => 5000,
                    rusb::Speed::SuperPlus => 10_000,
                    _ => 0,
                },
            )
        })
        .collect();
    found.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(found)
}

fn describe(
    sysfs: &Path,
    product_id: u16,
    bus: u8,
    address: u8,
    ports: Vec<u8>,
    speed_mbps: u32,
) -> Option<Found> {
    let name = port_path(bus, &ports)?;
    let state = match product_id {
        PRODUCT_UNBOOTED => FoundState::Unbooted,
        id if PRODUCT_BOOTED.contains(&id) => {
            if holds_usbfs(&sysfs.join(format!("{name}:1.0"))) {
                FoundState::Busy
            } else {
                FoundState::Booted
            }
        }
        PRODUCT_MYRIAD_2 => FoundState::Unsupported,
        _ => return None,
    };
    let id =
        if speed_mbps >= 5000 { peer(sysfs, &name).unwrap_or_else(|| name.clone()) } else { name.clone() };
    Some(Found {
        id: StickId::new(id),
        state,
        product_id,
        bus,
        address,
        ports,
        speed_mbps,
        serial: fs::read_to_string(sysfs.join(&name).join("serial")).ok().map(|s| printable(&s)),
    })
}

/// `1-2.3` from bus 1 and ports 2, 3; `None` for a root hub.
fn port_path(bus: u8, ports: &[u8]) -> Option<String> {
    if ports.is_empty() {
        return None;
    }
    let ports: Vec<String> = ports.iter().map(u8::to_string).collect();
    Some(format!("{bus}-{}", ports.join(".")))
}

/// True when a process has claimed this interface through usbfs.
fn holds_usbfs(interface: &Path) -> bool {
    fs::read_link(interface.join("driver")).is_ok_and(|driver| driver.ends_with("usbfs"))
}

/// The hub's folder for the port of this device, below sysfs, whether something is plugged in or not.
pub(super) fn port_folder(name: &str) -> Option<String> {
    let (hub, port) = name.rsplit_once('.').or_else(|| name.rsplit_once('-'))?;
    Some(if name.contains('.') {
        format!("{hub}:1.0/{hub}-port{port}")
    } else {
        format!("{hub}-0:1.0/usb{hub}-port{port}")
    })
}

/// Path of the socket's other side: `…/usb1-port2` is `1-2`, `…/1-2-port3` is `1-2.3`.
pub(super) fn peer(sysfs: &Path, name: &str) -> Option<String> {
    // The hub's own port, not the device's link to it: the kernel makes that link after it has announced the device, so
    // for a moment a stick would have another name (seen in the VM test).
    let peer: PathBuf = fs::read_link(sysfs.join(port_folder(name)?).join("peer")).ok()?;
    let name = peer.file_name()?.to_str()?;
    let (hub, port) = name.rsplit_once("-port")?;
    Some(match hub.strip_prefix("usb") {
        Some(bus) => format!("{bus}-{port}"),
        None => format!("{hub}.{port}"),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary folder");
        let device = root.path().join("2-2.3");
        fs::create_dir_all(&device).expect("folder");
        let port = root.path().join("2-2:1.0/2-2-port3");
        fs::create_dir_all(&port).expect("folder");
        symlink("../../1-2:1.0/1-2-port3", port.join("peer")).expect("link");
        fs::write(device.join("serial"), "03e7\x1b[31m2485\n").expect("file");
        fs::create_dir_all(root.path().join("2-2.3:1.0")).expect("folder");
        root
    }

    #[test]
    fn booted_stick_keeps_the_name_of_its_high_speed_port() {
        let root = tree();
        let found = describe(root.path(), 0xf63b, 2, 7, vec![2, 3], 5000).expect("a stick");
        assert_eq!(found.id.as_str(), "1-2.3");
        assert_eq!(found.state, FoundState::Booted);
        assert_eq!(found.serial.as_deref(), Some("03e7[31m2485"), "control bytes must not reach a terminal");
    }

    #[test]
    fn one_stick_is_found_by_its_port_whichever_side_it_is_on() {
        let root = tree();
        let id = StickId::new("1-2.3");
        let port = root.path().join("1-2:1.0/1-2-port3");
        fs::create_dir_all(&port).expect("folder");
        symlink("../../2-2:1.0/2-2-port3", port.join("peer")).expect("link");
        assert_eq!(find_under(root.path(), &id), None, "its files are not there yet");
        let device = root.path().join("2-2.3");
        for (file, text) in [
            ("idVendor", "03e7\n"),
            ("idProduct", "f63b\n"),
            ("busnum", "2\n"),
            ("devnum", "9\n"),
            ("devpath", "2.3\n"),
            ("speed", "5000\n"),
        ] {
            fs::write(device.join(file), text).expect("file");
        }
        let found = find_under(root.path(), &id).expect("on the other side");
        assert_eq!((found.bus, found.address, found.ports.as_slice()), (2, 9, &[2, 3][..]));
        assert_eq!(found.state, FoundState::Booted);
        assert_eq!(find_under(root.path(), &StickId::new("2-2.3")), None, "that is not its name");
        fs::write(device.join("idVendor"), "1234\n").expect("file");
        assert_eq!(find_under(root.path(), &id), None, "another vendor's device");
    }

    #[test]
    fn claimed_interface_reads_busy() {
        let root = tree();
        symlink("../../../bus/usb/drivers/usbfs", root.path().join("2-2.3:1.0/driver")).expect("link");
        let found = describe(root.path(), 0xf63b, 2, 7, vec![2, 3], 5000).expect("a stick");
        assert_eq!(found.state, FoundState::Busy);
    }

    #[test]
    fn root_port_peers_are_understood_and_other_products_skipped() {
        let root = tree();
        let port = root.path().join("4-0:1.0/usb4-port1");
        fs::create_dir_all(&port).expect("folder");
        symlink("../../3-0:1.0/usb3-port1", port.join("peer")).expect("link");
        let found = describe(root.path(), 0xf63b, 4, 2, vec![1], 5000).expect("a stick");
        assert_eq!(found.id.as_str(), "3-1");
        assert_eq!(describe(root.path(), 0x1234, 4, 2, vec![1], 5000), None);
        assert_eq!(describe(root.path(), PRODUCT_UNBOOTED, 4, 2, vec![], 480), None);
        let old = describe(root.path(), PRODUCT_MYRIAD_2, 3, 9, vec![4], 480).expect("a stick");
        assert_eq!((old.id.as_str(), old.state), ("3-4", FoundState::Unsupported));
    }

    #[test]
    fn machine_without_usb_has_no_sticks() {
        assert_eq!(list_under(Path::new("/nonexistent")).expect("no error"), []);
    }
}
