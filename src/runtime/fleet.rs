//! All sticks as one: bring-up, statistics, close.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::bounded;
use parking_lot::{Condvar, Mutex};

use super::advice::{Advice, advise};
use super::config::{FleetConfig, LoadOptions};
use super::core::{CLOSE_GRACE, Core, Phase, Record, Shared, StickShared, cancelled};
use super::files;
use super::graph::{self, Graph};
use super::inbox::{Command, Inbox};
use super::keeper::{self, Bell, Calls};
use super::mark::{self, MarkCollector, MarkRing};
use super::snapshot::snapshot;
use super::stats_document::{GraphSummary, document};
use super::stats_socket::{self, StatsSocket};
use super::ticket::{RequestId, Slots};
use super::worker::Worker;
use super::workers::Workers;
use super::{FleetStats, StickState};
use crate::blob::Blob;
use crate::cache::HostKeys;
use crate::clock::{Clock, Monotonic};
use crate::error::{Error, ErrorKind, Result};
use crate::id::StickId;
use crate::pool::{Pool, ceiling_for_host};
use crate::sched::{Event, GraphNo, Policy};
use crate::topology::{self, PinPolicy, Placement, Topology, pin_current_thread};
use crate::transport::{Port, Reactor, ReactorKind};

/// Files whose content is remembered: more than a stick holds graphs.
const KNOWN_FILES: usize = 64;

/// Assembles a fleet.
#[derive(Default)]
pub struct FleetBuilder {
    ports: Vec<Port>,
    config: FleetConfig,
}

impl FleetBuilder {
    /// Adds a stick.
    #[must_use]
    pub fn port(mut self, port: Port) -> Self {
        self.ports.push(port);
        self
    }

    /// Replaces the settings.
    #[must_use]
    pub fn config(mut self, config: FleetConfig) -> Self {
        self.config = config;
        self
    }

    /// Connects all ports at the same time. Succeeds when at least one stick is ready and the others are too, have failed,
    /// or are late ([`FleetConfig::straggler_timeout`]); states and failures are in the stats. Whoever comes later gets the
    /// graphs that are loaded by then.
    ///
    /// # Errors
    /// The first port's error when no stick is ready, `NotFound` when there is no port, `InvalidInput` when two have
    /// the same name.
    pub fn open(self) -> Result<Fleet> {
        let op = "open fleet";
        let FleetBuilder { ports, config } = self;
        if ports.is_empty() {
            let detail = "no stick: plug one in, or ask for virtual ones";
            return Err(Error::new(ErrorKind::NotFound, op).detail(detail));
        }
        for (at, port) in ports.iter().enumerate() {
            if ports[..at].iter().any(|p| p.id() == port.id()) {
                let detail = format!("the stick {} was given twice", port.id());
                return Err(Error::new(ErrorKind::InvalidInput, op).detail(detail));
            }
        }
        let system = |error: std::io::Error| {
            let detail = format!("{error}; raise the limits of open files and threads");
            Error::new(ErrorKind::OutOfMemory, op).detail(detail).caused_by(error)
        };
        let clock = Arc::new(Monotonic::new());
        let ceiling = ceiling_for_host(config.pool_bytes, ports.len());
        let placement = placement(&config.pin, &ports)?;
        let detected = ReactorKind::detect();
        let kind = detected.kind;
        if let Some(why) = detected.why_not {
            tracing::info!(%why, "io_uring does not work here: waiting with {}", kind.as_str());
        }
        let mut threads = Vec::new();
        let mut starts = Vec::new();
        let mut sticks = Vec::new();
        for (index, port) in ports.into_iter().enumerate() {
            let (id, give_up) = (port.id().clone(), port.give_up());
            let (simulated, pace) = (port.profile().map(str::to_owned), port.pace().cloned());
            // A reactor lives on its thread; its waker is needed here. A thread whose start never comes ends.
            let (waker_to, waker_from) = bounded(1);
            let (start_to, start_from) = bounded::<Arc<Shared>>(1);
            let cpus = placement.reactor.clone();
            let thread = std::thread::Builder::new().name(format!("ncs2-{id}")).spawn(move || {
                // Checked before; a CPU that went meanwhile is no reason to fail.
                if let Err(error) = pin_current_thread(&cpus) {
                    tracing::warn!("{error}");
                }
                let reactor = match Reactor::new(kind) {
                    Ok(reactor) => reactor,
                    Err(error) => return drop(waker_to.send(Err(error))),
                };
                let sent = waker_to.send(Ok(reactor.waker()));
                if let (Ok(()), Ok(shared)) = (sent, start_from.recv()) {
                    Worker { shared, index, port, reactor }.run();
                }
            });
            threads.push(Some(thread.map_err(system)?));
            let gone = |_| std::io::Error::other("the stick's thread ended at once");
            let inbox = Arc::new(Inbox::new(waker_from.recv().map_err(gone).flatten().map_err(system)?));
            let pool = Pool::with_memory(id.as_str(), ceiling, config.host_memory);
            let bell = inbox.clone();
            pool.on_release(move || bell.kick());
            starts.push(start_to);
            sticks.push(StickShared {
                id,
                simulated,
                pace,
                inbox,
                give_up,
                pool,
                record: Mutex::new(Record::default()),
            });
        }
        let calls = Arc::new(Calls::new("ncs2-calls"));
        let shared = Arc::new_cyclic(|me| Shared {
            me: me.clone(),
            slots: Arc::new(Slots::new(clock.clone(), calls.clone())),
            clock,
            core: Mutex::new(Core::new(sticks.len(), &config)),
            bell: Bell::new(calls),
            cpu: Calls::new("ncs2-fallback"),
            sticks,
            room: Condvar::new(),
            changed: Condvar::new(),
            next_pool: AtomicUsize::new(0),
            reactor_cpus: placement.reactor,
            files: Mutex::new(HostKeys::new(KNOWN_FILES)),
            workers: Workers::new(config.workers, placement.workers),
            marks: MarkRing::default(),
            config,
        });
        for start in starts {
            // A thread that waits for its start cannot be gone.
            let _ = start.send(shared.clone());
        }
        let keeper = keeper::start(shared.clone());
        let inner = Arc::new(Inner {
            shared,
            threads: Mutex::new(threads),
            keeper: Mutex::new(None),
            stats: Mutex::new(None),
        });
        // The builder's fleet: when opening fails, its drop ends the threads.
        let fleet = Fleet(inner);
        *fleet.0.keeper.lock() = Some(keeper.map_err(system)?);
        fleet.wait_until_settled()?;
        fleet.serve_stats();
        Ok(fleet)
    }
}

