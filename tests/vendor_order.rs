//! `Ordering::Vendor` sends what the vendor's client sends.
//!
//! A scripted peer answers as the IN lines of a transcript do. Two sequences are compared with the OUT lines: our
//! requests with their payloads in order, and our responses in the order of the device requests that they answer.
//! Event type, stream, size, flags and payload must be equal; ids count by order; where the vendor sends garbage we
//! send zeros; of READ_REL responses the vendor fills only type and flags. Watchdog pings follow the clock and are
//! taken out.

#[path = "vendor_order/transcript.rs"]
mod transcript;

use std::collections::HashMap;
use std::time::Duration;

use ncs2::clock::Instant;
use ncs2::stick::{
    GraphKey, JobToken, LoadRequest, Ordering, ReadWant, SendPayload, Stick, StickConfig, StickEvent,
};
use ncs2::wire::{
    DeviceCommand, EventKind, FIFO_GOODBYE, GraphCommand, Header, Side, StreamId, TensorDescriptor,
};
use transcript::Wire;

const VERIFY_BYTES: usize = 132;

struct Sent {
    header: Header,
    payload: Vec<u8>,
}

/// What the transcript says of the graphs in it, in the order of their loads.
#[derive(Clone, Debug, Default)]
struct GraphFacts {
    header: Vec<u8>,
    blob_start: Vec<u8>,
    blob_bytes: u32,
    executors: u32,
    elements: u32,
    input_bytes: u32,
    output_bytes: u32,
    stages: u32,
    input_stream: u32,
}

struct Replay {
    stick: Stick,
    now: Instant,
    events: Vec<Wire>,
    graphs: Vec<GraphFacts>,
    blob: Option<Vec<u8>>,
    inputs: Vec<Vec<u8>>,
    requests: Vec<Sent>,
    responses: HashMap<i32, Sent>,
    loads: usize,
    jobs: u64,
    live: Vec<(usize, GraphKey)>,
    seen: Vec<StickEvent>,
}

fn is_ping(header: &Header, payload: &[u8]) -> bool {
    header.kind == EventKind::Write
        && header.stream == StreamId(0)
        && DeviceCommand::parse(payload) == Ok(DeviceCommand::WatchdogPing)
}

fn graph_facts(events: &[Wire]) -> Vec<GraphFacts> {
    let mut graphs: Vec<GraphFacts> = Vec::new();
    for (at, e) in events.iter().enumerate() {
        if !e.from_host || e.header.side != Side::Request {
            continue;
        }
        if e.header.kind == EventKind::CreateStream && e.header.name.as_str().starts_with("graphBuffer") {
            graphs.push(GraphFacts::default());
        }
        let Some(last) = graphs.last_mut() else { continue };
        if e.header.kind == EventKind::CreateStream && e.header.name.as_str().starts_with("FIFO") {
            if last.input_stream == 0 {
                last.input_stream = e.header.stream.0;
            }
            continue;
        }
        if e.header.kind != EventKind::Write || e.header.stream != StreamId(1) {
            continue;
        }
        let next_write = || {
            events[at + 1..]
                .iter()
                .find(|n| n.from_host && n.header.has_payload() && !is_ping(&n.header, &n.payload))
                .expect("what follows a command")
        };
        match GraphCommand::parse(&e.payload).expect("a graph command") {
            GraphCommand::Verify { .. } => last.header = next_write().payload.clone(),
            GraphCommand::Allocate { executors, .. } => {
                last.executors = executors;
                last.blob_bytes = next_write().header.size;
                last.blob_start = next_write().payload.clone();
                let count = events[at..]
                    .iter()
                    .filter(|n| !n.from_host && n.header.has_payload())
                    .nth(2)
                    .expect("the stage count");
                last.stages = u32::from_le_bytes(count.payload[..4].try_into().unwrap());
            }
            GraphCommand::BufferAllocate {
                elements,
                tensor: TensorDescriptor { total_bytes, .. },
                direction,
                ..
            } => {
                last.elements = elements;
                match direction {
                    ncs2::wire::FifoDirection::Input => last.input_bytes = total_bytes,
                    ncs2::wire::FifoDirection::Output => last.output_bytes = total_bytes,
                }
            }
            _ => {}
        }
    }
    graphs
}

