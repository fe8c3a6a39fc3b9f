//! Packets of the usb-redir protocol, version 0.7: those that a device of two bulk pipes needs, both ways.
//!
//! Two levels: zerocopy views of the headers, and [`Incoming`] which cannot be wrong. All integers are little-endian.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::face::usb::{MAX_PENDING_BYTES, Setup};

bitflags::bitflags! {
    /// What a side can do, word 0 of its hello.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct Caps: u32 {
        /// `usb_redir_cap_connect_device_version`
        const DEVICE_VERSION = 1 << 1;
        /// `usb_redir_cap_ep_info_max_packet_size`: QEMU's xHCI insists on it.
        const MAX_PACKET_SIZE = 1 << 4;
        /// `usb_redir_cap_64bits_ids`: QEMU's xHCI insists on it.
        const IDS_64 = 1 << 5;
        /// `usb_redir_cap_32bits_bulk_length`: bulk packets over 65535 bytes.
        const BULK_LENGTH_32 = 1 << 6;
        const _ = !0;
    }
}

impl Caps {
    /// Ours. Not bulk streams (no such endpoint), not bulk receiving (it would read ahead of the host).
    pub(crate) const OURS: Caps =
        Caps::DEVICE_VERSION.union(Caps::MAX_PACKET_SIZE).union(Caps::IDS_64).union(Caps::BULK_LENGTH_32);
}

/// `usb_redir_success` and so on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Status {
    Success = 0,
    Cancelled = 1,
    Invalid = 2,
    Stall = 4,
    Babble = 6,
}

/// Type words of the packets, by their names in the protocol.
pub(crate) mod kind {
    pub(crate) const HELLO: u32 = 0;
    pub(crate) const DEVICE_CONNECT: u32 = 1;
    pub(crate) const DEVICE_DISCONNECT: u32 = 2;
    pub(crate) const RESET: u32 = 3;
    pub(crate) const INTERFACE_INFO: u32 = 4;
    pub(crate) const EP_INFO: u32 = 5;
    pub(crate) const SET_CONFIGURATION: u32 = 6;
    pub(crate) const GET_CONFIGURATION: u32 = 7;
    pub(crate) const CONFIGURATION_STATUS: u32 = 8;
    pub(crate) const SET_ALT_SETTING: u32 = 9;
    pub(crate) const GET_ALT_SETTING: u32 = 10;
    pub(crate) const ALT_SETTING_STATUS: u32 = 11;
    pub(crate) const CANCEL_DATA_PACKET: u32 = 21;
    pub(crate) const CONTROL_PACKET: u32 = 100;
    pub(crate) const BULK_PACKET: u32 = 101;
}

macro_rules! view {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? } $size:expr) => {
        $(#[$doc])*
        #[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
        #[repr(C)]
        pub(crate) struct $name { $(pub(crate) $field: $type),* }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

view! { /// In front of a hello, and of all else until both sides can count to 64 bits.
Header32 { kind: U32, length: U32, id: U32 } 12 }
view! { /// In front of every packet afterwards.
Header64 { kind: U32, length: U32, id: U64 } 16 }
view! { DeviceConnect { speed: u8, class: [u8; 3], vendor_id: U16, product_id: U16, version: U16 } 10 }
view! { InterfaceInfo { count: U32, interface: [u8; 32], class: [u8; 32], subclass: [u8; 32], protocol: [u8; 32] } 132 }
view! { /// Without the field of bulk streams, which only their capability brings.
EpInfo { kind: [u8; 32], interval: [u8; 32], interface: [u8; 32], max_packet_bytes: [U16; 32] } 160 }
view! { /// `status` only from device to host.
ControlHeader { endpoint: u8, request: u8, request_type: u8, status: u8, value: U16, index: U16, length: U16 } 10 }
view! { /// With the high half of the length, which its capability brings.
BulkHeader { endpoint: u8, status: u8, length: U16, stream: U32, length_high: U16 } 10 }
view! { BulkHeader16 { endpoint: u8, status: u8, length: U16, stream: U32 } 8 }

pub(crate) const VERSION_LEN: usize = 64;
/// Words of capabilities that a hello may carry; one is known.
const MAX_CAPS_WORDS: usize = 16;
/// Payload of a control transfer has a 16-bit length.
const MAX_CONTROL: usize = size_of::<ControlHeader>() + u16::MAX as usize;

/// A packet that the host sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Incoming {
    Hello {
        caps: Caps,
    },
    Reset,
    SetConfiguration(u8),
    GetConfiguration,
    SetAltSetting {
        interface: u8,
        alt: u8,
    },
    GetAltSetting {
        interface: u8,
    },
    /// Its id is that of the packet to cancel.
    Cancel,
    Control {
        endpoint: u8,
        setup: Setup,
        data: Vec<u8>,
    },
    BulkOut {
        endpoint: u8,
        stream: u32,
        data: Vec<u8>,
    },
    BulkIn {
        endpoint: u8,
        stream: u32,
        length: usize,
    },
    /// Known to the protocol, of no meaning for this device.
    Ignored,
}

/// What is no packet of the protocol. The connection cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum PacketError {
    #[error("usb-redir: packet type {0} with {1} bytes: too long")]
    TooLong(u32, usize),
    #[error("usb-redir: packet type {0} with {1} bytes: wrong length")]
    Length(u32, usize),
    #[error("usb-redir: packet type {0} before hello")]
    NoHello(u32),
}

