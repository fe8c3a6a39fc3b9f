//! One link: turns received bytes into events, commands into headers, and waits into deadlines.

use std::collections::VecDeque;
use std::time::Duration;

use super::stream::{Parked, PendingClose, Side as StreamSide, Stream};
use super::{Accept, LinkError, LinkEvent, LinkFault, MAX_PACKET_BYTES, MAX_PACKETS, MAX_STREAMS, Outgoing};
use crate::clock::Instant;
use crate::wire::{EventKind, Flags, HEADER_LEN, Header, Side, StreamId, StreamName};

/// First id of our requests, as the vendor's (which counts over the whole process; here it is per link).
const FIRST_ID: i32 = 10;

/// Slowest transfer rate that is believed when a deadline is set: USB 2 behind a busy hub. 8 MB/s.
const WORST_NS_PER_BYTE: u64 = 125;

/// Answers that we may owe, and requests that the stick may owe answers to. More than all streams can have
/// outstanding; only a stick that floods us gets there.
const MAX_QUEUED: usize = 2 * MAX_STREAMS * MAX_PACKETS;

/// What the next received bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkWant {
    /// The rest of a header.
    Header(usize),
    /// The rest of a small packet.
    Packet(usize),
    /// The rest of an element: where it goes on, and how much is missing.
    Element {
        /// Its stream.
        stream: StreamId,
        /// Bytes that have come.
        offset: usize,
        /// Bytes to come.
        missing: usize,
    },
}

#[derive(Debug)]
struct Request<P, T> {
    kind: EventKind,
    stream: StreamId,
    name: StreamName,
    size: u32,
    payload: Option<P>,
    tag: Option<T>,
}

#[derive(Debug)]
struct Awaited<T> {
    id: i32,
    kind: EventKind,
    stream: StreamId,
    tag: Option<T>,
    sent: Instant,
    deadline: Instant,
}

#[derive(Clone, Copy, Debug)]
enum Sink {
    Packet,
    Discard,
    Element,
}

#[derive(Clone, Copy, Debug)]
enum Receiving {
    Header { got: usize },
    Payload { request: Header, got: u32, sink: Sink },
}

/// The host's end of one XLink connection.
#[derive(Debug)]
pub struct Link<P, T> {
    timeout: Duration,
    next_id: i32,
    last_stream: Option<u32>,
    streams: Vec<Stream<P, T>>,
    responses: VecDeque<Header>,
    requests: VecDeque<Request<P, T>>,
    /// In order of sending, and so of deadline.
    awaiting: VecDeque<Awaited<T>>,
    receiving: Receiving,
    header: [u8; HEADER_LEN],
    packet: Vec<u8>,
    /// When all that was handed out is certainly on the stick.
    wire_free: Instant,
    fault: Option<LinkFault<T>>,
    dead: bool,
}

impl<P, T: Copy> Link<P, T> {
    /// A fresh connection; `timeout` is for each answer of the link layer.
    pub fn new(timeout: Duration) -> Self {
        Link {
            timeout,
            next_id: FIRST_ID,
            last_stream: None,
            streams: Vec::with_capacity(MAX_STREAMS),
            responses: VecDeque::with_capacity(MAX_PACKETS),
            requests: VecDeque::with_capacity(MAX_PACKETS),
            awaiting: VecDeque::with_capacity(MAX_PACKETS),
            receiving: Receiving::Header { got: 0 },
            header: [0; HEADER_LEN],
            packet: Vec::with_capacity(MAX_PACKET_BYTES as usize),
            wire_free: Instant::ZERO,
            fault: None,
            dead: false,
        }
    }

    // ---- commands ---------------------------------------------------------------------------------------------

    /// Asks for a pong.
    pub fn ping(&mut self, tag: T) {
        self.request(EventKind::Ping, StreamId(0), 0, Some(tag));
    }

    /// The last event of a connection.
    pub fn reset(&mut self, tag: T) {
        self.request(EventKind::Reset, StreamId(0), 0, Some(tag));
    }

