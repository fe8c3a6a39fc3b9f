//! The scheduler: which job goes to which stick, when, and how deep; heat, faults, fairness. Pure: events in, actions out,
//! `now` as an argument; no device, no thread, no clock, no lock.
//!
//! The calling order of its owner, after anything happened:
//!
//! 1. [`Scheduler::handle`] for each event, in the order in which they happened;
//! 2. [`Scheduler::poll_action`] until `None`, each carried out;
//! 3. wait, at most until [`Scheduler::poll_timeout`], then [`Event::Tick`].
//!
//! A job that arrived ends with exactly one of [`Action::Deliver`], `GiveUp`, `Reject`, `Expire`, `Cancel`. A stick that is
//! lost hands back what had not been sent by [`Event::Failed`] with [`Fault::NotSent`] before [`Event::StickLost`]; the
//! rest died with it and is suspect.
//!
//! ```text
//! Arrived ─► FairQueue ─► dispatch ─► Assign ─► Completed ─► Deliver
//!              ▲             │ ranking of sticks, one per graph (policy::key)
//!              └── retry ◄───┴── Failed, StickLost
//! ```

mod dispatch;
mod fleet;
mod outcome;
mod scheduler;
mod stats;
mod warmth;

pub mod batch;
pub mod breaker;
pub mod config;
pub mod depth;
pub mod estimate;
pub mod event;
pub mod heat;
pub mod policy;
pub mod queue;
pub mod ranking;
pub mod retry;
pub mod runs;
pub mod sorted;
pub mod stick;
pub mod throttle;

pub use config::{HeatConfig, Policy, SchedConfig};
pub use event::{
    Action, Attempt, CallerNo, Event, Fault, GiveUpReason, GraphNo, GraphSpec, Guards, JobId, JobSpec, Jobs,
    NORMAL_PRIORITY, Placement, RunId, StickNo, ThermalReading, ThermalSource, VariantSpec,
};
pub use heat::Forecast;
pub use scheduler::Counters;
pub use scheduler::Scheduler;
pub use stats::{SchedStats, SlotStats, StickSchedStats};
