//! A transport over a Unix stream socket, to a virtual stick in another process (`--sim unix:PATH`).
//!
//! The frames are described in `frame.rs`. Data is written from and read into the transfers' own buffers.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::frame::{Broken, ByteStream, Frame, Kind, MAX_POSTED, PIECE_BYTES, Sender, WINDOW_BYTES};
use super::{Completion, Direction, Rejected, Transfer, TransferError, Transport, TransportInfo, WaitOn};

/// The host's end of a socket.
pub struct SocketTransport {
    info: TransportInfo,
    stream: ByteStream,
    tx: Sender<Option<Source>>,
    lanes: [HostLane; 2],
    /// An IN_DONE frame whose data is still coming.
    receiving: Option<Receiving>,
    cancelling: bool,
    broken: bool,
}

/// Where an OUT frame's data lies.
#[derive(Clone, Copy)]
struct Source {
    /// Which transfer, counted from the first of the link.
    transfer: u64,
    from: usize,
    len: usize,
}

struct Receiving {
    frame: Frame,
    filled: usize,
}

#[derive(Default)]
struct HostLane {
    active: VecDeque<Active>,
    /// Number of the first active transfer.
    first: u64,
    /// Pieces on the way, oldest first: their lengths.
    pieces: VecDeque<usize>,
    /// Ids of the next piece to send, and of the oldest that is not done.
    next_id: u64,
    done_id: u64,
    /// Pieces that the socket has taken whole; the stick cannot have done more.
    written: u64,
    posted_bytes: usize,
    done: VecDeque<Completion>,
}

struct Active {
    transfer: Transfer,
    /// Bytes in pieces that were sent off, and the pieces that are not done.
    issued: usize,
    outstanding: usize,
    started: bool,
    /// No further piece: a short IN, an error, a cancel.
    ended: bool,
    actual: usize,
    result: Result<(), TransferError>,
}

impl Active {
    fn complete(&self) -> bool {
        self.outstanding == 0 && (self.ended || (self.started && self.issued == self.transfer.range.len()))
    }
}

impl HostLane {
    /// The next piece that may go: index of its transfer, offset and length.
    fn next_piece(&self, direction: Direction) -> Option<(usize, usize, usize)> {
        for (at, active) in self.active.iter().enumerate() {
            let len = active.transfer.range.len();
            if active.ended || (active.started && active.issued == len) {
                // A long IN transfer may end early: what comes next belongs to it until its last piece is done.
                if direction == Direction::In && len > PIECE_BYTES && !active.complete() {
                    return None;
                }
                continue;
            }
            if direction == Direction::In && active.outstanding > 0 {
                return None;
            }
            let piece = (len - active.issued).min(PIECE_BYTES);
            let room = self.pieces.len() < MAX_POSTED && self.posted_bytes + piece <= WINDOW_BYTES;
            return room.then_some((at, active.issued, piece));
        }
        None
    }

    fn harvest(&mut self) {
        while self.active.front().is_some_and(Active::complete) {
            if let Some(active) = self.active.pop_front() {
                self.first += 1;
                let Active { transfer, actual, result, .. } = active;
                self.done.push_back(Completion { transfer, actual, result });
            }
        }
    }

    /// One piece is done.
    fn piece_done(&mut self, direction: Direction, frame: &Frame) -> Result<(), Broken> {
        let len = self.pieces.pop_front().ok_or(Broken)?;
        self.posted_bytes -= len;
        self.done_id += 1;
        let active = self.active.iter_mut().find(|a| a.outstanding > 0).ok_or(Broken)?;
        active.outstanding -= 1;
        active.actual += frame.len;
        if let (Err(error), Ok(())) = (frame.result, active.result) {
            active.result = Err(error);
        }
        active.ended |= frame.result.is_err() || (direction == Direction::In && frame.len < len);
        self.harvest();
        Ok(())
    }

    fn check(&self, frame: &Frame) -> Result<(), Broken> {
        let len = *self.pieces.front().ok_or(Broken)?;
        let right = frame.id == self.done_id && self.done_id < self.written && frame.len <= len;
        right.then_some(()).ok_or(Broken)
    }

    fn give_up(&mut self) {
        for active in &mut self.active {
            active.outstanding = 0;
            active.ended = true;
            if !active.complete() || active.result.is_ok() {
                active.result = Err(TransferError::Gone);
            }
        }
        self.pieces.clear();
        self.posted_bytes = 0;
        self.harvest();
    }
}

impl SocketTransport {
    /// Takes a connected stream socket.
    pub fn new(socket: impl Into<OwnedFd>, info: TransportInfo) -> io::Result<Self> {
        Ok(SocketTransport {
            info,
            stream: ByteStream::new(socket.into())?,
            tx: Sender::new(),
            lanes: [HostLane::default(), HostLane::default()],
            receiving: None,
            cancelling: false,
            broken: false,
        })
    }

    /// Connects to a server of virtual sticks.
    pub fn connect(path: impl AsRef<Path>, info: TransportInfo) -> io::Result<Self> {
        Self::new(UnixStream::connect(path)?, info)
    }

