//! The steps of a selftest, in order: those that harm nothing first, those that disturb last and with consent.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ncs2::clock::{Clock, Instant, Monotonic};
use ncs2::transport::usb::discover::Found;
use ncs2::transport::usb::reset;
use ncs2::transport::{Connection, MemoryKind, TraceSink, Tracer};
use ncs2::wire::{Capabilities, DeviceCommand, PowerConfig, ThermalStats, UsedMemory, WireVersion};
use ncs2::{ErrorKind, Port};
use ncs2_device::Profile;
use parking_lot::Mutex;

use super::arrival;
use super::carried::{self, Carried};
use super::descriptors;
use super::findings::{self, Finding, Findings, INFERENCES, UNKNOWNS};
use super::report::{Depth, GraphRun, HeatPoint, Host, Memory, Report, Rung, SCHEMA, SizeRun, Step, Stick};
use super::session::{Loaded, Session, Stop, Trouble, Waits};
use super::timeline::Timeline;

/// Longest wait for a boot and an open.
const CONNECT: Duration = Duration::from_secs(30);
/// Inferences of the timeline.
const FIRST: u64 = 20;
/// How long an input that a refused trigger left is waited for.
const REFUSED_WAIT: Duration = Duration::from_millis(400);
/// How long a watchdog is waited for: the longest that a profile has, and a little.
const WATCHDOG_WAIT: Duration = Duration::from_secs(70);

/// Longest wait for a boot ROM after a USB reset, and after power was given again.
const RETURN: Duration = Duration::from_secs(5);
/// Longest look at how a throttled stick cools, so that the end of its level is seen.
const COOLING: Duration = Duration::from_secs(600);

/// How much is asked of the stick.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Mode {
    /// Under a minute.
    Quick,
    /// Under three minutes.
    Full,
    /// Load for so long, after the steps of `Full`.
    Heat(Duration),
}

impl Mode {
    fn as_str(self) -> &'static str {
        match self {
            Mode::Quick => "quick",
            Mode::Full => "full",
            Mode::Heat(_) => "heat",
        }
    }

    /// Its end, unless the caller gives another.
    fn time(self) -> Duration {
        match self {
            Mode::Quick => Duration::from_secs(55),
            _ => Duration::from_secs(175),
        }
    }
}

/// A step that has not begun so long before the end is skipped.
const LAST_STEP: Duration = Duration::from_secs(10);
const INTERRUPTED: &str = "interrupted";
const TIME_OVER: &str = "the time is over: --within gives more";

/// A place that a trace is written to and read from.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A selftest of one stick.
pub struct Exam {
    port: Port,
    mode: Mode,
    /// No wait lasts beyond it, but for heat.
    within: Duration,
    consent: bool,
    clock: Monotonic,
    stop: Option<Stop>,
    report: Report,
    tell: Box<dyn FnMut(&str)>,
}

impl Exam {
    /// Of the stick at `port`. `consent`: disruptive steps are allowed. `tell` hears of each step as it begins.
    pub fn new(port: Port, mode: Mode, consent: bool, tell: impl FnMut(&str) + 'static) -> Self {
        let simulated = port.profile().is_some();
        // A path of somebody's profile says where he lives.
        let known = |p: &str| Profile::BUILT_IN.contains(&p);
        let profile = port.profile().map(|p| if known(p) { p.to_owned() } else { "own".to_owned() });
        let unknowns = UNKNOWNS
            .iter()
            .map(|(name, what)| ((*name).to_owned(), Finding::none(format!("{what}: no step came to it"))));
        let report = Report {
            schema: SCHEMA.into(),
            simulated,
            profile,
            tool: env!("CARGO_PKG_VERSION").into(),
            mode: mode.as_str().into(),
            consent,
            passed: false,
            interrupted: false,
            seconds: 0.0,
            host: host(),
            stick: Stick {
                firmware_sha256: None,
                descriptors: [None, None],
                fw_version: [0; 4],
                link_mbps: 0,
                max_packet_bytes: 0,
                memory: String::new(),
                mapped_read_mb_s: 0,
                ordinary_read_mb_s: 0,
                boot_ms: 0.0,
                boot: Vec::new(),
                ping_us: 0.0,
            },
            steps: Vec::new(),
            unknowns: unknowns.collect(),
            memory: Vec::new(),
            thermal: Vec::new(),
            graphs: Vec::new(),
            depths: Vec::new(),
            sizes: Vec::new(),
            ladder: Vec::new(),
            heat: Vec::new(),
            timeline: Vec::new(),
        };
        Exam {
            port,
            mode,
            within: mode.time(),
            consent,
            clock: Monotonic::new(),
            stop: None,
            report,
            tell: Box::new(tell),
        }
    }

