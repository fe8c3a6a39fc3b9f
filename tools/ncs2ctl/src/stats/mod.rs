//! Counters of fleets, of this process or of another: one shape, wherever they come from.
//!
//! [`source`] finds them, [`snapshot`] is what they say at one moment, [`window`] what happened between two.

pub mod snapshot;
pub mod source;
pub mod window;

pub use snapshot::{Snapshot, Stick};
pub use source::Source;
pub use window::Window;
