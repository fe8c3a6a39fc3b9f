//! A host for tests: speaks the protocol to one [`VirtualStick`] in virtual time, and checks every rule on the way.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ncs2::clock::Instant;
use ncs2::wire::{
    EventKind, FifoDirection, Flags, GraphCommand, HEADER_LEN, Header, Side, Status, StreamId, StreamName,
    TensorDescriptor,
};
use ncs2_device::{Config, Engine, Hub, PreparedCache, Profile, Timing, VirtualStick};

pub const DEVICE: u32 = 0;
pub const GRAPH: u32 = 1;

pub fn config(engine: Engine, timing: Timing) -> Config {
    Config { profile: Profile::load("ncs2").expect("built in"), engine, timing, seed: 0 }
}

#[derive(Default)]
struct Stream {
    /// Sizes of what we sent and the stick has not released.
    unreleased: VecDeque<u32>,
    /// What the stick sent and nobody took.
    packets: VecDeque<Vec<u8>>,
    credit: u32,
}

pub struct Host {
    pub stick: VirtualStick,
    pub now: Instant,
    next_id: i32,
    next_device_id: i32,
    streams: BTreeMap<u32, Stream>,
    /// Requests that the stick must answer, by id.
    asked: BTreeMap<i32, Header>,
    /// Answers that came.
    pub answers: BTreeMap<i32, Header>,
    /// Header whose payload is under way.
    payload: Option<(Header, Vec<u8>)>,
    acks: Vec<u8>,
    on_the_wire: VecDeque<(Instant, Vec<u8>)>,
    cache: PreparedCache,
    pub transfers_in: usize,
    /// Works are done in the opposite order.
    pub last_work_first: bool,
    /// OUT bytes are cut into pieces of this size.
    pub piece: usize,
}

impl Host {
    pub fn new(config: Config, hub: Option<(Arc<Hub>, usize)>) -> Host {
        let now = Instant::from_nanos(1_000_000_000);
        let mut stick = VirtualStick::new(Arc::new(config), now);
        if let Some((hub, n)) = hub {
            stick.join_hub(hub, n);
        }
        stick.plug();
        stick.start_booted(false, now);
        let mut host = Host {
            stick,
            now,
            next_id: 10,
            next_device_id: 0x4000_0000,
            streams: BTreeMap::new(),
            asked: BTreeMap::new(),
            answers: BTreeMap::new(),
            payload: None,
            acks: Vec::new(),
            on_the_wire: VecDeque::new(),
            cache: PreparedCache::default(),
            transfers_in: 0,
            last_work_first: false,
            piece: usize::MAX,
        };
        while host.stick.identity().is_none() {
            host.now = host.stick.poll_timeout(host.now).expect("boots");
            host.stick.handle_timeout(host.now);
        }
        while host.stick.poll_bus_event().is_some() {}
        host
    }

    /// Ping, both monitor streams.
    pub fn open(config: Config) -> Host {
        Host::open_behind(config, None)
    }

    /// As [`Host::open`], with the stick as number `n` behind a hub.
    pub fn open_behind(config: Config, hub: Option<(Arc<Hub>, usize)>) -> Host {
        let mut host = Host::new(config, hub);
        let ping = host.request(EventKind::Ping, 0, 0, "");
        assert!(host.answer(ping).flags.contains(Flags::ACK), "PING_RESP");
        host.create(DEVICE, "deviceMonitor", 2048);
        host.create(GRAPH, "graphMonitor", 4096);
        host
    }

    /// Sends one OUT transfer; it arrives when it has crossed the wire.
    pub fn out(&mut self, bytes: &[u8]) {
        let due = self.stick.out_arrival(bytes.len(), self.now);
        self.on_the_wire.push_back((due, bytes.to_vec()));
        self.arrive();
    }

    fn arrive(&mut self) -> bool {
        let mut progress = false;
        while self.on_the_wire.front().is_some_and(|&(due, _)| due <= self.now) {
            let Some((_, bytes)) = self.on_the_wire.pop_front() else { break };
            for piece in bytes.chunks(self.piece.max(1)) {
                let taken = self.stick.handle_out(piece, self.now);
                assert_eq!(taken, piece.len(), "a reading host is never held up");
            }
            progress = true;
        }
        progress
    }

