//! What a transfer says, in words: the line form of traces, written by [`Tracer`](super::Tracer) and read back.

use std::collections::HashMap;
use std::fmt::{self, Write as _};

use super::Direction;
use crate::wire::{
    CAPABILITIES_LEN, DEBUG_DATA_LEN, EventKind, Flags, HEADER_LEN, Header, STATUS_LEN, Side, StreamId,
    TENSOR_DESCRIPTOR_LEN, THERMAL_LEN,
};

/// Bytes of a transfer that a trace line shows: whole headers, whole commands, and the VERIFY header.
pub const TRACE_BYTES: usize = 132;

/// Follows both pipes of one link and says what each transfer is. Bounded: it remembers at most one header's bytes
/// per direction and the names of [`Self::MAX_STREAMS`] streams. Any bytes are allowed.
#[derive(Debug, Default)]
pub struct Decoder {
    names: HashMap<u32, Known>,
    out_lane: LaneState,
    in_lane: LaneState,
}

#[derive(Debug)]
struct Known {
    name: String,
    descriptors: u32,
}

#[derive(Debug, Default)]
struct LaneState {
    /// First bytes of a header that came in pieces.
    partial: Vec<u8>,
    payload: Option<Payload>,
    /// A header was no header: whatever follows is unknown.
    lost: bool,
}

#[derive(Clone, Copy, Debug)]
struct Payload {
    stream: StreamId,
    total: usize,
    off: usize,
}

impl Decoder {
    /// More streams than a link may have; a hostile one cannot make the decoder grow.
    pub const MAX_STREAMS: usize = 256;

    /// A link that has said nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Describes one transfer of `len` bytes of which `shown` are known (its beginning). One transfer may carry
    /// several events, or a part of one; what is beyond `shown` is counted, not read.
    pub fn describe(&mut self, direction: Direction, len: usize, shown: &[u8]) -> String {
        let mut text = String::new();
        if len == 0 {
            return "empty".into();
        }
        let mut at = 0;
        while at < len {
            if !text.is_empty() {
                text.push_str("; ");
            }
            let bytes = shown.get(at..).unwrap_or_default();
            at += self.item(direction, len - at, bytes, &mut text);
        }
        text
    }

    /// Describes the first event, or part of one, in `len` bytes; returns its length.
    fn item(&mut self, direction: Direction, len: usize, bytes: &[u8], text: &mut String) -> usize {
        let lane = match direction {
            Direction::Out => &mut self.out_lane,
            Direction::In => &mut self.in_lane,
        };
        if lane.lost {
            text.push_str("data after a bad header");
            return len;
        }
        if let Some(payload) = lane.payload {
            let taken = len.min(payload.total - payload.off);
            let next = payload.off + taken;
            lane.payload = (next < payload.total).then_some(Payload { off: next, ..payload });
            self.payload(direction, payload, taken, bytes.get(..taken).unwrap_or(bytes), text);
            return taken;
        }
        let taken = len.min(HEADER_LEN - lane.partial.len());
        let Some(piece) = bytes.get(..taken) else {
            lane.lost = true;
            text.push_str("hdr not shown");
            return len;
        };
        lane.partial.extend_from_slice(piece);
        if lane.partial.len() < HEADER_LEN {
            let _ = write!(text, "hdr {} of {HEADER_LEN} bytes", lane.partial.len());
            return taken;
        }
        let header = Header::parse(&lane.partial);
        lane.partial.clear();
        match header {
            Err(error) => {
                lane.lost = true;
                let _ = write!(text, "hdr bad: {error}");
                len
            }
            Ok(header) => {
                if header.has_payload() && header.size > 0 {
                    lane.payload =
                        Some(Payload { stream: header.stream, total: header.size as usize, off: 0 });
                }
                self.header(&header, text);
                taken
            }
        }
    }

    fn header(&mut self, h: &Header, text: &mut String) {
        let index = event_index(h.kind) + if h.side == Side::Response { RESPONSE_OFFSET } else { 0 };
        let side = if h.side == Side::Response { "RESP" } else { "REQ" };
        let _ = write!(text, "hdr {}_{side}({index}) id={} stream={}", event_name(h.kind), h.id, h.stream);
        // A request to create a stream names it, so the number has no name yet; PING and RESET have no stream.
        let creates = h.kind == EventKind::CreateStream;
        if creates {
            if h.side == Side::Response && self.names.contains_key(&h.stream.0) {
                let _ = write!(text, "({})", self.name(h.stream));
            }
            if self.names.len() < Self::MAX_STREAMS || self.names.contains_key(&h.stream.0) {
                let descriptors = self.names.get(&h.stream.0).map_or(0, |k| k.descriptors);
                let descriptors = if h.side == Side::Request { 0 } else { descriptors };
                self.names.insert(h.stream.0, Known { name: h.name.as_str().into(), descriptors });
            }
        } else if !matches!(h.kind, EventKind::Ping | EventKind::Reset)
            && self.names.contains_key(&h.stream.0)
        {
            let _ = write!(text, "({})", self.name(h.stream));
        }
        let _ = write!(text, " size={} flags={}", h.size, FlagNames(h.flags));
        if creates {
            let _ = write!(text, " name=\"{}\"", h.name.as_str());
        }
    }