impl Replay {
    fn new(text: &str, blob: Option<Vec<u8>>, inputs: Vec<Vec<u8>>) -> Self {
        let events = transcript::parse(text);
        let config = StickConfig { ordering: Ordering::Vendor, ..StickConfig::default() };
        Replay {
            stick: Stick::new(config),
            now: Instant::ZERO,
            graphs: graph_facts(&events),
            events,
            blob,
            inputs,
            requests: Vec::new(),
            responses: HashMap::new(),
            loads: 0,
            jobs: 0,
            live: Vec::new(),
            seen: Vec::new(),
        }
    }

    fn payload_bytes(&self, payload: &SendPayload, size: u32) -> Vec<u8> {
        let size = size as usize;
        match payload {
            SendPayload::None => Vec::new(),
            SendPayload::Inline(bytes) => bytes.as_slice().to_vec(),
            SendPayload::Tensor(JobToken(n)) => self.inputs[*n as usize].clone(),
            SendPayload::Blob(GraphKey(n)) => self.blob.clone().unwrap_or_else(|| {
                let mut bytes = self.graphs[*n as usize].blob_start.clone();
                bytes.resize(size, 0);
                bytes
            }),
        }
    }

    fn flush(&mut self) {
        self.now += Duration::from_micros(1);
        while let Some(transmit) = self.stick.poll_transmit(self.now) {
            let header = Header::parse(&transmit.header).expect("our own header");
            let payload = self.payload_bytes(&transmit.payload, header.size);
            assert_eq!(header.has_payload(), transmit.payload != SendPayload::None);
            if header.has_payload() {
                assert_eq!(payload.len(), header.size as usize, "payload as long as its header says");
            }
            let sent = Sent { header, payload };
            match header.side {
                Side::Request => self.requests.push(sent),
                Side::Response => assert!(self.responses.insert(header.id, sent).is_none(), "answered twice"),
            }
        }
        while let Some(event) = self.stick.poll_event() {
            self.seen.push(event);
        }
    }

    /// What the application did to make the vendor's client send this.
    fn act(&mut self, next: &Wire) {
        let graph_of = |replay: &Self, stream: StreamId| {
            replay
                .live
                .iter()
                .copied()
                .find(|&(g, _)| replay.graphs[g].input_stream == stream.0)
                .expect("a FIFO of a loaded graph")
        };
        let result = match next.header.kind {
            EventKind::Ping => {
                self.stick.open(self.now);
                Ok(())
            }
            EventKind::CreateStream => {
                let facts = self.graphs[self.loads].clone();
                let key = GraphKey(self.loads as u64);
                self.live.push((self.loads, key));
                self.loads += 1;
                self.stick.load(
                    LoadRequest {
                        key,
                        header: facts.header[..VERIFY_BYTES].try_into().unwrap(),
                        blob_bytes: facts.blob_bytes,
                        input_bytes: facts.input_bytes,
                        output_bytes: facts.output_bytes,
                        stages: facts.stages,
                        executors: facts.executors,
                        fifo_elements: facts.elements,
                    },
                    self.now,
                )
            }
            EventKind::Write if next.payload == FIFO_GOODBYE => {
                let (graph, key) = graph_of(self, next.header.stream);
                self.live.retain(|&(g, _)| g != graph);
                self.stick.unload(key, self.now)
            }
            EventKind::Write if next.header.stream == StreamId(0) => {
                match DeviceCommand::parse(&next.payload).expect("a device command") {
                    DeviceCommand::ThermalStats => self.stick.request_thermal(self.now),
                    DeviceCommand::WatchdogPing => {
                        self.now = self.stick.poll_timeout().expect("the time of the next ping");
                        self.stick.handle_timeout(self.now);
                    }
                    other => panic!("line {}: nobody asks for {other:?}", next.line),
                }
                Ok(())
            }
            EventKind::Write if next.header.stream == StreamId(1) => {
                match GraphCommand::parse(&next.payload).expect("a graph command") {
                    GraphCommand::TimingData { .. } => self.stick.request_timing(self.live[0].1, self.now),
                    other => panic!("line {}: {other:?} does not come", next.line),
                }
            }
            EventKind::Write => {
                let (_, key) = graph_of(self, next.header.stream);
                let job = JobToken(self.jobs);
                self.jobs += 1;
                // Where there is no file beside the transcript, the tensor is as much as the log shows of it.
                if self.inputs.len() < self.jobs as usize {
                    let mut tensor = next.payload.clone();
                    tensor.resize(next.header.size as usize, 0);
                    self.inputs.push(tensor);
                }
                self.stick.infer(key, job, Duration::from_secs(10), self.now)
            }
            EventKind::CloseStream => {
                self.stick.close(self.now);
                Ok(())
            }
            other => panic!("line {}: {other:?} does not come", next.line),
        };
        result.unwrap_or_else(|e| panic!("line {}: {e}", next.line));
        self.flush();
    }

