//! From a trigger to its output: which run starts when, and which result goes next.

use ncs2::clock::Instant;
use ncs2::wire::{FifoDirection, Status};

use super::{Graphs, LoadedGraph};
use crate::behaviour::{InputRelease, RefusedInput};
use crate::cost::GraphCost;
use crate::fault_plan::FaultKind;
use crate::link::{Body, Link};
use crate::run::{Progress, Run};
use crate::work::{Task, Work};
use crate::{Engine, Timing, hash};

/// Triggers that may wait on one stick; more are refused with "out of resources".
const MAX_RUNS: usize = 256;
/// Results of one FIFO that may be computed ahead of the host's releases.
const MAX_RESULTS: usize = 64;

impl Graphs {
    pub(super) fn trigger(&mut self, graph: u32, input_fifo: u32, output_fifo: u32) -> Result<u64, Status> {
        let prepared = self.graph(graph).and_then(LoadedGraph::prepared).ok_or(Status::InvalidHandle)?;
        let input = self.fifo(input_fifo, FifoDirection::Input).ok_or(Status::InvalidHandle)?;
        let output = self.fifo(output_fifo, FifoDirection::Output).ok_or(Status::InvalidHandle)?;
        if input.element_bytes != prepared.input_bytes || output.element_bytes < prepared.output_bytes {
            return Err(Status::NullParameter);
        }
        if self.runs.len() >= MAX_RUNS {
            return Err(Status::OutOfResources);
        }
        let id = self.next_run;
        self.next_run += 1;
        self.runs.push_back(Run {
            id,
            graph,
            input_fifo,
            output_fifo,
            progress: Progress::Queued,
            computed: false,
            elapsed: false,
            released: false,
            output: None,
            fault: None,
        });
        Ok(id)
    }

    pub(super) fn refuse_input(&mut self, fifo: u32, link: &mut Link, now: Instant) {
        if self.config.profile.firmware.refused_input == RefusedInput::Keep {
            return;
        }
        let queued =
            self.runs.iter().filter(|r| r.input_fifo == fifo && r.progress == Progress::Queued).count();
        let Some(fifo) = self.fifos.iter_mut().find(|f| f.id == fifo) else { return };
        // The oldest ones belong to triggers that were accepted before.
        if let Some(element) = fifo.waiting.remove(queued) {
            link.give_vec(element.bytes);
            if let Some(slot) = fifo.slot {
                link.release(slot, now);
            }
        }
    }

    /// Starts what has its input and an executor. Graphs take turns in trigger order: the first run that waits for
    /// SHAVEs or CMX of others holds up those behind it.
    pub(super) fn start_runs(&mut self, link: &mut Link, now: Instant) -> bool {
        let speed = &self.config.profile.timing;
        let mut progress = false;
        let mut at = 0;
        while at < self.runs.len() {
            let run = &self.runs[at];
            let (id, graph_id, input_id, output_id) = (run.id, run.graph, run.input_fifo, run.output_fifo);
            if run.progress != Progress::Queued {
                at += 1;
                continue;
            }
            at += 1;
            let overtakes = self.runs.iter().take(at - 1).any(|r| {
                r.progress == Progress::Queued
                    && (r.graph == graph_id || r.input_fifo == input_id || r.output_fifo == output_id)
            });
            let Some(graph) = self.graphs.iter_mut().find(|g| g.id == graph_id) else { continue };
            if overtakes || graph.running >= graph.executors {
                continue;
            }
            let results = self
                .runs
                .iter()
                .filter(|r| r.output_fifo == output_id && r.progress == Progress::Running)
                .count();
            let Some(fifo) = self.fifos.iter_mut().find(|f| f.id == input_id) else { continue };
            let Some(prepared) = graph.prepared().cloned() else { continue };
            if results >= MAX_RESULTS || fifo.waiting.is_empty() {
                continue;
            }
            if self.config.timing == Timing::Model {
                let (shaves, cmx) = self.executors.occupied();
                let free = (speed.shaves.saturating_sub(shaves), speed.cmx_slices.saturating_sub(cmx));
                if !fits(&prepared.cost, free.0, free.1) {
                    return progress;
                }
            }
            let Some(element) = fifo.waiting.pop_front() else { continue };
            graph.running += 1;
            let slot = fifo.slot;
            let mut output = link.take_vec();
            output.resize(prepared.output_bytes, 0);
            let run = &mut self.runs[at - 1];
            run.progress = Progress::Running;
            match self.config.engine {
                Engine::Hash => {
                    hash::output_of_sample(&prepared.hash, element.wire_bytes, &element.bytes, &mut output);
                    link.give_vec(element.bytes);
                    run.output = Some(output);
                    run.computed = true;
                }
                Engine::Execute => self.work.push_back(Work {
                    epoch: self.epoch,
                    run: id,
                    task: Task::Execute { graph: prepared.clone(), input: element.bytes, output },
                }),
            }
            match self.config.timing {
                Timing::Zero => run.elapsed = true,
                Timing::Model => self.executors.start(id, &prepared.cost),
            }
            if self.config.profile.firmware.input_release == InputRelease::Start {
                run.released = true;
                if let Some(slot) = slot {
                    link.release(slot, now);
                }
            }
            progress = true;
        }
        progress
    }

