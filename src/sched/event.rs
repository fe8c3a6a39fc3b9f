//! What the scheduler is told, and what it decides. Plain values.

use std::time::Duration;

use crate::cache::{CacheKey, GraphNeeds, StickLimits};
use crate::clock::Instant;

/// A stick's place in the fleet; the owner maps it to its `StickId`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StickNo(pub u32);

/// A graph of the fleet, on however many sticks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GraphNo(pub u32);

/// Who asked; fairness is kept between callers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct CallerNo(pub u32);

/// The owner's name for one request. Never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct JobId(pub u64);

/// One inference on one stick, of one or more jobs. Never used twice, so that a late answer of a lost stick fits nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RunId(pub u64);

/// The jobs of one run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Jobs {
    /// One, without allocation.
    One(JobId),
    /// A batch, in the order of its places.
    Many(Box<[JobId]>),
}

impl Jobs {
    /// In the order of their places.
    pub fn as_slice(&self) -> &[JobId] {
        match self {
            Jobs::One(job) => std::slice::from_ref(job),
            Jobs::Many(jobs) => jobs,
        }
    }
}

/// A request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JobSpec {
    /// On what.
    pub graph: GraphNo,
    /// By whom.
    pub caller: CallerNo,
    /// 0 to 31, higher is served first. Above 31 counts as 31.
    pub priority: u8,
    /// The caller's own limit; [`Instant::FAR_FUTURE`] for none.
    pub deadline: Instant,
    /// Only this stick, which may be one that is not up yet.
    pub stick: Option<StickNo>,
}

/// Priority of who does not say.
pub const NORMAL_PRIORITY: u8 = 16;

impl JobSpec {
    /// Normal priority, no deadline, any stick.
    pub fn new(graph: GraphNo) -> Self {
        JobSpec {
            graph,
            caller: CallerNo(0),
            priority: NORMAL_PRIORITY,
            deadline: Instant::FAR_FUTURE,
            stick: None,
        }
    }
}

/// On which sticks a graph is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Placement {
    /// On every stick, loaded as soon as the stick is up.
    #[default]
    Everywhere,
    /// Where demand makes up for the load.
    OnDemand,
}

/// One batch size of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct VariantSpec {
    /// Jobs that one inference answers.
    pub size: u32,
    /// Expected device time of one inference, microseconds, from its operation count; `None` if unknown.
    pub hint_us: Option<f64>,
}

/// A model of the fleet.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphSpec {
    /// What tells it apart in the caches.
    pub key: CacheKey,
    /// What all its variants together take on a stick; `elements` is the largest depth.
    pub needs: GraphNeeds,
    /// Batch sizes, ascending; the first has size 1 where it is no batch model.
    pub variants: Vec<VariantSpec>,
    /// Share against other models of the same priority; 1 is normal.
    pub weight: f64,
    /// Most jobs per second that are started.
    pub rate_limit: Option<f64>,
    /// Where it is kept.
    pub placement: Placement,
    /// Longest time that a job waits for others to fill a batch.
    pub max_batch_delay: Duration,
    /// Most in flight on one stick whatever the controller finds; at most `needs.elements`.
    pub max_depth: Option<u32>,
    /// So many in flight instead of what the controller would find; at most `needs.elements`.
    pub fixed_depth: Option<u32>,
}

impl GraphSpec {
    /// One variant of one job, on every stick, weight 1.
    pub fn new(key: CacheKey, needs: GraphNeeds) -> Self {
        GraphSpec {
            key,
            needs,
            variants: vec![VariantSpec { size: 1, hint_us: None }],
            weight: 1.0,
            rate_limit: None,
            placement: Placement::Everywhere,
            max_batch_delay: Duration::from_millis(2),
            max_depth: None,
            fixed_depth: None,
        }
    }
}

/// What is known of a stick's guards.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub enum Guards {
    /// A real stick: its degrees mean nothing certain (NCS2_FACTS section 3). Only level and slow-down count.
    #[default]
    Reported,
    /// A virtual stick, or the user's own figures.
    Known {
        /// Level 1 from here, °C.
        lower_c: f64,
        /// Level 2 from here, °C.
        upper_c: f64,
        /// A level ends this far below its guard, kelvin.
        hysteresis_k: f64,
    },
}

/// Why an attempt failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It came back before it was given to the stick.
    NotSent,
    /// The stick refused it and lives on.
    Refused,
    /// No answer in its time; the stick lives on.
    Timeout,
    /// The stick died with it on board.
    StickDied,
    /// The request itself is wrong; no stick will take it.
    Input,
}

