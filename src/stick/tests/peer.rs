//! A small stick that behaves: it parses what it is sent, keeps streams, FIFOs and credits, and answers. Tests hold,
//! drop and refuse; it knows nothing of expected calls.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::clock::Instant;
use crate::stick::{
    GraphKey, JobToken, LoadRequest, ReadWant, SendPayload, Stick, StickConfig, StickError, StickEvent,
};
use crate::wire::{
    Capabilities, DeviceCommand, EventKind, FIFO_GOODBYE, Flags, GraphCommand, HEADER_LEN, Header, Side,
    Status, StreamId, StreamName, THERMAL_FLOATS, TensorDescriptor, ThermalStats,
};

pub const INPUT_BYTES: u32 = 300;
pub const OUTPUT_BYTES: u32 = 40;
pub const STAGES: u32 = 9;

/// Picks commands.
pub type Which = fn(&GraphCommand) -> bool;

/// One thing that the peer sends: a header, and a payload.
#[derive(Clone, Debug)]
pub struct Unit {
    pub header: Header,
    pub payload: Vec<u8>,
}

#[derive(Clone, Debug)]
struct FifoModel {
    stream: StreamId,
    elements: u32,
    held: VecDeque<Vec<u8>>,
}

/// The stick's side.
#[derive(Debug)]
pub struct Peer {
    pub outbox: VecDeque<Unit>,
    pub streams: HashMap<u32, StreamName>,
    fifos: HashMap<u32, FifoModel>,
    next_id: i32,
    follow: Option<GraphCommand>,
    /// Triggered, not executed: output stream, input bytes.
    pub triggered: VecDeque<(StreamId, StreamId, Vec<u8>)>,
    pub executes: bool,
    pub releases_inputs: bool,
    /// Input releases held back.
    pub held_releases: VecDeque<Unit>,
    pub capabilities: Vec<u8>,
    pub refuse: Option<(Which, Status)>,
    pub create_flags: HashMap<&'static str, Flags>,
    pub descriptor_bytes: (u32, u32),
    /// Length of the outputs that it writes.
    pub output_len: usize,
    pub graphs: u32,
    pub pings: u32,
    pub reset: bool,
    /// Bytes written on each stream and not released.
    pub unreleased: HashMap<u32, u32>,
    pub credits: HashMap<u32, u32>,
    pub most_unreleased: HashMap<u32, u32>,
}

impl Peer {
    pub fn new() -> Self {
        let capabilities = Capabilities {
            max_graphs: 10,
            max_fifos: 100,
            max_memory_bytes: 512 << 20,
            max_executors: 4,
            fw_version: [0, Capabilities::CHIP_MYRIAD_X, 0, 0],
            tensor_version: [2, 3],
        };
        Peer {
            outbox: VecDeque::new(),
            streams: HashMap::new(),
            fifos: HashMap::new(),
            next_id: 0x4000_0000,
            follow: None,
            triggered: VecDeque::new(),
            executes: true,
            releases_inputs: true,
            held_releases: VecDeque::new(),
            capabilities: capabilities.encode().to_vec(),
            refuse: None,
            create_flags: HashMap::new(),
            descriptor_bytes: (INPUT_BYTES, OUTPUT_BYTES),
            output_len: OUTPUT_BYTES as usize,
            graphs: 0,
            pings: 0,
            reset: false,
            unreleased: HashMap::new(),
            credits: HashMap::new(),
            most_unreleased: HashMap::new(),
        }
    }

    pub fn request(&mut self, kind: EventKind, stream: StreamId, size: u32) -> Header {
        let header = Header::request(self.next_id, kind, stream, size);
        self.next_id += 1;
        header
    }

    pub fn write(&mut self, stream: StreamId, payload: &[u8]) {
        let header = self.request(EventKind::Write, stream, payload.len() as u32);
        self.outbox.push_back(Unit { header, payload: payload.to_vec() });
    }

    pub fn named(&self, name: &str) -> StreamId {
        let found = self.streams.iter().find(|(_, n)| n.as_str() == name);
        StreamId(*found.unwrap_or_else(|| panic!("no stream {name}")).0)
    }

    fn respond(&mut self, header: &Header, flags: Flags) {
        self.outbox.push_back(Unit { header: header.response(flags), payload: Vec::new() });
    }

    fn release(&mut self, stream: StreamId, size: u32, held: bool) {
        let header = self.request(EventKind::ReadRelease, stream, size);
        let unit = Unit { header, payload: Vec::new() };
        if held {
            self.held_releases.push_back(unit);
        } else {
            self.give_back(&unit);
            self.outbox.push_back(unit);
        }
    }

