//! What all threads of a fleet share: the scheduler, the requests, which graph lies where.
//!
//! Order of locks: `core`, then a slot, an inbox, a record or a pool; never the other way round. Nothing waits for
//! anything but `room` and `changed` while it holds `core`.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::StickState;
use super::config::FleetConfig;
use super::failure::Cause;
use super::graphs::GraphEntry;
use super::inbox::{Command, Inbox};
use super::jobs::JobTable;
use super::keeper::{Bell, Calls};
use super::mark::MarkRing;
use super::stage_questions::StageQuestions;
use super::ticket::Slots;
use super::workers::Workers;
use crate::cache::HostKeys;
use crate::clock::{Clock, Instant, Monotonic};
use crate::error::{Error, ErrorKind};
use crate::id::StickId;
use crate::pipeline::Load;
use crate::pool::Pool;
use crate::sched::{Event, GraphNo, Scheduler, StickNo};
use crate::stats::{Latency, StageTimes};
use crate::transport::{GiveUp, MemoryKind, MemoryReport, Pace};
use crate::wire::Capabilities;

pub(super) struct Shared {
    /// Itself, for what outlives a call.
    pub(super) me: Weak<Shared>,
    pub(super) config: FleetConfig,
    pub(super) clock: Arc<Monotonic>,
    pub(super) slots: Arc<Slots>,
    pub(super) sticks: Vec<StickShared>,
    pub(super) core: Mutex<Core>,
    /// The queue became shorter, or the fleet closes.
    pub(super) room: Condvar,
    /// A stick, a graph or the phase changed.
    pub(super) changed: Condvar,
    /// Wakes the housekeeper.
    pub(super) bell: Bell,
    /// The fallback's own thread: what it computes must not hold up callbacks.
    pub(super) cpu: Calls,
    /// Whose pool the next input comes from.
    pub(super) next_pool: AtomicUsize,
    /// CPUs of the sticks' threads; empty where the kernel chooses.
    pub(super) reactor_cpus: Vec<usize>,
    /// Content of files that were loaded by name.
    pub(super) files: Mutex<HostKeys>,
    /// Stages 1 and 5 of requests that come as numbers.
    pub(super) workers: Workers,
    /// The callers' own events.
    pub(super) marks: MarkRing,
}

/// One stick, as other threads than its own see it.
pub(super) struct StickShared {
    pub(super) id: StickId,
    pub(super) simulated: Option<String>,
    pub(super) pace: Option<Pace>,
    pub(super) inbox: Arc<Inbox>,
    /// Ends its thread's wait for the stick to appear.
    pub(super) give_up: GiveUp,
    pub(super) pool: Pool,
    pub(super) record: Mutex<Record>,
}

/// What a stick has done.
#[derive(Default)]
pub(super) struct Record {
    pub(super) completed: u64,
    pub(super) failed: u64,
    /// Requests that ended in an error at this stick; [`Core::failed`] counts those that ended elsewhere.
    pub(super) failed_requests: u64,
    pub(super) latency: Latency,
    pub(super) stages: [Latency; StageTimes::COUNT],
    /// Of former connections.
    pub(super) load_before: Load,
    /// Of this connection, until `load_at`.
    pub(super) load: Load,
    pub(super) load_at: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Open,
    /// Takes no more work.
    Draining,
    Closed,
}

pub(super) struct Core {
    pub(super) phase: Phase,
    pub(super) sched: Scheduler,
    pub(super) jobs: JobTable,
    pub(super) sticks: Vec<StickEntry>,
    /// By the scheduler's number.
    pub(super) graphs: Vec<Option<GraphEntry>>,
    /// Names for the next copies on a stick.
    pub(super) next_copy: u64,
    /// Callers that wait for room in the queue.
    pub(super) room_waiters: usize,
    pub(super) submitted: u64,
    /// Requests that ended in an error without a stick.
    pub(super) failed: u64,
    /// Requests that the fallback works on, and has answered.
    pub(super) on_fallback: usize,
    pub(super) fallback_completed: u64,
    pub(super) telemetry_round: u64,
    /// The latest time that the scheduler was told: its events must not go back in time.
    time: Instant,
}

pub(super) struct StickEntry {
    pub(super) state: StickState,
    /// Why it is lost.
    pub(super) cause: Option<Cause>,
    pub(super) lost_since: Option<Instant>,
    /// Why it last refused an inference.
    pub(super) last_refusal: Option<Cause>,
    /// The first attempt to open it has ended, either way.
    pub(super) settled: bool,
    /// Its thread has ended.
    pub(super) exited: bool,
    pub(super) capabilities: Option<Capabilities>,
    pub(super) speed_mbps: u32,
    pub(super) memory_kind: Option<MemoryKind>,
    pub(super) memory: Option<MemoryReport>,
    pub(super) used_memory_bytes: Option<u32>,
    pub(super) temperature_c: Option<f32>,
    pub(super) throttle_level: Option<u8>,
    pub(super) resets: u32,
    /// Latest round that was answered.
    pub(super) telemetry_round: u64,
    pub(super) stage_times: StageQuestions,
}

