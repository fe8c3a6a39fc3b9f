//! A report's timeline in the stick's place: the recorded connection once more, without a stick. Everything that we send must
//! be what was sent then, transfer by transfer, and the findings must be those of the report.

use std::collections::VecDeque;

use ncs2::transport::{
    Completion, Direction, MemoryKind, Rejected, TraceEvent, TraceLine, Transfer, TransferError, Transport,
    TransportInfo, WaitOn,
};
use ncs2::wire::{EventKind, HEADER_LEN, Header, Side};

use super::exam::{judged, recorded};
use super::report::Report;
use super::session::Session;

/// A transfer of the record.
#[derive(Clone, Debug)]
struct Entry {
    direction: Direction,
    len: usize,
    shown: Vec<u8>,
}

struct Player {
    info: TransportInfo,
    entries: VecDeque<Entry>,
    at: usize,
    posted: VecDeque<Transfer>,
    done: VecDeque<Completion>,
    /// How many bytes of an OUT payload come: they are not headers.
    payload: usize,
    difference: std::sync::Arc<parking_lot::Mutex<Option<String>>>,
}

impl Player {
    fn note(&self, what: String) {
        self.difference.lock().get_or_insert(what);
    }

    /// What we send against what was sent.
    fn compare(&mut self, bytes: &[u8], entry: &Entry) {
        if bytes.len() != entry.len {
            return self.note(format!(
                "transfer {}: {} bytes sent, {} recorded",
                self.at,
                bytes.len(),
                entry.len
            ));
        }
        if self.payload > 0 {
            self.payload -= bytes.len().min(self.payload);
            let shown = &entry.shown[..entry.shown.len().min(bytes.len())];
            if bytes[..shown.len()] != *shown {
                self.note(format!("transfer {}: another payload than recorded", self.at));
            }
            return;
        }
        let (ours, theirs) = (Header::parse(bytes), Header::parse(&entry.shown));
        match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => {
                if ours.side == Side::Request && ours.kind == EventKind::Write {
                    self.payload = ours.size as usize;
                }
                if ours != theirs {
                    self.note(format!("transfer {}: sent {ours:?}, recorded {theirs:?}", self.at));
                }
            }
            _ => self.note(format!("transfer {}: no header", self.at)),
        }
    }
}

impl Transport for Player {
    fn info(&self) -> &TransportInfo {
        &self.info
    }

    fn submit(&mut self, transfer: Transfer) -> Result<(), Rejected> {
        if transfer.direction == Direction::In {
            self.posted.push_back(transfer);
            return Ok(());
        }
        self.at += 1;
        match self.entries.front() {
            Some(entry) if entry.direction == Direction::Out => {
                if let Some(entry) = self.entries.pop_front() {
                    self.compare(transfer.bytes(), &entry);
                }
            }
            Some(_) => self.note(format!("transfer {}: sent before what the stick had sent then", self.at)),
            None => self.note(format!("transfer {}: sent after the record's end", self.at)),
        }
        if self.difference.lock().is_some() {
            return Err(Rejected { transfer, reason: TransferError::Gone });
        }
        let actual = transfer.range.len();
        self.done.push_back(Completion { transfer, actual, result: Ok(()) });
        Ok(())
    }

    fn poll(&mut self) -> Option<Completion> {
        if let Some(done) = self.done.pop_front() {
            return Some(done);
        }
        match self.entries.front() {
            Some(entry) if entry.direction == Direction::In => {
                let mut transfer = self.posted.pop_front()?;
                let entry = self.entries.pop_front()?;
                self.at += 1;
                let room = transfer.bytes_mut();
                let shown = entry.shown.len().min(room.len());
                room[..shown].copy_from_slice(&entry.shown[..shown]);
                // What the record does not show of a payload was never looked at.
                room[shown..].fill(0);
                let actual = entry.len.min(room.len());
                Some(Completion { transfer, actual, result: Ok(()) })
            }
            Some(_) => None,
            // The end of the record is the end of the stick.
            None => {
                let transfer = self.posted.pop_front()?;
                Some(Completion { transfer, actual: 0, result: Err(TransferError::Gone) })
            }
        }
    }

    fn arm(&mut self) -> bool {
        !self.done.is_empty() || self.entries.front().is_none_or(|e| e.direction == Direction::In)
    }

    fn wait_on(&self) -> Option<WaitOn<'_>> {
        None
    }

    fn cancel_all(&mut self) {
        let cancelled = self.posted.drain(..).map(|transfer| Completion {
            transfer,
            actual: 0,
            result: Err(TransferError::Cancelled),
        });
        self.done.extend(cancelled);
        self.entries.clear();
    }
}

/// Replays a report. How many transfers were the same; else what was different.
pub fn replay(report: &Report) -> Result<usize, String> {
    let mut entries = VecDeque::new();
    for (n, line) in report.timeline.iter().enumerate() {
        let line = TraceLine::parse(line).ok_or_else(|| format!("line {} is no transfer", n + 1))?;
        if let TraceEvent::Transfer { direction, len, shown, .. } = line.event {
            if shown.len() < len.min(HEADER_LEN) {
                return Err(format!("line {}: its header is not whole", n + 1));
            }
            entries.push_back(Entry { direction, len, shown });
        }
    }
    if entries.is_empty() {
        return Err("the report has no timeline".into());
    }
    let count = entries.len();
    let difference = std::sync::Arc::new(parking_lot::Mutex::new(None));
    let player = Player {
        info: TransportInfo {
            max_packet_bytes: report.stick.max_packet_bytes.clamp(64, 1024),
            speed_mbps: report.stick.link_mbps,
            memory: MemoryKind::InProcess,
            simulated: report.simulated,
        },
        entries,
        at: 0,
        posted: VecDeque::new(),
        done: VecDeque::new(),
        payload: 0,
        difference: std::sync::Arc::clone(&difference),
    };
    let result = Session::new(Box::new(player)).and_then(|session| recorded(session, |_| {}));
    if let Some(difference) = difference.lock().take() {
        return Err(difference);
    }
    result.map_err(|trouble| trouble.to_string())?;
    for (name, finding) in judged(report)? {
        match report.unknowns.get(&name) {
            Some(said) if said.answer == finding.answer => {}
            Some(said) => {
                return Err(format!(
                    "{name}: the report says {}, its timeline {}",
                    said.answer, finding.answer
                ));
            }
            None => return Err(format!("{name}: not in the report")),
        }
    }
    Ok(count)
}
