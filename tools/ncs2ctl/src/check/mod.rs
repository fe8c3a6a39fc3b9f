//! Answers against references: how far apart, and whether they mean the same.

mod score;

#[cfg(feature = "openvino")]
pub mod cpu;

pub use score::Score;
