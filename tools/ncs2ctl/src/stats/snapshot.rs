//! `ncs2.stats/1` as the tool reads it. What it does not show it does not name.

use serde::Deserialize;

use crate::failure::one_line;

/// What one fleet counted so far.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct Snapshot {
    /// Any of the sticks is virtual.
    pub simulated: bool,
    /// Whose fleet it is.
    pub process: Process,
    /// How work is shared out.
    pub policy: String,
    /// Since the fleet was opened.
    pub elapsed_s: f64,
    /// Requests answered.
    pub completed: u64,
    /// Of those, by what stands in for sticks.
    #[serde(default)]
    pub fallback: u64,
    /// Requests that ended in an error.
    pub failed: u64,
    /// Jobs that moved to another stick.
    pub retried: u64,
    /// Requests that wait for a stick.
    pub queued: u64,
    /// Caller's latency since the fleet was opened.
    pub latency_ms: Latency,
    /// What is loaded.
    pub graphs: Vec<Graph>,
    /// In the order of the fleet.
    pub sticks: Vec<Stick>,
}

/// A process.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Name of its program.
    pub name: String,
}

/// Milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[allow(missing_docs, reason = "quantiles")]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
}

/// A loaded graph.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Graph {
    /// Of the blob.
    pub name: String,
    /// Multiply-accumulates of an inference.
    pub macs: u64,
}

/// One stick.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct Stick {
    /// Name.
    pub id: String,
    /// A virtual one.
    pub simulated: bool,
    /// Of a virtual one.
    pub profile: Option<String>,
    /// Whether a virtual one has kept its model's pace.
    #[serde(default)]
    pub paced: Option<bool>,
    /// `starting`, `ready`, `lost`, `closed`.
    pub state: String,
    /// Why it is lost.
    pub failure: Option<String>,
    /// The stick's own memory.
    pub memory_bytes: Option<u64>,
    /// Of that.
    pub used_memory_bytes: Option<u64>,
    /// When last asked.
    pub temperature_c: Option<f64>,
    /// When last asked.
    pub throttle_level: Option<u8>,
    /// Inferences answered.
    pub completed: u64,
    /// Inferences that ended in an error.
    pub failed: u64,
    /// Inferences on it now.
    pub in_flight: u32,
    /// Time with at least one.
    pub busy_s: f64,
    /// Sum over time of those in flight.
    pub depth_s: f64,
    /// Times it was reset or connected again.
    pub resets: u32,
    /// Host buffers.
    pub pool: Pool,
    /// What the scheduler knows of it; nothing before it has opened.
    #[serde(default)]
    pub schedule: Option<Schedule>,
}

/// What the scheduler knows of a stick.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct Schedule {
    /// It is kept from work to cool down.
    pub resting: bool,
    /// Graphs on the stick.
    pub cache: Cache,
}

/// Graphs kept on a stick.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub struct Cache {
    /// Requests whose graph was there.
    pub hits: u64,
    /// Requests whose graph was not.
    pub misses: u64,
}

/// Host buffers of one stick.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[allow(missing_docs, reason = "see ncs2's PoolStats")]
pub struct Pool {
    pub in_use_bytes: u64,
    pub idle_bytes: u64,
    pub hits: u64,
    pub misses: u64,
}

impl Snapshot {
    /// From the document of this process or of another. What another process says is shown on a terminal: control
    /// characters are taken out.
    pub fn read(document: &serde_json::Value) -> serde_json::Result<Self> {
        let mut read = Snapshot::deserialize(document)?;
        let clean = |text: &mut String| *text = one_line(text);
        clean(&mut read.process.name);
        clean(&mut read.policy);
        read.graphs.iter_mut().for_each(|graph| clean(&mut graph.name));
        for stick in &mut read.sticks {
            clean(&mut stick.id);
            clean(&mut stick.state);
            stick.profile.iter_mut().chain(&mut stick.failure).for_each(clean);
        }
        Ok(read)
    }
}
