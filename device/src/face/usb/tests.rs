use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{Config, Engine, Profile, Timing};
use ncs2::wire::{EventKind, HEADER_LEN, Header, StreamId};

/// A stick without waiting that boots anything, and its device on the bus.
pub(crate) fn stick() -> VirtualStick {
    let mut profile = Profile::load("ncs2").expect("built in");
    profile.boot.any_firmware = true;
    let config = Config { profile, engine: Engine::Hash, timing: Timing::Zero, seed: 0 };
    let mut stick = VirtualStick::new(Arc::new(config), Instant::ZERO);
    stick.plug();
    stick
}

pub(crate) fn link() -> LinkSpeed {
    Profile::load("ncs2").expect("built in").link
}

/// An image that ends with the jump.
pub(crate) fn image() -> Vec<u8> {
    let mut image = vec![0x11; 5000];
    image.extend([0xa4, 0x00, 0x00, 0xd0, 0x80, 0x00, 0x00, 0x00]);
    image
}

/// Later than any delay of the profile.
pub(crate) const LATER: Instant = Instant::from_nanos(1_000_000_000);

struct Bus {
    stick: VirtualStick,
    usb: UsbDevice,
    now: Instant,
}

impl Bus {
    fn unbooted() -> Self {
        let mut stick = stick();
        while stick.poll_bus_event().is_some() {}
        let mut usb = UsbDevice::new(link());
        usb.appear(Identity::Unbooted);
        Bus { stick, usb, now: Instant::ZERO }
    }

    fn booted() -> Self {
        let mut bus = Bus::unbooted();
        bus.stick.start_booted(false, bus.now);
        while bus.stick.poll_bus_event().is_some() {}
        assert_eq!(bus.stick.identity(), Some(Identity::Booted));
        bus.usb.appear(Identity::Booted);
        bus.configure();
        bus
    }

    fn configure(&mut self) {
        let setup = Setup { request_type: 0, request: 9, value: 1, index: 0, length: 0 };
        let done = self.control(setup);
        assert_eq!(done.outcome, Outcome::Complete);
    }

    fn control(&mut self, setup: Setup) -> Done {
        self.submit(1, RequestKind::Control { setup, data: Vec::new() });
        self.usb.poll_done().expect("control requests are answered at once")
    }

    fn submit(&mut self, id: u64, kind: RequestKind) {
        self.usb.submit(Request { id, kind }, &mut self.stick, self.now);
    }

    fn serve(&mut self) -> Vec<Done> {
        self.now += Duration::from_millis(1);
        self.stick.handle_timeout(self.now);
        while self.usb.serve(&mut self.stick, true, self.now) {}
        std::iter::from_fn(|| self.usb.poll_done()).collect()
    }

    fn ping(&mut self, id: i32) {
        let ping = Header::request(id, EventKind::Ping, StreamId(0), 0);
        self.submit(1000 + id as u64, RequestKind::Out { data: ping.encode().to_vec() });
    }
}

fn ended(done: &[Done], id: u64) -> Option<(Outcome, usize)> {
    done.iter().find(|d| d.id == id).map(|d| (d.outcome, d.actual))
}

#[test]
fn descriptors_are_cut_to_the_length_asked_for_and_unknown_ones_stall() {
    let mut bus = Bus::unbooted();
    let ask = |value, length| Setup { request_type: 0x80, request: 6, value, index: 0, length };
    assert_eq!(bus.control(ask(0x0100, 8)).data.len(), 8);
    let device = bus.control(ask(0x0100, 64));
    assert_eq!((device.outcome, device.actual, device.endpoint), (Outcome::Complete, 18, 0x80));
    assert_eq!(bus.control(ask(0x0f00, 64)).outcome, Outcome::Stalled);
    assert_eq!(bus.control(ask(0x0301, 255)).data[1], 3);
    let vendor = Setup { request_type: 0xc0, request: 6, value: 0x0100, index: 0, length: 18 };
    assert_eq!(bus.control(vendor).outcome, Outcome::Stalled);
    let second = Setup { request_type: 0, request: 9, value: 2, index: 0, length: 0 };
    assert_eq!(bus.control(second).outcome, Outcome::Stalled);
}

