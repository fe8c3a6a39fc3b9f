//! Graphs on the stick: their numbers, streams and FIFOs, and the steps of a load.

use super::commands::GraphReply;
use super::jobs::Jobs;
use super::tag::{Fifo, Part, Purpose, Tag};
use super::{GraphKey, InlineBytes, LoadRequest, Phase, Stick, StickError, StickEvent};
use crate::clock::Instant;
use crate::wire::{FifoDirection, GraphCommand, Status, StreamId, StreamName, TensorDescriptor, WireError};
use crate::xlink::{Accept, MAX_PACKETS};

/// Credit on an output FIFO, which the host never writes to (the vendor's 8, rounded up).
const OUTPUT_FIFO_BYTES: u32 = 64;

/// Bytes of the stage count.
const STAGE_COUNT_LEN: usize = 4;

/// How far a graph is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum GraphPhase {
    /// Another load is under way.
    Queued,
    Loading,
    Ready,
    /// Completes its jobs, then leaves.
    Draining,
    /// Is being taken off the stick, on request or because its load failed.
    Leaving,
}

/// One FIFO of a graph.
#[derive(Debug, Default)]
pub(super) struct FifoSlot {
    pub(super) number: u32,
    pub(super) stream: Option<StreamId>,
    pub(super) allocated: bool,
}

/// One graph on the stick.
#[derive(Debug)]
pub(super) struct GraphSlot {
    pub(super) request: LoadRequest,
    pub(super) graph: u32,
    pub(super) phase: GraphPhase,
    pub(super) buffer: Option<StreamId>,
    pub(super) allocated: bool,
    pub(super) input: FifoSlot,
    pub(super) output: FifoSlot,
    pub(super) goodbye_said: bool,
    input_tensor: Option<TensorDescriptor>,
    output_tensor: Option<TensorDescriptor>,
    /// As the stick counts them.
    pub(super) stages: Option<u32>,
    pub(super) failure: Option<StickError>,
    pub(super) jobs: Jobs,
}

const NOT_READY: StickError = StickError::Invalid("no such graph is ready on the stick");

impl GraphSlot {
    pub(super) fn fifo(&mut self, fifo: Fifo) -> &mut FifoSlot {
        match fifo {
            Fifo::Input => &mut self.input,
            Fifo::Output => &mut self.output,
        }
    }

    /// True when it is this one and takes jobs.
    fn is_ready(&self, key: GraphKey) -> bool {
        self.request.key == key && self.phase == GraphPhase::Ready
    }

    /// True when nothing of it is on the stick, or not any more.
    pub(super) fn is_off_the_stick(&self) -> bool {
        let fifos = [&self.input, &self.output];
        self.buffer.is_none() && !self.allocated && fifos.iter().all(|f| f.stream.is_none() && !f.allocated)
    }

    /// The n-th packet of what ALLOCATE tells of the graph.
    pub(super) fn take_description(&mut self, nth: u8, packet: &[u8]) -> Result<(), WireError> {
        match nth {
            0 => self.input_tensor = Some(TensorDescriptor::parse(packet)?),
            1 => self.output_tensor = Some(TensorDescriptor::parse(packet)?),
            _ => {
                let raw = packet.try_into().map_err(|_| WireError::Length {
                    what: "stage count",
                    expected: STAGE_COUNT_LEN,
                    found: packet.len(),
                })?;
                self.stages = Some(u32::from_le_bytes(raw));
            }
        }
        Ok(())
    }

    /// What the vendor's host checks of the descriptors; for the output it insists on equality for all types in use.
    fn judge_description(&self) -> Result<(), StickError> {
        let checks = [
            ("input", self.input_tensor, self.request.input_bytes),
            ("output", self.output_tensor, self.request.output_bytes),
        ];
        for (which, tensor, expected) in checks {
            let problem = match tensor {
                None => format!("no {which} descriptor"),
                Some(t) if [t.n, t.c, t.w, t.h].contains(&0) => {
                    format!("{which} descriptor with a dimension of zero")
                }
                Some(t) if t.total_bytes != expected => {
                    format!("{which} element of {} bytes, the blob says {expected}", t.total_bytes)
                }
                Some(_) => continue,
            };
            return Err(StickError::Protocol { step: "ALLOCATE", problem });
        }
        Ok(())
    }
}