/// CPUs for the fleet's threads, those near the sticks' controllers first.
fn placement(policy: &PinPolicy, ports: &[Port]) -> Result<Placement> {
    match policy {
        PinPolicy::None => return Ok(Placement::default()),
        PinPolicy::Cpus(cpus) => {
            let allowed = topology::allowed_cpus();
            if let Some(cpu) = cpus.iter().find(|cpu| !allowed.contains(cpu)) {
                let detail = format!("CPU {cpu} is not ours to use: name some of {allowed:?}");
                return Err(Error::new(ErrorKind::InvalidInput, "pin threads").detail(detail));
            }
        }
        PinPolicy::Auto => {}
    }
    let real = ports.iter().filter(|port| port.profile().is_none());
    let near: Vec<usize> = real.flat_map(|port| topology::cpus_near_usb(port.id().as_str())).collect();
    Ok(Topology::detect().place(policy, &near))
}

/// All sticks as one. Cheap to clone; the last clone that goes closes the sticks, without waiting for requests.
#[derive(Clone)]
pub struct Fleet(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    threads: Mutex<Vec<Option<JoinHandle<()>>>>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    stats: Mutex<Option<StatsSocket>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.close(Duration::ZERO) {
            tracing::warn!("{error}");
        }
    }
}

impl Fleet {
    /// Starts to assemble a fleet.
    pub fn builder() -> FleetBuilder {
        FleetBuilder::default()
    }

    /// Until every stick is ready or has failed; once one is ready, the others get only so much longer.
    fn wait_until_settled(&self) -> Result<()> {
        let shared = &self.0.shared;
        let began = shared.clock.now();
        // Connecting may take the whole timeout, and so may opening.
        let mut until = began + shared.config.open_timeout.saturating_mul(2) + Duration::from_secs(1);
        let mut one_is_ready = false;
        let mut core = shared.core.lock();
        loop {
            let now = shared.clock.now();
            if !one_is_ready && core.sticks.iter().any(|s| s.state == StickState::Ready) {
                one_is_ready = true;
                // A slow bus is slow for all of them.
                until = until.min(now + shared.config.straggler_timeout.max(now - began));
            }
            if core.sticks.iter().all(|s| s.settled) || now >= until {
                break;
            }
            shared.changed.wait_for(&mut core, until - now);
        }
        if core.sticks.iter().any(|s| s.state == StickState::Ready) {
            for (stick, entry) in shared.sticks.iter().zip(&core.sticks) {
                match (entry.state, &entry.cause) {
                    (StickState::Ready, _) => {}
                    (_, Some(cause)) => {
                        let why = &cause.detail;
                        tracing::error!(stick = %stick.id, "not opened, the fleet goes on without it: {why}");
                    }
                    (_, None) => {
                        let late = shared.clock.now() - began;
                        tracing::error!(stick = %stick.id, "not open after {late:.1?}, the fleet goes on without it until it is");
                    }
                }
            }
            return Ok(());
        }
        let op = "open stick";
        let cause = core.sticks.iter().enumerate().find_map(|(at, s)| s.cause.as_ref().map(|c| (at, c)));
        Err(match cause {
            Some((at, cause)) => cause.error(op, &shared.sticks[at].id),
            None => Error::new(ErrorKind::Timeout, op).on(&shared.sticks[0].id).detail(format!(
                "not open within {:?}; plug it in again, or give it more time",
                shared.config.open_timeout
            )),
        })
    }

