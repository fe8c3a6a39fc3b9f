//! One stick, driven step by step over the sans-IO link, with every wait in the caller's hands: what a `Fleet` hides is
//! what a selftest wants to see. Every wait is bounded.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ncs2::clock::{Clock, Instant, Monotonic};
use ncs2::transport::{
    Buffer, Direction, Reactor, ReactorKind, Token, Transfer, TransferError, Transport, TransportInfo,
};
use ncs2::wire::{
    BUFFER_ALLOCATE_LEN, DeviceCommand, EventKind, FifoDirection, Flags, GraphCommand, HEADER_LEN, Header,
    STATUS_LEN, Side, StageCount, Status, StreamId, StreamName, TensorDescriptor, VERIFY_HEADER_LEN,
};
use ncs2::xlink::{Accept, Link, LinkEvent, LinkWant};

/// IN transfers that are posted ahead, one packet each: then every piece and every empty packet is seen.
const POSTED: usize = 16;
/// Longest wait for anything that has no bound of its own.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often [`Stop`] is asked while nothing comes.
const STOP_EVERY: Duration = Duration::from_millis(100);
/// Longest time without a ping, where a watchdog may be armed.
const PING_EVERY: Duration = Duration::from_millis(600);
/// Credits that the vendor announces.
const DEVICE_MONITOR_BYTES: u32 = 2000;
const GRAPH_MONITOR_BYTES: u32 = 4096;
const OUTPUT_CREDIT: u32 = 8;

