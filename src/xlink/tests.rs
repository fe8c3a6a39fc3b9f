//! The rules of a link, one by one.

use std::time::Duration;

use super::*;
use crate::clock::Instant;
use crate::wire::{Header, Side, StreamName};

type TestLink = Link<&'static str, u32>;

const T0: Instant = Instant::ZERO;
const TIMEOUT: Duration = Duration::from_secs(2);

fn link() -> TestLink {
    Link::new(TIMEOUT)
}

fn name(text: &str) -> StreamName {
    StreamName::new(text).unwrap()
}

fn next(link: &mut TestLink) -> Option<(Header, Option<&'static str>)> {
    let out = link.poll_transmit(T0)?;
    Some((Header::parse(&out.header).unwrap(), out.payload))
}

fn receive(link: &mut TestLink, header: Header) -> Option<LinkEvent<u32>> {
    let (taken, event) = link.handle_in(&header.encode(), T0);
    assert!(taken == HEADER_LEN || link.want() == LinkWant::Header(HEADER_LEN));
    event
}

fn request(id: i32, kind: EventKind, stream: StreamId, size: u32) -> Header {
    Header::request(0x4000_0000 + id, kind, stream, size)
}

fn open(link: &mut TestLink, stream: &str, credit: u32, accept: Accept) -> StreamId {
    let id = link.open_stream(name(stream), credit, accept, 1).unwrap();
    let (header, _) = next(link).unwrap();
    assert_eq!((header.kind, header.stream, header.size % 64), (EventKind::CreateStream, id, 0));
    assert_eq!(receive(link, header.response(Flags::ACK)), Some(LinkEvent::Answered(1)));
    id
}

fn fault(link: &mut TestLink) -> LinkFault<u32> {
    let fault = link.take_fault().expect("a fault");
    assert_eq!((link.backlog(), link.poll_timeout(), link.poll_transmit(T0)), (0, None, None));
    fault
}

/// Transcript 18: the number handed out last is used again once its stream is closed, others are not.
#[test]
fn stream_numbers_go_as_the_vendors() {
    let mut link = link();
    let ids: Vec<_> = ["a", "b", "c"].iter().map(|n| open(&mut link, n, 64, Accept::Packets).0).collect();
    assert_eq!(ids, [0, 1, 2]);
    for id in [1, 2] {
        link.close_stream(StreamId(id), 7, T0 + TIMEOUT, T0).unwrap();
        let (header, _) = next(&mut link).unwrap();
        assert_eq!(receive(&mut link, header.response(Flags::ACK)), Some(LinkEvent::Answered(7)));
    }
    assert_eq!(open(&mut link, "d", 64, Accept::Packets).0, 2);
    assert_eq!(open(&mut link, "e", 64, Accept::Packets).0, 3);
    for n in 0..MAX_STREAMS - 3 {
        open(&mut link, &format!("s{n}"), 64, Accept::Packets);
    }
    assert_eq!(link.open_stream(name("x"), 64, Accept::Packets, 0), Err(LinkError::StreamLimit));
}

#[test]
fn request_ids_count_from_ten() {
    let mut link = link();
    for n in 0..3 {
        link.ping(n);
        assert_eq!(next(&mut link).unwrap().0.id, 10 + n as i32);
    }
}

#[test]
fn credit_is_bytes_and_64_packets_and_parked_writes_keep_their_order() {
    let mut link = link();
    let s = open(&mut link, "s", 100, Accept::Nothing); // rounded up to 128
    let other = open(&mut link, "t", 4096, Accept::Nothing);
    for (size, payload) in [(100, "a"), (28, "b"), (30, "c"), (1, "d")] {
        link.write(s, size, payload, 2, T0 + TIMEOUT, T0).unwrap();
    }
    assert_eq!(link.write(s, 129, "e", 2, T0, T0), Err(LinkError::TooLong));
    link.write(other, 5, "o", 3, T0 + TIMEOUT, T0).unwrap();
    let sent: Vec<_> = std::iter::from_fn(|| next(&mut link)).filter_map(|(_, p)| p).collect();
    assert_eq!(sent, ["a", "b", "o"], "d would fit, but goes after c");
    assert_eq!(receive(&mut link, request(0, EventKind::ReadRelease, s, 100)), Some(LinkEvent::Released(s)));
    let (response, _) = next(&mut link).unwrap();
    assert_eq!((response.kind, response.side), (EventKind::ReadRelease, Side::Response));
    let sent: Vec<_> = std::iter::from_fn(|| next(&mut link)).filter_map(|(_, p)| p).collect();
    assert_eq!(sent, ["c", "d"]);

    for _ in 0..MAX_PACKETS {
        link.write(other, 1, "x", 4, T0 + TIMEOUT, T0).unwrap();
    }
    let sent = std::iter::from_fn(|| next(&mut link)).count();
    assert_eq!(sent, MAX_PACKETS - 1, "one of 64 was there already, one is parked");
}

