//! `graphMonitor`: graph commands in order, each with its reply. Under vendor order one at a time, each step waiting
//! for the one before; pipelined, a command goes out at once and only its reply waits for its turn.

use std::collections::VecDeque;

use super::tag::{Purpose, Tag};
use super::{InlineBytes, Ordering, SendPayload, Stick, StickError, StickEvent};
use crate::clock::Instant;
use crate::wire::{DEBUG_DATA_LEN, STATUS_LEN, Status, StreamId, VERIFY_HEADER_LEN};
use crate::xlink::{Link, LinkError};

/// What comes before the status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum GraphReply {
    Nothing,
    /// Two descriptors and the stage count, on `graphBuffer`.
    Descriptors,
    /// Stage times, on `graphMonitor`.
    Timing {
        bytes: u32,
    },
    /// Text, on `graphMonitor`.
    Debug,
}

impl GraphReply {
    fn packets(self) -> u8 {
        match self {
            GraphReply::Nothing => 0,
            GraphReply::Descriptors => 3,
            GraphReply::Timing { .. } | GraphReply::Debug => 1,
        }
    }

    /// Bytes of the data packet on `graphMonitor`, if there is one.
    fn monitor_bytes(self) -> Option<usize> {
        match self {
            GraphReply::Nothing | GraphReply::Descriptors => None,
            GraphReply::Timing { bytes } => Some(bytes as usize),
            GraphReply::Debug => Some(DEBUG_DATA_LEN),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Waits for its turn.
    Waiting,
    /// The command was given to the link; its acknowledgement is due.
    Command,
    /// The blob or its header was given to the link; its acknowledgement is due.
    Follow,
    /// Replies are read and released.
    Reply,
}

/// One command and its answer.
#[derive(Debug)]
pub(super) struct Exchange {
    purpose: Purpose,
    graph: u32,
    reply: GraphReply,
    step: Step,
    /// The command's header left for the stick: replies may come.
    sent: bool,
    arrived: u8,
    released: u8,
    status: Option<Status>,
    status_released: bool,
    /// A release whose acknowledgement is waited for.
    releasing: bool,
    data: Option<StickEvent>,
    deadline: Option<Instant>,
}

impl Exchange {
    fn is_refused(&self) -> bool {
        self.status.is_some_and(|status| status != Status::Ok)
    }
}

/// Commands in order; those before the first are done.
#[derive(Debug, Default)]
pub(super) struct GraphCommands {
    queue: VecDeque<Exchange>,
    first: u64,
}

impl GraphCommands {
    fn by_seq(&mut self, seq: u64) -> Option<&mut Exchange> {
        self.queue.get_mut(usize::try_from(seq.checked_sub(self.first)?).ok()?)
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.queue.capacity()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// True while a command of this graph is under way or waits.
    pub(super) fn concerns(&self, graph: u32) -> bool {
        self.queue.iter().any(|e| e.graph == graph)
    }
}

impl Stick {
    pub(super) fn push_command(&mut self, purpose: Purpose, graph: u32, reply: GraphReply, now: Instant) {
        self.commands.queue.push_back(Exchange {
            purpose,
            graph,
            reply,
            step: Step::Waiting,
            sent: false,
            arrived: 0,
            released: 0,
            status: None,
            status_released: false,
            releasing: false,
            data: None,
            deadline: None,
        });
        if self.config.ordering == Ordering::Pipelined {
            self.start_command(self.commands.queue.len() - 1, now);
        }
        self.advance_commands(now);
    }

    fn start_command(&mut self, at: usize, now: Instant) {
        let ordering = self.config.ordering;
        let Some(exchange) = self.commands.queue.get_mut(at) else { return };
        let (purpose, graph) = (exchange.purpose, exchange.graph);
        let does_not_wait = ordering == Ordering::Pipelined && matches!(purpose, Purpose::Trigger(_));
        exchange.step = if does_not_wait { Step::Reply } else { Step::Command };
        let seq = self.commands.first + at as u64;
        let Some(command) = self.encode_command(purpose, graph) else {
            return self
                .fail(StickError::Protocol { step: purpose.step(), problem: "its graph is gone".into() });
        };
        let Some(monitor) = self.graph_monitor else { return };
        let deadline = self.command_deadline(now);
        let written = self.link.write(
            monitor,
            command.as_slice().len() as u32,
            SendPayload::Inline(command),
            Tag::Command { seq, purpose },
            deadline,
            now,
        );
        self.check(purpose.step(), written);
    }

    /// The command's header left for the stick.
    pub(super) fn command_sent(&mut self, seq: u64, purpose: Purpose) {
        if let Some(exchange) = self.commands.by_seq(seq) {
            exchange.sent = true;
            let graph = exchange.graph;
            if let Purpose::Trigger(job) = purpose {
                self.trigger_sent(graph, job);
            }
        }
    }

    pub(super) fn command_acked(&mut self, seq: u64, now: Instant) {
        let Some(exchange) = self.commands.by_seq(seq).filter(|e| e.step == Step::Command) else { return };
        let (purpose, graph) = (exchange.purpose, exchange.graph);
        exchange.step = match purpose {
            Purpose::Verify | Purpose::Allocate => Step::Follow,
            _ => Step::Reply,
        };
        if exchange.step == Step::Follow {
            let written = self.write_follow(seq, purpose, graph, now);
            self.check(Tag::Follow { seq, purpose }.step(), written);
        }
        self.advance_commands(now);
    }

    /// VERIFY is followed by the blob's header, ALLOCATE by the whole blob.
    fn write_follow(
        &mut self,
        seq: u64,
        purpose: Purpose,
        graph: u32,
        now: Instant,
    ) -> Result<(), LinkError> {
        let slot = self.graphs.iter().find(|s| s.graph == graph).ok_or(LinkError::NoSuchStream)?;
        let stream = slot.buffer.ok_or(LinkError::NoSuchStream)?;
        let deadline = self.command_deadline(now);
        let (size, payload) = match purpose {
            Purpose::Verify => {
                let header = InlineBytes::new(&slot.request.header).ok_or(LinkError::TooLong)?;
                (VERIFY_HEADER_LEN as u32, SendPayload::Inline(header))
            }
            _ => (slot.request.blob_bytes, SendPayload::Blob(slot.request.key)),
        };
        self.link.write(stream, size, payload, Tag::Follow { seq, purpose }, deadline, now)
    }

    pub(super) fn follow_acked(&mut self, seq: u64, now: Instant) {
        if let Some(exchange) = self.commands.by_seq(seq).filter(|e| e.step == Step::Follow) {
            exchange.step = Step::Reply;
        }
        self.advance_commands(now);
    }

    pub(super) fn reply_released(&mut self, seq: u64, now: Instant) {
        if let Some(exchange) = self.commands.by_seq(seq) {
            exchange.releasing = false;
        }
        self.advance_commands(now);
    }

    /// A packet on `graphMonitor` belongs to the first command that has no status yet: the stick answers in order.
    pub(super) fn monitor_packet(&mut self, packet: &[u8], now: Instant) {
        let Some(exchange) = self.commands.queue.iter_mut().find(|e| e.status.is_none()).filter(|e| e.sent)
        else {
            return self.fail(StickError::Protocol {
                step: "graphMonitor",
                problem: format!("{} bytes that nobody asked for", packet.len()),
            });
        };
        let purpose = exchange.purpose;
        let data_due = exchange.arrived < exchange.reply.packets();
        let wrong = |expected: usize| StickError::Protocol {
            step: purpose.reply_step(),
            problem: format!("a packet of {} bytes, expected {expected}", packet.len()),
        };
        match exchange.reply.monitor_bytes().filter(|_| data_due) {
            Some(expected) if packet.len() == expected => {
                exchange.arrived += 1;
                let (graph, reply) = (exchange.graph, exchange.reply);
                let data = self.graph_key(graph).map(|key| match reply {
                    GraphReply::Debug => StickEvent::Debug(key, debug_text(packet)),
                    _ => StickEvent::Timing(key, floats(packet)),
                });
                if let Some(exchange) = self.commands.queue.iter_mut().find(|e| e.status.is_none()) {
                    exchange.data = data;
                }
            }
            due => match Status::parse(packet) {
                Ok(status) if due.is_none() || status != Status::Ok => exchange.status = Some(status),
                _ => return self.fail(wrong(due.unwrap_or(STATUS_LEN))),
            },
        }
        self.advance_commands(now);
    }

    /// A data packet of ALLOCATE on `graphBuffer`, or one that a failed load left under way.
    pub(super) fn buffer_packet(&mut self, stream: StreamId, packet: &[u8], now: Instant) {
        let Some(at) = self.graphs.iter().position(|s| s.buffer == Some(stream)) else {
            return self.fail(StickError::Protocol {
                step: "link",
                problem: format!("{} bytes on stream {stream}, where none are due", packet.len()),
            });
        };
        let slot = &mut self.graphs[at];
        let graph = slot.graph;
        let exchange = self
            .commands
            .queue
            .iter_mut()
            .find(|e| e.graph == graph && e.purpose == Purpose::Allocate)
            .filter(|e| e.sent && e.arrived < e.reply.packets());
        let Some(exchange) = exchange else {
            if slot.failure.is_some() {
                let released = self.link.release(stream, Some(Tag::Unwaited("release of a late descriptor")));
                return self.check("ALLOCATE", released);
            }
            return self.fail(StickError::Protocol {
                step: "graphBuffer",
                problem: format!("{} bytes that nobody asked for", packet.len()),
            });
        };
        let taken = slot.take_description(exchange.arrived, packet);
        exchange.arrived += 1;
        if let Err(error) = taken {
            return self.fail(StickError::Protocol { step: "ALLOCATE", problem: error.to_string() });
        }
        self.advance_commands(now);
    }

    pub(super) fn advance_commands(&mut self, now: Instant) {
        while self.is_alive() {
            match self.commands.queue.front() {
                None => return,
                Some(front) if front.step == Step::Waiting => self.start_command(0, now),
                Some(_) => {}
            }
            if !self.advance_front(now) {
                return;
            }
            let Some(done) = self.commands.queue.pop_front() else { return };
            self.commands.first += 1;
            self.command_done(done, now);
        }
    }

    /// Reads and releases what the front command's reply has brought. True when it is complete.
    fn advance_front(&mut self, now: Instant) -> bool {
        let vendor = self.config.ordering == Ordering::Vendor;
        let seq = self.commands.first;
        let due = self.command_deadline(now);
        loop {
            let Some(front) = self.commands.queue.front_mut() else { return false };
            if front.deadline.is_none() {
                let upload = match front.purpose {
                    Purpose::Allocate => self
                        .graphs
                        .iter()
                        .find(|s| s.graph == front.graph)
                        .map_or(0, |s| u64::from(s.request.blob_bytes)),
                    _ => 0,
                };
                front.deadline = Some(due + Link::<SendPayload, Tag>::wire_time(upload));
            }
            if front.step != Step::Reply || front.releasing {
                return false;
            }
            let (purpose, graph) = (front.purpose, front.graph);
            let stream = if front.released < front.arrived {
                front.released += 1;
                match front.reply {
                    GraphReply::Descriptors => {
                        self.graphs.iter().find(|s| s.graph == graph).and_then(|s| s.buffer)
                    }
                    _ => self.graph_monitor,
                }
            } else if front.status.is_none() || (front.arrived < front.reply.packets() && !front.is_refused())
            {
                return false;
            } else if !front.status_released {
                front.status_released = true;
                self.graph_monitor
            } else {
                return true;
            };
            front.releasing = vendor;
            let released = match stream {
                Some(stream) => self.link.release(stream, Some(Tag::Release { seq, purpose })),
                None => Err(LinkError::NoSuchStream),
            };
            self.check(purpose.step(), released);
            if !self.is_alive() {
                return false;
            }
        }
    }

    fn command_done(&mut self, done: Exchange, now: Instant) {
        let status = done.status.unwrap_or(Status::Ok);
        let refused = done.is_refused().then(|| StickError::Status { step: done.purpose.step(), status });
        match done.purpose {
            Purpose::Verify | Purpose::Allocate | Purpose::AllocationVerify | Purpose::BufferAllocate(_) => {
                self.load_step_done(done.purpose, done.graph, status, now)
            }
            Purpose::Trigger(job) => match refused {
                Some(error) => self.fail(error),
                None => self.triggered(done.graph, job, now),
            },
            Purpose::Timing | Purpose::Debug => match (refused, done.data) {
                (None, Some(data)) => self.events.push_back(data),
                (Some(error), _) => self.fail(error),
                (None, None) => {}
            },
            Purpose::BufferDeallocate(_) | Purpose::Deallocate => {
                self.unload_step_done(done.purpose, done.graph, refused, now);
            }
        }
    }

    pub(super) fn commands_deadline(&self) -> Option<Instant> {
        self.commands.queue.front()?.deadline
    }

    /// Is the command under way late?
    pub(super) fn judge_commands(&mut self, now: Instant) {
        let late = self.commands.queue.front().filter(|front| front.deadline.is_some_and(|d| d <= now));
        if let Some(front) = late {
            let step = front.purpose.reply_step();
            self.fail(StickError::Timeout { step, after: self.config.command_timeout });
        }
    }
}

fn floats(packet: &[u8]) -> Vec<f32> {
    packet.as_chunks::<4>().0.iter().map(|raw| f32::from_le_bytes(*raw)).collect()
}

/// Text up to the first NUL; what is no UTF-8 is shown as such.
fn debug_text(packet: &[u8]) -> String {
    let text = packet.split(|&b| b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}
