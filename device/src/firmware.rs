//! The booted stick: XLink streams and what listens on them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ncs2::clock::Instant;
use ncs2::wire::{DEVICE_COMMAND_LEN, DeviceCommand, Flags, Header};

use crate::behaviour::ZeroLength;
use crate::config::Config;
use crate::fault_plan::{FaultKind, Point, Script};
use crate::fifo::Element;
use crate::graphs::Graphs;
use crate::heat::Heat;
use crate::hub::Hub;
use crate::link::{Body, Event, Link, LinkRules, MAX_STREAMS, Slot};
use crate::sample::Sampler;
use crate::work::Work;
use crate::{Engine, Timing};

/// Longest packet of a monitor stream that is looked at.
const SHORT: usize = 128;
/// How far the temperature may be behind.
const HEAT_STEP: Duration = Duration::from_millis(100);

/// Who listens on a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    None,
    DeviceMonitor,
    GraphMonitor,
    GraphBuffer,
    /// A FIFO, once a command said so; anything else is read and released.
    Other,
}

/// What is done with the payload that is coming in.
#[derive(Debug)]
enum Sink {
    Discard,
    Short { bytes: [u8; SHORT], len: usize },
    Keep(Vec<u8>),
    Sample(Sampler),
}

#[derive(Debug)]
pub(crate) struct Firmware {
    config: Arc<Config>,
    pub(crate) link: Link,
    pub(crate) graphs: Graphs,
    roles: [Role; MAX_STREAMS],
    sink: Sink,
    size: usize,
    /// Bytes of packets that are kept, beside what the ledger has charged.
    kept: u64,
    device_commands: VecDeque<(Slot, Option<DeviceCommand>)>,
    /// `None` when the image did not arm it.
    watchdog: Option<Instant>,
    /// Set by RESET: when the stick leaves at the latest.
    leaving: Option<Instant>,
    heat_clock: Instant,
    heat_shave_ns: f64,
    hub: Option<(Arc<Hub>, usize)>,
}

impl Firmware {
    pub(crate) fn new(
        config: Arc<Config>,
        epoch: u64,
        watchdog: bool,
        hub: Option<(Arc<Hub>, usize)>,
        now: Instant,
    ) -> Self {
        let (profile, f) = (&config.profile, &config.profile.firmware);
        let zero = config.timing == Timing::Zero;
        let rules = LinkRules {
            max_packet_bytes: profile.link.max_packet_bytes,
            ns_per_byte: if zero { 0.0 } else { 1e9 / profile.link.bytes_per_s },
            transfer_ns: if zero { 0.0 } else { profile.link.transfer_us * 1e3 },
            ack_delay: Duration::from_nanos((f.ack_delay_us * 1e3) as u64),
            creates_streams: f.creates_streams,
            zero_length_full: f.zero_length == ZeroLength::Full,
            zero_length_always: f.zero_length == ZeroLength::Always,
            max_credit: profile.usable_bytes(),
            hub: hub.as_ref().filter(|_| !zero).map(|(hub, _)| Arc::clone(hub)),
        };
        let mut firmware = Firmware {
            link: Link::new(rules),
            graphs: Graphs::new(Arc::clone(&config), epoch),
            roles: [Role::None; MAX_STREAMS],
            sink: Sink::Discard,
            size: 0,
            kept: 0,
            device_commands: VecDeque::new(),
            watchdog: None,
            leaving: None,
            heat_clock: now,
            heat_shave_ns: 0.0,
            hub,
            config,
        };
        firmware.watchdog = watchdog.then(|| now + firmware.watchdog_time());
        firmware.graphs.advance(now, 1.0, &mut firmware.link);
        firmware
    }

    fn watchdog_time(&self) -> Duration {
        Duration::from_nanos((self.config.profile.firmware.watchdog_s * 1e9) as u64)
    }