#[test]
fn a_65th_unreleased_packet_is_a_fault() {
    let mut link = link();
    let s = open(&mut link, "s", 64, Accept::Packets);
    for n in 0..MAX_PACKETS as i32 {
        assert_eq!(
            receive(&mut link, request(n, EventKind::Write, s, 0)),
            Some(LinkEvent::Packet(s)),
            "an empty packet is whole at once"
        );
    }
    link.release(s, None).unwrap();
    assert!(receive(&mut link, request(64, EventKind::Write, s, 0)).is_some());
    assert_eq!(receive(&mut link, request(65, EventKind::Write, s, 0)), None);
    assert!(matches!(fault(&mut link), LinkFault::Protocol(p) if p.contains("65th")));
}

#[test]
fn a_close_waits_for_releases_and_not_for_ever() {
    let mut link = link();
    let s = open(&mut link, "s", 64, Accept::Nothing);
    link.write(s, 4, "x", 2, T0 + TIMEOUT, T0).unwrap();
    link.close_stream(s, 3, T0 + TIMEOUT * 4, T0).unwrap();
    assert_eq!(link.write(s, 4, "y", 2, T0, T0), Err(LinkError::NoSuchStream));
    let (write, _) = next(&mut link).unwrap();
    receive(&mut link, write.response(Flags::ACK));
    assert_eq!(next(&mut link), None);
    link.handle_timeout(T0 + TIMEOUT * 3);
    assert_eq!(link.poll_timeout(), Some(T0 + TIMEOUT * 4));
    link.handle_timeout(T0 + TIMEOUT * 4);
    let expected = LinkFault::Timeout { kind: EventKind::CloseStream, tag: Some(3), after: TIMEOUT * 4 };
    assert_eq!(fault(&mut link), expected);
}

#[test]
fn answers_that_do_not_fit_are_faults() {
    let nack = |link: &mut TestLink| {
        let s = open(link, "s", 64, Accept::Nothing);
        link.write(s, 4, "x", 9, T0 + TIMEOUT, T0).unwrap();
        let (write, _) = next(link).unwrap();
        receive(link, write.response(Flags::NACK));
    };
    let mut refused = link();
    nack(&mut refused);
    let expected = LinkFault::Refused { kind: EventKind::Write, tag: Some(9), flags: Flags::NACK };
    assert_eq!(fault(&mut refused), expected);

    let mut stranger = link();
    stranger.ping(0);
    let (ping, _) = next(&mut stranger).unwrap();
    let wrong_kind = Header { kind: EventKind::Reset, ..ping };
    receive(&mut stranger, wrong_kind.response(Flags::ACK));
    assert!(matches!(fault(&mut stranger), LinkFault::Protocol(_)));

    for (size, stream) in [(5, 0), (4, 0)] {
        let mut releases = link();
        let s = open(&mut releases, "s", 64, Accept::Nothing);
        if size == 5 {
            releases.write(s, 4, "x", 9, T0 + TIMEOUT, T0).unwrap();
        }
        receive(&mut releases, request(0, EventKind::ReadRelease, StreamId(stream), size));
        assert!(matches!(fault(&mut releases), LinkFault::Protocol(_)));
    }
}

