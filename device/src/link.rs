//! XLink, device side: events in from a byte stream, transfers out, streams with credit. It knows no commands.
//!
//! [`Link::feed`] takes bytes however they were cut; [`Link::next_in`] and [`Link::consume_in`] give the IN pipe's
//! transfers: a header is one, a payload another (or several pieces).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ncs2::clock::Instant;
use ncs2::wire::{EventKind, Flags, HEADER_LEN, Header, MAX_TRANSFER_BYTES, Side, StreamId, StreamName};

use crate::hub::{Hub, Way};

/// Streams of one link, and packets that may lie unreleased on one stream.
pub(crate) const MAX_STREAMS: usize = 32;
pub(crate) const MAX_PACKETS: usize = 64;
/// With so many transfers waiting for a reader the stick takes no more OUT bytes (NAK), so that its memory is bounded.
const MAX_WAITING: usize = 1024;
/// The device's own event numbers; the host's are a space of their own.
const FIRST_ID: i32 = 0x4000_0000;
/// Bytes of a payload that travels without an allocation.
const INLINE: usize = 128;
/// Vectors that are kept for reuse, and the largest of them.
const MAX_SPARES: usize = 64;
const MAX_SPARE_BYTES: usize = 8 << 20;

/// How the link behaves and how fast it is. Zero times: no waiting.
#[derive(Clone, Debug)]
pub(crate) struct LinkRules {
    pub(crate) max_packet_bytes: usize,
    pub(crate) ns_per_byte: f64,
    pub(crate) transfer_ns: f64,
    pub(crate) ack_delay: Duration,
    pub(crate) creates_streams: bool,
    pub(crate) zero_length_full: bool,
    pub(crate) zero_length_always: bool,
    /// Largest credit that a stream may be created with.
    pub(crate) max_credit: u64,
    /// Shared with other sticks.
    pub(crate) hub: Option<Arc<Hub>>,
}

/// Index of a stream in the link's table. Valid until the stream closes.
pub(crate) type Slot = usize;

/// What came in. Payload bytes are lent, not copied.
#[derive(Debug, PartialEq)]
pub(crate) enum Event<'a> {
    /// More bytes are needed, or an event that the link answers itself.
    Nothing,
    Created(Slot),
    Closed(Slot),
    /// A packet of `size` bytes begins.
    Begin {
        slot: Slot,
        size: usize,
    },
    /// Bytes of it. With `last` the packet is complete and its WRITE response is under way.
    Data {
        slot: Slot,
        bytes: &'a [u8],
        last: bool,
    },
    /// The host released a packet: there may be room for more.
    Released(Slot),
    /// RESET_REQ; the answer is the owner's.
    Reset(Header),
}

/// A payload on its way to the host.
#[derive(Debug)]
pub(crate) enum Body {
    Inline { bytes: [u8; INLINE], len: usize },
    Owned(Vec<u8>),
}

impl Body {
    /// A short payload; longer ones are cut (callers send at most 120 bytes this way).
    pub(crate) fn short(data: &[u8]) -> Body {
        let len = data.len().min(INLINE);
        let mut bytes = [0; INLINE];
        bytes[..len].copy_from_slice(&data[..len]);
        Body::Inline { bytes, len }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Body::Inline { bytes, len } => &bytes[..*len],
            Body::Owned(v) => v,
        }
    }
}

#[derive(Debug)]
struct Item {
    body: Body,
    /// Bytes of it that the host has.
    sent: usize,
    /// Longest transfer that it is cut into.
    piece: usize,
    /// When it has crossed the wire.
    ready: Instant,
}

#[derive(Debug)]
struct Stream {
    id: StreamId,
    name: StreamName,
    /// What the host may have outstanding.
    host_credit: u64,
    /// Sizes of packets that the host sent and we have not released.
    unreleased: VecDeque<u32>,
    unreleased_bytes: u64,
    /// What we may have outstanding.
    credit: u64,
    /// Sizes of packets that we sent and the host has not released.
    outstanding: VecDeque<u32>,
    outstanding_bytes: u64,
    /// Packets that wait for credit.
    backlog: VecDeque<(Body, usize)>,
}