    /// Puts the graph on every ready stick, at the same time. Fails when no stick took it. A graph with the same
    /// content and options that is loaded already is shared, and nothing is sent.
    ///
    /// # Errors
    /// `InvalidInput` for options out of range, what the first stick said when none took the graph, `Timeout`,
    /// `Closed`.
    pub fn load(&self, blob: &Blob, options: LoadOptions) -> Result<Graph> {
        graph::load(&self.0.shared, std::slice::from_ref(blob), options)
    }

    /// As [`Fleet::load`], for a blob by its path. Where this very file (device, inode, size and time of change) was loaded
    /// before and its graph is still on a stick, nothing is read.
    ///
    /// # Errors
    /// As [`Blob::open`] and [`Fleet::load`].
    pub fn load_file(&self, path: &Path, options: LoadOptions) -> Result<Graph> {
        self.load(&files::open(&self.0.shared, path)?, options)
    }

    /// As [`Fleet::load`], with one network compiled for several batch sizes. Requests are for the smallest; the fleet lays
    /// waiting ones together where the larger size is measured to be faster, and takes the answers apart.
    ///
    /// # Errors
    /// As [`Fleet::load`]; `InvalidInput` when the blobs are not one network.
    pub fn load_batched(&self, blobs: &[Blob], options: LoadOptions) -> Result<Graph> {
        graph::load(&self.0.shared, blobs, options)
    }

    /// Takes graphs that nobody holds any more off the sticks, as the cache would when another needs their room.
    pub fn evict_unused(&self) {
        let shared = &self.0.shared;
        let mut core = shared.core.lock();
        let now = shared.clock.now();
        for at in 0..core.graphs.len() {
            if core.graphs[at].as_ref().is_some_and(|g| g.handles == 0) {
                core.tell(Event::GraphRemoved { graph: GraphNo(at as u32) }, now);
            }
        }
        let rings = shared.carry_out(&mut core);
        shared.after_ends(&mut core);
        drop(core);
        shared.ring(rings);
    }

    /// Changes how sticks are chosen, from the next request on.
    pub fn set_policy(&self, policy: Policy) {
        let shared = &self.0.shared;
        let mut core = shared.core.lock();
        core.set_policy(policy, shared.clock.now());
        let rings = shared.carry_out(&mut core);
        drop(core);
        shared.ring(rings);
    }

    /// Names of all sticks, in the order of the ports.
    pub fn sticks(&self) -> impl Iterator<Item = &StickId> {
        self.0.shared.sticks.iter().map(|s| &s.id)
    }

    /// CPUs that the sticks' threads run on; empty where the kernel chooses.
    pub fn reactor_cpus(&self) -> &[usize] {
        &self.0.shared.reactor_cpus
    }

    /// Lets other processes read the counters. A fleet works without, so it only says why not.
    fn serve_stats(&self) {
        let shared = self.0.shared.clone();
        if !shared.config.stats_socket {
            return;
        }
        match StatsSocket::serve(&stats_socket::folder(), move || stats_document(&shared)) {
            Ok(socket) => *self.0.stats.lock() = Some(socket),
            Err(error) => tracing::info!(%error, "other processes cannot read this fleet's statistics"),
        }
    }

    /// The counters as the stats socket tells them.
    pub fn stats_document(&self) -> serde_json::Value {
        stats_document(&self.0.shared)
    }

    /// A snapshot of all counters.
    pub fn stats(&self) -> FleetStats {
        snapshot(&self.0.shared)
    }

    /// What to change so that the fleet does more, by its statistics since it was opened; nothing where nothing is wrong.
    pub fn advice(&self) -> Vec<Advice> {
        advise(&self.stats())
    }

    /// Notes an event of the caller's own with the request that it belongs to, now: it stands in traces beside what the
    /// fleet did. Without a [`MarkCollector`] this does next to nothing.
    pub fn mark(&self, request: RequestId, event: &str) {
        let shared = &self.0.shared;
        shared.marks.note(&*shared.clock, request, event);
    }

