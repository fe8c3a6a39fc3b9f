//! What the two clients say on the wire, event by event, as the stick heard it.
//!
//! Under `ordering = vendor` the two must be equal after this: ids count by order and are not compared, watchdog pings and their
//! releases follow the clock and are taken out, what the vendor's client sends of uninitialised memory is masked, and of
//! READ_REL responses it fills only type and flags. Under `pipelined` a report says which waits are gone.

use std::collections::BTreeMap;
use std::path::Path;

use ncs2::transport::{Direction, TraceEvent, TraceLine};
use ncs2::wire::{DeviceCommand, EventKind, GraphCommand, HEADER_LEN, Header, Side, StreamId};
use serde_json::{Value, json};

use crate::client::Who;
use crate::guest::{Guest, Test, Verdict, ensure, model};
use crate::host::Setup;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("wire::sync_inferences", |g| {
        same(g, "tiny_u8_s1.blob", &Order::Total, json!([{ "do": "infer", "graph": "a", "count": 3 }]))
    }),
    ("wire::large_blob_and_input", |g| {
        same(
            g,
            "squeezenet1_1_u8_s1.blob",
            &Order::Total,
            json!([{ "do": "infer", "graph": "a", "count": 2 }]),
        )
    }),
    ("wire::several_outputs", |g| {
        same(g, "ssd_head_u8_s1.blob", &Order::Total, json!([{ "do": "infer", "graph": "a", "count": 2 }]))
    }),
    ("wire::four_in_flight", |g| {
        same(
            g,
            "tiny_fp16_s2.blob",
            &Order::OfEachStream,
            json!([{ "do": "infer", "graph": "a", "count": 24, "in_flight": 4 }]),
        )
    }),
    ("wire::unload_and_load_again", |g| {
        same(
            g,
            "tiny_u8_s1.blob",
            &Order::Total,
            json!([
                { "do": "infer", "graph": "a" },
                { "do": "unload", "graph": "a" },
                { "do": "load", "graph": "a", "blob": model("mlp_fp16_s1.blob").unwrap_or_default(), "requests": 4, "executors": 2, "depth": 4 },
                { "do": "infer", "graph": "a", "count": 2 },
            ]),
        )
    }),
    ("wire::report_of_pipelined", report),
];

/// What is compared.
enum Order {
    /// All requests, one after the other.
    Total,
    /// Those of each stream: with several in flight the vendor's two threads race.
    OfEachStream,
}

/// One event of the link.
#[derive(Clone, Debug)]
struct Event {
    from_host: bool,
    seconds: f64,
    header: Header,
    /// Its first bytes, its length, and its hash where the line does not show it whole.
    payload: Option<(Vec<u8>, usize, Option<String>)>,
}

/// One client's trace of one stick.
struct Tape(Vec<Event>);