    fn deliver(&mut self, header: &Header, payload: &[u8]) {
        self.stick.handle_in(&header.encode(), self.now);
        if header.has_payload() {
            match self.stick.read_want() {
                ReadWant::Tensor { missing, offset, .. } => {
                    assert_eq!((offset, missing), (0, header.size as usize));
                    self.stick.handle_tensor_in(missing, self.now);
                }
                ReadWant::Packet { missing } => {
                    assert_eq!(missing, payload.len());
                    self.stick.handle_in(payload, self.now);
                }
                want => panic!("{want:?} although a payload follows"),
            }
        }
        self.flush();
    }

    fn run(mut self) -> Self {
        let events = self.events.clone();
        let vendor_requests: Vec<&Wire> =
            events.iter().filter(|e| e.from_host && e.header.side == Side::Request).collect();
        let mut expected = 0;
        for event in &events {
            if event.from_host {
                if event.header.side == Side::Request {
                    if self.requests.len() <= expected {
                        self.act(event);
                    }
                    assert!(
                        self.requests.len() > expected,
                        "line {}: the vendor sends {:?}, we do not; seen {:?}",
                        event.line,
                        event.header,
                        self.seen
                    );
                    expected += 1;
                }
                continue;
            }
            let mut header = event.header;
            if header.side == Side::Response {
                let n = vendor_requests.iter().position(|r| r.header.id == header.id).expect("its request");
                header.id = self.requests[n].header.id;
            }
            self.deliver(&header, &event.payload);
            if let Some(StickEvent::Failed(error)) = self.seen.last() {
                panic!("line {}: {error}", event.line);
            }
        }
        self.flush();
        self
    }

    fn compare(&self) {
        let comparable =
            |header: &Header| (header.kind, header.stream, header.size, header.flags, header.name);
        let theirs: Vec<&Wire> = self
            .events
            .iter()
            .filter(|e| e.from_host && e.header.side == Side::Request && !is_ping(&e.header, &e.payload))
            .collect();
        let ours: Vec<&Sent> = self.requests.iter().filter(|s| !is_ping(&s.header, &s.payload)).collect();
        for (t, o) in theirs.iter().zip(&ours) {
            assert_eq!(comparable(&t.header), comparable(&o.header), "request of line {}", t.line);
            let masked = without_garbage(t);
            assert_eq!(masked, o.payload[..masked.len()], "payload of line {}", t.line);
            let cut_by_the_log = masked.len() >= VERIFY_BYTES;
            assert!(masked.len() == o.payload.len() || cut_by_the_log, "length of line {}", t.line);
        }
        assert_eq!(theirs.len(), ours.len(), "number of requests");
        let ids: Vec<i32> = self.requests.iter().map(|s| s.header.id).collect();
        assert_eq!(ids, (10..10 + ids.len() as i32).collect::<Vec<_>>());

        let asked = self.events.iter().filter(|e| !e.from_host && e.header.side == Side::Request);
        let mut answers = 0;
        for request in asked {
            let theirs = self
                .events
                .iter()
                .find(|e| e.from_host && e.header.side == Side::Response && e.header.id == request.header.id);
            let ours = self.responses.get(&request.header.id);
            let ours = ours.unwrap_or_else(|| panic!("line {} unanswered by us", request.line));
            let Some(theirs) = theirs else { panic!("line {} unanswered by the vendor", request.line) };
            if request.header.kind == EventKind::ReadRelease {
                assert_eq!(theirs.header.kind, ours.header.kind);
                assert_eq!(theirs.header.flags, ours.header.flags);
            } else {
                assert_eq!(comparable(&theirs.header), comparable(&ours.header), "line {}", theirs.line);
            }
            answers += 1;
        }
        assert_eq!(answers, self.responses.len(), "we answered what was not asked");
    }

