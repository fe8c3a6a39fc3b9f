//! Power of a hub's port: cut and given by the kernel's `disable` attribute, else by a request to the hub.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::discover;
use super::sys::{self, Setup};

/// `PORT_POWER`, a feature of hub ports.
const PORT_POWER: u16 = 8;
const SET_FEATURE: u8 = 3;
const CLEAR_FEATURE: u8 = 1;
const GET_DESCRIPTOR: u8 = 6;
/// Class request to a port ("other") of the hub.
const TO_PORT: u8 = 0x23;
/// Class request to the hub that it answers.
const FROM_HUB: u8 = 0xa0;
/// Descriptor types of a hub, USB 2 and SuperSpeed.
const DESCRIPTORS: [u16; 2] = [0x29, 0x2a];

/// Why a port's power did not change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoPower {
    /// Only root may.
    Rights,
    /// The hub switches no port by itself.
    Hub,
    /// The kernel or the hub refused.
    Errno(Errno),
}

/// One port of a hub, one of the two sides of a USB 3 socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct HubPort {
    /// The kernel's attribute (since 6.0): root's to write.
    disable: PathBuf,
    /// Device file of the hub.
    node: PathBuf,
    port: u16,
}

impl HubPort {
    /// The ports behind the socket of this port path: its high-speed side and, where there is one, its SuperSpeed side.
    /// Power stays on until both are off.
    pub(super) fn sides(sysfs: &Path, name: &str) -> Vec<HubPort> {
        let names = [Some(name.to_owned()), discover::peer(sysfs, name)];
        names.iter().flatten().filter_map(|name| Self::of(sysfs, name)).collect()
    }

    fn of(sysfs: &Path, name: &str) -> Option<HubPort> {
        let folder = sysfs.join(discover::port_folder(name)?);
        if !folder.is_dir() {
            return None;
        }
        let (hub, port) = name.rsplit_once('.').or_else(|| name.rsplit_once('-'))?;
        let hub = if name.contains('.') { hub.to_owned() } else { format!("usb{hub}") };
        let number = |file| fs::read_to_string(sysfs.join(&hub).join(file)).ok()?.trim().parse::<u16>().ok();
        let (bus, address) = (number("busnum")?, number("devnum")?);
        Some(HubPort {
            disable: folder.join("disable"),
            node: PathBuf::from(format!("/dev/bus/usb/{bus:03}/{address:03}")),
            port: port.parse().ok()?,
        })
    }

    /// Gives or cuts the power.
    pub(super) fn set_power(&self, on: bool) -> Result<(), NoPower> {
        match fs::write(&self.disable, if on { "0" } else { "1" }) {
            Ok(()) => return Ok(()),
            // An older kernel, or a user who may not: the hub itself may let him.
            Err(e) => tracing::debug!(path = %self.disable.display(), %e, "the port's attribute is no way"),
        }
        let hub = OpenOptions::new().read(true).write(true).open(&self.node).map_err(|_| NoPower::Rights)?;
        if !switches_ports(&hub)? {
            return Err(NoPower::Hub);
        }
        let request = if on { SET_FEATURE } else { CLEAR_FEATURE };
        let setup = Setup { request_type: TO_PORT, request, value: PORT_POWER, index: self.port };
        sys::control(hub.as_fd(), setup, &mut []).map(drop).map_err(NoPower::Errno)
    }
}

/// True when the hub says that it switches each port by itself.
fn switches_ports(hub: &File) -> Result<bool, NoPower> {
    let mut last = Errno::IO;
    for kind in DESCRIPTORS {
        let mut descriptor = [0; 12];
        let setup = Setup { request_type: FROM_HUB, request: GET_DESCRIPTOR, value: kind << 8, index: 0 };
        match sys::control(hub.as_fd(), setup, &mut descriptor) {
            Ok(len) => return Ok(switches_each(&descriptor[..len.min(12)])),
            Err(errno) => last = errno,
        }
    }
    Err(NoPower::Errno(last))
}

/// `wHubCharacteristics`, its two low bits: 1 is individual switching; 0 switches all ports together, 2 and 3 none.
fn switches_each(descriptor: &[u8]) -> bool {
    descriptor.get(3).is_some_and(|low| low & 0b11 == 1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn both_sides_of_a_socket_are_found_without_a_stick_in_it() {
        let root = tempfile::tempdir().expect("a temporary folder");
        for (folder, hub, bus, peer) in [
            ("1-0:1.0/usb1-port3", "usb1", "1", "../../2-0:1.0/usb2-port5"),
            ("2-0:1.0/usb2-port5", "usb2", "2", "../../1-0:1.0/usb1-port3"),
        ] {
            fs::create_dir_all(root.path().join(folder)).expect("folder");
            symlink(peer, root.path().join(folder).join("peer")).expect("link");
            fs::create_dir_all(root.path().join(hub)).expect("folder");
            fs::write(root.path().join(hub).join("busnum"), bus).expect("file");
            fs::write(root.path().join(hub).join("devnum"), "1\n").expect("file");
        }
        let sides = HubPort::sides(root.path(), "1-3");
        let seen: Vec<_> = sides.iter().map(|s| (s.node.to_str(), s.port)).collect();
        assert_eq!(seen, [(Some("/dev/bus/usb/001/001"), 3), (Some("/dev/bus/usb/002/001"), 5)]);
        assert_eq!(HubPort::sides(root.path(), "1-4"), [], "no such port");
        // The attribute is the first way.
        sides[0].set_power(false).expect("written");
        assert_eq!(fs::read_to_string(&sides[0].disable).expect("read"), "1");
        sides[0].set_power(true).expect("written");
        assert_eq!(fs::read_to_string(&sides[0].disable).expect("read"), "0");
    }

    #[test]
    fn hub_that_switches_all_ports_or_none_is_no_help() {
        assert!(switches_each(&[9, 0x29, 4, 0x09, 0, 50, 100, 0, 0xff]));
        assert!(!switches_each(&[9, 0x29, 4, 0x08, 0, 50, 100, 0, 0xff]), "ganged");
        assert!(!switches_each(&[9, 0x29, 4, 0x0a, 0, 50, 100, 0, 0xff]), "none");
        assert!(!switches_each(&[9]));
    }
}
