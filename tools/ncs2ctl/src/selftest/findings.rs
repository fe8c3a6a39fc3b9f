//! What a timeline tells about the firmware: one answer per thing that PROTOCOL marks as unknown, each with its evidence.

use std::collections::BTreeMap;

use ncs2::transport::Direction;
use ncs2::wire::{EventKind, Header, Side};
use serde::{Deserialize, Serialize};

use super::timeline::{Moment, Timeline, What};

/// What stands where nothing was seen.
pub const NOT_OBSERVED: &str = "not observed";
/// Notes around the first inferences.
pub const INFERENCES: [&str; 2] = ["inferences begin", "inferences end"];
/// Shortest execution whose beginning and end are told apart.
const LONG_ENOUGH_S: f64 = 0.000_3;

/// An answer to one unknown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// Whether anything was seen that answers it.
    pub observed: bool,
    /// The setting, in the words of a profile where there is one; [`NOT_OBSERVED`] without one.
    pub answer: String,
    /// What was seen, or why nothing was.
    pub evidence: String,
}

impl Finding {
    /// An answer.
    pub fn of(answer: impl Into<String>, evidence: impl Into<String>) -> Self {
        Finding { observed: true, answer: answer.into(), evidence: evidence.into() }
    }

    /// None.
    pub fn none(why: impl Into<String>) -> Self {
        Finding { observed: false, answer: NOT_OBSERVED.into(), evidence: why.into() }
    }
}

/// By name.
pub type Findings = BTreeMap<String, Finding>;

/// Every name that a report has, PROTOCOL section 12 first; what each asks.
pub const UNKNOWNS: [(&str, &str); 26] = [
    ("usb_descriptors", "USB descriptors in both states"),
    ("boot_rom_on_errors", "what the boot ROM does on errors"),
    ("max_graphs", "capabilities: networks at the same time"),
    ("max_fifos", "capabilities: FIFOs at the same time"),
    ("max_memory_bytes", "capabilities: memory"),
    ("max_executors", "capabilities: executors"),
    ("fw_version", "capabilities: the firmware's four numbers"),
    ("tensor_version", "capabilities: the tensors' two numbers"),
    ("tensor_descriptors", "n, c, w, h of the tensor descriptors"),
    ("creates_streams", "whether the firmware opens its own write side"),
    ("event_order", "order of acknowledgement, release, status and output"),
    ("status", "a TRIGGER's status before or after its output"),
    ("input_release", "when an input is released: start or end of the execution"),
    ("output_piece_bytes", "whether outputs come in pieces"),
    ("zero_length", "zero-length packets after payloads"),
    ("ack_delay_us", "how late WRITE is acknowledged"),
    ("refused_input", "what becomes of the input of a refused TRIGGER"),
    ("answers_reset", "whether RESET is answered"),
    ("watchdog_s", "how long the firmware's watchdog waits"),
    ("pipelined_commands", "which waits of the vendor's order may be left out"),
    ("missing_acks", "whether the firmware goes on without our acknowledgements"),
    ("thermal_array", "thermal array beyond level and first temperature"),
    ("wire_variant", "variant V0, V1 or V2"),
    ("usb_reset", "whether a USB reset brings a booted stick back to its boot ROM"),
    ("port_power", "whether power off and on at its hub's port does"),
    ("nce_overflow", "what becomes of a sum beyond 65504 (BLOB_FORMAT 10)"),
];

/// Reads a whole timeline. `packet_bytes`: of the link's packets.
pub fn judge(timeline: &Timeline, packet_bytes: usize) -> Findings {
    let inferences = timeline.between(INFERENCES[0], INFERENCES[1]);
    let mut findings = Findings::new();
    let mut say = |name: &str, finding| findings.insert(name.to_owned(), finding);
    say("creates_streams", creates_streams(timeline));
    say("zero_length", zero_length(timeline, packet_bytes));
    say("output_piece_bytes", pieces(timeline, packet_bytes));
    let runs = runs(timeline, inferences);
    say("status", status(&runs));
    say("input_release", input_release(&runs));
    say("event_order", event_order(&runs));
    say("ack_delay_us", ack_delay(timeline));
    findings
}