impl Stick {
    /// VERIFY, ALLOCATE, ALLOCATION_VERIFY, two FIFOs: ends in `Loaded` or `LoadFailed`. Loads may overlap inferences;
    /// among themselves they go one after the other.
    ///
    /// [`StickError::Invalid`] for a request that makes no sense here, [`StickError::OutOfMemory`] for one that the
    /// stick's capabilities rule out; nothing is sent then.
    pub fn load(&mut self, request: LoadRequest, now: Instant) -> Result<(), StickError> {
        let capabilities = match (self.phase, self.capabilities) {
            (Phase::Open, Some(capabilities)) => capabilities,
            _ => return Err(StickError::Invalid("the stick is not open")),
        };
        if self.graphs.iter().any(|s| s.request.key == request.key) {
            return Err(StickError::Invalid("a graph with this key is on the stick"));
        }
        if request.input_bytes == 0 || request.output_bytes == 0 || request.executors == 0 {
            return Err(StickError::Invalid("a graph needs input bytes, output bytes and executors"));
        }
        if (request.blob_bytes as usize) < request.header.len() {
            return Err(StickError::Invalid("a blob is longer than its header"));
        }
        if request.fifo_elements == 0 || request.fifo_elements as usize > MAX_PACKETS {
            return Err(StickError::Invalid("a FIFO holds 1 to 64 elements"));
        }
        let fifo_bytes = request.input_bytes.checked_mul(request.fifo_elements);
        if fifo_bytes.and_then(|b| b.checked_next_multiple_of(64)).is_none() {
            return Err(StickError::Invalid("the input FIFO is longer than 4 GB"));
        }
        if request.executors > capabilities.max_executors {
            return Err(StickError::Invalid("more executors than the stick has"));
        }
        if self.graphs.len() >= capabilities.max_graphs as usize {
            return Err(StickError::OutOfMemory { step: "graphs that the stick can hold" });
        }
        if request.blob_bytes > capabilities.max_memory_bytes {
            return Err(StickError::OutOfMemory { step: "blob against the stick's memory" });
        }
        let graph = self.next_graph;
        self.next_graph += 1;
        self.graphs.push(GraphSlot {
            jobs: Jobs::with_capacity(request.fifo_elements as usize),
            request,
            graph,
            phase: GraphPhase::Queued,
            buffer: None,
            allocated: false,
            input: FifoSlot::default(),
            output: FifoSlot::default(),
            goodbye_said: false,
            input_tensor: None,
            output_tensor: None,
            stages: None,
            failure: None,
        });
        self.settle(now);
        Ok(())
    }

    /// Starts the next load if none is under way.
    pub(super) fn load_next(&mut self, now: Instant) {
        let busy = self.graphs.iter().any(|s| {
            s.phase == GraphPhase::Loading || (s.phase == GraphPhase::Leaving && s.failure.is_some())
        });
        if busy || !self.is_alive() {
            return;
        }
        let Some(slot) = self.graphs.iter_mut().find(|s| s.phase == GraphPhase::Queued) else { return };
        slot.phase = GraphPhase::Loading;
        let (graph, credit) = (slot.graph, slot.request.blob_bytes);
        self.create_part(graph, Part::Buffer, &format!("graphBuffer{graph}"), credit, Accept::Packets, now);
    }

    pub(super) fn slot(&mut self, graph: u32) -> Option<&mut GraphSlot> {
        self.graphs.iter_mut().find(|s| s.graph == graph)
    }

    pub(super) fn ready_slot(&self, key: GraphKey) -> Result<&GraphSlot, StickError> {
        self.graphs.iter().find(|s| s.is_ready(key)).ok_or(NOT_READY)
    }

    pub(super) fn ready_slot_mut(&mut self, key: GraphKey) -> Result<&mut GraphSlot, StickError> {
        self.graphs.iter_mut().find(|s| s.is_ready(key)).ok_or(NOT_READY)
    }

    pub(super) fn graph_key(&self, graph: u32) -> Option<GraphKey> {
        self.graphs.iter().find(|s| s.graph == graph).map(|s| s.request.key)
    }

    fn create_part(&mut self, graph: u32, part: Part, name: &str, credit: u32, accept: Accept, now: Instant) {
        let tag = Tag::Create { graph, part };
        let Ok(name) = StreamName::new(name) else { return };
        let opened = self.link.open_stream(name, credit, accept, tag);
        let Some(slot) = self.graphs.iter_mut().find(|s| s.graph == graph) else { return };
        match opened {
            Ok(id) => match part {
                Part::Buffer => slot.buffer = Some(id),
                Part::Fifo(fifo) => slot.fifo(fifo).stream = Some(id),
            },
            Err(_) => self.fail_load(graph, StickError::OutOfMemory { step: tag.step() }, now),
        }
    }

    fn create_fifo(&mut self, graph: u32, fifo: Fifo, now: Instant) {
        let number = self.next_fifo;
        self.next_fifo += 1;
        let Some(slot) = self.slot(graph) else { return };
        slot.fifo(fifo).number = number;
        let (credit, accept) = match fifo {
            // Checked at `load`: the product fits.
            Fifo::Input => {
                (slot.request.input_bytes.saturating_mul(slot.request.fifo_elements), Accept::Nothing)
            }
            Fifo::Output => (OUTPUT_FIFO_BYTES, Accept::Element),
        };
        self.create_part(graph, Part::Fifo(fifo), &format!("FIFO{number}"), credit, accept, now);
    }

