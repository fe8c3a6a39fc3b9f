//! Userspace driver and multi-stick scheduler for the Intel Neural Compute Stick 2.

pub mod blob;
pub mod clock;
pub mod convert;
pub mod error;
mod id;
#[doc(hidden)]
pub mod pipeline;
#[doc(hidden)]
pub mod pool;
#[cfg(feature = "openvino")]
pub mod reference;
pub mod runtime;
pub mod stats;
pub mod stick;
pub mod topology;
pub mod transport;
pub mod wire;
pub mod xlink;

pub use error::{Error, ErrorKind, Result};
pub use id::StickId;
pub use runtime::{Fleet, Graph};
pub use transport::Port;