impl Tape {
    /// What came after the last boot that something was said after.
    fn read(path: &Path) -> Result<Tape, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Tape::parse(&text).map_err(|why| format!("{}: {why}", path.display()))
    }

    fn parse(text: &str) -> Result<Tape, String> {
        let mut events: Vec<Event> = Vec::new();
        let mut last_payload = None;
        for line in text.lines() {
            let line = TraceLine::parse(line).ok_or_else(|| format!("not a line of a trace: {line}"))?;
            match line.event {
                TraceEvent::Note(note) => {
                    if let (Some(hash), Some(at)) = (note.strip_prefix("payload sha256="), last_payload)
                        && let Some((_, _, place)) =
                            events.get_mut(at).and_then(|e: &mut Event| e.payload.as_mut())
                    {
                        *place = Some(hash.to_owned());
                    }
                }
                TraceEvent::Transfer { direction, len, text, shown } => {
                    let from_host = direction == Direction::Out;
                    if text.starts_with("hdr ") && shown.len() == HEADER_LEN {
                        let header = Header::parse(&shown).map_err(|e| e.to_string())?;
                        events.push(Event { from_host, seconds: line.seconds, header, payload: None });
                    } else if let Some(at) = events.iter().rposition(|e| e.from_host == from_host) {
                        events[at].payload = Some((shown, len, None));
                        last_payload = Some(at);
                    }
                }
            }
        }
        Ok(Tape(events))
    }

    /// Places of the watchdog's pings and of the stick's releases of them.
    fn pings(&self) -> Vec<usize> {
        let mut places = Vec::new();
        // Packets of a stream are released in order.
        let mut packets = std::collections::VecDeque::new();
        for (at, event) in self.0.iter().enumerate() {
            let Event { header, payload, from_host, .. } = event;
            if header.stream != StreamId(0) || header.side != Side::Request {
                continue;
            }
            if *from_host && header.kind == EventKind::Write {
                let bytes = payload.as_ref().map_or(&[][..], |p| &p.0);
                let is_ping = DeviceCommand::parse(bytes) == Ok(DeviceCommand::WatchdogPing);
                packets.push_back(is_ping);
                if is_ping {
                    places.push(at);
                }
            }
            if !*from_host && header.kind == EventKind::ReadRelease && packets.pop_front() == Some(true) {
                places.push(at);
            }
        }
        places
    }

    /// The host's requests as they are compared.
    fn requests(&self) -> Vec<(StreamId, String)> {
        let pings = self.pings();
        self.0
            .iter()
            .enumerate()
            .filter(|(at, e)| e.from_host && e.header.side == Side::Request && !pings.contains(at))
            .map(|(_, e)| (e.header.stream, format!("{} {}", shape(&e.header), masked(e))))
            .collect()
    }

    /// What the host answered to each request of the stick, by stream.
    fn responses(&self) -> BTreeMap<u32, Vec<String>> {
        let pings = self.pings();
        let mut answers = BTreeMap::<u32, Vec<String>>::new();
        for (at, asked) in self.0.iter().enumerate() {
            if asked.from_host || asked.header.side != Side::Request || pings.contains(&at) {
                continue;
            }
            let answer = self.0[at..]
                .iter()
                .find(|e| e.from_host && e.header.side == Side::Response && e.header.id == asked.header.id);
            let text = match answer {
                None => "no answer".to_owned(),
                Some(e) if e.header.kind == EventKind::ReadRelease => {
                    format!("ReadRelease {:?}", e.header.flags)
                }
                Some(e) => shape(&e.header),
            };
            let list = answers.entry(asked.header.stream.0).or_default();
            list.push(format!("{:?} of {} bytes: {text}", asked.header.kind, asked.header.size));
        }
        answers
    }
}

fn shape(header: &Header) -> String {
    let name = match header.kind {
        EventKind::CreateStream => header.name.as_str(),
        _ => "",
    };
    format!("{:?} stream {} size {} {:?} {name}", header.kind, header.stream, header.size, header.flags)
}

/// The payload, with zeros where the vendor's client sends whatever lay in memory.
fn masked(event: &Event) -> String {
    let Some((shown, len, hash)) = &event.payload else { return String::new() };
    let known = match event.header.stream {
        StreamId(0) => DeviceCommand::parse(shown).map(|c| format!("{c:?}")).ok(),
        StreamId(1) => GraphCommand::parse(shown).map(|c| format!("{c:?}")).ok(),
        _ => None,
    };
    match (known, hash) {
        (Some(command), _) => command,
        (None, Some(hash)) => format!("{len} bytes {hash}"),
        (None, None) => format!("{shown:02x?}"),
    }
}

/// Both clients do the same, and say the same.
fn same(guest: &mut Guest, blob: &str, order: &Order, more: Value) -> Verdict {
    let [vendor, ours] = record(guest, "wire", &Setup::executing(1), blob, &more, "vendor")?;
    let pick = |tape: &Tape, stream: Option<StreamId>| -> Vec<String> {
        let all = tape.requests().into_iter();
        all.filter(|(of, _)| stream.is_none_or(|s| s == *of)).map(|(_, text)| text).collect()
    };
    match order {
        Order::Total => equal("request", &pick(&vendor, None), &pick(&ours, None))?,
        Order::OfEachStream => {
            let mut streams: Vec<StreamId> =
                vendor.requests().into_iter().map(|(stream, _)| stream).collect();
            streams.sort_by_key(|s| s.0);
            streams.dedup();
            for stream in streams {
                let what = format!("request of stream {stream}");
                equal(&what, &pick(&vendor, Some(stream)), &pick(&ours, Some(stream)))?;
            }
        }
    }
    let (theirs, own) = (vendor.responses(), ours.responses());
    ensure!(
        theirs.keys().eq(own.keys()),
        "the stick asked on streams {:?} of the vendor's client, {:?} of ours",
        theirs.keys(),
        own.keys()
    );
    for (stream, expected) in &theirs {
        equal(&format!("answer on stream {stream}"), expected, own.get(stream).map_or(&[], Vec::as_slice))?;
    }
    let answers: usize = theirs.values().map(Vec::len).sum();
    guest.note(format!("{} requests and {answers} answers are equal", vendor.requests().len()));
    Ok(())
}

