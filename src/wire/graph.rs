//! Commands and replies of the `graphMonitor` stream, and what goes over `graphBuffer` and `FIFO` streams.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::WireError;
use super::header::StreamName;

/// Bytes of VERIFY, ALLOCATE, ALLOCATION_VERIFY, TRIGGER and DEALLOCATE.
pub const GRAPH_COMMAND_LEN: usize = 84;
/// Bytes of BUFFER_ALLOCATE.
pub const BUFFER_ALLOCATE_LEN: usize = 100;
/// Bytes of BUFFER_DEALLOCATE, GET_TIMING_DATA and GET_DEBUG_DATA.
pub const COMMON_COMMAND_LEN: usize = 8;
/// Bytes of a status packet.
pub const STATUS_LEN: usize = 4;
/// Bytes of the debug text.
pub const DEBUG_DATA_LEN: usize = 120;
/// Bytes of the stage count that ALLOCATE answers.
pub const STAGE_COUNT_LEN: usize = 4;
/// Bytes of a tensor descriptor.
pub const TENSOR_DESCRIPTOR_LEN: usize = 20;
/// Bytes of the blob that VERIFY sends ahead: ELF-like header and blob header.
pub const VERIFY_HEADER_LEN: usize = 132;
/// What is written to an input FIFO before it is deallocated.
pub const FIFO_GOODBYE: [u8; 4] = 0xDEAD_u32.to_le_bytes();

/// Answer to a graph command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Status {
    /// `MYRIAD_OK`
    Ok,
    /// Null parameter.
    NullParameter,
    /// Mask not continuous.
    MaskNotContinuous,
    /// Unsupported network element.
    UnsupportedElement,
    /// Invalid handle.
    InvalidHandle,
    /// Out of resources.
    OutOfResources,
    /// Not implemented.
    NotImplemented,
    /// SHAVEs and slices do not match.
    ShavesSlicesMismatch,
    /// Timeout.
    Timeout,
    /// Internal error.
    Internal,
    /// Out of memory.
    OutOfMemory,
    /// A number that no source names, never 0 to 10 when it comes from [`Status::from_code`].
    Unknown(i32),
}

impl Status {
    /// Any number is a status; unknown ones are kept.
    pub fn from_code(code: i32) -> Self {
        match code {
            0 => Status::Ok,
            1 => Status::NullParameter,
            2 => Status::MaskNotContinuous,
            3 => Status::UnsupportedElement,
            4 => Status::InvalidHandle,
            5 => Status::OutOfResources,
            6 => Status::NotImplemented,
            7 => Status::ShavesSlicesMismatch,
            8 => Status::Timeout,
            9 => Status::Internal,
            10 => Status::OutOfMemory,
            other => Status::Unknown(other),
        }
    }

    /// The number on the wire.
    pub fn code(self) -> i32 {
        match self {
            Status::Ok => 0,
            Status::NullParameter => 1,
            Status::MaskNotContinuous => 2,
            Status::UnsupportedElement => 3,
            Status::InvalidHandle => 4,
            Status::OutOfResources => 5,
            Status::NotImplemented => 6,
            Status::ShavesSlicesMismatch => 7,
            Status::Timeout => 8,
            Status::Internal => 9,
            Status::OutOfMemory => 10,
            Status::Unknown(code) => code,
        }
    }

    /// Reads a status packet.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let raw: [u8; STATUS_LEN] = bytes.try_into().map_err(|_| WireError::Length {
            what: "status",
            expected: STATUS_LEN,
            found: bytes.len(),
        })?;
        Ok(Status::from_code(i32::from_le_bytes(raw)))
    }

    /// Writes a status packet.
    pub fn encode(self) -> [u8; STATUS_LEN] {
        self.code().to_le_bytes()
    }
}

/// Shape of a FIFO element as the stick sees it. n·c·w·h of real firmware are unverified; only the size counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct TensorDescriptor {
    /// Batch.
    pub n: u32,
    /// Channels.
    pub c: u32,
    /// Width.
    pub w: u32,
    /// Height.
    pub h: u32,
    /// Bytes of one element, all tensors together.
    pub total_bytes: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct DescriptorView {
    n: U32,
    c: U32,
    w: U32,
    h: U32,
    total: U32,
}

