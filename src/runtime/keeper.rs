//! The fleet's housekeeper: a thread that tells the scheduler when time has come, and one for callers' own code, which
//! never runs on a stick's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, unbounded};
use parking_lot::{Condvar, Mutex};

use super::config::WarmHook;
use super::core::Shared;
use crate::clock::{Clock, Instant};
use crate::id::StickId;
use crate::sched::Event;

/// Says when the housekeeper is to look next.
pub(super) struct Bell {
    /// When it will wake, nanoseconds.
    planned: AtomicU64,
    /// It is to end.
    over: Mutex<bool>,
    rung: Condvar,
    pub(super) calls: Arc<Calls>,
}

impl Bell {
    pub(super) fn new(calls: Arc<Calls>) -> Self {
        Bell { planned: AtomicU64::new(u64::MAX), over: Mutex::new(false), rung: Condvar::new(), calls }
    }

    /// The scheduler wants to be asked at `time`.
    pub(super) fn at(&self, time: Instant) {
        // Callers hold the core's lock, so that two of them do not cross here; only the housekeeper itself moves it up.
        if time.as_nanos() < self.planned.load(Ordering::Acquire) {
            let over = self.over.lock();
            self.planned.store(time.as_nanos(), Ordering::Release);
            drop(over);
            self.rung.notify_one();
        }
    }

    /// Ends the housekeeper.
    pub(super) fn end(&self) {
        *self.over.lock() = true;
        self.rung.notify_one();
    }

    pub(super) fn run_hook(&self, hook: WarmHook, stick: StickId, celsius: f64) {
        self.calls.run(Box::new(move || (hook.0)(&stick, celsius)));
    }
}

/// Starts the housekeeper of a fleet; it ends with [`Bell::end`].
pub(super) fn start(shared: Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("ncs2-fleet".into()).spawn(move || {
        loop {
            {
                let bell = &shared.bell;
                let mut over = bell.over.lock();
                loop {
                    if *over {
                        return;
                    }
                    let planned = Instant::from_nanos(bell.planned.load(Ordering::Acquire));
                    let now = shared.clock.now();
                    if now >= planned {
                        break;
                    }
                    match planned {
                        Instant::FAR_FUTURE => bell.rung.wait(&mut over),
                        _ => drop(bell.rung.wait_for(&mut over, planned - now)),
                    }
                }
            }
            let mut core = shared.core.lock();
            shared.bell.planned.store(u64::MAX, Ordering::Release);
            if core.sched.poll_timeout() <= shared.clock.now() {
                let now = shared.clock.now();
                core.tell(Event::Tick, now);
            }
            shared.spill(&mut core);
            let rings = shared.carry_out(&mut core);
            drop(core);
            shared.ring(rings);
        }
    })
}

type Call = Box<dyn FnOnce() + Send>;

/// A thread for callers' code; started when the first is to run, ended with its last owner.
pub(super) struct Calls {
    name: &'static str,
    sender: Mutex<Option<Sender<Call>>>,
}

impl Calls {
    pub(super) fn new(name: &'static str) -> Self {
        Calls { name, sender: Mutex::new(None) }
    }

    /// Runs it soon, after those given before.
    pub(super) fn run(&self, call: Call) {
        let mut sender = self.sender.lock();
        if sender.is_none() {
            let (to, from) = unbounded::<Call>();
            let thread = std::thread::Builder::new().name(self.name.into());
            let spawned = thread.spawn(move || {
                for call in from {
                    // A panic in a caller's code must not end the calls of the others.
                    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err() {
                        tracing::error!("a callback panicked");
                    }
                }
            });
            match spawned {
                Ok(_) => *sender = Some(to),
                Err(error) => return tracing::error!("no thread for callbacks: {error}; one is dropped"),
            }
        }
        if let Some(to) = &*sender {
            // The receiver lives as long as this sender.
            let _ = to.send(call);
        }
    }
}
