//! What a stick's thread is told. Who adds something wakes the thread's reactor afterwards.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::ticket::QueuedJob;
use crate::pipeline::{GraphId, GraphSpec};
use crate::transport::Waker;

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

pub(super) struct Inbox {
    jobs: Mutex<VecDeque<QueuedJob>>,
    commands: Mutex<VecDeque<Command>>,
    /// Memory came back to a pool that had refused some.
    kicked: AtomicBool,
    waker: Waker,
}

impl Inbox {
    /// `waker` is that of the thread's reactor.
    pub(super) fn new(waker: Waker) -> Self {
        Inbox {
            jobs: Mutex::new(VecDeque::with_capacity(32)),
            commands: Mutex::default(),
            kicked: AtomicBool::new(false),
            waker,
        }
    }

    /// Adds a job; [`Inbox::ring`] afterwards.
    pub(super) fn add_job(&self, job: QueuedJob) {
        self.jobs.lock().push_back(job);
    }

    /// Wakes the thread if it sleeps.
    pub(super) fn ring(&self) {
        self.waker.wake();
    }

    /// Adds a command and wakes the thread.
    pub(super) fn command(&self, command: Command) {
        self.commands.lock().push_back(command);
        self.waker.wake();
    }

    /// Says that memory is there again.
    pub(super) fn kick(&self) {
        self.kicked.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(super) fn take_kick(&self) -> bool {
        self.kicked.load(Ordering::Relaxed) && self.kicked.swap(false, Ordering::AcqRel)
    }

    /// All jobs, into an empty queue whose memory is used again.
    pub(super) fn take_jobs(&self, into: &mut VecDeque<QueuedJob>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut *self.jobs.lock(), into);
    }

    pub(super) fn take_command(&self) -> Option<Command> {
        self.commands.lock().pop_front()
    }
}
