//! Collecting: fixed records into an unnamed file.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ncs2::StickId;
use ncs2::runtime::{Mark, Marks, RequestId};
use ncs2::stats::StageTimes;
use parking_lot::Mutex;

use super::write::{self, About, Names};
use crate::aside;
use crate::failure::{Failure, Result};

/// Bytes of one record.
pub(super) const RECORD_BYTES: usize = 80;
/// A lane hands over so many records at once, or what it has after so long: order in the file is then nearly that of time.
const LANE_RECORDS: usize = 1024;
const LANE_TIME_NS: u64 = 100_000_000;
/// Events with a name of their own; more are counted and left out.
const MAX_MARKS: usize = 65_536;

/// What a record is about.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum What {
    /// The six stages, nanoseconds.
    Request([u64; StageTimes::COUNT]),
    /// No answer, after so many nanoseconds.
    Failed(u64),
    /// Degrees Celsius, and the throttle level where it was told.
    Heat { celsius: f32, level: Option<u8> },
    /// An event; its name by number.
    Mark(u32),
}

/// One line of the timeline.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Record {
    /// Since the timeline began.
    pub(super) start_ns: u64,
    pub(super) stick: u16,
    pub(super) model: u16,
    /// Number of the request, from 0.
    pub(super) request: u64,
    /// The fleet's name for it; [`NO_NAME`] where it has none.
    pub(super) name: u64,
    pub(super) what: What,
}

/// Of no request.
pub(super) const NO_NAME: u64 = u64::MAX;
/// No level was told.
const NO_LEVEL: u8 = u8::MAX;

impl Record {
    pub(super) fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let (kind, level, times) = match self.what {
            What::Request(times) => (0, NO_LEVEL, times),
            What::Failed(ns) => (1, NO_LEVEL, [ns, 0, 0, 0, 0, 0]),
            What::Heat { celsius, level } => {
                (2, level.unwrap_or(NO_LEVEL), [u64::from(celsius.to_bits()), 0, 0, 0, 0, 0])
            }
            What::Mark(name) => (3, NO_LEVEL, [u64::from(name), 0, 0, 0, 0, 0]),
        };
        let mut bytes = [0; RECORD_BYTES];
        bytes[0] = kind;
        bytes[1] = level;
        bytes[2..4].copy_from_slice(&self.stick.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.model.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.request.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.start_ns.to_le_bytes());
        for (at, time) in times.iter().enumerate() {
            bytes[24 + 8 * at..32 + 8 * at].copy_from_slice(&time.to_le_bytes());
        }
        bytes[72..80].copy_from_slice(&self.name.to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Self {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let times: [u64; StageTimes::COUNT] = std::array::from_fn(|i| word(24 + 8 * i));
        let level = Some(bytes[1]).filter(|&level| level != NO_LEVEL);
        let what = match bytes[0] {
            0 => What::Request(times),
            1 => What::Failed(times[0]),
            2 => What::Heat { celsius: f32::from_bits(times[0] as u32), level },
            _ => What::Mark(times[0] as u32),
        };
        Record {
            start_ns: word(16),
            stick: short(2),
            model: short(4),
            request: word(8),
            name: word(72),
            what,
        }
    }
}

struct Shared {
    epoch: Instant,
    sticks: Vec<StickId>,
    requests: AtomicU64,
    spill: Mutex<Spill>,
}

struct Spill {
    file: File,
    /// The first error; nothing is written after it.
    error: Option<io::Error>,
    marks: Vec<String>,
    marks_left_out: u64,
    /// Names of requests that have marks.
    marked: HashSet<u64>,
}

impl Spill {
    fn mark(&mut self, start_ns: u64, name: u64, event: String) {
        if self.marks.len() >= MAX_MARKS {
            self.marks_left_out += 1;
            return;
        }
        let what = What::Mark(self.marks.len() as u32);
        self.marks.push(event);
        self.marked.extend((name != NO_NAME).then_some(name));
        self.append(&Record { start_ns, stick: 0, model: 0, request: 0, name, what }.to_bytes());
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.error.is_none()
            && let Err(error) = self.file.write_all(bytes)
        {
            self.error = Some(error);
        }
    }
}

/// A timeline that is being collected.
pub struct Timeline {
    path: PathBuf,
    shared: Arc<Shared>,
}

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// When it was submitted.
    pub at: Instant,
    /// The fleet's name for it.
    pub id: RequestId,
}

/// One thread's end of it. What it holds is handed over when it goes.
pub struct Lane {
    shared: Arc<Shared>,
    buffer: Vec<u8>,
    handed_over_ns: u64,
}

impl Timeline {
    /// For a file at `path`, and sticks by these names.
    ///
    /// # Errors
    /// When nothing can be written there.
    pub fn create(path: &Path, sticks: Vec<StickId>) -> Result<Self> {
        aside::check(path)?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::tempfile_in(folder).map_err(|e| Failure::file(path, "write", &e))?;
        let spill = Spill { file, error: None, marks: Vec::new(), marks_left_out: 0, marked: HashSet::new() };
        let shared =
            Shared { epoch: Instant::now(), sticks, requests: AtomicU64::new(0), spill: Mutex::new(spill) };
        Ok(Timeline { path: path.to_owned(), shared: Arc::new(shared) })
    }

