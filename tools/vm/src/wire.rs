//! A booted stick through the driver's own data path: usbfs URBs, the reactor, wire headers; no link state on top.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ncs2::transport::usb::bulk::BulkTransport;
use ncs2::transport::usb::discover::Found;
use ncs2::transport::usb::usbfs::UsbfsPort;
use ncs2::transport::{
    Buffer, Completion, Direction, MemoryKind, Reactor, ReactorKind, Token, Transfer, TransferError,
    Transport as _, TransportInfo,
};
use ncs2::wire::{EventKind, Flags, HEADER_LEN, Header, Side, StreamId, StreamName};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// An opened stick.
pub(crate) struct Wire {
    transport: BulkTransport<UsbfsPort>,
    reactor: Reactor,
    token: Token,
    max_packet: usize,
    /// Bytes of the IN pipe that were not looked at yet.
    received: VecDeque<u8>,
    /// IN requests that are posted, and how long each is.
    posted: usize,
    posted_len: usize,
    next_id: i32,
}

impl Wire {
    pub(crate) fn open(found: &Found) -> Result<Self, String> {
        let port = UsbfsPort::open(found.bus, found.address).map_err(|e| format!("{e:?}"))?;
        let speed_mbps = port.speed_mbps();
        let max_packet = if speed_mbps >= 5000 { 1024 } else { 512 };
        let info = TransportInfo {
            max_packet_bytes: max_packet,
            speed_mbps,
            memory: MemoryKind::Copied,
            simulated: true,
        };
        let transport = BulkTransport::new(port, info);
        let mut reactor = Reactor::new(ReactorKind::detect().kind).map_err(|e| format!("reactor: {e}"))?;
        let wait = transport.wait_on().ok_or("nothing to wait on")?;
        let token = reactor.register(wait.fd, wait.interest()).map_err(|e| format!("reactor: {e}"))?;
        Ok(Wire {
            transport,
            reactor,
            token,
            max_packet,
            received: VecDeque::new(),
            posted: 0,
            posted_len: max_packet,
            next_id: 10,
        })
    }

    pub(crate) fn max_packet(&self) -> usize {
        self.max_packet
    }

