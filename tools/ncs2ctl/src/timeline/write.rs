//! From records to the JSON that Chrome's tracing and Perfetto read: one event on a line.
//!
//! A stick is a process and its inferences under way are threads (lanes), so that stages never overlap on a line. Times
//! are microseconds since the run began.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

use ncs2::StickId;
use ncs2::stats::StageTimes;
use serde_json::{Value, json};

use super::SCHEMA;
use super::record::{RECORD_BYTES, Record, What};
use crate::failure::one_line;

/// Records that wait for earlier ones: lanes hand over every 100 ms, so this much disorder does not happen below
/// 300 000 inferences a second, and beyond it only the numbering of lines suffers.
const WINDOW: usize = 65_536;
/// More inferences at once on a stick share lines.
const MAX_LINES: usize = 4096;

/// What the file says about itself.
#[derive(Clone, Debug)]
pub struct About<'a> {
    /// Profile of virtual sticks; `None` for real ones.
    pub profile: Option<&'a str>,
    /// Names of the networks, by number.
    pub models: Vec<&'a str>,
    /// The command's settings, as its report has them.
    pub config: Value,
}

/// By start, then by arrival.
struct Waiting(u64, u64, Record);

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// What was marked.
pub(super) struct Names<'a> {
    /// Words, by number.
    pub(super) events: &'a [String],
    /// Marks for which there was no room.
    pub(super) left_out: u64,
    /// Requests that have marks, by the fleet's names.
    pub(super) marked: &'a HashSet<u64>,
}

struct Writer<'a, W> {
    out: &'a mut W,
    marks: &'a [String],
    /// Numbers of the requests that have marks, by the fleet's names.
    numbers: HashMap<u64, u64>,
    /// Per stick, when each line is free again.
    lines: Vec<Vec<u64>>,
}