    /// When something happens next.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        let wire = self.on_the_wire.front().map(|&(due, _)| due);
        self.stick.poll_timeout(self.now).into_iter().chain(wire).min()
    }

    /// Goes on to the next thing that happens, reading nothing.
    pub fn step(&mut self) {
        self.now = self.now.max(self.poll_timeout().expect("something happens"));
        self.arrive();
        self.stick.handle_timeout(self.now);
    }

    pub fn request(&mut self, kind: EventKind, stream: u32, size: u32, name: &str) -> i32 {
        let id = self.next_id;
        self.next_id += 1;
        let mut header = Header::request(id, kind, StreamId(stream), size);
        header.name = StreamName::new(name).expect("short name");
        self.asked.insert(id, header);
        self.out(&header.encode());
        id
    }

    pub fn create(&mut self, stream: u32, name: &str, credit: u32) {
        let id = self.request(EventKind::CreateStream, stream, credit, name);
        self.streams.insert(stream, Stream { credit, ..Stream::default() });
        assert!(self.answer(id).flags.contains(Flags::ACK), "CREATE {name}");
    }

    /// The answer to a request, waited for in virtual time.
    pub fn answer(&mut self, id: i32) -> Header {
        assert!(self.wait(|h| h.answers.contains_key(&id)), "an answer to {:?}", self.asked.get(&id));
        self.answers[&id]
    }

    pub fn close(&mut self, stream: u32) {
        assert!(self.wait(|h| h.streams[&stream].unreleased.is_empty()), "stream {stream} is released");
        assert!(self.streams[&stream].unreleased.is_empty(), "all packets of stream {stream} are released");
        let id = self.request(EventKind::CloseStream, stream, 0, "");
        assert!(self.answer(id).flags.contains(Flags::ACK), "CLOSE {stream}");
        self.streams.remove(&stream);
    }

    pub fn room(&self, stream: u32, bytes: usize) -> bool {
        let s = &self.streams[&stream];
        s.unreleased.iter().sum::<u32>() + bytes as u32 <= s.credit && s.unreleased.len() < 64
    }

    pub fn write(&mut self, stream: u32, bytes: &[u8]) -> i32 {
        self.streams.get_mut(&stream).expect("created").unreleased.push_back(bytes.len() as u32);
        let id = self.request(EventKind::Write, stream, bytes.len() as u32, "");
        self.out(bytes);
        id
    }

    pub fn unreleased(&self, stream: u32) -> usize {
        self.streams[&stream].unreleased.len()
    }

    /// Computes, reads and acknowledges all there is at this time.
    pub fn drive(&mut self) {
        loop {
            let mut progress = self.arrive();
            let mut works: Vec<_> = std::iter::from_fn(|| self.stick.poll_work()).collect();
            if self.last_work_first {
                works.reverse();
            }
            for mut work in works {
                work.perform(&self.cache);
                self.stick.handle_work_done(work, self.now);
                progress = true;
            }
            while let Some(transfer) = self.stick.poll_in(self.now) {
                let transfer = transfer.to_vec();
                self.stick.consume_in(transfer.len());
                self.transfers_in += 1;
                self.transfer(&transfer);
                progress = true;
            }
            let acks = std::mem::take(&mut self.acks);
            if !acks.is_empty() {
                self.out(&acks);
            }
            if !progress {
                return;
            }
        }
    }

    /// Goes on in time until `done` or until nothing happens any more.
    pub fn wait(&mut self, mut done: impl FnMut(&mut Host) -> bool) -> bool {
        loop {
            self.drive();
            if done(self) {
                return true;
            }
            match self.poll_timeout() {
                Some(t) => {
                    self.now = self.now.max(t);
                    self.stick.handle_timeout(self.now);
                }
                None => return false,
            }
        }
    }

    pub fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        self.drive();
        while let Some(t) = self.poll_timeout().filter(|&t| t <= until) {
            self.now = self.now.max(t);
            self.stick.handle_timeout(self.now);
            self.drive();
        }
        self.now = until;
        self.stick.handle_timeout(self.now);
        self.drive();
    }

    fn transfer(&mut self, bytes: &[u8]) {
        if let Some((header, mut got)) = self.payload.take() {
            got.extend_from_slice(bytes);
            assert!(got.len() <= header.size as usize, "payload longer than announced");
            if got.len() < header.size as usize {
                self.payload = Some((header, got));
            } else {
                self.packet(&header, got);
            }
            return;
        }
        if bytes.is_empty() {
            return;
        }
        assert_eq!(bytes.len(), HEADER_LEN, "a header is a transfer of its own");
        let header = Header::parse(bytes).expect("valid header");
        match header.side {
            Side::Response => {
                let asked =
                    self.asked.remove(&header.id).expect("an answer to something that was asked, once");
                assert_eq!(asked.kind, header.kind);
                self.answers.insert(header.id, header);
            }
            Side::Request => {
                assert_eq!(header.id, self.next_device_id, "device ids count up");
                self.next_device_id += 1;
                match header.kind {
                    EventKind::Write if header.size == 0 => self.packet(&header, Vec::new()),
                    EventKind::Write => self.payload = Some((header, Vec::new())),
                    EventKind::ReadRelease => {
                        let stream = self.streams.get_mut(&header.stream.0).expect("an open stream");
                        assert_eq!(
                            stream.unreleased.pop_front(),
                            Some(header.size),
                            "released in order, exact size"
                        );
                        // As the vendor answers: with stale fields.
                        let mut stale = header.response(Flags::ACK);
                        (stale.stream, stale.size) = (StreamId(77), 1234);
                        self.acks.extend(stale.encode());
                    }
                    _ => self.acks.extend(header.response(Flags::ACK).encode()),
                }
            }
        }
    }

    fn packet(&mut self, header: &Header, bytes: Vec<u8>) {
        self.acks.extend(header.response(Flags::ACK).encode());
        let stream = self.streams.get_mut(&header.stream.0).expect("an open stream");
        stream.packets.push_back(bytes);
        assert!(stream.packets.len() <= 64);
    }

    /// Takes and releases the oldest packet of a stream, if there is one.
    pub fn take(&mut self, stream: u32) -> Option<Vec<u8>> {
        let bytes = self.streams.get_mut(&stream)?.packets.pop_front()?;
        self.request(EventKind::ReadRelease, stream, bytes.len() as u32, "");
        Some(bytes)
    }

    /// The next packet of a stream, waited for in virtual time.
    pub fn expect(&mut self, stream: u32) -> Vec<u8> {
        assert!(self.wait(|h| !h.streams[&stream].packets.is_empty()), "a packet on stream {stream}");
        let packet = self.take(stream).expect("just seen");
        self.drive();
        packet
    }

    pub fn command(&mut self, command: GraphCommand) -> Status {
        self.write(GRAPH, &command.encode());
        self.status()
    }

    pub fn status(&mut self) -> Status {
        Status::parse(&self.expect(GRAPH)).expect("a status")
    }

    pub fn device_reply(&mut self, command: u32) -> Vec<u8> {
        let mut bytes = [0x55; 8];
        bytes[..4].copy_from_slice(&command.to_le_bytes());
        self.write(DEVICE, &bytes);
        self.expect(DEVICE)
    }

    pub fn used_memory(&mut self) -> u32 {
        u32::from_le_bytes(self.device_reply(2).try_into().expect("4 bytes"))
    }
}

