//! Endpoint 0: the standard requests of USB 2 and 3.

use ncs2::clock::Instant;

use super::{Descriptors, Done, Outcome, UsbDevice};
use crate::{Identity, VirtualStick};

const GET_STATUS: u8 = 0;
const CLEAR_FEATURE: u8 = 1;
const SET_FEATURE: u8 = 3;
const SET_ADDRESS: u8 = 5;
const GET_DESCRIPTOR: u8 = 6;
const GET_CONFIGURATION: u8 = 8;
const SET_CONFIGURATION: u8 = 9;
const GET_INTERFACE: u8 = 10;
const SET_INTERFACE: u8 = 11;
const SET_SEL: u8 = 48;
const SET_ISOCH_DELAY: u8 = 49;

/// A setup packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Setup {
    /// bmRequestType.
    pub(crate) request_type: u8,
    /// bRequest.
    pub(crate) request: u8,
    /// wValue.
    pub(crate) value: u16,
    /// wIndex.
    pub(crate) index: u16,
    /// wLength.
    pub(crate) length: u16,
}

impl Setup {
    /// From the eight bytes of the bus.
    pub(crate) fn parse(bytes: [u8; 8]) -> Self {
        let [request_type, request, v0, v1, i0, i1, l0, l1] = bytes;
        Setup {
            request_type,
            request,
            value: u16::from_le_bytes([v0, v1]),
            index: u16::from_le_bytes([i0, i1]),
            length: u16::from_le_bytes([l0, l1]),
        }
    }

    pub(crate) fn is_in(&self) -> bool {
        self.request_type & 0x80 != 0
    }

    fn is_standard(&self) -> bool {
        self.request_type & 0x60 == 0
    }
}

impl UsbDevice {
    pub(super) fn control(
        &mut self,
        id: u64,
        setup: Setup,
        data: &[u8],
        descriptors: Descriptors,
        stick: &mut VirtualStick,
        now: Instant,
    ) -> Done {
        let answer = self.answer(setup, descriptors, stick, now);
        let (outcome, mut back) = match answer {
            Some(back) => (Outcome::Complete, back),
            None => (Outcome::Stalled, Vec::new()),
        };
        back.truncate(usize::from(setup.length));
        let actual = match outcome {
            Outcome::Complete if setup.is_in() => back.len(),
            Outcome::Complete => data.len(),
            _ => 0,
        };
        let endpoint = if setup.is_in() { 0x80 } else { 0 };
        Done { id, endpoint, outcome, data: back, actual, setup: Some(setup) }
    }

    /// The data of an IN request, nothing for an OUT request; `None` is a stall.
    fn answer(
        &mut self,
        setup: Setup,
        descriptors: Descriptors,
        stick: &mut VirtualStick,
        now: Instant,
    ) -> Option<Vec<u8>> {
        if !setup.is_standard() {
            return None;
        }
        let [index, kind] = setup.value.to_le_bytes();
        match (setup.is_in(), setup.request) {
            (true, GET_DESCRIPTOR) => descriptors.descriptor(kind, index),
            // Bus powered, no remote wake-up, endpoint not halted.
            (true, GET_STATUS) => Some(vec![0, 0]),
            (true, GET_CONFIGURATION) => Some(vec![self.configuration]),
            (true, GET_INTERFACE) if setup.index == 0 => Some(vec![0]),
            (false, SET_CONFIGURATION) => self.set_configuration(index, stick, now).then(Vec::new),
            (false, SET_INTERFACE) if setup.index == 0 && setup.value == 0 => Some(Vec::new()),
            (false, CLEAR_FEATURE | SET_FEATURE | SET_ADDRESS | SET_SEL | SET_ISOCH_DELAY) => {
                Some(Vec::new())
            }
            _ => None,
        }
    }

    /// False where there is no such configuration. A boot ROM starts over: it is what a host does before it sends an
    /// image, and half of an older one may be lying there.
    pub(crate) fn set_configuration(&mut self, number: u8, stick: &mut VirtualStick, now: Instant) -> bool {
        if number > 1 {
            return false;
        }
        self.configuration = number;
        if stick.identity() == Some(Identity::Unbooted) {
            stick.handle_closed(now);
        }
        true
    }
}
