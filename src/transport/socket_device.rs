//! The stick's end of a socket transport, with the calls of [`PipeDevice`](super::PipeDevice).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::frame::{Broken, ByteStream, Frame, Kind, MAX_POSTED, Sender, WINDOW_BYTES};
use super::lane::Lane;
use super::{Buffer, Completion, Direction, Transfer, TransferError, WaitOn};

/// Buffers kept for the next transfers: so many, of so many bytes together.
const SPARE_BUFFERS: usize = 64;
const SPARE_BYTES: usize = WINDOW_BYTES;

/// The stick's end of a Unix stream socket. Answers go out when it arms or looks for more work.
pub struct SocketDevice {
    stream: ByteStream,
    tx: Sender<Option<Completion>>,
    lanes: [Lane; 2],
    /// Per direction: the next id to come, frames and bytes not done.
    credit: [Credit; 2],
    /// An OUT frame whose data is still coming.
    receiving: Option<(Transfer, usize)>,
    spare: Vec<Buffer>,
    recall: bool,
    /// The host has gone or broke the rules.
    closed: bool,
    disconnected: bool,
}

#[derive(Default)]
struct Credit {
    next_id: u64,
    done_id: u64,
    bytes: usize,
}

impl SocketDevice {
    /// Takes a connected stream socket.
    pub fn new(socket: impl Into<OwnedFd>) -> io::Result<Self> {
        Ok(SocketDevice {
            stream: ByteStream::new(socket.into())?,
            tx: Sender::new(),
            lanes: [Lane::default(), Lane::default()],
            credit: [Credit::default(), Credit::default()],
            receiving: None,
            spare: Vec::new(),
            recall: false,
            closed: false,
            disconnected: false,
        })
    }

    /// See [`PipeDevice::next_out`](super::PipeDevice::next_out). Long transfers come in pieces of at most 1 MiB.
    pub fn next_out(&mut self) -> Option<Transfer> {
        if self.lanes[0].submitted.is_empty() {
            self.pump();
        }
        self.lanes[0].take()
    }

    /// See [`PipeDevice::next_in`](super::PipeDevice::next_in).
    pub fn next_in(&mut self) -> Option<Transfer> {
        if self.lanes[1].submitted.is_empty() {
            self.pump();
        }
        // Memory is given when the device has something to send, not when the host asks.
        let mut transfer = self.lanes[1].take()?;
        transfer.buffer = self.buffer(transfer.range.len());
        Some(transfer)
    }

    /// See [`PipeDevice::in_capacity`](super::PipeDevice::in_capacity).
    pub fn in_capacity(&self) -> usize {
        self.lanes[1].submitted_bytes
    }

    /// See [`PipeDevice::complete_out`](super::PipeDevice::complete_out).
    pub fn complete_out(&mut self, transfer: Transfer, result: Result<(), TransferError>) {
        let actual = if result.is_ok() { transfer.range.len() } else { 0 };
        self.complete(Completion { transfer, actual, result });
    }

    /// See [`PipeDevice::complete_in`](super::PipeDevice::complete_in).
    pub fn complete_in(&mut self, transfer: Transfer, actual: usize, result: Result<(), TransferError>) {
        let actual = actual.min(transfer.range.len());
        self.complete(Completion { transfer, actual, result });
    }

    /// See [`PipeDevice::take_recall`](super::PipeDevice::take_recall).
    pub fn take_recall(&mut self) -> bool {
        std::mem::take(&mut self.recall)
    }

    /// See [`PipeDevice::disconnect`](super::PipeDevice::disconnect). Answers that were not sent yet are lost.
    pub fn disconnect(&mut self) {
        if !self.disconnected && !self.closed {
            // Without waiting: the end of the stream says the same, and a full socket must not hold a stick on the bus.
            if self.flush().is_ok() && self.tx.is_empty() {
                self.tx.push(Frame::new(Kind::Gone, 0, 0), 0, None);
                let _ = self.flush();
            }
            let _ = rustix::net::shutdown(&self.stream.fd, rustix::net::Shutdown::Write);
        }
        self.disconnected = true;
        self.forget();
    }

    /// See [`PipeDevice::is_closed`](super::PipeDevice::is_closed); also when the host said something that is no frame.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// See [`PipeDevice::arm`](super::PipeDevice::arm).
    pub fn arm(&mut self, wants_in: bool) -> bool {
        self.pump();
        !self.lanes[0].submitted.is_empty()
            || (wants_in && !self.lanes[1].submitted.is_empty())
            || self.recall
            || self.closed
    }

