//! Bring-up, in the vendor's order (without its pause of one second after the pong).

use super::tag::{DeviceOp, Tag};
use super::{Phase, Stick, StickError, StickEvent};
use crate::clock::Instant;
use crate::wire::{Capabilities, StreamName};
use crate::xlink::Accept;

/// Credit on `deviceMonitor`, bytes (the vendor's 2000, rounded up).
const DEVICE_MONITOR_BYTES: u32 = 2048;
/// Credit on `graphMonitor`, bytes.
const GRAPH_MONITOR_BYTES: u32 = 4096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OpenPhase {
    Ping,
    DeviceMonitor,
    Capabilities,
    GraphMonitor,
    Power,
    AsyncDma,
}

impl Stick {
    /// PING, monitors, capabilities, power: ends in `Opened` or `Failed`.
    pub fn open(&mut self, now: Instant) {
        if self.phase == Phase::Connected {
            self.phase = Phase::Opening(OpenPhase::Ping);
            self.link.ping(Tag::Ping);
            self.settle(now);
        }
    }

    /// A link answer of the bring-up came.
    pub(super) fn advance_opening(&mut self, answered: Tag, now: Instant) {
        match answered {
            Tag::Ping => {
                self.phase = Phase::Opening(OpenPhase::DeviceMonitor);
                self.device_monitor =
                    self.open_monitor("deviceMonitor", DEVICE_MONITOR_BYTES, Tag::CreateDeviceMonitor);
            }
            Tag::CreateDeviceMonitor => {
                self.phase = Phase::Opening(OpenPhase::Capabilities);
                self.push_device(DeviceOp::Capabilities, now);
                self.start_watchdog(now);
            }
            Tag::CreateGraphMonitor => {
                self.phase = Phase::Opening(OpenPhase::Power);
                self.push_device(DeviceOp::SetPower, now);
            }
            _ => {}
        }
    }

    /// A device command of the bring-up is complete.
    pub(super) fn advance_opening_command(&mut self, done: DeviceOp, now: Instant) {
        match done {
            DeviceOp::Capabilities => {
                self.phase = Phase::Opening(OpenPhase::GraphMonitor);
                self.graph_monitor =
                    self.open_monitor("graphMonitor", GRAPH_MONITOR_BYTES, Tag::CreateGraphMonitor);
            }
            DeviceOp::SetPower => {
                self.phase = Phase::Opening(OpenPhase::AsyncDma);
                self.push_device(DeviceOp::AsyncDma, now);
            }
            DeviceOp::AsyncDma => {
                let Some(capabilities) = self.capabilities else { return };
                self.phase = Phase::Open;
                self.events.push_back(StickEvent::Opened(capabilities));
                if self.close_wanted {
                    self.close(now);
                }
            }
            DeviceOp::Thermal | DeviceOp::UsedMemory => {}
        }
    }

    /// Judges the reply to GET_CAPABILITIES.
    pub(super) fn capabilities_came(&mut self, packet: &[u8]) {
        let step = DeviceOp::Capabilities.step();
        match Capabilities::parse(packet) {
            Ok(capabilities) => match capabilities.fw_version[1] {
                Capabilities::CHIP_MYRIAD_X => self.capabilities = Some(capabilities),
                Capabilities::CHIP_MYRIAD_2 => self.fail(StickError::Protocol {
                    step,
                    problem:
                        "chip 0x2450 is a Myriad 2, the first stick; only Myriad X (0x2480) is driven here"
                            .into(),
                }),
                chip => self.fail(StickError::Protocol {
                    step,
                    problem: format!("unknown chip {chip:#x}, expected Myriad X (0x2480)"),
                }),
            },
            Err(error) => self.fail(StickError::Protocol { step, problem: error.to_string() }),
        }
    }

    fn open_monitor(&mut self, name: &str, credit: u32, tag: Tag) -> Option<crate::wire::StreamId> {
        let opened = StreamName::new(name)
            .ok()
            .and_then(|name| self.link.open_stream(name, credit, Accept::Packets, tag).ok());
        if opened.is_none() {
            self.fail(StickError::OutOfMemory { step: tag.step() });
        }
        opened
    }
}
