//! The kernel's own word that something on the bus changed: needs no rights, no udev, and is there before either.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::clock::{Clock as _, Monotonic};

/// Group of the kernel's own messages; udev's are another.
const KERNEL: u32 = 1;
/// How often to look where the kernel's messages do not come (containers).
const LOOK: Duration = Duration::from_millis(20);
/// How often to look although messages come: one may be lost when many come at once.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Rings when a device appears or goes.
#[derive(Debug)]
pub(super) struct Bell(Option<OwnedFd>);

impl Bell {
    /// Listens from now on. Where the kernel does not let us, [`Bell::wait`] is a short pause.
    pub(super) fn new() -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let open = || {
            let protocol = Some(netlink::KOBJECT_UEVENT);
            let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?;
            bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
            Ok::<_, rustix::io::Errno>(socket)
        };
        Bell(open().ok())
    }

    /// True when the kernel tells; else looking again and again is all there is.
    pub(super) fn tells(&self) -> bool {
        self.0.is_some()
    }

    /// Waits until something on a USB bus changed, or it is time to look anyway, at most `limit`.
    pub(super) fn wait(&self, limit: Duration) {
        self.wait_for(limit, |_| true);
    }

    /// As [`Bell::wait`], for what concerns one of these devices of the kernel, such as `1-2`, alone: where many sticks boot
    /// at once, each is told of all, and to look is what costs.
    pub(super) fn wait_about(&self, names: &[String], limit: Duration) {
        self.wait_for(limit, |message| concerns(message, names));
    }

    fn wait_for(&self, limit: Duration, is_wanted: impl Fn(&[u8]) -> bool) {
        let Some(socket) = &self.0 else { return std::thread::sleep(LOOK.min(limit)) };
        let clock = Monotonic::new();
        let until = clock.now() + limit.min(LOOK_AGAIN);
        loop {
            let left = until.saturating_since(clock.now());
            let time = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
            let mut sockets = [PollFd::new(socket, PollFlags::IN)];
            if poll(&mut sockets, Some(&time)).is_err() {
                // Interrupted, or worse: not to spin.
                return std::thread::sleep(LOOK.min(limit));
            }
            let (mut told, mut message) = (false, [0_u8; 4096]);
            while let Ok((_, len)) = recv(socket.as_fd(), &mut message, RecvFlags::empty()) {
                told |= is_wanted(&message[..len.min(message.len())]);
            }
            if told || left.is_zero() {
                return;
            }
        }
    }
}

/// Whether a message, `add@/devices/…/usb1/1-2/1-2:1.0` and its variables, is of one of these devices or of a part of it.
fn concerns(message: &[u8], names: &[String]) -> bool {
    let path = message.split(|&b| b == 0).next().unwrap_or_default();
    let devices = path.split(|&b| b == b'/').filter_map(|part| part.split(|&b| b == b':').next());
    devices.into_iter().any(|device| names.iter().any(|name| name.as_bytes() == device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_of_its_device_and_of_those_that_it_hangs_on() {
        let names = ["1-2".to_owned(), "2-2".to_owned()];
        let about = |text: &str| concerns(text.as_bytes(), &names);
        assert!(about("add@/devices/pci0000:00/0000:00:04.0/usb1/1-2\0ACTION=add\0"));
        assert!(about("bind@/devices/pci0000:00/0000:00:04.0/usb2/2-2/2-2:1.0\0ACTION=bind\0"));
        for other in ["usb1/1-20", "usb1/1-2.3", "usb1/1-1", "usb3/3-2"] {
            let text = format!("add@/devices/pci0000:00/{other}\0DEVPATH=/usb1/1-2\0");
            assert!(!about(&text), "{text}");
        }
        assert!(!about(""));
    }
}