    fn name(&self, stream: StreamId) -> &str {
        self.names.get(&stream.0).map_or("", |k| &k.name)
    }

    fn payload(&mut self, direction: Direction, p: Payload, taken: usize, bytes: &[u8], text: &mut String) {
        let whole = p.off == 0 && taken == p.total;
        let name = self.name(p.stream).to_owned();
        let _ = write!(text, "data stream={}", p.stream);
        if !name.is_empty() {
            let _ = write!(text, "({name})");
        }
        if direction == Direction::Out || !whole {
            let _ = write!(text, " off={}/{}", p.off, p.total);
        }
        if !whole {
            return;
        }
        let meaning = match direction {
            Direction::Out => command(&name, bytes),
            Direction::In => self.reply(p.stream, &name, p.total, bytes),
        };
        if let Some(meaning) = meaning {
            let _ = write!(text, " {meaning}");
        }
    }

    fn reply(&mut self, stream: StreamId, name: &str, total: usize, bytes: &[u8]) -> Option<String> {
        Some(match (name, total) {
            ("deviceMonitor", CAPABILITIES_LEN) => "capabilities".into(),
            ("deviceMonitor", THERMAL_LEN) => "thermal".into(),
            ("deviceMonitor", 4) => format!("used memory={}", word(bytes, 0)?),
            ("graphMonitor", STATUS_LEN) => format!("status={}", word(bytes, 0)?.cast_signed()),
            ("graphMonitor", DEBUG_DATA_LEN) => "debug data".into(),
            ("graphMonitor", _) => "timing data (float ms)".into(),
            _ if name.starts_with("FIFO") => "output tensor".into(),
            (_, TENSOR_DESCRIPTOR_LEN) if name.starts_with("graphBuffer") => {
                let known = self.names.get_mut(&stream.0)?;
                known.descriptors += 1;
                if known.descriptors % 2 == 1 {
                    "input tensor descriptor"
                } else {
                    "output tensor descriptor"
                }
                .into()
            }
            (_, 4) if name.starts_with("graphBuffer") => "nstages".into(),
            _ => return None,
        })
    }
}

/// Number added to a request's type to make the response's, variant V1.
const RESPONSE_OFFSET: u32 = 9;

fn event_index(kind: EventKind) -> u32 {
    match kind {
        EventKind::Write => 0,
        EventKind::Read => 1,
        EventKind::ReadRelease => 2,
        EventKind::ReadReleaseSpecific => 3,
        EventKind::CreateStream => 4,
        EventKind::CloseStream => 5,
        EventKind::Ping => 6,
        EventKind::Reset => 7,
    }
}

fn event_name(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Write => "WRITE",
        EventKind::Read => "READ",
        EventKind::ReadRelease => "READ_REL",
        EventKind::ReadReleaseSpecific => "READ_REL_SPEC",
        EventKind::CreateStream => "CREATE_STREAM",
        EventKind::CloseStream => "CLOSE_STREAM",
        EventKind::Ping => "PING",
        EventKind::Reset => "RESET",
    }
}

fn word(bytes: &[u8], index: usize) -> Option<u32> {
    let raw = bytes.get(index * 4..index * 4 + 4)?;
    Some(u32::from_le_bytes(raw.try_into().ok()?))
}

