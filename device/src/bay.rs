//! A virtual stick and its end of a connection: moves transfers between the two, on time.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use ncs2::clock::Instant;
use ncs2::transport::{DeviceEnd, InWriter, PipeDevice, Transfer, TransferError};

use crate::{BusEvent, VirtualStick};

/// An OUT transfer that crosses the wire, or that the stick does not take yet.
struct Sent {
    transfer: Transfer,
    taken: usize,
    due: Instant,
}

struct Wire {
    end: DeviceEnd,
    writer: InWriter,
    out: VecDeque<Sent>,
}

/// The thread that serves the bays, once it runs.
pub(crate) type ServerThread = Arc<OnceLock<Thread>>;

/// Ends its sleep, or keeps the next one from beginning.
pub(crate) fn wake(server: &ServerThread) {
    if let Some(thread) = server.get() {
        thread.unpark();
    }
}

pub(crate) struct Bay {
    pub(crate) stick: VirtualStick,
    wire: Option<Wire>,
}

impl Bay {
    pub(crate) fn new(stick: VirtualStick) -> Self {
        Bay { stick, wire: None }
    }

    /// A new connection; the stick is booted. What the host does wakes `server`.
    pub(crate) fn attach(&mut self, mut device: PipeDevice, max_packet: usize, server: &ServerThread) {
        self.disconnect();
        let server = Arc::clone(server);
        // A futex wakes a thread for less than a descriptor does.
        device.served_by(move || wake(&server));
        self.wire =
            Some(Wire { end: device.into(), writer: InWriter::new(max_packet), out: VecDeque::new() });
    }

    /// Ends the connection; every transfer goes back to the host.
    pub(crate) fn disconnect(&mut self) {
        if let Some(mut wire) = self.wire.take() {
            wire.end.disconnect();
            wire.give_back(TransferError::Gone);
        }
    }

    /// Does all that can be done now. True when something happened on the bus.
    pub(crate) fn serve(&mut self, now: Instant) -> bool {
        loop {
            self.stick.handle_timeout(now);
            if self.settle() {
                return true;
            }
            let Some(wire) = &mut self.wire else { return false };
            if wire.end.is_closed() {
                self.stick.handle_closed(now);
                self.disconnect();
                continue;
            }
            if wire.end.take_recall() {
                wire.give_back(TransferError::Cancelled);
            }
            let mut progress = wire.pull(&mut self.stick, now);
            progress |= wire.push(&mut self.stick, now);
            if !progress {
                return self.settle();
            }
        }
    }

    /// Follows the stick on the bus. True when something happened there.
    pub(crate) fn settle(&mut self) -> bool {
        let mut changed = false;
        while let Some(event) = self.stick.poll_bus_event() {
            changed = true;
            if event == BusEvent::Left {
                self.disconnect();
            }
        }
        changed
    }

    /// When [`Self::serve`] is due.
    pub(crate) fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        // A transfer that is due and not taken waits for a reader, not for time.
        let out =
            self.wire.as_ref().and_then(|w| w.out.front()).map(|sent| sent.due).filter(|&due| due > now);
        self.stick.poll_timeout(now).into_iter().chain(out).min()
    }

    /// About to sleep: true when there is something to do first.
    pub(crate) fn arm(&mut self, now: Instant) -> bool {
        let wants_in = self.stick.poll_in(now).is_some();
        self.wire.as_mut().is_some_and(|wire| wire.end.arm(wants_in))
    }
}

impl Wire {
    fn give_back(&mut self, reason: TransferError) {
        for sent in self.out.drain(..) {
            self.end.complete_out(sent.transfer, Err(reason));
        }
        self.writer.release(&mut self.end, reason);
    }

    /// Host to stick.
    fn pull(&mut self, stick: &mut VirtualStick, now: Instant) -> bool {
        while let Some(transfer) = self.end.next_out() {
            let due = stick.out_arrival(transfer.range.len(), now);
            self.out.push_back(Sent { transfer, taken: 0, due });
        }
        let mut progress = false;
        while let Some(sent) = self.out.front_mut().filter(|sent| sent.due <= now) {
            let n = stick.handle_out(&sent.transfer.bytes()[sent.taken..], now);
            sent.taken += n;
            progress |= n > 0;
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
            let n = self.writer.write(&mut self.end, message, empty);
            if n == 0 && !empty {
                break;
            }
            stick.consume_in(n);
            progress = true;
        }
        progress
    }
}
