//! Answers against references: how far apart, and whether they mean the same.

mod score;

#[cfg(feature = "openvino")]
pub mod cpu;
#[cfg(feature = "openvino")]
pub mod speed;
#[cfg(feature = "openvino")]
pub mod trace;

pub use score::Score;
