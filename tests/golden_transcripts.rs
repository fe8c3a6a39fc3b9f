//! Every line of the transcripts of the vendor's client, decoded by `ncs2::wire` and held against what the line says.
//!
//! OUT bytes are genuine bytes of the vendor's host. IN bytes come from an emulation that this host accepted
//! (simulated), no stick was there.

mod transcript;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ncs2::wire::{
    Capabilities, DeviceCommand, EventKind, FIFO_GOODBYE, FifoDirection, Flags, GraphCommand, HEADER_LEN,
    Header, MAX_TRANSFER_BYTES, Side, StageCount, Status, StreamName, TensorDescriptor, ThermalStats,
    TimingData, VERIFY_HEADER_LEN, boot_chunks,
};
use transcript::{Body, Direction, HeaderText, Line, SHOWN_BYTES, Span, StreamText, Transfer, What};

/// Class of line → lines seen. Each line counts once, after all that it says was compared.
type Counts = BTreeMap<&'static str, usize>;

/// What one stick's lines so far imply for the next.
#[derive(Default)]
struct Stick {
    booted_bytes: usize,
    /// Lengths of the boot transfers.
    boot_lengths: Vec<usize>,
    /// Streams that are open, by number.
    names: BTreeMap<u32, String>,
    /// The payload under way in each direction (OUT, IN).
    payload: [Option<Payload>; 2],
    last_fifo: Option<GraphCommand>,
    last_blob: Vec<u8>,
    /// Stages of the blob that was sent last.
    stages: u32,
    first_event: Option<u32>,
}

#[derive(Clone, Copy)]
struct Payload {
    stream: u32,
    total: usize,
    done: usize,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The vendor's name of the event.
fn event_name(header: &Header) -> String {
    let kind = match header.kind {
        EventKind::Write => "WRITE",
        EventKind::Read => "READ",
        EventKind::ReadRelease => "READ_REL",
        EventKind::ReadReleaseSpecific => "READ_REL_SPEC",
        EventKind::CreateStream => "CREATE_STREAM",
        EventKind::CloseStream => "CLOSE_STREAM",
        EventKind::Ping => "PING",
        EventKind::Reset => "RESET",
    };
    format!("{kind}_{}", if header.side == Side::Request { "REQ" } else { "RESP" })
}

impl Stick {
    fn transfer(&mut self, t: &Transfer<'_>) -> &'static str {
        assert_eq!(t.endpoint, if t.direction == Direction::Out { 0x01 } else { 0x81 });
        // Whole, or cut: 10 of the 11 files cut at 132 bytes, number 25 at 149 and 299.
        let cut = [SHOWN_BYTES, 149, 299].contains(&t.bytes.len()) && t.bytes.len() < t.len;
        assert!(t.bytes.len() == t.len || cut, "{} of {} bytes shown", t.bytes.len(), t.len);
        match &t.what {
            What::Boot { offset, timeout_ms } => {
                assert_eq!((*offset, *timeout_ms, t.direction), (self.booted_bytes, 2000, Direction::Out));
                self.booted_bytes += t.len;
                self.boot_lengths.push(t.len);
                "boot image"
            }
            What::Header(text) => self.header(t, text),
            What::Data { stream, span, meaning } => self.data(t, *stream, *span, meaning),
        }
    }

    fn header(&mut self, t: &Transfer<'_>, text: &HeaderText<'_>) -> &'static str {
        assert_eq!(t.len, HEADER_LEN);
        let header = Header::parse(&t.bytes).expect("a header");
        assert_eq!(event_name(&header), text.event);
        assert_eq!(header.event_type(), text.event_type);
        assert_eq!(header.id, text.id);
        assert_eq!(header.stream.0, text.stream.id);
        assert_eq!(header.size, text.size);
        assert_eq!((header.flags, text.flags), (Flags::ACK, "ack"), "the only flags in these transcripts");
        assert_eq!(
            self.names.get(&text.stream.id).map(String::as_str),
            text.stream.name,
            "streams that are open"
        );
        match header.kind {
            EventKind::CreateStream => assert_eq!(Some(header.name.as_str()), text.name),
            _ => assert_eq!((header.name, text.name), (StreamName::EMPTY, None)),
        }
        // What we would send in its place differs in the name field alone.
        let ours = header.encode();
        assert_eq!((&ours[..8], &ours[72..]), (&t.bytes[..8], &t.bytes[72..]));
        self.first_event.get_or_insert(header.event_type());

        let payload = &mut self.payload[t.direction as usize];
        assert!(payload.is_none(), "a header inside a payload");
        if header.has_payload() {
            *payload = Some(Payload { stream: header.stream.0, total: header.size as usize, done: 0 });
        }
        match (header.kind, header.side) {
            (EventKind::CreateStream, Side::Request) => {
                assert_eq!(Header::create_stream(header.id, header.name, header.stream, header.size), header);
                self.names.insert(header.stream.0, header.name.as_str().into());
            }
            (EventKind::CloseStream, Side::Response) => {
                assert!(self.names.remove(&header.stream.0).is_some());
            }
            _ => {}
        }
        "header"
    }

