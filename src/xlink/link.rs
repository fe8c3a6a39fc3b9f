//! One link: turns received bytes into events, commands into headers, and waits into deadlines.

use std::collections::VecDeque;
use std::time::Duration;

use super::stream::{Parked, PendingClose, Side as StreamSide, Stream};
use super::{Accept, LinkError, LinkEvent, LinkFault, MAX_PACKET_BYTES, MAX_PACKETS, MAX_STREAMS, Outgoing};
use crate::clock::Instant;
use crate::wire::{EventKind, Flags, HEADER_LEN, Header, StreamId, StreamName};

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
pub(super) struct Awaited<T> {
    pub(super) id: i32,
    pub(super) kind: EventKind,
    pub(super) stream: StreamId,
    pub(super) tag: Option<T>,
    sent: Instant,
    deadline: Instant,
    /// Bytes handed out up to the end of this request.
    pub(super) sent_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Sink {
    Packet,
    Discard,
    Element,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Receiving {
    Header { got: usize },
    Payload { request: Header, got: u32, sink: Sink },
}

/// The host's end of one XLink connection.
#[derive(Debug)]
pub struct Link<P, T> {
    timeout: Duration,
    next_id: i32,
    last_stream: Option<u32>,
    pub(super) streams: Vec<Stream<P, T>>,
    responses: VecDeque<Header>,
    requests: VecDeque<Request<P, T>>,
    /// In order of sending.
    pub(super) awaiting: VecDeque<Awaited<T>>,
    pub(super) receiving: Receiving,
    header: [u8; HEADER_LEN],
    pub(super) packet: Vec<u8>,
    /// When all that was handed out is certainly on the stick.
    wire_free: Instant,
    /// Payload bytes of `requests`.
    queued_bytes: u64,
    /// Bytes handed out so far.
    sent_bytes: u64,
    fault: Option<LinkFault<T>>,
    pub(super) dead: bool,
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
            queued_bytes: 0,
            sent_bytes: 0,
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
            self.queued_bytes += u64::from(size);
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
    pub fn handle_in(&mut self, bytes: &[u8], now: Instant) -> (usize, Option<LinkEvent<T>>) {
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
                    Ok(header) => (take, self.handle_header(header, now)),
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
        if let Some(a) = self.awaiting.iter().find(|a| a.deadline <= now) {
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
        self.queued_bytes -= payload_bytes;
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
            sent_bytes: self.sent_bytes,
        });
        let header =
            Header { name: request.name, ..Header::request(id, request.kind, request.stream, request.size) };
        Some(Outgoing { header: header.encode(), payload: request.payload, tag: request.tag })
    }

    /// How far the link has come: all that was handed out until now.
    pub fn mark(&self) -> u64 {
        self.sent_bytes
    }

    /// True when the stick has answered every request up to the mark. Bytes that are lost on the way leave one without an
    /// answer, since the stick takes what follows in their place.
    pub fn has_answered(&self, mark: u64) -> bool {
        self.awaiting.front().is_none_or(|a| a.sent_bytes > mark)
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
        waits.flatten().chain(self.awaiting.iter().map(|a| a.deadline)).min()
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
        self.queued_bytes = 0;
        self.receiving = Receiving::Header { got: 0 };
    }

    /// Time on the wire of `bytes` at the slowest rate that is believed.
    pub fn wire_time(bytes: u64) -> Duration {
        Duration::from_nanos(bytes.saturating_mul(WORST_NS_PER_BYTE))
    }

    /// When all that was given to the link is certainly on the stick: deadlines count from here.
    pub fn wire_free(&self, now: Instant) -> Instant {
        self.wire_free.max(now) + Self::wire_time(self.queued_bytes)
    }

    /// Things that the link holds for later: answers, requests, waits. Bounded; tests watch it.
    pub fn backlog(&self) -> usize {
        self.responses.len() + self.requests.len() + self.awaiting.len()
    }

    /// What the queues hold without growing.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.responses.capacity()
            + self.requests.capacity()
            + self.awaiting.capacity()
            + self.packet.capacity()
    }

    // ---- inside -----------------------------------------------------------------------------------------------

    pub(super) fn fail(&mut self, fault: LinkFault<T>) {
        if !self.dead {
            self.kill();
            self.fault = Some(fault);
        }
    }

    pub(super) fn protocol(&mut self, problem: String) {
        self.fail(LinkFault::Protocol(problem));
    }

    fn occupy_wire(&mut self, bytes: u64, now: Instant) {
        self.wire_free = self.wire_free.max(now) + Self::wire_time(bytes);
        self.sent_bytes += bytes;
    }

    /// The stick answered a request, so all up to its end has come through: only what was sent after it can still be
    /// on the wire. Without this, a link faster than the worst one would push its deadlines ever further away.
    pub(super) fn confirm(&mut self, sent_bytes: u64, now: Instant) {
        let behind = Self::wire_time(self.sent_bytes - sent_bytes);
        self.wire_free = self.wire_free.min(now + behind);
    }

    fn request(&mut self, kind: EventKind, stream: StreamId, size: u32, tag: Option<T>) {
        self.requests.push_back(Request { kind, stream, name: StreamName::EMPTY, size, payload: None, tag });
    }

    pub(super) fn respond(&mut self, request: &Header, flags: Flags) {
        if self.backlog() >= MAX_QUEUED {
            return self.protocol("the stick floods the link without answering".into());
        }
        self.responses.push_back(request.response(flags));
    }

    /// The vendor's rule: the number handed out last again if its stream is closed, else the next one.
    pub(super) fn fresh_stream_id(&mut self) -> Result<StreamId, LinkError> {
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
    pub(super) fn unpark(&mut self, stream: StreamId) {
        let Some(s) = self.streams.iter_mut().find(|s| s.id == stream) else { return };
        while let Some(size) = s.parked.front().map(|p| p.size) {
            if !s.take_credit(size) {
                return;
            }
            if let Some(parked) = s.parked.pop_front() {
                self.queued_bytes += u64::from(size);
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
}