    /// Notes the firmware file that real sticks are booted with.
    #[must_use]
    pub fn firmware(mut self, sha256: Option<String>) -> Self {
        self.report.stick.firmware_sha256 = sha256;
        self
    }

    /// Another time for all steps than the mode's: a slow host needs more.
    #[must_use]
    pub fn within(mut self, time: Option<Duration>) -> Self {
        self.within = time.unwrap_or(self.within);
        self
    }

    /// Once `stop` is true, the wait under way ends, the rest is skipped, and the stick is reset.
    #[must_use]
    pub fn stop_when(mut self, stop: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.stop = Some(Arc::new(stop));
        self
    }

    fn is_stopped(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| stop())
    }

    /// Runs it. A stick that fails a step still gives a report.
    pub fn run(mut self) -> Report {
        self.say("boot_rom_on_errors", Finding::none("no step makes the boot ROM fail on purpose"));
        self.step("first inferences", Self::first_connection);
        self.step("networks", Self::second_connection);
        self.step("sizes", Self::sizes);
        self.step("ordering ladder", Self::climb);
        if self.consent {
            self.step("refused trigger", Self::refused_trigger);
            self.step("missing acks", Self::missing_acks);
            self.step("stop in mid-tensor", Self::mid_tensor);
            if self.mode == Mode::Quick {
                self.skip("watchdog", "takes up to 70 s: --full");
            } else {
                self.step("watchdog", Self::watchdog);
            }
        } else {
            for name in ["refused trigger", "missing acks", "stop in mid-tensor", "watchdog"] {
                self.skip(name, "disturbs the stick: needs --yes");
            }
        }
        if let Mode::Heat(time) = self.mode {
            self.step("heat", move |exam| exam.heat(time));
        }
        // Last: a stick that such a step leaves without life needs a hand.
        if self.port.profile().is_some() {
            self.skip("USB reset", "a virtual stick of this process is on no bus");
            self.skip("hub port power", "a virtual stick of this process is on no bus");
        } else if self.consent {
            self.step("USB reset", Self::usb_reset);
            self.step("hub port power", Self::port_power);
        } else {
            self.skip("USB reset", "disturbs the stick: needs --yes");
            self.skip("hub port power", "disturbs the stick: needs --yes");
        }
        self.report.interrupted = self.report.steps.iter().any(|step| step.detail.starts_with(INTERRUPTED));
        let failed = self.report.steps.iter().any(|step| step.outcome == "failed");
        self.report.passed = !failed && !self.report.interrupted;
        self.report.seconds = (self.clock.now().as_nanos() / 1_000_000) as f64 / 1e3;
        self.report
    }

    fn say(&mut self, name: &str, finding: Finding) {
        self.report.unknowns.insert(name.into(), finding);
    }

    fn skip(&mut self, name: &str, why: &str) {
        let why = if self.is_stopped() { INTERRUPTED } else { why };
        self.report.steps.push(Step {
            name: name.into(),
            outcome: "skipped".into(),
            detail: why.into(),
            took_ms: 0.0,
        });
    }

    fn step(&mut self, name: &str, run: impl FnOnce(&mut Self) -> Result<String, Trouble>) {
        let begin = self.clock.now();
        if self.is_stopped() {
            return self.skip(name, INTERRUPTED);
        }
        if self.left() < LAST_STEP {
            return self.skip(name, TIME_OVER);
        }
        (self.tell)(name);
        tracing::debug!("selftest: {name}");
        let (outcome, detail) = match run(self) {
            Ok(detail) => ("passed", detail),
            Err(trouble @ Trouble::Interrupted(_)) => ("skipped", format!("{INTERRUPTED} ({trouble})")),
            // It was cut short, which says nothing about the stick.
            Err(trouble) if self.left().is_zero() => ("skipped", format!("{TIME_OVER} ({trouble})")),
            Err(trouble) => ("failed", trouble.to_string()),
        };
        let took_ms = (self.clock.now() - begin).as_secs_f64() * 1e3;
        self.report.steps.push(Step { name: name.into(), outcome: outcome.into(), detail, took_ms });
    }

    /// What is left of the time of this mode; a heat run has what it needs.
    fn left(&self) -> Duration {
        match self.mode {
            Mode::Heat(_) => Duration::from_secs(365 * 86400),
            _ => self.within.saturating_sub(self.clock.now().saturating_since(Instant::ZERO)),
        }
    }

    fn connect(&mut self, sink: Option<&TraceSink>) -> Result<Session, Trouble> {
        let mut session = self.connect_unbound(sink)?;
        session.bound(self.left());
        Ok(session)
    }

    fn connect_unbound(&mut self, sink: Option<&TraceSink>) -> Result<Session, Trouble> {
        let (limit, stop, port) = (CONNECT.min(self.left()), self.stop.clone(), &mut self.port);
        let first = sink.is_some() && port.profile().is_none();
        let connected = if first {
            let id = port.id().clone();
            let (connected, moments) = arrival::during(&id, || arrival::connect(port, limit, stop));
            self.report.stick.boot = moments;
            connected
        } else {
            arrival::connect(port, limit, stop)
        };
        let Connection { transport, version } = connected.map_err(|e| match self.is_stopped() {
            true => Trouble::Interrupted("connect"),
            false => Trouble::Odd("connect", scrubbed(&e)),
        })?;
        // Behind a kernel's USB a virtual stick looks like any other, and its report must not.
        self.report.simulated |= descriptors::is_virtual(self.port.id());
        let variant = match version {
            WireVersion::V1 => Finding::of("V1", "a session in V1 was understood"),
            other => Finding::of(format!("{other:?}"), "the firmware file's variant"),
        };
        self.say("wire_variant", variant);
        let mut session = match sink {
            Some(sink) => {
                let stick = ncs2::StickId::sim(0);
                Session::new(Box::new(Tracer::new(transport, sink.clone(), stick)))
            }
            None => Session::new(transport),
        }?;
        if let Some(stop) = &self.stop {
            session.stop_when(Arc::clone(stop));
        }
        Ok(session)
    }

    // ---- the recorded connection ------------------------------------------------------------------------------

    fn first_connection(&mut self) -> Result<String, Trouble> {
        let page = Page::default();
        let sink = TraceSink::new(Arc::new(Monotonic::new())).text(page.clone());
        let before = descriptors::of(self.port.id());
        let begin = self.clock.now();
        let session = self.connect(Some(&sink))?;
        self.report.stick.boot_ms = (self.clock.now() - begin).as_secs_f64() * 1e3;
        let info = session.info();
        self.report.stick.link_mbps = info.speed_mbps;
        self.report.stick.max_packet_bytes = info.max_packet_bytes;
        self.report.stick.memory = match info.memory {
            MemoryKind::Mapped => "mapped",
            MemoryKind::Copied => "copied",
            MemoryKind::InProcess => "in-process",
        }
        .into();
        (self.report.stick.mapped_read_mb_s, self.report.stick.ordinary_read_mb_s) = session.reading();
        self.descriptors(before, descriptors::of(self.port.id()));
        let packet_bytes = session.packet_bytes();
        let id = ncs2::StickId::sim(0);
        let seen = recorded(session, |note| sink.note(&id, note));
        // Whatever became of it, what crossed the link is in the report.
        sink.flush();
        let text = String::from_utf8_lossy(&page.0.lock()).into_owned();
        self.report.timeline = text.lines().map(str::to_owned).collect();
        let timeline = Timeline::read(self.report.timeline.iter().map(String::as_str));
        let timeline = timeline.map_err(|why| Trouble::Odd("timeline", why))?;
        self.report.unknowns.extend(findings::judge(&timeline, packet_bytes));
        let seen = seen?;
        self.take(&seen);
        Ok(format!("{FIRST} inferences, {} transfers recorded", self.report.timeline.len()))
    }

    fn descriptors(&mut self, before: Option<Vec<u8>>, after: Option<Vec<u8>>) {
        let both = [before, after];
        let finding = if self.port.profile().is_some() {
            Finding::none("a virtual stick of this process has no descriptors")
        } else if both.iter().all(Option::is_none) {
            Finding::none("sysfs shows none")
        } else {
            let words = both
                .each_ref()
                .map(|b| b.as_deref().map_or(findings::NOT_OBSERVED.into(), descriptors::summary));
            Finding::of(words.join(" then "), "sysfs, before and after boot; whole in `stick`")
        };
        self.say("usb_descriptors", finding);
        self.report.stick.descriptors = both.map(|bytes| bytes.map(|bytes| descriptors::hex(&bytes)));
    }

    fn take(&mut self, seen: &Recorded) {
        let c = &seen.capabilities;
        self.report.stick.fw_version = c.fw_version;
        self.report.stick.ping_us = seen.ping.as_secs_f64() * 1e6;
        for (name, value) in [
            ("max_graphs", c.max_graphs),
            ("max_fifos", c.max_fifos),
            ("max_memory_bytes", c.max_memory_bytes),
            ("max_executors", c.max_executors),
        ] {
            self.say(name, Finding::of(value.to_string(), "GET_CAPABILITIES"));
        }
        self.say("fw_version", Finding::of(format!("{:?}", c.fw_version), "GET_CAPABILITIES"));
        self.say("tensor_version", Finding::of(format!("{:?}", c.tensor_version), "GET_CAPABILITIES"));
        let tensor = seen.loaded.tensors.map(|t| format!("{},{},{},{}", t.n, t.c, t.w, t.h));
        let evidence = "n,c,w,h of input and output of a network with input 1x3x32x32 and 10 classes";
        self.say("tensor_descriptors", Finding::of(tensor.join(" "), evidence));
        let answered = if seen.reset_answered { "true" } else { "false" };
        self.say("answers_reset", Finding::of(answered, "RESET at the end of the first connection"));
        self.report.thermal = seen.thermal.raw.to_vec();
        let others = seen.thermal.raw[2..].iter().filter(|v| **v != 0.0).count();
        self.say(
            "thermal_array",
            Finding::of(format!("{others} of 24 not zero"), "GET_THERMAL_STATS, in `thermal`"),
        );
        self.report.memory = seen.memory.clone();
    }

    // ---- what needs no record ---------------------------------------------------------------------------------

    fn open(&mut self) -> Result<Session, Trouble> {
        let mut session = self.connect(None)?;
        session.ping()?;
        session.open_device()?;
        session.pings = true;
        session.feed_watchdog()?;
        session.open_graphs()?;
        Ok(session)
    }

    fn second_connection(&mut self) -> Result<String, Trouble> {
        let mut session = self.open()?;
        let tiny = carried::tiny();
        let all = [carried::tiny(), carried::mlp(), carried::squeezenet(), carried::full_packets()];
        for (n, carried) in all.iter().enumerate() {
            (self.tell)(carried.name);
            let compared = if self.mode == Mode::Quick && n > 1 { 3 } else { 8 };
            let run = graph_run(&mut session, carried, compared)?;
            self.report.graphs.push(run);
            let used = session.device("GET_USED_MEMORY", DeviceCommand::UsedMemory)?;
            if let Ok(used) = UsedMemory::parse(&used) {
                let after = format!("{} loaded and unloaded", carried.name);
                self.report.memory.push(Memory { after, used_bytes: used.0 });
            }
        }
        let overflow = overflow(&mut session)?;
        self.say("nce_overflow", overflow);
        (self.tell)("depths");
        let loaded = session.load(&tiny.blob, 1, 8)?;
        for depth in [1, 2, 4, 8] {
            let (fps, good) = rate(&mut session, &tiny, &loaded, Waits::VENDOR, depth)?;
            self.report.depths.push(Depth { depth, fps, good });
        }
        session.unload(&loaded)?;
        let together = self.several(&mut session, &tiny)?;
        session.reset()?;
        let wrong = self.report.graphs.iter().filter(|g| !g.good).count()
            + self.report.depths.iter().filter(|d| !d.good).count();
        if wrong > 0 {
            return Err(Trouble::Odd("outputs", format!("{wrong} runs beyond 1 % of their reference")));
        }
        Ok(format!("outputs within 1 %; {together} graphs at once"))
    }

    /// As many graphs at once as four, or as the stick takes.
    fn several(&mut self, session: &mut Session, tiny: &Carried) -> Result<usize, Trouble> {
        let mut loaded: Vec<Loaded> = Vec::new();
        while loaded.len() < 4 {
            match session.load(&tiny.blob, 1, 2) {
                Ok(graph) => loaded.push(graph),
                // A stick that is full says so; its streams stay, as PROTOCOL 8 has it.
                Err(Trouble::Refused(..)) if !loaded.is_empty() => break,
                Err(other) => return Err(other),
            }
        }
        for n in 0..4 * loaded.len() as u64 {
            let graph = &loaded[n as usize % loaded.len()];
            let input = tiny.input(1000 + n);
            let outputs = session.infer(graph, std::slice::from_ref(&input), Waits::VENDOR, 1)?;
            if !tiny.compare(&outputs[0], &tiny.expected(&input)).good {
                return Err(Trouble::Odd("several graphs", "an output of one belongs to another".into()));
            }
        }
        for graph in &loaded {
            session.unload(graph)?;
        }
        Ok(loaded.len())
    }

    /// Small and large tensors, from each kind of memory that the transport has.
    fn sizes(&mut self) -> Result<String, Trouble> {
        let mut session = self.open()?;
        for carried in carried::sizes() {
            let loaded = session.load(&carried.blob, 1, 2)?;
            for mapped in [false, true] {
                session.mapped = mapped;
                let (mut send, mut whole, mut good) = (Duration::MAX, Duration::MAX, true);
                for n in 0..3 {
                    let input = carried.input(n);
                    let begin = session.now();
                    let outputs = session.infer(&loaded, std::slice::from_ref(&input), Waits::VENDOR, 1)?;
                    whole = whole.min(session.now() - begin);
                    send = send.min(session.sent);
                    good &= all_right(&carried, &[input], &outputs);
                }
                if mapped && !session.sent_mapped {
                    break;
                }
                let memory = match session.info().memory {
                    MemoryKind::InProcess => "in-process",
                    _ if mapped => "mapped",
                    _ => "copied",
                };
                self.report.sizes.push(SizeRun {
                    bytes: carried.graph.input_bytes,
                    memory: memory.into(),
                    send_ms: send.as_secs_f64() * 1e3,
                    infer_ms: whole.as_secs_f64() * 1e3,
                    good,
                });
            }
            session.mapped = false;
            session.unload(&loaded)?;
        }
        session.reset()?;
        let wrong = self.report.sizes.iter().filter(|run| !run.good).count();
        if wrong > 0 {
            return Err(Trouble::Odd("sizes", format!("{wrong} runs beyond 1 % of their reference")));
        }
        Ok(format!("{} runs of 64 B to 4 MiB right", self.report.sizes.len()))
    }

    /// One relaxation more at a time, on one connection as long as the stick goes along; after one that it does not bear, a
    /// fresh one.
    fn climb(&mut self) -> Result<String, Trouble> {
        let tiny = &carried::tiny();
        let rungs = [
            ("none (vendor's order)", Waits::VENDOR, 1),
            ("releases are not waited for", Waits { release: false, ..Waits::VENDOR }, 1),
            ("writes are not waited for", Waits { ack: false, ..Waits::VENDOR }, 1),
            ("statuses are not waited for", Waits { status: false, ..Waits::VENDOR }, 1),
            ("nothing is waited for", Waits { ack: false, status: false, release: false }, 1),
            ("nothing is waited for, 4 in flight", Waits { ack: false, status: false, release: false }, 4),
        ];
        let mut accepted = Vec::new();
        let mut open: Option<(Session, Loaded)> = None;
        for (name, waits, depth) in rungs {
            let result = (|| {
                let (mut session, loaded) = match open.take() {
                    Some(there) => there,
                    None => {
                        let mut session = self.open()?;
                        let loaded = session.load(&tiny.blob, 1, 4)?;
                        (session, loaded)
                    }
                };
                let rate = rate(&mut session, tiny, &loaded, waits, depth)?;
                open = Some((session, loaded));
                Ok::<_, Trouble>(rate)
            })();
            let rung = match result {
                Ok((fps, true)) => {
                    accepted.push(name);
                    Rung { relaxation: name.into(), accepted: true, fps, detail: String::new() }
                }
                Ok((_, false)) => Rung {
                    relaxation: name.into(),
                    accepted: false,
                    fps: 0.0,
                    detail: "an output was wrong".into(),
                },
                Err(trouble @ Trouble::Interrupted(_)) => return Err(trouble),
                Err(trouble) => {
                    Rung { relaxation: name.into(), accepted: false, fps: 0.0, detail: trouble.to_string() }
                }
            };
            self.report.ladder.push(rung);
        }
        if let Some((mut session, loaded)) = open {
            session.unload(&loaded)?;
            session.reset()?;
        }
        let of = rungs.len();
        let answer = if accepted.len() == of { "all".into() } else { accepted.join("; ") };
        let evidence = format!("{} of {of} rungs with right outputs", accepted.len());
        self.say("pipelined_commands", Finding::of(answer, evidence.clone()));
        if accepted.is_empty() {
            return Err(Trouble::Odd("ordering ladder", "not even the vendor's order works".into()));
        }
        Ok(evidence)
    }

    // ---- with consent -----------------------------------------------------------------------------------------

    fn refused_trigger(&mut self) -> Result<String, Trouble> {
        let mut session = self.open()?;
        let tiny = carried::tiny();
        let loaded = session.load(&tiny.blob, 1, 4)?;
        let input = tiny.input(77);
        let (status, released) = session.refuse(&loaded, &input, REFUSED_WAIT)?;
        let Some(status) = status else {
            self.say("refused_input", Finding::none("the stick took a TRIGGER to a FIFO that is not there"));
            return Ok("not refused".into());
        };
        let finding = if released {
            Finding::of("release", format!("status {status}; the input came back"))
        } else {
            let kept = session.retrigger(&loaded).map(|out| tiny.compare(&out, &tiny.expected(&input)).good);
            match kept {
                Ok(true) => Finding::of("keep", format!("status {status}; the next TRIGGER took that input")),
                Ok(false) => {
                    Finding::of("other", format!("status {status}; the next TRIGGER gave another output"))
                }
                Err(trouble @ Trouble::Interrupted(_)) => return Err(trouble),
                Err(trouble) => {
                    Finding::of("other", format!("status {status}; not released, then: {trouble}"))
                }
            }
        };
        let answer = finding.answer.clone();
        self.say("refused_input", finding);
        // The stick may be in any state now.
        let _ = session.reset();
        Ok(format!("status {status}, input: {answer}"))
    }

    fn missing_acks(&mut self) -> Result<String, Trouble> {
        let mut session = self.open()?;
        let tiny = carried::tiny();
        let loaded = session.load(&tiny.blob, 1, 4)?;
        session.answers = false;
        let inputs: Vec<_> = (0..8).map(|n| tiny.input(300 + n)).collect();
        let result = session.infer(&loaded, &inputs, Waits::VENDOR, 1);
        let finding = match result {
            Ok(outputs) => {
                let right = all_right(&tiny, &inputs, &outputs);
                Finding::of(
                    if right { "tolerated" } else { "wrong outputs" },
                    "8 inferences without an answer of ours",
                )
            }
            Err(trouble @ Trouble::Interrupted(_)) => return Err(trouble),
            Err(trouble) => Finding::of("not tolerated", trouble.to_string()),
        };
        let answer = finding.answer.clone();
        self.say("missing_acks", finding);
        session.answers = true;
        let _ = session.reset();
        Ok(answer)
    }

    fn mid_tensor(&mut self) -> Result<String, Trouble> {
        let mut session = self.open()?;
        let tiny = carried::tiny();
        let loaded = session.load(&tiny.blob, 1, 4)?;
        session.stop_in_mid_tensor(&loaded, &tiny.input(5))?;
        // As when the process is killed: no RESET, no word.
        drop(session);
        let begin = self.clock.now();
        let mut session = self.open()?;
        let took = self.clock.now() - begin;
        let loaded = session.load(&tiny.blob, 1, 4)?;
        let input = tiny.input(6);
        let outputs = session.infer(&loaded, std::slice::from_ref(&input), Waits::VENDOR, 1)?;
        let right = all_right(&tiny, &[input], &outputs);
        session.reset()?;
        if !right {
            return Err(Trouble::Odd("after a stop in mid-tensor", "a wrong output".into()));
        }
        Ok(format!("works again {:.0} ms later", took.as_secs_f64() * 1e3))
    }

    fn watchdog(&mut self) -> Result<String, Trouble> {
        let mut session = self.open()?;
        session.feed_watchdog()?;
        session.pings = false;
        let patience = WATCHDOG_WAIT.min(self.left());
        match session.wait_gone(patience)? {
            Some(time) => {
                let seconds = time.as_secs_f64();
                self.say(
                    "watchdog_s",
                    Finding::of(format!("{seconds:.1}"), "from the last ping until it left the bus"),
                );
                Ok(format!("left the bus after {seconds:.1} s without a ping"))
            }
            None => {
                let limit = patience.as_secs();
                self.say("watchdog_s", Finding::of(format!("more than {limit}"), "it stayed on the bus"));
                let _ = session.reset();
                Ok(format!("stayed for {limit} s"))
            }
        }
    }

    fn heat(&mut self, time: Duration) -> Result<String, Trouble> {
        let mut session = self.open()?;
        session.pings = true;
        let carried = carried::squeezenet();
        let loaded = session.load(&carried.blob, 1, 4)?;
        let inputs: Vec<_> = (0..4).map(|n| carried.input(n)).collect();
        let begin = session.now();
        while session.now() - begin < time {
            let second = session.now();
            let mut count = 0;
            while session.now() - second < Duration::from_secs(1) {
                session.infer(&loaded, &inputs, Waits::VENDOR, 2)?;
                count += inputs.len();
            }
            let took = session.now() - second;
            let reply = session.device("GET_THERMAL_STATS", DeviceCommand::ThermalStats)?;
            let Ok(stats) = ThermalStats::parse(&reply) else { continue };
            self.report.heat.push(HeatPoint {
                seconds: (session.now() - begin).as_secs_f64(),
                celsius: stats.raw[1],
                level: stats.raw[0],
                service_ms: took.as_secs_f64() * 1e3 / count as f64,
                resting: false,
            });
        }
        // How it cools, until its level is over.
        let rest = session.now();
        let throttled = |report: &Report| report.heat.last().is_some_and(|p| p.level >= 1.0);
        while throttled(&self.report) && session.now() - rest < COOLING {
            session.rest(Duration::from_secs(1))?;
            let reply = session.device("GET_THERMAL_STATS", DeviceCommand::ThermalStats)?;
            let Ok(stats) = ThermalStats::parse(&reply) else { continue };
            self.report.heat.push(HeatPoint {
                seconds: (session.now() - begin).as_secs_f64(),
                celsius: stats.raw[1],
                level: stats.raw[0],
                service_ms: 0.0,
                resting: true,
            });
        }
        session.unload(&loaded)?;
        session.reset()?;
        let hottest = self.report.heat.iter().map(|p| p.celsius).fold(f32::MIN, f32::max);
        Ok(format!("{} points, hottest {hottest:.1} C", self.report.heat.len()))
    }

    /// A USB reset of the booted stick, as from outside.
    fn usb_reset(&mut self) -> Result<String, Trouble> {
        drop(self.open()?);
        self.brought_back("usb_reset", |id| reset::reset_port(id, RETURN))
    }

    /// Power off and on at the port of its hub.
    fn port_power(&mut self) -> Result<String, Trouble> {
        self.brought_back("port_power", |id| reset::power_cycle(id, RETURN))
    }

    fn brought_back(
        &mut self,
        name: &str,
        act: impl FnOnce(&ncs2::StickId) -> ncs2::Result<Found>,
    ) -> Result<String, Trouble> {
        let begin = self.clock.now();
        let (finding, detail) = match act(self.port.id()) {
            Ok(_) => {
                let ms = (self.clock.now() - begin).as_secs_f64() * 1e3;
                (
                    Finding::of("boot ROM", format!("back after {ms:.0} ms")),
                    format!("boot ROM after {ms:.0} ms"),
                )
            }
            // Rights, or a hub that cannot: says nothing of the stick.
            Err(e) if e.kind() != ErrorKind::Unsupported || name == "port_power" => {
                (Finding::none(scrubbed(&e)), format!("not possible here: {}", scrubbed(&e)))
            }
            Err(e) => (Finding::of("not reached", scrubbed(&e)), "the boot ROM did not come back".into()),
        };
        self.say(name, finding);
        Ok(detail)
    }
}

