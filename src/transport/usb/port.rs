//! One claimed interface as a place to leave URBs: the seam between the transport's rules and the kernel.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::urb::Urb;

/// Host controller pipe of one stick. The real one is usbfs; tests use a fake that reorders, stalls and disappears.
pub trait UrbPort: Send {
    /// Gives the URB to the kernel, or hands it back with the errno.
    fn submit(&mut self, urb: Urb) -> Result<(), (Urb, Errno)>;

    /// The next finished URB. `EAGAIN`: none now. `ENODEV`: the device is gone and no URB is left.
    fn reap(&mut self) -> Result<Finished, Errno>;

    /// Asks for the URB with this id to end; it still has to be reaped. No effect on one that has ended.
    fn discard(&mut self, id: u64);

    /// Clears a halt on the endpoint, once per halt.
    fn clear_halt(&mut self, endpoint: u8) -> Result<(), Errno>;

    /// True once the machine slept since the port was opened.
    fn was_suspended(&mut self) -> bool {
        false
    }

    /// Writable when something can be reaped, or the device is gone.
    fn poll_fd(&self) -> BorrowedFd<'_>;
}

/// A reaped URB.
#[derive(Debug)]
pub struct Finished {
    /// With its memory, the owner's again.
    pub urb: Urb,
    /// 0 or a positive errno: `ENOENT` after a discard, `ESHUTDOWN` or `EPROTO` when the device left.
    pub status: i32,
    /// Bytes moved.
    pub actual: usize,
}
