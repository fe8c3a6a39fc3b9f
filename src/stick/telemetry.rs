//! `deviceMonitor`: commands one at a time, their replies in order, and the watchdog's pings between them.

use std::collections::VecDeque;
use std::time::Duration;

use super::close::ClosePhase;
use super::commands::GraphReply;
use super::tag::{DeviceOp, Purpose, Tag};
use super::{GraphKey, InlineBytes, Ordering, Phase, SendPayload, Stick, StickError, StickEvent};
use crate::clock::Instant;
use crate::wire::{DEVICE_COMMAND_LEN, DeviceCommand, ThermalStats};
use crate::xlink::MAX_PACKET_BYTES;

/// Commands on `deviceMonitor`: the front one is under way, the others wait.
#[derive(Debug, Default)]
pub(super) struct DeviceCommands {
    queue: VecDeque<DeviceExchange>,
    /// When the next ping is due; `None` before the monitor is open, and without a watchdog.
    ping_due: Option<Instant>,
    ping_outstanding: bool,
}

#[derive(Debug)]
struct DeviceExchange {
    op: DeviceOp,
    sent: bool,
    acked: bool,
    replied: bool,
    /// The reply was given back, and under vendor order that was acknowledged.
    release: Release,
    deadline: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Release {
    NotYet,
    Asked,
    Done,
}

impl DeviceCommands {
    /// A command left for the stick.
    pub(super) fn sent(&mut self, op: DeviceOp) {
        if let Some(front) = self.queue.front_mut().filter(|front| front.op == op) {
            front.sent = true;
        }
    }

    pub(super) fn pong(&mut self) {
        self.ping_outstanding = false;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Idle, and the last ping was answered.
    pub(super) fn is_quiet(&self) -> bool {
        self.is_idle() && !self.ping_outstanding
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.queue.front()?.deadline
    }
}

impl Stick {
    /// Asks for temperatures and throttle level; answered by `Thermal`. Requests that wait for their turn are
    /// merged. Ignored unless the stick is open.
    pub fn request_thermal(&mut self, now: Instant) {
        self.request_telemetry(DeviceOp::Thermal, now);
    }

    /// Asks for the memory in use; answered by `UsedMemory`. As [`Stick::request_thermal`].
    pub fn request_used_memory(&mut self, now: Instant) {
        self.request_telemetry(DeviceOp::UsedMemory, now);
    }

    /// Asks for the stage times of the graph's latest inference; answered by `Timing`. They belong to no certain job.
    pub fn request_timing(&mut self, key: GraphKey, now: Instant) -> Result<(), StickError> {
        let slot = self.ready_slot(key)?;
        let stages = slot.request.stages;
        if slot.stages != Some(stages) {
            return Err(StickError::Invalid("the stick counts other stages than the blob"));
        }
        let bytes = stages.checked_add(2).and_then(|n| n.checked_mul(4)).filter(|&n| n <= MAX_PACKET_BYTES);
        let Some(bytes) = bytes else {
            return Err(StickError::Invalid("more stages than a timing packet can tell"));
        };
        let graph = slot.graph;
        self.push_command(Purpose::Timing, graph, GraphReply::Timing { bytes }, now);
        self.settle(now);
        Ok(())
    }

    /// Asks for the graph's debug text; answered by `Debug`.
    pub fn request_debug(&mut self, key: GraphKey, now: Instant) -> Result<(), StickError> {
        let graph = self.ready_slot(key)?.graph;
        self.push_command(Purpose::Debug, graph, GraphReply::Debug, now);
        self.settle(now);
        Ok(())
    }

    fn request_telemetry(&mut self, op: DeviceOp, now: Instant) {
        if self.phase != Phase::Open || self.device.queue.iter().skip(1).any(|e| e.op == op) {
            return;
        }
        self.push_device(op, now);
        self.settle(now);
    }

    pub(super) fn push_device(&mut self, op: DeviceOp, now: Instant) {
        self.device.queue.push_back(DeviceExchange {
            op,
            sent: false,
            acked: false,
            replied: false,
            release: Release::NotYet,
            deadline: None,
        });
        if self.device.queue.len() == 1 {
            self.start_device(now);
        }
    }

    fn start_device(&mut self, now: Instant) {
        let deadline = self.command_deadline(now);
        let Some(front) = self.device.queue.front_mut() else { return };
        front.deadline = Some(deadline);
        let op = front.op;
        self.write_device(command_of(op, self.config.power), Tag::Device(op), deadline, now);
    }

    fn write_device(&mut self, command: DeviceCommand, tag: Tag, deadline: Instant, now: Instant) {
        let (Some(stream), Some(bytes)) = (self.device_monitor, InlineBytes::new(&command.encode())) else {
            return;
        };
        let payload = SendPayload::Inline(bytes);
        let written = self.link.write(stream, DEVICE_COMMAND_LEN as u32, payload, tag, deadline, now);
        self.check(tag.step(), written);
    }

    pub(super) fn device_acked(&mut self, op: DeviceOp, now: Instant) {
        if let Some(front) = self.device.queue.front_mut().filter(|front| front.op == op) {
            front.acked = true;
        }
        self.advance_device(now);
    }