fn equal(what: &str, theirs: &[String], ours: &[String]) -> Verdict {
    for (n, (a, b)) in theirs.iter().zip(ours).enumerate() {
        ensure!(a == b, "{what} {}:\n      vendor {a}\n      ours   {b}", n + 1);
    }
    ensure!(
        theirs.len() == ours.len(),
        "{what}: {} of the vendor's client, {} of ours; the next is {:?}",
        theirs.len(),
        ours.len(),
        theirs.get(ours.len()).or_else(|| ours.get(theirs.len()))
    );
    Ok(())
}

/// Both clients' tapes of a load with the vendor's usual options, then `more`, then a close.
fn record(
    guest: &mut Guest,
    name: &str,
    setup: &Setup,
    blob: &str,
    more: &Value,
    ordering: &str,
) -> Result<[Tape; 2], String> {
    let mut tapes = Vec::new();
    for who in Who::BOTH {
        let mut steps = vec![
            json!({ "do": "config", "set": {}, "ordering": ordering }),
            json!({ "do": "load", "graph": "a", "blob": model(blob)?, "requests": 4, "executors": 2, "depth": 4 }),
        ];
        for step in more.as_array().into_iter().flatten() {
            let mut step = step.clone();
            step["to"] = json!(format!("/tmp/{}", who.name()));
            steps.push(step);
        }
        // The vendor's client leaves its graphs in their places when it goes; ours unloads them.
        steps.push(json!({ "do": "unload", "graph": "a" }));
        steps.push(json!({ "do": "close" }));
        let trace = format!("{name}.{blob}.{ordering}.{}.log", who.name());
        let setup = Setup { trace: Some(trace.clone()), ..setup.clone() };
        guest.steps(who, &setup, name, &json!(steps))?;
        tapes.push(Tape::read(&Path::new("/out").join(trace))?);
    }
    tapes.try_into().map_err(|_| "two clients, two tapes".into())
}

/// What each kind of request was waited for: the next request was sent only after its answer.
fn waits(tape: &Tape) -> BTreeMap<&'static str, (usize, usize)> {
    let mut counts = BTreeMap::<&'static str, (usize, usize)>::new();
    let pings = tape.pings();
    let requests: Vec<(usize, &Event)> = tape
        .0
        .iter()
        .enumerate()
        .filter(|(at, e)| e.from_host && e.header.side == Side::Request && !pings.contains(at))
        .collect();
    for pair in requests.windows(2) {
        let [(at, asked), (next, _)] = pair else { continue };
        let Some(label) = label(asked) else { continue };
        let answered = tape.0[*at..*next]
            .iter()
            .any(|e| !e.from_host && e.header.side == Side::Response && e.header.id == asked.header.id);
        let (waited, all) = counts.entry(label).or_default();
        *all += 1;
        *waited += usize::from(answered);
    }
    counts
}

fn label(event: &Event) -> Option<&'static str> {
    let Header { kind, stream, .. } = event.header;
    Some(match (kind, stream) {
        (EventKind::Write, StreamId(1)) => match GraphCommand::parse(&event.payload.as_ref()?.0) {
            Ok(GraphCommand::Trigger { .. }) => "TRIGGER taken",
            _ => "load and unload commands taken",
        },
        (EventKind::Write, StreamId(0)) => "device commands taken",
        (EventKind::Write, _) if event.header.size > 1000 => "input or blob taken",
        (EventKind::ReadRelease, StreamId(1)) => "status released",
        (EventKind::ReadRelease, _) => "output released",
        _ => return None,
    })
}

