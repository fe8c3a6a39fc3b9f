//! Moves transfers between a virtual stick and its end of a connection, on time.

use std::collections::VecDeque;

use ncs2::clock::Instant;
use ncs2::transport::{DeviceEnd, InWriter, Transfer, TransferError};

use crate::VirtualStick;

/// An OUT transfer that crosses the wire, or that the stick does not take yet.
struct Sent {
    transfer: Transfer,
    taken: usize,
    due: Instant,
}

/// The stick's end of one connection, whatever it is made of.
pub(crate) struct Carrier {
    end: DeviceEnd,
    writer: InWriter,
    out: VecDeque<Sent>,
}

impl Carrier {
    /// For a link with packets of `max_packet` bytes.
    pub(crate) fn new(end: DeviceEnd, max_packet: usize) -> Self {
        Carrier { end, writer: InWriter::new(max_packet), out: VecDeque::new() }
    }

    /// What says that the host did something.
    pub(crate) fn end(&self) -> &DeviceEnd {
        &self.end
    }

    /// The stick left the bus: every transfer goes back to the host.
    pub(crate) fn close(mut self) {
        self.end.disconnect();
        self.give_back(TransferError::Gone);
    }

    /// The host ended the connection.
    pub(crate) fn is_closed(&self) -> bool {
        self.end.is_closed()
    }

    /// Does all that can be done now; true when something moved.
    pub(crate) fn serve(&mut self, stick: &mut VirtualStick, now: Instant) -> bool {
        if self.end.take_recall() {
            self.give_back(TransferError::Cancelled);
        }
        let pulled = self.pull(stick, now);
        self.push(stick, now) | pulled
    }

    /// When [`Self::serve`] is due. A transfer that is due and not taken waits for a reader, not for time.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        self.out.front().map(|sent| sent.due).filter(|&due| due > now)
    }

    /// About to sleep: true when there is something to do first.
    pub(crate) fn arm(&mut self, stick: &VirtualStick, now: Instant) -> bool {
        self.end.arm(stick.poll_in(now).is_some())
    }

    fn give_back(&mut self, reason: TransferError) {
        for sent in self.out.drain(..) {
            self.end.complete_out(sent.transfer, Err(reason));
        }
        self.writer.release(&mut self.end, reason);
    }

    /// Host to stick.
    fn pull(&mut self, stick: &mut VirtualStick, now: Instant) -> bool {
        let identity = stick.identity();
        while let Some(transfer) = self.end.next_out() {
            let due = stick.out_arrival(transfer.range.len(), now);
            self.out.push_back(Sent { transfer, taken: 0, due });
        }
        let mut progress = false;
        while let Some(sent) = self.out.front_mut().filter(|sent| sent.due <= now) {
            if stick.identity() != identity {
                break;
            }
            let taken = stick.handle_out(&sent.transfer.bytes()[sent.taken..], now);
            sent.taken += taken;
            progress |= taken > 0;
            if sent.taken < sent.transfer.range.len() || stick.faults().hung {
                break;
            }
            if let Some(sent) = self.out.pop_front() {
                self.end.complete_out(sent.transfer, Ok(()));
                progress = true;
            }
        }
        progress
    }

    /// Stick to host.
    fn push(&mut self, stick: &mut VirtualStick, now: Instant) -> bool {
        let mut progress = false;
        while let Some(message) = stick.poll_in(now) {
            let empty = message.is_empty();
            let taken = self.writer.write(&mut self.end, message, empty);
            if taken == 0 && !empty {
                break;
            }
            stick.consume_in(taken);
            progress = true;
        }
        progress
    }
}
