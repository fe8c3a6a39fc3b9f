use proptest::prelude::*;

use super::*;
use crate::face::usb::tests::{image, link, stick};

struct Party {
    session: Session,
    stick: VirtualStick,
    now: Instant,
}

/// A submit, as the kernel writes it.
fn submit(sequence: u32, endpoint: u32, inwards: bool, setup: [u8; 8], length: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [1, sequence, 0x10001, u32::from(inwards), endpoint, 0, length, 0, 0, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(setup);
    bytes.extend(data);
    bytes
}

fn unlink(sequence: u32, victim: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [2, sequence, 0x10001, 0, 0, victim, 0, 0, 0, 0, 0, 0] {
        bytes.extend(u32::to_be_bytes(word));
    }
    bytes
}

impl Party {
    fn new() -> Self {
        let mut stick = stick();
        while stick.poll_bus_event().is_some() {}
        Party { session: Session::new(link(), Identity::Unbooted), stick, now: Instant::ZERO }
    }

    fn configured() -> Self {
        let mut party = Party::new();
        let replies = party.exchange(&submit(1, 0, false, [0, 9, 1, 0, 0, 0, 0, 0], 0, &[]), &[]);
        assert_eq!(replies, [(3, 1, 0, vec![])]);
        party
    }

    /// Replies as command, sequence, status and data; `reads` are the sequence numbers whose answers carry data.
    fn exchange(&mut self, bytes: &[u8], reads: &[u32]) -> Vec<(u32, u32, i32, Vec<u8>)> {
        for chunk in bytes.chunks(13) {
            self.session.handle_bytes(chunk, &mut self.stick, self.now).expect("proper packets");
        }
        self.now += std::time::Duration::from_millis(1);
        self.stick.handle_timeout(self.now);
        while self.session.serve(&mut self.stick, self.now) {}
        let bytes = self.session.outgoing().to_vec();
        self.session.consume(bytes.len());
        let mut rest = &bytes[..];
        let mut replies = Vec::new();
        while !rest.is_empty() {
            let word = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().expect("four bytes"));
            let (command, sequence, status, actual) = (word(0), word(4), word(20) as i32, word(24) as usize);
            let carried = if command == 3 && reads.contains(&sequence) { actual } else { 0 };
            replies.push((command, sequence, status, rest[48..48 + carried].to_vec()));
            rest = &rest[48 + carried..];
        }
        replies
    }
}

#[test]
fn control_requests_are_answered() {
    let mut party = Party::new();
    let replies = party.exchange(&submit(5, 0, true, [0x80, 6, 0, 1, 0, 0, 18, 0], 18, &[]), &[5]);
    let [(3, 5, 0, device)] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!(&device[8..12], [0xe7, 0x03, 0x85, 0x24]);
    let replies = party.exchange(&submit(6, 0, true, [0x80, 6, 0, 15, 0, 0, 18, 0], 18, &[]), &[6]);
    assert_eq!(replies, [(3, 6, -32, vec![])]);
    // The kernel tells a SuperSpeed device the exit latencies: six bytes.
    let replies = party.exchange(&submit(7, 0, false, [0, 48, 0, 0, 0, 0, 6, 0], 6, &[0; 6]), &[]);
    assert_eq!(replies, [(3, 7, 0, vec![])]);
}

#[test]
fn unlink_ends_a_pending_read_with_one_answer() {
    let mut party = Party::configured();
    assert_eq!(party.exchange(&submit(9, 1, true, [0; 8], 512, &[]), &[9]), []);
    assert_eq!(party.exchange(&unlink(10, 9), &[9]), [(4, 10, -104, vec![])]);
    assert_eq!(party.exchange(&unlink(11, 9), &[9]), [(4, 11, 0, vec![])], "it has ended");
}

#[test]
fn image_makes_the_stick_leave() {
    let mut party = Party::configured();
    let image = image();
    let replies = party.exchange(&submit(9, 1, false, [0; 8], image.len() as u32, &image), &[]);
    assert_eq!(replies, [(3, 9, 0, vec![])]);
    party.stick.handle_timeout(crate::face::usb::tests::LATER);
    assert_eq!(party.stick.poll_bus_event(), Some(crate::BusEvent::Left));
}

#[test]
fn nonsense_ends_the_connection() {
    let mut party = Party::new();
    let mut stick = stick();
    let huge = submit(9, 1, true, [0; 8], u32::MAX, &[]);
    assert!(party.session.handle_bytes(&huge, &mut stick, Instant::ZERO).is_err());
    let mut party = Party::new();
    assert!(party.session.handle_bytes(&[9; 48], &mut stick, Instant::ZERO).is_err());
}

proptest! {
    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut party = Party::new();
        let _ = party.session.handle_bytes(&bytes, &mut party.stick, Instant::ZERO);
        party.session.serve(&mut party.stick, Instant::ZERO);
    }

    #[test]
    fn near_packets_never_panic(
        packets in prop::collection::vec(
            (0u32..4, any::<u32>(), any::<bool>(), any::<[u8; 8]>(), 0u32..5000, prop::collection::vec(any::<u8>(), 0..60)),
            0..30,
        )
    ) {
        let mut party = Party::configured();
        for (endpoint, sequence, inwards, setup, length, data) in packets {
            let length = if inwards { length } else { data.len() as u32 };
            let data = if inwards { &[][..] } else { &data[..] };
            let bytes = submit(sequence, endpoint, inwards, setup, length, data);
            prop_assert!(party.session.handle_bytes(&bytes, &mut party.stick, Instant::ZERO).is_ok());
            party.session.serve(&mut party.stick, Instant::ZERO);
        }
    }
}
