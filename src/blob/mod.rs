//! The compiled graph file (`.blob`, version 6.0): header, tensors, stages, operation count, and the sealed host copy.
//!
//! ```text
//! Blob::open(path) ─► store (one sealed copy in memory, hashed) ─► parse (every bound checked) ─► Graph
//! ```
//! A blob never changes under its reader: a user's file is copied once into a sealed memory file.

mod macs;
mod nce;
mod needed;
mod parse;
mod reader;
mod roles;
mod stage;
mod store;
mod tensor;
mod trace;

pub use macs::Macs;
pub use stage::{Activation, Nce, NceDescriptor, NceOp, PoolKind, Stage, StageKind};
pub use store::{Blob, BlobHash, MAX_FILE_BYTES, SharedBytes};
pub use tensor::{DataType, IoTensor, Location, MAX_DIMS, Order, View};

/// Longest name of an input or output that is accepted, bytes.
pub const MAX_NAME_BYTES: usize = 1 << 12;

/// A file that is no compiled graph, or a damaged or unsupported one: which field, where, expected and found.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("at byte {offset}, {field}: {problem}")]
pub struct BlobError {
    /// Byte offset in the file.
    pub offset: usize,
    /// The field, such as `stage 12 / buffer 3 / dims`.
    pub field: String,
    /// What was expected and what was found.
    pub problem: String,
    /// What to do about it, where that is not to compile with the right release.
    pub remedy: Option<&'static str>,
}

/// Everything that a blob says, checked. Offsets and sizes in bytes; dims and strides minor to major (memory order).
#[derive(Clone, PartialEq, Debug)]
pub struct Graph {
    /// Version of the format, 6.0.
    pub version: (u32, u32),
    /// Size of the file.
    pub file_bytes: usize,
    /// Tensors of one input element, in ascending name order.
    pub inputs: Vec<IoTensor>,
    /// Tensors of one output element.
    pub outputs: Vec<IoTensor>,
    /// Bytes of one input FIFO element: all inputs, whole batch.
    pub input_bytes: usize,
    /// Bytes of one output FIFO element.
    pub output_bytes: usize,
    /// The stage list describes one element of the batch; the device runs it this many times.
    pub batch: u32,
    /// DRAM scratch ("BSS").
    pub bss_bytes: usize,
    /// CMX slices of 128 KiB per executor.
    pub cmx_slices: u32,
    /// SHAVE cores per executor.
    pub shaves: u32,
    /// Where the constant section begins in the file; [`View::offset`] in [`Location::Blob`] counts from here.
    pub const_offset: usize,
    /// In execution order. Injected stages hang on their parent and are not counted by `stages.len()`.
    pub stages: Vec<Stage>,
}

/// Bytes of a CMX slice.
pub const CMX_SLICE_BYTES: usize = 128 * 1024;

impl Graph {
    /// Reads a whole file. Never panics, never allocates beyond a small multiple of the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, BlobError> {
        parse::graph(bytes)
    }

    /// The network's own multiply-accumulates and those that the descriptors order, per stage and in all, whole batch.
    pub fn macs(&self, bytes: &[u8]) -> Macs {
        macs::count(self, bytes)
    }

    /// Bytes of stage operands that lie in the blob, each range once.
    pub fn weights_bytes(&self) -> usize {
        macs::weights_bytes(self)
    }

    /// How many stages bring code of their own to the stick (kind 115): such a blob is a program that its author wrote, and is
    /// to be loaded only where the user trusts it.
    pub fn custom_stages(&self) -> usize {
        let all = self.stages.iter().flat_map(|stage| [Some(stage), stage.injected.as_deref()]);
        all.flatten().filter(|stage| stage.kind == StageKind::CUSTOM).count()
    }

    /// DRAM that one loaded copy takes beside its FIFOs: the file and its scratch for each executor.
    pub fn stick_bytes(&self, executors: u32) -> usize {
        self.file_bytes + self.bss_bytes * executors as usize
    }
}