    /// From now on the events of [`Fleet::mark`] are kept, the latest `capacity` of them, for whoever writes a trace.
    ///
    /// # Errors
    /// `InUse` while another collector lives, `InvalidInput` for a capacity of 0.
    pub fn collect_marks(&self, capacity: usize) -> Result<MarkCollector> {
        mark::collect(self.0.shared.clone(), capacity)
    }

    /// Asks every ready stick for temperature and memory; the answers are in the next [`Fleet::stats`].
    ///
    /// # Errors
    /// `Timeout` when a stick did not answer within `timeout`, `Closed`.
    pub fn refresh_telemetry(&self, timeout: Duration) -> Result<()> {
        let op = "refresh telemetry";
        let shared = &self.0.shared;
        let until = shared.clock.now() + timeout;
        let mut core = shared.core.lock();
        if core.phase == Phase::Closed {
            return Err(Error::new(ErrorKind::Closed, op).detail("the fleet is closed"));
        }
        core.telemetry_round += 1;
        let round = core.telemetry_round;
        shared.command_ready(&core, || Command::Telemetry(round));
        // A stick that is lost meanwhile is not waited for; one that comes back has been asked at its opening.
        let asked: Vec<bool> = core.sticks.iter().map(|s| s.state == StickState::Ready).collect();
        loop {
            let missing =
                core.sticks.iter().zip(&asked).position(|(s, asked)| {
                    *asked && s.state == StickState::Ready && s.telemetry_round < round
                });
            let Some(at) = missing else { return Ok(()) };
            let now = shared.clock.now();
            if now >= until {
                return Err(Error::new(ErrorKind::Timeout, op)
                    .on(&shared.sticks[at].id)
                    .detail(format!("no answer within {timeout:?}; give it more time")));
            }
            shared.changed.wait_for(&mut core, until - now);
        }
    }

    /// Stops taking work, drains for at most `timeout`, closes the sticks. Jobs that remain end with `Cancelled`.
    ///
    /// # Errors
    /// `Timeout` when a stick's thread did not end in time (a stick that is just booting may hold it up); it ends by
    /// itself later.
    pub fn close(self, timeout: Duration) -> Result<()> {
        self.0.close(timeout)
    }
}

fn stats_document(shared: &Shared) -> serde_json::Value {
    let graphs: Vec<GraphSummary> =
        shared.core.lock().graphs.iter().flatten().filter(|g| g.handles > 0).map(|g| g.summary()).collect();
    let stats = snapshot(shared);
    document(&stats, &graphs, stats.policy.as_str())
}

impl Inner {
    fn close(&self, timeout: Duration) -> Result<()> {
        let shared = &self.shared;
        let until = shared.clock.now() + timeout;
        let mut core = shared.core.lock();
        if core.phase == Phase::Open {
            core.phase = Phase::Draining;
            shared.room.notify_all();
        }
        while core.phase == Phase::Draining && core.jobs.len() + core.on_fallback > 0 {
            let now = shared.clock.now();
            if now >= until {
                break;
            }
            shared.changed.wait_for(&mut core, until - now);
        }
        if core.phase != Phase::Closed {
            core.phase = Phase::Closed;
            shared.end_waiting(&mut core, |_, _| Some(cancelled()));
            let rings = shared.carry_out(&mut core);
            shared.ring(rings);
            for stick in &shared.sticks {
                stick.give_up.now();
                stick.inbox.command(Command::Close);
            }
        }
        let until = shared.clock.now() + CLOSE_GRACE;
        loop {
            let now = shared.clock.now();
            if core.sticks.iter().all(|s| s.exited) || now >= until {
                break;
            }
            shared.changed.wait_for(&mut core, until - now);
        }
        let exited: Vec<bool> = core.sticks.iter().map(|s| s.exited).collect();
        drop(core);
        for (thread, exited) in self.threads.lock().iter_mut().zip(&exited) {
            // Those that have not ended are let go: they end by themselves.
            if let Some(thread) = thread.take()
                && *exited
            {
                // A panic was told when it happened.
                let _ = thread.join();
            }
        }
        shared.bell.end();
        if let Some(keeper) = self.keeper.lock().take() {
            // Likewise.
            let _ = keeper.join();
        }
        // Last, so that a long drain can be watched.
        drop(self.stats.lock().take());
        match exited.iter().position(|exited| !exited) {
            None => Ok(()),
            Some(at) => Err(Error::new(ErrorKind::Timeout, "close fleet")
                .on(&shared.sticks[at].id)
                .detail("its thread is still connecting; it ends by itself within the open timeout")),
        }
    }
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.sticks()).finish()
    }
}
