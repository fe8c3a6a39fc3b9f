//! Memory that can be lent to a transport.

use std::fmt;
use std::sync::Arc;

/// A run of bytes, 64-byte aligned when owned, that travels with a transfer and comes back with its completion.
pub struct Buffer(Memory);

enum Memory {
    Owned(Vec<u8>),
    Shared(Arc<dyn AsRef<[u8]> + Send + Sync>),
}

impl Buffer {
    /// Zeroed ordinary memory of `len` bytes.
    pub fn zeroed(len: usize) -> Self {
        Buffer(Memory::Owned(vec![0; len]))
    }

    /// Memory shared by several transfers, to be sent only: a blob's one host copy.
    pub fn shared(bytes: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        Buffer(Memory::Shared(bytes))
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Memory::Owned(v) => v,
            Memory::Shared(s) => (**s).as_ref(),
        }
    }

    /// The bytes to write; `None` for shared memory.
    pub fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        match &mut self.0 {
            Memory::Owned(v) => Some(v),
            Memory::Shared(_) => None,
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.as_slice().len()
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