    /// Sends the results that are the oldest of their FIFO.
    pub(super) fn send_outputs(&mut self, link: &mut Link, now: Instant) -> bool {
        let mut progress = false;
        let mut at = 0;
        while at < self.runs.len() {
            let run = &self.runs[at];
            let cancelled = run.progress == Progress::Cancelled && run.computed && run.elapsed;
            let first = !self.runs.iter().take(at).any(|r| r.output_fifo == run.output_fifo);
            if !(cancelled || first && run.is_done() && !self.hold_results) {
                at += 1;
                continue;
            }
            let Some(run) = self.runs.remove(at) else { break };
            progress = true;
            if let Some(graph) = self.graphs.iter_mut().find(|g| g.id == run.graph) {
                graph.running = graph.running.saturating_sub(1);
            }
            let Some(mut output) = run.output else { continue };
            if cancelled {
                link.give_vec(output);
                continue;
            }
            self.inferences += 1;
            let slot_of = |id: u32| self.fifos.iter().find(|f| f.id == id).and_then(|f| f.slot);
            if !run.released
                && let Some(slot) = slot_of(run.input_fifo)
            {
                match run.fault {
                    Some((FaultKind::LateRelease, by)) => self.late_releases.push_back((now + by, slot)),
                    _ => link.release(slot, now),
                }
            }
            let kind = run.fault.map(|(kind, _)| kind);
            if kind == Some(FaultKind::ShortOutput) {
                output.truncate(output.len() / 2);
            }
            match slot_of(run.output_fifo).filter(|_| kind != Some(FaultKind::NoOutput)) {
                Some(slot) => {
                    let piece = self.config.profile.firmware.output_piece_bytes as usize;
                    link.write(slot, Body::Owned(output), piece, now);
                }
                None => link.give_vec(output),
            }
        }
        progress
    }

    pub(super) fn cancel_runs(&mut self, of: impl Fn(&Run) -> bool, link: &mut Link, now: Instant) {
        for at in (0..self.runs.len()).rev() {
            let run = &mut self.runs[at];
            if !of(run) {
                continue;
            }
            let fifo = self.fifos.iter_mut().find(|f| f.id == run.input_fifo);
            match run.progress {
                // Its input stays in the FIFO, for another trigger or the end of the FIFO.
                Progress::Queued => {
                    self.runs.remove(at);
                }
                Progress::Running => {
                    run.progress = Progress::Cancelled;
                    if !run.released
                        && let Some(slot) = fifo.and_then(|f| f.slot)
                    {
                        link.release(slot, now);
                    }
                    run.released = true;
                }
                Progress::Cancelled => {}
            }
        }
    }
}

/// True where an executor of this graph has room among free SHAVEs and CMX slices.
pub(super) fn fits(cost: &GraphCost, shaves: u32, cmx_slices: u32) -> bool {
    cost.shaves <= shaves && cost.cmx_slices <= cmx_slices
}
