//! io_uring as a reactor: multishot polls, the wake-up eventfd and the timeout in one ring.
#![allow(unsafe_code, reason = "pushing an entry to the submission queue is unsafe in the io-uring crate")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::event::PollFlags;

/// `user_data` of requests whose completion says nothing.
const IGNORED: u64 = u64::MAX;

/// Entries of the submission queue; the completion queue is larger, and when even that is full the kernel ends the
/// multishot polls, which are then armed again.
const ENTRIES: u32 = 64;
const COMPLETIONS: u32 = 512;

/// One event of a poll.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingEvent {
    /// As given to [`Ring::poll_add`].
    pub(super) key: u64,
    /// The kernel has ended this poll.
    pub(super) ended: bool,
    /// The descriptor hung up or failed: arming it again would fire at once, for ever.
    pub(super) dead: bool,
}

/// A ring that only polls.
pub(super) struct Ring {
    ring: IoUring,
}

impl Ring {
    /// Fails where the kernel or a seccomp filter forbids io_uring (EPERM, ENOSYS), where it is too old for timeouts
    /// as arguments (5.11) or for multishot polls (5.13: ENOTSUP).
    pub(super) fn new() -> io::Result<Self> {
        // Completions are run at the next system call of the waiting thread instead of interrupting it (5.19). Not only when
        // they are asked for (DEFER_TASKRUN, 6.1): a stick behind vhci was then left waiting for ever by the Debian 12 kernel.
        let ring = IoUring::builder()
            .setup_cqsize(COMPLETIONS)
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(ENTRIES)
            .or_else(|error| match error.raw_os_error() {
                Some(code) if code == rustix::io::Errno::INVAL.raw_os_error() => {
                    IoUring::builder().setup_cqsize(COMPLETIONS).build(ENTRIES)
                }
                _ => Err(error),
            })?;
        if !ring.params().is_feature_ext_arg() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "kernel older than 5.11"));
        }
        let mut ring = Ring { ring };
        ring.probe_multishot()?;
        Ok(ring)
    }

    /// Measures instead of comparing version numbers: a readable eventfd must report with F_MORE.
    fn probe_multishot(&mut self) -> io::Result<()> {
        use rustix::event::{EventfdFlags, eventfd};
        use std::os::fd::AsFd;
        let fd = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        self.poll_add(fd.as_fd(), PollFlags::IN, 0)?;
        let mut multishot = false;
        self.wait(Some(Duration::from_secs(1)), |event| multishot |= !event.ended && !event.dead)?;
        self.poll_remove(0)?;
        if !multishot {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "no multishot poll, kernel older than 5.13",
            ));
        }
        // Its last completion must not end somebody's wait.
        while self.wait(Some(Duration::from_secs(1)), |event| multishot &= !event.ended)? > 0 && multishot {}
        Ok(())
    }

    /// Starts a multishot poll. The kernel holds its own reference to the file as soon as the entry is submitted.
    pub(super) fn poll_add(&mut self, fd: BorrowedFd<'_>, events: PollFlags, key: u64) -> io::Result<()> {
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), u32::from(events.bits()))
            .multi(true)
            .build()
            .user_data(key);
        self.push(&entry)?;
        // Submitted now and not at the next wait: the descriptor is only borrowed, its number could be another file by then.
        self.submit()
    }

    /// Ends the poll of `key`; its last completion may still come.
    pub(super) fn poll_remove(&mut self, key: u64) -> io::Result<()> {
        self.push(&opcode::PollRemove::new(key).build().user_data(IGNORED))?;
        self.submit()
    }

    /// Waits for an event, at most `timeout` (`None`: for ever), and hands over all that are there; returns how many.
    /// An interruption does not end the wait.
    pub(super) fn wait(
        &mut self,
        timeout: Option<Duration>,
        mut each: impl FnMut(RingEvent),
    ) -> io::Result<usize> {
        let mut limit = timeout;
        loop {
            let before = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            let timed_out = self.ring.completion().is_empty() && self.enter(limit)?;
            let mut seen = 0;
            for entry in self.ring.completion() {
                if entry.user_data() == IGNORED {
                    continue;
                }
                let events = u32::try_from(entry.result()).unwrap_or(0);
                let dead = entry.result() < 0
                    || events & u32::from((PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL).bits()) != 0;
                each(RingEvent { key: entry.user_data(), ended: !cqueue::more(entry.flags()), dead });
                seen += 1;
            }
            if seen > 0 || timed_out {
                return Ok(seen);
            }
            let after = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            let passed = Duration::try_from(after - before).unwrap_or_default();
            limit = limit.map(|limit| limit.saturating_sub(passed));
        }
    }

    /// True when the time is up.
    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let result = match timeout {
            // One enter for the task work and whatever it completes.
            Some(Duration::ZERO) => self.enter_now(),
            Some(limit) => {
                let limit = Timespec::from(limit);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
            None => self.ring.submit_and_wait(1),
        };
        match result {
            Ok(_) => Ok(false),
            Err(error) => match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                Some(rustix::io::Errno::TIME) => Ok(true),
                // Interrupted, or completions overflowed: they are handed over first.
                Some(rustix::io::Errno::INTR | rustix::io::Errno::BUSY | rustix::io::Errno::AGAIN) => {
                    Ok(false)
                }
                _ => Err(error),
            },
        }
    }

    fn enter_now(&mut self) -> io::Result<usize> {
        // `want` 1 with a zero timeout makes the crate set GETEVENTS, without which deferred task work would not run.
        let zero = Timespec::new();
        self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&zero))
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: poll entries carry no pointer: a descriptor number and flags only. No memory of ours is lent to
            // the kernel, so nothing has to outlive the request.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.submit()?;
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