#[derive(Debug)]
enum Rx {
    Header { bytes: [u8; HEADER_LEN], have: usize },
    Payload { request: Header, slot: Option<Slot>, left: usize },
}

/// Things that a correct host never does, counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Violations {
    /// Headers that are no XLink header.
    pub nonsense_headers: u64,
    /// Writes beyond the credit or 64 packets; refused.
    pub credit: u64,
    /// Writes, releases or closes on streams that do not exist.
    pub no_such_stream: u64,
    /// Releases of packets that were never sent.
    pub surplus_releases: u64,
    /// Streams closed or created against the rules.
    pub streams: u64,
}

#[derive(Debug)]
pub(crate) struct Link {
    rules: LinkRules,
    rx: Rx,
    streams: Vec<Option<Stream>>,
    tx: VecDeque<Item>,
    /// WRITE responses that are delayed.
    late: VecDeque<(Instant, Header)>,
    next_id: i32,
    /// When each direction of the wire is free again.
    in_free: Instant,
    out_free: Instant,
    spares: Vec<Vec<u8>>,
    pub(crate) violations: Violations,
}

impl Link {
    pub(crate) fn new(rules: LinkRules) -> Self {
        Link {
            rules,
            rx: Rx::Header { bytes: [0; HEADER_LEN], have: 0 },
            streams: (0..MAX_STREAMS).map(|_| None).collect(),
            tx: VecDeque::with_capacity(64),
            late: VecDeque::new(),
            next_id: FIRST_ID,
            in_free: Instant::ZERO,
            out_free: Instant::ZERO,
            spares: Vec::new(),
            violations: Violations::default(),
        }
    }

    // --- OUT -------------------------------------------------------------------------------------------------------

    /// True while the stick takes OUT bytes.
    pub(crate) fn takes_out(&self) -> bool {
        self.tx.len() + self.late.len() < MAX_WAITING
    }

    /// When an OUT transfer of `len` bytes that starts now has crossed the wire.
    pub(crate) fn out_arrival(&mut self, len: usize, now: Instant) -> Instant {
        let hub = self.rules.hub.as_ref().map_or(now, |hub| hub.pass(Way::Out, len, now));
        self.out_free = hub.max(now.max(self.out_free) + wire_time(&self.rules, len));
        self.out_free
    }

