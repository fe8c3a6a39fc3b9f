//! The commands, one file each.

pub mod batch;
pub mod bench;
pub mod blob;
pub mod boot;
pub mod check;
pub mod compile;
pub mod completions;
pub mod config;
pub mod decode;
pub mod doctor;
pub mod firmware;
pub mod info;
mod layer_times;
pub mod list;
pub mod man;
pub mod quantize;
pub mod run;
pub mod selftest;
pub mod setup;
pub mod sim;
pub mod stream;
pub mod thermal;
pub mod top;
pub mod trace;
pub mod udev;
