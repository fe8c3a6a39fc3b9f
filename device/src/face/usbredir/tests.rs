use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::packet::{BulkHeader, ControlHeader, Header32, Header64, kind};
use super::*;
use crate::face::usb::tests::{LATER, image, link, stick};

/// What a host writes.
#[derive(Default)]
struct Host {
    out: Vec<u8>,
    /// 64-bit ids, once both have said hello.
    wide: bool,
}

impl Host {
    fn packet(&mut self, kind: u32, id: u64, body: &[u8]) {
        let length = U32::new(body.len() as u32);
        if self.wide {
            let header = Header64 { kind: U32::new(kind), length, id: id.into() };
            self.out.extend_from_slice(header.as_bytes());
        } else {
            let header = Header32 { kind: U32::new(kind), length, id: U32::new(id as u32) };
            self.out.extend_from_slice(header.as_bytes());
        }
        self.out.extend_from_slice(body);
    }

    fn hello(&mut self) {
        let mut body = vec![0u8; 64];
        body.extend((packet::Caps::OURS.bits() | 1 << 7 | 1).to_le_bytes());
        self.packet(kind::HELLO, 0, &body);
        self.wide = true;
    }

    fn bulk(&mut self, id: u64, endpoint: u8, length: usize, data: &[u8]) {
        let header = BulkHeader {
            endpoint,
            status: 0,
            length: U16::new(length as u16),
            stream: U32::ZERO,
            length_high: U16::new((length >> 16) as u16),
        };
        let mut body = header.as_bytes().to_vec();
        body.extend(data);
        self.packet(kind::BULK_PACKET, id, &body);
    }

    fn control(&mut self, id: u64, request_type: u8, request: u8, value: u16, length: u16) {
        let header = ControlHeader {
            endpoint: request_type & 0x80,
            request,
            request_type,
            status: 0,
            value: U16::new(value),
            index: U16::ZERO,
            length: U16::new(length),
        };
        self.packet(kind::CONTROL_PACKET, id, header.as_bytes());
    }
}

/// Session, stick and host in one place.
struct Party {
    host: Host,
    session: Session,
    stick: VirtualStick,
    now: Instant,
    /// Headers from the device are wide after its hello.
    greeted: bool,
}

impl Party {
    fn new() -> Self {
        let mut stick = stick();
        while stick.poll_bus_event().is_some() {}
        let session = Session::new(link());
        Party { host: Host::default(), session, stick, now: Instant::ZERO, greeted: false }
    }

    /// Greeted, connected, configured.
    fn configured() -> Self {
        let mut party = Party::new();
        party.host.hello();
        party.host.packet(kind::SET_CONFIGURATION, 1, &[1]);
        let kinds: Vec<u32> = party.exchange(usize::MAX).iter().map(|p| p.0).collect();
        assert_eq!(
            kinds,
            [
                kind::HELLO,
                kind::EP_INFO,
                kind::INTERFACE_INFO,
                kind::DEVICE_CONNECT,
                kind::CONFIGURATION_STATUS
            ]
        );
        party
    }

    /// Hands over what the host wrote in pieces, and returns the device's packets: type, id, body.
    fn exchange(&mut self, piece: usize) -> Vec<(u32, u64, Vec<u8>)> {
        let bytes = std::mem::take(&mut self.host.out);
        for chunk in bytes.chunks(piece.clamp(1, bytes.len().max(1))) {
            self.session.handle_bytes(chunk, &mut self.stick, self.now).expect("proper packets");
        }
        self.settle()
    }

