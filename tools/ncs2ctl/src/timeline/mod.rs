//! `--trace-out FILE`: when each stage of each inference began and how long it took, how warm the sticks were, and what
//! happened beside; and `ncs2ctl trace`, which reads it.
//!
//! ```text
//! worker ─► Lane (its own buffer) ─► spill (an unnamed file of fixed records) ─► JSON, written aside and renamed
//! ```
//!
//! While the run goes, an inference costs one reading of the clock and 80 bytes into a buffer; JSON is made when it is
//! over. Memory does not grow with the length of the run.

pub mod read;
mod record;
mod write;

pub use record::{Lane, Sent, Timeline};
pub use write::About;

/// What the files say they are, in `otherData`.
pub const SCHEMA: &str = "ncs2ctl.timeline/1";
