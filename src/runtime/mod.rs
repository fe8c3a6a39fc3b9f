//! `Fleet`: the public API, and the only place with threads and the real clock.
//!
//! ```text
//! Port ─► Fleet::builder().port(..).open() ─► fleet.load(&blob) ─► graph.input() ─► graph.submit() ─► ticket.wait()
//! ```
//!
//! One thread per stick drives its pipeline and transport. Whoever has news (a caller with a request, a stick with an
//! answer, the housekeeper when time has come) tells the scheduler under the lock of `core` and carries out what it decides.
//! A lost stick's requests wait for another, and its thread reconnects. Nothing waits for ever: sticks have deadlines,
//! requests are tried a bounded number of times, and each call that waits says for how long.

mod advice;
mod batch;
mod config;
mod core;
mod dispatch;
mod failure;
mod fallback;
mod files;
mod fleet;
mod graph;
mod graphs;
mod inbox;
mod jobs;
mod keeper;
mod mark;
mod process;
mod snapshot;
mod stage_questions;
pub mod stats_document;
pub mod stats_socket;
mod ticket;
mod worker;
mod workers;

pub use advice::{Advice, Finding, advise};
pub use config::{FleetConfig, LoadOptions, SubmitOptions, WarmHook};
pub use fallback::Fallback;
pub use fleet::{Fleet, FleetBuilder};
pub use graph::{Graph, InputLease};
pub use mark::{Mark, MarkCollector, Marks};
pub use process::{Processed, Processing};
pub use snapshot::{FleetStats, StickState, StickStats};
#[cfg(feature = "async")]
pub use ticket::TicketFuture;
pub use ticket::{Output, RequestId, Ticket};