#[test]
fn bulk_pipes_work_only_when_configured() {
    let mut bus = Bus::unbooted();
    bus.submit(5, RequestKind::Out { data: vec![1] });
    bus.submit(6, RequestKind::In { length: 512 });
    let done = bus.serve();
    assert_eq!(ended(&done, 5), Some((Outcome::Refused, 0)));
    assert_eq!(ended(&done, 6), Some((Outcome::Refused, 0)));
    bus.configure();
    bus.submit(7, RequestKind::Out { data: vec![1] });
    bus.submit(8, RequestKind::Elsewhere { endpoint: 0x82 });
    let done = bus.serve();
    assert_eq!(ended(&done, 7), Some((Outcome::Complete, 1)));
    assert_eq!(ended(&done, 8), Some((Outcome::Refused, 0)));
}

#[test]
fn image_in_any_pieces_boots() {
    for piece in [1, 64, 512, 4096, 1 << 20] {
        let mut bus = Bus::unbooted();
        bus.configure();
        for (n, chunk) in image().chunks(piece).enumerate() {
            bus.submit(10 + n as u64, RequestKind::Out { data: chunk.to_vec() });
        }
        let done = bus.serve();
        assert!(done.iter().all(|d| d.outcome == Outcome::Complete), "pieces of {piece}");
        bus.stick.handle_timeout(LATER);
        let events: Vec<_> = std::iter::from_fn(|| bus.stick.poll_bus_event()).collect();
        assert_eq!(
            events,
            [crate::BusEvent::Left, crate::BusEvent::Appeared(Identity::Booted)],
            "pieces of {piece}"
        );
    }
}

#[test]
fn a_reset_forgets_half_an_image() {
    let mut profile = Profile::load("ncs2").expect("built in");
    profile.boot.firmware_sizes = vec![5008];
    let config = Config { profile, engine: Engine::Hash, timing: Timing::Zero, seed: 0 };
    let mut bus = Bus::unbooted();
    bus.stick = VirtualStick::new(Arc::new(config), Instant::ZERO);
    bus.stick.plug();
    while bus.stick.poll_bus_event().is_some() {}
    bus.configure();
    bus.submit(10, RequestKind::Out { data: image()[..2500].to_vec() });
    bus.serve();
    let (usb, stick) = (&mut bus.usb, &mut bus.stick);
    usb.reset(stick, bus.now);
    bus.configure();
    bus.submit(11, RequestKind::Out { data: image() });
    bus.serve();
    assert_eq!(bus.stick.poll_bus_event(), Some(crate::BusEvent::Left));
}

#[test]
fn a_read_waits_until_there_is_something_and_a_short_packet_ends_it() {
    let mut bus = Bus::booted();
    bus.submit(1, RequestKind::In { length: 4096 });
    bus.submit(2, RequestKind::In { length: 1024 });
    assert_eq!(bus.serve(), []);
    bus.ping(7);
    let done = bus.serve();
    assert_eq!(ended(&done, 1007), Some((Outcome::Complete, HEADER_LEN)));
    assert_eq!(ended(&done, 1), Some((Outcome::Complete, HEADER_LEN)));
    assert_eq!(ended(&done, 2), None);
    bus.ping(8);
    assert_eq!(ended(&bus.serve(), 2), Some((Outcome::Complete, HEADER_LEN)));
}

#[test]
fn a_packet_that_does_not_fit_overflows() {
    let mut bus = Bus::booted();
    bus.submit(1, RequestKind::In { length: 83 });
    bus.ping(7);
    assert_eq!(ended(&bus.serve(), 1), Some((Outcome::Overflow, 83)));
}

#[test]
fn a_cancel_is_answered_once_and_loses_nothing() {
    let mut bus = Bus::booted();
    bus.submit(1, RequestKind::In { length: 1024 });
    assert!(bus.usb.cancel(1));
    assert!(!bus.usb.cancel(1), "the second cancel has nothing to end");
    let done = bus.serve();
    assert_eq!(done.iter().filter(|d| d.id == 1).count(), 1);
    assert_eq!(ended(&done, 1), Some((Outcome::Cancelled, 0)));
    bus.ping(7);
    bus.serve();
    bus.submit(2, RequestKind::In { length: 1024 });
    assert_eq!(ended(&bus.serve(), 2), Some((Outcome::Complete, HEADER_LEN)));
    assert!(!bus.usb.cancel(2), "it has ended");
}