/// A graph on the stick with its two FIFOs, as the vendor's client makes it.
#[derive(Clone)]
pub struct Loaded {
    pub graph: u32,
    pub buffer: u32,
    pub input: u32,
    pub output: u32,
    pub input_bytes: usize,
    pub output_bytes: usize,
    pub stages: u32,
}

/// Load and unload; `n` counts graphs, streams are 2 + 3n and up.
impl Host {
    pub fn allocate(&mut self, n: u32, blob: &[u8], executors: u32) -> (Status, [u32; 3]) {
        let name = format!("graphBuffer{n}");
        let stream = StreamName::new(&name).expect("short");
        let buffer = 2 + 3 * n;
        self.create(buffer, &name, (blob.len() as u32).next_multiple_of(64));
        self.write(GRAPH, &GraphCommand::Verify { graph: n, stream }.encode());
        self.write(buffer, &blob[..132.min(blob.len())]);
        assert_eq!(self.status(), Status::Ok, "VERIFY");
        self.write(GRAPH, &GraphCommand::Allocate { graph: n, stream, executors }.encode());
        self.write(buffer, blob);
        let input = TensorDescriptor::parse(&self.expect(buffer)).expect("input descriptor");
        let output = TensorDescriptor::parse(&self.expect(buffer)).expect("output descriptor");
        let stages = u32::from_le_bytes(self.expect(buffer).try_into().expect("stage count"));
        for d in [input, output] {
            assert!(d.n * d.c * d.w * d.h != 0);
        }
        (self.status(), [input.total_bytes, output.total_bytes, stages])
    }

