//! `Fleet`: the public API, and the only place with threads and the real clock.
//!
//! ```text
//! Port ─► Fleet::builder().port(..).open() ─► fleet.load(&blob) ─► graph.input() ─► graph.submit() ─► ticket.wait()
//! ```

use std::time::Duration;

use crate::blob::Blob;
use crate::error::Result;
use crate::id::StickId;
use crate::stats::{Latency, StageTimes};
use crate::stick::Ordering;
use crate::transport::Port;
use crate::wire::Capabilities;

/// Settings of a fleet.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// Order on the wire.
    pub ordering: Ordering,
    /// Time for a stick to boot and open.
    pub open_timeout: Duration,
    /// Requests that may wait in the fleet before `submit` says `QueueFull` (or waits).
    pub queue_limit: usize,
    /// How often a job may move to another stick after its own was lost.
    pub retries: u32,
}

impl Default for FleetConfig {
    fn default() -> Self {
        FleetConfig {
            ordering: Ordering::Vendor,
            open_timeout: Duration::from_secs(15),
            queue_limit: 1024,
            retries: 2,
        }
    }
}

/// How a graph is put on each stick.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Executors per instance (throughput streams); 0 lets the fleet choose what the blob and stick allow.
    pub executors: u32,
    /// Most inferences in flight per stick, which is the FIFO's element count. 1 to 16.
    pub depth: u32,
    /// Instances of the graph per stick, 1 to 4.
    pub instances: u32,
    /// Time for the upload.
    pub timeout: Duration,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { executors: 0, depth: 4, instances: 1, timeout: Duration::from_secs(30) }
    }
}

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
    /// Caller's latency.
    pub latency: Latency,
    /// The six stage times.
    pub stages: [Latency; 6],
}

/// Assembles a fleet.
#[derive(Default)]
pub struct FleetBuilder {
    _ports: Vec<Port>,
    _config: FleetConfig,
}

#[allow(unused_variables, unused_mut, missing_docs, reason = "contract; bodies by the runtime author")]
impl FleetBuilder {
    /// Adds a stick.
    #[must_use]
    pub fn port(mut self, port: Port) -> Self {
        unreachable!()
    }
    #[must_use]
    pub fn config(mut self, config: FleetConfig) -> Self {
        unreachable!()
    }
    /// Connects all ports at the same time. Succeeds when at least one stick is ready; the failures are in the stats.
    /// Fails with the first port's error when none is, and with `NotFound` when there is no port.
    pub fn open(self) -> Result<Fleet> {
        unreachable!()
    }
}

/// All sticks as one. Cheap to clone; the last clone that goes closes the sticks.
#[derive(Clone)]
pub struct Fleet {}

#[allow(unused_variables, missing_docs, reason = "contract; bodies by the runtime author")]
impl Fleet {
    pub fn builder() -> FleetBuilder {
        unreachable!()
    }
    /// Puts the graph on every ready stick, at the same time. Fails when no stick took it.
    pub fn load(&self, blob: &Blob, options: LoadOptions) -> Result<Graph> {
        unreachable!()
    }
    pub fn stats(&self) -> FleetStats {
        unreachable!()
    }
    /// Asks every ready stick for temperature and memory; the answers are in the next [`Fleet::stats`].
    pub fn refresh_telemetry(&self, timeout: Duration) -> Result<()> {
        unreachable!()
    }
    /// Stops taking work, drains for at most `timeout`, closes the sticks. Jobs that remain end with `Cancelled`.
    pub fn close(self, timeout: Duration) -> Result<()> {
        unreachable!()
    }
}

/// A graph that is loaded on the fleet. Dropping the last clone unloads it.
#[derive(Clone)]
pub struct Graph {}

/// Where to run and how long to wait.
#[derive(Clone, Debug, Default)]
pub struct SubmitOptions {
    /// The caller's own limit from now; the ticket then ends with `DeadlineExceeded`.
    pub deadline: Option<Duration>,
    /// Only this stick.
    pub stick: Option<StickId>,
}

#[allow(unused_variables, missing_docs, reason = "contract; bodies by the runtime author")]
impl Graph {
    pub fn blob(&self) -> &Blob {
        unreachable!()
    }
    /// A lease of host memory of `blob.graph().input_bytes`, to write the input element into. Waits for the pool.
    pub fn input(&self) -> Result<InputLease> {
        unreachable!()
    }
    /// Queues an inference. Waits while the queue is full.
    pub fn submit(&self, input: InputLease, options: SubmitOptions) -> Result<Ticket> {
        unreachable!()
    }
    /// As [`Graph::submit`], but hands the input back with `QueueFull` instead of waiting.
    #[allow(clippy::result_large_err)]
    pub fn try_submit(
        &self,
        input: InputLease,
        options: SubmitOptions,
    ) -> Result<Ticket, (crate::Error, InputLease)> {
        unreachable!()
    }
    /// Copies `input` (the whole element), runs, waits.
    pub fn infer(&self, input: &[u8]) -> Result<Output> {
        unreachable!()
    }
}

/// Host memory for one input element.
pub struct InputLease {}

#[allow(unused_variables, missing_docs, reason = "contract; bodies by the runtime author")]
impl InputLease {
    /// The whole element, zeroed where it was never written; tensors lie at their `IoTensor::offset`.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        unreachable!()
    }
}

/// The caller's hold on one inference. Dropping it cancels if not yet sent and discards the answer if it is.
pub struct Ticket {}

#[allow(unused_variables, missing_docs, reason = "contract; bodies by the runtime author")]
impl Ticket {
    pub fn wait(self) -> Result<Output> {
        unreachable!()
    }
    /// `Ok(None)` when nothing came within `timeout`; the ticket stays good.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<Output>> {
        unreachable!()
    }
}

/// The answer, a lease to read. Dropping it gives the memory back to the pool.
pub struct Output {}

#[allow(unused_variables, missing_docs, reason = "contract; bodies by the runtime author")]
impl Output {
    /// The whole output element.
    pub fn bytes(&self) -> &[u8] {
        unreachable!()
    }
    /// The bytes of output `index`: all batch elements, as the blob lays them.
    pub fn tensor(&self, index: usize) -> &[u8] {
        unreachable!()
    }
    /// Who computed it.
    pub fn stick(&self) -> &StickId {
        unreachable!()
    }
    pub fn times(&self) -> StageTimes {
        unreachable!()
    }
    pub fn latency(&self) -> Duration {
        unreachable!()
    }
}
