//! Virtual sticks of this process: one server thread drives them all, workers compute.
//!
//! ```text
//! Port::connect ─► pipe ─► Bay (stick + its end of the pipe) ◄─ server thread ─► workers (prepare, execute)
//! ```

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use ncs2::StickId;
use ncs2::clock::{Clock, Instant, Monotonic};
use ncs2::error::{Error, ErrorKind, Result};
use ncs2::transport::{Connection, FaultInjector, GiveUp, Pace, Port, pipe};
use ncs2::wire::WireVersion;
use parking_lot::{Condvar, Mutex};

use crate::bay::{self, Bay, ServerThread};
use crate::{
    Config, FaultPlan, Faults, Identity, PreparedCache, Profile, RackOptions, Timing, VirtualStats,
    VirtualStick, Work,
};

/// Threads that prepare and execute graphs. One stage of the execute engine uses all cores already; the second lets a
/// long load and a run go side by side.
const WORKERS: usize = 2;

/// How soon who waits for a boot hears that nobody wants the stick any more.
const GIVE_UP_LOOK: Duration = Duration::from_millis(20);

/// Virtual sticks of this process, with the thread that they run on. They stop when it is dropped.
pub struct Rack {
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    config: Arc<Config>,
    faults: FaultPlan,
    bays: Vec<Slot>,
    clock: Monotonic,
    server: ServerThread,
    done: Mutex<Vec<(usize, Work)>>,
    stopped: AtomicBool,
}

struct Slot {
    bay: Mutex<Bay>,
    /// Something happened on the bus.
    changed: Condvar,
}

impl Shared {
    fn wake(&self) {
        bay::wake(&self.server);
    }

    fn keeps_pace(&self, n: usize) -> bool {
        self.config.timing == Timing::Model && self.bays[n].bay.lock().stick.stats().paced
    }
}

impl Rack {
    /// Fails on an unknown or bad profile, and on no stick at all.
    pub fn start(options: RackOptions) -> Result<Rack> {
        const OP: &str = "start virtual sticks";
        if options.sticks == 0 {
            return Err(Error::new(ErrorKind::InvalidInput, OP).detail("0 sticks: expected at least 1"));
        }
        let system = |what: &'static str| {
            move |e: io::Error| Error::new(ErrorKind::Unsupported, OP).detail(what).caused_by(e)
        };
        let config = Arc::new(Config {
            profile: Profile::load(&options.profile)?,
            engine: options.engine,
            timing: options.timing,
            seed: options.seed,
        });
        if let Some(plan) = &options.faults {
            plan.check("fault plan", Some(options.sticks))?;
        }
        let clock = Monotonic::new();
        let shared = Arc::new(Shared {
            bays: bay::row(&config, options.sticks, options.faults.as_ref(), || clock.now())
                .map(|bay| Slot { bay: Mutex::new(bay), changed: Condvar::new() })
                .collect(),
            faults: options.faults.clone().unwrap_or_default(),
            config,
            clock,
            server: ServerThread::default(),
            done: Mutex::new(Vec::new()),
            stopped: AtomicBool::new(false),
        });
        let (jobs, queue) = unbounded();
        let cache = PreparedCache::default();
        let mut rack = Rack { shared: Arc::clone(&shared), server: None, workers: Vec::new() };
        for n in 0..WORKERS {
            let (shared, queue, cache) = (Arc::clone(&shared), queue.clone(), cache.clone());
            let worker = std::thread::Builder::new()
                .name(format!("sim-work{n}"))
                .spawn(move || work(&shared, &queue, &cache))
                .map_err(system("no worker thread"))?;
            rack.workers.push(worker);
        }
        let server = std::thread::Builder::new()
            .name("sim-sticks".into())
            .spawn(move || Server::new(shared, jobs).run())
            .map_err(system("no server thread"))?;
        rack.server = Some(server);
        Ok(rack)
    }

    /// One port per stick, for [`ncs2::Fleet`]; `connect` boots the stick when it is unbooted. Connecting again gives
    /// a new pipe to a freshly booted stick.
    pub fn ports(&self) -> Vec<Port> {
        (0..self.shared.bays.len())
            .map(|n| {
                let (shared, watched) = (Arc::clone(&self.shared), Arc::downgrade(&self.shared));
                // A rack that is gone keeps no pace, and a fleet must not keep it.
                let is_kept = move || watched.upgrade().is_some_and(|shared| shared.keeps_pace(n));
                let give_up = GiveUp::default();
                let ended = give_up.clone();
                Port::new(StickId::sim(n), move |timeout| connect(&shared, n, timeout, &ended))
                    .ended_by(give_up)
                    .simulated(self.shared.config.profile.name.clone())
                    .paced_by(Pace::new(is_kept))
            })
            .collect()
    }

    /// Counters of every stick, in the order of [`Self::ports`].
    pub fn stats(&self) -> Vec<VirtualStats> {
        self.shared.bays.iter().map(|slot| slot.bay.lock().stick.stats()).collect()
    }

    /// Stick `n`, to break it; `None` where there is no such stick.
    pub fn stick(&self, n: usize) -> Option<StickHandle> {
        (n < self.shared.bays.len()).then(|| StickHandle { shared: Arc::clone(&self.shared), n })
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.shared.wake();
        // A thread that panicked has said so; there is nothing to add here.
        for thread in self.server.take().into_iter().chain(self.workers.drain(..)) {
            let _ = thread.join();
        }
        for slot in &self.shared.bays {
            slot.bay.lock().disconnect();
            slot.changed.notify_all();
        }
    }
}

