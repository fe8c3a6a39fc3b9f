//! FIFOs of a stick: tensors that wait for their trigger.

use std::collections::VecDeque;

use ncs2::wire::FifoDirection;

use crate::link::Slot;

/// An input tensor as far as the engine needs it: all bytes to execute, a sample to hash.
#[derive(Debug)]
pub(crate) struct Element {
    pub(crate) bytes: Vec<u8>,
    /// Length on the wire.
    pub(crate) wire_bytes: usize,
}

#[derive(Debug)]
pub(crate) struct Fifo {
    pub(crate) id: u32,
    /// `None` after its stream was closed.
    pub(crate) slot: Option<Slot>,
    pub(crate) direction: FifoDirection,
    pub(crate) element_bytes: usize,
    /// DRAM charged.
    pub(crate) charged: u64,
    /// Inputs without a run.
    pub(crate) waiting: VecDeque<Element>,
}
