//! `--metrics-listen`: a fleet's figures for Prometheus, over HTTP. `docs/metrics.md` lists the names.

mod server;
mod text;

pub use server::{Server, listen};
