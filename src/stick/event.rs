//! What a stick's engine hands out: transmissions, wants, events, errors.

use std::time::Duration;

use super::config::{GraphKey, JobToken};
use crate::wire::{Capabilities, HEADER_LEN, Status, ThermalStats, VERIFY_HEADER_LEN};

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
    /// The rest of a small packet, or of one to be thrown away: give it to [`Stick::handle_in`](super::Stick::handle_in).
    Packet {
        /// Bytes until it is complete.
        missing: usize,
    },
    /// The rest of this job's output: read it into the job's buffer at `offset`, then [`Stick::handle_tensor_in`](super::Stick::handle_tensor_in).
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
    /// Answer to [`Stick::request_thermal`](super::Stick::request_thermal).
    Thermal(ThermalStats),
    /// Answer to [`Stick::request_used_memory`](super::Stick::request_used_memory): bytes.
    UsedMemory(u32),
    /// Answer to [`Stick::request_timing`](super::Stick::request_timing): milliseconds per stage, then receive time, then total.
    Timing(GraphKey, Vec<f32>),
    /// Answer to [`Stick::request_debug`](super::Stick::request_debug).
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
    /// The transport failed or the stick left the bus.
    #[error("the stick left the bus")]
    Gone,
    /// As many inferences in flight as the FIFO holds; try again after a `Done`.
    #[error("the graph's FIFO is full")]
    Full,
}