/// What the recorded connection saw beside its timeline.
pub(super) struct Recorded {
    ping: Duration,
    capabilities: Capabilities,
    thermal: ThermalStats,
    memory: Vec<Memory>,
    loaded: Loaded,
    reset_answered: bool,
}

/// The connection that every report begins with. Nothing in it depends on time, so that a replay meets the same transfers.
pub(super) fn recorded(mut session: Session, note: impl Fn(&str)) -> Result<Recorded, Trouble> {
    let mut ping = Duration::MAX;
    for _ in 0..10 {
        ping = ping.min(session.ping()?);
    }
    session.open_device()?;
    let odd = |e: ncs2::wire::WireError| Trouble::Odd("device", e.to_string());
    let reply = session.device("GET_CAPABILITIES", DeviceCommand::Capabilities)?;
    let capabilities = Capabilities::parse(&reply).map_err(odd)?;
    session.feed_watchdog()?;
    session.open_graphs()?;
    session.device("SET_POWER_CONFIG", DeviceCommand::SetPower(PowerConfig::Full))?;
    session.device("ENABLE_ASYNC_DMA", DeviceCommand::AsyncDma(true))?;
    let mut memory = Vec::new();
    let mut used = |session: &mut Session, after: &str| {
        let reply = session.device("GET_USED_MEMORY", DeviceCommand::UsedMemory)?;
        let used_bytes = UsedMemory::parse(&reply).map_err(odd)?.0;
        memory.push(Memory { after: after.into(), used_bytes });
        Ok::<_, Trouble>(())
    };
    used(&mut session, "open")?;
    let reply = session.device("GET_THERMAL_STATS", DeviceCommand::ThermalStats)?;
    let thermal = ThermalStats::parse(&reply).map_err(odd)?;
    let tiny = carried::tiny();
    let loaded = session.load(&tiny.blob, 1, 4)?;
    used(&mut session, "tiny loaded")?;
    note(INFERENCES[0]);
    for n in 0..FIRST {
        session.infer(&loaded, &[tiny.input(n)], Waits::VENDOR, 1)?;
    }
    note(INFERENCES[1]);
    let full = carried::full_packets();
    let long = session.load(&full.blob, 1, 2)?;
    session.infer(&long, &[full.input(1), full.input(2)], Waits::VENDOR, 1)?;
    session.unload(&long)?;
    session.unload(&loaded)?;
    used(&mut session, "all unloaded")?;
    session.feed_watchdog()?;
    let reset_answered = session.reset()?;
    Ok(Recorded { ping, capabilities, thermal, memory, loaded, reset_answered })
}

