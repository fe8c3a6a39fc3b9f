//! What a stick's thread is told. Who adds something wakes the thread's reactor afterwards.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::jobs::{RunJob, Waiting, members_of};
use crate::pipeline::{GraphId, GraphSpec};
use crate::sched::{GraphNo, RunId};
use crate::transport::Waker;

/// An inference to run.
pub(super) enum Order {
    /// One request.
    Run(RunJob),
    /// Requests to be laid together into one input.
    Batch {
        run: RunId,
        graph: GraphNo,
        /// The variant's copy on the stick, and which variant it is.
        copy: GraphId,
        variant: u32,
        jobs: Vec<Waiting>,
    },
}

impl Order {
    pub(super) fn run(&self) -> RunId {
        match self {
            Order::Run(job) => job.tag.run,
            Order::Batch { run, .. } => *run,
        }
    }

    pub(super) fn into_members(self) -> Vec<Waiting> {
        match self {
            Order::Run(job) => members_of(job),
            Order::Batch { jobs, .. } => jobs,
        }
    }
}

/// Orders to a stick's thread.
pub(super) enum Command {
    /// Put this graph on the stick.
    Load(GraphSpec),
    /// Take it off.
    Unload(GraphId),
    /// It does not answer: end the connection, so that it is reset and opened anew.
    Reset,
    /// Ask for temperature and memory; the number tells one round from another.
    Telemetry(u64),
    /// Ask how long the stages of this copy took in its latest inference.
    StageTimes(GraphId),
    /// Close the stick and end the thread.
    Close,
}

pub(super) struct Inbox {
    orders: Mutex<VecDeque<Order>>,
    commands: Mutex<VecDeque<Command>>,
    /// Memory came back to a pool that had refused some.
    kicked: AtomicBool,
    waker: Waker,
}

impl Inbox {
    /// `waker` is that of the thread's reactor.
    pub(super) fn new(waker: Waker) -> Self {
        Inbox {
            orders: Mutex::new(VecDeque::with_capacity(64)),
            commands: Mutex::default(),
            kicked: AtomicBool::new(false),
            waker,
        }
    }

    /// Adds an order; [`Inbox::ring`] afterwards.
    pub(super) fn add_order(&self, order: Order) {
        self.orders.lock().push_back(order);
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

    /// All orders, into an empty queue whose memory is used again.
    pub(super) fn take_orders(&self, into: &mut VecDeque<Order>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut *self.orders.lock(), into);
    }

    pub(super) fn take_command(&self) -> Option<Command> {
        self.commands.lock().pop_front()
    }
}
