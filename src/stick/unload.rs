//! Taking a graph off the stick: the vendor's order of goodbye, deallocations and closed streams. A failed load goes
//! the same way back, from as far as it came.

use super::commands::GraphReply;
use super::graphs::GraphPhase;
use super::tag::{Fifo, Part, Purpose, Tag};
use super::{GraphKey, InlineBytes, Phase, SendPayload, Stick, StickError, StickEvent};
use crate::clock::Instant;
use crate::wire::FIFO_GOODBYE;

impl Stick {
    /// Ends in `Unloaded`. Jobs in flight on it are completed first.
    pub fn unload(&mut self, key: GraphKey, now: Instant) -> Result<(), StickError> {
        let graph = self.ready_slot(key)?.graph;
        if self.phase != Phase::Open {
            return Err(StickError::Invalid("the stick is not open"));
        }
        if let Some(slot) = self.slot(graph) {
            slot.phase = GraphPhase::Draining;
        }
        self.settle(now);
        Ok(())
    }

    /// Starts the leave of graphs that have no job and no command left.
    pub(super) fn unload_drained(&mut self, now: Instant) {
        for at in 0..self.graphs.len() {
            let Some(slot) = self.graphs.get_mut(at) else { return };
            let idle = slot.jobs.is_empty() && !self.commands.concerns(slot.graph);
            if slot.phase == GraphPhase::Draining && idle {
                slot.phase = GraphPhase::Leaving;
                let graph = slot.graph;
                self.advance_unload(graph, now);
            }
        }
        // Loads that failed before anything of them was sent.
        while let Some(graph) = self
            .graphs
            .iter()
            .find(|s| s.phase == GraphPhase::Leaving && s.failure.is_some() && s.is_off_the_stick())
            .map(|s| s.graph)
        {
            self.advance_unload(graph, now);
        }
    }

    /// The next step of a leaving graph; each answer calls it again.
    pub(super) fn advance_unload(&mut self, graph: u32, now: Instant) {
        let deadline = self.command_deadline(now);
        let Some(at) = self.graphs.iter().position(|s| s.graph == graph) else { return };
        let slot = &self.graphs[at];
        if slot.input.allocated && !slot.goodbye_said {
            let (Some(stream), Some(bytes)) = (slot.input.stream, InlineBytes::new(&FIFO_GOODBYE)) else {
                return;
            };
            let tag = Tag::Goodbye { graph };
            let payload = SendPayload::Inline(bytes);
            let written = self.link.write(stream, FIFO_GOODBYE.len() as u32, payload, tag, deadline, now);
            return self.check(tag.step(), written);
        }
        for fifo in [Fifo::Input, Fifo::Output] {
            let slot = self.graphs[at].fifo(fifo);
            if slot.allocated {
                return self.push_command(Purpose::BufferDeallocate(fifo), graph, GraphReply::Nothing, now);
            }
            if let Some(stream) = slot.stream {
                let tag = Tag::Close { graph, part: Part::Fifo(fifo) };
                let closed = self.link.close_stream(stream, tag, deadline, now);
                return self.check(tag.step(), closed);
            }
        }
        let slot = &self.graphs[at];
        if slot.allocated {
            return self.push_command(Purpose::Deallocate, graph, GraphReply::Nothing, now);
        }
        if let Some(stream) = slot.buffer {
            let tag = Tag::Close { graph, part: Part::Buffer };
            let closed = self.link.close_stream(stream, tag, deadline, now);
            return self.check(tag.step(), closed);
        }
        let slot = self.graphs.remove(at);
        let key = slot.request.key;
        self.events.push_back(match slot.failure {
            Some(error) => StickEvent::LoadFailed(key, error),
            None => StickEvent::Unloaded(key),
        });
    }

    pub(super) fn goodbye_said(&mut self, graph: u32, now: Instant) {
        if let Some(slot) = self.slot(graph) {
            slot.goodbye_said = true;
        }
        self.advance_unload(graph, now);
    }

    pub(super) fn unload_step_done(
        &mut self,
        purpose: Purpose,
        graph: u32,
        refused: Option<StickError>,
        now: Instant,
    ) {
        let Some(slot) = self.slot(graph) else { return };
        // After a failed load the stick may have given the memory back by itself: a refusal is then no news.
        if let (Some(error), None) = (refused, &slot.failure) {
            return self.fail(error);
        }
        match purpose {
            Purpose::BufferDeallocate(fifo) => slot.fifo(fifo).allocated = false,
            _ => slot.allocated = false,
        }
        self.advance_unload(graph, now);
    }

    pub(super) fn part_closed(&mut self, graph: u32, part: Part, now: Instant) {
        if let Some(slot) = self.slot(graph) {
            match part {
                Part::Buffer => slot.buffer = None,
                Part::Fifo(fifo) => slot.fifo(fifo).stream = None,
            }
        }
        self.advance_unload(graph, now);
    }
}
