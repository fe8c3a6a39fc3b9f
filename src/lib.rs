//! Userspace driver and multi-stick scheduler for the Intel Neural Compute Stick 2.

pub mod blob;
pub mod clock;
pub mod error;
mod id;
pub mod wire;

pub use error::{Error, ErrorKind, Result};
pub use id::StickId;