    pub(super) fn part_created(&mut self, graph: u32, part: Part, now: Instant) {
        let purpose = match part {
            Part::Buffer => Purpose::Verify,
            Part::Fifo(fifo) => Purpose::BufferAllocate(fifo),
        };
        if self.slot(graph).is_some() {
            self.push_command(purpose, graph, GraphReply::Nothing, now);
        }
    }

    pub(super) fn part_refused(&mut self, graph: u32, part: Part, error: StickError, now: Instant) {
        if let Some(slot) = self.slot(graph) {
            match part {
                Part::Buffer => slot.buffer = None,
                Part::Fifo(fifo) => slot.fifo(fifo).stream = None,
            }
        }
        self.fail_load(graph, error, now);
    }

    /// Takes back what a load has put on the stick so far.
    fn fail_load(&mut self, graph: u32, error: StickError, now: Instant) {
        if let Some(slot) = self.slot(graph) {
            slot.phase = GraphPhase::Leaving;
            slot.failure = Some(error);
            self.advance_unload(graph, now);
        }
    }

    pub(super) fn load_step_done(&mut self, purpose: Purpose, graph: u32, status: Status, now: Instant) {
        let closing = self.phase != Phase::Open;
        let Some(slot) = self.slot(graph) else { return };
        let step = purpose.step();
        let mut failure = match (status, purpose) {
            (Status::Ok, _) => None,
            (
                Status::OutOfMemory,
                Purpose::Allocate | Purpose::AllocationVerify | Purpose::BufferAllocate(_),
            ) => Some(StickError::OutOfMemory { step }),
            (status, _) => Some(StickError::Status { step, status }),
        };
        if status == Status::Ok {
            match purpose {
                Purpose::Allocate => {
                    slot.allocated = true;
                    failure = slot.judge_description().err();
                }
                Purpose::BufferAllocate(fifo) => slot.fifo(fifo).allocated = true,
                _ => {}
            }
            if closing && failure.is_none() {
                failure = Some(StickError::Invalid("the stick is being closed"));
            }
        }
        if let Some(error) = failure {
            return self.fail_load(graph, error, now);
        }
        match purpose {
            Purpose::Verify => self.push_command(Purpose::Allocate, graph, GraphReply::Descriptors, now),
            Purpose::Allocate => {
                self.push_command(Purpose::AllocationVerify, graph, GraphReply::Nothing, now);
            }
            Purpose::AllocationVerify => self.create_fifo(graph, Fifo::Input, now),
            Purpose::BufferAllocate(Fifo::Input) => self.create_fifo(graph, Fifo::Output, now),
            _ => {
                slot.phase = GraphPhase::Ready;
                let key = slot.request.key;
                self.events.push_back(StickEvent::Loaded(key));
            }
        }
    }

    /// The bytes of a command; `None` when its graph is gone or not described yet.
    pub(super) fn encode_command(&self, purpose: Purpose, graph: u32) -> Option<InlineBytes> {
        let slot = self.graphs.iter().find(|s| s.graph == graph)?;
        let stream = || StreamName::new(&format!("graphBuffer{graph}")).ok();
        let (input_fifo, output_fifo) = (slot.input.number, slot.output.number);
        let command = match purpose {
            Purpose::Verify => GraphCommand::Verify { graph, stream: stream()? },
            Purpose::Allocate => {
                GraphCommand::Allocate { graph, stream: stream()?, executors: slot.request.executors }
            }
            Purpose::AllocationVerify => GraphCommand::AllocationVerify { graph, stream: stream()? },
            Purpose::BufferAllocate(fifo) => {
                let (number, tensor, direction) = match fifo {
                    Fifo::Input => (input_fifo, slot.input_tensor?, FifoDirection::Input),
                    Fifo::Output => (output_fifo, slot.output_tensor?, FifoDirection::Output),
                };
                GraphCommand::BufferAllocate {
                    fifo: number,
                    name: StreamName::new(&format!("FIFO{number}")).ok()?,
                    elements: slot.request.fifo_elements,
                    tensor,
                    direction,
                }
            }
            Purpose::Trigger(_) => GraphCommand::Trigger { graph, input_fifo, output_fifo },
            Purpose::Timing => GraphCommand::TimingData { graph },
            Purpose::Debug => GraphCommand::DebugData { graph },
            Purpose::BufferDeallocate(Fifo::Input) => GraphCommand::BufferDeallocate { fifo: input_fifo },
            Purpose::BufferDeallocate(Fifo::Output) => GraphCommand::BufferDeallocate { fifo: output_fifo },
            Purpose::Deallocate => GraphCommand::Deallocate { graph },
        };
        InlineBytes::new(&command.encode())
    }
}
