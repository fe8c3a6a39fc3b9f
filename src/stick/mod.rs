//! The state of one stick, without I/O: bring-up, graphs, FIFOs, inferences in flight, telemetry.
//!
//! Inputs are `handle_*`, outputs are `poll_*`, time is an argument. One turn of its owner:
//!
//! 1. for each finished IN transfer: consume its bytes by [`Stick::read_want`] / [`Stick::handle_in`] /
//!    [`Stick::handle_tensor_in`];
//! 2. commands ([`Stick::load`], [`Stick::infer`], …) and [`Stick::handle_timeout`];
//! 3. [`Stick::poll_transmit`] until `None`: each becomes one or two OUT transfers, in this order;
//! 4. [`Stick::poll_event`] until `None`;
//! 5. wait, at most until [`Stick::poll_timeout`].
//!
//! Order is identity: the n-th output of a FIFO belongs to the n-th TRIGGER of its graph and to nothing else. What
//! casts doubt on that (a refused TRIGGER, an output of another length, a packet that nobody asked for, a missing
//! answer) ends the epoch with [`StickEvent::Failed`], and nothing is delivered after it.

mod close;
mod commands;
mod config;
mod event;
mod graphs;
mod jobs;
mod open;
mod tag;
mod telemetry;
// The pipeline is tested against the same peer.
#[cfg(test)]
pub(crate) mod tests;
mod unload;

use std::collections::VecDeque;

pub use config::{GraphKey, JobToken, LoadRequest, Ordering, StickConfig};
pub use event::{InlineBytes, ReadWant, SendPayload, StickError, StickEvent, Transmit};

use close::ClosePhase;
use commands::GraphCommands;
use graphs::GraphSlot;
use open::OpenPhase;
use tag::Tag;
use telemetry::DeviceCommands;

use crate::clock::Instant;
use crate::wire::{Capabilities, EventKind, Flags, HEADER_LEN, StreamId};
use crate::xlink::{Link, LinkError, LinkEvent, LinkFault, LinkWant};

/// Where the stick is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Connected,
    Opening(OpenPhase),
    Open,
    Closing(ClosePhase),
    Closed,
    Failed,
}

/// The output that is being received.
#[derive(Clone, Copy, Debug)]
struct IncomingOutput {
    graph: u32,
    token: JobToken,
}

/// Protocol engine of one stick.
#[derive(Debug)]
pub struct Stick {
    config: StickConfig,
    link: Link<SendPayload, Tag>,
    phase: Phase,
    events: VecDeque<StickEvent>,
    capabilities: Option<Capabilities>,
    device_monitor: Option<StreamId>,
    graph_monitor: Option<StreamId>,
    device: DeviceCommands,
    commands: GraphCommands,
    graphs: Vec<GraphSlot>,
    next_graph: u32,
    next_fifo: u32,
    incoming: Option<IncomingOutput>,
    /// `close` was called before the stick was open.
    close_wanted: bool,
}

impl Stick {
    /// A stick that was just connected. Nothing is sent before [`Stick::open`].
    pub fn new(config: StickConfig) -> Self {
        Stick {
            link: Link::new(config.link_timeout),
            config,
            phase: Phase::Connected,
            events: VecDeque::with_capacity(64),
            capabilities: None,
            device_monitor: None,
            graph_monitor: None,
            device: DeviceCommands::default(),
            commands: GraphCommands::default(),
            graphs: Vec::new(),
            next_graph: 0,
            next_fifo: 0,
            incoming: None,
            close_wanted: false,
        }
    }

    // ---- inputs -----------------------------------------------------------------------------------------------

    /// What the next bytes are.
    pub fn read_want(&self) -> ReadWant {
        match (self.link.want(), self.incoming) {
            (LinkWant::Header(missing), _) => ReadWant::Header { missing },
            (LinkWant::Element { offset, missing, .. }, Some(incoming)) => {
                ReadWant::Tensor { job: incoming.token, offset, missing }
            }
            (LinkWant::Packet(missing) | LinkWant::Element { missing, .. }, _) => {
                ReadWant::Packet { missing }
            }
        }
    }

