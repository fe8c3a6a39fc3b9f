//! Settings of a stick's engine, and what its owner says of the graphs and jobs that it gives it.

use std::time::Duration;

use crate::wire::{PowerConfig, VERIFY_HEADER_LEN, WireVersion};

/// Order of what is sent (ARCHITECTURE section 6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Ordering {
    /// As the vendor's client: one graph command in flight per stick, each step waits for the one before.
    #[default]
    Vendor,
    /// Input, TRIGGER, acks and releases go out without waiting, inside the credits.
    Pipelined,
}

/// Settings of one stick's protocol engine.
#[derive(Clone, Debug)]
pub struct StickConfig {
    /// Wire variant of the firmware.
    pub version: WireVersion,
    /// Order of what is sent.
    pub ordering: Ordering,
    /// Power setting sent at open.
    pub power: PowerConfig,
    /// Watchdog ping period; `None` sends none (boot with the watchdog patch off, then).
    pub watchdog: Option<Duration>,
    /// Longest silence of the link while an answer from the link layer (ack, pong) is due.
    pub link_timeout: Duration,
    /// Longest wait for a command's reply or status; uploads get extra time by their size.
    pub command_timeout: Duration,
}

impl Default for StickConfig {
    fn default() -> Self {
        StickConfig {
            version: WireVersion::V1,
            ordering: Ordering::Vendor,
            power: PowerConfig::Full,
            watchdog: Some(Duration::from_secs(1)),
            link_timeout: Duration::from_secs(2),
            command_timeout: Duration::from_secs(5),
        }
    }
}

/// The owner's name for a graph on this stick. Chosen by the owner, unique on the stick until unloaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct GraphKey(pub u64);

/// The owner's name for one inference. Unique among those in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct JobToken(pub u64);

/// What the stick needs to know of a blob to load it; the bytes themselves stay with the owner.
#[derive(Clone, Debug)]
pub struct LoadRequest {
    /// The owner's name.
    pub key: GraphKey,
    /// The blob's first bytes, sent by VERIFY.
    pub header: [u8; VERIFY_HEADER_LEN],
    /// Size of the whole blob.
    pub blob_bytes: u32,
    /// Bytes of an input FIFO element.
    pub input_bytes: u32,
    /// Bytes of an output FIFO element.
    pub output_bytes: u32,
    /// Stages, for the length of timing data.
    pub stages: u32,
    /// Executors (throughput streams), 1 to 3.
    pub executors: u32,
    /// Elements of each FIFO: the most inferences in flight. The vendor uses 2 × executors.
    pub fifo_elements: u32,
}
