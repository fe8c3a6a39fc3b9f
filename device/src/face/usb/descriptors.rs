//! What the two identities of a stick say about themselves on the bus.
//!
//! Vendor, product, speed, endpoint addresses, packet sizes and the three strings of the unbooted stick are those of
//! protocol 2.1. No dump of an NCS2's descriptors was at hand: class ff/11/ff (the boot ROM of the first stick), ff/00/00
//! (booted), power and burst are unverified. The configuration's string says `simulated`, in both.

use crate::{Identity, LinkSpeed};

/// Movidius.
const VENDOR_ID: u16 = 0x03e7;
const UNBOOTED: u16 = 0x2485;
const BOOTED: u16 = 0xf63b;
/// Endpoint addresses of the two bulk pipes.
pub(crate) const ENDPOINT_OUT: u8 = 0x01;
pub(crate) const ENDPOINT_IN: u8 = 0x81;

const DEVICE: u8 = 1;
const CONFIGURATION: u8 = 2;
const STRING: u8 = 3;
const INTERFACE: u8 = 4;
const ENDPOINT: u8 = 5;
const QUALIFIER: u8 = 6;
const BOS: u8 = 15;
const CAPABILITY: u8 = 16;
const COMPANION: u8 = 48;

const SIMULATED: u8 = 4;

/// How fast a device is on the bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BusSpeed {
    /// 480 Mb/s.
    High,
    /// 5000 Mb/s.
    Super,
}

/// One identity as its descriptors say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Descriptors {
    identity: Identity,
    speed: BusSpeed,
}