    fn settle(&mut self) -> Vec<(u32, u64, Vec<u8>)> {
        loop {
            self.now += std::time::Duration::from_micros(100);
            self.stick.handle_timeout(self.now);
            let mut progress = self.session.serve(&mut self.stick, self.now);
            while let Some(event) = self.stick.poll_bus_event() {
                progress = true;
                match event {
                    crate::BusEvent::Left => self.session.leave(),
                    crate::BusEvent::Appeared(identity) => self.session.appear(identity),
                }
            }
            if !progress {
                break;
            }
        }
        let bytes = self.session.outgoing().to_vec();
        self.session.consume(bytes.len());
        let mut rest = &bytes[..];
        let mut packets = Vec::new();
        while !rest.is_empty() {
            let header = if self.greeted { 16 } else { 12 };
            let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("four bytes"));
            let (kind, length, id) = (word(0), word(4) as usize, u64::from(word(8)));
            packets.push((kind, id, rest[header..header + length].to_vec()));
            rest = &rest[header + length..];
            self.greeted = true;
        }
        packets
    }
}

#[test]
fn the_host_learns_endpoints_before_the_device_and_only_after_its_hello() {
    let mut party = Party::new();
    assert_eq!(party.settle().len(), 1, "the hello alone");
    party.host.hello();
    let packets = party.exchange(1);
    let [(_, _, endpoints), (_, _, interfaces), (connect_kind, _, connect)] = &packets[..] else {
        panic!("{packets:?}")
    };
    assert_eq!((endpoints.len(), interfaces.len(), *connect_kind), (160, 132, kind::DEVICE_CONNECT));
    assert_eq!((endpoints[0], endpoints[1], endpoints[16], endpoints[17], endpoints[2]), (0, 2, 0, 2, 255));
    assert_eq!(u16::from_le_bytes([endpoints[96 + 2], endpoints[96 + 3]]), 512);
    assert_eq!(connect[..], [2, 0, 0, 0, 0xe7, 0x03, 0x85, 0x24, 1, 0]);
}

#[test]
fn firmware_brings_the_other_identity() {
    let mut party = Party::configured();
    let image = image();
    party.host.bulk(7, 0x01, image.len(), &image);
    let mut packets = party.exchange(1000);
    party.now = LATER;
    packets.extend(party.settle());
    let kinds: Vec<u32> = packets.iter().map(|p| p.0).collect();
    assert_eq!(
        kinds,
        [
            kind::BULK_PACKET,
            kind::DEVICE_DISCONNECT,
            kind::EP_INFO,
            kind::INTERFACE_INFO,
            kind::DEVICE_CONNECT
        ]
    );
    assert_eq!(packets[4].2[..], [3, 0, 0, 0, 0xe7, 0x03, 0x3b, 0xf6, 1, 0]);
    assert_eq!(u16::from_le_bytes([packets[2].2[98], packets[2].2[99]]), 1024);
}

#[test]
fn control_requests_are_answered_with_their_id() {
    let mut party = Party::configured();
    party.host.control(0x1_0000_0001, 0x80, 6, 0x0100, 18);
    party.host.control(3, 0x80, 6, 0x0900, 18);
    party.host.packet(kind::GET_CONFIGURATION, 4, &[]);
    party.host.packet(kind::SET_ALT_SETTING, 5, &[0, 0]);
    party.host.packet(kind::SET_ALT_SETTING, 6, &[1, 0]);
    let packets = party.exchange(7);
    assert_eq!((packets[0].0, packets[0].2.len()), (kind::CONTROL_PACKET, 10 + 18));
    assert_eq!(packets[1].2[3], Status::Stall as u8);
    assert_eq!(packets[2], (kind::CONFIGURATION_STATUS, 4, vec![0, 1]));
    assert_eq!(packets[3], (kind::ALT_SETTING_STATUS, 5, vec![0, 0, 0]));
    assert_eq!(packets[4].2[0], Status::Stall as u8);
}