    /// Takes OUT bytes; fewer than given while too much waits to be read.
    pub(crate) fn handle_out(&mut self, bytes: &[u8], heat: &mut Heat, now: Instant) -> usize {
        if self.leaving.is_some() {
            return bytes.len();
        }
        self.warm(heat, now);
        let mut used = 0;
        loop {
            if !self.link.takes_out() || self.leaving.is_some() {
                break;
            }
            let (n, event) = self.link.feed(&bytes[used..], now);
            used += n;
            match event {
                Event::Nothing if n == 0 => break,
                Event::Nothing => {}
                Event::Created(slot) => self.created(slot),
                Event::Closed(slot) => {
                    self.roles[slot] = Role::None;
                    self.device_commands.retain(|(s, _)| *s != slot);
                    self.graphs.handle_closed(slot);
                }
                Event::Begin { slot, size } => self.open_sink(slot, size),
                Event::Data { slot, bytes, last } => {
                    self.fill_sink(bytes);
                    if last {
                        self.packet(slot, heat, now);
                    }
                }
                Event::Released(_) => self.pump(heat, now),
                Event::Reset(request) => self.reset(&request, now),
            }
        }
        self.pump(heat, now);
        if self.leaving.is_some() { bytes.len() } else { used }
    }

    fn created(&mut self, slot: Slot) {
        let name = self.link.name(slot);
        self.roles[slot] = match name.as_str() {
            "deviceMonitor" => Role::DeviceMonitor,
            "graphMonitor" => {
                self.graphs.set_monitor(slot);
                Role::GraphMonitor
            }
            name if name.starts_with("graphBuffer") => Role::GraphBuffer,
            _ => Role::Other,
        };
    }

    fn open_sink(&mut self, slot: Slot, size: usize) {
        self.size = size;
        let fits = self.kept + size as u64 <= self.config.profile.usable_bytes();
        self.sink = match self.roles[slot] {
            Role::DeviceMonitor | Role::GraphMonitor => Sink::Short { bytes: [0; SHORT], len: 0 },
            // Grows with what really comes, never by what a header claims.
            Role::GraphBuffer if fits => Sink::Keep(self.link.take_vec()),
            Role::Other if fits && self.graphs.input_element_bytes(slot) == Some(size) => {
                let memory = self.link.take_vec();
                match self.config.engine {
                    Engine::Hash => Sink::Sample(Sampler::new(size, memory)),
                    Engine::Execute => Sink::Keep(memory),
                }
            }
            _ => Sink::Discard,
        };
    }

    fn fill_sink(&mut self, data: &[u8]) {
        match &mut self.sink {
            Sink::Discard => {}
            Sink::Short { bytes, len } => {
                let n = data.len().min(SHORT - *len);
                bytes[*len..*len + n].copy_from_slice(&data[..n]);
                *len += n;
            }
            Sink::Keep(v) => v.extend_from_slice(data),
            Sink::Sample(sampler) => sampler.push(data),
        }
    }

    /// A packet is complete.
    fn packet(&mut self, slot: Slot, heat: &mut Heat, now: Instant) {
        let size = self.size;
        match (self.roles[slot], std::mem::replace(&mut self.sink, Sink::Discard)) {
            (Role::DeviceMonitor, Sink::Short { bytes, .. }) => {
                let command =
                    (size == DEVICE_COMMAND_LEN).then(|| DeviceCommand::parse(&bytes[..size]).ok()).flatten();
                if command == Some(DeviceCommand::WatchdogPing) && self.watchdog.is_some() {
                    self.watchdog = Some(now + self.watchdog_time());
                }
                self.device_commands.push_back((slot, command));
            }
            (Role::GraphMonitor, Sink::Short { bytes, len }) => {
                // Longer than any command: as one of no known length.
                self.graphs.handle_command(if size <= len { &bytes[..len] } else { &[] });
            }
            (Role::GraphBuffer, Sink::Keep(bytes)) => self.graphs.handle_blob(slot, bytes),
            (Role::GraphBuffer, _) => self.graphs.handle_blob(slot, Vec::new()),
            (_, sink) => {
                let bytes = match sink {
                    Sink::Keep(bytes) => bytes,
                    Sink::Sample(sampler) => sampler.finish(),
                    _ => Vec::new(),
                };
                self.graphs.handle_element(slot, Element { bytes, wire_bytes: size }, &mut self.link, now);
            }
        }
        self.pump(heat, now);
    }

