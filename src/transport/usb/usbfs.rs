//! The real [`UrbPort`]: a claimed interface of a usbfs device file.
#![allow(unsafe_code, reason = "URBs are lent to the kernel by address until reaped")]

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::port::{Finished, UrbPort};
use super::sys::{self, Caps, RawUrb};
use super::urb::Urb;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::MappedMemory;
use crate::transport::buffer::Region;
use crate::transport::memory::Budget;

/// The interface that both faces of the stick have.
const INTERFACE: u32 = 0;

const OP: &str = "open device";

/// An open device file with interface 0 claimed.
#[derive(Debug)]
pub struct UsbfsPort {
    file: File,
    path: PathBuf,
    caps: Caps,
    speed_mbps: u32,
    /// Time that the machine had slept when the port was opened.
    slept: Duration,
    /// URBs that the kernel has, by their address. The box keeps the address fixed.
    lent: HashMap<usize, Lent>,
    /// Boxes of URBs that came back, for the next ones: the kernel knows them by address, so they never move.
    #[allow(clippy::vec_box, reason = "the address of each URB must stay")]
    spare: Vec<Box<RawUrb>>,
}

#[derive(Debug)]
struct Lent {
    raw: Box<RawUrb>,
    urb: Urb,
}

/// What this process has mapped of all its sticks.
static MAPPED: Budget = Budget::new();

/// Half of what the kernel allows for all usbfs files of the machine: URBs over ordinary memory need the other half, and other
/// processes have sticks too.
fn mapping_limit() -> usize {
    const FILE: &str = "/sys/module/usbcore/parameters/usbfs_memory_mb";
    /// The kernel's default.
    const DEFAULT_MB: usize = 16;
    let mb = std::fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse().ok());
    match mb.unwrap_or(DEFAULT_MB) {
        // No limit.
        0 => usize::MAX,
        mb => mb.saturating_mul(1 << 20) / 2,
    }
}

/// Time that the machine has slept since it started: what the clock that counts sleep is ahead of the one that does not.
fn time_slept() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let nanos = |clock| {
        let now = clock_gettime(clock);
        i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
    };
    // This order errs below, by what passes between the two.
    let (boot, awake) = (nanos(ClockId::Boottime), nanos(ClockId::Monotonic));
    Duration::from_nanos(u64::try_from(boot - awake).unwrap_or(0))
}

/// Shorter differences are the time between two readings.
const SLEEP: Duration = Duration::from_millis(100);

impl UsbfsPort {
    /// Opens and claims. Errors say which right or which process is in the way.
    pub fn open(bus: u8, address: u8) -> Result<Self> {
        Self::open_path(Path::new(&format!("/dev/bus/usb/{bus:03}/{address:03}")))
    }

    /// Why the device file could not be opened, and what mends it.
    pub(super) fn open_error(path: &Path, e: std::io::Error) -> Error {
        let (kind, mend) = match e.kind() {
            std::io::ErrorKind::PermissionDenied => (
                ErrorKind::Permission,
                "may not be opened by this user: install the udev rule (udev/70-ncs2.rules) and plug the stick in again",
            ),
            std::io::ErrorKind::NotFound => (
                ErrorKind::Unplugged,
                "is gone: in a container, bind /dev/bus/usb; else plug the stick in again",
            ),
            _ => (ErrorKind::Unplugged, "cannot be opened"),
        };
        Error::new(kind, OP).detail(format!("{} {mend}", path.display())).caused_by(e)
    }

    fn open_path(path: &Path) -> Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).open(path).map_err(|e| Self::open_error(path, e))?;
        let fd = file.as_fd();
        sys::claim(fd, INTERFACE).map_err(|e| match e {
            Errno::BUSY => {
                let owner = super::owner::of_node(path, 1);
                Error::new(ErrorKind::InUse, OP)
                    .detail(format!(
                        "{} is claimed by {}: end it, then try again",
                        path.display(),
                        owner.unwrap_or_else(|| "another process (run as root to see which)".into())
                    ))
                    .caused_by(e)
            }
            e => Error::new(ErrorKind::Unplugged, OP)
                .detail(format!("{}: interface {INTERFACE} cannot be claimed", path.display()))
                .caused_by(e),
        })?;
        let caps = sys::capabilities(fd).unwrap_or(Caps::empty());
        let speed_mbps = sys::speed_mbps(fd).unwrap_or(0);
        Ok(UsbfsPort {
            path: path.to_path_buf(),
            caps,
            speed_mbps,
            slept: time_slept(),
            lent: HashMap::new(),
            spare: Vec::new(),
            file,
        })
    }

    /// What this kernel and controller can do.
    pub fn caps(&self) -> Caps {
        self.caps
    }

    /// Link speed.
    pub fn speed_mbps(&self) -> u32 {
        self.speed_mbps
    }

    /// Mappings of this file, as much as this process's sticks may have. The first is made and measured now.
    pub fn map_memory(&self) -> Result<Arc<MappedMemory>> {
        let file = self.file.try_clone().map_err(|e| {
            Error::new(ErrorKind::OutOfMemory, OP)
                .detail(format!("{}: raise the limit of open files", self.path.display()))
                .caused_by(e)
        })?;
        let can = self.caps.contains(Caps::MMAP);
        let map = move |len| {
            if !can {
                return Err(Errno::OPNOTSUPP);
            }
            // SAFETY: a usbfs file: the kernel makes new memory for this mapping, and the controller reads and writes it
            // for the URBs alone that are submitted with a flight's hold on the piece.
            unsafe { Region::map(file.as_fd(), len) }
        };
        Ok(Arc::new(MappedMemory::new(Box::new(map), &MAPPED, mapping_limit())))
    }

    /// Resets the port; every URB ends first. The device may come back under another address.
    pub fn reset(&self) -> Result<(), Errno> {
        sys::reset(self.file.as_fd())
    }
}