#[test]
fn a_cancel_is_answered_once_on_its_endpoint() {
    let mut party = Party::configured();
    party.host.bulk(9, 0x81, 100_000, &[]);
    assert_eq!(party.exchange(usize::MAX), []);
    party.host.packet(kind::CANCEL_DATA_PACKET, 9, &[]);
    party.host.packet(kind::CANCEL_DATA_PACKET, 9, &[]);
    party.host.packet(kind::CANCEL_DATA_PACKET, 1234, &[]);
    let packets = party.exchange(usize::MAX);
    let [(kind::BULK_PACKET, 9, body)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!((body[0], body[1]), (0x81, Status::Cancelled as u8));
}

#[test]
fn wrong_endpoints_and_streams_are_refused() {
    let mut party = Party::configured();
    party.host.bulk(9, 0x82, 64, &[]);
    party.host.bulk(10, 0x02, 1, &[1]);
    let packets = party.exchange(usize::MAX);
    assert_eq!(
        packets.iter().map(|p| (p.1, p.2[0], p.2[1])).collect::<Vec<_>>(),
        [(9, 0x82, 2), (10, 0x02, 2)]
    );
}

#[test]
fn nothing_is_told_of_requests_that_the_unplug_ended() {
    let mut party = Party::configured();
    party.host.bulk(9, 0x81, 512, &[]);
    party.exchange(usize::MAX);
    party.stick.unplug();
    assert_eq!(party.settle(), [(kind::DEVICE_DISCONNECT, 0, vec![])]);
    party.host.packet(kind::CANCEL_DATA_PACKET, 9, &[]);
    party.host.bulk(10, 0x81, 512, &[]);
    assert_eq!(party.exchange(usize::MAX), []);
    party.stick.plug();
    assert_eq!(party.settle().len(), 3);
}

#[test]
fn too_long_and_wrong_lengths_end_the_connection() {
    let hello = {
        let mut host = Host::default();
        host.hello();
        host.out
    };
    for (kind, length) in
        [(kind::BULK_PACKET, u32::MAX), (kind::CONTROL_PACKET, 1 << 20), (77, 5000), (kind::RESET, 1)]
    {
        let mut party = Party::new();
        party.session.handle_bytes(&hello, &mut party.stick, Instant::ZERO).expect("a hello");
        let header = Header64 { kind: U32::new(kind), length: U32::new(length), id: 1.into() };
        let mut bytes = header.as_bytes().to_vec();
        bytes.push(0);
        let result = party.session.handle_bytes(&bytes, &mut party.stick, Instant::ZERO);
        assert!(result.is_err(), "type {kind} of {length} bytes");
    }
    let mut party = Party::new();
    let before = Header32 { kind: U32::new(kind::RESET), length: U32::ZERO, id: U32::ZERO };
    let result = party.session.handle_bytes(before.as_bytes(), &mut party.stick, Instant::ZERO);
    assert_eq!(result, Err(PacketError::NoHello(kind::RESET)));
}

proptest! {
    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000), greeted: bool) {
        let mut party = Party::new();
        if greeted {
            party.host.hello();
            party.exchange(usize::MAX);
        }
        let _ = party.session.handle_bytes(&bytes, &mut party.stick, Instant::ZERO);
        party.session.serve(&mut party.stick, Instant::ZERO);
    }

    /// Headers with sensible types and any content; what is kept stays within what was sent.
    #[test]
    fn near_packets_never_panic(
        packets in prop::collection::vec((0u32..110, any::<u64>(), prop::collection::vec(any::<u8>(), 0..40)), 0..40),
        piece in 1usize..100,
    ) {
        let mut party = Party::new();
        party.host.hello();
        party.exchange(usize::MAX);
        for (kind, id, body) in &packets {
            party.host.packet(*kind, *id, body);
        }
        let bytes = std::mem::take(&mut party.host.out);
        for chunk in bytes.chunks(piece) {
            if party.session.handle_bytes(chunk, &mut party.stick, Instant::ZERO).is_err() {
                break;
            }
            party.session.serve(&mut party.stick, Instant::ZERO);
        }
        // Answers are a few times longer than the shortest request at most.
        prop_assert!(party.session.outgoing().len() <= 64 + bytes.len() * 16);
    }
}