    fn done(&self) -> Vec<u64> {
        let done = |e: &StickEvent| match e {
            StickEvent::Done(JobToken(n)) => Some(*n),
            _ => None,
        };
        self.seen.iter().filter_map(done).collect()
    }
}

/// The vendor's payload with zeros where it sends whatever lay in memory.
fn without_garbage(wire: &Wire) -> Vec<u8> {
    match wire.header.stream {
        StreamId(0) if wire.header.has_payload() => {
            DeviceCommand::parse(&wire.payload).expect("a device command").encode().to_vec()
        }
        StreamId(1) if wire.header.has_payload() => {
            GraphCommand::parse(&wire.payload).expect("a graph command").encode().to_vec()
        }
        _ => wire.payload.clone(),
    }
}

fn golden(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn golden_text(name: &str) -> String {
    String::from_utf8(golden(name)).expect("a text file")
}

/// The data of a version 1 `.npy` file.
fn npy(name: &str) -> Vec<u8> {
    let file = golden(name);
    let header = usize::from(u16::from_le_bytes([file[8], file[9]]));
    file[10 + header..].to_vec()
}

#[test]
fn one_network_three_inferences_thermal_timing_and_close() {
    let (a, b) = (npy("01.in0.npy"), npy("01.in1.npy"));
    let inputs = vec![a.clone(), b, a];
    let replay = Replay::new(&golden_text("01_single_sync.usb.log"), Some(golden("01.blob")), inputs).run();
    replay.compare();
    assert_eq!(replay.done(), [0, 1, 2]);
    assert!(
        replay.seen.iter().any(|e| matches!(e, StickEvent::Thermal(t) if t.temperature_c() == Some(41.0)))
    );
    assert!(replay.seen.iter().any(|e| matches!(e, StickEvent::Timing(_, ms) if ms.len() == 11)));
    assert_eq!(replay.seen.last(), Some(&StickEvent::Closed));
}

fn replay_without_files(name: &str) -> Replay {
    let replay = Replay::new(&golden_text(name), None, Vec::new()).run();
    replay.compare();
    assert_eq!(replay.seen.last(), Some(&StickEvent::Closed));
    replay
}

/// Of the payload only the beginning can be compared: the log holds no more.
#[test]
fn a_blob_of_23_megabytes() {
    replay_without_files("12_big_blob_chunks.usb.log");
}

#[test]
fn batch_of_two() {
    replay_without_files("14_batch2.usb.log");
}

#[test]
fn unload_and_load_again_on_the_open_stick() {
    let replay = replay_without_files("18_reuse_open_device.usb.log");
    assert_eq!(replay.loads, 2);
}

#[test]
fn two_inputs_and_two_outputs() {
    replay_without_files("25_multi_input_output.usb.log");
}

#[test]
fn two_networks_on_one_stick() {
    let replay = replay_without_files("06_two_nets_one_device.usb.log");
    assert_eq!(replay.loads, 2);
}
