//! Counters of a fleet, as values.

use std::collections::BTreeMap;
use std::time::Duration;

use super::core::Shared;
use crate::clock::{Clock, Instant};
use crate::id::StickId;
use crate::pool::PoolStats;
use crate::sched::throttle::Law;
use crate::sched::{Policy, StickSchedStats};
use crate::stats::{Latency, StageTimes};
use crate::transport::{MemoryKind, MemoryReport, Pace};
use crate::wire::Capabilities;

/// State of one stick of the fleet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum StickState {
    /// Booting, opening or loading.
    Starting,
    /// Taking jobs.
    Ready,
    /// Failed; a reconnect may be under way. Its jobs went back to the queue.
    Lost,
    /// Closed.
    Closed,
}

/// Snapshot of one stick.
#[derive(Clone, Debug)]
pub struct StickStats {
    /// Name.
    pub id: StickId,
    /// Profile name when it is a virtual stick.
    pub simulated: Option<String>,
    /// False when the virtual stick takes no time, or this computer was slower than its model: figures are then this computer's.
    /// `None` for a real stick, and where nobody knows.
    pub paced: Option<bool>,
    /// State.
    pub state: StickState,
    /// Why it is lost, in words.
    pub failure: Option<String>,
    /// What it said at open.
    pub capabilities: Option<Capabilities>,
    /// Link speed, Mb/s; 0 where there is no bus.
    pub speed_mbps: u32,
    /// Bytes in use on the stick when last asked.
    pub used_memory_bytes: Option<u32>,
    /// Degrees Celsius when last asked; `None` when never or when the sensor says nonsense.
    pub temperature_c: Option<f32>,
    /// 0, 1, 2 when last asked.
    pub throttle_level: Option<u8>,
    /// Inferences answered.
    pub completed: u64,
    /// Inferences that ended in an error.
    pub failed: u64,
    /// Inferences in flight now.
    pub in_flight: u32,
    /// Time with at least one inference in flight on the stick. An estimate of being busy.
    pub busy: Duration,
    /// Sum over time of inferences in flight, for the mean depth: divide by elapsed.
    pub depth_time: Duration,
    /// Times the stick was reset or reconnected.
    pub resets: u32,
    /// Caller's latency of its inferences.
    pub latency: Latency,
    /// Where the buffers of its transport live; `None` before it was opened.
    pub memory_kind: Option<MemoryKind>,
    /// How host buffers reach it on USB; `None` for a virtual stick, and before it was opened.
    pub memory: Option<MemoryReport>,
    /// Host memory for its inputs and outputs.
    pub host_pool: PoolStats,
    /// What the scheduler knows of it: depth, rests, forecast, graph cache. `None` before it was first open.
    pub sched: Option<StickSchedStats>,
}

/// Snapshot of the fleet. Counters run from open; take two snapshots and subtract for a window.
#[derive(Clone, Debug)]
pub struct FleetStats {
    /// Time since open.
    pub elapsed: Duration,
    /// Every stick, in the order of the ports.
    pub sticks: Vec<StickStats>,
    /// Requests submitted.
    pub submitted: u64,
    /// Requests answered.
    pub completed: u64,
    /// Requests that ended in an error.
    pub failed: u64,
    /// Attempts after a failed one.
    pub retried: u64,
    /// Attempts that the retry budget refused.
    pub retries_refused: u64,
    /// Requests that the fallback answered, counted in `completed` and in no stick's.
    pub fallback: u64,
    /// Policy in force.
    pub policy: Policy,
    /// What throttling does to these sticks, as far as it was seen.
    pub law: Law,
    /// Requests that wait for a stick now.
    pub queued: u64,
    /// Caller's latency.
    pub latency: Latency,
    /// The six stage times.
    pub stages: [Latency; 6],
}

/// All counters, now.
pub(super) fn snapshot(shared: &Shared) -> FleetStats {
    let now = shared.clock.now();
    let core = shared.core.lock();
    let mut latency = Latency::new();
    let mut stages: [Latency; StageTimes::COUNT] = std::array::from_fn(|_| Latency::new());
    let mut sched = core.sched.stats(now);
    let of_stick = std::mem::take(&mut sched.sticks);
    let mut of_stick: BTreeMap<u32, _> = of_stick.into_iter().map(|s| (s.stick.0, s)).collect();
    let mut completed = core.fallback_completed;
    let mut failed = core.failed;
    let mut sticks = Vec::with_capacity(shared.sticks.len());
    for (stick, entry) in shared.sticks.iter().zip(&core.sticks) {
        let record = stick.record.lock();
        latency.merge(&record.latency);
        stages.iter_mut().zip(&record.stages).for_each(|(all, own)| all.merge(own));
        completed += record.completed;
        failed += record.failed_requests;
        let load = record.load_until(now);
        sticks.push(StickStats {
            id: stick.id.clone(),
            simulated: stick.simulated.clone(),
            paced: stick.pace.as_ref().map(Pace::is_kept),
            state: entry.state,
            failure: entry.cause.as_ref().map(|c| c.detail.clone()),
            capabilities: entry.capabilities,
            speed_mbps: entry.speed_mbps,
            memory_kind: entry.memory_kind,
            memory: entry.memory.clone(),
            used_memory_bytes: entry.used_memory_bytes,
            temperature_c: entry.temperature_c,
            throttle_level: entry.throttle_level,
            completed: record.completed,
            failed: record.failed,
            in_flight: load.in_flight,
            busy: load.busy,
            depth_time: load.depth_time,
            resets: entry.resets,
            latency: record.latency.clone(),
            host_pool: stick.pool.stats(),
            sched: of_stick.remove(&(sticks.len() as u32)),
        });
    }
    FleetStats {
        elapsed: now - Instant::ZERO,
        sticks,
        submitted: core.submitted,
        completed,
        failed,
        retried: sched.counters.retried,
        retries_refused: sched.retry_budget.1,
        queued: core.sched.queued() as u64,
        fallback: core.fallback_completed,
        policy: core.sched.config().policy,
        law: sched.law,
        latency,
        stages,
    }
}