    fn data(
        &mut self,
        t: &Transfer<'_>,
        stream: StreamText<'_>,
        span: Option<Span>,
        meaning: &str,
    ) -> &'static str {
        let slot = &mut self.payload[t.direction as usize];
        let payload = slot.as_mut().expect("data behind a WRITE request");
        assert_eq!(stream.id, payload.stream);
        // The host's transfers show their place, the emulation sends every payload in one.
        let span = match t.direction {
            Direction::Out => span.expect("off=…/…"),
            Direction::In => {
                assert_eq!(span, None);
                Span { offset: 0, total: t.len }
            }
        };
        assert_eq!(span, Span { offset: payload.done, total: payload.total });
        assert_eq!(t.len, (payload.total - payload.done).min(MAX_TRANSFER_BYTES));
        payload.done += t.len;
        if payload.done == payload.total {
            *slot = None;
        }
        let name = stream.name.expect("data of an open stream");
        assert_eq!(self.names.get(&stream.id).map(String::as_str), Some(name));

        let bytes = &t.bytes[..];
        match (t.direction, name.trim_end_matches(|c: char| c.is_ascii_digit())) {
            (Direction::Out, "deviceMonitor") => {
                assert_eq!(device_command_text(bytes), meaning);
                "device command"
            }
            (Direction::Out, "graphMonitor") => {
                let command = GraphCommand::parse(bytes).expect("a graph command");
                assert_eq!(graph_command_text(&command), meaning);
                assert_eq!(command.encode().len(), bytes.len());
                match command {
                    GraphCommand::Verify { stream, .. }
                    | GraphCommand::Allocate { stream, .. }
                    | GraphCommand::AllocationVerify { stream, .. } => {
                        assert!(
                            self.names.values().any(|name| name == stream.as_str()),
                            "{stream:?} is open"
                        );
                    }
                    GraphCommand::BufferAllocate { .. } => self.last_fifo = Some(command),
                    _ => {}
                }
                "graph command"
            }
            (Direction::Out, "graphBuffer") => {
                assert_eq!(meaning, "");
                if span.offset == 0 {
                    let bytes = &bytes[..VERIFY_HEADER_LEN];
                    assert_eq!(word(bytes, 52), 9709, "magic of a blob");
                    // The header that VERIFY sends first is that of the blob that ALLOCATE sends.
                    if span.total != VERIFY_HEADER_LEN {
                        assert_eq!(self.last_blob, bytes);
                    }
                    self.last_blob = bytes.to_vec();
                    self.stages = word(bytes, 76);
                }
                "blob"
            }
            (Direction::Out, "FIFO") => {
                assert_eq!(meaning, "");
                if span.total == FIFO_GOODBYE.len() {
                    assert_eq!(bytes, FIFO_GOODBYE);
                    "fifo goodbye"
                } else {
                    "input tensor"
                }
            }
            (Direction::In, "FIFO") => {
                assert_eq!(meaning, "output tensor");
                "output tensor"
            }
            (Direction::In, _) => self.reply(bytes, name, meaning),
            (_, other) => panic!("a stream named {other}"),
        }
    }