fn report(guest: &mut Guest) -> Verdict {
    // Answers of the link come late, so that who waits for them is seen to wait.
    let setup = Setup { profile: "[firmware]\nack_delay_us = 20000.0\n".into(), ..Setup::hashing(1) };
    let more = json!([{ "do": "infer", "graph": "a", "count": 20, "in_flight": 4 }]);
    let blob = "tiny_fp16_s2.blob";
    let [vendor, ours] = record(guest, "waits", &setup, blob, &more, "vendor")?;
    let [_, pipelined] = record(guest, "waits", &setup, blob, &more, "pipelined")?;
    let all = [waits(&vendor), waits(&ours), waits(&pipelined)];
    let mut labels: Vec<&str> = all.iter().flat_map(|counts| counts.keys().copied()).collect();
    labels.sort_unstable();
    labels.dedup();
    let mut table = String::from(
        "Requests whose answer was there before the next request was sent (20 inferences, 4 in flight, acks 20 ms late):\n\n\
         | waited for | vendor's client | ours, `vendor` | ours, `pipelined` |\n|---|---|---|---|\n",
    );
    for label in labels {
        let cells: Vec<String> = all
            .iter()
            .map(|counts| counts.get(label).map_or("-".into(), |(waited, of)| format!("{waited} of {of}")))
            .collect();
        table += &format!("| {label} | {} |\n", cells.join(" | "));
    }
    let span = |tape: &Tape| {
        let triggers: Vec<f64> =
            tape.0.iter().filter(|e| label(e) == Some("TRIGGER taken")).map(|e| e.seconds).collect();
        triggers.last().copied().unwrap_or(0.0) - triggers.first().copied().unwrap_or(0.0)
    };
    table += &format!(
        "| first to last TRIGGER | {:.0} ms | {:.0} ms | {:.0} ms |\n",
        span(&vendor) * 1e3,
        span(&ours) * 1e3,
        span(&pipelined) * 1e3
    );
    guest.table("waits", table);
    let gone = |label: &str| {
        let waited = |counts: &BTreeMap<&str, (usize, usize)>| counts.get(label).map_or(0, |c| c.0);
        (waited(&all[0]), waited(&all[2]))
    };
    let (before, after) = gone("TRIGGER taken");
    ensure!(
        before > 0 && after < before,
        "pipelined waits {after} times for a TRIGGER's answer, the vendor {before}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(from_host: bool, header: Header) -> String {
        let direction = if from_host { Direction::Out } else { Direction::In };
        let event = TraceEvent::Transfer {
            direction,
            len: 84,
            text: "hdr x".into(),
            shown: header.encode().to_vec(),
        };
        TraceLine { seconds: 1.0, thread: "t".into(), stick: "sim0".into(), event }.to_string()
    }

    fn data(bytes: &[u8]) -> String {
        let (direction, len) = (Direction::Out, bytes.len());
        let event = TraceEvent::Transfer { direction, len, text: "data".into(), shown: bytes.to_vec() };
        TraceLine { seconds: 1.0, thread: "t".into(), stick: "sim0".into(), event }.to_string()
    }

    #[test]
    fn pings_and_garbage_are_no_difference() {
        let write = |id| line(true, Header::request(id, EventKind::Write, StreamId(0), 8));
        let release = |id| line(false, Header::request(id, EventKind::ReadRelease, StreamId(0), 8));
        let thermal = [0, 0, 0, 0, 9, 9, 9, 9];
        let clean = [write(10), data(&[0; 8]), release(1)].join("\n");
        let busy =
            [write(10), data(&[4, 0, 0, 0, 0, 0, 0, 0]), write(11), data(&thermal), release(1), release(2)];
        let (clean, busy) = (Tape::parse(&clean).unwrap(), Tape::parse(&busy.join("\n")).unwrap());
        assert_eq!(clean.requests(), busy.requests());
        assert_eq!(clean.requests().len(), 1);
        assert_eq!(clean.responses(), busy.responses());
        assert!(equal("request", &["a".into()], &["b".into()]).is_err());
        assert!(equal("request", &["a".into()], &[]).is_err());
    }

    #[test]
    fn an_answer_before_the_next_request_was_waited_for() {
        let asked = Header::request(10, EventKind::ReadRelease, StreamId(3), 20);
        let answer = asked.response(ncs2::wire::Flags::ACK);
        let next = Header::request(11, EventKind::ReadRelease, StreamId(3), 20);
        let waited = [line(true, asked), line(false, answer), line(true, next)].join("\n");
        let hurried = [line(true, asked), line(true, next), line(false, answer)].join("\n");
        assert_eq!(waits(&Tape::parse(&waited).unwrap())["output released"], (1, 1));
        assert_eq!(waits(&Tape::parse(&hurried).unwrap())["output released"], (0, 1));
    }
}