    /// Opens a stream that we may write `credit` bytes ahead on (rounded up to 64). It can be written to once
    /// `Answered`.
    pub fn open_stream(
        &mut self,
        name: StreamName,
        credit: u32,
        accept: Accept,
        tag: T,
    ) -> Result<StreamId, LinkError> {
        let id = self.fresh_stream_id()?;
        let credit = credit.checked_next_multiple_of(64).ok_or(LinkError::TooLong)?;
        self.streams.push(Stream::new(id, name, credit, accept, StreamSide::Opening));
        self.requests.push_back(Request {
            kind: EventKind::CreateStream,
            stream: id,
            name,
            size: credit,
            payload: None,
            tag: Some(tag),
        });
        Ok(id)
    }

    /// Writes one packet, in the order of calls per stream. Without credit it is parked until the stick releases
    /// enough, at most until `deadline`; other streams go on.
    pub fn write(
        &mut self,
        stream: StreamId,
        size: u32,
        payload: P,
        tag: T,
        deadline: Instant,
        now: Instant,
    ) -> Result<(), LinkError> {
        let Some(s) = self.streams.iter_mut().find(|s| s.id == stream && s.side == StreamSide::Open) else {
            return Err(LinkError::NoSuchStream);
        };
        if !s.could_hold(size) {
            return Err(LinkError::TooLong);
        }
        if s.parked.is_empty() && s.take_credit(size) {
            self.requests.push_back(Request {
                kind: EventKind::Write,
                stream,
                name: StreamName::EMPTY,
                size,
                payload: Some(payload),
                tag: Some(tag),
            });
        } else {
            s.parked.push_back(Parked { size, payload, tag: Some(tag), since: now, deadline });
        }
        Ok(())
    }

    /// Gives the oldest received packet of a stream back to the stick.
    pub fn release(&mut self, stream: StreamId, tag: Option<T>) -> Result<(), LinkError> {
        let s = self.streams.iter_mut().find(|s| s.id == stream).ok_or(LinkError::NoSuchStream)?;
        let size = s.received.pop().ok_or(LinkError::NothingToRelease)?;
        self.request(EventKind::ReadRelease, stream, size, tag);
        Ok(())
    }

    /// Closes a stream once the stick has released all that was written on it, which it must do until `deadline`.
    pub fn close_stream(
        &mut self,
        stream: StreamId,
        tag: T,
        deadline: Instant,
        now: Instant,
    ) -> Result<(), LinkError> {
        let Some(s) = self.streams.iter_mut().find(|s| s.id == stream && s.side == StreamSide::Open) else {
            return Err(LinkError::NoSuchStream);
        };
        s.side = StreamSide::Closing;
        s.close = Some(PendingClose { tag: Some(tag), since: now, deadline });
        self.unpark(stream);
        Ok(())
    }

    // ---- inputs -----------------------------------------------------------------------------------------------

    /// What the next bytes are.
    pub fn want(&self) -> LinkWant {
        match self.receiving {
            Receiving::Header { got } => LinkWant::Header(HEADER_LEN - got),
            Receiving::Payload { request, got, sink: Sink::Element } => LinkWant::Element {
                stream: request.stream,
                offset: got as usize,
                missing: (request.size - got) as usize,
            },
            Receiving::Payload { request, got, .. } => LinkWant::Packet((request.size - got) as usize),
        }
    }

    /// Received bytes, up to the end of the header or packet at hand. Returns how many were taken, zero only when
    /// the link is dead or an element is due ([`Link::handle_element_in`]).
    pub fn handle_in(&mut self, bytes: &[u8]) -> (usize, Option<LinkEvent<T>>) {
        if self.dead {
            return (0, None);
        }
        match self.receiving {
            Receiving::Header { got } => {
                let take = bytes.len().min(HEADER_LEN - got);
                self.header[got..got + take].copy_from_slice(&bytes[..take]);
                if got + take < HEADER_LEN {
                    self.receiving = Receiving::Header { got: got + take };
                    return (take, None);
                }
                self.receiving = Receiving::Header { got: 0 };
                match Header::parse(&self.header) {
                    Ok(header) => (take, self.handle_header(header)),
                    Err(error) => {
                        self.fail(LinkFault::Protocol(error.to_string()));
                        (take, None)
                    }
                }
            }
            Receiving::Payload { sink: Sink::Element, .. } => (0, None),
            Receiving::Payload { request, got, sink } => {
                let take = bytes.len().min((request.size - got) as usize);
                if matches!(sink, Sink::Packet) {
                    self.packet.extend_from_slice(&bytes[..take]);
                }
                let got = got + take as u32;
                self.receiving = Receiving::Payload { request, got, sink };
                (take, self.finish_payload())
            }
        }
    }