    /// Replies: decoded by what the line calls them, and whole: all of their bytes must be explained.
    fn reply(&self, bytes: &[u8], stream: &str, meaning: &str) -> &'static str {
        let on = |expected: &str| assert!(stream.starts_with(expected), "{meaning} on {stream}");
        if let Some(code) = meaning.strip_prefix("status=") {
            on("graphMonitor");
            let status = Status::parse(bytes).expect("a status");
            assert_eq!(status.code().to_string(), code);
            assert!(!matches!(status, Status::Unknown(_)));
            assert_eq!(status.encode(), bytes);
            return "status";
        }
        match meaning {
            "capabilities" => {
                on("deviceMonitor");
                let capabilities = Capabilities::parse(bytes).expect("capabilities");
                // What the emulation states, PROTOCOL 4.1.
                let expected = Capabilities {
                    max_graphs: 10,
                    max_fifos: 100,
                    max_memory_bytes: 512 << 20,
                    max_executors: 4,
                    fw_version: [2, Capabilities::CHIP_MYRIAD_X, 0, 0],
                    tensor_version: [2, 3],
                };
                assert_eq!(capabilities, expected);
                assert_eq!(capabilities.encode(), bytes);
                "capabilities"
            }
            "thermal" => {
                on("deviceMonitor");
                let thermal = ThermalStats::parse(bytes).expect("thermal stats");
                assert_eq!(thermal.throttle_level().map(|level| level.as_u8()), Some(0));
                let ramp: Vec<f32> = (41_u8..66).map(f32::from).collect();
                assert_eq!((thermal.temperature_c(), &thermal.raw[1..]), (Some(41.0), &ramp[..]));
                assert_eq!(thermal.encode(), bytes);
                "thermal"
            }
            "input tensor descriptor" | "output tensor descriptor" => {
                on("graphBuffer");
                let d = TensorDescriptor::parse(bytes).expect("a descriptor");
                let total_bytes = word(&self.last_blob, if meaning.starts_with("input") { 80 } else { 84 });
                assert_eq!(d, TensorDescriptor { n: 1, c: 1, w: 1, h: 1, total_bytes });
                assert_eq!(d.encode(), bytes);
                "descriptor"
            }
            "nstages" => {
                on("graphBuffer");
                assert_eq!(StageCount::parse(bytes), Ok(StageCount(self.stages)));
                "stage count"
            }
            "timing data (float ms)" => {
                on("graphMonitor");
                let timing = TimingData::parse(bytes).expect("timing data");
                assert_eq!(timing.stages_ms.len(), self.stages as usize);
                let all = timing.stages_ms.iter().chain([&timing.receive_ms, &timing.total_ms]);
                for (i, ms) in all.enumerate() {
                    assert!((ms - 0.1 * (i + 1) as f32).abs() < 1e-4, "element {i} is {ms} ms");
                }
                assert_eq!(timing.encode(), bytes);
                "timing"
            }
            other => panic!("a reply called {other:?}"),
        }
    }

    fn fifo(&self, fields: &[(&str, &str)]) -> &'static str {
        let Some(GraphCommand::BufferAllocate { fifo, name, elements, tensor: d, direction }) =
            self.last_fifo
        else {
            panic!("no FIFO was allocated");
        };
        let (read, write) = match direction {
            FifoDirection::Input => ("0", "1"),
            FifoDirection::Output => ("1", "0"),
        };
        let number = |n: u32| n.to_string();
        let expected = [
            ("id", number(fifo)),
            ("name", name.as_str().to_owned()),
            ("elems", number(elements)),
            ("n", number(d.n)),
            ("c", number(d.c)),
            ("w", number(d.w)),
            ("h", number(d.h)),
            ("total", number(d.total_bytes)),
            ("readChannel", read.into()),
            ("writeChannel", write.into()),
        ];
        assert_same_fields(fields, &expected);
        assert_eq!(name, StreamName::fifo(fifo));
        "FIFO line"
    }

    fn blob(&self, fields: &[(&str, &str)]) -> &'static str {
        let at = |offset| word(&self.last_blob, offset).to_string();
        let given =
            |key| fields.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned()).unwrap_or_default();
        let expected = [
            // The number is that of the stream's name, checked at ALLOCATE.
            ("id", given("id")),
            ("bytes", at(56)),
            ("version", format!("{}.{}", at(60), at(64))),
            ("inputs", at(68)),
            ("outputs", at(72)),
            ("stages", at(76)),
            ("in_size", at(80)),
            ("out_size", at(84)),
            ("batch", at(88)),
            // Stands in a section behind the bytes that a line shows; FP32 in all of these transcripts.
            ("out_type", "3".into()),
        ];
        assert_same_fields(fields, &expected);
        assert!(self.names.values().any(|name| *name == format!("graphBuffer{}", given("id"))));
        "BLOB line"
    }

    fn line(&mut self, body: &Body<'_>) -> &'static str {
        match body {
            Body::Transfer(t) => self.transfer(t),
            Body::Fifo(fields) => self.fifo(fields),
            Body::Blob(fields) => self.blob(fields),
            Body::Variant { header_len, first_type, sentinel } => {
                let ping = Header::request(10, EventKind::Ping, ncs2::wire::StreamId(0), 0);
                assert_eq!((*header_len, *first_type, *sentinel), (HEADER_LEN, ping.event_type(), 8));
                "variant line"
            }
            Body::Booted { bytes } => {
                assert_eq!(*bytes, self.booted_bytes);
                let image = vec![0; *bytes];
                let ours: Vec<usize> = boot_chunks(&image, 0x0200).map(<[u8]>::len).collect();
                assert_eq!(ours, self.boot_lengths);
                "boot line"
            }
            Body::Bus(text) => {
                // A stick that comes back starts anew; all links of the transcripts ended with no stream half sent.
                if text.starts_with("BUS enumerated") {
                    assert!(self.payload.iter().all(Option::is_none));
                    if let Some(first) = self.first_event {
                        assert_eq!(first, 6, "a link starts with PING");
                    }
                    *self = Stick::default();
                }
                "bus"
            }
        }
    }
}

