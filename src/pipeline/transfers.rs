//! Transfers of one stick: what each buffer on its way is, small recycled buffers, and the posted IN transfer.

use std::collections::VecDeque;
use std::time::Duration;

use super::jobs::slot_index;
use super::overdue::{NUMBER_BITS, Number, Overdue};
use super::{End, Failure, Pipeline};
use crate::clock::Instant;
use crate::pool::{Pool, Use};
use crate::stick::{InlineBytes, ReadWant, SendPayload, StickError, Transmit};
// One by one: tests/layers.rs reads what of transport is used here.
use crate::transport::Buffer;
use crate::transport::Completion;
use crate::transport::Direction;
use crate::transport::Rejected;
use crate::transport::Transfer;
use crate::transport::TransferError;
use crate::wire::HEADER_LEN;

/// Holds a header or an inline packet.
const SMALL_BYTES: usize =
    if InlineBytes::CAPACITY > HEADER_LEN { InlineBytes::CAPACITY } else { HEADER_LEN };

/// IN transfers of one packet that are posted ahead, so that a burst of answers is taken in one turn. Outputs that begin
/// in them are copied out, so there are fewer where outputs are long: a tensor of [`SHORT_OUTPUT`] bytes or less costs
/// less to copy than another turn, of a longer one these packets are a small part.
const AHEAD: usize = 16;
const AHEAD_OF_LONG: usize = 4;
const SHORT_OUTPUT: usize = 4096;

/// When to try a transfer again that the transport had no memory for, if no completion says so first.
const BUSY_RETRY: Duration = Duration::from_millis(1);

/// What a transfer's buffer is; travels in its token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cargo {
    /// A small buffer.
    Small,
    /// The blob.
    Blob,
    /// The input of the job in this slot.
    Input(u32),
    /// One packet of scratch memory.
    Scratch,
    /// The output of the job in this slot.
    Output(u32),
}

impl Cargo {
    fn token(self) -> u64 {
        let (kind, index) = match self {
            Cargo::Small => (0, 0),
            Cargo::Blob => (1, 0),
            Cargo::Input(index) => (2, index),
            Cargo::Scratch => (3, 0),
            Cargo::Output(index) => (4, index),
        };
        kind << 32 | u64::from(index)
    }

    fn of(token: u64) -> Self {
        let index = (token & 0xFFFF_FFFF) as u32;
        match (token >> 32) & 0xF {
            1 => Cargo::Blob,
            2 => Cargo::Input(index),
            3 => Cargo::Scratch,
            4 => Cargo::Output(index),
            _ => Cargo::Small,
        }
    }
}

/// An OUT transfer's number stands above its cargo.
const NUMBER_SHIFT: u32 = u64::BITS - NUMBER_BITS;

/// Buffers and queues of the transfers.
pub(super) struct Transfers {
    /// OUT transfers under way.
    overdue: Overdue,
    /// With the transport.
    pub(super) outstanding: usize,
    /// Set while the transport has no memory: when to try again.
    pub(super) blocked_until: Option<Instant>,
    /// To be submitted before anything else, in order.
    backlog: VecDeque<Transfer>,
    /// IN transfers that are posted into an output, one at most, and into scratch memory.
    tensor_posted: bool,
    scratch_posted: usize,
    /// One packet long each, where headers and small packets are read to.
    scratch: Vec<Buffer>,
    /// Bytes that came behind a tensor.
    spill: Vec<u8>,
    small: Vec<Buffer>,
    packet: usize,
}

impl Transfers {
    pub(super) fn new(max_packet_bytes: usize, limit: Duration) -> Self {
        let packet = max_packet_bytes.max(HEADER_LEN);
        Transfers {
            overdue: Overdue::new(limit),
            outstanding: 0,
            blocked_until: None,
            backlog: VecDeque::with_capacity(8),
            tensor_posted: false,
            scratch_posted: 0,
            scratch: Vec::with_capacity(AHEAD),
            spill: Vec::with_capacity(packet),
            small: Vec::with_capacity(64),
            packet,
        }
    }

    pub(super) fn unblock(&mut self, now: Instant) {
        self.blocked_until = self.blocked_until.filter(|until| *until > now);
    }

    /// When a transfer to the stick is overdue, and what the limit was.
    pub(super) fn overdue(&self) -> Option<(Instant, Duration)> {
        Some((self.overdue.deadline()?, self.overdue.limit()))
    }

    fn hand_out(&mut self, transfer: &mut Transfer, now: Instant) {
        self.outstanding += 1;
        if transfer.direction == Direction::Out {
            let number = self.overdue.sent(transfer.range.len(), now);
            transfer.token = transfer.token & !(u64::MAX << NUMBER_SHIFT) | u64::from(number) << NUMBER_SHIFT;
        }
    }

    fn take_back(&mut self, transfer: &Transfer, now: Instant) {
        // After `handle_abandon` late ones may come; their memory is accounted for already.
        self.outstanding = self.outstanding.saturating_sub(1);
        if transfer.direction == Direction::Out {
            self.overdue.ended((transfer.token >> NUMBER_SHIFT) as Number, now);
        }
    }

