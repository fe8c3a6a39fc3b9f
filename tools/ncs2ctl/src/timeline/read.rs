//! Reading a timeline, one event at a time: what each stage took, which were the slowest. Any Chrome trace with complete
//! events (`"ph":"X"`) can be read; memory does not grow with the file.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::io::Read;
use std::time::Duration;

use ncs2::stats::{Latency, StageTimes};
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Different names in a file; a real one has seven.
const MAX_NAMES: usize = 1000;

/// What to look at.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Only this stage.
    pub stage: Option<String>,
    /// Only what begins at or after this, milliseconds.
    pub from_ms: f64,
    /// Only what begins before this, milliseconds.
    pub to_ms: f64,
    /// How many of the slowest to keep.
    pub slowest: usize,
}

/// Sums of one stage.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    /// Times.
    pub times: Latency,
    /// Sum, microseconds.
    pub total_us: f64,
    /// Longest, microseconds.
    pub max_us: f64,
}

/// One stage of one inference.
#[derive(Clone, PartialEq, Debug)]
pub struct Slow {
    /// Microseconds.
    pub us: f64,
    /// When it began, microseconds since the run began.
    pub start_us: f64,
    /// Stage.
    pub name: String,
    /// Process number.
    pub pid: u64,
    /// Number of the inference; `None` in a trace of another program.
    pub request: Option<u64>,
}

impl Eq for Slow {}

impl PartialOrd for Slow {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Slow {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Of two that took as long the earlier one counts as slower, so that the choice does not depend on the order.
        self.us.total_cmp(&other.us).then(other.start_us.total_cmp(&self.start_us))
    }
}

/// Range of a stick's temperature, °C.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Range {
    /// Coldest.
    pub min: f64,
    /// Hottest.
    pub max: f64,
}

/// What the file says.
#[derive(Debug, Default)]
pub struct Summary {
    /// `otherData`, as it stands there.
    pub about: Value,
    /// By name.
    pub stages: BTreeMap<String, Stage>,
    /// Slowest first.
    pub slowest: Vec<Slow>,
    /// Inferences with an answer, and without: `queue` and `failed` events.
    pub requests: u64,
    /// See `requests`.
    pub failed: u64,
    /// Names of the processes, which are sticks.
    pub processes: BTreeMap<u64, String>,
    /// By process.
    pub temperature: BTreeMap<u64, Range>,
    /// Named moments: microseconds and name, at most [`MAX_NAMES`].
    pub marks: Vec<(f64, String)>,
    /// End of the last stage, microseconds.
    pub end_us: f64,
}

#[derive(Deserialize)]
struct Event {
    ph: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    pid: u64,
    #[serde(default)]
    ts: f64,
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Args,
}

#[derive(Deserialize, Default)]
struct Args {
    request: Option<u64>,
    name: Option<String>,
    celsius: Option<f64>,
}

/// Collects while it parses.
struct Reader<'a> {
    filter: &'a Filter,
    summary: Summary,
    slowest: BinaryHeap<Reverse<Slow>>,
}

/// Reads a whole document.
pub fn read(from: impl Read, filter: &Filter) -> Result<Summary, serde_json::Error> {
    let mut reader = Reader { filter, summary: Summary::default(), slowest: BinaryHeap::new() };
    let mut json = serde_json::Deserializer::from_reader(from);
    Document(&mut reader).deserialize(&mut json)?;
    json.end()?;
    let Reader { mut summary, slowest, .. } = reader;
    summary.slowest = slowest.into_sorted_vec().into_iter().map(|Reverse(slow)| slow).collect();
    Ok(summary)
}

impl Reader<'_> {
    fn event(&mut self, event: Event) -> Result<(), String> {
        let summary = &mut self.summary;
        match event.ph.as_str() {
            "M" if event.name == "process_name" => {
                if let Some(name) = event.args.name
                    && summary.processes.len() < MAX_NAMES
                {
                    summary.processes.insert(event.pid, name);
                }
            }
            "C" => {
                if let Some(c) = event.args.celsius
                    && (summary.temperature.len() < MAX_NAMES || summary.temperature.contains_key(&event.pid))
                {
                    let range = summary.temperature.entry(event.pid).or_insert(Range { min: c, max: c });
                    *range = Range { min: range.min.min(c), max: range.max.max(c) };
                }
            }
            "i" | "I" if summary.marks.len() < MAX_NAMES => summary.marks.push((event.ts, event.name)),
            "X" => return self.complete(event),
            _ => {}
        }
        Ok(())
    }

    fn complete(&mut self, event: Event) -> Result<(), String> {
        let Filter { stage, from_ms, to_ms, slowest } = self.filter;
        if !(event.dur >= 0.0 && event.dur.is_finite() && event.ts.is_finite()) {
            return Err(format!("an event with the duration {}", event.dur));
        }
        let summary = &mut self.summary;
        summary.end_us = summary.end_us.max(event.ts + event.dur);
        let wanted = event.ts >= from_ms * 1e3 && event.ts < to_ms * 1e3;
        if !wanted {
            return Ok(());
        }
        match event.name.as_str() {
            "failed" => {
                summary.failed += 1;
                return Ok(());
            }
            // Each inference has this one once, and first.
            name if name == StageTimes::NAMES[0] => summary.requests += 1,
            _ => {}
        }
        if stage.as_ref().is_some_and(|wanted| *wanted != event.name) {
            return Ok(());
        }
        if !summary.stages.contains_key(&event.name) {
            if summary.stages.len() >= MAX_NAMES {
                return Err(format!("more than {MAX_NAMES} names"));
            }
            summary.stages.insert(event.name.clone(), Stage::default());
        }
        if let Some(sums) = summary.stages.get_mut(&event.name) {
            sums.times.record(Duration::try_from_secs_f64(event.dur / 1e6).unwrap_or(Duration::MAX));
            sums.total_us += event.dur;
            sums.max_us = sums.max_us.max(event.dur);
        }
        // Only what is slower than the fastest of those kept is worth a copy.
        let full = self.slowest.len() >= *slowest;
        if full && self.slowest.peek().is_none_or(|Reverse(least)| event.dur < least.us) {
            return Ok(());
        }
        let Event { name, pid, ts, dur, args, .. } = event;
        self.slowest.push(Reverse(Slow { us: dur, start_us: ts, name, pid, request: args.request }));
        if full {
            self.slowest.pop();
        }
        Ok(())
    }
}

