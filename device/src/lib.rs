//! A virtual Neural Compute Stick 2: it boots, speaks the protocol, executes compiled graphs, takes time, heats up and
//! breaks. Everything that comes from it is `simulated`.

pub mod execute;
pub mod gemm;
pub mod hash;

use std::path::Path;
use std::time::Duration;

use ncs2::transport::Port;

/// What an output is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Engine {
    /// The blob's stages run on the CPU.
    #[default]
    Execute,
    /// A fixed function of graph and input, at almost no cost.
    Hash,
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
}

impl Default for RackOptions {
    fn default() -> Self {
        RackOptions {
            sticks: 1,
            profile: "ncs2".into(),
            engine: Engine::Execute,
            timing: Timing::Model,
            seed: 0,
        }
    }
}

/// Virtual sticks of this process, with the thread that they run on. They stop when it is dropped.
pub struct Rack {}

#[allow(unused_variables, missing_docs, reason = "contract; bodies by the device author")]
impl Rack {
    /// Fails on an unknown or bad profile.
    pub fn start(options: RackOptions) -> ncs2::Result<Rack> {
        unreachable!()
    }
    /// One port per stick, for [`ncs2::Fleet`]; `connect` boots the stick when it is unbooted.
    pub fn ports(&self) -> Vec<Port> {
        unreachable!()
    }
    pub fn stats(&self) -> Vec<VirtualStats> {
        unreachable!()
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

/// Unused until the profile loader exists.
#[doc(hidden)]
pub fn _profile(_path: &Path) {}
