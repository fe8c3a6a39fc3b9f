//! The [`Transport`] of a real stick: transfers cut into URBs, kept in order, given back complete.
//!
//! OUT: several URBs in flight, in order. IN: each transfer is one URB (cut only above [`PIECE_BYTES`]), and several
//! transfers may be posted; a short packet ends a transfer. `ENOMEM` at submission is back-pressure: the piece waits
//! for a reap, and pieces get smaller when nothing is in flight. URB flags are not used; BULK_CONTINUATION loses
//! packets on some controllers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::port::{Finished, UrbPort};
use super::urb::{ENDPOINT_OUT, Flight};
use crate::transport::{
    Completion, Direction, MappedMemory, Rejected, Transfer, TransferError, Transport, TransportInfo, WaitOn,
};

/// Largest piece given to the kernel at a time: all of the throughput is reached from 256 KiB on (measured behind
/// xHCI), and four such pieces fit many times into the kernel's default limit.
pub const PIECE_BYTES: usize = 256 * 1024;
/// Smallest piece that is tried before memory is called short.
const SMALLEST_PIECE_BYTES: usize = 16 * 1024;
/// So many pieces without a refusal, and larger ones are tried again.
const PIECES_BEFORE_GROWTH: u32 = 64;
/// When the kernel has no memory and no URB of ours will give any back: others have it.
const RETRY: Duration = Duration::from_millis(1);

/// Transport over a [`UrbPort`].
#[derive(Debug)]
pub struct BulkTransport<P> {
    port: P,
    info: TransportInfo,
    out: Lane,
    r#in: Lane,
    done: VecDeque<Completion>,
    next_id: u64,
    piece_bytes: usize,
    /// Pieces that were taken since the last refusal.
    accepted: u32,
    /// Directions that wait for memory with no URB out whose end could bring any.
    starved: [bool; 2],
    memory: Option<Arc<MappedMemory>>,
    /// The last reap found all that there was, and it has been handed out since: looking again at once would find nothing.
    dry: bool,
    /// The first failure that was no cancel. It ends every transfer and refuses new ones: bytes after a gap would be
    /// taken for something else.
    broken: Option<TransferError>,
}

/// Transfers of one direction, oldest first.
#[derive(Debug, Default)]
struct Lane {
    flights: VecDeque<Custody>,
}

#[derive(Debug)]
struct Custody {
    flight: Flight,
    failure: Option<TransferError>,
}

impl<P: UrbPort> BulkTransport<P> {
    /// Over a claimed interface.
    pub fn new(port: P, info: TransportInfo) -> Self {
        BulkTransport {
            port,
            info,
            out: Lane::default(),
            r#in: Lane::default(),
            done: VecDeque::new(),
            next_id: 0,
            piece_bytes: PIECE_BYTES,
            accepted: 0,
            starved: [false; 2],
            memory: None,
            dry: false,
            broken: None,
        }
    }

    /// With memory that its port maps.
    #[must_use]
    pub fn with_memory(mut self, memory: Arc<MappedMemory>) -> Self {
        self.memory = Some(memory);
        self
    }

    /// Starts pieces, oldest transfer first, until the kernel has enough.
    fn pump(&mut self) {
        for direction in [Direction::Out, Direction::In] {
            self.pump_lane(direction);
        }
    }