struct Document<'r, 'a>(&'r mut Reader<'a>);

impl<'de> DeserializeSeed<'de> for Document<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with traceEvents")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        let mut found = false;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "traceEvents" => {
                    map.next_value_seed(Events(self.0))?;
                    found = true;
                }
                "otherData" => self.0.summary.about = map.next_value()?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if found { Ok(()) } else { Err(M::Error::missing_field("traceEvents")) }
    }
}

struct Events<'r, 'a>(&'r mut Reader<'a>);

impl<'de> DeserializeSeed<'de> for Events<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Events<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of events")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<(), S::Error> {
        while let Some(event) = seq.next_element()? {
            self.0.event(event).map_err(S::Error::custom)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter() -> Filter {
        Filter { stage: None, from_ms: 0.0, to_ms: f64::INFINITY, slowest: 2 }
    }

    const TEXT: &str = r#"{"traceEvents":[
        {"ph":"M","name":"process_name","pid":1,"args":{"name":"sim0"}},
        {"ph":"X","name":"queue","pid":1,"tid":1,"ts":0,"dur":10,"args":{"request":0,"model":0}},
        {"ph":"X","name":"execute","pid":1,"tid":1,"ts":10,"dur":1000,"args":{"request":0,"model":0}},
        {"ph":"C","name":"temperature","pid":1,"ts":5,"args":{"celsius":40.5}},
        {"ph":"X","name":"queue","pid":1,"tid":1,"ts":2000,"dur":30,"args":{"request":1,"model":0}},
        {"ph":"X","name":"execute","pid":1,"tid":1,"ts":2030,"dur":3000,"args":{"request":1,"model":0}},
        {"ph":"X","name":"failed","pid":0,"tid":1,"ts":2500,"dur":3000,"args":{"request":2,"model":0}},
        {"ph":"i","name":"warm","ts":1}],"otherData":{"simulated":true}}"#;

    #[test]
    fn stages_are_summed_and_the_slowest_kept() {
        let summary = read(TEXT.as_bytes(), &filter()).expect("well formed");
        assert_eq!((summary.requests, summary.failed), (2, 1));
        let execute = &summary.stages["execute"];
        assert_eq!((execute.times.count(), execute.total_us, execute.max_us), (2, 4000.0, 3000.0));
        let slow: Vec<_> = summary.slowest.iter().map(|s| (s.us, s.request)).collect();
        assert_eq!(slow, [(3000.0, Some(1)), (1000.0, Some(0))]);
        assert_eq!(summary.processes[&1], "sim0");
        assert_eq!(summary.temperature[&1], Range { min: 40.5, max: 40.5 });
        assert_eq!(summary.marks, [(1.0, "warm".to_owned())]);
        assert_eq!((summary.end_us, &summary.about["simulated"]), (5500.0, &Value::Bool(true)));
    }

    #[test]
    fn filters_take_what_begins_in_the_range() {
        let late = Filter { stage: Some("queue".into()), from_ms: 2.0, ..filter() };
        let summary = read(TEXT.as_bytes(), &late).expect("well formed");
        assert_eq!(summary.stages.keys().collect::<Vec<_>>(), ["queue"]);
        assert_eq!((summary.stages["queue"].total_us, summary.requests), (30.0, 1));
        let early = Filter { to_ms: 2.0, ..filter() };
        assert_eq!(read(TEXT.as_bytes(), &early).expect("well formed").requests, 1);
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        for bad in [
            "",
            "{}",
            "[]",
            "{\"traceEvents\":3}",
            "{\"traceEvents\":[{\"ph\":\"X\",\"dur\":-1}]}",
            "{\"traceEvents\":[]} x",
        ] {
            assert!(read(bad.as_bytes(), &filter()).is_err(), "{bad}");
        }
    }
}