/// Events in.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A model is to be served.
    GraphAdded {
        /// Its name.
        graph: GraphNo,
        /// What it is.
        spec: GraphSpec,
    },
    /// A model is served no more. Its waiting jobs end as cancelled; those in flight are delivered.
    GraphRemoved {
        /// Its name.
        graph: GraphNo,
    },
    /// A request came.
    Arrived {
        /// Its name.
        job: JobId,
        /// What is asked.
        spec: JobSpec,
    },
    /// The caller wants it no more.
    Cancelled {
        /// Which.
        job: JobId,
    },
    /// The stick has it.
    Started {
        /// Which.
        run: RunId,
    },
    /// It was answered.
    Completed {
        /// Which.
        run: RunId,
    },
    /// It was not answered.
    Failed {
        /// Which.
        run: RunId,
        /// Why.
        fault: Fault,
    },
    /// A stick is open and empty.
    StickUp {
        /// Which.
        stick: StickNo,
        /// What it has.
        limits: StickLimits,
        /// What is known of its heat.
        guards: Guards,
        /// Share in the weighted policy; 1 is normal.
        weight: f64,
    },
    /// A stick is about to be lost: it gets no more work, while its owner hands back what was not sent.
    StickHalted {
        /// Which.
        stick: StickNo,
    },
    /// A stick is gone. Its runs that did not come back by [`Event::Failed`] before died with it.
    StickLost {
        /// Which.
        stick: StickNo,
    },
    /// A load is done.
    GraphLoaded {
        /// Where.
        stick: StickNo,
        /// What.
        graph: GraphNo,
        /// How long it took.
        took: Duration,
    },
    /// A load failed and the stick lives on.
    LoadFailed {
        /// Where.
        stick: StickNo,
        /// What.
        graph: GraphNo,
    },
    /// What a stick says of its memory.
    MemoryUsed {
        /// Where.
        stick: StickNo,
        /// Bytes in use there.
        bytes: u64,
    },
    /// A reading, or an attempt at one.
    Thermal {
        /// Where.
        stick: StickNo,
        /// What the sensor said; `None` when it was silent.
        reading: Option<ThermalReading>,
    },
    /// Time went on.
    Tick,
}

/// What a stick says of its heat.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ThermalReading {
    /// Degrees Celsius; `None` where the sensor says nonsense.
    pub celsius: Option<f64>,
    /// Throttle level, 0 to 2; `None` where it says nonsense.
    pub level: Option<u8>,
}

/// Where temperatures come from: telemetry of the `stick` room; in tests a recorded trace, an RC model, silence.
pub trait ThermalSource {
    /// What the stick says now; `None` when it says nothing.
    fn read(&mut self, stick: StickNo, now: Instant) -> Option<ThermalReading>;
}

/// Why a job ends without an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GiveUpReason {
    /// Tried as often as allowed.
    Retries,
    /// The retry budget is used up: too much fails at the moment.
    Budget,
    /// Two sticks died with it on board.
    Poison,
    /// The request itself is wrong.
    Input,
    /// Its graph fails wherever it runs; the breaker is open.
    GraphBroken,
    /// No stick that is there can ever hold its graph.
    NoStick,
}

/// One failed attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// Where.
    pub stick: StickNo,
    /// How it ended.
    pub fault: Fault,
    /// When.
    pub at: Instant,
}

/// Actions out. Each job that arrived ends with exactly one of Deliver, GiveUp, Reject, Expire, Cancel.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Run these on that stick.
    Assign {
        /// Name of the run.
        run: RunId,
        /// Where.
        stick: StickNo,
        /// What.
        graph: GraphNo,
        /// Which batch size, an index into the spec's variants.
        variant: u32,
        /// For whom.
        jobs: Jobs,
    },
    /// Put a graph on a stick, these out of the way first.
    Load {
        /// Where.
        stick: StickNo,
        /// What.
        graph: GraphNo,
        /// Unload first, in this order.
        evict: Vec<GraphNo>,
    },
    /// Unload a graph.
    Evict {
        /// Where.
        stick: StickNo,
        /// What.
        graph: GraphNo,
    },
    /// The stick gets no work, to cool down. Informative.
    Rest {
        /// Which.
        stick: StickNo,
    },
    /// It gets work again. Informative.
    Wake {
        /// Which.
        stick: StickNo,
    },
    /// The stick does not answer: reset it, then say [`Event::StickLost`].
    Reset {
        /// Which.
        stick: StickNo,
    },
    /// The job waits for another stick. Informative.
    Retry {
        /// Which.
        job: JobId,
        /// What happened.
        attempt: Attempt,
    },
    /// The job is answered: hand the answer of this run to its caller.
    Deliver {
        /// Which.
        job: JobId,
        /// By which run.
        run: RunId,
    },
    /// The job ends with an error.
    GiveUp {
        /// Which.
        job: JobId,
        /// Why.
        reason: GiveUpReason,
        /// All that was tried.
        history: Vec<Attempt>,
    },
    /// `QueueFull`.
    Reject {
        /// Which.
        job: JobId,
    },
    /// `DeadlineExceeded`.
    Expire {
        /// Which.
        job: JobId,
    },
    /// `Cancelled`.
    Cancel {
        /// Which.
        job: JobId,
    },
    /// The stick is warmer than the user's limit. Told once per crossing; the runtime runs its hook.
    Warn {
        /// Which.
        stick: StickNo,
        /// Degrees Celsius.
        celsius: f64,
    },
}