fn assert_same_fields(said: &[(&str, &str)], decoded: &[(&str, String)]) {
    let decoded: Vec<(&str, &str)> = decoded.iter().map(|(k, v)| (*k, v.as_str())).collect();
    assert_eq!(said, decoded);
}

/// `SET_POWER arg=0`. An argument that the command does not take is garbage that `wire` drops: it is read from the
/// bytes; one that it takes is read from the value.
fn device_command_text(bytes: &[u8]) -> String {
    let command = DeviceCommand::parse(bytes).expect("a device command");
    let garbage = word(bytes, 4);
    let (name, arg) = match command {
        DeviceCommand::ThermalStats => ("THERMAL", garbage),
        DeviceCommand::Capabilities => ("CAPABILITIES", garbage),
        DeviceCommand::WatchdogPing => ("WATCHDOG_PING", garbage),
        DeviceCommand::SetPower(power) => ("SET_POWER", power as u32),
        DeviceCommand::AsyncDma(on) => ("ASYNC_DMA", u32::from(on)),
        other => panic!("{other:?} is in no transcript"),
    };
    assert_eq!(command.encode()[..4], bytes[..4]);
    format!("{name} arg={arg}")
}

fn graph_command_text(command: &GraphCommand) -> String {
    match *command {
        GraphCommand::Verify { graph, .. } => format!("VERIFY graph/fifo={graph}"),
        GraphCommand::Allocate { graph, .. } => format!("ALLOCATE graph/fifo={graph}"),
        GraphCommand::AllocationVerify { graph, .. } => format!("ALLOCATION_VERIFY graph/fifo={graph}"),
        GraphCommand::Trigger { graph, input_fifo, output_fifo } => {
            format!("TRIGGER graph={graph} in={input_fifo} out={output_fifo}")
        }
        GraphCommand::Deallocate { graph } => format!("DEALLOCATE graph/fifo={graph}"),
        GraphCommand::BufferAllocate { fifo, .. } => format!("BUFFER_ALLOCATE graph/fifo={fifo}"),
        GraphCommand::BufferDeallocate { fifo } => format!("BUFFER_DEALLOCATE graph/fifo={fifo}"),
        GraphCommand::TimingData { graph } => format!("GET_TIMING graph/fifo={graph}"),
        GraphCommand::DebugData { graph } => format!("GET_DEBUG graph/fifo={graph}"),
    }
}

