//! A wake-up that costs a system call only when the other side sleeps.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// One sleeper's bell. The sleeper calls [`arm`](Self::arm) before it looks for work for the last time; whoever adds
/// work calls [`ring`](Self::ring) after adding it.
///
/// Both look at the work under the same mutex. Either the sleeper's last look comes after the addition and finds it, or it
/// comes before, and then the sleeper's `armed` happens before the adder's `ring`. Relaxed accesses suffice for that.
pub(super) struct Bell {
    armed: AtomicBool,
    /// The eventfd is, or is about to be, written. At most one write is outstanding, since only arming allows the next.
    rung: AtomicBool,
    /// `None` in simulation: both ends run on one thread and nobody sleeps.
    fd: Option<OwnedFd>,
    /// Wakes a sleeper that does not wait on the descriptor.
    call: OnceLock<Call>,
}

type Call = Box<dyn Fn() + Send + Sync>;

impl Bell {
    pub(super) fn silent() -> Self {
        Bell { armed: AtomicBool::new(false), rung: AtomicBool::new(false), fd: None, call: OnceLock::new() }
    }

    pub(super) fn with_fd() -> rustix::io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Bell { fd: Some(fd), ..Bell::silent() })
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Rings by a call from now on, not by the descriptor. The first caller counts.
    pub(super) fn ring_by(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.call.set(Box::new(call));
    }

    /// About to sleep. Clears an old ring first, so that a level-triggered wait does not spin.
    pub(super) fn arm(&self) {
        let Some(fd) = &self.fd else { return };
        // EAGAIN: the ringer was interrupted before its write. Then that write ends a sleep too early, once, and the
        // flag stays so that it is cleared before the next.
        if self.rung.load(Ordering::Acquire) && rustix::io::read(fd, &mut [0u8; 8]).is_ok() {
            self.rung.store(false, Ordering::Relaxed);
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
            if let Some(call) = self.call.get() {
                return call();
            }
            // Before the write, which may put the sleeper in our place on this CPU: it must know what to clear, or a
            // level-triggered wait spins until we run again.
            self.rung.store(true, Ordering::Release);
            // The counter never comes near its limit: one write per arming.
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
    }
}