    fn issue(&mut self) {
        for direction in [Direction::Out, Direction::In] {
            let lane = &mut self.lanes[direction as usize];
            while let Some((at, from, len)) = lane.next_piece(direction) {
                let transfer = lane.first + at as u64;
                let active = &mut lane.active[at];
                active.issued += len;
                active.outstanding += 1;
                active.started = true;
                let id = lane.next_id;
                lane.next_id += 1;
                lane.pieces.push_back(len);
                lane.posted_bytes += len;
                match direction {
                    Direction::Out => {
                        self.tx.push(
                            Frame::new(Kind::Out, len, id),
                            len,
                            Some(Source { transfer, from, len }),
                        );
                    }
                    Direction::In => {
                        // Counted as written at once: its data flows the other way.
                        lane.written += 1;
                        self.tx.push(Frame::new(Kind::In, len, id), 0, None);
                    }
                }
            }
        }
    }

    fn flush(&mut self) -> Result<(), Broken> {
        self.tx.flush(&self.stream, &self.lanes[0], |lane, source| {
            let Some(source) = source else { return &[] };
            let at = source.transfer.checked_sub(lane.first).and_then(|at| usize::try_from(at).ok());
            at.and_then(|at| lane.active.get(at))
                .and_then(|a| a.transfer.bytes().get(source.from..source.from + source.len))
                .unwrap_or_default()
        })?;
        let went = self.tx.went.drain(..).flatten().count();
        self.lanes[0].written += went as u64;
        Ok(())
    }

    fn receive(&mut self) -> Result<(), Broken> {
        loop {
            if let Some(receiving) = &mut self.receiving {
                let lane = &mut self.lanes[1];
                let active = lane.active.iter_mut().find(|a| a.outstanding > 0).ok_or(Broken)?;
                let from = active.actual + receiving.filled;
                let to = active.actual + receiving.frame.len;
                let into = active.transfer.bytes_mut().get_mut(from..to).ok_or(Broken)?;
                if !into.is_empty() {
                    let n = self.stream.data(into)?;
                    if n == 0 {
                        return Ok(());
                    }
                    receiving.filled += n;
                }
                if receiving.filled == receiving.frame.len {
                    let frame = receiving.frame;
                    self.receiving = None;
                    lane.piece_done(Direction::In, &frame)?;
                }
                continue;
            }
            let Some(frame) = self.stream.header()? else { return Ok(()) };
            match frame.kind {
                Kind::OutDone => {
                    self.lanes[0].check(&frame)?;
                    self.lanes[0].piece_done(Direction::Out, &frame)?;
                }
                Kind::InDone => {
                    self.lanes[1].check(&frame)?;
                    self.receiving = Some(Receiving { frame, filled: 0 });
                }
                Kind::Gone | Kind::Out | Kind::In | Kind::Cancel => return Err(Broken),
            }
        }
    }

    /// Moves what can be moved.
    fn pump(&mut self) {
        if self.broken {
            return;
        }
        if self.receive().is_err() {
            self.give_up();
        } else {
            self.issue();
            if self.flush().is_err() {
                // The stick may have answered and left: what came before the end counts.
                let _ = self.receive();
                self.give_up();
            }
        }
        if self.cancelling && self.lanes.iter().all(|lane| lane.active.is_empty()) {
            self.cancelling = false;
        }
    }

    fn give_up(&mut self) {
        self.broken = true;
        self.receiving = None;
        self.tx.clear();
        self.lanes.iter_mut().for_each(HostLane::give_up);
        let _ = rustix::net::shutdown(&self.stream.fd, rustix::net::Shutdown::Both);
    }

    fn take(&mut self) -> Option<Completion> {
        self.lanes.iter_mut().find_map(|lane| lane.done.pop_front())
    }
}

impl Transport for SocketTransport {
    fn info(&self) -> &TransportInfo {
        &self.info
    }

    fn submit(&mut self, transfer: Transfer) -> Result<(), Rejected> {
        if self.broken {
            return Err(Rejected { transfer, reason: TransferError::Gone });
        }
        if let Err(reason) = transfer.check() {
            return Err(Rejected { transfer, reason });
        }
        // Sent by the next `arm` or `poll`: several small transfers share a system call.
        self.lanes[transfer.direction as usize].active.push_back(Active {
            transfer,
            issued: 0,
            outstanding: 0,
            started: false,
            ended: false,
            actual: 0,
            result: Ok(()),
        });
        Ok(())
    }

    fn poll(&mut self) -> Option<Completion> {
        if let Some(completion) = self.take() {
            return Some(completion);
        }
        self.pump();
        self.take()
    }

    fn arm(&mut self) -> bool {
        self.pump();
        self.lanes.iter().any(|lane| !lane.done.is_empty())
    }

    fn wait_on(&self) -> Option<WaitOn<'_>> {
        Some(WaitOn { fd: self.stream.fd.as_fd(), readable: true, writable: !self.tx.is_empty() })
    }

    /// Waits for the stick's answers. Called again before they came, it gives the link up: all ends as `Gone`.
    fn cancel_all(&mut self) {
        if self.broken {
            return;
        }
        if self.cancelling {
            self.give_up();
            return;
        }
        for lane in &mut self.lanes {
            for active in &mut lane.active {
                active.ended = true;
                if active.result.is_ok() {
                    active.result = Err(TransferError::Cancelled);
                }
            }
            lane.harvest();
        }
        if self.lanes.iter().any(|lane| !lane.active.is_empty()) {
            self.cancelling = true;
            self.tx.push(Frame::new(Kind::Cancel, 0, 0), 0, None);
        }
    }
}

impl Drop for SocketTransport {
    fn drop(&mut self) {
        // A reactor may still hold a duplicate: closing ours would not tell the stick.
        let _ = rustix::net::shutdown(&self.stream.fd, rustix::net::Shutdown::Both);
    }
}