fn logs() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .expect("tests/golden")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.to_string_lossy().ends_with(".usb.log"))
        .collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).expect("text"))).collect()
}

/// Decodes and compares a whole transcript; the panic of a comparison is preceded by the line it happened in.
fn check(file: &str, text: &str, counts: &mut Counts) {
    let mut sticks: BTreeMap<Option<u32>, Stick> = BTreeMap::new();
    for (at, raw) in text.lines().enumerate() {
        let place = format!("{file}:{}", at + 1);
        let line = Line::parse(raw).unwrap_or_else(|e| panic!("{place}: {e}"));
        let stick = sticks.entry(line.device).or_default();
        let class = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| stick.line(&line.body)));
        match class {
            Ok(class) => *counts.entry(class).or_default() += 1,
            Err(_) => panic!("{place}: bytes and text differ, see above: {raw}"),
        }
    }
}

#[test]
fn every_line_says_what_its_bytes_say() {
    let logs = logs();
    assert_eq!(logs.len(), 11);
    let mut counts = Counts::new();
    for (path, text) in &logs {
        check(&path.file_name().expect("name").to_string_lossy(), text, &mut counts);
    }

    // Once by searching the text as grep would, with no parser between.
    let grep = |all: &[&str]| {
        let lines = logs.iter().flat_map(|(_, text)| text.lines());
        lines.filter(|line| all.iter().all(|part| line.contains(part))).count()
    };
    let goodbyes = grep(&["OUT", "(FIFO", "off=0/4 "]);
    let searched = Counts::from([
        ("header", grep(&[" hdr "])),
        ("boot image", grep(&[" boot image off="])),
        ("device command", grep(&["OUT", " data stream=", "(deviceMonitor)"])),
        ("graph command", grep(&["OUT", " data stream=", "(graphMonitor)"])),
        ("blob", grep(&["OUT", " data stream=", "(graphBuffer"])),
        ("fifo goodbye", goodbyes),
        ("input tensor", grep(&["OUT", " data stream=", "(FIFO"]) - goodbyes),
        ("output tensor", grep(&["IN ", " output tensor |"])),
        ("status", grep(&["IN ", " status="])),
        ("capabilities", grep(&["IN ", " capabilities |"])),
        ("thermal", grep(&["IN ", " thermal |"])),
        ("descriptor", grep(&["IN ", " tensor descriptor |"])),
        ("stage count", grep(&["IN ", " nstages |"])),
        ("timing", grep(&["IN ", " timing data "])),
        ("FIFO line", grep(&[" FIFO id="])),
        ("BLOB line", grep(&[" BLOB id="])),
        ("variant line", grep(&[" XLINK header "])),
        ("boot line", grep(&[" BOOT image complete"])),
        ("bus", {
            let words = [
                " OPEN ",
                " CLOSE ",
                " BUS ",
                "_INTERFACE ",
                " SET_CONF",
                " DETACH_",
                " RESET ack",
                "libusb_",
            ];
            words.iter().map(|w| grep(&[w])).sum()
        }),
    ]);
    assert_eq!(counts, searched);

    // And once by number, counted with grep when the transcripts were committed.
    let total = |classes: &[&str]| classes.iter().map(|class| counts[class]).sum::<usize>();
    assert_eq!(counts.values().sum::<usize>(), 4046, "lines of all files");
    assert_eq!(counts["header"], 3060);
    assert_eq!(total(&["device command", "graph command", "blob"]), 57 + 188 + 50);
    assert_eq!(total(&["fifo goodbye", "input tensor", "output tensor"]), 92 + 79);
    assert_eq!(total(&["status", "capabilities", "thermal", "timing"]), 188 + 12 + 3 + 2);
    assert_eq!(total(&["descriptor", "stage count", "boot image"]), 28 + 14 + 36);
    assert_eq!(total(&["FIFO line", "BLOB line"]), 26 + 14);
}

