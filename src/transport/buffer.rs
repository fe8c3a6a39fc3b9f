//! Memory that can be lent to a transport.

mod anonymous;
mod region;

use std::fmt;
use std::sync::Arc;

use anonymous::Anonymous;
pub use anonymous::{HostMemory, HostMemoryTally};
pub(in crate::transport) use region::{Piece, Region};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Alignment of owned memory: a cache line, so that SIMD conversion and the host controller's DMA start on one.
pub const BUFFER_ALIGN: usize = 64;

/// A run of bytes, 64-byte aligned when owned, that travels with a transfer and comes back with its completion.
pub struct Buffer(Memory);

// Owned memory is a vector of aligned blocks that zerocopy views as bytes: aligned without `unsafe`.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
struct Block([u8; BUFFER_ALIGN]);

const _: () = assert!(align_of::<Block>() == BUFFER_ALIGN && size_of::<Block>() == BUFFER_ALIGN);

enum Memory {
    Owned { blocks: Box<[Block]>, len: usize },
    Shared(Arc<dyn AsRef<[u8]> + Send + Sync>),
    Mapped(Piece),
    Anonymous(Anonymous),
}

impl From<Piece> for Buffer {
    fn from(piece: Piece) -> Self {
        Buffer(Memory::Mapped(piece))
    }
}

impl Buffer {
    /// Zeroed ordinary memory of `len` bytes, 64-byte aligned.
    pub fn zeroed(len: usize) -> Self {
        let blocks = vec![Block::new_zeroed(); len.div_ceil(BUFFER_ALIGN)].into_boxed_slice();
        Buffer(Memory::Owned { blocks, len })
    }

    /// As [`Buffer::zeroed`], on memory that the kernel treats as asked, as far as it grants that; `tally` counts it.
    pub fn zeroed_with(len: usize, asked: HostMemory, tally: &Arc<HostMemoryTally>) -> Self {
        match Anonymous::new(len, asked, tally) {
            Some(memory) => Buffer(Memory::Anonymous(memory)),
            None => Buffer::zeroed(len),
        }
    }

    /// Memory shared by several transfers, to be sent only: a blob's one host copy.
    pub fn shared(bytes: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        Buffer(Memory::Shared(bytes))
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Memory::Owned { blocks, len } => &blocks.as_bytes()[..*len],
            Memory::Shared(s) => (**s).as_ref(),
            Memory::Mapped(piece) => piece.as_slice(),
            Memory::Anonymous(memory) => memory.as_slice(),
        }
    }

    /// The bytes to write; `None` for shared memory.
    pub fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        match &mut self.0 {
            Memory::Owned { blocks, len } => Some(&mut blocks.as_mut_bytes()[..*len]),
            Memory::Shared(_) => None,
            Memory::Mapped(piece) => Some(piece.as_mut_slice()),
            Memory::Anonymous(memory) => Some(memory.as_mut_slice()),
        }
    }

    /// True for memory that can only be sent.
    pub fn is_shared(&self) -> bool {
        matches!(self.0, Memory::Shared(_))
    }

    /// True for memory of a device's mapping, which goes back to the mapping when it is dropped.
    pub fn is_mapped(&self) -> bool {
        matches!(self.0, Memory::Mapped(_))
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            Memory::Owned { len, .. } => *len,
            Memory::Shared(s) => (**s).as_ref().len(),
            Memory::Mapped(piece) => piece.len(),
            Memory::Anonymous(memory) => memory.as_slice().len(),
        }
    }

    /// True for no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owned_memory_is_aligned_zeroed_and_of_the_length_asked_for() {
        for len in [0, 1, 63, 64, 65, 4096, 100_001] {
            let mut buffer = Buffer::zeroed(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.as_slice().iter().all(|&b| b == 0));
            assert_eq!(buffer.as_slice().as_ptr() as usize % BUFFER_ALIGN, 0, "length {len}");
            assert_eq!(buffer.as_mut_slice().map(|s| s.len()), Some(len));
        }
    }

    #[test]
    fn shared_memory_can_only_be_read() {
        let mut buffer = Buffer::shared(Arc::new(vec![1u8, 2, 3]));
        assert_eq!(buffer.as_slice(), [1, 2, 3]);
        assert!(buffer.is_shared());
        assert!(buffer.as_mut_slice().is_none());
    }
}