    pub fn load(&mut self, n: u32, blob: &[u8], executors: u32, elements: u32) -> Loaded {
        let (status, [input_bytes, output_bytes, stages]) = self.allocate(n, blob, executors);
        assert_eq!(status, Status::Ok, "ALLOCATE");
        let stream = StreamName::new(&format!("graphBuffer{n}")).expect("short");
        assert_eq!(self.command(GraphCommand::AllocationVerify { graph: n, stream }), Status::Ok);
        for (fifo, bytes, direction) in
            [(2 * n, input_bytes, FifoDirection::Input), (2 * n + 1, output_bytes, FifoDirection::Output)]
        {
            let name = format!("FIFO{fifo}");
            let credit = if direction == FifoDirection::Input { bytes * elements } else { 8 };
            self.create(3 + 3 * n + fifo % 2, &name, credit.next_multiple_of(64));
            let status = self.command(GraphCommand::BufferAllocate {
                fifo,
                name: StreamName::new(&name).expect("short"),
                elements,
                tensor: TensorDescriptor { n: 1, c: 1, w: 1, h: 1, total_bytes: bytes },
                direction,
            });
            assert_eq!(status, Status::Ok, "BUFFER_ALLOCATE {name}");
        }
        Loaded {
            graph: n,
            buffer: 2 + 3 * n,
            input: 3 + 3 * n,
            output: 4 + 3 * n,
            input_bytes: input_bytes as usize,
            output_bytes: output_bytes as usize,
            stages,
        }
    }

    /// Input and TRIGGER; the status is not waited for.
    pub fn trigger(&mut self, graph: &Loaded, input: &[u8]) {
        self.write(graph.input, input);
        let n = graph.graph;
        self.write(
            GRAPH,
            &GraphCommand::Trigger { graph: n, input_fifo: 2 * n, output_fifo: 2 * n + 1 }.encode(),
        );
    }

    pub fn unload(&mut self, graph: &Loaded) {
        let n = graph.graph;
        self.write(graph.input, &ncs2::wire::FIFO_GOODBYE);
        for (fifo, stream) in [(2 * n, graph.input), (2 * n + 1, graph.output)] {
            assert_eq!(self.command(GraphCommand::BufferDeallocate { fifo }), Status::Ok);
            self.close(stream);
        }
        assert_eq!(self.command(GraphCommand::Deallocate { graph: n }), Status::Ok);
        self.close(graph.buffer);
    }

    /// Inferences per second with `depth` in flight, pipelined as far as the credit goes.
    pub fn throughput(&mut self, graph: &Loaded, depth: usize, inferences: usize) -> f64 {
        let input = vec![7; graph.input_bytes];
        let begin = self.now;
        let (mut sent, mut done) = (0, 0);
        while done < inferences {
            while sent < inferences && sent - done < depth && self.room(graph.input, input.len()) {
                self.trigger(graph, &input);
                sent += 1;
            }
            let (output, monitor) = (graph.output, GRAPH);
            assert!(
                self.wait(
                    |h| !h.streams[&output].packets.is_empty() || !h.streams[&monitor].packets.is_empty()
                )
            );
            while let Some(status) = self.take(GRAPH) {
                assert_eq!(Status::parse(&status), Ok(Status::Ok));
            }
            while self.take(graph.output).is_some() {
                done += 1;
            }
        }
        self.drive();
        inferences as f64 / self.now.saturating_since(begin).as_secs_f64()
    }
}