impl TensorDescriptor {
    /// Reads a descriptor packet.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let v = DescriptorView::ref_from_bytes(bytes).map_err(|_| WireError::Length {
            what: "tensor descriptor",
            expected: TENSOR_DESCRIPTOR_LEN,
            found: bytes.len(),
        })?;
        Ok(Self::from_view(v))
    }

    /// Writes a descriptor packet.
    pub fn encode(&self) -> [u8; TENSOR_DESCRIPTOR_LEN] {
        let mut out = [0; TENSOR_DESCRIPTOR_LEN];
        out.copy_from_slice(self.to_view().as_bytes());
        out
    }

    fn from_view(v: &DescriptorView) -> Self {
        TensorDescriptor {
            n: v.n.get(),
            c: v.c.get(),
            w: v.w.get(),
            h: v.h.get(),
            total_bytes: v.total.get(),
        }
    }

    fn to_view(self) -> DescriptorView {
        DescriptorView {
            n: U32::new(self.n),
            c: U32::new(self.c),
            w: U32::new(self.w),
            h: U32::new(self.h),
            total: U32::new(self.total_bytes),
        }
    }
}

/// Third packet of the answer to ALLOCATE, on `graphBuffer<g>`: stages of the graph, which must be the number that the
/// blob's header gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct StageCount(pub u32);

impl StageCount {
    /// Reads the packet.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let raw: [u8; STAGE_COUNT_LEN] = bytes.try_into().map_err(|_| WireError::Length {
            what: "stage count",
            expected: STAGE_COUNT_LEN,
            found: bytes.len(),
        })?;
        Ok(StageCount(u32::from_le_bytes(raw)))
    }

    /// Writes the packet, for the device side.
    pub fn encode(self) -> [u8; STAGE_COUNT_LEN] {
        self.0.to_le_bytes()
    }
}

/// Answer to GET_TIMING_DATA: the stick's latest times of a graph, tied to no request. All in milliseconds, as
/// received: a broken stick may send NaN.
#[derive(Clone, PartialEq, Debug)]
pub struct TimingData {
    /// Time of each stage, in the order of the blob.
    pub stages_ms: Vec<f32>,
    /// Time to receive the input tensor.
    pub receive_ms: f32,
    /// The device's own total.
    pub total_ms: f32,
}

impl TimingData {
    /// Bytes of the packet of a graph with `stages` stages.
    pub fn packet_len(stages: usize) -> usize {
        stages.saturating_add(2).saturating_mul(4)
    }

    /// Reads the packet; the number of stages follows from its length, and the caller holds it against the blob's.
    ///
    /// # Errors
    /// A length that is no multiple of 4, or that has no room for the two last numbers.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let (words, rest) = bytes.as_chunks::<4>();
        let length = WireError::Length {
            what: "timing data",
            expected: Self::packet_len(words.len().saturating_sub(2)),
            found: bytes.len(),
        };
        let [stages @ .., receive, total] = words else { return Err(length) };
        if !rest.is_empty() {
            return Err(length);
        }
        Ok(TimingData {
            stages_ms: stages.iter().map(|w| f32::from_le_bytes(*w)).collect(),
            receive_ms: f32::from_le_bytes(*receive),
            total_ms: f32::from_le_bytes(*total),
        })
    }

    /// Writes the packet, for the device side.
    pub fn encode(&self) -> Vec<u8> {
        let tail = [self.receive_ms, self.total_ms];
        self.stages_ms.iter().chain(&tail).flat_map(|ms| ms.to_le_bytes()).collect()
    }
}

/// Answer to GET_DEBUG_DATA: text, of which nothing more is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DebugData {
    /// As received.
    pub raw: [u8; DEBUG_DATA_LEN],
}

impl DebugData {
    /// Reads the packet.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let raw = bytes.try_into().map_err(|_| WireError::Length {
            what: "debug data",
            expected: DEBUG_DATA_LEN,
            found: bytes.len(),
        })?;
        Ok(DebugData { raw })
    }

    /// Writes the packet, for the device side.
    pub fn encode(&self) -> [u8; DEBUG_DATA_LEN] {
        self.raw
    }

    /// The text up to the first NUL, with a replacement character for what is no UTF-8.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        let end = self.raw.iter().position(|&b| b == 0).unwrap_or(DEBUG_DATA_LEN);
        String::from_utf8_lossy(&self.raw[..end])
    }
}

/// Which way a FIFO goes, as seen from the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FifoDirection {
    /// Host writes tensors (`readChannel` 0, `writeChannel` 1).
    Input,
    /// Host reads tensors (`readChannel` 1, `writeChannel` 0).
    Output,
}