    /// An end for one thread.
    pub fn lane(&self) -> Lane {
        Lane {
            shared: Arc::clone(&self.shared),
            buffer: Vec::with_capacity(LANE_RECORDS * RECORD_BYTES),
            handed_over_ns: 0,
        }
    }

    fn now_ns(&self) -> u64 {
        nanos(self.shared.epoch.elapsed())
    }

    /// A stick's temperature now.
    pub fn heat(&self, stick: &StickId, celsius: f32, level: Option<u8>) {
        let (start_ns, stick) = (self.now_ns(), self.shared.number_of(stick));
        let what = What::Heat { celsius, level };
        let record = Record { start_ns, stick, model: 0, request: 0, name: NO_NAME, what };
        self.shared.spill.lock().append(&record.to_bytes());
    }

    /// Something that happened now, with a name.
    pub fn mark(&self, name: &str) {
        let start_ns = self.now_ns();
        self.shared.spill.lock().mark(start_ns, NO_NAME, name.to_owned());
    }

    /// What callers of the fleet marked with [`ncs2::Fleet::mark`].
    pub fn marks_of_requests(&self, marks: Marks) {
        let now_ns = self.now_ns();
        let mut spill = self.shared.spill.lock();
        spill.marks_left_out += marks.dropped;
        for Mark { at, request, event } in marks.marks {
            let ago = nanos(marks.now.saturating_sub(at));
            spill.mark(now_ns.saturating_sub(ago), request.as_u64(), event);
        }
    }

    /// Writes the file. All lanes are to be gone by then. The number of requests in it.
    ///
    /// # Errors
    /// When the disk did not take it; the path then holds what it held before.
    pub fn finish(self, about: &About<'_>) -> Result<u64> {
        let failed = |e: io::Error| Failure::file(&self.path, "write", &e);
        let mut spill = self.shared.spill.lock();
        if let Some(error) = spill.error.take() {
            return Err(failed(error));
        }
        let Spill { file, marks, marks_left_out, marked, .. } = &mut *spill;
        let marks = Names { events: marks, left_out: *marks_left_out, marked };
        aside::write_with(&self.path, |out| write::write(file, &self.shared.sticks, &marks, about, out))?;
        Ok(self.shared.requests.load(Ordering::Relaxed))
    }
}

impl Shared {
    fn number_of(&self, stick: &StickId) -> u16 {
        let at = self.sticks.iter().position(|s| s == stick).unwrap_or(self.sticks.len());
        u16::try_from(at).unwrap_or(u16::MAX)
    }
}

impl Lane {
    /// An inference of network `model` that was submitted as `sent` says and answered by `stick`.
    pub fn request(&mut self, sent: Sent, stick: &StickId, model: u16, times: &StageTimes) {
        let stick = self.shared.number_of(stick);
        self.push(sent, stick, model, What::Request(times.as_array()));
    }

    /// One that ended in an error now.
    pub fn failed(&mut self, sent: Sent, model: u16) {
        let stick = u16::try_from(self.shared.sticks.len()).unwrap_or(u16::MAX);
        self.push(sent, stick, model, What::Failed(nanos(sent.at.elapsed())));
    }

    fn push(&mut self, sent: Sent, stick: u16, model: u16, what: What) {
        let Sent { at: submitted, id } = sent;
        let start_ns = nanos(submitted.saturating_duration_since(self.shared.epoch));
        let request = self.shared.requests.fetch_add(1, Ordering::Relaxed);
        self.buffer.extend_from_slice(
            &Record { start_ns, stick, model, request, name: id.as_u64(), what }.to_bytes(),
        );
        let full = self.buffer.len() >= LANE_RECORDS * RECORD_BYTES;
        if full || start_ns.saturating_sub(self.handed_over_ns) >= LANE_TIME_NS {
            self.hand_over();
            self.handed_over_ns = start_ns;
        }
    }

    fn hand_over(&mut self) {
        if !self.buffer.is_empty() {
            self.shared.spill.lock().append(&self.buffer);
            self.buffer.clear();
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.hand_over();
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_went() {
        let base =
            Record { start_ns: 7, stick: 3, model: 2, request: 1 << 40, name: 1 << 50, what: What::Mark(9) };
        for what in [
            What::Request([1, 2, 3, 4, 5, u64::MAX]),
            What::Failed(77),
            What::Heat { celsius: 41.5, level: Some(2) },
            What::Heat { celsius: -3.0, level: None },
            What::Mark(65_535),
        ] {
            let record = Record { what, ..base };
            assert_eq!(Record::from_bytes(&record.to_bytes()), record);
        }
    }
}
