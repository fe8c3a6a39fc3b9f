//! The state of one stick, without I/O: bring-up, graphs, FIFOs, inferences in flight, telemetry.
//!
//! Inputs are `handle_*`, outputs are `poll_*`, time is an argument. One turn of its owner:
//!
//! 1. for each finished IN transfer: consume its bytes by [`Stick::read_want`] / [`Stick::handle_in`] /
//!    [`Stick::handle_tensor_in`];
//! 2. commands ([`Stick::load`], [`Stick::infer`], …) and [`Stick::handle_timeout`];
//! 3. [`Stick::poll_transmit`] until `None`: each becomes one or two OUT transfers, in this order;
//! 4. [`Stick::poll_event`] until `None`;
//! 5. wait, at most until [`Stick::poll_timeout`].

use std::time::Duration;

use crate::clock::Instant;
use crate::wire::{
    Capabilities, HEADER_LEN, PowerConfig, Status, ThermalStats, VERIFY_HEADER_LEN, WireVersion,
};

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

/// Bytes to send after a header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SendPayload {
    /// Header only.
    None,
    /// A command or other small packet, at most 132 bytes.
    Inline(InlineBytes),
    /// The input tensor of this job, whole.
    Tensor(JobToken),
    /// The blob of this graph, whole.
    Blob(GraphKey),
}

/// A small packet by value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InlineBytes {
    bytes: [u8; Self::CAPACITY],
    len: u8,
}

impl InlineBytes {
    /// Longest packet that travels inline: the VERIFY header.
    pub const CAPACITY: usize = VERIFY_HEADER_LEN;

    /// Copies `bytes`; `None` when they are longer than [`Self::CAPACITY`].
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut inline = InlineBytes { bytes: [0; Self::CAPACITY], len: u8::try_from(bytes.len()).ok()? };
        inline.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(inline)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for InlineBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x?}", self.as_slice())
    }
}

/// One thing to send: a header and, in a transfer of its own, a payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transmit {
    /// 84 bytes.
    pub header: [u8; HEADER_LEN],
    /// What follows.
    pub payload: SendPayload,
}

/// What the next bytes from the stick are, so that the owner can choose where to read them to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadWant {
    /// The rest of an event header.
    Header {
        /// Bytes until it is complete.
        missing: usize,
    },
    /// The rest of a small packet, or of one to be thrown away: give it to [`Stick::handle_in`].
    Packet {
        /// Bytes until it is complete.
        missing: usize,
    },
    /// The rest of this job's output: read it into the job's buffer at `offset`, then [`Stick::handle_tensor_in`].
    Tensor {
        /// Whose output.
        job: JobToken,
        /// Bytes of it that have come.
        offset: usize,
        /// Bytes until it is complete.
        missing: usize,
    },
}

/// What happened.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum StickEvent {
    /// Ready for commands.
    Opened(Capabilities),
    /// The graph is on the stick and its FIFOs are allocated.
    Loaded(GraphKey),
    /// The graph was refused; the stick goes on. Its memory is given back.
    LoadFailed(GraphKey, StickError),
    /// The graph and its FIFOs are gone.
    Unloaded(GraphKey),
    /// The stick accepted this job: it is queued on its executor.
    Triggered(JobToken),
    /// The stick has released this job's input element.
    InputReleased(JobToken),
    /// This job's output is complete in the owner's buffer. It ends the job.
    Done(JobToken),
    /// This job ended without an answer, and its graph needs no repair.
    Refused(JobToken, StickError),
    /// Answer to [`Stick::request_thermal`].
    Thermal(ThermalStats),
    /// Answer to [`Stick::request_used_memory`]: bytes.
    UsedMemory(u32),
    /// Answer to [`Stick::request_timing`]: milliseconds per stage, then receive time, then total.
    Timing(GraphKey, Vec<f32>),
    /// Answer to [`Stick::request_debug`].
    Debug(GraphKey, String),
    /// Everything is closed and RESET was sent; the stick leaves the bus now.
    Closed,
    /// The epoch or the link ended. Nothing of it is delivered any more: every job in flight is lost, buffers may be
    /// taken back once their transfers are reaped, and the stick must be reset before it works again.
    Failed(StickError),
}