impl UrbPort for UsbfsPort {
    fn submit(&mut self, urb: Urb) -> Result<(), (Urb, Errno)> {
        let raw = RawUrb::bulk(urb.endpoint, urb.address(), urb.len());
        let mut boxed = match self.spare.pop() {
            Some(mut spare) => {
                *spare = raw;
                spare
            }
            None => Box::new(raw),
        };
        let address: *mut RawUrb = &raw mut *boxed;
        // SAFETY: the box goes into `lent` and leaves it only when reap returns its address; the bytes are kept by the
        // flight that cut this piece until then.
        match unsafe { sys::submit(self.file.as_fd(), address) } {
            Ok(()) => {
                self.lent.insert(address.addr(), Lent { raw: boxed, urb });
                Ok(())
            }
            Err(errno) => {
                self.spare.push(boxed);
                Err((urb, errno))
            }
        }
    }

    fn reap(&mut self) -> Result<Finished, Errno> {
        let address = match sys::reap(self.file.as_fd()) {
            Ok(address) => address.addr(),
            // A signal is no answer: ask again at the next turn.
            Err(Errno::INTR) => return Err(Errno::AGAIN),
            Err(errno) => return Err(errno),
        };
        let Some(Lent { raw, urb }) = self.lent.remove(&address) else {
            tracing::error!(path = %self.path.display(), "the kernel returned a URB that is not ours");
            return Err(Errno::AGAIN);
        };
        let finished = Finished {
            status: raw.status.unsigned_abs().try_into().unwrap_or(i32::MAX),
            actual: usize::try_from(raw.actual_length).unwrap_or(0),
            urb,
        };
        self.spare.push(raw);
        Ok(finished)
    }

    fn discard(&mut self, id: u64) {
        let fd = self.file.as_fd();
        if let Some(lent) = self.lent.values_mut().find(|lent| lent.urb.id == id) {
            // EINVAL: it has completed and waits to be reaped. ENODEV: all are coming back. Either way it comes.
            let _ = sys::discard(fd, &raw mut *lent.raw);
        }
    }

    fn clear_halt(&mut self, endpoint: u8) -> Result<(), Errno> {
        sys::clear_halt(self.file.as_fd(), endpoint)
    }

    fn was_suspended(&mut self) -> bool {
        time_slept() > self.slept + SLEEP
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for UsbfsPort {
    fn drop(&mut self) {
        // Closing the file makes the kernel end every URB; it must happen before the boxes go. Discard and reap first
        // so that nothing is left behind when this returns.
        let fd = self.file.as_fd();
        for lent in self.lent.values_mut() {
            let _ = sys::discard(fd, &raw mut *lent.raw);
        }
        while !self.lent.is_empty() {
            match sys::reap(fd) {
                Ok(address) => {
                    self.lent.remove(&address.addr());
                }
                Err(Errno::AGAIN) => {
                    // The controller takes a moment to give a running URB back; poll signals it.
                    let mut poll = [rustix::event::PollFd::new(&self.file, rustix::event::PollFlags::OUT)];
                    let second = rustix::time::Timespec { tv_sec: 1, tv_nsec: 0 };
                    if !matches!(rustix::event::poll(&mut poll, Some(&second)), Ok(n) if n > 0) {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        if !self.lent.is_empty() {
            // The kernel did not give them back in time: leave them to it.
            std::mem::forget(std::mem::take(&mut self.lent));
        }
        let _ = sys::release(self.file.as_fd(), INTERFACE);
    }
}