    pub(super) fn take_unsent(&mut self) -> Option<Transfer> {
        self.backlog.pop_front()
    }

    fn small_transfer(&mut self, pool: &Pool, bytes: &[u8]) -> Transfer {
        let mut buffer = self.small.pop().unwrap_or_else(|| pool.uncounted(SMALL_BYTES, Use::Input));
        if let Some(to) = buffer.as_mut_slice() {
            to[..bytes.len()].copy_from_slice(bytes);
        }
        Transfer { direction: Direction::Out, buffer, range: 0..bytes.len(), token: Cargo::Small.token() }
    }
}

impl<T> Pipeline<T> {
    /// The next transfer to submit.
    pub fn poll_transfer(&mut self, now: Instant) -> Option<Transfer> {
        if self.end.is_some() || self.transfers.blocked_until.is_some() {
            return None;
        }
        let mut next = match self.transfers.backlog.pop_front() {
            Some(transfer) => transfer,
            None => self.next_in(now).or_else(|| self.next_out(now))?,
        };
        self.transfers.hand_out(&mut next, now);
        Some(next)
    }

    /// Posts to where the next bytes belong: scratch memory, or the rest of a tensor. The latter only when nothing else is
    /// posted, since only then is it known where in the tensor the transfer will begin.
    fn next_in(&mut self, now: Instant) -> Option<Transfer> {
        let packet = self.transfers.packet;
        let Transfers { scratch_posted, tensor_posted, .. } = self.transfers;
        if let ReadWant::Tensor { missing, .. } = self.stick.read_want()
            && scratch_posted > 0
            && !tensor_posted
            && missing > SHORT_OUTPUT.max(scratch_posted * packet)
        {
            // What is posted takes its part; then the rest goes where it belongs.
            return None;
        }
        if scratch_posted == 0
            && !tensor_posted
            && let ReadWant::Tensor { job, offset, missing } = self.stick.read_want()
            && missing > 0
            && let Some(slot) = self.slots.find(job)
        {
            slot.first_byte.get_or_insert(now);
            let end = offset + missing.next_multiple_of(packet);
            if let Some(output) = slot.output.as_mut().filter(|o| !o.is_lent() && end <= o.len())
                && let Some(buffer) = output.lend()
            {
                self.transfers.tensor_posted = true;
                let token = Cargo::Output(slot_index(job)).token();
                return Some(Transfer { direction: Direction::In, buffer, range: offset..end, token });
            }
        }
        let ahead = if self.longest_output() > SHORT_OUTPUT { AHEAD_OF_LONG } else { AHEAD };
        if self.transfers.scratch_posted >= ahead {
            return None;
        }
        let scratch = self.transfers.scratch.pop();
        let buffer = scratch.unwrap_or_else(|| self.pool.uncounted(packet, Use::Output));
        self.transfers.scratch_posted += 1;
        Some(Transfer { direction: Direction::In, buffer, range: 0..packet, token: Cargo::Scratch.token() })
    }

    fn next_out(&mut self, now: Instant) -> Option<Transfer> {
        let Transmit { header, payload } = self.stick.poll_transmit(now)?;
        let first = self.transfers.small_transfer(&self.pool, &header);
        let second = match payload {
            SendPayload::None => return Some(first),
            SendPayload::Inline(bytes) => Some(self.transfers.small_transfer(&self.pool, bytes.as_slice())),
            SendPayload::Tensor(job) => self.slots.find(job).and_then(|slot| {
                let buffer = slot.job.input.lend()?;
                let range = 0..slot.job.input.len();
                let token = Cargo::Input(slot_index(job)).token();
                Some(Transfer { direction: Direction::Out, buffer, range, token })
            }),
            SendPayload::Blob(key) => self.blob_of(key).map(|blob| {
                let buffer = Buffer::shared(blob);
                let range = 0..buffer.len();
                Transfer { direction: Direction::Out, buffer, range, token: Cargo::Blob.token() }
            }),
        };
        match second {
            Some(second) => {
                self.transfers.backlog.push_back(second);
                Some(first)
            }
            None => {
                // A header without its payload would end the link's sense: send neither.
                self.take_buffer_back(first);
                let error = StickError::Invalid("the stick asked for bytes that the pipeline does not have");
                self.abort(Failure::Stick(error), now);
                None
            }
        }
    }

    /// The transport did not accept a transfer.
    pub fn handle_rejected(&mut self, rejected: Rejected, now: Instant) {
        self.transfers.take_back(&rejected.transfer, now);
        if rejected.reason == TransferError::Busy && self.end.is_none() {
            // In front, to keep the order; tried again after a completion, or soon.
            self.transfers.backlog.push_front(rejected.transfer);
            self.transfers.blocked_until = Some(now + BUSY_RETRY);
            return;
        }
        let direction = rejected.transfer.direction;
        self.take_buffer_back(rejected.transfer);
        self.transfer_failed(direction, rejected.reason, now);
    }

