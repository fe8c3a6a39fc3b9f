//! The benchmark: a load generator, what is measured while it runs, the report, and what it means.
//!
//! ```text
//! load (threads that send and wait) ─► measure (warm-up, windows, samples) ─► report (figures) ─► text | JSON
//!                                                                               └─► diagnosis (one word, one sentence)
//! ```

pub mod batches;
pub mod compare;
pub mod diagnosis;
pub mod energy;
pub mod flags;
pub mod host;
pub mod levels;
pub mod load;
pub mod machine;
pub mod measure;
pub mod network;
pub mod report;
pub mod session;
pub mod soak;
pub mod sweep;
pub mod targets;
pub mod text;

#[cfg(test)]
mod tests;