/// A hand on one virtual stick: pulls it out, hangs it, holds back what it has to say.
pub struct StickHandle {
    shared: Arc<Shared>,
    n: usize,
}

impl StickHandle {
    /// Pulls it out of its port.
    pub fn unplug(&self) {
        self.with(|bay, _| {
            bay.stick.unplug();
            bay.settle();
        });
    }

    /// Puts it back into its port, unbooted.
    pub fn replug(&self) {
        self.with(|bay, _| {
            bay.stick.plug();
            bay.settle();
        });
    }

    /// Leaves the bus by itself and comes back unbooted, as after a crash.
    pub fn crash(&self) {
        self.with(|bay, now| {
            bay.stick.crash(now);
            bay.settle();
        });
    }

    /// Dead but on the bus, until [`Self::resume`] or unplugged.
    pub fn hang(&self) {
        self.faults(|f| f.hung = true);
    }

    /// Takes all, sends nothing, until [`Self::resume`].
    pub fn mute(&self) {
        self.faults(|f| f.mute = true);
    }

    /// Computes, but keeps the results, until [`Self::resume`].
    pub fn hold(&self) {
        self.faults(|f| f.hold_results = true);
    }

    /// Ends hang, mute and hold.
    pub fn resume(&self) {
        self.faults(|f| *f = Faults::default());
    }

    /// Looks at the model.
    pub fn inspect<R>(&self, look: impl FnOnce(&VirtualStick) -> R) -> R {
        look(&self.shared.bays[self.n].bay.lock().stick)
    }

    fn faults(&self, change: impl FnOnce(&mut Faults)) {
        self.with(|bay, now| {
            let mut faults = bay.stick.faults();
            change(&mut faults);
            bay.stick.set_faults(faults, now);
            bay.settle();
        });
    }

    fn with(&self, act: impl FnOnce(&mut Bay, Instant)) {
        let slot = &self.shared.bays[self.n];
        act(&mut slot.bay.lock(), self.shared.clock.now());
        slot.changed.notify_all();
        self.shared.wake();
    }
}

