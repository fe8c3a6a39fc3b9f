//! The way out: graphs, then both monitors, then RESET.

use super::graphs::GraphPhase;
use super::tag::Tag;
use super::{Phase, Stick, StickError, StickEvent};
use crate::clock::Instant;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ClosePhase {
    /// Jobs are completed, graphs leave.
    Unloading,
    DeviceMonitor,
    GraphMonitor,
    Reset {
        sent: bool,
    },
}

impl Stick {
    /// Unloads everything, closes the streams, sends RESET: ends in `Closed` (or `Failed` by its deadlines).
    ///
    /// Jobs that were sent are completed; those that were not end as `Refused`, waiting loads as `LoadFailed`.
    pub fn close(&mut self, now: Instant) {
        match self.phase {
            Phase::Connected => self.send_reset(),
            Phase::Opening(_) => self.close_wanted = true,
            Phase::Open => {
                self.phase = Phase::Closing(ClosePhase::Unloading);
                self.drain_graphs();
                self.settle(now);
            }
            Phase::Closing(_) | Phase::Closed | Phase::Failed => {}
        }
    }

    fn drain_graphs(&mut self) {
        for slot in &mut self.graphs {
            for token in slot.jobs.take_unstarted() {
                let error = StickError::Invalid("the stick is being closed");
                self.events.push_back(StickEvent::Refused(token, error));
            }
            match slot.phase {
                GraphPhase::Ready => slot.phase = GraphPhase::Draining,
                GraphPhase::Queued => {
                    slot.phase = GraphPhase::Leaving;
                    slot.failure = Some(StickError::Invalid("the stick is being closed"));
                }
                // A load under way gives up after its present step.
                GraphPhase::Loading | GraphPhase::Draining | GraphPhase::Leaving => {}
            }
        }
    }

    fn send_reset(&mut self) {
        self.phase = Phase::Closing(ClosePhase::Reset { sent: false });
        self.link.reset(Tag::Reset);
    }

    /// Closes the monitors once nothing is left to say on them.
    pub(super) fn advance_closing(&mut self, now: Instant) {
        let idle = self.graphs.is_empty() && self.commands.is_idle() && self.device.is_idle();
        if self.phase == Phase::Closing(ClosePhase::Unloading) && idle {
            self.phase = Phase::Closing(ClosePhase::DeviceMonitor);
            self.stop_watchdog();
            self.close_monitor(Tag::CloseDeviceMonitor, now);
        }
    }

    pub(super) fn closing_answered(&mut self, tag: Tag, now: Instant) {
        match tag {
            Tag::CloseDeviceMonitor => {
                self.phase = Phase::Closing(ClosePhase::GraphMonitor);
                self.close_monitor(Tag::CloseGraphMonitor, now);
            }
            Tag::CloseGraphMonitor => self.send_reset(),
            Tag::Reset => self.closed(),
            _ => {}
        }
    }

    fn close_monitor(&mut self, tag: Tag, now: Instant) {
        let stream = match tag {
            Tag::CloseDeviceMonitor => self.device_monitor,
            _ => self.graph_monitor,
        };
        let deadline = now + self.config.link_timeout;
        if let Some(stream) = stream {
            let closed = self.link.close_stream(stream, tag, deadline, now);
            self.check(tag.step(), closed);
        }
    }
}
