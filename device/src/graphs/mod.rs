//! The graph side of the firmware: commands of `graphMonitor`, graphs, FIFOs, runs.
//!
//! Commands are answered strictly in order. A command that waits for something (a blob, its preparation, the output
//! of a run) keeps the later ones waiting.

mod commands;
mod runs;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ncs2::clock::Instant;
use ncs2::wire::{FIFO_GOODBYE, FifoDirection, GraphCommand, StreamName, WireError};

use crate::Timing;
use crate::blob_header::BlobHeader;
use crate::config::Config;
use crate::executors::{Chip, Executors};
use crate::fault_plan::{FaultKind, Point, Script};
use crate::fifo::{Element, Fifo};
use crate::link::{Link, Slot};
use crate::memory::Ledger;
use crate::run::Run;
use crate::work::{Prepared, Refusal, Task, Work};

#[derive(Debug)]
enum GraphState {
    Ready(Arc<Prepared>),
    /// It did not fit into DRAM.
    TooLarge,
    Refused,
}

#[derive(Debug)]
struct LoadedGraph {
    id: u32,
    state: GraphState,
    executors: u32,
    charged: u64,
    running: u32,
    /// What GET_DEBUG_DATA says.
    debug: String,
    /// Of the latest run: each stage in nanoseconds, and the whole.
    stage_ns: Vec<f32>,
    total_ns: f64,
}

impl LoadedGraph {
    fn prepared(&self) -> Option<&Arc<Prepared>> {
        match &self.state {
            GraphState::Ready(prepared) => Some(prepared),
            _ => None,
        }
    }
}

/// A command that waits.
#[derive(Debug)]
enum Step {
    Verify { stream: StreamName },
    Blob { graph: u32, stream: StreamName, executors: u32 },
    Preparing { graph: u32, slot: Slot, executors: u32, header: Option<BlobHeader> },
    Output { run: u64 },
}

/// What the graph side has done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GraphStats {
    pub(crate) inferences: u64,
    pub(crate) busy: Duration,
    pub(crate) paced: bool,
}

#[derive(Debug)]
pub(crate) struct Graphs {
    config: Arc<Config>,
    epoch: u64,
    /// Stream of `graphMonitor`.
    monitor: Option<Slot>,
    commands: VecDeque<Result<GraphCommand, WireError>>,
    step: Option<Step>,
    /// Packets of `graphBuffer` streams that no command has asked for yet.
    blobs: Vec<(Slot, Vec<u8>)>,
    graphs: Vec<LoadedGraph>,
    fifos: Vec<Fifo>,
    /// In trigger order, until the output is sent.
    runs: VecDeque<Run>,
    next_run: u64,
    ledger: Ledger,
    executors: Executors,
    work: VecDeque<Work>,
    prepared: Option<Result<Arc<Prepared>, Refusal>>,
    /// Results are computed but stay on the stick.
    pub(crate) hold_results: bool,
    /// What goes wrong.
    pub(crate) script: Option<Script>,
    /// Inputs whose release a fault has put off.
    late_releases: VecDeque<(Instant, Slot)>,
    inferences: u64,
    paced: bool,
}

impl Graphs {
    pub(crate) fn new(config: Arc<Config>, epoch: u64) -> Self {
        let speed = &config.profile.timing;
        Graphs {
            epoch,
            monitor: None,
            commands: VecDeque::new(),
            step: None,
            blobs: Vec::new(),
            graphs: Vec::new(),
            fifos: Vec::new(),
            runs: VecDeque::new(),
            next_run: 1,
            ledger: Ledger::new(config.profile.usable_bytes()),
            executors: Executors::new(Chip::new(speed)),
            work: VecDeque::new(),
            prepared: None,
            hold_results: false,
            script: None,
            late_releases: VecDeque::new(),
            inferences: 0,
            paced: true,
            config,
        }
    }

    // --- getters ---------------------------------------------------------------------------------------------------

    pub(crate) fn used_bytes(&self) -> u64 {
        self.ledger.used()
    }

    /// Bytes of packets that lie on the stick and wait for a command.
    pub(crate) fn kept_bytes(&self) -> u64 {
        let blobs = self.blobs.iter().map(|(_, bytes)| bytes.len());
        let elements = self.fifos.iter().flat_map(|f| &f.waiting).map(|e| e.bytes.len());
        blobs.chain(elements).map(|n| n as u64).sum()
    }

    pub(crate) fn limit_bytes(&self) -> u64 {
        self.ledger.limit()
    }

    pub(crate) fn stats(&self) -> GraphStats {
        GraphStats { inferences: self.inferences, busy: self.executors.busy(), paced: self.paced }
    }

    /// SHAVE time so far, nanoseconds.
    pub(crate) fn shave_ns(&self) -> f64 {
        self.executors.shave_ns()
    }