/// The comparison can fail: each change of one digit of the text, or of a byte that means something, is noticed.
#[test]
fn a_line_that_lies_is_noticed() {
    let (_, text) = logs().swap_remove(0);
    let lines: Vec<&str> = text.lines().take(150).collect();
    check("truth", &lines.join("\n"), &mut Counts::new());
    let place = |part: &str| {
        lines.iter().position(|line| line.contains(part)).unwrap_or_else(|| panic!("no line with {part}"))
    };
    let lies = [
        ("hdr WRITE_REQ(0) id=12 ", "id=12 ", "id=13 "),
        ("hdr WRITE_REQ(0) id=12 ", "WRITE_REQ(0)", "READ_REQ(1)"),
        ("hdr WRITE_REQ(0) id=12 ", "(deviceMonitor)", "(graphMonitor)"),
        ("hdr WRITE_REQ(0) id=12 ", "flags=ack", "flags=nack"),
        ("name=\"graphMonitor\"", "size=4096", "size=4032"),
        ("CAPABILITIES arg=0", "CAPABILITIES", "THERMAL"),
        ("SET_POWER arg=0", "arg=0", "arg=1"),
        ("ASYNC_DMA arg=1", "| 08", "| 07"),
        ("TRIGGER graph=0", "out=1", "out=0"),
        ("status=0", "status=0", "status=1"),
        ("FIFO id=0", "elems=4", "elems=5"),
        ("FIFO id=1", "readChannel=1", "readChannel=0"),
        ("BLOB id=0", "stages=9", "stages=8"),
        (" nstages |", "| 09", "| 08"),
        (" input tensor descriptor |", "00300000", "00300001"),
        (" capabilities |", "80240000", "50240000"),
        ("BOOT image complete", "2298644", "2298643"),
    ];
    for (line, from, to) in lies {
        let mut lying: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        let victim = &mut lying[place(line)];
        assert!(victim.contains(from), "{victim} has {from}");
        *victim = victim.replacen(from, to, 1);
        let result = std::panic::catch_unwind(|| check("lie", &lying.join("\n"), &mut Counts::new()));
        assert!(result.is_err(), "nobody noticed {from} -> {to}");
    }
}

#[test]
fn lines_of_no_known_class_are_refused() {
    for bad in [
        "",
        "1.0 [t] libusb_init",
        "0.000001 [t] dev=0 OUT ep=01 len=8 data stream=0(x) off=0/8",
        "0.000001 [t] dev=0 OUT ep=01 len=1 hdr PING_REQ(6) id=10 stream=0 size=0 flags=ack extra=1 | 00",
        "0.000001 [t] dev=0 OUT ep=01 len=1 boot image off=0 timeout=2000 | 0",
        "0.000001 [t] dev=0 SOMETHING new",
    ] {
        assert!(Line::parse(bad).is_err(), "{bad:?}");
    }
}