/// Sticks to wake, once the lock is gone.
#[must_use]
#[derive(Default)]
pub(super) struct Rings(u128);

impl Rings {
    pub(super) fn without(mut self, stick: usize) -> Self {
        self.0 &= !1u128.checked_shl(stick as u32).unwrap_or(0);
        self
    }
}

impl Core {
    pub(super) fn new(sticks: usize, config: &FleetConfig) -> Self {
        let entry = || StickEntry {
            state: StickState::Starting,
            cause: None,
            lost_since: None,
            last_refusal: None,
            settled: false,
            exited: false,
            capabilities: None,
            speed_mbps: 0,
            memory_kind: None,
            memory: None,
            used_memory_bytes: None,
            temperature_c: None,
            throttle_level: None,
            resets: 0,
            telemetry_round: 0,
            stage_times: StageQuestions::default(),
        };
        Core {
            phase: Phase::Open,
            sched: Scheduler::new(config.scheduler()),
            jobs: JobTable::default(),
            sticks: (0..sticks).map(|_| entry()).collect(),
            graphs: Vec::new(),
            next_copy: 0,
            room_waiters: 0,
            submitted: 0,
            failed: 0,
            on_fallback: 0,
            fallback_completed: 0,
            telemetry_round: 0,
            time: Instant::ZERO,
        }
    }

    pub(super) fn graph(&self, no: GraphNo) -> Option<&GraphEntry> {
        self.graphs.get(no.0 as usize)?.as_ref()
    }

    pub(super) fn graph_mut(&mut self, no: GraphNo) -> Option<&mut GraphEntry> {
        self.graphs.get_mut(no.0 as usize)?.as_mut()
    }

    /// Tells the scheduler what happened at `at`; [`Shared::carry_out`] afterwards.
    pub(super) fn tell(&mut self, event: Event, at: Instant) {
        self.time = self.time.max(at);
        self.sched.handle(event, self.time);
    }

    pub(super) fn set_policy(&mut self, policy: crate::sched::Policy, now: Instant) {
        self.time = self.time.max(now);
        self.sched.set_policy(policy, self.time);
    }
}

/// The scheduler's name of a stick.
pub(super) fn number(stick: usize) -> StickNo {
    StickNo(stick as u32)
}

impl Shared {
    pub(super) fn ring(&self, rings: Rings) {
        for (at, stick) in self.sticks.iter().enumerate().take(128) {
            if rings.0 & (1 << at) != 0 {
                stick.inbox.ring();
            }
        }
    }

    /// Notes that a stick is to be woken; one beyond the bits of `rings` is woken at once.
    pub(super) fn wake_later(&self, stick: usize, rings: &mut Rings) {
        if stick < 128 {
            rings.0 |= 1 << stick;
        } else {
            self.sticks[stick].inbox.ring();
        }
    }

    /// Sends a command to every ready stick.
    pub(super) fn command_ready(&self, core: &Core, mut command: impl FnMut() -> Command) {
        for (stick, entry) in self.sticks.iter().zip(&core.sticks) {
            if entry.state == StickState::Ready {
                stick.inbox.command(command());
            }
        }
    }

    /// Time for the scheduler, by the real clock.
    pub(super) fn now(&self) -> Instant {
        self.clock.now()
    }
}

impl Record {
    /// The load sums up to `now`.
    pub(super) fn load_until(&self, now: Instant) -> Load {
        let mut load = self.load;
        let since = now.saturating_since(self.load_at);
        if load.in_flight > 0 {
            load.busy += since;
            load.depth_time += since * load.in_flight;
        }
        load.busy += self.load_before.busy;
        load.depth_time += self.load_before.depth_time;
        load
    }

    pub(super) fn end_connection(&mut self) {
        self.load_before.busy += self.load.busy;
        self.load_before.depth_time += self.load.depth_time;
        self.load = Load::default();
    }
}

/// The fleet was closed under the request.
pub(super) fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "infer").detail("the fleet was closed before the answer came")
}

/// Nobody waits for the request any more.
pub(super) fn unwanted() -> Error {
    Error::new(ErrorKind::Cancelled, "infer").detail("the ticket was dropped")
}

/// The longest of the waits that have no setting of their own.
pub(super) const CLOSE_GRACE: Duration = Duration::from_secs(4);
