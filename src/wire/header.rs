//! The XLink event header: 84 bytes in front of everything on either pipe.

use std::fmt;

use zerocopy::little_endian::{I32, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::WireError;

/// Bytes of a header in variant V1.
pub const HEADER_LEN: usize = 84;

/// Longest payload transfer of the vendor's host; longer payloads are cut into transfers of this size.
pub const MAX_TRANSFER_BYTES: usize = 1 << 20;

/// A write credit is announced as a multiple of this many bytes.
pub const CREDIT_ALIGN_BYTES: u32 = 64;

const NAME_LEN: usize = 64;

/// What happens on the link, in the order of the numbering of variant V1. The doc comments name the vendor's constants.
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
    /// Every kind; its place here is its number in a request.
    pub const ALL: [EventKind; 8] = [
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

    /// `deviceMonitor`: device commands and their replies.
    pub const DEVICE_MONITOR: StreamName = StreamName::literal("deviceMonitor");
    /// `graphMonitor`: graph commands and their status.
    pub const GRAPH_MONITOR: StreamName = StreamName::literal("graphMonitor");

    /// `graphBuffer<g>`, the stream that carries a graph to the stick.
    pub fn graph_buffer(graph: u32) -> Self {
        Self::numbered("graphBuffer", graph)
    }

    /// `FIFO<f>`, the stream of input or output tensors.
    pub fn fifo(fifo: u32) -> Self {
        Self::numbered("FIFO", fifo)
    }

    fn numbered(prefix: &str, number: u32) -> Self {
        let mut digits = [0; 10];
        let mut at = digits.len();
        let mut rest = number;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        let digits = &digits[at..];
        let mut name = Self::literal(prefix);
        let start = usize::from(name.len);
        name.bytes[start..start + digits.len()].copy_from_slice(digits);
        name.len += digits.len() as u8;
        name
    }

    /// For this file's own ASCII literals, all far shorter than a name may be.
    const fn literal(name: &str) -> Self {
        let name = name.as_bytes();
        let mut bytes = [0; NAME_LEN];
        let mut i = 0;
        while i < name.len() {
            bytes[i] = name[i];
            i += 1;
        }
        StreamName { bytes, len: name.len() as u8 }
    }

    /// Reads the field up to its first NUL. Whatever follows the NUL is what the vendor's host had on its stack: it
    /// is dropped, so that two fields of the same name are the same value. A field without NUL is no name.
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
        // The constructors admit ASCII only.
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or("")
    }
}

impl fmt::Debug for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// One event header as a value.
///
/// **Match a response to its request by `id` and `kind` alone** ([`Header::answers`]). The vendor's host builds
/// responses in a buffer that it uses again, so the name, and in READ_REL responses also `stream` and `size`, are those
/// of some earlier response. They are kept here as they came, because a reader of a trace wants to see them; nothing
/// may act on them. In the same way the host takes nothing but the flags from a CREATE_STREAM response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Chosen by the requester, repeated in the response. The two directions have number spaces of their own.
    pub id: i32,
    /// What happens.
    pub kind: EventKind,
    /// Request or response.
    pub side: Side,
    /// Meaningful in CREATE_STREAM only. Elsewhere empty: the vendor leaves stale bytes there, parsing drops them and
    /// encoding writes zeros. Also empty in a CREATE_STREAM response whose field is no name.
    pub name: StreamName,
    /// The stream; stale in READ_REL responses of the vendor's host.
    pub stream: StreamId,
    /// WRITE: payload bytes. READ_REL request: bytes of the released packet. CREATE_STREAM: the sender's write credit
    /// in bytes. Stale in READ_REL responses of the vendor's host, of no meaning elsewhere.
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

    /// A CREATE_STREAM request that announces a credit of at least `credit_bytes`, rounded up to
    /// [`CREDIT_ALIGN_BYTES`] as the vendor's host does (down, where rounding up would not fit the field).
    pub fn create_stream(id: i32, name: StreamName, stream: StreamId, credit_bytes: u32) -> Self {
        let size =
            credit_bytes.checked_next_multiple_of(CREDIT_ALIGN_BYTES).unwrap_or(!(CREDIT_ALIGN_BYTES - 1));
        Header { name, ..Header::request(id, EventKind::CreateStream, stream, size) }
    }

    /// True where `self` is the response to `request`: by id and kind, the only fields that a response can be
    /// trusted in.
    pub fn answers(&self, request: &Header) -> bool {
        self.side == Side::Response
            && request.side == Side::Request
            && self.id == request.id
            && self.kind == request.kind
    }

    /// The response to `self` with `flags`: same id, stream, size and name.
    #[must_use]
    pub fn response(&self, flags: Flags) -> Self {
        Header { side: Side::Response, flags, ..*self }
    }

    /// Reads a header of variant V1.
    ///
    /// # Errors
    /// Another length than [`HEADER_LEN`], an event type outside 0..=7 and 9..=16, and a CREATE_STREAM request
    /// whose field is no name. A response is never refused for its name, see [`Header`].
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
        let name = match (kind, side) {
            (EventKind::CreateStream, Side::Request) => StreamName::from_field(&view.name)?,
            (EventKind::CreateStream, Side::Response) => {
                StreamName::from_field(&view.name).unwrap_or(StreamName::EMPTY)
            }
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
        let name = if self.kind == EventKind::CreateStream { self.name } else { StreamName::EMPTY };
        let view = HeaderView {
            id: I32::new(self.id),
            kind: U32::new(self.event_type()),
            name: name.to_field(),
            stream: U32::new(self.stream.0),
            size: U32::new(self.size),
            flags: U32::new(self.flags.bits()),
        };
        let mut out = [0; HEADER_LEN];
        out.copy_from_slice(view.as_bytes());
        out
    }

    /// The event type on the wire: 0..=7 for requests, 9..=16 for responses.
    pub fn event_type(&self) -> u32 {
        match self.side {
            Side::Request => self.kind as u32,
            Side::Response => self.kind as u32 + RESPONSE_OFFSET,
        }
    }

    /// True where `size` payload bytes follow this header.
    pub fn has_payload(&self) -> bool {
        self.kind == EventKind::Write && self.side == Side::Request
    }
}
