//! Packets of USB/IP between the kernel's `vhci-hcd` and a device: 48 bytes, big-endian, data behind.

use zerocopy::big_endian::{I32, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::face::usb::{MAX_PENDING_BYTES, Setup};

/// Bytes of every header.
const HEADER_LEN: usize = 48;

/// `USBIP_CMD_SUBMIT` and so on.
const CMD_SUBMIT: u32 = 1;
const CMD_UNLINK: u32 = 2;
const RET_SUBMIT: u32 = 3;
const RET_UNLINK: u32 = 4;

const DIRECTION_IN: u32 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Command {
    command: U32,
    sequence: U32,
    device: U32,
    direction: U32,
    endpoint: U32,
    /// Of an unlink: the sequence number to end.
    flags: U32,
    length: U32,
    start_frame: U32,
    packets: U32,
    interval: U32,
    setup: [u8; 8],
}

const _: () = assert!(size_of::<Command>() == HEADER_LEN);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Reply {
    command: U32,
    sequence: U32,
    device: U32,
    direction: U32,
    endpoint: U32,
    status: I32,
    actual: U32,
    start_frame: U32,
    packets: U32,
    errors: U32,
    padding: [u8; 8],
}

const _: () = assert!(size_of::<Reply>() == HEADER_LEN);

/// What the kernel asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Incoming {
    Control {
        setup: Setup,
        data: Vec<u8>,
    },
    Out {
        endpoint: u8,
        data: Vec<u8>,
    },
    In {
        endpoint: u8,
        length: usize,
    },
    /// Ends the request of this number.
    Unlink {
        sequence: u32,
    },
}

/// What is no packet of the protocol, or of a kind that this device has no endpoint for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum PacketError {
    #[error("vhci: unknown command {0:#x}")]
    Command(u32),
    #[error("vhci: a request of {0} bytes")]
    TooLong(usize),
}

/// Cuts the kernel's bytes into packets.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    buffer: Vec<u8>,
    start: usize,
}

impl Parser {
    pub(crate) fn handle_bytes(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole packet and its sequence number.
    pub(crate) fn poll(&mut self) -> Result<Option<(u32, Incoming)>, PacketError> {
        let bytes = &self.buffer[self.start..];
        let Ok((header, rest)) = Command::ref_from_prefix(bytes) else { return Ok(None) };
        let sequence = header.sequence.get();
        let (used, incoming) = match header.command.get() {
            CMD_UNLINK => (0, Incoming::Unlink { sequence: header.flags.get() }),
            CMD_SUBMIT => {
                let length = header.length.get() as usize;
                if length > MAX_PENDING_BYTES {
                    return Err(PacketError::TooLong(length));
                }
                let number = (header.endpoint.get() & 0x0f) as u8;
                let inwards = header.direction.get() == DIRECTION_IN;
                let carried = if inwards { 0 } else { length };
                let Some(data) = rest.get(..carried) else { return Ok(None) };
                let incoming = match (number, inwards) {
                    (0, _) => Incoming::Control { setup: Setup::parse(header.setup), data: data.to_vec() },
                    (_, true) => Incoming::In { endpoint: number | 0x80, length },
                    (_, false) => Incoming::Out { endpoint: number, data: data.to_vec() },
                };
                (carried, incoming)
            }
            other => return Err(PacketError::Command(other)),
        };
        self.start += HEADER_LEN + used;
        Ok(Some((sequence, incoming)))
    }
}

fn reply(out: &mut Vec<u8>, command: u32, sequence: u32, status: i32, actual: usize) {
    let reply = Reply {
        command: U32::new(command),
        sequence: U32::new(sequence),
        device: U32::ZERO,
        direction: U32::ZERO,
        endpoint: U32::ZERO,
        status: I32::new(status),
        actual: U32::new(actual as u32),
        start_frame: U32::ZERO,
        packets: U32::ZERO,
        errors: U32::ZERO,
        padding: [0; 8],
    };
    out.extend_from_slice(reply.as_bytes());
}

/// A request ended: `status` 0 or a negative errno, `data` what an IN request brought.
pub(crate) fn submitted(out: &mut Vec<u8>, sequence: u32, status: i32, actual: usize, data: &[u8]) {
    reply(out, RET_SUBMIT, sequence, status, actual);
    out.extend_from_slice(data);
}

/// An unlink's answer: -104 (ECONNRESET) when it ended the request, 0 when that had ended already.
pub(crate) fn unlinked(out: &mut Vec<u8>, sequence: u32, status: i32) {
    reply(out, RET_UNLINK, sequence, status, 0);
}