    pub(crate) fn reactor_kind(&self) -> &'static str {
        self.reactor.kind().as_str()
    }

    /// Requests of this many bytes from now on; a multiple of the packet size.
    pub(crate) fn read_in_pieces_of(&mut self, bytes: usize) {
        self.posted_len = bytes;
    }

    /// Posts IN requests until `count` are out.
    pub(crate) fn post(&mut self, count: usize) -> Result<(), String> {
        while self.posted < count {
            let transfer = Transfer::whole(Direction::In, Buffer::zeroed(self.posted_len), 0);
            self.transport.submit(transfer).map_err(|r| format!("submit IN: {}", r.reason))?;
            self.posted += 1;
        }
        Ok(())
    }

    /// Starts an OUT transfer.
    pub(crate) fn start_out(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut buffer = Buffer::zeroed(bytes.len());
        buffer.as_mut_slice().ok_or("no memory")?.copy_from_slice(bytes);
        let transfer = Transfer::whole(Direction::Out, buffer, 1);
        self.transport.submit(transfer).map_err(|r| format!("submit OUT: {}", r.reason))
    }

    /// Sends and waits until it is taken.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.start_out(bytes)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let done = self.next_completion(deadline)?;
            let ours = done.transfer.direction == Direction::Out;
            self.take(&done)?;
            if ours {
                return Ok(());
            }
        }
    }

    /// The next completion, whatever it is.
    pub(crate) fn next_completion(&mut self, deadline: Instant) -> Result<Completion, String> {
        let mut ready = Vec::new();
        loop {
            if let Some(done) = self.transport.poll() {
                return Ok(done);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("nothing came in time".into());
            }
            if !self.transport.arm() {
                self.reactor.turn(Some(left), &mut ready).map_err(|e| format!("reactor: {e}"))?;
            }
        }
    }

    fn take(&mut self, done: &Completion) -> Result<(), String> {
        if let Err(error) = done.result {
            return Err(format!("{:?} failed: {error}", done.transfer.direction));
        }
        match done.transfer.direction {
            Direction::In => {
                self.posted -= 1;
                self.received.extend(done.bytes());
            }
            Direction::Out if done.actual != done.transfer.range.len() => {
                return Err(format!("sent {} of {}", done.actual, done.transfer.range.len()));
            }
            Direction::Out => {}
        }
        Ok(())
    }

    /// Exactly `n` bytes of the IN pipe.
    pub(crate) fn receive(&mut self, n: usize) -> Result<Vec<u8>, String> {
        let deadline = Instant::now() + PATIENCE;
        while self.received.len() < n {
            self.post(4)?;
            let done = self.next_completion(deadline)?;
            self.take(&done)?;
        }
        Ok(self.received.drain(..n).collect())
    }

    /// The next header of the stick and its payload, if it has one.
    pub(crate) fn receive_event(&mut self) -> Result<(Header, Vec<u8>), String> {
        let header = Header::parse(&self.receive(HEADER_LEN)?).map_err(|e| e.to_string())?;
        let len = if header.has_payload() { header.size as usize } else { 0 };
        Ok((header, self.receive(len)?))
    }

    /// Sends a request with its payload and waits for its response; events of the stick meanwhile are returned too.
    pub(crate) fn ask(&mut self, request: Header, payload: &[u8]) -> Result<Vec<(Header, Vec<u8>)>, String> {
        self.send(&request.encode())?;
        if !payload.is_empty() {
            self.send(payload)?;
        }
        let mut meanwhile = Vec::new();
        loop {
            let (header, data) = self.receive_event()?;
            if header.answers(&request) {
                if !header.flags.contains(Flags::ACK) {
                    return Err(format!("{:?} refused: {:?}", request.kind, header.flags));
                }
                return Ok(meanwhile);
            }
            meanwhile.push((header, data));
        }
    }

    pub(crate) fn request(&mut self, kind: EventKind, stream: StreamId, size: u32) -> Header {
        let id = self.next_id;
        self.next_id += 1;
        Header::request(id, kind, stream, size)
    }

    pub(crate) fn ping(&mut self) -> Result<(), String> {
        let ping = self.request(EventKind::Ping, StreamId(0), 0);
        let meanwhile = self.ask(ping, &[])?;
        if meanwhile.is_empty() { Ok(()) } else { Err(format!("more than a ping's answer: {meanwhile:?}")) }
    }

    pub(crate) fn create_stream(&mut self, name: &str, id: u32, credit: u32) -> Result<(), String> {
        let name = StreamName::new(name).map_err(|e| e.to_string())?;
        let request = Header::create_stream(self.next_id, name, StreamId(id), credit);
        self.next_id += 1;
        self.ask(request, &[]).map(drop)
    }

    /// Writes to a stream and waits for the answer; returns what the stick sent meanwhile.
    pub(crate) fn write(&mut self, stream: u32, payload: &[u8]) -> Result<Vec<(Header, Vec<u8>)>, String> {
        let request = self.request(EventKind::Write, StreamId(stream), payload.len() as u32);
        self.ask(request, payload)
    }

    /// The next WRITE of the stick on `stream`, acknowledged and released; releases of ours are answered on the way.
    pub(crate) fn receive_write(
        &mut self,
        stream: u32,
        meanwhile: Vec<(Header, Vec<u8>)>,
    ) -> Result<Vec<u8>, String> {
        let mut queue = VecDeque::from(meanwhile);
        loop {
            let (header, data) = match queue.pop_front() {
                Some(event) => event,
                None => self.receive_event()?,
            };
            if header.side == Side::Response {
                continue;
            }
            self.send(&header.response(Flags::ACK).encode())?;
            if header.kind == EventKind::Write && header.stream == StreamId(stream) {
                let release = self.request(EventKind::ReadRelease, StreamId(stream), data.len() as u32);
                queue.extend(self.ask(release, &[])?);
                if queue.iter().any(|(h, _)| h.kind == EventKind::Write && h.side == Side::Request) {
                    return Err("a WRITE that nobody asked for".into());
                }
                return Ok(data);
            }
        }
    }

    /// Cancels all that is posted and counts how it ended; data that came is kept.
    pub(crate) fn cancel(&mut self) -> Result<(usize, usize), String> {
        self.transport.cancel_all();
        let deadline = Instant::now() + PATIENCE;
        let (mut cancelled, mut complete) = (0, 0);
        while self.posted > 0 {
            let done = self.next_completion(deadline)?;
            if done.transfer.direction == Direction::Out {
                continue;
            }
            self.posted -= 1;
            match done.result {
                Ok(()) => {
                    self.received.extend(done.bytes());
                    complete += 1;
                }
                Err(TransferError::Cancelled) => {
                    self.received.extend(done.bytes());
                    cancelled += 1;
                }
                Err(other) => return Err(format!("cancelled request ended with {other}")),
            }
        }
        Ok((cancelled, complete))
    }

    /// Waits until every transfer has come back; all must say that the stick is gone, but those that were complete.
    /// Returns how long it took since `since`.
    pub(crate) fn drain_gone(&mut self, out: usize, since: Instant) -> Result<Duration, String> {
        let deadline = Instant::now() + PATIENCE;
        let mut left = self.posted + out;
        let mut gone = 0;
        while left > 0 {
            let done = self.next_completion(deadline).map_err(|e| format!("{left} transfers: {e}"))?;
            left -= 1;
            match done.result {
                Ok(()) => {}
                Err(TransferError::Gone) => gone += 1,
                Err(other) => return Err(format!("{:?} ended with {other}", done.transfer.direction)),
            }
        }
        let took = since.elapsed();
        if gone == 0 {
            return Err("no transfer said that the stick is gone".into());
        }
        let refused =
            self.transport.submit(Transfer::whole(Direction::In, Buffer::zeroed(self.max_packet), 0));
        match refused {
            Err(r) if r.reason == TransferError::Gone => Ok(took),
            Err(r) => Err(format!("a stick that is gone refuses with {}", r.reason)),
            Ok(()) => Err("a stick that is gone takes a transfer".into()),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.reactor.deregister(self.token);
    }
}