    /// A transfer has finished.
    pub fn handle_completion(&mut self, completion: Completion, now: Instant) {
        let Completion { transfer, actual, result } = completion;
        self.transfers.take_back(&transfer, now);
        self.transfers.blocked_until = None;
        let Transfer { direction, range, token, .. } = &transfer;
        let (direction, range, cargo) = (*direction, range.clone(), Cargo::of(*token));
        let asked = range.len();
        self.take_buffer_back(transfer);
        match result {
            Ok(()) if self.end.is_some() => {}
            Ok(()) => match cargo {
                Cargo::Scratch => self.read_scratch(actual.min(asked), now),
                Cargo::Output(index) => self.read_output(index, range.start, actual.min(asked), now),
                _ if actual < asked => self.transfer_failed(direction, TransferError::Io(0), now),
                Cargo::Input(_) => self.deliver(),
                _ => {}
            },
            Err(error) => self.transfer_failed(direction, error, now),
        }
        self.settle(now);
    }

    fn transfer_failed(&mut self, direction: Direction, error: TransferError, now: Instant) {
        if self.end.is_none() {
            // Leaving the bus is what a closed stick does; the engine knows which it is.
            self.stick.handle_link_down(now);
            let mut closed = false;
            while let Some(event) = self.stick.poll_event() {
                use crate::stick::StickEvent::{Closed, Failed};
                match event {
                    Closed => closed = true,
                    Failed(_) => {}
                    other => self.handle_stick_event(other, now),
                }
            }
            let end = if closed { End::Closed } else { End::Failed(Failure::Transfer { direction, error }) };
            self.finish(end);
        }
        self.settle(now);
    }

    /// Puts a transfer's buffer to where it came from.
    pub(super) fn take_buffer_back(&mut self, transfer: Transfer) {
        let Transfer { direction, buffer, token, .. } = transfer;
        match (direction, Cargo::of(token)) {
            (Direction::In, Cargo::Scratch) => self.transfers.scratch_posted -= 1,
            (Direction::In, _) => self.transfers.tensor_posted = false,
            _ => {}
        }
        // A transport that lost the buffer gives an empty one: it must not come into use again.
        match Cargo::of(token) {
            Cargo::Small if buffer.len() == SMALL_BYTES => self.transfers.small.push(buffer),
            Cargo::Scratch if buffer.len() == self.transfers.packet => self.transfers.scratch.push(buffer),
            Cargo::Input(index) => {
                if let Some(slot) = self.slots.at(index) {
                    slot.job.input.restore(buffer);
                }
            }
            Cargo::Output(index) => {
                if let Some(output) = self.slots.at(index).and_then(|s| s.output.as_mut()) {
                    output.restore(buffer);
                }
            }
            _ => {}
        }
    }

    fn read_scratch(&mut self, bytes: usize, now: Instant) {
        // The one that has just come back.
        if let Some(scratch) = self.transfers.scratch.pop() {
            self.read(&scratch.as_slice()[..bytes], now);
            self.transfers.scratch.push(scratch);
        }
    }

    /// `bytes` lie in the job's output buffer from `offset` on; those beyond the tensor's end belong to what follows.
    fn read_output(&mut self, index: u32, offset: usize, bytes: usize, now: Instant) {
        let ReadWant::Tensor { job, missing, .. } = self.stick.read_want() else {
            // The engine gave up on the tensor meanwhile; then it has failed and says so.
            return;
        };
        debug_assert_eq!(slot_index(job), index, "the posted transfer is for the tensor that is wanted");
        let own = bytes.min(missing);
        let mut spill = std::mem::take(&mut self.transfers.spill);
        spill.clear();
        if let Some(output) = self.slots.at(index).and_then(|s| s.output.as_ref()) {
            spill.extend_from_slice(output.as_slice().get(offset + own..offset + bytes).unwrap_or(&[]));
        }
        self.stick.handle_tensor_in(own, now);
        self.read(&spill, now);
        self.transfers.spill = spill;
    }

    /// Reads a run of the stream.
    fn read(&mut self, mut bytes: &[u8], now: Instant) {
        while !bytes.is_empty() && self.end.is_none() {
            let (ReadWant::Header { missing }
            | ReadWant::Packet { missing }
            | ReadWant::Tensor { missing, .. }) = self.stick.read_want();
            let (now_bytes, rest) = bytes.split_at(missing.min(bytes.len()));
            if now_bytes.is_empty() {
                let error = StickError::Invalid("bytes came where the protocol engine wanted none");
                self.abort(Failure::Stick(error), now);
                return;
            }
            match self.stick.read_want() {
                ReadWant::Tensor { job, offset, .. } => {
                    let Some(slot) = self.slots.find(job) else { return };
                    slot.first_byte.get_or_insert(now);
                    if let Some(output) = slot.output.as_mut()
                        && let Some(to) = output.as_mut_slice().get_mut(offset..offset + now_bytes.len())
                    {
                        to.copy_from_slice(now_bytes);
                    }
                    self.stick.handle_tensor_in(now_bytes.len(), now);
                }
                _ => self.stick.handle_in(now_bytes, now),
            }
            while let Some(event) = self.stick.poll_event() {
                self.handle_stick_event(event, now);
            }
            bytes = rest;
        }
    }
}
