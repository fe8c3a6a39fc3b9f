//! The XLink event header: 84 bytes in front of everything on either pipe.

use std::fmt;

use zerocopy::little_endian::{I32, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::WireError;

/// Bytes of a header in variant V1.
pub const HEADER_LEN: usize = 84;

/// Longest payload transfer; longer payloads are cut into transfers of this size (vendor: `MAX_PACKET_SIZE`… 1 MiB).
pub const MAX_TRANSFER_BYTES: usize = 1 << 20;

const NAME_LEN: usize = 64;

/// What happens on the link. The doc comments name the vendor's constants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum EventKind {
    /// `XLINK_WRITE`: `size` payload bytes follow the request.
    Write,
    /// `XLINK_READ`: internal to the vendor's host, never on the wire.
    Read,
    /// `XLINK_READ_REL`: the oldest packet of the stream was consumed, `size` is its length.
    ReadRelease,
    /// `XLINK_READ_REL_SPEC`: in the numbering, never sent by the vendor's host.
    ReadReleaseSpecific,
    /// `XLINK_CREATE_STREAM`: name, host-chosen id, and the sender's write credit in `size`.
    CreateStream,
    /// `XLINK_CLOSE_STREAM`.
    CloseStream,
    /// `XLINK_PING`.
    Ping,
    /// `XLINK_RESET`: last event of a connection.
    Reset,
}

impl EventKind {
    const ALL: [EventKind; 8] = [
        EventKind::Write,
        EventKind::Read,
        EventKind::ReadRelease,
        EventKind::ReadReleaseSpecific,
        EventKind::CreateStream,
        EventKind::CloseStream,
        EventKind::Ping,
        EventKind::Reset,
    ];
}

/// Request or the response to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Side {
    /// Asks; its `id` is chosen by the sender.
    Request,
    /// Answers; repeats the request's `id`.
    Response,
}

/// Number added to a request's type to make the response's, variant V1.
const RESPONSE_OFFSET: u32 = 9;

bitflags::bitflags! {
    /// Header flags, bits 0..=7 of the last word. Unknown bits are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
    pub struct Flags: u32 {
        /// Accepted. Set in every host request too.
        const ACK = 1;
        /// Refused.
        const NACK = 1 << 1;
        /// `block`.
        const BLOCK = 1 << 2;
        /// `localServe`.
        const LOCAL_SERVE = 1 << 3;
        /// `terminate`.
        const TERMINATE = 1 << 4;
        /// `bufferFull`.
        const BUFFER_FULL = 1 << 5;
        /// `sizeTooBig`: in a CREATE_STREAM response, out of memory.
        const SIZE_TOO_BIG = 1 << 6;
        /// `noSuchStream`.
        const NO_SUCH_STREAM = 1 << 7;
        const _ = !0;
    }
}

/// Number of a stream on one link. The host chooses it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

impl StreamId {
    /// `INVALID_STREAM_ID`.
    pub const INVALID: StreamId = StreamId(0xDEAD_DEAD);
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Name of a stream, at most 63 bytes of printable ASCII. Empty where the event has none.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamName {
    bytes: [u8; NAME_LEN],
    len: u8,
}

impl StreamName {
    /// The name of events that carry none.
    pub const EMPTY: StreamName = StreamName { bytes: [0; NAME_LEN], len: 0 };

    /// Fails on more than 63 bytes and on anything that is no printable ASCII.
    pub fn new(name: &str) -> Result<Self, WireError> {
        let what = "stream name";
        if name.len() >= NAME_LEN || !name.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            return Err(WireError::Name { what });
        }
        let mut bytes = [0; NAME_LEN];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(StreamName { bytes, len: name.len() as u8 })
    }

    /// Up to the first NUL; what follows it is the vendor's garbage and is dropped.
    pub(super) fn from_field(field: &[u8; NAME_LEN]) -> Result<Self, WireError> {
        let what = "stream name";
        let len = field.iter().position(|&b| b == 0).ok_or(WireError::Name { what })?;
        let name = std::str::from_utf8(&field[..len]).map_err(|_| WireError::Name { what })?;
        Self::new(name)
    }

    pub(super) fn to_field(self) -> [u8; NAME_LEN] {
        self.bytes
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        // The constructor admits ASCII only.
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or("")
    }
}

impl fmt::Debug for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// One event header as a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Chosen by the requester, repeated in the response. The two directions have number spaces of their own.
    pub id: i32,
    /// What happens.
    pub kind: EventKind,
    /// Request or response.
    pub side: Side,
    /// Meaningful in CREATE_STREAM only; elsewhere empty (the vendor leaves stale bytes there, parsing drops them).
    pub name: StreamName,
    /// The stream; stale in READ_REL responses of the vendor's host.
    pub stream: StreamId,
    /// Meaning depends on `kind`.
    pub size: u32,
    /// Flags.
    pub flags: Flags,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct HeaderView {
    id: I32,
    kind: U32,
    name: [u8; NAME_LEN],
    stream: U32,
    size: U32,
    flags: U32,
}

const _: () = assert!(size_of::<HeaderView>() == HEADER_LEN);

impl Header {
    /// A host request: flags ACK, no name.
    pub fn request(id: i32, kind: EventKind, stream: StreamId, size: u32) -> Self {
        Header { id, kind, side: Side::Request, name: StreamName::EMPTY, stream, size, flags: Flags::ACK }
    }

    /// The response to `self` with `flags`: same id, stream, size and name.
    #[must_use]
    pub fn response(&self, flags: Flags) -> Self {
        Header { side: Side::Response, flags, ..*self }
    }

    /// Reads a header of variant V1.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let view = HeaderView::ref_from_bytes(bytes).map_err(|_| WireError::Length {
            what: "XLink header",
            expected: HEADER_LEN,
            found: bytes.len(),
        })?;
        let raw = view.kind.get();
        let (side, index) = if raw < RESPONSE_OFFSET {
            (Side::Request, raw)
        } else {
            (Side::Response, raw - RESPONSE_OFFSET)
        };
        let kind = *EventKind::ALL
            .get(index as usize)
            .ok_or(WireError::Value { what: "XLink header: event type", value: raw })?;
        let name = match kind {
            EventKind::CreateStream => StreamName::from_field(&view.name)?,
            _ => StreamName::EMPTY,
        };
        Ok(Header {
            id: view.id.get(),
            kind,
            side,
            name,
            stream: StreamId(view.stream.get()),
            size: view.size.get(),
            flags: Flags::from_bits_retain(view.flags.get()),
        })
    }

    /// Writes the header of variant V1; bytes that the vendor leaves as garbage are zero.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let index = EventKind::ALL.iter().position(|&k| k == self.kind).unwrap_or_default() as u32;
        let kind = match self.side {
            Side::Request => index,
            Side::Response => index + RESPONSE_OFFSET,
        };
        let view = HeaderView {
            id: I32::new(self.id),
            kind: U32::new(kind),
            name: self.name.to_field(),
            stream: U32::new(self.stream.0),
            size: U32::new(self.size),
            flags: U32::new(self.flags.bits()),
        };
        let mut out = [0; HEADER_LEN];
        out.copy_from_slice(view.as_bytes());
        out
    }

    /// True where `size` payload bytes follow this header.
    pub fn has_payload(&self) -> bool {
        self.kind == EventKind::Write && self.side == Side::Request
    }
}