    fn give_back(&mut self, unit: &Unit) {
        *self.unreleased.entry(unit.header.stream.0).or_default() -= unit.header.size;
    }

    /// Lets go of the oldest held input release.
    pub fn release_held(&mut self) {
        if let Some(unit) = self.held_releases.pop_front() {
            self.give_back(&unit);
            self.outbox.push_back(unit);
        }
    }

    pub fn receive(&mut self, header: Header, payload: &[u8]) {
        if header.side == Side::Response {
            assert!(header.flags.contains(Flags::ACK), "refused by the host: {header:?}");
            return;
        }
        assert!(!self.reset, "RESET is the last event, then came {header:?}");
        match header.kind {
            EventKind::Ping | EventKind::ReadRelease => self.respond(&header, Flags::ACK),
            EventKind::Reset => {
                self.reset = true;
                self.respond(&header, Flags::ACK);
            }
            EventKind::CreateStream => {
                let flags = self.create_flags.get(header.name.as_str()).copied().unwrap_or(Flags::ACK);
                if flags == Flags::ACK {
                    assert!(self.streams.insert(header.stream.0, header.name).is_none(), "id in use");
                    assert_eq!(header.size % 64, 0);
                    self.credits.insert(header.stream.0, header.size);
                }
                self.respond(&header, flags);
            }
            EventKind::CloseStream => {
                let unreleased = self.unreleased.get(&header.stream.0).copied().unwrap_or(0);
                assert_eq!(unreleased, 0, "closed with unreleased bytes");
                assert!(self.streams.remove(&header.stream.0).is_some(), "closed what was not open");
                self.respond(&header, Flags::ACK);
            }
            EventKind::Write => self.written(header, payload),
            other => panic!("the host sent {other:?}"),
        }
    }

    fn written(&mut self, header: Header, payload: &[u8]) {
        let stream = header.stream;
        let name = *self.streams.get(&stream.0).expect("a write on an open stream");
        let unreleased = self.unreleased.entry(stream.0).or_default();
        *unreleased += header.size;
        assert!(*unreleased <= self.credits[&stream.0], "credit of {name:?} exceeded");
        let most = self.most_unreleased.entry(stream.0).or_default();
        *most = (*most).max(*unreleased);
        self.respond(&header, Flags::ACK);
        let fifo = self.fifos.values_mut().find(|f| f.stream == stream);
        match (name.as_str(), fifo) {
            ("deviceMonitor", _) => {
                self.release(stream, header.size, false);
                self.device_command(stream, payload);
            }
            ("graphMonitor", _) => {
                self.release(stream, header.size, false);
                self.graph_command(GraphCommand::parse(payload).expect("a graph command"));
            }
            (_, Some(fifo)) if payload != FIFO_GOODBYE => {
                assert!(fifo.held.len() < fifo.elements as usize);
                fifo.held.push_back(payload.to_vec());
            }
            (_, Some(_)) => self.release(stream, header.size, false),
            _ => {
                self.release(stream, header.size, false);
                self.followed(stream, payload);
            }
        }
    }

    fn device_command(&mut self, stream: StreamId, payload: &[u8]) {
        match DeviceCommand::parse(payload).expect("a device command") {
            DeviceCommand::Capabilities => {
                let reply = self.capabilities.clone();
                self.write(stream, &reply);
            }
            DeviceCommand::ThermalStats => {
                let mut raw = [0.0; THERMAL_FLOATS];
                raw[1] = 41.0;
                self.write(stream, &ThermalStats { raw }.encode());
            }
            DeviceCommand::UsedMemory => self.write(stream, &77_u32.to_le_bytes()),
            DeviceCommand::WatchdogPing => self.pings += 1,
            _ => {}
        }
    }

    fn status_of(&self, command: &GraphCommand) -> Status {
        match self.refuse {
            Some((which, status)) if which(command) => status,
            _ => Status::Ok,
        }
    }

    fn status(&mut self, status: Status) {
        let monitor = self.named("graphMonitor");
        self.write(monitor, &status.encode());
    }

