//! The benchmark: a load generator, what is measured while it runs, the report, and what it means.
//!
//! ```text
//! load (threads that send and wait) ─► measure (warm-up, windows, samples) ─► report (figures) ─► text | JSON
//!                                                                               └─► diagnosis (one word, one sentence)
//! ```

pub mod compare;
pub mod diagnosis;
pub mod host;
pub mod load;
pub mod measure;
pub mod report;
pub mod soak;
pub mod sweep;
pub mod text;

#[cfg(test)]
mod tests;
