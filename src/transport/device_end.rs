//! The stick's side of a transport, and the rules by which a bulk IN endpoint fills posted buffers.

use super::pipe::PipeDevice;
use super::socket_device::SocketDevice;
use super::{Transfer, TransferError, WaitOn};

/// The stick's end of a pipe or of a socket, so that one server loop serves either. See [`PipeDevice`] for what each
/// call does.
pub enum DeviceEnd {
    /// In memory.
    Pipe(PipeDevice),
    /// On a Unix socket.
    Socket(Box<SocketDevice>),
}

macro_rules! each {
    ($self:expr, $end:ident => $call:expr) => {
        match $self {
            DeviceEnd::Pipe($end) => $call,
            DeviceEnd::Socket($end) => $call,
        }
    };
}

impl DeviceEnd {
    /// See [`PipeDevice::next_out`].
    pub fn next_out(&mut self) -> Option<Transfer> {
        each!(self, end => end.next_out())
    }

    /// See [`PipeDevice::next_in`].
    pub fn next_in(&mut self) -> Option<Transfer> {
        each!(self, end => end.next_in())
    }

    /// See [`PipeDevice::in_capacity`].
    pub fn in_capacity(&self) -> usize {
        each!(self, end => end.in_capacity())
    }

    /// See [`PipeDevice::complete_out`].
    pub fn complete_out(&mut self, transfer: Transfer, result: Result<(), TransferError>) {
        each!(self, end => end.complete_out(transfer, result));
    }

    /// See [`PipeDevice::complete_in`].
    pub fn complete_in(&mut self, transfer: Transfer, actual: usize, result: Result<(), TransferError>) {
        each!(self, end => end.complete_in(transfer, actual, result));
    }

    /// See [`PipeDevice::take_recall`].
    pub fn take_recall(&mut self) -> bool {
        each!(self, end => end.take_recall())
    }

    /// See [`PipeDevice::disconnect`].
    pub fn disconnect(&mut self) {
        each!(self, end => end.disconnect());
    }

    /// See [`PipeDevice::is_closed`].
    pub fn is_closed(&self) -> bool {
        each!(self, end => end.is_closed())
    }

    /// See [`PipeDevice::arm`].
    pub fn arm(&mut self, wants_in: bool) -> bool {
        each!(self, end => end.arm(wants_in))
    }

    /// See [`PipeDevice::wait_on`].
    pub fn wait_on(&self) -> Option<WaitOn<'_>> {
        each!(self, end => end.wait_on())
    }
}

impl From<PipeDevice> for DeviceEnd {
    fn from(end: PipeDevice) -> Self {
        DeviceEnd::Pipe(end)
    }
}

impl From<SocketDevice> for DeviceEnd {
    fn from(end: SocketDevice) -> Self {
        DeviceEnd::Socket(Box::new(end))
    }
}

/// Sends a device's messages into posted IN transfers packet by packet, as a bulk endpoint does: a short packet ends
/// the transfer, a full buffer ends it, a message that is a multiple of the packet size and ends before the buffer is
/// full leaves the transfer open (unless a zero-length packet follows), and a packet that does not fit is
/// [`TransferError::Overflow`] and lost.
#[derive(Debug)]
pub struct InWriter {
    max_packet: usize,
    open: Option<(Transfer, usize)>,
    /// The message was written whole, its zero-length packet waits for a buffer.
    owes_zlp: bool,
}

impl InWriter {
    /// For an endpoint of this packet size in bytes (1024, 512).
    pub fn new(max_packet: usize) -> Self {
        InWriter { max_packet: max_packet.max(1), open: None, owes_zlp: false }
    }

    /// Writes as much of one device transfer as posted buffers take; returns the bytes consumed, less than
    /// `message.len()` when the host has no more buffers now (NAK). Call again with the rest. `zlp` ends a
    /// message of whole packets by an empty one; an empty message with `zlp` is such a packet alone.
    pub fn write(&mut self, end: &mut DeviceEnd, message: &[u8], zlp: bool) -> usize {
        let mut consumed = 0;
        while consumed < message.len() {
            if self.owes_zlp && !self.flush(end) {
                return consumed;
            }
            let Some((mut transfer, filled)) = self.open.take().or_else(|| end.next_in().map(|t| (t, 0)))
            else {
                return consumed;
            };
            let rest = &message[consumed..];
            let space = transfer.range.len().saturating_sub(filled);
            // Whole packets that fit go in one copy; then either the buffer is full or the next packet decides.
            let whole = (space / self.max_packet * self.max_packet)
                .min(rest.len() / self.max_packet * self.max_packet);
            if whole > 0 {
                transfer.bytes_mut()[filled..filled + whole].copy_from_slice(&rest[..whole]);
                consumed += whole;
                if whole == space {
                    end.complete_in(transfer, filled + whole, Ok(()));
                } else {
                    self.open = Some((transfer, filled + whole));
                }
                continue;
            }
            // Either the message's short last packet, or a packet longer than the space.
            let packet = rest.len().min(self.max_packet);
            let fits = packet.min(space);
            transfer.bytes_mut()[filled..filled + fits].copy_from_slice(&rest[..fits]);
            consumed += packet;
            let result = if packet > space { Err(TransferError::Overflow) } else { Ok(()) };
            end.complete_in(transfer, filled + fits, result);
        }
        if zlp && message.len().is_multiple_of(self.max_packet) {
            self.owes_zlp = true;
            self.flush(end);
        }
        consumed
    }

    /// Sends an owed zero-length packet; true when none is owed any more.
    pub fn flush(&mut self, end: &mut DeviceEnd) -> bool {
        if self.owes_zlp {
            let Some((transfer, filled)) = self.open.take().or_else(|| end.next_in().map(|t| (t, 0))) else {
                return false;
            };
            self.owes_zlp = false;
            end.complete_in(transfer, filled, Ok(()));
        }
        true
    }

    /// The host recalled its transfers, or the endpoint failed: gives back the open one with `reason`.
    pub fn release(&mut self, end: &mut DeviceEnd, reason: TransferError) {
        if let Some((transfer, filled)) = self.open.take() {
            end.complete_in(transfer, filled, Err(reason));
        }
        self.owes_zlp = false;
    }
}
