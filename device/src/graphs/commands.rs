//! Commands of `graphMonitor`, one after another.

use std::collections::VecDeque;
use std::sync::Arc;

use ncs2::clock::Instant;
use ncs2::wire::{
    DEBUG_DATA_LEN, FifoDirection, GraphCommand, Status, StreamName, TensorDescriptor, VERIFY_HEADER_LEN,
};

use super::runs::fits;
use super::{GraphState, Graphs, LoadedGraph, Step};
use crate::behaviour::TriggerStatus;
use crate::blob_header::BlobHeader;
use crate::executors::Chip;
use crate::fault_plan::{FaultKind, Point};
use crate::fifo::Fifo;
use crate::link::{Body, Link, Slot};
use crate::run::Progress;
use crate::work::{Prepared, Refusal, Task, Work};

/// Refused graphs that can be asked about.
const MAX_REFUSED: usize = 16;

impl Graphs {
    pub(super) fn pump_commands(&mut self, link: &mut Link, now: Instant) -> bool {
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
                let fault = self.strike(Point::Trigger);
                let before = self.runs.len();
                if matches!(fault, Some((FaultKind::Babble, _))) {
                    // A header that starts so is none; what follows is out of step.
                    link.babble(now);
                }
                let asked = match fault {
                    Some((FaultKind::RefuseTrigger, _)) => Err(Status::OutOfResources),
                    _ => self.trigger(graph, input_fifo, output_fifo),
                };
                let queued = match asked {
                    Ok(run) => {
                        if let Some(run) = self.runs.get_mut(before) {
                            run.fault = fault;
                        }
                        Ok(run)
                    }
                    Err(status) => {
                        self.refuse_input(input_fifo, link, now);
                        Err(status)
                    }
                };
                match queued {
                    Ok(_) if matches!(fault, Some((FaultKind::NoStatus, _))) => return,
                    Ok(run) if self.config.profile.firmware.status == TriggerStatus::After => {
                        self.step = Some(Step::Output { run });
                        return;
                    }
                    Ok(_) => Status::Ok,
                    Err(status) => status,
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
            let dram = Chip::new(speed).dram_bytes_per_ns;
            graph.stage_ns.extend(prepared.cost.solo_ns(dram).map(|ns| ns as f32));
            graph.total_ns =
                prepared.cost.trigger_ns + graph.stage_ns.iter().map(|&ns| f64::from(ns)).sum::<f64>();
            if self.strike(Point::Allocation).is_none() && self.ledger.charge(bytes) {
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
        if self.strike(Point::Allocation).is_some() || !self.ledger.charge(bytes) {
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

    pub(super) fn graph(&self, id: u32) -> Option<&LoadedGraph> {
        self.graphs.iter().find(|g| g.id == id)
    }

    pub(super) fn fifo(&self, id: u32, direction: FifoDirection) -> Option<&Fifo> {
        self.fifos.iter().find(|f| f.id == id && f.direction == direction)
    }
}