    /// Bytes of headers and packets, at most until a tensor begins ([`Stick::read_want`] says when).
    pub fn handle_in(&mut self, bytes: &[u8], now: Instant) {
        let mut rest = bytes;
        while !rest.is_empty() && self.is_alive() {
            let (taken, event) = self.link.handle_in(rest, now);
            if taken == 0 {
                self.fail(StickError::Invalid("the owner gave an output's bytes to handle_in"));
            }
            rest = &rest[taken..];
            if let Some(event) = event {
                self.handle_link_event(event, now);
            }
            self.settle(now);
        }
    }

    /// `bytes` more bytes of the current tensor lie in the job's buffer.
    pub fn handle_tensor_in(&mut self, bytes: usize, now: Instant) {
        if !self.is_alive() {
            return;
        }
        if let Some(event) = self.link.handle_element_in(bytes) {
            self.handle_link_event(event, now);
        }
        self.settle(now);
    }

    /// The transport failed or the stick left the bus.
    pub fn handle_link_down(&mut self, now: Instant) {
        let _ = now;
        match self.phase {
            // RESET makes the stick leave, with or without an answer.
            Phase::Closing(ClosePhase::Reset { sent: true }) => self.closed(),
            _ => self.fail(StickError::Gone),
        }
    }

    /// Call when `now` has reached [`Stick::poll_timeout`]; harmless at other times.
    pub fn handle_timeout(&mut self, now: Instant) {
        if !self.is_alive() {
            return;
        }
        self.link.handle_timeout(now);
        self.judge_commands(now);
        self.judge_device(now);
        self.judge_jobs(now);
        self.ping_when_due(now);
        self.settle(now);
    }

    // ---- outputs ----------------------------------------------------------------------------------------------

