//! What crossed a link, transfer by transfer, as events: the evidence from which findings are made. Read from the lines of
//! a trace, so that a report's own timeline can be judged again.

use std::collections::HashMap;

use ncs2::transport::{Direction, TraceEvent, TraceLine};
use ncs2::wire::{EventKind, HEADER_LEN, Header, Side};

/// One transfer, understood.
#[derive(Clone, Debug)]
pub struct Moment {
    /// Seconds since the trace began.
    pub seconds: f64,
    /// Its pipe.
    pub way: Direction,
    /// What it was.
    pub what: What,
}

/// What a transfer was.
#[derive(Clone, Debug)]
pub enum What {
    /// An event's header.
    Event(Header),
    /// A payload, or a piece of one.
    Data(Piece),
    /// No bytes: a zero-length packet.
    Empty,
    /// A remark of whoever recorded.
    Note(String),
}

/// A piece of a payload.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Number of its stream.
    pub stream: u32,
    /// Bytes of the whole payload.
    pub total: usize,
    /// Where the piece begins.
    pub offset: usize,
    /// Bytes of the piece.
    pub len: usize,
}

impl Piece {
    /// Whether the payload ends with it.
    pub fn ends(&self) -> bool {
        self.offset + self.len >= self.total
    }
}

/// A recorded link.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// In order.
    pub moments: Vec<Moment>,
    /// Names of streams, as the host gave them.
    pub names: HashMap<u32, String>,
}

#[derive(Default)]
struct Lane {
    payload: Option<(u32, usize, usize)>,
}

impl Timeline {
    /// Reads trace lines; says which line makes no sense.
    pub fn read<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Timeline, String> {
        let mut timeline = Timeline::default();
        let mut lanes = [Lane::default(), Lane::default()];
        for (n, text) in lines.into_iter().enumerate() {
            let line = TraceLine::parse(text).ok_or_else(|| format!("line {} is no transfer", n + 1))?;
            match line.event {
                TraceEvent::Note(note) => timeline.moments.push(Moment {
                    seconds: line.seconds,
                    way: Direction::Out,
                    what: What::Note(note),
                }),
                TraceEvent::Transfer { direction, len, shown, .. } => {
                    let lane = &mut lanes[direction as usize];
                    timeline
                        .transfer(lane, line.seconds, direction, len, &shown)
                        .map_err(|why| format!("line {}: {why}", n + 1))?;
                }
            }
        }
        Ok(timeline)
    }

    /// One transfer may hold several events, or a part of one.
    fn transfer(
        &mut self,
        lane: &mut Lane,
        seconds: f64,
        way: Direction,
        len: usize,
        shown: &[u8],
    ) -> Result<(), String> {
        if len == 0 {
            self.moments.push(Moment { seconds, way, what: What::Empty });
            return Ok(());
        }
        let mut at = 0;
        while at < len {
            if let Some((stream, total, offset)) = lane.payload {
                let n = (total - offset).min(len - at);
                let piece = Piece { stream, total, offset, len: n };
                self.moments.push(Moment { seconds, way, what: What::Data(piece) });
                lane.payload = (offset + n < total).then_some((stream, total, offset + n));
                at += n;
                continue;
            }
            let bytes = shown.get(at..at + HEADER_LEN).ok_or("a header that is not shown whole")?;
            let header = Header::parse(bytes).map_err(|e| e.to_string())?;
            at += HEADER_LEN;
            if header.side == Side::Request && header.kind == EventKind::CreateStream && way == Direction::Out
            {
                self.names.insert(header.stream.0, header.name.as_str().to_owned());
            }
            if header.side == Side::Request && header.kind == EventKind::Write && header.size > 0 {
                lane.payload = Some((header.stream.0, header.size as usize, 0));
            }
            self.moments.push(Moment { seconds, way, what: What::Event(header) });
        }
        Ok(())
    }

    /// The name of a stream, without its number: `FIFO`, `graphMonitor`, …
    pub fn kind_of(&self, stream: u32) -> &str {
        let name = self.names.get(&stream).map_or("?", String::as_str);
        name.trim_end_matches(|c: char| c.is_ascii_digit())
    }

    /// The moments between the notes `begin` and `end`.
    pub fn between(&self, begin: &str, end: &str) -> &[Moment] {
        let at = |name: &str| {
            self.moments.iter().position(|m| matches!(&m.what, What::Note(note) if note == name))
        };
        match (at(begin), at(end)) {
            (Some(first), Some(last)) if first < last => &self.moments[first + 1..last],
            _ => &[],
        }
    }
}
