//! The graph side of the firmware: commands of `graphMonitor`, graphs, FIFOs, runs.
//!
//! Commands are answered strictly in order. A command that waits for something (a blob, its preparation, the output
//! of a run) keeps the later ones waiting.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ncs2::clock::Instant;
use ncs2::wire::{
    DEBUG_DATA_LEN, FIFO_GOODBYE, FifoDirection, GraphCommand, Status, StreamName, TensorDescriptor,
    VERIFY_HEADER_LEN, WireError,
};

use crate::behaviour::{InputRelease, RefusedInput, TriggerStatus};
use crate::blob_header::BlobHeader;
use crate::config::Config;
use crate::cost::GraphCost;
use crate::executors::Executors;
use crate::fifo::{Element, Fifo};
use crate::link::{Body, Link, Slot};
use crate::memory::Ledger;
use crate::run::{Progress, Run};
use crate::work::{Prepared, Refusal, Task, Work};
use crate::{Engine, Timing, hash};

/// Triggers that may wait on one stick; more are refused with "out of resources".
const MAX_RUNS: usize = 256;
/// Refused graphs that can be asked about.
const MAX_REFUSED: usize = 16;
/// Results of one FIFO that may be computed ahead of the host's releases.
const MAX_RESULTS: usize = 64;

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
            executors: Executors::new(speed.dram_bytes_per_s * speed.dram_efficiency / 1e9),
            work: VecDeque::new(),
            prepared: None,
            hold_results: false,
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
        self.executors.poll_timeout()
    }

    // --- commands --------------------------------------------------------------------------------------------------

    fn pump_commands(&mut self, link: &mut Link, now: Instant) -> bool {
        let mut progress = false;
        loop {
            if self.step.is_some() {
                if !self.continue_step(link, now) {
                    return progress;
                }
                progress = true;
            }
            let Some(monitor) = self.monitor else { return progress };
            // Replies that nobody takes hold up the commands behind them.
            if link.backlog(monitor) > 0 {
                return progress;
            }
            let Some(command) = self.commands.pop_front() else { return progress };
            link.release(monitor, now);
            progress = true;
            match command {
                Ok(command) => self.begin(command, link, now),
                Err(error) => {
                    tracing::debug!(%error, "virtual stick: unknown graph command");
                    self.status(Status::NotImplemented, link, now);
                }
            }
        }
    }

    fn begin(&mut self, command: GraphCommand, link: &mut Link, now: Instant) {
        let status = match command {
            GraphCommand::Verify { stream, .. } => {
                self.step = Some(Step::Verify { stream });
                return;
            }
            GraphCommand::Allocate { graph, stream, executors } => {
                self.step = Some(Step::Blob { graph, stream, executors });
                return;
            }
            GraphCommand::AllocationVerify { graph, .. } => match self.graph(graph).map(|g| &g.state) {
                Some(GraphState::Ready(_)) => Status::Ok,
                Some(GraphState::TooLarge) => Status::OutOfMemory,
                Some(GraphState::Refused) => Status::UnsupportedElement,
                None => Status::InvalidHandle,
            },
            GraphCommand::Trigger { graph, input_fifo, output_fifo } => {
                match self.trigger(graph, input_fifo, output_fifo) {
                    Ok(run) if self.config.profile.firmware.status == TriggerStatus::After => {
                        self.step = Some(Step::Output { run });
                        return;
                    }
                    Ok(_) => Status::Ok,
                    Err(status) => {
                        self.refuse_input(input_fifo, link, now);
                        status
                    }
                }
            }
            GraphCommand::Deallocate { graph } => self.deallocate(graph, link, now),
            GraphCommand::BufferAllocate { fifo, name, elements, tensor, direction } => {
                self.allocate_fifo(fifo, &name, elements, &tensor, direction, link)
            }
            GraphCommand::BufferDeallocate { fifo } => self.deallocate_fifo(fifo, link, now),
            GraphCommand::TimingData { graph } => self.timing_data(graph, link, now),
            GraphCommand::DebugData { graph } => self.debug_data(graph, link, now),
        };
        self.status(status, link, now);
    }

    /// True when the waiting command is answered.
    fn continue_step(&mut self, link: &mut Link, now: Instant) -> bool {
        let Some(step) = self.step.take() else { return true };
        match step {
            Step::Verify { stream } => match self.take_blob(&stream, link, now) {
                Ok(Some((_, bytes))) => {
                    let good = bytes.len() >= VERIFY_HEADER_LEN && BlobHeader::parse(&bytes).is_some();
                    link.give_vec(bytes);
                    self.status(if good { Status::Ok } else { Status::UnsupportedElement }, link, now);
                    true
                }
                Ok(None) => {
                    self.step = Some(Step::Verify { stream });
                    false
                }
                Err(status) => {
                    self.status(status, link, now);
                    true
                }
            },
            Step::Blob { graph, stream, executors } => match self.take_blob(&stream, link, now) {
                Ok(Some((slot, blob))) => {
                    let header = BlobHeader::parse(&blob);
                    self.prepared = None;
                    self.work.push_back(Work {
                        epoch: self.epoch,
                        run: 0,
                        task: Task::Prepare {
                            blob,
                            engine: self.config.engine,
                            speed: self.config.profile.timing,
                            result: None,
                        },
                    });
                    self.step = Some(Step::Preparing { graph, slot, executors, header });
                    false
                }
                Ok(None) => {
                    self.step = Some(Step::Blob { graph, stream, executors });
                    false
                }
                Err(status) => {
                    self.status(status, link, now);
                    true
                }
            },
            Step::Preparing { graph, slot, executors, header } => match self.prepared.take() {
                Some(result) => {
                    self.allocated(graph, slot, executors, header, result, link, now);
                    true
                }
                None => {
                    self.step = Some(Step::Preparing { graph, slot, executors, header });
                    false
                }
            },
            Step::Output { run } => {
                if self.runs.iter().any(|r| r.id == run && r.progress != Progress::Cancelled) {
                    self.step = Some(Step::Output { run });
                    return false;
                }
                self.status(Status::Ok, link, now);
                true
            }
        }
    }

    /// The oldest packet of a `graphBuffer` stream, released; `None` when it has not come yet.
    fn take_blob(
        &mut self,
        stream: &StreamName,
        link: &mut Link,
        now: Instant,
    ) -> Result<Option<(Slot, Vec<u8>)>, Status> {
        let slot = link.find_name(stream).ok_or(Status::InvalidHandle)?;
        let Some(at) = self.blobs.iter().position(|(s, _)| *s == slot) else { return Ok(None) };
        link.release(slot, now);
        Ok(Some(self.blobs.remove(at)))
    }

    #[allow(clippy::too_many_arguments, reason = "one step's state, taken apart")]
    fn allocated(
        &mut self,
        id: u32,
        slot: Slot,
        executors: u32,
        header: Option<BlobHeader>,
        result: Result<Arc<Prepared>, Refusal>,
        link: &mut Link,
        now: Instant,
    ) {
        // The host reads two descriptors and the stage count before the status, whatever it is.
        let header = header.unwrap_or_default();
        for total_bytes in [header.input_bytes, header.output_bytes] {
            let descriptor = TensorDescriptor { n: 1, c: 1, w: 1, h: 1, total_bytes };
            link.write(slot, Body::short(&descriptor.encode()), 0, now);
        }
        link.write(slot, Body::short(&header.stages.to_le_bytes()), 0, now);

        let speed = &self.config.profile.timing;
        // What was refused stays only to be asked about; it takes no place, and its number may be used again.
        let ready = |g: &&LoadedGraph| matches!(g.state, GraphState::Ready(_));
        let busy =
            self.graphs.iter().filter(ready).count() >= self.config.profile.firmware.max_graphs as usize;
        let taken = self.graph(id).filter(ready).is_some();
        if !taken {
            self.graphs.retain(|g| g.id != id);
            while self.graphs.iter().filter(|g| !ready(g)).count() >= MAX_REFUSED {
                let Some(oldest) = self.graphs.iter().position(|g| !ready(&g)) else { break };
                self.graphs.remove(oldest);
            }
        }
        let (status, state, debug) = match result {
            _ if taken => {
                self.status(Status::InvalidHandle, link, now);
                return;
            }
            _ if busy => {
                self.status(Status::OutOfResources, link, now);
                return;
            }
            Err(Refusal::Invalid(why)) => (Status::UnsupportedElement, GraphState::Refused, why),
            Err(Refusal::Unsupported(why)) => (Status::UnsupportedElement, GraphState::Refused, why),
            Ok(prepared) if !fits(&prepared.cost, speed.shaves, speed.cmx_slices) => (
                Status::ShavesSlicesMismatch,
                GraphState::Refused,
                format!(
                    "asks for {} SHAVEs and {} CMX slices per executor, there are {} and {}",
                    prepared.cost.shaves, prepared.cost.cmx_slices, speed.shaves, speed.cmx_slices
                ),
            ),
            Ok(prepared) => (Status::Ok, GraphState::Ready(prepared), String::new()),
        };
        let mut graph = LoadedGraph {
            id,
            state,
            executors: 1,
            charged: 0,
            running: 0,
            debug,
            stage_ns: Vec::new(),
            total_ns: 0.0,
        };
        if let GraphState::Ready(prepared) = &graph.state {
            let side_by_side = (speed.shaves / prepared.cost.shaves.max(1))
                .min(speed.cmx_slices / prepared.cost.cmx_slices.max(1))
                .min(speed.max_executors);
            graph.executors = executors.clamp(1, side_by_side.max(1));
            let bytes = prepared.file_bytes as u64 + prepared.bss_bytes as u64 * u64::from(graph.executors);
            let dram = speed.dram_bytes_per_s * speed.dram_efficiency / 1e9;
            graph.stage_ns.extend(prepared.cost.solo_ns(dram).map(|ns| ns as f32));
            graph.total_ns =
                prepared.cost.trigger_ns + graph.stage_ns.iter().map(|&ns| f64::from(ns)).sum::<f64>();
            if self.ledger.charge(bytes) {
                graph.charged = bytes;
            } else {
                graph.debug = format!(
                    "needs {bytes} bytes of DRAM, {} of {} are free",
                    self.ledger.limit() - self.ledger.used(),
                    self.ledger.limit()
                );
                graph.state = GraphState::TooLarge;
            }
        }
        if !graph.debug.is_empty() {
            tracing::warn!(graph = id, why = %graph.debug, "virtual stick refuses a graph");
        }
        self.graphs.push(graph);
        self.status(status, link, now);
    }

    fn deallocate(&mut self, id: u32, link: &mut Link, now: Instant) -> Status {
        let Some(at) = self.graphs.iter().position(|g| g.id == id) else { return Status::InvalidHandle };
        self.cancel_runs(|run| run.graph == id, link, now);
        let graph = self.graphs.remove(at);
        self.ledger.refund(graph.charged);
        Status::Ok
    }

    fn allocate_fifo(
        &mut self,
        id: u32,
        name: &StreamName,
        elements: u32,
        tensor: &TensorDescriptor,
        direction: FifoDirection,
        link: &mut Link,
    ) -> Status {
        let Some(slot) = link.find_name(name) else { return Status::InvalidHandle };
        if self.fifos.iter().any(|f| f.id == id || f.slot == Some(slot)) {
            return Status::InvalidHandle;
        }
        if self.fifos.len() >= self.config.profile.firmware.max_fifos as usize {
            return Status::OutOfResources;
        }
        if elements == 0 || tensor.total_bytes == 0 {
            return Status::NullParameter;
        }
        let bytes = u64::from(elements) * u64::from(tensor.total_bytes);
        if !self.ledger.charge(bytes) {
            return Status::OutOfMemory;
        }
        if direction == FifoDirection::Output {
            link.set_credit(slot, bytes);
        }
        self.fifos.push(Fifo {
            id,
            slot: Some(slot),
            direction,
            element_bytes: tensor.total_bytes as usize,
            charged: bytes,
            waiting: VecDeque::new(),
        });
        Status::Ok
    }

    fn deallocate_fifo(&mut self, id: u32, link: &mut Link, now: Instant) -> Status {
        let Some(at) = self.fifos.iter().position(|f| f.id == id) else { return Status::InvalidHandle };
        self.cancel_runs(|run| run.input_fifo == id || run.output_fifo == id, link, now);
        let fifo = self.fifos.remove(at);
        self.ledger.refund(fifo.charged);
        for element in fifo.waiting {
            link.give_vec(element.bytes);
            if let Some(slot) = fifo.slot {
                link.release(slot, now);
            }
        }
        Status::Ok
    }

    fn timing_data(&mut self, id: u32, link: &mut Link, now: Instant) -> Status {
        let Some(monitor) = self.monitor else { return Status::InvalidHandle };
        let mut bytes = link.take_vec();
        let Some(graph) = self.graph(id) else {
            link.give_vec(bytes);
            return Status::InvalidHandle;
        };
        let Some(prepared) = graph.prepared() else {
            link.give_vec(bytes);
            return Status::InvalidHandle;
        };
        let millis = |ns: f64| ((ns / 1e6) as f32).to_le_bytes();
        for stage in 0..prepared.stages as usize {
            bytes.extend(millis(f64::from(graph.stage_ns.get(stage).copied().unwrap_or(0.0))));
        }
        bytes.extend(millis(self.config.profile.wire_ns(prepared.input_bytes)));
        bytes.extend(millis(graph.total_ns));
        link.write(monitor, Body::Owned(bytes), 0, now);
        Status::Ok
    }

    fn debug_data(&mut self, id: u32, link: &mut Link, now: Instant) -> Status {
        let Some(monitor) = self.monitor else { return Status::InvalidHandle };
        let Some(graph) = self.graph(id) else { return Status::InvalidHandle };
        let mut text = [0; DEBUG_DATA_LEN];
        // Closed by a NUL, and cut at a character.
        let mut len = graph.debug.len().min(DEBUG_DATA_LEN - 1);
        while !graph.debug.is_char_boundary(len) {
            len -= 1;
        }
        text[..len].copy_from_slice(&graph.debug.as_bytes()[..len]);
        link.write(monitor, Body::short(&text), 0, now);
        Status::Ok
    }

    fn status(&mut self, status: Status, link: &mut Link, now: Instant) {
        if let Some(monitor) = self.monitor {
            link.write(monitor, Body::short(&status.encode()), 0, now);
        }
    }

    fn graph(&self, id: u32) -> Option<&LoadedGraph> {
        self.graphs.iter().find(|g| g.id == id)
    }

    fn fifo(&self, id: u32, direction: FifoDirection) -> Option<&Fifo> {
        self.fifos.iter().find(|f| f.id == id && f.direction == direction)
    }

    // --- runs ------------------------------------------------------------------------------------------------------

    fn trigger(&mut self, graph: u32, input_fifo: u32, output_fifo: u32) -> Result<u64, Status> {
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
        });
        Ok(id)
    }

    fn refuse_input(&mut self, fifo: u32, link: &mut Link, now: Instant) {
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
    fn start_runs(&mut self, link: &mut Link, now: Instant) -> bool {
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
    fn send_outputs(&mut self, link: &mut Link, now: Instant) -> bool {
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
            let Some(output) = run.output else { continue };
            if cancelled {
                link.give_vec(output);
                continue;
            }
            self.inferences += 1;
            let slot_of = |id: u32| self.fifos.iter().find(|f| f.id == id).and_then(|f| f.slot);
            if !run.released
                && let Some(slot) = slot_of(run.input_fifo)
            {
                link.release(slot, now);
            }
            match slot_of(run.output_fifo) {
                Some(slot) => {
                    let piece = self.config.profile.firmware.output_piece_bytes as usize;
                    link.write(slot, Body::Owned(output), piece, now);
                }
                None => link.give_vec(output),
            }
        }
        progress
    }

    fn cancel_runs(&mut self, of: impl Fn(&Run) -> bool, link: &mut Link, now: Instant) {
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

fn fits(cost: &GraphCost, shaves: u32, cmx_slices: u32) -> bool {
    cost.shaves <= shaves && cost.cmx_slices <= cmx_slices
}