    pub(super) fn device_released(&mut self, op: DeviceOp, now: Instant) {
        if let Some(front) = self.device.queue.front_mut().filter(|front| front.op == op) {
            front.release = Release::Done;
        }
        self.advance_device(now);
    }

    /// A packet on `deviceMonitor`: the reply to the command under way, or a fault.
    pub(super) fn device_reply(&mut self, packet: &[u8], now: Instant) {
        let front = self.device.queue.front_mut().filter(|front| front.sent && !front.replied);
        let expected = front.as_ref().and_then(|front| command_of(front.op, Default::default()).reply_len());
        let (Some(front), Some(expected)) = (front, expected) else {
            return self.fail(StickError::Protocol {
                step: "deviceMonitor",
                problem: format!("{} bytes that nobody asked for", packet.len()),
            });
        };
        let op = front.op;
        front.replied = true;
        if packet.len() != expected {
            return self.fail(StickError::Protocol {
                step: op.step(),
                problem: format!("a reply of {} bytes, expected {expected}", packet.len()),
            });
        }
        match op {
            DeviceOp::Capabilities => self.capabilities_came(packet),
            DeviceOp::Thermal => match ThermalStats::parse(packet) {
                Ok(stats) => self.events.push_back(StickEvent::Thermal(stats)),
                Err(error) => {
                    self.fail(StickError::Protocol { step: op.step(), problem: error.to_string() });
                }
            },
            DeviceOp::UsedMemory => {
                let bytes = packet.first_chunk().copied().map_or(0, u32::from_le_bytes);
                self.events.push_back(StickEvent::UsedMemory(bytes));
            }
            DeviceOp::SetPower | DeviceOp::AsyncDma => {}
        }
        self.advance_device(now);
    }

    fn advance_device(&mut self, now: Instant) {
        if !self.is_alive() {
            return;
        }
        let Some(stream) = self.device_monitor else { return };
        let Some(front) = self.device.queue.front_mut().filter(|front| front.acked) else { return };
        let op = front.op;
        if command_of(op, self.config.power).reply_len().is_some() {
            if !front.replied {
                return;
            }
            if front.release == Release::NotYet {
                front.release = match self.config.ordering {
                    Ordering::Vendor => Release::Asked,
                    Ordering::Pipelined => Release::Done,
                };
                let released = self.link.release(stream, Some(Tag::DeviceRelease(op)));
                self.check(op.step(), released);
            }
        } else {
            front.release = Release::Done;
        }
        if self.device.queue.front().is_none_or(|front| front.release != Release::Done) {
            return;
        }
        self.device.queue.pop_front();
        self.start_device(now);
        self.advance_opening_command(op, now);
    }

    /// Is the command under way late?
    pub(super) fn judge_device(&mut self, now: Instant) {
        let late = self.device.queue.front().filter(|front| front.deadline.is_some_and(|d| d <= now));
        if let Some(front) = late {
            let step = front.op.step();
            self.fail(StickError::Timeout { step, after: self.config.command_timeout });
        }
    }

    // ---- watchdog ---------------------------------------------------------------------------------------------

    /// The first ping goes out while the capabilities are being read, as the vendor's.
    pub(super) fn start_watchdog(&mut self, now: Instant) {
        if self.config.watchdog.is_some() {
            self.device.ping_due = Some(now);
            self.ping_when_due(now);
        }
    }

    pub(super) fn ping_due(&self) -> Option<Instant> {
        self.device.ping_due
    }

    pub(super) fn stop_watchdog(&mut self) {
        self.device.ping_due = None;
    }

    pub(super) fn ping_when_due(&mut self, now: Instant) {
        let (Some(due), Some(period)) = (self.device.ping_due, self.config.watchdog) else { return };
        let pinging =
            matches!(self.phase, Phase::Opening(_) | Phase::Open | Phase::Closing(ClosePhase::Unloading));
        if due > now || !pinging {
            return;
        }
        // No burst after a late turn, and a phase that does not drift.
        let period = period.max(Duration::from_millis(1));
        let missed = (now - due).as_nanos() / period.as_nanos();
        let missed = u32::try_from(missed).unwrap_or(u32::MAX - 1);
        self.device.ping_due = Some(due + period.saturating_mul(missed + 1));
        // A ping that is still under way is judged by the link's own deadline.
        if !self.device.ping_outstanding {
            self.device.ping_outstanding = true;
            let deadline = now + self.config.link_timeout;
            self.write_device(DeviceCommand::WatchdogPing, Tag::Watchdog, deadline, now);
        }
    }
}

fn command_of(op: DeviceOp, power: crate::wire::PowerConfig) -> DeviceCommand {
    match op {
        DeviceOp::Capabilities => DeviceCommand::Capabilities,
        DeviceOp::Thermal => DeviceCommand::ThermalStats,
        DeviceOp::UsedMemory => DeviceCommand::UsedMemory,
        DeviceOp::SetPower => DeviceCommand::SetPower(power),
        DeviceOp::AsyncDma => DeviceCommand::AsyncDma(true),
    }
}