    /// Element size of the input FIFO on this stream.
    pub(crate) fn input_element_bytes(&self, slot: Slot) -> Option<usize> {
        self.fifos
            .iter()
            .find(|f| f.slot == Some(slot) && f.direction == FifoDirection::Input)
            .map(|f| f.element_bytes)
    }

    // --- inputs ----------------------------------------------------------------------------------------------------

    pub(crate) fn set_monitor(&mut self, slot: Slot) {
        self.monitor = Some(slot);
    }

    pub(crate) fn handle_command(&mut self, bytes: &[u8]) {
        self.commands.push_back(GraphCommand::parse(bytes));
    }

    pub(crate) fn handle_blob(&mut self, slot: Slot, bytes: Vec<u8>) {
        self.blobs.push((slot, bytes));
    }

    /// A whole packet on a stream that may be an input FIFO's. Gives the bytes back when it is none.
    pub(crate) fn handle_element(&mut self, slot: Slot, element: Element, link: &mut Link, now: Instant) {
        let fifo =
            self.fifos.iter_mut().find(|f| f.slot == Some(slot) && f.direction == FifoDirection::Input);
        match fifo {
            Some(fifo) if element.wire_bytes == fifo.element_bytes => fifo.waiting.push_back(element),
            // The goodbye before BUFFER_DEALLOCATE, and what fits no element: no run can take it.
            Some(_) | None => {
                if element.wire_bytes != FIFO_GOODBYE.len() {
                    tracing::debug!(bytes = element.wire_bytes, "virtual stick: a packet that is no element");
                }
                link.give_vec(element.bytes);
                link.release(slot, now);
            }
        }
    }

    pub(crate) fn handle_closed(&mut self, slot: Slot) {
        if self.monitor == Some(slot) {
            self.monitor = None;
            self.commands.clear();
        }
        self.late_releases.retain(|(_, s)| *s != slot);
        self.blobs.retain(|(s, _)| *s != slot);
        for fifo in self.fifos.iter_mut().filter(|f| f.slot == Some(slot)) {
            fifo.slot = None;
        }
    }

    pub(crate) fn handle_work_done(&mut self, work: Work, link: &mut Link) {
        match work.task {
            Task::Prepare { result, .. } => self.prepared = result,
            Task::Execute { input, output, .. } => {
                link.give_vec(input);
                match self.runs.iter_mut().find(|r| r.id == work.run) {
                    Some(run) => {
                        // Behind the model's time by then: the figures are the CPU's, not the model's.
                        self.paced &= !run.elapsed || self.config.timing == Timing::Zero;
                        run.computed = true;
                        run.output = Some(output);
                    }
                    None => link.give_vec(output),
                }
            }
        }
    }

    /// Model time goes on; `speed` is the share of full speed that heat leaves. What follows from the end of a run
    /// (its output, the next run's start) has the time of that end, however late it is looked at.
    pub(crate) fn advance(&mut self, now: Instant, speed: f64, link: &mut Link) {
        while self.executors.advance(now) {
            let mut at = now;
            while let Some(finished) = self.executors.take_finished() {
                at = finished.at;
                self.finish(finished.run, speed);
            }
            self.pump(link, at);
        }
    }

    fn finish(&mut self, run: u64, speed: f64) {
        let mut nobody = Vec::new();
        let graph = self.runs.iter_mut().find(|r| r.id == run).and_then(|run| {
            run.elapsed = true;
            self.graphs.iter_mut().find(|g| g.id == run.graph)
        });
        match graph {
            Some(graph) => {
                let took = self.executors.rest(run, speed, &mut graph.stage_ns);
                graph.total_ns = took.as_nanos() as f64;
            }
            None => {
                self.executors.rest(run, speed, &mut nobody);
            }
        }
    }

    /// Does all that can be done now.
    pub(crate) fn pump(&mut self, link: &mut Link, now: Instant) {
        while let Some(i) = self.late_releases.iter().position(|&(at, _)| at <= now) {
            if let Some((_, slot)) = self.late_releases.remove(i) {
                link.release(slot, now);
            }
        }
        loop {
            let commands = self.pump_commands(link, now);
            let started = self.start_runs(link, now);
            let sent = self.send_outputs(link, now);
            if !(commands || started || sent) {
                return;
            }
        }
    }

    // --- outputs ---------------------------------------------------------------------------------------------------

    pub(crate) fn poll_work(&mut self) -> Option<Work> {
        self.work.pop_front()
    }

    pub(crate) fn poll_timeout(&mut self) -> Option<Instant> {
        self.executors.poll_timeout().into_iter().chain(self.late_releases.iter().map(|&(at, _)| at)).min()
    }

    pub(crate) fn strike(&self, at: Point) -> Option<(FaultKind, Duration)> {
        self.script.as_ref().and_then(|script| script.strike(at))
    }
}