/// A command on `graphMonitor`. Each is answered by a [`Status`]; some send data first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GraphCommand {
    /// `GRAPH_VERIFY`: the blob's first 132 bytes follow on `stream`.
    Verify {
        /// Graph number.
        graph: u32,
        /// `graphBuffer<g>`.
        stream: StreamName,
    },
    /// `GRAPH_ALLOCATE`: the whole blob follows on `stream`. There it is answered by the input's and the output's
    /// [`TensorDescriptor`] and the [`StageCount`]; the status may come before or after them.
    Allocate {
        /// Graph number.
        graph: u32,
        /// `graphBuffer<g>`.
        stream: StreamName,
        /// Executors (throughput streams), 1 to 3.
        executors: u32,
    },
    /// `GRAPH_ALLOCATION_VERIFY`.
    AllocationVerify {
        /// Graph number.
        graph: u32,
        /// `graphBuffer<g>`.
        stream: StreamName,
    },
    /// `GRAPH_TRIGGER`: run on the oldest unconsumed element of `input`; status means queued, not done.
    Trigger {
        /// Graph number.
        graph: u32,
        /// Input FIFO.
        input_fifo: u32,
        /// Output FIFO.
        output_fifo: u32,
    },
    /// `GRAPH_DEALLOCATE`.
    Deallocate {
        /// Graph number.
        graph: u32,
    },
    /// `GRAPH_BUFFER_ALLOCATE`: makes the FIFO whose stream `name` was created just before.
    BufferAllocate {
        /// FIFO number.
        fifo: u32,
        /// `FIFO<f>`.
        name: StreamName,
        /// Elements that the FIFO holds.
        elements: u32,
        /// Shape and size of an element.
        tensor: TensorDescriptor,
        /// Input or output.
        direction: FifoDirection,
    },
    /// `GRAPH_BUFFER_DEALLOCATE`.
    BufferDeallocate {
        /// FIFO number.
        fifo: u32,
    },
    /// `GRAPH_GET_TIMING_DATA` → [`TimingData`], then the status.
    TimingData {
        /// Graph number.
        graph: u32,
    },
    /// `GRAPH_GET_DEBUG_DATA` → [`DebugData`], then the status.
    DebugData {
        /// Graph number.
        graph: u32,
    },
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GraphView {
    kind: U32,
    graph: U32,
    stream: [u8; 64],
    input_fifo: U32,
    output_fifo: U32,
    executors: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BufferAllocateView {
    kind: U32,
    fifo: U32,
    name: [u8; 64],
    elements: U32,
    tensor: DescriptorView,
    read_channel: u8,
    write_channel: u8,
    pad: [u8; 2],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct CommonView {
    kind: U32,
    id: U32,
}

const _: () = assert!(size_of::<GraphView>() == GRAPH_COMMAND_LEN);
const _: () = assert!(size_of::<BufferAllocateView>() == BUFFER_ALLOCATE_LEN);
const _: () = assert!(size_of::<CommonView>() == COMMON_COMMAND_LEN);

const ALLOCATE: u32 = 0;
const DEALLOCATE: u32 = 1;
const TRIGGER: u32 = 2;
const VERIFY: u32 = 3;
const ALLOCATION_VERIFY: u32 = 4;
const BUFFER_ALLOCATE: u32 = 5;
const BUFFER_DEALLOCATE: u32 = 6;
const GET_TIMING_DATA: u32 = 7;
const GET_DEBUG_DATA: u32 = 8;

/// A graph command as bytes: 8, 84 or 100 of them, no heap. Dereferences to the slice to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EncodedGraphCommand {
    bytes: [u8; BUFFER_ALLOCATE_LEN],
    len: usize,
}

impl AsRef<[u8]> for EncodedGraphCommand {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl EncodedGraphCommand {
    fn from(view: &[u8]) -> Self {
        let mut bytes = [0; BUFFER_ALLOCATE_LEN];
        bytes[..view.len()].copy_from_slice(view);
        EncodedGraphCommand { bytes, len: view.len() }
    }
}

impl std::ops::Deref for EncodedGraphCommand {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl GraphCommand {
    /// Reads a command; its length must be that of its type. Fields that the vendor leaves as garbage are ignored.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let length = |expected| WireError::Length { what: "graph command", expected, found: bytes.len() };
        let kind = match bytes.first_chunk::<4>() {
            Some(raw) => u32::from_le_bytes(*raw),
            None => return Err(length(COMMON_COMMAND_LEN)),
        };
        match kind {
            ALLOCATE | DEALLOCATE | TRIGGER | VERIFY | ALLOCATION_VERIFY => {
                let v = GraphView::ref_from_bytes(bytes).map_err(|_| length(GRAPH_COMMAND_LEN))?;
                let graph = v.graph.get();
                Ok(match kind {
                    ALLOCATE => GraphCommand::Allocate {
                        graph,
                        stream: StreamName::from_field(&v.stream)?,
                        executors: v.executors.get(),
                    },
                    DEALLOCATE => GraphCommand::Deallocate { graph },
                    TRIGGER => GraphCommand::Trigger {
                        graph,
                        input_fifo: v.input_fifo.get(),
                        output_fifo: v.output_fifo.get(),
                    },
                    VERIFY => GraphCommand::Verify { graph, stream: StreamName::from_field(&v.stream)? },
                    _ => GraphCommand::AllocationVerify { graph, stream: StreamName::from_field(&v.stream)? },
                })
            }
            BUFFER_ALLOCATE => {
                let v = BufferAllocateView::ref_from_bytes(bytes).map_err(|_| length(BUFFER_ALLOCATE_LEN))?;
                let direction = match (v.read_channel, v.write_channel) {
                    (0, 1) => FifoDirection::Input,
                    (1, 0) => FifoDirection::Output,
                    (r, w) => {
                        return Err(WireError::Value {
                            what: "buffer allocate: channels (read, write)",
                            value: u32::from(r) << 8 | u32::from(w),
                        });
                    }
                };
                Ok(GraphCommand::BufferAllocate {
                    fifo: v.fifo.get(),
                    name: StreamName::from_field(&v.name)?,
                    elements: v.elements.get(),
                    tensor: TensorDescriptor::from_view(&v.tensor),
                    direction,
                })
            }
            BUFFER_DEALLOCATE | GET_TIMING_DATA | GET_DEBUG_DATA => {
                let v = CommonView::ref_from_bytes(bytes).map_err(|_| length(COMMON_COMMAND_LEN))?;
                let id = v.id.get();
                Ok(match kind {
                    BUFFER_DEALLOCATE => GraphCommand::BufferDeallocate { fifo: id },
                    GET_TIMING_DATA => GraphCommand::TimingData { graph: id },
                    _ => GraphCommand::DebugData { graph: id },
                })
            }
            value => Err(WireError::Value { what: "graph command: type", value }),
        }
    }

    /// Writes a command; bytes that the vendor leaves as garbage are zero.
    pub fn encode(&self) -> EncodedGraphCommand {
        let graph_view = |kind, graph, stream: StreamName, input_fifo, output_fifo, executors| {
            EncodedGraphCommand::from(
                GraphView {
                    kind: U32::new(kind),
                    graph: U32::new(graph),
                    stream: stream.to_field(),
                    input_fifo: U32::new(input_fifo),
                    output_fifo: U32::new(output_fifo),
                    executors: U32::new(executors),
                }
                .as_bytes(),
            )
        };
        let common = |kind, id| {
            EncodedGraphCommand::from(CommonView { kind: U32::new(kind), id: U32::new(id) }.as_bytes())
        };
        match *self {
            GraphCommand::Verify { graph, stream } => graph_view(VERIFY, graph, stream, 0, 0, 0),
            GraphCommand::Allocate { graph, stream, executors } => {
                graph_view(ALLOCATE, graph, stream, 0, 0, executors)
            }
            GraphCommand::AllocationVerify { graph, stream } => {
                graph_view(ALLOCATION_VERIFY, graph, stream, 0, 0, 0)
            }
            GraphCommand::Trigger { graph, input_fifo, output_fifo } => {
                graph_view(TRIGGER, graph, StreamName::EMPTY, input_fifo, output_fifo, 0)
            }
            GraphCommand::Deallocate { graph } => graph_view(DEALLOCATE, graph, StreamName::EMPTY, 0, 0, 0),
            GraphCommand::BufferAllocate { fifo, name, elements, tensor, direction } => {
                let (read_channel, write_channel) = match direction {
                    FifoDirection::Input => (0, 1),
                    FifoDirection::Output => (1, 0),
                };
                EncodedGraphCommand::from(
                    BufferAllocateView {
                        kind: U32::new(BUFFER_ALLOCATE),
                        fifo: U32::new(fifo),
                        name: name.to_field(),
                        elements: U32::new(elements),
                        tensor: tensor.to_view(),
                        read_channel,
                        write_channel,
                        pad: [0; 2],
                    }
                    .as_bytes(),
                )
            }
            GraphCommand::BufferDeallocate { fifo } => common(BUFFER_DEALLOCATE, fifo),
            GraphCommand::TimingData { graph } => common(GET_TIMING_DATA, graph),
            GraphCommand::DebugData { graph } => common(GET_DEBUG_DATA, graph),
        }
    }
}
