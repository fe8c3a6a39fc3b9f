//! A virtual Neural Compute Stick 2: it boots, speaks the protocol, executes compiled graphs, takes time, heats up and
//! breaks. Everything that comes from it is `simulated`.
#![doc = "\n"]
#![doc = include_str!("../../docs/virtual-stick.md")]

mod bay;
mod behaviour;
mod blob_header;
mod boot_rom;
pub mod calibrate;
mod carrier;
mod config;
mod cost;
pub mod execute;
mod executors;
pub mod face;
mod fault_plan;
mod fifo;
mod firmware;
pub mod gemm;
mod graphs;
pub mod hash;
mod heat;
mod hub;
mod link;
mod memory;
mod profile;
mod rack;
mod run;
mod sample;
mod stepped;
mod stick;
mod tape;
mod work;

use std::time::Duration;

pub use behaviour::{Behaviour, InputRelease, RefusedInput, TriggerStatus, ZeroLength};
pub use config::Config;
pub use fault_plan::{FaultKind, FaultPlan, PlannedFault, Script, Way};
pub use hub::Hub;
pub use link::Violations;
pub use profile::{Boot, HeatLaw, HubShare, LinkSpeed, Memory, Profile, Speed, ThrottleLaw};
pub use rack::{Rack, StickHandle};
pub use sample::{SAMPLE_BYTES, Sampler};
pub use stepped::SteppedRack;
pub use stick::{BusEvent, Faults, Identity, VirtualStick};
pub use tape::Tape;
pub use work::{PreparedCache, Work};

/// What an output is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Engine {
    /// The blob's stages run on the CPU.
    #[default]
    Execute,
    /// A fixed function of graph and input, at almost no cost.
    Hash,
}

impl Engine {
    /// `execute` or `hash`, as reports and flags have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Engine::Execute => "execute",
            Engine::Hash => "hash",
        }
    }
}

/// How long things take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Timing {
    /// As the profile's model says.
    #[default]
    Model,
    /// No waiting.
    Zero,
}

impl Timing {
    /// `model` or `zero`, as reports and flags have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Timing::Model => "model",
            Timing::Zero => "zero",
        }
    }
}

/// Settings of in-process virtual sticks.
#[derive(Clone, Debug)]
pub struct RackOptions {
    /// How many sticks.
    pub sticks: usize,
    /// Name of a built-in profile, or a path.
    pub profile: String,
    /// What outputs are made of.
    pub engine: Engine,
    /// How long things take.
    pub timing: Timing,
    /// Seed of everything that is drawn by chance.
    pub seed: u64,
    /// What goes wrong, and when.
    pub faults: Option<FaultPlan>,
}

impl Default for RackOptions {
    fn default() -> Self {
        RackOptions {
            sticks: 1,
            profile: "ncs2".into(),
            engine: Engine::Execute,
            timing: Timing::Model,
            seed: 0,
            faults: None,
        }
    }
}

/// What the model knows about itself.
#[derive(Clone, Debug)]
pub struct VirtualStats {
    /// Inferences run.
    pub inferences: u64,
    /// Model time of the executors.
    pub busy: Duration,
    /// False when the CPU was slower than the model, so that figures are not those of the model.
    pub paced: bool,
}