fn events<'a>(moments: &'a [Moment], way: Direction) -> impl Iterator<Item = (f64, &'a Header)> + 'a {
    moments.iter().filter(move |m| m.way == way).filter_map(|m| match &m.what {
        What::Event(header) => Some((m.seconds, header)),
        _ => None,
    })
}

fn creates_streams(timeline: &Timeline) -> Finding {
    let opened = events(&timeline.moments, Direction::Out)
        .filter(|(_, h)| h.side == Side::Request && h.kind == EventKind::CreateStream)
        .count();
    let own = events(&timeline.moments, Direction::In)
        .filter(|(_, h)| h.side == Side::Request && h.kind == EventKind::CreateStream)
        .count();
    match (opened, own) {
        (0, _) => Finding::none("no stream was opened"),
        (_, 0) => Finding::of("false", format!("{opened} streams opened, no CREATE_STREAM from the stick")),
        _ => Finding::of("true", format!("{own} CREATE_STREAM from the stick, {opened} from the host")),
    }
}

fn zero_length(timeline: &Timeline, packet_bytes: usize) -> Finding {
    // (payload fills its last packet, an empty packet followed it)
    let mut seen: Vec<(bool, bool)> = Vec::new();
    let mut loose = 0;
    let mut open = false;
    for moment in timeline.moments.iter().filter(|m| m.way == Direction::In) {
        match &moment.what {
            What::Data(piece) if piece.ends() => {
                seen.push((piece.len.is_multiple_of(packet_bytes), false));
                open = true;
            }
            What::Empty if open => {
                if let Some(last) = seen.last_mut() {
                    last.1 = true;
                }
                open = false;
            }
            What::Empty => loose += 1,
            _ => open = false,
        }
    }
    let count = |full, empty| seen.iter().filter(|s| **s == (full, empty)).count();
    let evidence = format!(
        "after payloads that fill their last packet: {} of {}; after others: {} of {}; elsewhere: {loose}",
        count(true, true),
        count(true, true) + count(true, false),
        count(false, true),
        count(false, true) + count(false, false),
    );
    match (count(true, true), count(true, false), count(false, true)) {
        (0, 0, 0) => Finding::none(format!("no payload filled its last packet; {evidence}")),
        (_, _, others) if others > 0 => Finding::of("always", evidence),
        (full, _, _) if full > 0 => Finding::of("full", evidence),
        _ => Finding::of("never", evidence),
    }
}

fn pieces(timeline: &Timeline, packet_bytes: usize) -> Finding {
    let outputs = timeline.moments.iter().filter(|m| m.way == Direction::In).filter_map(|m| match &m.what {
        What::Data(piece) if timeline.kind_of(piece.stream) == "FIFO" => Some(piece),
        _ => None,
    });
    let (mut largest, mut cut) = (0, Vec::new());
    for piece in outputs {
        largest = largest.max(piece.total);
        if !piece.ends() && !piece.len.is_multiple_of(packet_bytes) {
            cut.push(piece.len);
        }
    }
    // A transfer that ends within a packet: the first one says how long a piece is.
    match cut.first() {
        Some(first) => {
            Finding::of(first.to_string(), format!("{} transfers ended inside an output", cut.len()))
        }
        None if largest > packet_bytes => Finding::of(
            "0",
            format!(
                "outputs up to {largest} bytes came whole (or in pieces of whole packets, which look the same)"
            ),
        ),
        None => Finding::none("no output was longer than a packet"),
    }
}

/// What happened around one TRIGGER. Times in seconds.
#[derive(Default, Debug)]
struct Run {
    triggered: f64,
    released: Option<f64>,
    status: Option<f64>,
    output: Option<f64>,
    order: Vec<String>,
}

/// Runs of a stretch in which one inference was in flight at a time.
fn runs(timeline: &Timeline, moments: &[Moment]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut input = None;
    for moment in moments {
        match (&moment.way, &moment.what) {
            (Direction::Out, What::Event(h)) if h.kind == EventKind::Write && h.side == Side::Request => {
                match timeline.kind_of(h.stream.0) {
                    "FIFO" => {
                        input = Some(h.stream.0);
                        runs.push(Run { triggered: f64::NAN, ..Run::default() });
                    }
                    "graphMonitor" => {
                        if let Some(run) = runs.last_mut() {
                            run.triggered = moment.seconds;
                        }
                    }
                    _ => {}
                }
            }
            (Direction::In, What::Event(h)) => {
                let Some(run) = runs.last_mut() else { continue };
                let kind = timeline.kind_of(h.stream.0);
                let on = if Some(h.stream.0) == input { "input" } else { kind };
                match (h.kind, h.side) {
                    (EventKind::Write, Side::Response) => {
                        // Its stream may be stale: whose turn it was says more.
                        let on = if run.triggered.is_nan() { "input" } else { "command" };
                        run.order.push(format!("ack({on})"));
                    }
                    (EventKind::ReadRelease, Side::Request) => {
                        if on == "input" {
                            run.released.get_or_insert(moment.seconds);
                        }
                        let on = if on == "graphMonitor" { "command" } else { on };
                        run.order.push(format!("release({on})"));
                    }
                    (EventKind::Write, Side::Request) if kind == "graphMonitor" => {
                        run.status.get_or_insert(moment.seconds);
                        run.order.push("status".into());
                    }
                    (EventKind::Write, Side::Request) if kind == "FIFO" => {
                        run.output.get_or_insert(moment.seconds);
                        run.order.push("output".into());
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }
    runs.retain(|run| !run.triggered.is_nan() && run.output.is_some());
    runs
}

fn status(runs: &[Run]) -> Finding {
    let place = |run: &Run, what: &str| run.order.iter().position(|o| o == what);
    let before = runs.iter().filter(|run| place(run, "status") < place(run, "output")).count();
    let evidence = format!("{before} of {} statuses before their output", runs.len());
    match (runs.len(), before) {
        (0, _) => Finding::none("no inference was recorded"),
        (n, b) if b == n => Finding::of("before", evidence),
        (_, 0) => Finding::of("after", evidence),
        _ => Finding::of("either", evidence),
    }
}

fn input_release(runs: &[Run]) -> Finding {
    let mut shares: Vec<f64> = Vec::new();
    let mut longest: f64 = 0.0;
    for run in runs {
        let (Some(released), Some(output)) = (run.released, run.output) else { continue };
        let whole = output - run.triggered;
        longest = longest.max(whole);
        if whole >= LONG_ENOUGH_S {
            shares.push((released - run.triggered) / whole);
        }
    }
    if shares.len() < 3 {
        return Finding::none(format!(
            "executions of up to {:.0} us are too short to tell start from end",
            longest * 1e6
        ));
    }
    shares.sort_by(f64::total_cmp);
    let median = shares[shares.len() / 2];
    let evidence = format!(
        "released after {:.0} % of the time from TRIGGER to output (median of {})",
        median * 100.0,
        shares.len()
    );
    Finding::of(if median < 0.5 { "start" } else { "end" }, evidence)
}

fn event_order(runs: &[Run]) -> Finding {
    let mut orders: BTreeMap<String, usize> = BTreeMap::new();
    for run in runs {
        *orders.entry(run.order.join(" ")).or_default() += 1;
    }
    match orders.iter().max_by_key(|(_, count)| **count) {
        None => Finding::none("no inference was recorded"),
        Some((order, count)) => Finding::of(
            order.clone(),
            format!("{count} of {} inferences; {} different orders", runs.len(), orders.len()),
        ),
    }
}

/// The least time from a request's last byte to its response.
fn least(timeline: &Timeline, kind: EventKind) -> Option<f64> {
    let mut sent: BTreeMap<i32, f64> = BTreeMap::new();
    let mut open: Option<i32> = None;
    let mut least: Option<f64> = None;
    for moment in &timeline.moments {
        match (&moment.way, &moment.what) {
            (Direction::Out, What::Event(h)) if h.kind == kind && h.side == Side::Request => {
                sent.insert(h.id, moment.seconds);
                open = (h.kind == EventKind::Write).then_some(h.id);
            }
            (Direction::Out, What::Data(piece)) => {
                // Short ones only: the way of a long one takes time of its own.
                match open.take() {
                    Some(id) if piece.total <= 132 => drop(sent.insert(id, moment.seconds)),
                    Some(id) => drop(sent.remove(&id)),
                    None => {}
                }
            }
            (Direction::In, What::Event(h)) if h.kind == kind && h.side == Side::Response => {
                if let Some(begin) = sent.remove(&h.id) {
                    let took = moment.seconds - begin;
                    least = Some(least.map_or(took, |l| l.min(took)));
                }
            }
            _ => {}
        }
    }
    least
}

fn ack_delay(timeline: &Timeline) -> Finding {
    match (least(timeline, EventKind::Ping), least(timeline, EventKind::Write)) {
        (Some(ping), Some(ack)) => Finding::of(
            format!("{:.0}", (ack - ping).max(0.0) * 1e6),
            format!("fastest WRITE_RESP {:.0} us, fastest PING_RESP {:.0} us", ack * 1e6, ping * 1e6),
        ),
        _ => Finding::none("no ping, or no write, was answered"),
    }
}
