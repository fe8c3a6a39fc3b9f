//! What a stick's thread is told, and the bell that wakes it: rung only while it sleeps.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use super::ticket::QueuedJob;
use crate::pipeline::{GraphId, GraphSpec};

/// Orders to a stick's thread.
pub(super) enum Command {
    /// Put this graph on the stick.
    Load(GraphSpec),
    /// Take it off.
    Unload(GraphId),
    /// Ask for temperature and memory; the number tells one round from another.
    Telemetry(u64),
    /// Close the stick and end the thread.
    Close,
}

#[derive(Default)]
struct Contents {
    jobs: VecDeque<QueuedJob>,
    commands: VecDeque<Command>,
}

pub(super) struct Inbox {
    contents: Mutex<Contents>,
    /// Memory came back to a pool that had refused some.
    kicked: AtomicBool,
    sleeping: AtomicBool,
    bell: OwnedFd,
}

impl Inbox {
    pub(super) fn new() -> rustix::io::Result<Self> {
        Ok(Inbox {
            contents: Mutex::default(),
            kicked: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Adds a job; [`Inbox::ring`] afterwards.
    pub(super) fn add_job(&self, job: QueuedJob) {
        self.contents.lock().jobs.push_back(job);
    }

    /// Adds a command and wakes the thread.
    pub(super) fn command(&self, command: Command) {
        self.contents.lock().commands.push_back(command);
        self.ring();
    }

    /// Says that memory is there again.
    pub(super) fn kick(&self) {
        self.kicked.store(true, Ordering::Release);
        self.ring();
    }

    pub(super) fn take_kick(&self) -> bool {
        self.kicked.load(Ordering::Relaxed) && self.kicked.swap(false, Ordering::AcqRel)
    }

    /// All jobs, into an empty queue whose memory is used again.
    pub(super) fn take_jobs(&self, into: &mut VecDeque<QueuedJob>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut self.contents.lock().jobs, into);
    }

    pub(super) fn take_command(&self) -> Option<Command> {
        self.contents.lock().commands.pop_front()
    }

    /// Wakes the thread if it sleeps. Call after adding.
    pub(super) fn ring(&self) {
        // Pairs with the fence in `arm`: either the sleeper sees what was added, or this sees that it sleeps.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel) {
            // Can only fail when the counter is full, and then the sleeper wakes anyway.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    /// About to sleep; false when there is something to do already.
    pub(super) fn arm(&self) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let contents = self.contents.lock();
        let nothing =
            contents.jobs.is_empty() && contents.commands.is_empty() && !self.kicked.load(Ordering::Acquire);
        drop(contents);
        if !nothing {
            self.disarm();
        }
        nothing
    }

    /// Awake again.
    pub(super) fn disarm(&self) {
        if !self.sleeping.swap(false, Ordering::AcqRel) {
            // Somebody rang, or is just about to; a late ring costs one needless wake-up.
            let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
        }
    }

    /// Becomes readable when the bell is rung.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