    fn pump(&mut self, heat: &mut Heat, now: Instant) {
        while let Some(&(slot, command)) = self.device_commands.front() {
            // Replies that nobody takes hold up the commands behind them.
            if self.link.backlog(slot) > 0 {
                break;
            }
            self.device_commands.pop_front();
            self.link.release(slot, now);
            let reply = match command {
                Some(DeviceCommand::ThermalStats) => {
                    self.warm_now(heat, now);
                    let mut stats = heat.stats();
                    match self.graphs.strike(Point::Sensor) {
                        Some((FaultKind::SilentSensor, _)) => continue,
                        Some(_) => {
                            let any = self.graphs.script.as_ref().map_or(0.0, Script::unit);
                            stats.raw[0] = 7.0;
                            stats.raw[1] = (any * 2000.0 - 1000.0) as f32;
                        }
                        None => {}
                    }
                    Body::short(&stats.encode())
                }
                Some(DeviceCommand::Capabilities) => {
                    let limit = u32::try_from(self.graphs.limit_bytes()).unwrap_or(u32::MAX);
                    let mut truth = self.config.profile.firmware.capabilities(limit);
                    if self.graphs.strike(Point::Capabilities).is_some() {
                        (truth.max_graphs, truth.max_fifos) = (0, u32::MAX);
                        (truth.max_memory_bytes, truth.max_executors) = (u32::MAX, 0);
                        truth.fw_version = [u32::MAX; 4];
                    }
                    Body::short(&truth.encode())
                }
                Some(DeviceCommand::UsedMemory) => {
                    let used = u32::try_from(self.graphs.used_bytes()).unwrap_or(u32::MAX);
                    Body::short(&used.to_le_bytes())
                }
                // No answer but the WRITE response; what is no command, neither.
                _ => continue,
            };
            self.link.write(slot, reply, 0, now);
        }
        self.graphs.advance(now, heat.speed(), &mut self.link);
        self.graphs.pump(&mut self.link, now);
        self.kept = self.graphs.kept_bytes();
    }

    /// RESET_REQ: the answer lies ready for a moment, then the stick leaves, read or not.
    fn reset(&mut self, request: &Header, now: Instant) {
        let boot = &self.config.profile.boot;
        let answers = self.config.profile.firmware.answers_reset;
        if answers {
            self.link.send_header(request.response(Flags::ACK), now);
        }
        let linger =
            if answers { Duration::from_nanos((boot.reset_linger_ms * 1e6) as u64) } else { Duration::ZERO };
        self.leaving = Some(now + linger);
    }

    pub(crate) fn handle_work_done(&mut self, work: Work, heat: &mut Heat, now: Instant) {
        self.graphs.advance(now, heat.speed(), &mut self.link);
        self.graphs.handle_work_done(work, &mut self.link);
        self.pump(heat, now);
    }

    pub(crate) fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        let link = self.link.poll_timeout(now);
        if self.leaving.is_some() {
            return self.leaving.into_iter().chain(link).min();
        }
        let graphs = self.graphs.poll_timeout();
        link.into_iter().chain(graphs).chain(self.watchdog).min()
    }

    /// True when the stick leaves the bus now.
    pub(crate) fn handle_timeout(&mut self, heat: &mut Heat, now: Instant) -> bool {
        self.link.handle_timeout(now);
        if let Some(at) = self.leaving {
            return at <= now || self.link.is_drained();
        }
        if self.watchdog.is_some_and(|at| at <= now) {
            tracing::warn!("virtual stick: no watchdog ping, resetting itself");
            return true;
        }
        self.warm(heat, now);
        self.pump(heat, now);
        false
    }

    fn warm(&mut self, heat: &mut Heat, now: Instant) {
        if now.saturating_since(self.heat_clock) >= HEAT_STEP {
            self.warm_now(heat, now);
        }
    }

    /// Heats the stick by what its SHAVEs did since the last time.
    pub(crate) fn warm_now(&mut self, heat: &mut Heat, now: Instant) {
        self.graphs.advance(now, heat.speed(), &mut self.link);
        let ns = now.saturating_since(self.heat_clock).as_nanos() as f64;
        if ns > 0.0 {
            let work = self.graphs.shave_ns() - self.heat_shave_ns;
            if let Some((hub, n)) = &self.hub {
                heat.set_warmth(hub.warmth(*n, heat.celsius()));
            }
            heat.advance(now, work / (ns * f64::from(self.config.profile.timing.shaves)));
            self.heat_shave_ns += work;
            self.heat_clock = now;
        }
    }
}