    /// Takes bytes up to the next event; returns how many. Call again until it takes none and says [`Event::Nothing`].
    pub(crate) fn feed<'a>(&mut self, bytes: &'a [u8], now: Instant) -> (usize, Event<'a>) {
        match &mut self.rx {
            Rx::Header { bytes: buffer, have } => {
                let n = bytes.len().min(HEADER_LEN - *have);
                buffer[*have..*have + n].copy_from_slice(&bytes[..n]);
                *have += n;
                if *have < HEADER_LEN {
                    return (n, Event::Nothing);
                }
                *have = 0;
                let parsed = Header::parse(&buffer[..]);
                match parsed {
                    Ok(header) => (n, self.event(header, now)),
                    Err(_) => {
                        self.violations.nonsense_headers += 1;
                        (n, Event::Nothing)
                    }
                }
            }
            Rx::Payload { request, slot, left } => {
                let n = bytes.len().min(*left);
                if n == 0 && *left > 0 {
                    return (0, Event::Nothing);
                }
                *left -= n;
                let (request, slot, last) = (*request, *slot, *left == 0);
                if last {
                    self.rx = Rx::Header { bytes: [0; HEADER_LEN], have: 0 };
                    match slot.and_then(|s| self.streams[s].as_mut()) {
                        Some(stream) => {
                            stream.unreleased.push_back(request.size);
                            stream.unreleased_bytes += u64::from(request.size);
                            self.acknowledge(&request, now);
                        }
                        None => self.refuse_write(&request, now),
                    }
                }
                match slot {
                    Some(slot) => (n, Event::Data { slot, bytes: &bytes[..n], last }),
                    None => (n, Event::Nothing),
                }
            }
        }
    }

    fn event(&mut self, header: Header, now: Instant) -> Event<'static> {
        if header.side == Side::Response {
            // Acks of the host carry stale fields, and nothing of ours waits for them.
            return Event::Nothing;
        }
        match header.kind {
            EventKind::Write => {
                let size = header.size as usize;
                let slot = self.admit(&header);
                self.rx = Rx::Payload { request: header, slot, left: size };
                slot.map_or(Event::Nothing, |slot| Event::Begin { slot, size })
            }
            EventKind::ReadRelease | EventKind::ReadReleaseSpecific => self.released(&header, now),
            EventKind::CreateStream => self.create(&header, now),
            EventKind::CloseStream => self.close(&header, now),
            EventKind::Ping => {
                self.send_header(header.response(Flags::ACK), now);
                Event::Nothing
            }
            EventKind::Reset => Event::Reset(header),
            EventKind::Read => {
                self.send_header(header.response(Flags::NACK), now);
                Event::Nothing
            }
        }
    }

    /// The stream of a write that may come; `None` where its payload is thrown away and the write refused.
    fn admit(&mut self, header: &Header) -> Option<Slot> {
        let Some(slot) = self.find(header.stream) else {
            self.violations.no_such_stream += 1;
            return None;
        };
        let stream = self.streams[slot].as_ref()?;
        let fits = stream.unreleased_bytes + u64::from(header.size) <= stream.host_credit;
        if fits && stream.unreleased.len() < MAX_PACKETS {
            Some(slot)
        } else {
            self.violations.credit += 1;
            None
        }
    }

    fn acknowledge(&mut self, request: &Header, now: Instant) {
        if self.rules.ack_delay.is_zero() {
            self.send_header(request.response(Flags::ACK), now);
        } else {
            self.late.push_back((now + self.rules.ack_delay, request.response(Flags::ACK)));
        }
    }

    fn refuse_write(&mut self, request: &Header, now: Instant) {
        let why =
            if self.find(request.stream).is_some() { Flags::BUFFER_FULL } else { Flags::NO_SUCH_STREAM };
        self.send_header(request.response(Flags::NACK | why), now);
    }

    fn released(&mut self, header: &Header, now: Instant) -> Event<'static> {
        let slot = self.find(header.stream);
        self.send_header(header.response(Flags::ACK), now);
        let Some(slot) = slot else {
            self.violations.no_such_stream += 1;
            return Event::Nothing;
        };
        let Some(stream) = self.streams[slot].as_mut() else { return Event::Nothing };
        match stream.outstanding.pop_front() {
            Some(size) => stream.outstanding_bytes -= u64::from(size),
            None => {
                self.violations.surplus_releases += 1;
                return Event::Nothing;
            }
        }
        self.flush(slot, now);
        Event::Released(slot)
    }

    fn create(&mut self, header: &Header, now: Instant) -> Event<'static> {
        let known = self.streams.iter().flatten().any(|s| s.id == header.stream || s.name == header.name);
        if known || header.stream == StreamId::INVALID {
            self.violations.streams += 1;
            self.send_header(header.response(Flags::NACK), now);
            return Event::Nothing;
        }
        if u64::from(header.size) > self.rules.max_credit {
            // Neither accepted nor refused: what the host reads as "out of memory".
            self.send_header(header.response(Flags::SIZE_TOO_BIG), now);
            return Event::Nothing;
        }
        let Some(slot) = self.streams.iter().position(Option::is_none) else {
            self.send_header(header.response(Flags::NACK | Flags::BUFFER_FULL), now);
            return Event::Nothing;
        };
        let credit = u64::from(header.size).next_multiple_of(64);
        self.streams[slot] = Some(Stream {
            id: header.stream,
            name: header.name,
            host_credit: credit,
            unreleased: VecDeque::with_capacity(MAX_PACKETS),
            unreleased_bytes: 0,
            credit: u64::MAX,
            outstanding: VecDeque::with_capacity(MAX_PACKETS),
            outstanding_bytes: 0,
            backlog: VecDeque::new(),
        });
        self.send_header(header.response(Flags::ACK), now);
        if self.rules.creates_streams {
            let id = self.take_id();
            let mut own = Header::request(id, EventKind::CreateStream, header.stream, header.size.max(64));
            own.name = header.name;
            self.send_header(own, now);
        }
        Event::Created(slot)
    }

    fn close(&mut self, header: &Header, now: Instant) -> Event<'static> {
        let Some(slot) = self.find(header.stream) else {
            self.violations.no_such_stream += 1;
            self.send_header(header.response(Flags::NACK | Flags::NO_SUCH_STREAM), now);
            return Event::Nothing;
        };
        if self.streams[slot].as_ref().is_some_and(|s| !s.unreleased.is_empty()) {
            // There is data that nobody has read yet.
            self.violations.streams += 1;
            self.send_header(header.response(Flags::NACK), now);
            return Event::Nothing;
        }
        if let Some(stream) = self.streams[slot].take() {
            for (body, _) in stream.backlog {
                self.give(body);
            }
        }
        self.send_header(header.response(Flags::ACK), now);
        if self.rules.creates_streams {
            let id = self.take_id();
            self.send_header(Header::request(id, EventKind::CloseStream, header.stream, 0), now);
        }
        Event::Closed(slot)
    }

    // --- streams ---------------------------------------------------------------------------------------------------

    fn find(&self, id: StreamId) -> Option<Slot> {
        self.streams.iter().position(|s| s.as_ref().is_some_and(|s| s.id == id))
    }

    pub(crate) fn find_name(&self, name: &StreamName) -> Option<Slot> {
        self.streams.iter().position(|s| s.as_ref().is_some_and(|s| s.name == *name))
    }

    pub(crate) fn name(&self, slot: Slot) -> StreamName {
        self.streams[slot].as_ref().map_or(StreamName::EMPTY, |s| s.name)
    }

    /// What this side may have outstanding on a stream; unlimited (but for 64 packets) until it is set.
    pub(crate) fn set_credit(&mut self, slot: Slot, bytes: u64) {
        if let Some(stream) = self.streams[slot].as_mut() {
            stream.credit = bytes;
        }
    }

    /// Packets that wait for the host to release others.
    pub(crate) fn backlog(&self, slot: Slot) -> usize {
        self.streams[slot].as_ref().map_or(0, |s| s.backlog.len())
    }

    /// Releases the host's oldest packet on the stream.
    pub(crate) fn release(&mut self, slot: Slot, now: Instant) {
        let Some(stream) = self.streams[slot].as_mut() else { return };
        let Some(size) = stream.unreleased.pop_front() else { return };
        stream.unreleased_bytes -= u64::from(size);
        let id = stream.id;
        let number = self.take_id();
        self.send_header(Header::request(number, EventKind::ReadRelease, id, size), now);
    }

    /// Sends a packet, now or when there is credit. `piece` cuts the payload into transfers, 0 does not.
    pub(crate) fn write(&mut self, slot: Slot, body: Body, piece: usize, now: Instant) {
        let Some(stream) = self.streams[slot].as_mut() else {
            self.give(body);
            return;
        };
        stream.backlog.push_back((body, piece));
        self.flush(slot, now);
    }

    fn flush(&mut self, slot: Slot, now: Instant) {
        loop {
            let Some(stream) = self.streams[slot].as_mut() else { return };
            let Some((body, _)) = stream.backlog.front() else { return };
            let size = body.bytes().len() as u64;
            // A packet that is larger than the whole credit goes when it is alone, or it never would.
            let fits = stream.outstanding_bytes + size <= stream.credit || stream.outstanding.is_empty();
            if !fits || stream.outstanding.len() >= MAX_PACKETS {
                return;
            }
            let Some((body, piece)) = stream.backlog.pop_front() else { return };
            stream.outstanding.push_back(size as u32);
            stream.outstanding_bytes += size;
            let id = stream.id;
            let number = self.take_id();
            self.send_header(Header::request(number, EventKind::Write, id, size as u32), now);
            if size > 0 {
                let piece = if piece == 0 { MAX_TRANSFER_BYTES } else { piece };
                self.send(body, piece, now);
                let full = (size as usize).is_multiple_of(self.rules.max_packet_bytes);
                if self.rules.zero_length_always || (self.rules.zero_length_full && full) {
                    self.send(Body::short(&[]), MAX_TRANSFER_BYTES, now);
                }
            } else {
                self.give(body);
            }
        }
    }

    fn take_id(&mut self) -> i32 {
        let id = self.next_id;
        self.next_id = if id == i32::MAX { FIRST_ID } else { id + 1 };
        id
    }

    // --- IN --------------------------------------------------------------------------------------------------------

    pub(crate) fn send_header(&mut self, header: Header, now: Instant) {
        self.send(Body::short(&header.encode()), MAX_TRANSFER_BYTES, now);
    }

    /// Bytes that are no header.
    pub(crate) fn babble(&mut self, now: Instant) {
        self.send(Body::short(&[0xa5; HEADER_LEN]), MAX_TRANSFER_BYTES, now);
    }

    fn send(&mut self, body: Body, piece: usize, now: Instant) {
        let len = body.bytes().len();
        let hub = self.rules.hub.as_ref().map_or(now, |hub| hub.pass(Way::In, len, now));
        self.in_free = hub.max(now.max(self.in_free) + wire_time(&self.rules, len));
        self.tx.push_back(Item { body, sent: 0, piece, ready: self.in_free });
    }

    /// What is left of the IN pipe's oldest transfer, if it has crossed the wire. Empty: a zero-length packet.
    pub(crate) fn next_in(&self, now: Instant) -> Option<&[u8]> {
        let item = self.tx.front().filter(|item| item.ready <= now)?;
        let bytes = item.body.bytes();
        let end = (item.sent / item.piece + 1).saturating_mul(item.piece).min(bytes.len());
        Some(&bytes[item.sent..end])
    }

    /// The host took `n` bytes of what [`Self::next_in`] shows; 0 takes a zero-length packet.
    pub(crate) fn consume_in(&mut self, n: usize) {
        let Some(item) = self.tx.front_mut() else { return };
        item.sent += n;
        if item.sent >= item.body.bytes().len()
            && let Some(item) = self.tx.pop_front()
        {
            self.give(item.body);
        }
    }

    /// True when nothing waits to be read.
    pub(crate) fn is_drained(&self) -> bool {
        self.tx.is_empty() && self.late.is_empty()
    }

    /// When the link has something to do: a transfer across the wire, a late ack.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let item = self.tx.front().map(|item| item.ready).filter(|&t| t > now);
        let late = self.late.front().map(|&(t, _)| t);
        item.into_iter().chain(late).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(due, header)) = self.late.front() {
            if due > now {
                return;
            }
            self.late.pop_front();
            self.send_header(header, now);
        }
    }

    // --- memory ----------------------------------------------------------------------------------------------------

    /// An empty vector, recycled where possible: the hot path allocates nothing.
    pub(crate) fn take_vec(&mut self) -> Vec<u8> {
        self.spares.pop().unwrap_or_default()
    }

    pub(crate) fn give_vec(&mut self, mut v: Vec<u8>) {
        if self.spares.len() < MAX_SPARES && v.capacity() <= MAX_SPARE_BYTES && v.capacity() > 0 {
            v.clear();
            self.spares.push(v);
        }
    }

    fn give(&mut self, body: Body) {
        if let Body::Owned(v) = body {
            self.give_vec(v);
        }
    }
}

fn wire_time(rules: &LinkRules, len: usize) -> Duration {
    Duration::from_nanos((rules.transfer_ns + rules.ns_per_byte * len as f64) as u64)
}
