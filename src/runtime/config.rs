//! Settings of fleets, graphs and requests.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::id::StickId;
use crate::pipeline::MAX_INSTANCES;
use crate::pool::DEFAULT_CEILING_BYTES;
use crate::stick::Ordering;

/// Settings of a fleet.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// Order on the wire.
    pub ordering: Ordering,
    /// Time for a stick to boot and open. A stick that was lost for longer counts as gone: requests that only it
    /// could answer fail.
    pub open_timeout: Duration,
    /// Requests that may wait in the fleet before `submit` says `QueueFull` (or waits).
    pub queue_limit: usize,
    /// How often a job may move to another stick after its own was lost.
    pub retries: u32,
    /// Longest wait of [`super::Graph::input`] for memory and of [`super::Graph::submit`] for room in the queue.
    pub wait_timeout: Duration,
    /// Longest time that one inference may take on a stick, those ahead of it on the same stick not counted; the
    /// stick counts as lost after that.
    pub job_timeout: Duration,
    /// Most host memory per stick for inputs and outputs, bytes; all sticks together take at most a quarter of what
    /// the machine has free at open.
    pub pool_bytes: usize,
    /// Tell other processes of this user the counters, at a socket in the runtime folder
    /// ([`super::stats_socket`]). Where that cannot be, the fleet works without.
    pub stats_socket: bool,
}

impl Default for FleetConfig {
    fn default() -> Self {
        FleetConfig {
            ordering: Ordering::Vendor,
            open_timeout: Duration::from_secs(15),
            queue_limit: 1024,
            retries: 2,
            wait_timeout: Duration::from_secs(60),
            job_timeout: Duration::from_secs(30),
            pool_bytes: DEFAULT_CEILING_BYTES,
            stats_socket: true,
        }
    }
}

/// How a graph is put on each stick.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadOptions {
    /// Executors per instance (throughput streams); 0 lets the fleet choose what the blob and stick allow.
    pub executors: u32,
    /// Most inferences in flight per instance, which is the FIFO's element count. 1 to 16.
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

impl LoadOptions {
    /// Most inferences in flight per instance.
    pub const MAX_DEPTH: u32 = 16;
    /// Most executors per instance.
    pub const MAX_EXECUTORS: u32 = 3;

    pub(super) fn check(&self) -> Result<()> {
        let bad = |what: &str, found: u32, range: String| {
            let detail = format!("{what} {found} was asked, {range} is possible");
            Err(Error::new(ErrorKind::InvalidInput, "load graph").detail(detail))
        };
        if self.depth == 0 || self.depth > Self::MAX_DEPTH {
            return bad("depth", self.depth, format!("1 to {}", Self::MAX_DEPTH));
        }
        if self.instances == 0 || self.instances > MAX_INSTANCES {
            return bad("instances", self.instances, format!("1 to {MAX_INSTANCES}"));
        }
        if self.executors > Self::MAX_EXECUTORS {
            return bad("executors", self.executors, format!("0 (chosen) to {}", Self::MAX_EXECUTORS));
        }
        Ok(())
    }

    /// True where one copy on a stick serves both.
    pub(super) fn shares_with(&self, other: &LoadOptions) -> bool {
        let key = |o: &LoadOptions| (o.executors, o.depth, o.instances);
        key(self) == key(other)
    }
}

/// Where to run and how long to wait.
#[derive(Clone, Debug, Default)]
pub struct SubmitOptions {
    /// The caller's own limit from now; the ticket then ends with `DeadlineExceeded`.
    pub deadline: Option<Duration>,
    /// Only this stick.
    pub stick: Option<StickId>,
}