/// The longest body of a type; what is unknown may be small.
fn longest(kind: u32) -> usize {
    match kind {
        kind::HELLO => VERSION_LEN + 4 * MAX_CAPS_WORDS,
        kind::CONTROL_PACKET => MAX_CONTROL,
        kind::BULK_PACKET => size_of::<BulkHeader>() + MAX_PENDING_BYTES,
        _ => 4096,
    }
}

/// Cuts the host's bytes into packets.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    buffer: Vec<u8>,
    start: usize,
    /// Of both sides; `None` before the host's hello.
    common: Option<Caps>,
}

impl Parser {
    /// Capabilities of both sides.
    pub(crate) fn common(&self) -> Caps {
        self.common.unwrap_or(Caps::empty())
    }

    pub(crate) fn handle_bytes(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole packet and its id.
    pub(crate) fn poll(&mut self) -> Result<Option<(u64, Incoming)>, PacketError> {
        let bytes = &self.buffer[self.start..];
        let (kind, length, id, header_len) = if self.common().contains(Caps::IDS_64) {
            let Ok((header, _)) = Header64::ref_from_prefix(bytes) else { return Ok(None) };
            (header.kind.get(), header.length.get(), header.id.get(), size_of::<Header64>())
        } else {
            let Ok((header, _)) = Header32::ref_from_prefix(bytes) else { return Ok(None) };
            (header.kind.get(), header.length.get(), u64::from(header.id.get()), size_of::<Header32>())
        };
        let length = length as usize;
        if length > longest(kind) {
            return Err(PacketError::TooLong(kind, length));
        }
        if self.common.is_none() && kind != kind::HELLO {
            return Err(PacketError::NoHello(kind));
        }
        let Some(body) = bytes.get(header_len..header_len + length) else { return Ok(None) };
        let incoming = decode(kind, body, self.common()).ok_or(PacketError::Length(kind, length))?;
        self.start += header_len + length;
        if let Incoming::Hello { caps } = incoming {
            self.common = Some(caps & Caps::OURS);
        }
        Ok(Some((id, incoming)))
    }
}

fn decode(kind: u32, body: &[u8], common: Caps) -> Option<Incoming> {
    Some(match kind {
        kind::HELLO => {
            let words = body.get(VERSION_LEN..)?;
            if words.len() % 4 != 0 {
                return None;
            }
            let caps = words.first_chunk::<4>().map_or(0, |word| u32::from_le_bytes(*word));
            Incoming::Hello { caps: Caps::from_bits_retain(caps) }
        }
        kind::RESET => body.is_empty().then_some(Incoming::Reset)?,
        kind::SET_CONFIGURATION => match *body {
            [number] => Incoming::SetConfiguration(number),
            _ => return None,
        },
        kind::GET_CONFIGURATION => body.is_empty().then_some(Incoming::GetConfiguration)?,
        kind::SET_ALT_SETTING => match *body {
            [interface, alt] => Incoming::SetAltSetting { interface, alt },
            _ => return None,
        },
        kind::GET_ALT_SETTING => match *body {
            [interface] => Incoming::GetAltSetting { interface },
            _ => return None,
        },
        kind::CANCEL_DATA_PACKET => body.is_empty().then_some(Incoming::Cancel)?,
        kind::CONTROL_PACKET => {
            let (header, data) = ControlHeader::ref_from_prefix(body).ok()?;
            let setup = Setup {
                request_type: header.request_type,
                request: header.request,
                value: header.value.get(),
                index: header.index.get(),
                length: header.length.get(),
            };
            let expected = if setup.is_in() { 0 } else { usize::from(setup.length) };
            if data.len() != expected {
                return None;
            }
            Incoming::Control { endpoint: header.endpoint, setup, data: data.to_vec() }
        }
        kind::BULK_PACKET => {
            let (endpoint, stream, length, data) = if common.contains(Caps::BULK_LENGTH_32) {
                let (h, data) = BulkHeader::ref_from_prefix(body).ok()?;
                let length = usize::from(h.length_high.get()) << 16 | usize::from(h.length.get());
                (h.endpoint, h.stream.get(), length, data)
            } else {
                let (h, data) = BulkHeader16::ref_from_prefix(body).ok()?;
                (h.endpoint, h.stream.get(), usize::from(h.length.get()), data)
            };
            if endpoint & 0x80 != 0 {
                if !data.is_empty() {
                    return None;
                }
                Incoming::BulkIn { endpoint, stream, length }
            } else {
                if data.len() != length {
                    return None;
                }
                Incoming::BulkOut { endpoint, stream, data: data.to_vec() }
            }
        }
        _ => Incoming::Ignored,
    })
}

/// Appends packets for the host.
#[derive(Debug)]
pub(crate) struct Encoder<'a> {
    pub(crate) out: &'a mut Vec<u8>,
    pub(crate) common: Caps,
}