    /// See [`PipeDevice::wait_on`](super::PipeDevice::wait_on). Ask again after each `arm`: it waits for writability
    /// only while answers are stuck.
    pub fn wait_on(&self) -> Option<WaitOn<'_>> {
        Some(WaitOn { fd: self.stream.fd.as_fd(), readable: true, writable: !self.tx.is_empty() })
    }

    fn complete(&mut self, completion: Completion) {
        let lane = completion.transfer.direction as usize;
        if self.lanes[lane].complete(completion) {
            self.answer(lane);
        }
    }

    /// Turns finished transfers into frames.
    fn answer(&mut self, lane: usize) {
        while let Some(completion) = self.lanes[lane].done.pop_front() {
            if self.closed || self.disconnected {
                continue;
            }
            let kind = if lane == 0 { Kind::OutDone } else { Kind::InDone };
            let credit = &mut self.credit[lane];
            credit.done_id += 1;
            credit.bytes -= completion.transfer.range.len();
            let frame = Frame {
                kind,
                result: completion.result,
                len: completion.actual,
                id: completion.transfer.token,
            };
            let data = if lane == 0 { 0 } else { completion.actual };
            self.tx.push(frame, data, Some(completion));
        }
    }

    fn flush(&mut self) -> Result<(), Broken> {
        let result = self.tx.flush(&self.stream, &(), |(), p| p.as_ref().map_or(&[], Completion::bytes));
        for completion in self.tx.went.drain(..).flatten() {
            let buffer = completion.transfer.buffer;
            let kept: usize = self.spare.iter().map(Buffer::len).sum();
            if self.spare.len() < SPARE_BUFFERS && !buffer.is_empty() && kept + buffer.len() <= SPARE_BYTES {
                self.spare.push(buffer);
            }
        }
        result
    }

    /// A buffer of at least `len` bytes; a spare one only when it is not much too large.
    fn buffer(&mut self, len: usize) -> Buffer {
        let fits = |b: &Buffer| b.len() >= len && b.len() <= len.max(2048) * 2;
        match self.spare.iter().rposition(fits) {
            Some(at) => self.spare.swap_remove(at),
            None => {
                // Nothing of this size: makes room for what will come back.
                if !self.spare.is_empty() {
                    self.spare.swap_remove(0);
                }
                Buffer::zeroed(len)
            }
        }
    }

    fn pump(&mut self) {
        if self.closed || self.disconnected {
            return;
        }
        if self.receive().and_then(|()| self.flush()).is_err() {
            self.closed = true;
            // Tells a host that broke the rules, too.
            let _ = rustix::net::shutdown(&self.stream.fd, rustix::net::Shutdown::Both);
            self.forget();
        }
    }

    fn receive(&mut self) -> Result<(), Broken> {
        loop {
            if let Some((transfer, filled)) = &mut self.receiving {
                let into = transfer.bytes_mut().get_mut(*filled..).ok_or(Broken)?;
                if !into.is_empty() {
                    let n = self.stream.data(into)?;
                    if n == 0 {
                        return Ok(());
                    }
                    *filled += n;
                    continue;
                }
                if let Some((transfer, _)) = self.receiving.take() {
                    self.lanes[0].submitted_bytes += transfer.range.len();
                    self.lanes[0].submitted.push_back(transfer);
                }
            }
            let Some(frame) = self.stream.header()? else { return Ok(()) };
            match frame.kind {
                Kind::Out => {
                    self.charge(0, &frame)?;
                    let buffer = self.buffer(frame.len);
                    let transfer =
                        Transfer { direction: Direction::Out, buffer, range: 0..frame.len, token: frame.id };
                    self.receiving = Some((transfer, 0));
                }
                Kind::In => {
                    self.charge(1, &frame)?;
                    let lane = &mut self.lanes[1];
                    lane.submitted_bytes += frame.len;
                    lane.submitted.push_back(Transfer {
                        direction: Direction::In,
                        buffer: Buffer::zeroed(0),
                        range: 0..frame.len,
                        token: frame.id,
                    });
                }
                Kind::Cancel => {
                    for lane in 0..2 {
                        self.recall |= self.lanes[lane].cancel();
                        self.answer(lane);
                    }
                }
                Kind::OutDone | Kind::InDone | Kind::Gone => return Err(Broken),
            }
        }
    }

    /// Holds the host to its credit.
    fn charge(&mut self, lane: usize, frame: &Frame) -> Result<(), Broken> {
        let credit = &mut self.credit[lane];
        let posted = credit.next_id - credit.done_id;
        let within = posted < MAX_POSTED as u64 && credit.bytes + frame.len <= WINDOW_BYTES;
        if frame.id != credit.next_id || !within {
            return Err(Broken);
        }
        credit.next_id += 1;
        credit.bytes += frame.len;
        Ok(())
    }

    /// The link has ended; what the device holds is dropped when it completes it.
    fn forget(&mut self) {
        self.receiving = None;
        self.tx.clear();
        for lane in &mut self.lanes {
            lane.close();
            lane.done.clear();
        }
    }
}

impl Drop for SocketDevice {
    fn drop(&mut self) {
        // A reactor may still hold a duplicate: closing ours would not tell the host.
        let _ = rustix::net::shutdown(&self.stream.fd, rustix::net::Shutdown::Both);
    }
}