    fn pump_lane(&mut self, direction: Direction) {
        let max = match direction {
            Direction::Out => self.piece_bytes,
            // A cut IN transfer costs a round trip between pieces, so it is cut as little as memory allows, and only
            // at whole packets.
            Direction::In => self.piece_bytes * 4,
        };
        let lane = match direction {
            Direction::Out => &mut self.out,
            Direction::In => &mut self.r#in,
        };
        self.starved[usize::from(direction == Direction::In)] = false;
        let mut index = 0;
        while let Some(custody) = lane.flights.get_mut(index) {
            let id = self.next_id;
            let Some(urb) = custody.flight.next_urb(id, max) else {
                // Order: a transfer with bytes still to start holds back those behind it.
                if !custody.flight.is_covered() {
                    return;
                }
                index += 1;
                continue;
            };
            self.next_id += 1;
            match self.port.submit(urb) {
                Ok(()) => {
                    self.accepted = self.accepted.saturating_add(1);
                    if self.accepted >= PIECES_BEFORE_GROWTH && self.piece_bytes < PIECE_BYTES {
                        self.accepted = 0;
                        self.piece_bytes *= 2;
                    }
                }
                Err((urb, Errno::NOMEM)) => {
                    custody.flight.take_back(&urb);
                    self.accepted = 0;
                    if custody.flight.outstanding().is_empty() && self.piece_bytes > SMALLEST_PIECE_BYTES {
                        self.piece_bytes = (self.piece_bytes / 2).max(SMALLEST_PIECE_BYTES);
                        return self.pump_lane(direction);
                    }
                    let lane = if direction == Direction::Out { &self.out } else { &self.r#in };
                    self.starved[usize::from(direction == Direction::In)] =
                        lane.flights.iter().all(|c| c.flight.outstanding().is_empty());
                    return;
                }
                Err((urb, errno)) => {
                    custody.flight.take_back(&urb);
                    custody.flight.end();
                    self.fail(error_of(errno.raw_os_error()));
                    return;
                }
            }
        }
    }

    fn reap(&mut self) {
        loop {
            match self.port.reap() {
                Ok(finished) => self.landed(finished),
                Err(Errno::AGAIN) => break,
                // ENODEV: the device is gone and every URB is home.
                Err(errno) => {
                    self.fail(error_of(errno.raw_os_error()));
                    break;
                }
            }
        }
        self.collect();
        if self.broken.is_none() {
            self.pump();
            self.collect();
        }
    }

    fn landed(&mut self, Finished { urb, status, actual }: Finished) {
        let lane = if urb.endpoint == ENDPOINT_OUT { &mut self.out } else { &mut self.r#in };
        let Some(custody) = lane.flights.iter_mut().find(|c| c.flight.outstanding().contains(&urb.id)) else {
            tracing::error!(id = urb.id, "a URB came home that no transfer sent out");
            return;
        };
        let error = match status {
            0 if urb.endpoint == ENDPOINT_OUT && actual < urb.len() => {
                Some(TransferError::Io(Errno::IO.raw_os_error()))
            }
            0 => None,
            errno => Some(error_of(errno)),
        };
        custody.flight.home(&urb, actual, error.is_some());
        match error {
            None => {}
            Some(TransferError::Cancelled) => {
                custody.failure.get_or_insert(TransferError::Cancelled);
            }
            Some(error) => {
                custody.failure.get_or_insert(error);
                if error == TransferError::Stalled {
                    // Cleared once, so that whoever resets the stick meets a working endpoint.
                    let _ = self.port.clear_halt(urb.endpoint);
                }
                self.fail(error);
            }
        }
    }

    /// Ends everything: URBs that are out are discarded and come home through `reap`.
    fn fail(&mut self, error: TransferError) {
        if self.broken.is_none() {
            self.broken = Some(error);
            self.end_all(error);
        }
    }

    /// Backwards: were the oldest ended first, the controller would start the next one in between.
    fn end_all(&mut self, error: TransferError) {
        for lane in [&mut self.out, &mut self.r#in] {
            // One that is home already ended as it did, even if it was not collected yet.
            for custody in lane.flights.iter_mut().filter(|c| !c.flight.is_finished()).rev() {
                custody.flight.end();
                custody.failure.get_or_insert(error);
                for &id in custody.flight.outstanding().iter().rev() {
                    self.port.discard(id);
                }
            }
        }
    }

    /// Finished transfers leave in order of submission.
    fn collect(&mut self) {
        for lane in [&mut self.out, &mut self.r#in] {
            while lane.flights.front().is_some_and(|c| c.flight.is_finished()) {
                let Some(Custody { flight, failure }) = lane.flights.pop_front() else { break };
                let actual = flight.moved();
                if let Ok(transfer) = flight.into_transfer() {
                    self.done.push_back(Completion { transfer, actual, result: failure.map_or(Ok(()), Err) });
                }
            }
        }
    }
}

impl<P: UrbPort> Transport for BulkTransport<P> {
    fn info(&self) -> &TransportInfo {
        &self.info
    }

    fn submit(&mut self, transfer: Transfer) -> Result<(), Rejected> {
        let reason = if self.broken.is_some() {
            self.broken
        } else if transfer.direction == Direction::In
            && (!transfer.range.len().is_multiple_of(self.info.max_packet_bytes) || transfer.range.is_empty())
        {
            // A packet could overflow it; that is a bug of the caller, found here and not on the bus.
            Some(TransferError::Overflow)
        } else {
            None
        };
        if let Some(reason) = reason {
            return Err(Rejected { transfer, reason });
        }
        self.dry = false;
        let direction = transfer.direction;
        let lane = match direction {
            Direction::Out => &mut self.out,
            Direction::In => &mut self.r#in,
        };
        lane.flights.push_back(Custody { flight: Flight::new(transfer), failure: None });
        self.pump_lane(direction);
        self.collect();
        Ok(())
    }

    fn poll(&mut self) -> Option<Completion> {
        // What comes meanwhile is found by `arm`: a system call less per turn.
        if self.done.is_empty() && !std::mem::take(&mut self.dry) {
            self.reap();
            self.dry = !self.done.is_empty();
        }
        self.done.pop_front()
    }

    fn arm(&mut self) -> bool {
        if self.broken.is_none() && self.port.was_suspended() {
            // What the stick had is unknown after a sleep, if it kept power at all: as if it had been pulled out.
            self.fail(TransferError::Gone);
        }
        if self.done.is_empty() {
            self.reap();
            self.dry = !self.done.is_empty();
        }
        !self.done.is_empty()
    }

    fn wait_on(&self) -> Option<WaitOn<'_>> {
        Some(WaitOn { fd: self.port.poll_fd(), readable: false, writable: true })
    }

    fn retry_after(&self) -> Option<Duration> {
        let waits = self.broken.is_none() && self.starved.contains(&true);
        waits.then_some(RETRY)
    }

    fn memory(&self) -> Option<&Arc<MappedMemory>> {
        self.memory.as_ref()
    }

    fn cancel_all(&mut self) {
        self.starved = [false; 2];
        self.dry = false;
        self.end_all(TransferError::Cancelled);
        self.collect();
    }
}

fn error_of(errno: i32) -> TransferError {
    match Errno::from_raw_os_error(errno) {
        Errno::NODEV | Errno::SHUTDOWN => TransferError::Gone,
        Errno::PIPE => TransferError::Stalled,
        Errno::OVERFLOW => TransferError::Overflow,
        Errno::NOENT | Errno::CONNRESET => TransferError::Cancelled,
        Errno::NOMEM => TransferError::Busy,
        other => TransferError::Io(other.raw_os_error()),
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
