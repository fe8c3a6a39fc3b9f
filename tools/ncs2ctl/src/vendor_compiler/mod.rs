//! The vendor's graph compiler, frozen in the wheel `openvino==2021.4.2`: set up once, run in a process of its own.
//!
//! ```text
//! setup: wheel ─► twelve libraries + our glue built by the user's C++ compiler ─► the user's data folder
//! Source (model, checked, edited) ─► cache (by hash) ─► run (child process) ─► blob, parsed ─► Summary
//! ```
//! `compile.cpp` says how the glue talks to the libraries. Nothing of the vendor's enters this process or repository.

pub mod cache;
pub mod refusal;
mod run;
mod setup;
pub mod source;
pub mod summary;

pub use refusal::explain;
pub use run::{Options, Refused, run};
pub use setup::{Compiler, REQUIREMENT, setup};
pub use source::Source;