/// Reads all records of `spill` and writes the document.
pub(super) fn write(
    spill: &mut File,
    sticks: &[StickId],
    marks: &Names<'_>,
    about: &About<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    let other = json!({
        "schema": SCHEMA,
        "simulated": about.profile.is_some(),
        "profile": about.profile,
        "sticks": sticks.iter().map(StickId::as_str).collect::<Vec<_>>(),
        "models": about.models,
        "config": about.config,
        "marks_left_out": marks.left_out,
    });
    write!(out, "{{\"displayTimeUnit\":\"ms\",\n\"otherData\":{other},\n\"traceEvents\":[\n")?;
    let process = |pid: usize, name: String| json!({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": one_line(&name)}});
    write!(out, "{}", process(0, "ncs2ctl".into()))?;
    let simulated = if about.profile.is_some() { " (simulated)" } else { "" };
    for (at, stick) in sticks.iter().enumerate() {
        write!(out, ",\n{}", process(at + 1, format!("{stick}{simulated}")))?;
    }

    let mut numbers = HashMap::new();
    if !marks.marked.is_empty() {
        // A mark often comes before its request has a number, so the numbers are looked for first.
        let mut records = Records::new(spill)?;
        while let Some(record) = records.next()? {
            if !matches!(record.what, What::Mark(_)) && marks.marked.contains(&record.name) {
                numbers.insert(record.name, record.request);
            }
        }
    }
    let mut records = Records::new(spill)?;
    let lines = vec![Vec::new(); sticks.len() + 1];
    let mut writer = Writer { out, marks: marks.events, numbers, lines };
    let mut waiting: BinaryHeap<Reverse<Waiting>> = BinaryHeap::with_capacity(WINDOW + 1);
    let mut arrived = 0;
    while let Some(record) = records.next()? {
        waiting.push(Reverse(Waiting(record.start_ns, arrived, record)));
        arrived += 1;
        if waiting.len() > WINDOW
            && let Some(Reverse(Waiting(_, _, record))) = waiting.pop()
        {
            writer.event(&record)?;
        }
    }
    while let Some(Reverse(Waiting(_, _, record))) = waiting.pop() {
        writer.event(&record)?;
    }
    writer.out.write_all(b"\n]}\n")
}

/// The records of a spill, from the first.
struct Records<'a>(BufReader<&'a mut File>);

impl<'a> Records<'a> {
    fn new(spill: &'a mut File) -> io::Result<Self> {
        spill.seek(SeekFrom::Start(0))?;
        Ok(Records(BufReader::with_capacity(1 << 16, spill)))
    }

    fn next(&mut self) -> io::Result<Option<Record>> {
        let mut bytes = [0; RECORD_BYTES];
        match self.0.read_exact(&mut bytes) {
            Ok(()) => Ok(Some(Record::from_bytes(&bytes))),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl<W: Write> Writer<'_, W> {
    fn event(&mut self, record: &Record) -> io::Result<()> {
        let (start, pid) = (Micros(record.start_ns), usize::from(record.stick) + 1);
        match record.what {
            What::Request(times) => {
                let total = times.iter().fold(0, |sum: u64, t| sum.saturating_add(*t));
                let tid = self.line(record, total);
                let mut at = record.start_ns;
                for (name, time) in StageTimes::NAMES.into_iter().zip(times) {
                    write!(
                        self.out,
                        ",\n{{\"ph\":\"X\",\"name\":\"{name}\",\"cat\":\"stage\",\"pid\":{pid},\"tid\":{tid},\
                         \"ts\":{},\"dur\":{},\"args\":{{\"request\":{},\"model\":{}}}}}",
                        Micros(at),
                        Micros(time),
                        record.request,
                        record.model
                    )?;
                    at = at.saturating_add(time);
                }
                Ok(())
            }
            What::Failed(after) => {
                let tid = self.line(record, after);
                write!(
                    self.out,
                    ",\n{{\"ph\":\"X\",\"name\":\"failed\",\"cat\":\"request\",\"pid\":0,\"tid\":{tid},\
                     \"ts\":{start},\"dur\":{},\"args\":{{\"request\":{},\"model\":{}}}}}",
                    Micros(after),
                    record.request,
                    record.model
                )
            }
            What::Heat { celsius, level } => {
                let counter = |name: &str, key: &str, value: String| {
                    format!(
                        ",\n{{\"ph\":\"C\",\"name\":\"{name}\",\"pid\":{pid},\"tid\":0,\"ts\":{start},\
                         \"args\":{{\"{key}\":{value}}}}}"
                    )
                };
                // A sensor may say anything; JSON has no word for nonsense.
                if celsius.is_finite() {
                    let event = counter("temperature", "celsius", format!("{celsius:.2}"));
                    self.out.write_all(event.as_bytes())?;
                }
                match level {
                    Some(level) => {
                        self.out.write_all(counter("throttle level", "level", level.to_string()).as_bytes())
                    }
                    None => Ok(()),
                }
            }
            What::Mark(name) => {
                let name = self.marks.get(name as usize).map_or("?", String::as_str);
                let mut event = json!({"ph": "i", "s": "g", "name": one_line(name), "pid": 0, "tid": 0});
                if let Some(number) = self.numbers.get(&record.name) {
                    event["args"] = json!({"request": number});
                }
                // The time goes in as the others do, not as a float that JSON rounds its own way.
                let event = event.to_string();
                write!(self.out, ",\n{},\"ts\":{start}}}", event.strip_suffix('}').unwrap_or(&event))
            }
        }
    }

    /// A line of its stick that is free for the whole time; 1 and up.
    fn line(&mut self, record: &Record, takes: u64) -> usize {
        let end = record.start_ns.saturating_add(takes);
        let Some(lines) = self.lines.get_mut(usize::from(record.stick)) else { return 1 };
        let free = lines.iter().position(|&until| until <= record.start_ns);
        let at = match free {
            Some(at) => at,
            None if lines.len() < MAX_LINES => {
                lines.push(0);
                lines.len() - 1
            }
            None => lines.len() - 1,
        };
        lines[at] = end;
        at + 1
    }
}

/// Nanoseconds, shown as microseconds.
struct Micros(u64);

impl std::fmt::Display for Micros {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}
