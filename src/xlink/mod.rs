//! XLink without I/O: streams, credits, acks, releases, timers. Knows events, not what they carry.
//!
//! A [`Link`] is driven like its owner, the `stick` room:
//!
//! 1. [`Link::handle_in`] / [`Link::handle_element_in`] with received bytes, one [`LinkEvent`] at most per call;
//! 2. commands ([`Link::open_stream`], [`Link::write`], [`Link::release`], …) and [`Link::handle_timeout`];
//! 3. [`Link::poll_transmit`] until `None`;
//! 4. [`Link::take_fault`]: a link that met something the protocol does not allow says so once and is dead from then;
//! 5. wait, at most until [`Link::poll_timeout`].
//!
//! `P` is what the owner attaches to a write to name its payload (the bytes never come here), `T` its name for a
//! request, handed back with the answer. Nothing larger than [`MAX_PACKET_BYTES`] is ever buffered; queues are
//! bounded, and a stick that overfills them ends the link.

mod incoming;
mod link;
mod stream;

use std::time::Duration;

pub use link::{Link, LinkWant};
pub use stream::{Accept, MAX_PACKET_BYTES, MAX_PACKETS, MAX_STREAMS};

use crate::wire::{EventKind, Flags, HEADER_LEN, StreamId};

#[cfg(test)]
mod tests;

/// What happened on the link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkEvent<T> {
    /// The stick acknowledged the request that carried this tag.
    Answered(T),
    /// The stick refused a CREATE_STREAM. The stream is gone again.
    Refused(T, Flags),
    /// A small packet is complete: [`Link::take_packet`].
    Packet(StreamId),
    /// An element of this many bytes begins on a stream that accepts [`Accept::Element`].
    ElementBegun(StreamId, u32),
    /// The element is complete.
    ElementDone(StreamId),
    /// The stick released the oldest packet that we wrote on this stream.
    Released(StreamId),
}

/// Why a link died.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkFault<T> {
    /// No answer to a request, or no credit for a parked write, in time.
    Timeout {
        /// The request.
        kind: EventKind,
        /// Its tag.
        tag: Option<T>,
        /// How long it was waited for.
        after: Duration,
    },
    /// The stick answered without ack.
    Refused {
        /// The request.
        kind: EventKind,
        /// Its tag.
        tag: Option<T>,
        /// What it answered.
        flags: Flags,
    },
    /// Something that the protocol does not allow.
    Protocol(String),
}

/// A command that the link cannot take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkError {
    /// All 32 streams are in use.
    #[error("all streams of the link are in use")]
    StreamLimit,
    /// The stream is not open.
    #[error("no such stream")]
    NoSuchStream,
    /// Longer than the stream's whole credit: it could never be sent.
    #[error("longer than the stream's credit")]
    TooLong,
    /// No packet there to release.
    #[error("nothing to release")]
    NothingToRelease,
}

/// One thing to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outgoing<P, T> {
    /// 84 bytes.
    pub header: [u8; HEADER_LEN],
    /// What follows, for a write.
    pub payload: Option<P>,
    /// The request's tag; `None` for our answers.
    pub tag: Option<T>,
}
