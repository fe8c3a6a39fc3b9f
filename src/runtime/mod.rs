//! `Fleet`: the public API, and the only place with threads and the real clock.
//!
//! ```text
//! Port ─► Fleet::builder().port(..).open() ─► fleet.load(&blob) ─► graph.input() ─► graph.submit() ─► ticket.wait()
//! ```
//!
//! One thread per stick drives its pipeline and transport; callers' threads put requests into the shared queue and
//! hand them to sticks that have room. A lost stick's requests go back to the head of the queue, and its thread
//! reconnects. Nothing waits for ever: sticks have deadlines, requests move a bounded number of times, and each call
//! that waits says for how long.

mod config;
mod core;
mod dispatch;
mod failure;
mod fleet;
mod graph;
mod inbox;
mod ticket;
mod worker;

use std::time::Duration;

pub use config::{FleetConfig, LoadOptions, SubmitOptions};
pub use fleet::{Fleet, FleetBuilder};
pub use graph::{Graph, InputLease};
pub use ticket::{Output, Ticket};

use crate::id::StickId;
use crate::pool::PoolStats;
use crate::stats::Latency;
use crate::transport::MemoryReport;
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
    /// How host buffers reach it on USB; `None` for a virtual stick, and before it was opened.
    pub memory: Option<MemoryReport>,
    /// Host memory for its inputs and outputs.
    pub host_pool: PoolStats,
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
    /// Jobs moved to another stick.
    pub retried: u64,
    /// Requests that wait for a stick now.
    pub queued: u64,
    /// Caller's latency.
    pub latency: Latency,
    /// The six stage times.
    pub stages: [Latency; 6],
}
