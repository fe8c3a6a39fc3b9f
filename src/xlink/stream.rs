//! One stream of a link: its credit, its unreleased packets in both directions, its parked writes.

use std::collections::VecDeque;

use crate::clock::Instant;
use crate::wire::{StreamId, StreamName};

/// Unreleased packets that one direction of a stream may hold.
pub const MAX_PACKETS: usize = 64;
/// Streams of one link.
pub const MAX_STREAMS: usize = 32;
/// Longest packet that the link buffers. Longer ones must be elements, which go to the owner's memory.
pub const MAX_PACKET_BYTES: u32 = 4096;

/// What the stick may write on a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accept {
    /// Nothing: a write is a fault.
    Nothing,
    /// Packets up to [`MAX_PACKET_BYTES`], buffered by the link.
    Packets,
    /// Elements of any size, received by the owner.
    Element,
    /// Packets up to [`MAX_PACKET_BYTES`], acknowledged, released and thrown away.
    Discard,
}

/// Sizes of unreleased packets, oldest first.
#[derive(Debug)]
pub(super) struct Ring {
    sizes: [u32; MAX_PACKETS],
    first: usize,
    len: usize,
    bytes: u64,
}

impl Ring {
    pub(super) fn new() -> Self {
        Ring { sizes: [0; MAX_PACKETS], first: 0, len: 0, bytes: 0 }
    }

    /// False when it is full.
    pub(super) fn push(&mut self, size: u32) -> bool {
        if self.len == MAX_PACKETS {
            return false;
        }
        self.sizes[(self.first + self.len) % MAX_PACKETS] = size;
        self.len += 1;
        self.bytes += u64::from(size);
        true
    }

    pub(super) fn front(&self) -> Option<u32> {
        (self.len > 0).then(|| self.sizes[self.first])
    }

    pub(super) fn pop(&mut self) -> Option<u32> {
        let size = self.front()?;
        self.first = (self.first + 1) % MAX_PACKETS;
        self.len -= 1;
        self.bytes -= u64::from(size);
        Some(size)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A write that waits for credit.
#[derive(Debug)]
pub(super) struct Parked<P, T> {
    pub(super) size: u32,
    pub(super) payload: P,
    pub(super) tag: Option<T>,
    pub(super) since: Instant,
    pub(super) deadline: Instant,
}

/// Our side of a stream. The stick's side is [`Stream::device_open`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// CREATE_STREAM asked, not answered.
    Opening,
    Open,
    /// CLOSE_STREAM asked for, or sent.
    Closing,
    /// Only the stick has it open.
    Closed,
}

/// A CLOSE_STREAM that waits until the stick has released all that we wrote.
#[derive(Debug)]
pub(super) struct PendingClose<T> {
    pub(super) tag: Option<T>,
    pub(super) since: Instant,
    pub(super) deadline: Instant,
}

#[derive(Debug)]
pub(super) struct Stream<P, T> {
    pub(super) id: StreamId,
    pub(super) name: StreamName,
    pub(super) side: Side,
    pub(super) device_open: bool,
    pub(super) accept: Accept,
    credit: u64,
    pub(super) sent: Ring,
    pub(super) received: Ring,
    pub(super) parked: VecDeque<Parked<P, T>>,
    pub(super) close: Option<PendingClose<T>>,
}

impl<P, T> Stream<P, T> {
    pub(super) fn new(id: StreamId, name: StreamName, credit: u32, accept: Accept, side: Side) -> Self {
        Stream {
            id,
            name,
            side,
            device_open: false,
            accept,
            credit: u64::from(credit),
            sent: Ring::new(),
            received: Ring::new(),
            parked: VecDeque::new(),
            close: None,
        }
    }

    /// True when a write of this size could ever be sent.
    pub(super) fn could_hold(&self, size: u32) -> bool {
        u64::from(size) <= self.credit
    }

    /// Takes `size` bytes and one packet of credit, if there is as much.
    pub(super) fn take_credit(&mut self, size: u32) -> bool {
        self.sent.bytes + u64::from(size) <= self.credit && self.sent.push(size)
    }
}