/// Why a command or the link failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StickError {
    /// The stick refused a command.
    #[error("{step}: the stick answered {status:?} ({})", status.code())]
    Status {
        /// Which command.
        step: &'static str,
        /// Its answer.
        status: Status,
    },
    /// No answer in time.
    #[error("{step}: no answer within {after:?}")]
    Timeout {
        /// What was waited for.
        step: &'static str,
        /// How long.
        after: Duration,
    },
    /// Something that the protocol does not allow; what came next would be guesswork.
    #[error("{step}: {problem}")]
    Protocol {
        /// Where.
        step: &'static str,
        /// What.
        problem: String,
    },
    /// The stick has no room: by its capabilities, or because a stream was refused.
    #[error("{step}: out of memory on the stick")]
    OutOfMemory {
        /// Where.
        step: &'static str,
    },
    /// The owner asked for something that this state does not allow.
    #[error("{0}")]
    Invalid(&'static str),
    /// As many inferences in flight as the FIFO holds; try again after a `Done`.
    #[error("the graph's FIFO is full")]
    Full,
}

/// Protocol engine of one stick.
#[derive(Debug)]
pub struct Stick {
    _config: StickConfig,
}

#[allow(unused_variables, missing_docs, reason = "contract; bodies by the stick author")]
impl Stick {
    /// A stick that was just connected. Nothing is sent before [`Stick::open`].
    pub fn new(config: StickConfig) -> Self {
        Stick { _config: config }
    }
    /// PING, monitors, capabilities, power: ends in `Opened` or `Failed`.
    pub fn open(&mut self, now: Instant) {
        unreachable!()
    }
    /// VERIFY, ALLOCATE, ALLOCATION_VERIFY, two FIFOs: ends in `Loaded` or `LoadFailed`. Loads may overlap inferences.
    pub fn load(&mut self, request: LoadRequest, now: Instant) -> Result<(), StickError> {
        unreachable!()
    }
    /// Ends in `Unloaded`. Jobs in flight on it are completed first.
    pub fn unload(&mut self, key: GraphKey, now: Instant) -> Result<(), StickError> {
        unreachable!()
    }
    /// True when [`Stick::infer`] would accept a job now.
    pub fn can_infer(&self, key: GraphKey) -> bool {
        unreachable!()
    }
    /// Sends the job's input and triggers. `deadline`: when the output must be there, else the epoch ends.
    /// [`StickError::Full`] when as many jobs as FIFO elements are in flight.
    pub fn infer(
        &mut self,
        key: GraphKey,
        job: JobToken,
        deadline: Instant,
        now: Instant,
    ) -> Result<(), StickError> {
        unreachable!()
    }
    pub fn request_thermal(&mut self, now: Instant) {
        unreachable!()
    }
    pub fn request_used_memory(&mut self, now: Instant) {
        unreachable!()
    }
    pub fn request_timing(&mut self, key: GraphKey, now: Instant) -> Result<(), StickError> {
        unreachable!()
    }
    pub fn request_debug(&mut self, key: GraphKey, now: Instant) -> Result<(), StickError> {
        unreachable!()
    }
    /// Unloads everything, closes the streams, sends RESET: ends in `Closed` (or `Failed` by its deadline).
    pub fn close(&mut self, now: Instant) {
        unreachable!()
    }
    /// What the next bytes are.
    pub fn read_want(&self) -> ReadWant {
        unreachable!()
    }
    /// Bytes of a header or packet, at most as many as `read_want` says are missing.
    pub fn handle_in(&mut self, bytes: &[u8], now: Instant) {
        unreachable!()
    }
    /// `bytes` more bytes of the current tensor lie in the job's buffer.
    pub fn handle_tensor_in(&mut self, bytes: usize, now: Instant) {
        unreachable!()
    }
    /// The transport failed or the stick left the bus.
    pub fn handle_link_down(&mut self, now: Instant) {
        unreachable!()
    }
    /// Call when `now` has reached [`Stick::poll_timeout`]; harmless at other times.
    pub fn handle_timeout(&mut self, now: Instant) {
        unreachable!()
    }
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        unreachable!()
    }
    pub fn poll_event(&mut self) -> Option<StickEvent> {
        unreachable!()
    }
    pub fn poll_timeout(&self) -> Option<Instant> {
        unreachable!()
    }
}
