//! `selftest`: exercises one stick step by step and writes down what it saw, so that what nobody knows about the firmware
//! becomes known.
//!
//! ```text
//! exam (the steps) ─► session (one link, every wait in hand) ─► Tracer ─► the stick
//!        └─► timeline (what crossed) ─► findings (one answer per unknown) ─► report
//! ```
//! `replay` puts a report's own timeline in the stick's place; `fit` makes a virtual stick's profile of it; `proven` is what
//! reports of real sticks change of the defaults, and `table` what the README shows of them.

mod arrival;
mod carried;
mod descriptors;
mod exam;
mod findings;
mod fit;
pub mod proven;
mod replay;
mod report;
mod session;
mod table;
mod timeline;

pub use exam::{Exam, Mode};
pub use fit::profile;
pub use replay::replay;
pub use report::Report;
