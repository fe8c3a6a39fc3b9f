//! Userspace driver and multi-stick scheduler for the Intel Neural Compute Stick 2 (Myriad X), without the vendor's
//! runtime.
//!
//! ```no_run
//! use ncs2::runtime::{LoadOptions, SubmitOptions};
//! use ncs2::transport::usb::{boot, discover};
//! use ncs2::{Fleet, blob::Blob};
//!
//! # fn main() -> ncs2::Result<()> {
//! let mut builder = Fleet::builder();
//! for stick in discover::list()? {
//!     builder = builder.port(boot::port(stick.id, boot::BootOptions::default()));
//! }
//! let fleet = builder.open()?;
//! let graph = fleet.load(&Blob::open("model.blob")?, LoadOptions::default())?;
//! let mut input = graph.input()?;
//! input.as_mut_slice().fill(0);
//! let output = graph.submit(input, SubmitOptions::default())?.wait()?;
//! println!("{} bytes from {}", output.tensor(0).len(), output.stick());
//! # Ok(())
//! # }
//! ```
//!
//! # Layers
//!
//! A request goes down through [`runtime`] (threads, queue, tickets), a pipeline per stick, [`stick`] and [`xlink`] (the protocol,
//! without I/O or clock) to [`transport`] (usbfs, sockets, memory), and its answer comes up the same way. [`wire`] and
//! [`blob`] know bytes; [`error`], [`clock`] and [`stats`] are known to all.
//!
//! # Permissions
//!
//! Opening a stick needs write access to its file under `/dev/bus/usb`: see `udev/` in the repository. Listing needs
//! none.
//!
//! # Logging
//!
//! Through `tracing`: warnings for what was survived (a lost stick, a retried boot), never for what is returned as an error.
//!
//! # Verified
//!
//! Nothing has been tried on hardware. The protocol is that of the vendor's client of OpenVINO 2021.4.2, recorded and
//! replayed in the tests.

pub mod blob;
pub mod cache;
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
pub mod sched;
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

/// The README's example is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
