//! Settings of fleets, graphs and requests.

use std::sync::Arc;
use std::time::Duration;

use super::fallback::Fallback;
use crate::error::{Error, ErrorKind, Result};
use crate::id::StickId;
use crate::pipeline::MAX_INSTANCES;
use crate::pool::{DEFAULT_CEILING_BYTES, HostMemory};
use crate::sched::{Guards, HeatConfig, NORMAL_PRIORITY, Policy, SchedConfig};
use crate::stick::Ordering;
use crate::topology::PinPolicy;

/// Called with a stick's name and its degrees Celsius when it becomes warmer than the limit; not on a stick's thread.
#[derive(Clone)]
pub struct WarmHook(pub Arc<WarmFn>);
type WarmFn = dyn Fn(&StickId, f64) + Send + Sync;

impl std::fmt::Debug for WarmHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WarmHook")
    }
}

/// Settings of a fleet.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// Order on the wire.
    pub ordering: Ordering,
    /// Time for a stick to boot and open. A stick that was lost for longer counts as gone: requests that only it
    /// could answer fail.
    pub open_timeout: Duration,
    /// How long [`super::FleetBuilder::open`] waits for the other sticks once one is ready; at least as long as that one
    /// took. Those that come later join then.
    pub straggler_timeout: Duration,
    /// Requests that may wait in the fleet before `submit` says `QueueFull` (or waits).
    pub queue_limit: usize,
    /// How often a request may be tried again. One under which two sticks died is given up in any case, and so is what
    /// goes beyond a tenth of all requests.
    pub retries: u32,
    /// How sticks are chosen.
    pub policy: Policy,
    /// Shares of sticks in the weighted policy; those not named have 1.
    pub weights: Vec<(StickId, f64)>,
    /// With an adaptive depth: the mean time that a request may spend on the stick.
    pub target_latency: Option<Duration>,
    /// Limits of heat.
    pub heat: HeatConfig,
    /// What is known of the sticks' throttle guards.
    pub guards: Guards,
    /// Told when a stick becomes warmer than [`HeatConfig::warn_c`]: a fan, a message.
    pub on_warm: Option<WarmHook>,
    /// Who computes what no stick can take: what is left without one, and what has a deadline and still waits when half
    /// of its time is over.
    pub fallback: Option<Arc<dyn Fallback>>,
    /// Longest wait of [`super::Graph::input`] for memory and of [`super::Graph::submit`] for room in the queue.
    pub wait_timeout: Duration,
    /// Longest time that one inference may take on a stick, those ahead of it on the same stick not counted; the
    /// stick counts as lost after that.
    pub job_timeout: Duration,
    /// Most host memory per stick for inputs and outputs, bytes; all sticks together take at most a quarter of what
    /// the machine has free at open.
    pub pool_bytes: usize,
    /// Keep the memory of inputs and outputs out of swap (`mlock`), ask for huge pages; [`crate::pool::PoolStats`] says
    /// what came of it.
    pub host_memory: HostMemory,
    /// Where the fleet's threads run.
    pub pin: PinPolicy,
    /// Threads that convert inputs and outputs of [`super::Graph::process`]; 0 lets the fleet choose.
    pub workers: usize,
    /// Tell other processes of this user the counters, at a socket in the runtime folder
    /// ([`super::stats_socket`]). Where that cannot be, the fleet works without.
    pub stats_socket: bool,
    /// Load blobs with custom stages (kind 115), which bring code of their own to the stick. Otherwise they are refused: such a
    /// blob is a program, and its author need not be whoever compiled the network.
    pub allow_custom: bool,
}

impl Default for FleetConfig {
    fn default() -> Self {
        FleetConfig {
            ordering: Ordering::Vendor,
            open_timeout: Duration::from_secs(15),
            straggler_timeout: Duration::from_secs(5),
            queue_limit: 1024,
            retries: 2,
            policy: Policy::default(),
            weights: Vec::new(),
            target_latency: None,
            heat: HeatConfig::default(),
            guards: Guards::default(),
            on_warm: None,
            fallback: None,
            wait_timeout: Duration::from_secs(60),
            job_timeout: Duration::from_secs(30),
            pool_bytes: DEFAULT_CEILING_BYTES,
            host_memory: HostMemory::default(),
            pin: PinPolicy::None,
            workers: 0,
            stats_socket: true,
            allow_custom: false,
        }
    }
}

impl FleetConfig {
    pub(super) fn scheduler(&self) -> SchedConfig {
        SchedConfig {
            policy: self.policy,
            queue_limit: self.queue_limit,
            retries: self.retries,
            target_latency: self.target_latency,
            unmeasured_limit: Some(self.job_timeout),
            heat: self.heat,
            ..SchedConfig::default()
        }
    }

    pub(super) fn weight_of(&self, stick: &StickId) -> f64 {
        self.weights.iter().find(|(id, _)| id == stick).map_or(1.0, |(_, weight)| *weight)
    }
}

/// How a graph is put on each stick.
#[derive(Clone, PartialEq, Debug)]
pub struct LoadOptions {
    /// Executors per instance (throughput streams); 0 lets the fleet choose what the blob and stick allow.
    pub executors: u32,
    /// Most inferences in flight per instance, which is the FIFO's element count. 1 to 16.
    pub depth: u32,
    /// The scheduler finds the number in flight that keeps the stick busy, up to `depth` per instance; otherwise it is
    /// `depth`.
    pub adaptive_depth: bool,
    /// Instances of the graph per stick, 1 to 4.
    pub instances: u32,
    /// Share of device time against other graphs of the same priority.
    pub weight: f64,
    /// Most requests per second that are started.
    pub rate_limit: Option<f64>,
    /// With several batch sizes: how long a request waits for others to fill a batch.
    pub max_batch_delay: Duration,
    /// Time for the upload.
    pub timeout: Duration,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            executors: 0,
            depth: 4,
            adaptive_depth: false,
            instances: 1,
            weight: 1.0,
            rate_limit: None,
            max_batch_delay: Duration::from_millis(2),
            timeout: Duration::from_secs(30),
        }
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
        let sane = |x: f64| x.is_finite() && x > 0.0;
        if !sane(self.weight) || !self.rate_limit.is_none_or(sane) {
            let detail = format!(
                "weight {} and rate limit {:?} were asked; numbers above 0 are possible",
                self.weight, self.rate_limit
            );
            return Err(Error::new(ErrorKind::InvalidInput, "load graph").detail(detail));
        }
        Ok(())
    }
}

/// Where to run and how long to wait.
#[derive(Clone, Debug)]
pub struct SubmitOptions {
    /// The caller's own limit from now; the ticket then ends with `DeadlineExceeded`.
    pub deadline: Option<Duration>,
    /// Only this stick.
    pub stick: Option<StickId>,
    /// 0 to 31; higher is served first.
    pub priority: u8,
    /// On whose behalf; callers of a graph share device time equally.
    pub caller: u32,
}

impl Default for SubmitOptions {
    fn default() -> Self {
        SubmitOptions { deadline: None, stick: None, priority: NORMAL_PRIORITY, caller: 0 }
    }
}