    /// `bytes` more bytes of the element at hand lie in the owner's memory.
    pub fn handle_element_in(&mut self, bytes: usize) -> Option<LinkEvent<T>> {
        if self.dead {
            return None;
        }
        let Receiving::Payload { request, got, sink: Sink::Element } = self.receiving else {
            self.fail(LinkFault::Protocol("the owner read an element where none is".into()));
            return None;
        };
        let got = u32::try_from(bytes).ok().and_then(|b| got.checked_add(b)).filter(|&g| g <= request.size);
        let Some(got) = got else {
            self.fail(LinkFault::Protocol("the owner read past the end of an element".into()));
            return None;
        };
        self.receiving = Receiving::Payload { request, got, sink: Sink::Element };
        self.finish_payload()
    }

    /// The bytes of the packet that was just announced; give the vector back with [`Link::reuse_packet`].
    pub fn take_packet(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.packet)
    }

    /// Takes back the vector of [`Link::take_packet`], so that its memory serves the next packet.
    pub fn reuse_packet(&mut self, mut packet: Vec<u8>) {
        packet.clear();
        self.packet = packet;
    }

    /// Judges what is overdue.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(a) = self.awaiting.front().filter(|a| a.deadline <= now) {
            let fault = LinkFault::Timeout { kind: a.kind, tag: a.tag, after: a.deadline - a.sent };
            return self.fail(fault);
        }
        for s in &self.streams {
            let parked = s.parked.front().filter(|p| p.deadline <= now);
            let late = match (parked, &s.close) {
                (Some(p), _) => (EventKind::Write, p.tag, p.deadline - p.since),
                (None, Some(c)) if c.deadline <= now => (EventKind::CloseStream, c.tag, c.deadline - c.since),
                _ => continue,
            };
            let fault = LinkFault::Timeout { kind: late.0, tag: late.1, after: late.2 };
            return self.fail(fault);
        }
    }

    // ---- outputs ----------------------------------------------------------------------------------------------

    /// The next thing to send. Answers go before requests: they are small, and the stick may wait for them.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Outgoing<P, T>> {
        if self.dead {
            return None;
        }
        if let Some(response) = self.responses.pop_front() {
            self.occupy_wire(HEADER_LEN as u64, now);
            return Some(Outgoing { header: response.encode(), payload: None, tag: None });
        }
        let request = self.requests.pop_front()?;
        let payload_bytes = if request.kind == EventKind::Write { u64::from(request.size) } else { 0 };
        self.occupy_wire(HEADER_LEN as u64 + payload_bytes, now);
        let id = self.next_id;
        self.next_id = id.checked_add(1).unwrap_or(FIRST_ID);
        self.awaiting.push_back(Awaited {
            id,
            kind: request.kind,
            stream: request.stream,
            tag: request.tag,
            sent: now,
            deadline: self.wire_free + self.timeout,
        });
        let header =
            Header { name: request.name, ..Header::request(id, request.kind, request.stream, request.size) };
        Some(Outgoing { header: header.encode(), payload: request.payload, tag: request.tag })
    }

    /// When [`Link::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.dead {
            return None;
        }
        let waits = self
            .streams
            .iter()
            .flat_map(|s| [s.parked.front().map(|p| p.deadline), s.close.as_ref().map(|c| c.deadline)]);
        waits.chain([self.awaiting.front().map(|a| a.deadline)]).flatten().min()
    }

    /// Why the link died; said once.
    pub fn take_fault(&mut self) -> Option<LinkFault<T>> {
        self.fault.take()
    }

    /// Ends the link: nothing is sent or understood from now on.
    pub fn kill(&mut self) {
        self.dead = true;
        self.responses.clear();
        self.requests.clear();
        self.awaiting.clear();
        self.streams.clear();
        self.receiving = Receiving::Header { got: 0 };
    }

    /// Time on the wire of `bytes` at the slowest rate that is believed.
    pub fn wire_time(bytes: u64) -> Duration {
        Duration::from_nanos(bytes.saturating_mul(WORST_NS_PER_BYTE))
    }

    // ---- inside -----------------------------------------------------------------------------------------------

    fn fail(&mut self, fault: LinkFault<T>) {
        if !self.dead {
            self.kill();
            self.fault = Some(fault);
        }
    }

    fn protocol(&mut self, problem: String) {
        self.fail(LinkFault::Protocol(problem));
    }

    fn occupy_wire(&mut self, bytes: u64, now: Instant) {
        self.wire_free = self.wire_free.max(now) + Self::wire_time(bytes);
    }

    fn request(&mut self, kind: EventKind, stream: StreamId, size: u32, tag: Option<T>) {
        self.requests.push_back(Request { kind, stream, name: StreamName::EMPTY, size, payload: None, tag });
    }

    fn respond(&mut self, request: &Header, flags: Flags) {
        if self.responses.len() + self.requests.len() + self.awaiting.len() >= MAX_QUEUED {
            return self.protocol("the stick floods the link without answering".into());
        }
        self.responses.push_back(request.response(flags));
    }

    /// The vendor's rule: the number handed out last again if its stream is closed, else the next one.
    fn fresh_stream_id(&mut self) -> Result<StreamId, LinkError> {
        if self.streams.len() >= MAX_STREAMS {
            return Err(LinkError::StreamLimit);
        }
        let id = match self.last_stream {
            None => 0,
            Some(last) if self.streams.iter().all(|s| s.id.0 != last) => last,
            Some(last) => last.checked_add(1).ok_or(LinkError::StreamLimit)?,
        };
        self.last_stream = Some(id);
        Ok(StreamId(id))
    }

    /// Sends what the credit of a stream allows now: parked writes first, then its close.
    fn unpark(&mut self, stream: StreamId) {
        let Some(s) = self.streams.iter_mut().find(|s| s.id == stream) else { return };
        while let Some(size) = s.parked.front().map(|p| p.size) {
            if !s.take_credit(size) {
                return;
            }
            if let Some(parked) = s.parked.pop_front() {
                self.requests.push_back(Request {
                    kind: EventKind::Write,
                    stream,
                    name: StreamName::EMPTY,
                    size,
                    payload: Some(parked.payload),
                    tag: parked.tag,
                });
            }
        }
        if s.sent.is_empty()
            && let Some(close) = s.close.take()
        {
            self.request(EventKind::CloseStream, stream, 0, close.tag);
        }
    }

    fn handle_header(&mut self, header: Header) -> Option<LinkEvent<T>> {
        match header.side {
            Side::Response => self.handle_response(header),
            Side::Request => match header.kind {
                EventKind::Write => self.handle_write(header),
                EventKind::ReadRelease => self.handle_release(header),
                EventKind::CreateStream => {
                    self.handle_create(header);
                    None
                }
                EventKind::CloseStream => {
                    self.handle_close(header);
                    None
                }
                EventKind::Ping => {
                    self.respond(&header, Flags::ACK);
                    None
                }
                EventKind::Read | EventKind::ReadReleaseSpecific | EventKind::Reset => {
                    self.protocol(format!("{:?} request from the stick", header.kind));
                    None
                }
            },
        }
    }

    /// Responses are matched by id and kind alone: their other fields may be stale.
    fn handle_response(&mut self, header: Header) -> Option<LinkEvent<T>> {
        let found = self.awaiting.iter().position(|a| a.id == header.id && a.kind == header.kind);
        let Some(awaited) = found.and_then(|at| self.awaiting.remove(at)) else {
            self.protocol(format!("answer {:?} {} to nothing that was asked", header.kind, header.id));
            return None;
        };
        let accepted = header.flags.contains(Flags::ACK) && !header.flags.contains(Flags::NACK);
        let at = self.streams.iter().position(|s| s.id == awaited.stream);
        match (awaited.kind, accepted) {
            (EventKind::CreateStream, true) => {
                if let Some(s) = at.and_then(|at| self.streams.get_mut(at)) {
                    s.side = StreamSide::Open;
                }
            }
            (EventKind::CreateStream, false) => {
                if let Some(at) = at {
                    self.streams.remove(at);
                }
                return awaited.tag.map(|tag| LinkEvent::Refused(tag, header.flags));
            }
            (EventKind::CloseStream, true) => {
                if let Some(at) = at {
                    self.close_our_side(at);
                }
            }
            // A stick that resets may say so in any way.
            (EventKind::Reset, _) => {}
            (_, true) => {}
            (kind, false) => {
                self.fail(LinkFault::Refused { kind, tag: awaited.tag, flags: header.flags });
                return None;
            }
        }
        awaited.tag.map(LinkEvent::Answered)
    }

    /// The number stays taken while the stick has its own side open.
    fn close_our_side(&mut self, at: usize) {
        let s = &mut self.streams[at];
        if s.device_open {
            s.side = StreamSide::Closed;
            s.accept = Accept::Discard;
        } else {
            self.streams.remove(at);
        }
    }

    fn handle_write(&mut self, header: Header) -> Option<LinkEvent<T>> {
        let at = self.streams.iter().position(|s| s.id == header.stream);
        let accept = at.map_or(Accept::Discard, |at| self.streams[at].accept);
        let sink = match accept {
            Accept::Nothing => {
                self.protocol(format!("the stick writes on stream {}, which is ours alone", header.stream));
                return None;
            }
            Accept::Element => Sink::Element,
            _ if header.size > MAX_PACKET_BYTES => {
                self.protocol(format!("packet of {} bytes on stream {}", header.size, header.stream));
                return None;
            }
            Accept::Packets => Sink::Packet,
            Accept::Discard => Sink::Discard,
        };
        if let Some(at) = at
            && !self.streams[at].received.push(header.size)
        {
            self.protocol(format!("a 65th unreleased packet on stream {}", header.stream));
            return None;
        }
        self.packet.clear();
        self.receiving = Receiving::Payload { request: header, got: 0, sink };
        match sink {
            Sink::Element => Some(LinkEvent::ElementBegun(header.stream, header.size)),
            Sink::Packet | Sink::Discard => self.finish_payload(),
        }
    }

    /// Acknowledges a write once its last byte is there.
    fn finish_payload(&mut self) -> Option<LinkEvent<T>> {
        let Receiving::Payload { request, got, sink } = self.receiving else { return None };
        if got < request.size {
            return None;
        }
        self.receiving = Receiving::Header { got: 0 };
        if self.streams.iter().all(|s| s.id != request.stream) {
            self.respond(&request, Flags::NACK | Flags::NO_SUCH_STREAM);
            return None;
        }
        self.respond(&request, Flags::ACK);
        match sink {
            Sink::Packet => Some(LinkEvent::Packet(request.stream)),
            Sink::Element => Some(LinkEvent::ElementDone(request.stream)),
            Sink::Discard => {
                let released = self.release(request.stream, None);
                debug_assert!(released.is_ok() || self.dead, "the packet was just counted");
                None
            }
        }
    }

    fn handle_release(&mut self, header: Header) -> Option<LinkEvent<T>> {
        let Some(s) = self.streams.iter_mut().find(|s| s.id == header.stream) else {
            self.respond(&header, Flags::NACK | Flags::NO_SUCH_STREAM);
            return None;
        };
        match s.sent.front() {
            Some(size) if size == header.size => {
                s.sent.pop();
            }
            Some(size) => {
                let problem = format!(
                    "release of {} bytes on stream {}, the oldest packet has {size}",
                    header.size, header.stream
                );
                self.protocol(problem);
                return None;
            }
            None => {
                self.protocol(format!("release of a packet that was never sent on stream {}", header.stream));
                return None;
            }
        }
        self.respond(&header, Flags::ACK);
        self.unpark(header.stream);
        Some(LinkEvent::Released(header.stream))
    }

    /// The stick opens its own side: the answer carries the number that we already use for that name.
    fn handle_create(&mut self, header: Header) {
        let known = self.streams.iter_mut().find(|s| s.name == header.name);
        let stream = match known {
            Some(s) => {
                s.device_open = true;
                Ok(s.id)
            }
            None => self.fresh_stream_id().inspect(|&id| {
                let mut s = Stream::new(id, header.name, 0, Accept::Discard, StreamSide::Closed);
                s.device_open = true;
                self.streams.push(s);
            }),
        };
        match stream {
            Ok(id) => self.respond(&Header { stream: id, ..header }, Flags::ACK),
            Err(_) => self.respond(&header, Flags::NACK),
        }
    }

    fn handle_close(&mut self, header: Header) {
        let Some(at) = self.streams.iter().position(|s| s.id == header.stream) else {
            return self.respond(&header, Flags::NACK | Flags::NO_SUCH_STREAM);
        };
        let s = &mut self.streams[at];
        s.device_open = false;
        if s.side == StreamSide::Closed {
            self.streams.remove(at);
        }
        self.respond(&header, Flags::ACK);
    }
}