    fn graph_command(&mut self, command: GraphCommand) {
        let status = self.status_of(&command);
        match command {
            GraphCommand::Verify { .. } | GraphCommand::Allocate { .. } => {
                assert!(self.follow.is_none());
                self.follow = Some(command);
                return;
            }
            GraphCommand::BufferAllocate { fifo, name, elements, .. } if status == Status::Ok => {
                let stream = self.named(name.as_str());
                self.fifos.insert(fifo, FifoModel { stream, elements, held: VecDeque::new() });
            }
            GraphCommand::BufferDeallocate { fifo } => {
                assert!(self.fifos.remove(&fifo).is_some(), "deallocated what was not allocated");
            }
            GraphCommand::Deallocate { .. } => self.graphs -= 1,
            GraphCommand::TimingData { .. } => {
                let monitor = self.named("graphMonitor");
                let data: Vec<u8> = (0..STAGES + 2).flat_map(|i| (i as f32).to_le_bytes()).collect();
                self.write(monitor, &data);
            }
            GraphCommand::DebugData { .. } => {
                let monitor = self.named("graphMonitor");
                let mut text = [0; 120];
                text[..2].copy_from_slice(b"ok");
                self.write(monitor, &text);
            }
            GraphCommand::Trigger { input_fifo, output_fifo, .. } => {
                let output = self.fifos[&output_fifo].stream;
                let input = self.fifos.get_mut(&input_fifo).expect("the input FIFO");
                let data = input.held.pop_front().expect("TRIGGER after its input");
                let from = input.stream;
                if status == Status::Ok {
                    self.triggered.push_back((from, output, data));
                } else {
                    self.release(from, data.len() as u32, false);
                }
            }
            _ => {}
        }
        self.status(status);
        while self.executes && self.execute() {}
    }

    fn followed(&mut self, stream: StreamId, payload: &[u8]) {
        let command = self.follow.take().expect("a blob after its command");
        let status = self.status_of(&command);
        match command {
            GraphCommand::Allocate { .. } => {
                let (input, output) = self.descriptor_bytes;
                for total_bytes in [input, output] {
                    let tensor = TensorDescriptor { n: 1, c: 1, w: 1, h: 1, total_bytes };
                    self.write(stream, &tensor.encode());
                }
                self.write(stream, &STAGES.to_le_bytes());
                if status == Status::Ok {
                    self.graphs += 1;
                }
            }
            _ => assert_eq!(payload.len(), 132),
        }
        self.status(status);
    }

    /// Runs the oldest triggered inference.
    pub fn execute(&mut self) -> bool {
        let Some((input, output, data)) = self.triggered.pop_front() else { return false };
        self.release(input, data.len() as u32, !self.releases_inputs);
        self.write(output, &long_answer(&data, self.output_len));
        true
    }
}

/// What the model computes, so that a swapped answer is seen.
pub fn answer(input: &[u8]) -> Vec<u8> {
    long_answer(input, OUTPUT_BYTES as usize)
}

/// The same for outputs of any length.
pub fn long_answer(input: &[u8], len: usize) -> Vec<u8> {
    let turn = |i: usize| (i / input.len()) as u8;
    (0..len).map(|i| input[i % input.len()].wrapping_mul(3).wrapping_add(1).wrapping_add(turn(i))).collect()
}

/// The input of a job.
pub fn input_of(job: JobToken) -> Vec<u8> {
    (0..u64::from(INPUT_BYTES)).map(|i| (job.0.wrapping_mul(31).wrapping_add(i * 7)) as u8).collect()
}

pub fn request(key: u64) -> LoadRequest {
    LoadRequest {
        key: GraphKey(key),
        header: [7; 132],
        blob_bytes: 5000,
        input_bytes: INPUT_BYTES,
        output_bytes: OUTPUT_BYTES,
        stages: STAGES,
        executors: 2,
        fifo_elements: 4,
    }
}

/// A stick and its peer, on virtual time.
pub struct Rig {
    pub stick: Stick,
    pub peer: Peer,
    pub now: Instant,
    pub events: Vec<StickEvent>,
    /// Bytes of IN pieces.
    pub piece: usize,
    pub outputs: HashMap<u64, Vec<u8>>,
    /// What the host sent, in order.
    pub sent: Vec<Header>,
    /// Units of the peer to lose, counted from 0 over the rig's life.
    pub lose: Option<usize>,
    pub delivered: usize,
    pub lost: Option<Unit>,
}

impl Rig {
    pub fn new(config: StickConfig) -> Self {
        Rig {
            stick: Stick::new(config),
            peer: Peer::new(),
            now: Instant::ZERO,
            events: Vec::new(),
            piece: usize::MAX,
            outputs: HashMap::new(),
            sent: Vec::new(),
            lose: None,
            delivered: 0,
            lost: None,
        }
    }

    pub fn opened(config: StickConfig) -> Self {
        let mut rig = Rig::new(config);
        rig.stick.open(rig.now);
        rig.run();
        assert!(matches!(rig.events[..], [StickEvent::Opened(_)]), "{:?}", rig.events);
        rig
    }