impl Encoder<'_> {
    fn packet(&mut self, kind: u32, id: u64, parts: &[&[u8]]) {
        let length = U32::new(parts.iter().map(|part| part.len()).sum::<usize>() as u32);
        if self.common.contains(Caps::IDS_64) {
            let header = Header64 { kind: U32::new(kind), length, id: U64::new(id) };
            self.out.extend_from_slice(header.as_bytes());
        } else {
            let header = Header32 { kind: U32::new(kind), length, id: U32::new(id as u32) };
            self.out.extend_from_slice(header.as_bytes());
        }
        for part in parts {
            self.out.extend_from_slice(part);
        }
    }

    /// First packet; has the short header whatever follows.
    pub(crate) fn hello(&mut self) {
        let mut version = [0u8; VERSION_LEN];
        let name = concat!("ncs2-device ", env!("CARGO_PKG_VERSION"), " (simulated)").as_bytes();
        let len = name.len().min(VERSION_LEN - 1);
        version[..len].copy_from_slice(&name[..len]);
        self.packet(kind::HELLO, 0, &[&version, &Caps::OURS.bits().to_le_bytes()]);
    }

    pub(crate) fn ep_info(&mut self, info: &EpInfo) {
        let whole = info.as_bytes();
        let len = if self.common.contains(Caps::MAX_PACKET_SIZE) { whole.len() } else { 96 };
        self.packet(kind::EP_INFO, 0, &[&whole[..len]]);
    }

    pub(crate) fn interface_info(&mut self, info: &InterfaceInfo) {
        self.packet(kind::INTERFACE_INFO, 0, &[info.as_bytes()]);
    }

    pub(crate) fn device_connect(&mut self, connect: &DeviceConnect) {
        let whole = connect.as_bytes();
        let len = if self.common.contains(Caps::DEVICE_VERSION) { whole.len() } else { whole.len() - 2 };
        self.packet(kind::DEVICE_CONNECT, 0, &[&whole[..len]]);
    }

    pub(crate) fn device_disconnect(&mut self) {
        self.packet(kind::DEVICE_DISCONNECT, 0, &[]);
    }

    pub(crate) fn configuration_status(&mut self, id: u64, status: Status, configuration: u8) {
        self.packet(kind::CONFIGURATION_STATUS, id, &[&[status as u8, configuration]]);
    }

    pub(crate) fn alt_setting_status(&mut self, id: u64, status: Status, interface: u8, alt: u8) {
        self.packet(kind::ALT_SETTING_STATUS, id, &[&[status as u8, interface, alt]]);
    }

    /// `data` is what an IN request brought; `actual` the bytes moved, either way.
    pub(crate) fn control(&mut self, id: u64, status: Status, setup: Setup, actual: usize, data: &[u8]) {
        let header = ControlHeader {
            endpoint: setup.request_type & 0x80,
            request: setup.request,
            request_type: setup.request_type,
            status: status as u8,
            value: U16::new(setup.value),
            index: U16::new(setup.index),
            length: U16::new(actual as u16),
        };
        self.packet(kind::CONTROL_PACKET, id, &[header.as_bytes(), data]);
    }

    pub(crate) fn bulk(&mut self, id: u64, status: Status, endpoint: u8, actual: usize, data: &[u8]) {
        let header = BulkHeader {
            endpoint,
            status: status as u8,
            length: U16::new(actual as u16),
            stream: U32::ZERO,
            length_high: U16::new((actual >> 16) as u16),
        };
        let whole = header.as_bytes();
        let len = if self.common.contains(Caps::BULK_LENGTH_32) { whole.len() } else { 8 };
        self.packet(kind::BULK_PACKET, id, &[&whole[..len], data]);
    }
}