#[test]
fn a_hung_stick_takes_nothing_and_goes_on_when_it_wakes() {
    let mut bus = Bus::booted();
    bus.stick.set_faults(crate::Faults { hung: true, ..Default::default() }, bus.now);
    bus.ping(7);
    bus.submit(9, RequestKind::Out { data: Vec::new() });
    assert_eq!(bus.serve(), []);
    bus.stick.set_faults(crate::Faults::default(), bus.now);
    let done = bus.serve();
    assert_eq!(ended(&done, 1007), Some((Outcome::Complete, HEADER_LEN)));
    assert_eq!(ended(&done, 9), Some((Outcome::Complete, 0)));
}

#[test]
fn it_breaks_at_the_byte_that_it_was_told() {
    use crate::fault_plan::{FaultKind, Way};
    // In the middle of an image: it took so much, and then no more.
    let mut bus = Bus::unbooted();
    bus.configure();
    bus.stick.break_after(Way::Out, 3000, FaultKind::Hang);
    bus.submit(1, RequestKind::Out { data: image()[..2500].to_vec() });
    bus.submit(2, RequestKind::Out { data: image()[2500..].to_vec() });
    let done = bus.serve();
    assert_eq!(ended(&done, 1), Some((Outcome::Complete, 2500)));
    assert_eq!(ended(&done, 2), None);
    assert_eq!((bus.stick.received_bytes(), bus.stick.faults().hung), (3000, true));
    assert!(bus.usb.cancel(2));
    assert_eq!(ended(&bus.serve(), 2), Some((Outcome::Cancelled, 500)));

    // In the middle of what it says: the second answer is never whole.
    let mut bus = Bus::booted();
    bus.stick.break_after(Way::In, HEADER_LEN as u64 + 1, FaultKind::Unplug);
    for id in [7, 8] {
        bus.submit(id, RequestKind::In { length: 1024 });
        bus.ping(id as i32);
    }
    assert_eq!(ended(&bus.serve(), 7), Some((Outcome::Complete, HEADER_LEN)));
    assert_eq!(bus.stick.poll_bus_event(), Some(crate::BusEvent::Left));
    assert!(!bus.stick.is_plugged());

    // The next stick in the port knows nothing of it.
    bus.stick.plug();
    assert_eq!((bus.stick.is_plugged(), bus.stick.received_bytes()), (true, 0));
}

#[test]
fn what_waits_is_bounded() {
    let mut bus = Bus::booted();
    bus.stick.set_faults(crate::Faults { hung: true, ..Default::default() }, bus.now);
    for id in 0..=MAX_PENDING as u64 {
        bus.submit(id, RequestKind::Out { data: Vec::new() });
        bus.submit(1_000_000 + id, RequestKind::In { length: 1 });
    }
    bus.submit(5_000_000, RequestKind::In { length: MAX_PENDING_BYTES + 1 });
    let done = bus.serve();
    assert_eq!(done.len(), 3);
    assert!(done.iter().all(|d| d.outcome == Outcome::Refused));
}

proptest! {
    /// Whatever a host asks for: every request ends at most once, and every byte that the stick says arrives in order.
    #[test]
    fn every_request_ends_at_most_once(
        steps in prop::collection::vec((0u8..5, 0u64..12, 0usize..3000), 0..60)
    ) {
        let mut bus = Bus::booted();
        let mut id = 0;
        let mut ended = std::collections::HashSet::new();
        for (what, which, size) in steps {
            id += 1;
            match what {
                0 => bus.submit(id, RequestKind::In { length: size }),
                1 => {
                    let ping = Header::request(size as i32, EventKind::Ping, StreamId(0), 0).encode();
                    bus.submit(id, RequestKind::Out { data: ping.to_vec() });
                }
                2 => { bus.usb.cancel(id.saturating_sub(which)); }
                3 => {
                    let setup = Setup { request_type: 0x80, request: 6, value: size as u16, index: 0, length: 64 };
                    bus.submit(id, RequestKind::Control { setup, data: Vec::new() });
                }
                _ => {}
            }
            for done in bus.serve() {
                prop_assert!(done.id <= id);
                prop_assert!(ended.insert(done.id), "request {} ended twice", done.id);
            }
        }
    }
}