/// Why a step went no further.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Trouble {
    /// Nothing came in time.
    #[error("{0}: no answer within {1:?}")]
    Late(&'static str, Duration),
    /// The stick left the bus.
    #[error("{0}: the stick left the bus")]
    Gone(&'static str),
    /// A command was answered so.
    #[error("{0}: status {1}")]
    Refused(&'static str, i32),
    /// The user has enough.
    #[error("{0}: interrupted")]
    Interrupted(&'static str),
    /// What came is not what the protocol has there.
    #[error("{0}: {1}")]
    Odd(&'static str, String),
}

/// Asked between two looks at the link: true when the user has enough.
pub type Stop = Arc<dyn Fn() -> bool + Send + Sync>;

/// Which of the vendor's waits are kept. All of them: the vendor's order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waits {
    /// For the acknowledgement of each write.
    pub ack: bool,
    /// For the status of each TRIGGER.
    pub status: bool,
    /// For the acknowledgement of each release.
    pub release: bool,
}

impl Waits {
    /// The vendor's.
    pub const VENDOR: Waits = Waits { ack: true, status: true, release: true };
}

/// A graph that was loaded.
#[derive(Clone, Debug)]
pub struct Loaded {
    graph: u32,
    fifos: [u32; 2],
    streams: [StreamId; 2],
    buffer: StreamId,
    /// As the stick described them: input, output.
    pub tensors: [TensorDescriptor; 2],
    /// Time of the blob's way onto the stick, to the last acknowledgement.
    pub upload: Duration,
}

/// See the module.
pub struct Session {
    transport: Box<dyn Transport>,
    reactor: Option<(Reactor, Token)>,
    link: Link<Vec<u8>, u32>,
    clock: Monotonic,
    answered: HashSet<u32>,
    refused: HashMap<u32, Flags>,
    packets: HashMap<u32, VecDeque<Vec<u8>>>,
    released: HashMap<u32, u64>,
    element: Vec<u8>,
    next_tag: u32,
    next_graph: u32,
    next_fifo: u32,
    device_monitor: Option<StreamId>,
    graph_monitor: Option<StreamId>,
    pinged: Instant,
    /// Pings as time asks for them; off while transfers are recorded that shall be replayed.
    pub pings: bool,
    /// Answers the stick's writes and releases, as every known host does.
    pub answers: bool,
    /// Inputs are put into memory that the kernel shares with the host controller, where the transport has such.
    pub mapped: bool,
    /// Of the last input that was waited for: from its first byte to its acknowledgement.
    pub sent: Duration,
    /// The last input lay in such memory.
    pub sent_mapped: bool,
    /// No wait lasts longer.
    until: Instant,
    gone: bool,
    packet_bytes: usize,
    stop: Option<Stop>,
    /// A wait ended because of it.
    stopped: bool,
}

impl Session {
    /// Takes a fresh connection.
    pub fn new(transport: Box<dyn Transport>) -> Result<Self, Trouble> {
        let odd = |e: std::io::Error| Trouble::Odd("reactor", e.to_string());
        let reactor = match transport.wait_on() {
            Some(wait) => {
                let kind = ReactorKind::detect().kind;
                let mut reactor = Reactor::new(kind).map_err(odd)?;
                let token = reactor.register(wait.fd, wait.interest()).map_err(odd)?;
                Some((reactor, token))
            }
            None => None,
        };
        let packet_bytes = transport.info().max_packet_bytes;
        let mut session = Session {
            transport,
            reactor,
            link: Link::new(Duration::from_secs(120)),
            clock: Monotonic::new(),
            answered: HashSet::new(),
            refused: HashMap::new(),
            packets: HashMap::new(),
            released: HashMap::new(),
            element: Vec::new(),
            next_tag: 0,
            next_graph: 0,
            next_fifo: 0,
            device_monitor: None,
            graph_monitor: None,
            pinged: Instant::ZERO,
            pings: false,
            answers: true,
            mapped: false,
            sent: Duration::ZERO,
            sent_mapped: false,
            until: Instant::FAR_FUTURE,
            gone: false,
            packet_bytes,
            stop: None,
            stopped: false,
        };
        for _ in 0..POSTED {
            session.post(Buffer::zeroed(packet_bytes))?;
        }
        Ok(session)
    }

    /// What the transport says of itself.
    pub fn info(&self) -> &TransportInfo {
        self.transport.info()
    }

    /// How fast this CPU reads the memory that the kernel shares with the host controller, and ordinary memory, MB/s; zeros
    /// where the transport has none such.
    pub fn reading(&self) -> (u32, u32) {
        self.transport.memory().map_or((0, 0), |memory| {
            let report = memory.report();
            (report.mapped_read_mb_s, report.ordinary_read_mb_s)
        })
    }

    /// From now on no wait lasts beyond `left`: the whole selftest has its time.
    pub fn bound(&mut self, left: Duration) {
        self.until = self.clock.now() + left;
    }

    /// From now on waits end when `stop` says so; the stick is then reset when the session is dropped.
    pub fn stop_when(&mut self, stop: Stop) {
        self.stop = Some(stop);
    }

    /// Since this session began.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    fn post(&mut self, buffer: Buffer) -> Result<(), Trouble> {
        let transfer = Transfer::whole(Direction::In, buffer, 0);
        match self.transport.submit(transfer) {
            Ok(()) => Ok(()),
            Err(rejected) if rejected.reason == TransferError::Gone => {
                self.gone = true;
                Ok(())
            }
            Err(rejected) => Err(Trouble::Odd("IN transfer", rejected.reason.to_string())),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        let shared = self.transport.memory().filter(|_| self.mapped && bytes.len() > HEADER_LEN);
        let shared = shared.and_then(|memory| memory.take(bytes.len(), Direction::Out));
        let mut buffer = shared.map_or_else(|| Buffer::zeroed(bytes.len()), |(buffer, _)| buffer);
        self.sent_mapped = buffer.is_mapped();
        if let Some(slice) = buffer.as_mut_slice() {
            slice.copy_from_slice(bytes);
        }
        match self.transport.submit(Transfer::whole(Direction::Out, buffer, 1)) {
            Ok(()) => Ok(()),
            Err(rejected) if rejected.reason == TransferError::Gone => {
                self.gone = true;
                Err(Trouble::Gone("OUT transfer"))
            }
            Err(rejected) => Err(Trouble::Odd("OUT transfer", rejected.reason.to_string())),
        }
    }

    /// Sends what waits to be sent.
    fn transmit(&mut self) -> Result<(), Trouble> {
        while let Some(out) = self.link.poll_transmit(self.clock.now()) {
            let response = Header::parse(&out.header).is_ok_and(|h| h.side == Side::Response);
            if response && !self.answers {
                continue;
            }
            self.send(&out.header)?;
            if let Some(payload) = out.payload {
                self.send(&payload)?;
            }
        }
        Ok(())
    }

    /// One turn: sends, takes what came, waits at most until `deadline` for something to come.
    fn turn(&mut self, step: &'static str, deadline: Instant) -> Result<(), Trouble> {
        self.transmit()?;
        let mut came = false;
        while let Some(done) = self.transport.poll() {
            came = true;
            match done.result {
                Ok(()) => {}
                Err(TransferError::Gone) => self.gone = true,
                Err(TransferError::Cancelled) => {}
                Err(error) => return Err(Trouble::Odd(step, error.to_string())),
            }
            if done.transfer.direction == Direction::In {
                let buffer = {
                    let bytes = done.bytes().to_vec();
                    self.receive(step, &bytes)?;
                    done.transfer.buffer
                };
                if !self.gone {
                    self.post(buffer)?;
                }
                // What it makes us send goes before what else lies there: then a replay meets the same order.
                self.transmit()?;
            }
        }
        if came {
            return Ok(());
        }
        if self.gone {
            return Err(Trouble::Gone(step));
        }
        let now = self.clock.now();
        if self.pings && self.device_monitor.is_some() && now.saturating_since(self.pinged) >= PING_EVERY {
            self.ping_watchdog()?;
            return Ok(());
        }
        if now >= deadline || self.transport.arm() {
            return Ok(());
        }
        let ping = self.pinged + PING_EVERY;
        let until = if self.pings && self.device_monitor.is_some() { deadline.min(ping) } else { deadline };
        let until = if self.stop.is_some() { until.min(now + STOP_EVERY) } else { until };
        let Some((reactor, token)) = &mut self.reactor else {
            return Err(Trouble::Late(step, Duration::ZERO));
        };
        if let Some(wait) = self.transport.wait_on() {
            let odd = |e: std::io::Error| Trouble::Odd("reactor", e.to_string());
            reactor.set_interest(*token, wait.interest()).map_err(odd)?;
            reactor.turn(Some(until.saturating_since(now)), &mut Vec::new()).map_err(odd)?;
        }
        Ok(())
    }

    fn receive(&mut self, step: &'static str, mut bytes: &[u8]) -> Result<(), Trouble> {
        while !bytes.is_empty() {
            let event = if let LinkWant::Element { missing, .. } = self.link.want() {
                let n = missing.min(bytes.len());
                self.element.extend_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                self.link.handle_element_in(n)
            } else {
                let (taken, event) = self.link.handle_in(bytes, self.clock.now());
                bytes = &bytes[taken..];
                event
            };
            if let Some(fault) = self.link.take_fault() {
                return Err(Trouble::Odd(step, format!("{fault:?}")));
            }
            match event {
                Some(LinkEvent::Answered(tag)) => {
                    self.answered.insert(tag);
                }
                Some(LinkEvent::Refused(tag, flags)) => {
                    self.refused.insert(tag, flags);
                }
                Some(LinkEvent::Packet(stream)) => {
                    let packet = self.link.take_packet();
                    self.packets.entry(stream.0).or_default().push_back(packet.clone());
                    self.link.reuse_packet(packet);
                }
                Some(LinkEvent::ElementBegun(_, size)) => {
                    self.element.clear();
                    self.element.reserve(size as usize);
                }
                Some(LinkEvent::ElementDone(stream)) => {
                    let element = std::mem::take(&mut self.element);
                    self.packets.entry(stream.0).or_default().push_back(element);
                }
                Some(LinkEvent::Released(stream)) => *self.released.entry(stream.0).or_default() += 1,
                None => {}
            }
        }
        Ok(())
    }

    /// Turns until `done` says so.
    fn wait(
        &mut self,
        step: &'static str,
        patience: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Result<(), Trouble> {
        let begin = self.clock.now();
        let deadline = (begin + patience).min(self.until);
        loop {
            if done(self) {
                return self.transmit();
            }
            if self.stop.as_ref().is_some_and(|stop| stop()) {
                self.stopped = true;
                return Err(Trouble::Interrupted(step));
            }
            if self.clock.now() >= deadline {
                return Err(Trouble::Late(step, deadline.saturating_since(begin)));
            }
            self.turn(step, deadline)?;
        }
    }

    fn tag(&mut self) -> u32 {
        self.next_tag += 1;
        self.next_tag
    }

    fn wait_answer(&mut self, step: &'static str, tag: u32) -> Result<(), Trouble> {
        self.wait(step, PATIENCE, |s| s.answered.remove(&tag) || s.refused.contains_key(&tag))?;
        match self.refused.remove(&tag) {
            Some(flags) => Err(Trouble::Odd(step, format!("refused with {flags:?}"))),
            None => Ok(()),
        }
    }

    fn packet(
        &mut self,
        step: &'static str,
        stream: StreamId,
        patience: Duration,
    ) -> Result<Vec<u8>, Trouble> {
        let there = |s: &mut Self| s.packets.get(&stream.0).is_some_and(|q| !q.is_empty());
        self.wait(step, patience, there)?;
        let packet = self.packets.get_mut(&stream.0).and_then(VecDeque::pop_front);
        packet.ok_or(Trouble::Late(step, patience))
    }

    fn release(&mut self, step: &'static str, stream: StreamId, wait: bool) -> Result<(), Trouble> {
        let tag = self.tag();
        self.link.release(stream, Some(tag)).map_err(|e| Trouble::Odd(step, e.to_string()))?;
        if wait { self.wait_answer(step, tag) } else { self.transmit() }
    }

    fn write(&mut self, step: &'static str, stream: StreamId, bytes: &[u8]) -> Result<u32, Trouble> {
        let tag = self.tag();
        let now = self.clock.now();
        let size = u32::try_from(bytes.len()).map_err(|_| Trouble::Odd(step, "4 GB and more".into()))?;
        self.link
            .write(stream, size, bytes.to_vec(), tag, now + Duration::from_secs(60), now)
            .map_err(|e| Trouble::Odd(step, e.to_string()))?;
        self.transmit()?;
        Ok(tag)
    }

    fn open_stream(
        &mut self,
        step: &'static str,
        name: StreamName,
        credit: u32,
        accept: Accept,
    ) -> Result<StreamId, Trouble> {
        let tag = self.tag();
        let opened = self.link.open_stream(name, credit, accept, tag);
        let stream = opened.map_err(|e| Trouble::Odd(step, e.to_string()))?;
        self.wait_answer(step, tag)?;
        Ok(stream)
    }

    // ---- the device -------------------------------------------------------------------------------------------

    /// A ping of the link layer; its round trip.
    pub fn ping(&mut self) -> Result<Duration, Trouble> {
        let begin = self.clock.now();
        let tag = self.tag();
        self.link.ping(tag);
        self.wait_answer("PING", tag)?;
        Ok(self.clock.now() - begin)
    }

    /// Opens `deviceMonitor`.
    pub fn open_device(&mut self) -> Result<(), Trouble> {
        let name = StreamName::DEVICE_MONITOR;
        self.device_monitor =
            Some(self.open_stream("open deviceMonitor", name, DEVICE_MONITOR_BYTES, Accept::Packets)?);
        Ok(())
    }

    /// Opens `graphMonitor`.
    pub fn open_graphs(&mut self) -> Result<(), Trouble> {
        let name = StreamName::GRAPH_MONITOR;
        self.graph_monitor =
            Some(self.open_stream("open graphMonitor", name, GRAPH_MONITOR_BYTES, Accept::Packets)?);
        Ok(())
    }

    fn ping_watchdog(&mut self) -> Result<(), Trouble> {
        self.pinged = self.clock.now();
        let Some(monitor) = self.device_monitor else { return Ok(()) };
        let tag = self.tag();
        let command = DeviceCommand::WatchdogPing.encode();
        let now = self.clock.now();
        self.link
            .write(monitor, command.len() as u32, command.to_vec(), tag, now + PATIENCE, now)
            .map_err(|e| Trouble::Odd("watchdog ping", e.to_string()))?;
        self.transmit()
    }

    /// A ping of the watchdog, acknowledged.
    pub fn feed_watchdog(&mut self) -> Result<(), Trouble> {
        self.device("watchdog ping", DeviceCommand::WatchdogPing).map(drop)?;
        self.pinged = self.clock.now();
        Ok(())
    }

    /// A device command and its reply; empty where it has none.
    pub fn device(&mut self, step: &'static str, command: DeviceCommand) -> Result<Vec<u8>, Trouble> {
        let monitor = self.device_monitor.ok_or(Trouble::Odd(step, "deviceMonitor is not open".into()))?;
        let tag = self.write(step, monitor, &command.encode())?;
        self.wait_answer(step, tag)?;
        if command.reply_len().is_none() {
            return Ok(Vec::new());
        }
        let reply = self.packet(step, monitor, PATIENCE)?;
        self.release(step, monitor, true)?;
        Ok(reply)
    }

    // ---- graphs -----------------------------------------------------------------------------------------------

    fn monitor(&self, step: &'static str) -> Result<StreamId, Trouble> {
        self.graph_monitor.ok_or(Trouble::Odd(step, "graphMonitor is not open".into()))
    }

    fn status(&mut self, step: &'static str, waits: Waits) -> Result<(), Trouble> {
        let monitor = self.monitor(step)?;
        let packet = self.packet(step, monitor, PATIENCE)?;
        self.release(step, monitor, waits.release)?;
        if packet.len() != STATUS_LEN {
            return Err(Trouble::Odd(step, format!("a status of {} bytes", packet.len())));
        }
        match Status::parse(&packet) {
            Ok(Status::Ok) => Ok(()),
            Ok(other) => Err(Trouble::Refused(step, other.code())),
            Err(error) => Err(Trouble::Odd(step, error.to_string())),
        }
    }

    fn command(&mut self, step: &'static str, command: GraphCommand) -> Result<(), Trouble> {
        let monitor = self.monitor(step)?;
        let tag = self.write(step, monitor, &command.encode())?;
        self.wait_answer(step, tag)?;
        self.status(step, Waits::VENDOR)
    }

    /// Loads a blob with so many executors and FIFO elements, as the vendor does.
    pub fn load(&mut self, blob: &[u8], executors: u32, elements: u32) -> Result<Loaded, Trouble> {
        const STEP: &str = "load";
        let graph = self.next_graph;
        self.next_graph += 1;
        let name = StreamName::graph_buffer(graph);
        let buffer = self.open_stream("open graphBuffer", name, blob.len() as u32, Accept::Packets)?;
        let monitor = self.monitor(STEP)?;
        let header = blob.get(..VERIFY_HEADER_LEN).ok_or(Trouble::Odd(STEP, "no blob".into()))?;
        let tag = self.write("VERIFY", monitor, &GraphCommand::Verify { graph, stream: name }.encode())?;
        self.wait_answer("VERIFY", tag)?;
        let tag = self.write("VERIFY", buffer, header)?;
        self.wait_answer("VERIFY", tag)?;
        self.status("VERIFY", Waits::VENDOR)?;
        let begin = self.clock.now();
        let allocate = GraphCommand::Allocate { graph, stream: name, executors };
        let tag = self.write("ALLOCATE", monitor, &allocate.encode())?;
        self.wait_answer("ALLOCATE", tag)?;
        let tag = self.write("ALLOCATE", buffer, blob)?;
        self.wait("ALLOCATE", Duration::from_secs(30), |s| s.answered.remove(&tag))?;
        let upload = self.clock.now() - begin;
        let mut replies = Vec::new();
        for _ in 0..3 {
            replies.push(self.packet("ALLOCATE", buffer, PATIENCE)?);
            self.release("ALLOCATE", buffer, true)?;
        }
        self.status("ALLOCATE", Waits::VENDOR)?;
        let odd = |e: ncs2::wire::WireError| Trouble::Odd("ALLOCATE", e.to_string());
        let tensors = [
            TensorDescriptor::parse(&replies[0]).map_err(odd)?,
            TensorDescriptor::parse(&replies[1]).map_err(odd)?,
        ];
        StageCount::parse(&replies[2]).map_err(odd)?;
        self.command("ALLOCATION_VERIFY", GraphCommand::AllocationVerify { graph, stream: name })?;
        let mut fifos = [0; 2];
        let mut streams = [StreamId(0); 2];
        for (n, direction) in [FifoDirection::Input, FifoDirection::Output].into_iter().enumerate() {
            let fifo = self.next_fifo;
            self.next_fifo += 1;
            let name = StreamName::fifo(fifo);
            let (credit, accept) = match direction {
                FifoDirection::Input => (tensors[0].total_bytes.saturating_mul(elements), Accept::Nothing),
                FifoDirection::Output => (OUTPUT_CREDIT, Accept::Element),
            };
            let stream = self.open_stream("open FIFO", name, credit, accept)?;
            let allocate =
                GraphCommand::BufferAllocate { fifo, name, elements, tensor: tensors[n], direction };
            debug_assert_eq!(allocate.encode().len(), BUFFER_ALLOCATE_LEN);
            self.command("BUFFER_ALLOCATE", allocate)?;
            (fifos[n], streams[n]) = (fifo, stream);
        }
        Ok(Loaded { graph, fifos, streams, buffer, tensors, upload })
    }

    fn trigger(&self, loaded: &Loaded) -> GraphCommand {
        let [input_fifo, output_fifo] = loaded.fifos;
        GraphCommand::Trigger { graph: loaded.graph, input_fifo, output_fifo }
    }

    /// Sends an input and triggers on it.
    pub fn start(&mut self, loaded: &Loaded, input: &[u8], waits: Waits) -> Result<(), Trouble> {
        let begin = self.clock.now();
        let tag = self.write("input", loaded.streams[0], input)?;
        if waits.ack {
            let mapped = self.sent_mapped;
            self.wait_answer("input", tag)?;
            (self.sent, self.sent_mapped) = (self.clock.now() - begin, mapped);
        }
        let monitor = self.monitor("TRIGGER")?;
        let tag = self.write("TRIGGER", monitor, &self.trigger(loaded).encode())?;
        if waits.ack {
            self.wait_answer("TRIGGER", tag)?;
        }
        if waits.status { self.status("TRIGGER", waits) } else { Ok(()) }
    }

    /// The next output, whole.
    pub fn finish(&mut self, loaded: &Loaded, waits: Waits) -> Result<Vec<u8>, Trouble> {
        if !waits.status {
            self.status("TRIGGER", waits)?;
        }
        let output = self.packet("output", loaded.streams[1], Duration::from_secs(20))?;
        self.release("output", loaded.streams[1], waits.release)?;
        Ok(output)
    }

    /// All of `inputs`, with `depth` of them in flight; outputs in order.
    pub fn infer(
        &mut self,
        loaded: &Loaded,
        inputs: &[Vec<u8>],
        waits: Waits,
        depth: usize,
    ) -> Result<Vec<Vec<u8>>, Trouble> {
        let mut outputs = Vec::with_capacity(inputs.len());
        let mut started = 0;
        while outputs.len() < inputs.len() {
            while started < inputs.len() && started - outputs.len() < depth {
                self.start(loaded, &inputs[started], waits)?;
                started += 1;
            }
            outputs.push(self.finish(loaded, waits)?);
        }
        Ok(outputs)
    }

    /// Sends an input, then a TRIGGER that names no output FIFO of the stick. The status it was refused with, and whether
    /// the stick gave the input back within `patience`.
    pub fn refuse(
        &mut self,
        loaded: &Loaded,
        input: &[u8],
        patience: Duration,
    ) -> Result<(Option<i32>, bool), Trouble> {
        let before = self.released.get(&loaded.streams[0].0).copied().unwrap_or(0);
        let tag = self.write("input", loaded.streams[0], input)?;
        self.wait_answer("input", tag)?;
        let nowhere = self.next_fifo + 1000;
        let command =
            GraphCommand::Trigger { graph: loaded.graph, input_fifo: loaded.fifos[0], output_fifo: nowhere };
        let status = match self.command("refused TRIGGER", command) {
            Ok(()) => None,
            Err(Trouble::Refused(_, status)) => Some(status),
            Err(other) => return Err(other),
        };
        let stream = loaded.streams[0].0;
        let given_back = |s: &mut Self| s.released.get(&stream).copied().unwrap_or(0) > before;
        let released = match self.wait("release of a refused input", patience, given_back) {
            Ok(()) => true,
            Err(Trouble::Late(..)) => false,
            Err(other) => return Err(other),
        };
        Ok((status, released))
    }

    /// A TRIGGER on an input that lies on the stick already.
    pub fn retrigger(&mut self, loaded: &Loaded) -> Result<Vec<u8>, Trouble> {
        let command = self.trigger(loaded);
        self.command("TRIGGER", command)?;
        self.finish(loaded, Waits::VENDOR)
    }

    /// Gives a graph back, as the vendor does.
    pub fn unload(&mut self, loaded: &Loaded) -> Result<(), Trouble> {
        let tag = self.write("goodbye", loaded.streams[0], &ncs2::wire::FIFO_GOODBYE)?;
        self.wait_answer("goodbye", tag)?;
        for n in 0..2 {
            self.command("BUFFER_DEALLOCATE", GraphCommand::BufferDeallocate { fifo: loaded.fifos[n] })?;
            self.close_stream(loaded.streams[n])?;
        }
        self.command("DEALLOCATE", GraphCommand::Deallocate { graph: loaded.graph })?;
        self.close_stream(loaded.buffer)
    }

    fn close_stream(&mut self, stream: StreamId) -> Result<(), Trouble> {
        let (tag, now) = (self.tag(), self.clock.now());
        self.link
            .close_stream(stream, tag, now + PATIENCE, now)
            .map_err(|e| Trouble::Odd("CLOSE_STREAM", e.to_string()))?;
        self.wait_answer("CLOSE_STREAM", tag)
    }

    /// Sends the first half of an input and nothing more; the stick is in the middle of a tensor after it.
    pub fn stop_in_mid_tensor(&mut self, loaded: &Loaded, input: &[u8]) -> Result<(), Trouble> {
        let stream = loaded.streams[0];
        // Past the link on purpose: it would not stop half-way.
        self.send(&Header::request(i32::MAX, EventKind::Write, stream, input.len() as u32).encode())?;
        self.send(&input[..input.len() / 2])
    }

    /// Waits until the stick leaves the bus; how long it took, `None` when it stays.
    pub fn wait_gone(&mut self, patience: Duration) -> Result<Option<Duration>, Trouble> {
        let begin = self.clock.now();
        match self.wait("leave the bus", patience, |s| s.gone) {
            Ok(()) | Err(Trouble::Gone(_)) => Ok(Some(self.clock.now() - begin)),
            Err(Trouble::Late(..)) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Lets time pass, with pings.
    pub fn rest(&mut self, time: Duration) -> Result<(), Trouble> {
        match self.wait("rest", time, |_| false) {
            Err(Trouble::Late(..)) | Ok(()) => Ok(()),
            Err(other) => Err(other),
        }
    }

    /// RESET: whether it was answered before the stick left. Ends the session.
    pub fn reset(mut self) -> Result<bool, Trouble> {
        self.send_reset()
    }

    fn send_reset(&mut self) -> Result<bool, Trouble> {
        // The last thing that is asked of the stick is done, whatever the user has enough of: its waits are short.
        (self.stop, self.stopped) = (None, false);
        let tag = self.tag();
        self.link.reset(tag);
        let answered = match self.wait("RESET", PATIENCE, |s| s.answered.contains(&tag) || s.gone) {
            Ok(()) => self.answered.contains(&tag),
            Err(Trouble::Gone(_)) => self.answered.contains(&tag),
            Err(other) => return Err(other),
        };
        // A stick that answers leaves afterwards; the next connection must not meet it before.
        if !self.gone {
            self.wait_gone(PATIENCE)?;
        }
        Ok(answered)
    }

    /// Bytes of a packet on the link.
    pub fn packet_bytes(&self) -> usize {
        self.packet_bytes
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.stopped && !self.gone {
            // A stick that does not answer it any more is left as it is.
            let _ = self.send_reset();
        }
        self.transport.cancel_all();
        // Every buffer comes back; a bounded wait for a transport that keeps some.
        let deadline = self.clock.now() + Duration::from_millis(200);
        loop {
            let mut cancelled = 0;
            while self.transport.poll().is_some() {
                cancelled += 1;
            }
            if cancelled == 0 || self.clock.now() >= deadline {
                break;
            }
        }
        if let Some((reactor, token)) = &mut self.reactor {
            reactor.deregister(*token);
        }
    }
}