fn connect(shared: &Shared, n: usize, timeout: Duration, give_up: &GiveUp) -> Result<Connection> {
    const OP: &str = "open virtual stick";
    let id = StickId::sim(n);
    let error = |kind, why: &str| Error::new(kind, OP).on(&id).detail(why);
    let deadline = shared.clock.now() + timeout;
    let slot = &shared.bays[n];
    let mut bay = slot.bay.lock();
    bay.disconnect();
    if !bay.stick.is_plugged() {
        return Err(error(ErrorKind::Unplugged, "not in its port"));
    }
    // Its own client pings; a stick whose client stopped resets itself, as one booted by `ncs2` would.
    let start = |bay: &mut Bay| {
        bay.stick.start_booted(true, shared.clock.now());
        bay.settle();
    };
    start(&mut bay);
    let mut unplugs = bay.stick.unplugs();
    while bay.stick.identity() != Some(Identity::Booted) {
        if shared.stopped.load(Ordering::Acquire) {
            return Err(error(ErrorKind::Closed, "the virtual sticks were stopped"));
        }
        if !bay.stick.is_plugged() {
            return Err(error(ErrorKind::Unplugged, "unplugged while it booted"));
        }
        if give_up.is_asked() {
            return Err(error(ErrorKind::Cancelled, "given up while it booted"));
        }
        // It was replugged before we could look.
        if bay.stick.unplugs() != unplugs {
            unplugs = bay.stick.unplugs();
            start(&mut bay);
            continue;
        }
        shared.wake();
        let left = deadline.saturating_since(shared.clock.now());
        if left.is_zero() {
            return Err(error(ErrorKind::Timeout, "did not come back from boot in time"));
        }
        slot.changed.wait_for(&mut bay, left.min(GIVE_UP_LOOK));
    }
    if shared.stopped.load(Ordering::Acquire) {
        return Err(error(ErrorKind::Closed, "the virtual sticks were stopped"));
    }
    let (host, device) = pipe(bay::transport_info(&shared.config))
        .map_err(|e| error(ErrorKind::Unsupported, "no descriptors for a pipe").caused_by(e))?;
    bay.attach(device, &shared.server);
    drop(bay);
    shared.wake();
    let rules = shared.faults.transfer_rules(n);
    if rules.is_empty() {
        return Ok(Connection { transport: Box::new(host), version: WireVersion::V1 });
    }
    let seed = shared.faults.seed.unwrap_or(shared.config.seed) ^ n as u64;
    let broken = FaultInjector::new(host, seed, rules, Arc::new(Monotonic::new()))
        .map_err(|e| error(ErrorKind::Unsupported, "no descriptors for a fault injector").caused_by(e))?;
    Ok(Connection { transport: Box::new(broken), version: WireVersion::V1 })
}

fn work(shared: &Shared, queue: &Receiver<(usize, Work)>, cache: &PreparedCache) {
    while let Ok((n, mut work)) = queue.recv() {
        if shared.stopped.load(Ordering::Acquire) {
            return;
        }
        if catch_unwind(AssertUnwindSafe(|| work.perform(cache))).is_ok() {
            shared.done.lock().push((n, work));
        } else {
            // A defect of the engine. The stick must not just fall silent: it crashes, as firmware would.
            tracing::error!(stick = n, "virtual stick: the engine panicked");
            let slot = &shared.bays[n];
            let mut bay = slot.bay.lock();
            bay.stick.crash(shared.clock.now());
            bay.settle();
            slot.changed.notify_all();
        }
        shared.wake();
    }
}

struct Server {
    shared: Arc<Shared>,
    jobs: Sender<(usize, Work)>,
    /// Work that is done; kept for its capacity.
    done: Vec<(usize, Work)>,
}

impl Server {
    fn new(shared: Arc<Shared>, jobs: Sender<(usize, Work)>) -> Self {
        Server { shared, jobs, done: Vec::new() }
    }

    fn run(mut self) {
        // Before the first look: who acts earlier finds no thread to wake, and none that sleeps.
        let _ = self.shared.server.set(std::thread::current());
        // The default slack of 50 µs would be half of what pacing may be late.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
        while !self.shared.stopped.load(Ordering::Acquire) {
            let deadline = self.serve();
            if let Some(deadline) = deadline {
                self.sleep(deadline);
            }
        }
    }

    /// Serves all sticks once. `None`: there is more to do at once; otherwise until when to sleep.
    fn serve(&mut self) -> Option<Instant> {
        let now = self.shared.clock.now();
        std::mem::swap(&mut self.done, &mut *self.shared.done.lock());
        for (n, work) in self.done.drain(..) {
            if let Some(slot) = self.shared.bays.get(n) {
                slot.bay.lock().stick.handle_work_done(work, now);
            }
        }
        let mut deadline = Some(Instant::FAR_FUTURE);
        for (n, slot) in self.shared.bays.iter().enumerate() {
            let mut bay = slot.bay.lock();
            // One `now` for all: what falls due while we serve must still count as in the future, or nobody waits for it.
            let now = self.shared.clock.now();
            if bay.serve(now) {
                slot.changed.notify_all();
            }
            while let Some(work) = bay.stick.poll_work() {
                // The workers outlive the server.
                let _ = self.jobs.send((n, work));
            }
            let due = bay.poll_timeout(now).unwrap_or(Instant::FAR_FUTURE);
            // Armed in any case: it is what wakes the host.
            if bay.arm(now) || due <= now {
                deadline = None;
            }
            deadline = deadline.map(|d| d.min(due));
        }
        deadline
    }

    fn sleep(&mut self, deadline: Instant) {
        if deadline == Instant::FAR_FUTURE {
            std::thread::park();
        } else {
            std::thread::park_timeout(deadline.saturating_since(self.shared.clock.now()));
        }
    }
}