fn all_right(carried: &Carried, inputs: &[Vec<u8>], outputs: &[Vec<u8>]) -> bool {
    inputs.len() == outputs.len()
        && inputs.iter().zip(outputs).all(|(i, o)| carried.compare(o, &carried.expected(i)).good)
}

/// Inferences per second over 24 distinct inputs, and whether every output was right.
fn rate(
    session: &mut Session,
    carried: &Carried,
    loaded: &Loaded,
    waits: Waits,
    depth: usize,
) -> Result<(f64, bool), Trouble> {
    let inputs: Vec<_> = (0..24).map(|n| carried.input(100 + n)).collect();
    let begin = session.now();
    let outputs = session.infer(loaded, &inputs, waits, depth)?;
    let seconds = (session.now() - begin).as_secs_f64();
    Ok((inputs.len() as f64 / seconds.max(1e-9), all_right(carried, &inputs, &outputs)))
}

fn graph_run(session: &mut Session, carried: &Carried, compared: usize) -> Result<GraphRun, Trouble> {
    let loaded = session.load(&carried.blob, 1, 2)?;
    let (mut times, mut error, mut good) = (Vec::new(), 0.0_f64, true);
    for n in 0..compared as u64 {
        let input = carried.input(n);
        let begin = session.now();
        let outputs = session.infer(&loaded, std::slice::from_ref(&input), Waits::VENDOR, 1)?;
        times.push((session.now() - begin).as_secs_f64() * 1e3);
        let closeness = carried.compare(&outputs[0], &carried.expected(&input));
        error = error.max(closeness.error);
        good &= closeness.good;
    }
    session.unload(&loaded)?;
    times.sort_by(f64::total_cmp);
    Ok(GraphRun {
        name: carried.name.into(),
        bytes: [carried.blob.len(), carried.graph.input_bytes, carried.graph.output_bytes],
        upload_ms: loaded.upload.as_secs_f64() * 1e3,
        infer_ms: times[times.len() / 2],
        compared,
        // JSON knows no infinity.
        error: error.min(1e9),
        good,
        descriptors: loaded.tensors.map(|t| [t.n, t.c, t.w, t.h, t.total_bytes]),
    })
}