impl Descriptors {
    /// Of a stick that is `identity` now; the profile's link says how fast it is when booted.
    pub(crate) fn new(identity: Identity, link: &LinkSpeed) -> Self {
        let speed = match identity {
            Identity::Booted if link.speed_mbps >= 5000 => BusSpeed::Super,
            _ => BusSpeed::High,
        };
        Descriptors { identity, speed }
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    pub(crate) fn speed(&self) -> BusSpeed {
        self.speed
    }

    /// Of both bulk endpoints.
    pub(crate) fn max_packet_bytes(&self) -> u16 {
        match self.speed {
            BusSpeed::High => 512,
            BusSpeed::Super => 1024,
        }
    }

    pub(crate) fn vendor_id(&self) -> u16 {
        VENDOR_ID
    }

    pub(crate) fn product_id(&self) -> u16 {
        match self.identity {
            Identity::Unbooted => UNBOOTED,
            Identity::Booted => BOOTED,
        }
    }

    pub(crate) fn device_version(&self) -> u16 {
        0x0001
    }

    /// Class, subclass and protocol of interface 0.
    pub(crate) fn interface_class(&self) -> [u8; 3] {
        match self.identity {
            Identity::Unbooted => [0xff, 0x11, 0xff],
            Identity::Booted => [0xff, 0x00, 0x00],
        }
    }

    /// The answer to GET_DESCRIPTOR before it is cut to the length asked for; `None` is a stall.
    pub(crate) fn descriptor(&self, kind: u8, index: u8) -> Option<Vec<u8>> {
        match (kind, index) {
            (DEVICE, 0) => Some(self.device()),
            (CONFIGURATION, 0) => Some(self.configuration()),
            (STRING, index) => self.string(index),
            (BOS, 0) if self.speed == BusSpeed::Super => Some(bos()),
            // A high-speed device that could also run at full speed: asked of every bcdUSB 2.00 device.
            (QUALIFIER, 0) if self.speed == BusSpeed::High => {
                Some(vec![10, QUALIFIER, 0x00, 0x02, 0, 0, 0, 64, 1, 0])
            }
            _ => None,
        }
    }

    fn device(&self) -> Vec<u8> {
        let (usb, max_packet0): (u16, u8) = match self.speed {
            BusSpeed::High => (0x0200, 64),
            // As an exponent: 512.
            BusSpeed::Super => (0x0300, 9),
        };
        let (manufacturer, serial) = match self.identity {
            Identity::Unbooted => (1, 3),
            Identity::Booted => (0, 0),
        };
        let mut d = vec![18, DEVICE];
        d.extend(usb.to_le_bytes());
        d.extend([0, 0, 0, max_packet0]);
        d.extend(self.vendor_id().to_le_bytes());
        d.extend(self.product_id().to_le_bytes());
        d.extend(self.device_version().to_le_bytes());
        d.extend([manufacturer, 2, serial, 1]);
        d
    }

    fn configuration(&self) -> Vec<u8> {
        // Bus powered; the current is in units of 2 mA, at SuperSpeed of 8 mA.
        let power = match self.speed {
            BusSpeed::High => 250,
            BusSpeed::Super => 112,
        };
        let mut d = vec![9, CONFIGURATION, 0, 0, 1, 1, SIMULATED, 0x80, power];
        d.extend([9, INTERFACE, 0, 0, 2]);
        d.extend(self.interface_class());
        d.push(0);
        for endpoint in [ENDPOINT_IN, ENDPOINT_OUT] {
            d.extend([7, ENDPOINT, endpoint, 2]);
            d.extend(self.max_packet_bytes().to_le_bytes());
            d.push(0);
            if self.speed == BusSpeed::Super {
                d.extend([6, COMPANION, 15, 0, 0, 0]);
            }
        }
        let total = (d.len() as u16).to_le_bytes();
        d[2..4].copy_from_slice(&total);
        d
    }

    fn string(&self, index: u8) -> Option<Vec<u8>> {
        let text = match (index, self.identity) {
            // The table of languages: English (United States).
            (0, _) => return Some(vec![4, STRING, 0x09, 0x04]),
            (1, Identity::Unbooted) => "Movidius Ltd.",
            (2, Identity::Unbooted) => "Movidius MyriadX",
            (3, Identity::Unbooted) => "03e72485",
            (2, Identity::Booted) => "VSC Loopback Device",
            (SIMULATED, _) => "simulated",
            _ => return None,
        };
        let mut d = vec![0, STRING];
        d.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
        d[0] = d.len() as u8;
        Some(d)
    }
}

/// USB 2 extension (no link power management) and SuperSpeed capability: 480 and 5000 Mb/s, no latency promised.
fn bos() -> Vec<u8> {
    let mut d = vec![5, BOS, 22, 0, 2];
    d.extend([7, CAPABILITY, 2, 0, 0, 0, 0]);
    d.extend([10, CAPABILITY, 3, 0, 0x0c, 0x00, 2, 0, 0, 0]);
    d
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(speed_mbps: u32) -> LinkSpeed {
        LinkSpeed { max_packet_bytes: 1024, speed_mbps, bytes_per_s: 1e9, transfer_us: 0.0 }
    }

    /// Every descriptor begins with its own length, and the chain ends where the total says.
    fn walk(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut out = Vec::new();
        let mut rest = bytes;
        while let [len, kind, ..] = *rest {
            let (one, behind) = rest.split_at_checked(usize::from(len)).expect("length within the chain");
            out.push((kind, one.to_vec()));
            rest = behind;
        }
        assert!(rest.is_empty());
        out
    }

    #[test]
    fn configurations_are_chains_with_two_bulk_endpoints() {
        for (identity, mbps, packet, companions) in [
            (Identity::Unbooted, 5000, 512u16, 0),
            (Identity::Booted, 5000, 1024, 2),
            (Identity::Booted, 480, 512, 0),
        ] {
            let d = Descriptors::new(identity, &link(mbps));
            let bytes = d.descriptor(CONFIGURATION, 0).expect("configuration");
            assert_eq!(usize::from(u16::from_le_bytes([bytes[2], bytes[3]])), bytes.len());
            let parts = walk(&bytes);
            assert_eq!(parts.iter().filter(|(kind, _)| *kind == COMPANION).count(), companions);
            let endpoints: Vec<_> = parts.iter().filter(|(kind, _)| *kind == ENDPOINT).collect();
            assert_eq!(endpoints.iter().map(|(_, e)| e[2]).collect::<Vec<_>>(), [0x81, 0x01]);
            for (_, e) in endpoints {
                assert_eq!((e[3], u16::from_le_bytes([e[4], e[5]])), (2, packet));
            }
        }
    }

    #[test]
    fn identities_differ_as_the_protocol_says() {
        let unbooted = Descriptors::new(Identity::Unbooted, &link(5000));
        let booted = Descriptors::new(Identity::Booted, &link(5000));
        assert_eq!((unbooted.product_id(), unbooted.speed()), (0x2485, BusSpeed::High));
        assert_eq!((booted.product_id(), booted.speed()), (0xf63b, BusSpeed::Super));
        let device = unbooted.descriptor(DEVICE, 0).expect("device");
        assert_eq!(device.len(), 18);
        assert_eq!(&device[8..12], [0xe7, 0x03, 0x85, 0x24]);
        let serial = unbooted.descriptor(STRING, device[16]).expect("serial");
        assert_eq!(serial[2..].iter().copied().filter(|b| *b != 0).collect::<Vec<_>>(), b"03e72485");
        let bos = booted.descriptor(BOS, 0).expect("BOS");
        assert_eq!(usize::from(bos[2]), bos.len());
        assert_eq!(walk(&bos).len(), 3);
        assert_eq!(unbooted.descriptor(BOS, 0), None);
    }
}