    pub fn loaded(config: StickConfig) -> Self {
        let mut rig = Rig::opened(config);
        rig.stick.load(request(0), rig.now).expect("a load");
        rig.run();
        assert_eq!(rig.events[1..], [StickEvent::Loaded(GraphKey(0))]);
        rig.events.clear();
        rig
    }

    /// Host to peer, all that there is.
    pub fn flush(&mut self) -> bool {
        let before = self.sent.len();
        while let Some(transmit) = self.stick.poll_transmit(self.now) {
            let header = Header::parse(&transmit.header).expect("a header of our own");
            let payload = match transmit.payload {
                SendPayload::None => Vec::new(),
                SendPayload::Inline(bytes) => bytes.as_slice().to_vec(),
                SendPayload::Tensor(job) => input_of(job),
                SendPayload::Blob(_) => vec![9; header.size as usize],
            };
            assert_eq!(payload.len(), if header.has_payload() { header.size as usize } else { 0 });
            self.sent.push(header);
            self.peer.receive(header, &payload);
        }
        while let Some(event) = self.stick.poll_event() {
            self.events.push(event);
        }
        self.sent.len() > before
    }

    pub fn deliver(&mut self, unit: &Unit) {
        let mut bytes = unit.header.encode().to_vec();
        bytes.extend_from_slice(&unit.payload);
        self.deliver_bytes(&bytes);
    }

    pub fn deliver_bytes(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(self.piece.min(bytes.len().max(1))) {
            let mut rest = piece;
            while !rest.is_empty() {
                match self.stick.read_want() {
                    ReadWant::Tensor { job, offset, missing } => {
                        let take = rest.len().min(missing);
                        let output = self.outputs.entry(job.0).or_default();
                        assert_eq!(output.len(), offset);
                        output.extend_from_slice(&rest[..take]);
                        self.stick.handle_tensor_in(take, self.now);
                        rest = &rest[take..];
                    }
                    ReadWant::Header { missing } | ReadWant::Packet { missing } => {
                        let take = rest.len().min(missing);
                        assert!(missing <= HEADER_LEN.max(4096));
                        self.stick.handle_in(&rest[..take], self.now);
                        rest = &rest[take..];
                    }
                }
            }
        }
    }

    /// One round trip: all that the host has to say, then all that the peer has.
    pub fn turn(&mut self) -> bool {
        let moved = self.flush();
        let units = std::mem::take(&mut self.peer.outbox);
        let any = !units.is_empty();
        for unit in units {
            self.deliver_one(unit);
        }
        while let Some(event) = self.stick.poll_event() {
            self.events.push(event);
        }
        moved || any
    }

    pub fn deliver_one(&mut self, unit: Unit) {
        let lost = self.lose == Some(self.delivered);
        self.delivered += 1;
        if lost {
            self.lost = Some(unit);
        } else {
            self.deliver(&unit);
        }
    }

    /// Turns until nothing moves.
    pub fn run(&mut self) {
        let mut turns = 0;
        while self.turn() {
            turns += 1;
            assert!(turns < 10_000, "no end: {:?}", self.events);
        }
    }

    /// Lets time pass, to one deadline after the other, `to` at most.
    pub fn pass_until(&mut self, to: Instant) {
        self.run();
        while let Some(next) = self.stick.poll_timeout().filter(|&next| next <= to) {
            self.now = self.now.max(next);
            self.stick.handle_timeout(self.now);
            assert!(self.stick.poll_timeout().is_none_or(|after| after > next), "time stands still");
            self.run();
        }
        self.now = to;
    }

    pub fn infer(&mut self, key: u64, job: u64, allowance: Duration) -> Result<(), StickError> {
        self.stick.infer(GraphKey(key), JobToken(job), allowance, self.now)
    }

    /// Jobs done, in order; asserts that each has its own answer.
    pub fn done(&self) -> Vec<u64> {
        let done: Vec<u64> = self
            .events
            .iter()
            .filter_map(|e| match e {
                StickEvent::Done(JobToken(n)) => Some(*n),
                _ => None,
            })
            .collect();
        for job in &done {
            assert_eq!(self.outputs[job], answer(&input_of(JobToken(*job))), "job {job}");
        }
        done
    }

    pub fn failure(&self) -> Option<&StickError> {
        self.events.iter().find_map(|e| match e {
            StickEvent::Failed(error) => Some(error),
            _ => None,
        })
    }
}