#[test]
fn unknown_streams_get_a_nack_and_hostile_sizes_end_the_link() {
    let mut link = link();
    let mut header = request(0, EventKind::Write, StreamId(9), 3);
    receive(&mut link, header);
    assert_eq!(link.want(), LinkWant::Packet(3));
    assert_eq!(link.handle_in(&[1, 2, 3, 4], T0), (3, None));
    let (response, _) = next(&mut link).unwrap();
    assert_eq!(response.flags, Flags::NACK | Flags::NO_SUCH_STREAM);
    for kind in [EventKind::ReadRelease, EventKind::CloseStream] {
        receive(&mut link, request(1, kind, StreamId(9), 3));
        assert_eq!(next(&mut link).unwrap().0.flags, Flags::NACK | Flags::NO_SUCH_STREAM);
    }
    header.size = u32::MAX;
    receive(&mut link, header);
    assert!(matches!(fault(&mut link), LinkFault::Protocol(p) if p.contains("4294967295")));
}

#[test]
fn a_flood_ends_the_link() {
    let mut link = link();
    let mut most = 0;
    for n in 0..100_000 {
        receive(&mut link, request(n, EventKind::Ping, StreamId(0), 0));
        most = most.max(link.backlog());
    }
    assert!(most <= 4096, "{most}");
    assert!(matches!(fault(&mut link), LinkFault::Protocol(p) if p.contains("floods")));
}

/// The number of a stream stays taken while the stick has its side open.
#[test]
fn the_sticks_own_side_outlives_ours() {
    let mut link = link();
    let s = open(&mut link, "s", 64, Accept::Packets);
    let mut create = request(0, EventKind::CreateStream, StreamId::INVALID, 64);
    create.name = name("s");
    receive(&mut link, create);
    assert_eq!(next(&mut link).unwrap().0.stream, s);
    link.close_stream(s, 3, T0 + TIMEOUT, T0).unwrap();
    let (close, _) = next(&mut link).unwrap();
    receive(&mut link, close.response(Flags::ACK));
    assert_eq!(open(&mut link, "t", 64, Accept::Packets).0, 1);
    receive(&mut link, request(1, EventKind::CloseStream, s, 0));
    let (response, _) = next(&mut link).unwrap();
    assert_eq!(
        (response.kind, response.side, response.flags),
        (EventKind::CloseStream, Side::Response, Flags::ACK)
    );
    assert_eq!(link.release(s, None), Err(LinkError::NoSuchStream));
}

/// A deadline counts from when the bytes before it can be on the stick: 8 MB at 8 MB/s take a second.
#[test]
fn what_goes_before_on_the_wire_has_its_time_first() {
    let mut link = link();
    let s = open(&mut link, "s", 8_000_000, Accept::Nothing);
    link.write(s, 8_000_000, "blob", 2, T0 + TIMEOUT, T0).unwrap();
    assert!(link.wire_free(T0) >= T0 + Duration::from_secs(1));
    link.ping(3);
    while next(&mut link).is_some() {}
    link.handle_timeout(T0 + Duration::from_millis(2999));
    assert_eq!(link.take_fault(), None);
    link.handle_timeout(T0 + Duration::from_millis(3001));
    assert!(matches!(fault(&mut link), LinkFault::Timeout { tag: Some(2), .. }));
}

/// On a link ten times faster than the worst, the deadline of the last request is as near as that of the first.
#[test]
fn a_fast_link_keeps_its_deadlines_near() {
    let mut link = link();
    let s = open(&mut link, "s", 8_000_000, Accept::Nothing);
    let mut now = T0;
    for n in 0..100 {
        link.write(s, 8_000_000, "input", 2, now + TIMEOUT, now).unwrap();
        let out = link.poll_transmit(now).unwrap();
        let deadline = link.poll_timeout().unwrap();
        assert!(deadline <= now + TIMEOUT + Duration::from_millis(1001), "{deadline:?} at {now:?}");
        now += Duration::from_millis(100);
        let write = Header::parse(&out.header).unwrap();
        link.handle_in(&write.response(Flags::ACK).encode(), now);
        link.handle_in(&request(n, EventKind::ReadRelease, s, 8_000_000).encode(), now);
        while link.poll_transmit(now).is_some() {}
    }
    assert_eq!(link.take_fault(), None);
}
