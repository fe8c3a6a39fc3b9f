//! The kernel's own word that something on the bus changed: needs no rights, no udev, and is there before either.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

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
        let Some(socket) = &self.0 else { return std::thread::sleep(LOOK.min(limit)) };
        let limit = limit.min(LOOK_AGAIN);
        let time = Timespec { tv_sec: 0, tv_nsec: i64::from(limit.subsec_nanos()) };
        let mut sockets = [PollFd::new(socket, PollFlags::IN)];
        if poll(&mut sockets, Some(&time)).is_err() {
            // Interrupted, or worse: not to spin.
            return std::thread::sleep(LOOK.min(limit));
        }
        // Other devices ring too; what they cost is one more look.
        while recv(socket.as_fd(), &mut [0_u8; 4096], RecvFlags::empty()).is_ok() {}
    }
}