    /// The next thing to send.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        if !self.is_alive() {
            return None;
        }
        let out = self.link.poll_transmit(now)?;
        match out.tag {
            Some(Tag::Command { seq, purpose }) => self.command_sent(seq, purpose),
            Some(Tag::Device(op)) => self.device.sent(op),
            Some(Tag::Input { graph, job }) => self.input_sent(graph, job, now),
            Some(Tag::Reset) => self.phase = Phase::Closing(ClosePhase::Reset { sent: true }),
            _ => {}
        }
        Some(Transmit { header: out.header, payload: out.payload.unwrap_or(SendPayload::None) })
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<StickEvent> {
        self.events.pop_front()
    }

    /// When [`Stick::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.is_alive() {
            return None;
        }
        let mut next = self.link.poll_timeout();
        for candidate in [self.commands_deadline(), self.device.deadline(), self.jobs_deadline()] {
            next = next.into_iter().chain(candidate).min();
        }
        next.into_iter().chain(self.ping_due()).min()
    }

    /// True when the stick has answered every command and ping. Inferences are not looked at.
    pub fn is_quiet(&self) -> bool {
        self.commands.is_idle() && self.device.is_quiet()
    }

    // ---- inside -----------------------------------------------------------------------------------------------

    fn is_alive(&self) -> bool {
        !matches!(self.phase, Phase::Closed | Phase::Failed)
    }

    /// Ends the epoch. Events that were earned before stay.
    fn fail(&mut self, error: StickError) {
        if !self.is_alive() {
            return;
        }
        self.phase = Phase::Failed;
        self.forget();
        self.events.push_back(StickEvent::Failed(error));
    }

    fn closed(&mut self) {
        self.phase = Phase::Closed;
        self.forget();
        self.events.push_back(StickEvent::Closed);
    }

    fn forget(&mut self) {
        self.link.kill();
        self.graphs.clear();
        self.commands = GraphCommands::default();
        self.device = DeviceCommands::default();
        self.incoming = None;
    }

    /// Until when a command that is given now has its reply: what lies before it on the wire has its time first.
    fn command_deadline(&self, now: Instant) -> Instant {
        self.link.wire_free(now) + self.config.command_timeout
    }

    /// Our own request was not taken by the link: a hole in this room's bookkeeping, said rather than panicked over.
    fn check(&mut self, step: &'static str, result: Result<(), LinkError>) {
        if let Err(error) = result {
            self.fail(StickError::Protocol { step, problem: error.to_string() });
        }
    }

    /// What has become possible since the last input.
    fn settle(&mut self, now: Instant) {
        if let Some(fault) = self.link.take_fault() {
            self.fail(error_of_fault(fault));
        }
        if !self.is_alive() {
            return;
        }
        self.finish_answered(now);
        self.unload_drained(now);
        self.load_next(now);
        self.advance_closing(now);
    }

    fn handle_link_event(&mut self, event: LinkEvent<Tag>, now: Instant) {
        match event {
            LinkEvent::Answered(tag) => self.handle_answer(tag, now),
            LinkEvent::Refused(tag, flags) => self.handle_create_refused(tag, flags, now),
            LinkEvent::Packet(stream) => {
                let packet = self.link.take_packet();
                self.handle_packet(stream, &packet, now);
                self.link.reuse_packet(packet);
            }
            LinkEvent::ElementBegun(stream, size) => self.output_begun(stream, size),
            LinkEvent::ElementDone(_) => self.output_done(now),
            LinkEvent::Released(stream) => self.input_released(stream),
        }
    }

    fn handle_answer(&mut self, tag: Tag, now: Instant) {
        match tag {
            Tag::Ping | Tag::CreateDeviceMonitor | Tag::CreateGraphMonitor => self.advance_opening(tag, now),
            Tag::Device(op) => self.device_acked(op, now),
            Tag::DeviceRelease(op) => self.device_released(op, now),
            Tag::Watchdog => self.device.pong(),
            Tag::Create { graph, part } => self.part_created(graph, part, now),
            Tag::Close { graph, part } => self.part_closed(graph, part, now),
            Tag::Command { seq, .. } => self.command_acked(seq, now),
            Tag::Follow { seq, .. } => self.follow_acked(seq, now),
            Tag::Release { seq, .. } => self.reply_released(seq, now),
            Tag::Input { graph, job } => self.input_acked(graph, job, now),
            Tag::OutputRelease { graph } => self.output_released(graph, now),
            Tag::Goodbye { graph } => self.goodbye_said(graph, now),
            Tag::CloseDeviceMonitor | Tag::CloseGraphMonitor | Tag::Reset => self.closing_answered(tag, now),
            Tag::Unwaited(_) => {}
        }
    }

    fn handle_create_refused(&mut self, tag: Tag, flags: Flags, now: Instant) {
        let step = tag.step();
        let error = if flags.contains(Flags::SIZE_TOO_BIG) && !flags.contains(Flags::NACK) {
            StickError::OutOfMemory { step }
        } else {
            StickError::Protocol { step, problem: format!("refused with flags {flags:?}") }
        };
        match tag {
            Tag::Create { graph, part } => self.part_refused(graph, part, error, now),
            _ => self.fail(error),
        }
    }

    fn handle_packet(&mut self, stream: StreamId, packet: &[u8], now: Instant) {
        if Some(stream) == self.device_monitor {
            self.device_reply(packet, now);
        } else if Some(stream) == self.graph_monitor {
            self.monitor_packet(packet, now);
        } else {
            self.buffer_packet(stream, packet, now);
        }
    }
}

fn error_of_fault(fault: LinkFault<Tag>) -> StickError {
    let step = |tag: Option<Tag>, kind: EventKind| match (tag, kind) {
        (Some(tag), _) => tag.step(),
        (None, EventKind::ReadRelease) => "release of a packet",
        (None, _) => "link",
    };
    match fault {
        LinkFault::Timeout { kind, tag, after } => StickError::Timeout { step: step(tag, kind), after },
        LinkFault::Refused { kind, tag, flags } => StickError::Protocol {
            step: step(tag, kind),
            problem: format!("{kind:?} refused with flags {flags:?}"),
        },
        LinkFault::Protocol(problem) => StickError::Protocol { step: "link", problem },
    }
}

const _: () = assert!(HEADER_LEN == 84, "variant V1 is the only one that this engine speaks");
