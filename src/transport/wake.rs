//! A wake-up that costs a system call only when the other side sleeps.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// One sleeper's bell. The sleeper calls [`arm`](Self::arm) before it looks for work for the last time; whoever adds
/// work calls [`ring`](Self::ring) after adding it.
///
/// Both look at the work under the same mutex. Either the sleeper's last look comes after the addition and finds it, or it
/// comes before, and then the sleeper's `armed` happens before the adder's `ring`. Relaxed accesses suffice for that.
#[derive(Debug)]
pub(super) struct Bell {
    armed: AtomicBool,
    /// Set after the eventfd was written. At most one write is outstanding, since only arming allows the next one.
    rung: AtomicBool,
    /// `None` in simulation: both ends run on one thread and nobody sleeps.
    fd: Option<OwnedFd>,
}

impl Bell {
    pub(super) fn silent() -> Self {
        Bell { armed: AtomicBool::new(false), rung: AtomicBool::new(false), fd: None }
    }

    pub(super) fn with_fd() -> rustix::io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Bell { fd: Some(fd), ..Bell::silent() })
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// About to sleep. Clears an old ring first, so that a level-triggered wait does not spin.
    pub(super) fn arm(&self) {
        let Some(fd) = &self.fd else { return };
        if self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::AcqRel) {
            // EAGAIN cannot hurt: it only means that somebody else cleared it.
            let _ = rustix::io::read(fd, &mut [0u8; 8]);
        }
        self.armed.store(true, Ordering::Relaxed);
    }

    /// Not sleeping after all, or woken by something else: spares the other side a write.
    pub(super) fn disarm(&self) {
        if self.armed.load(Ordering::Relaxed) {
            self.armed.store(false, Ordering::Relaxed);
        }
    }

    /// Work was added.
    pub(super) fn ring(&self) {
        let Some(fd) = &self.fd else { return };
        if self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::AcqRel) {
            // The counter never comes near its limit: one write per arming.
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
            // After the write: a sleeper that misses the flag wakes at once, sees it then, and clears.
            self.rung.store(true, Ordering::Release);
        }
    }
}