/// Commands are read leniently, word by word: a trace must show what is wrong, not refuse it.
fn command(stream: &str, bytes: &[u8]) -> Option<String> {
    const DEVICE: [&str; 9] = [
        "THERMAL",
        "CAPABILITIES",
        "USED_MEMORY",
        "DEVICE_ID",
        "WATCHDOG_PING",
        "STDIO_REDIRECT",
        "SET_POWER",
        "RESET_POWER",
        "ASYNC_DMA",
    ];
    const GRAPH: [&str; 9] = [
        "ALLOCATE",
        "DEALLOCATE",
        "TRIGGER",
        "VERIFY",
        "ALLOCATION_VERIFY",
        "BUFFER_ALLOCATE",
        "BUFFER_DEALLOCATE",
        "GET_TIMING",
        "GET_DEBUG",
    ];
    let (kind, arg) = (word(bytes, 0)?, word(bytes, 1)?);
    match stream {
        "deviceMonitor" => Some(match DEVICE.get(kind as usize) {
            Some(name) => format!("{name} arg={arg}"),
            None => format!("command {kind:#x} arg={arg}"),
        }),
        "graphMonitor" => Some(match GRAPH.get(kind as usize) {
            // Words: type, graph, 16 of name, input FIFO, output FIFO, executors.
            Some(&"TRIGGER") => {
                format!("TRIGGER graph={arg} in={} out={}", word(bytes, 18)?, word(bytes, 19)?)
            }
            Some(name) => format!("{name} graph/fifo={arg}"),
            None => format!("command {kind:#x} graph/fifo={arg}"),
        }),
        _ => None,
    }
}

struct FlagNames(Flags);

impl fmt::Display for FlagNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 8] =
            ["ack", "nack", "block", "localServe", "terminate", "bufferFull", "sizeTooBig", "noSuchStream"];
        let bits = self.0.bits();
        if bits == 0 {
            return f.write_str("-");
        }
        let mut first = true;
        for (n, name) in NAMES.iter().enumerate() {
            if bits & 1 << n != 0 {
                write!(f, "{}{name}", if first { "" } else { "," })?;
                first = false;
            }
        }
        if bits >> NAMES.len() != 0 {
            write!(f, "{}{:#x}", if first { "" } else { "," }, bits & !0xff)?;
        }
        Ok(())
    }
}

/// One line of a trace.
#[derive(Clone, PartialEq, Debug)]
pub struct TraceLine {
    /// Seconds since the trace began.
    pub seconds: f64,
    /// The thread that moved it.
    pub thread: String,
    /// The stick; empty where the line is of none.
    pub stick: String,
    /// What happened.
    pub event: TraceEvent,
}

/// What a trace line reports.
#[derive(Clone, PartialEq, Debug)]
pub enum TraceEvent {
    /// A transfer.
    Transfer {
        /// Its pipe.
        direction: Direction,
        /// Bytes moved.
        len: usize,
        /// In words, as [`Decoder::describe`].
        text: String,
        /// Its first bytes; the tracer shows [`TRACE_BYTES`].
        shown: Vec<u8>,
    },
    /// Anything else.
    Note(String),
}

impl TraceLine {
    /// Reads a line as [`Display`](fmt::Display) writes it; `None` for anything else.
    pub fn parse(line: &str) -> Option<Self> {
        let (seconds, rest) = line.trim_start().split_once(" [")?;
        let seconds = seconds.parse().ok()?;
        let (thread, rest) = rest.split_once("] ")?;
        let thread = thread.trim_end().to_owned();
        let Some(rest) = rest.strip_prefix("dev=") else {
            return Some(TraceLine {
                seconds,
                thread,
                stick: String::new(),
                event: TraceEvent::Note(rest.into()),
            });
        };
        let (stick, rest) = rest.split_once(' ')?;
        let direction = if rest.starts_with("OUT ep=01 ") {
            Direction::Out
        } else if rest.starts_with("IN  ep=81 ") {
            Direction::In
        } else {
            return Some(TraceLine {
                seconds,
                thread,
                stick: stick.into(),
                event: TraceEvent::Note(rest.into()),
            });
        };
        let rest = rest.get(10..)?.strip_prefix("len=")?;
        let (len, rest) = rest.split_once(' ')?;
        let (text, hex) = rest.split_once(" |")?;
        let shown = unhex(hex.trim())?;
        let event =
            TraceEvent::Transfer { direction, len: len.parse().ok()?, text: text.trim().into(), shown };
        Some(TraceLine { seconds, thread, stick: stick.into(), event })
    }
}

impl fmt::Display for TraceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:10.6} [{:<15}] ", self.seconds, self.thread)?;
        if !self.stick.is_empty() {
            write!(f, "dev={} ", self.stick)?;
        }
        match &self.event {
            TraceEvent::Note(text) => f.write_str(text),
            TraceEvent::Transfer { direction, len, text, shown } => {
                let pipe = match direction {
                    Direction::Out => "OUT ep=01",
                    Direction::In => "IN  ep=81",
                };
                write!(f, "{pipe} len={len:<8}{}{text} | ", if *len >= 100_000_000 { " " } else { "" })?;
                shown.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}