/// Sums that leave FP16's range: what the NCE stores.
fn overflow(session: &mut Session) -> Result<Finding, Trouble> {
    let carried = carried::full_packets();
    let input = carried.input_of(60_000.0);
    let expected = carried.values(&carried.expected(&input));
    let beyond: Vec<usize> = (0..expected.len()).filter(|&i| expected[i].is_infinite()).collect();
    if beyond.is_empty() {
        return Ok(Finding::none("the probe does not overflow"));
    }
    let loaded = session.load(&carried.blob, 1, 2)?;
    let outputs = session.infer(&loaded, std::slice::from_ref(&input), Waits::VENDOR, 1)?;
    session.unload(&loaded)?;
    let found = carried.values(&outputs[0]);
    let count = |test: fn(f64) -> bool| beyond.iter().filter(|&&i| test(found[i])).count();
    let (infinite, largest) = (count(f64::is_infinite), count(|v| v.abs() == 65504.0));
    let evidence = format!(
        "{} sums beyond 65504: {infinite} infinite, {largest} at 65504, {} other",
        beyond.len(),
        beyond.len() - infinite - largest
    );
    Ok(match (infinite, largest) {
        (n, _) if n == beyond.len() => Finding::of("infinity", evidence),
        (_, n) if n == beyond.len() => Finding::of("saturates", evidence),
        _ => Finding::of("other", evidence),
    })
}

/// An error without the paths that it may name.
fn scrubbed(error: &ncs2::Error) -> String {
    let text = crate::failure::one_line(&error.to_string());
    let word = |word: &str| if word.contains('/') { "…".to_owned() } else { word.to_owned() };
    text.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

fn host() -> Host {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // What follows the number may name a machine or its owner.
    let release = release.trim().split('-').next().unwrap_or_default().to_owned();
    Host {
        kernel: format!("{} {release}", std::env::consts::OS),
        arch: std::env::consts::ARCH.into(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// The answers of a report's own timeline, for whoever judges it again.
pub(super) fn judged(report: &Report) -> Result<Findings, String> {
    let timeline = Timeline::read(report.timeline.iter().map(String::as_str))?;
    Ok(findings::judge(&timeline, report.stick.max_packet_bytes.max(1)))
}
