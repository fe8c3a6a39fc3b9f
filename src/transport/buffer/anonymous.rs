//! Ordinary memory in a mapping of its own: the form that can be kept out of swap and laid on huge pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use memmap2::{Advice, MmapMut};

/// What is asked of the kernel for host memory. Both are requests: where they are refused, the memory is ordinary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostMemory {
    /// Keep it out of swap (`mlock`), as far as the limit of locked memory goes.
    pub lock: bool,
    /// Ask for huge pages where a buffer is as large as one.
    pub huge_pages: bool,
}

/// What became of it, summed over all buffers that live.
#[derive(Default, Debug)]
pub struct HostMemoryTally {
    locked: AtomicUsize,
    huge: AtomicUsize,
    refused: AtomicU64,
}

/// A huge page of the machines that sticks are plugged into. A smaller buffer cannot lie on one.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Smaller buffers would waste most of a page each.
const SMALLEST: usize = 4 << 10;

pub(super) struct Anonymous {
    map: MmapMut,
    locked: bool,
    huge: bool,
    tally: Arc<HostMemoryTally>,
}

impl HostMemoryTally {
    /// Bytes that are kept out of swap now.
    pub fn locked_bytes(&self) -> usize {
        self.locked.load(Ordering::Relaxed)
    }

    /// Bytes for which the kernel was asked for huge pages; it lays them when it has some.
    pub fn huge_bytes(&self) -> usize {
        self.huge.load(Ordering::Relaxed)
    }

    /// How often it said no.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Anonymous {
    /// `None` where plain memory does as well, or there is no mapping to be had.
    pub(super) fn new(len: usize, asked: HostMemory, tally: &Arc<HostMemoryTally>) -> Option<Self> {
        let huge = asked.huge_pages && len >= HUGE_PAGE_BYTES;
        if len < SMALLEST || !(asked.lock || huge) {
            return None;
        }
        let map = MmapMut::map_anon(len).ok()?;
        let granted = |wanted: bool, outcome: &dyn Fn() -> std::io::Result<()>| {
            wanted && outcome().map_err(|_| tally.refused.fetch_add(1, Ordering::Relaxed)).is_ok()
        };
        // Advice first: locking touches every page, and by then they should be the right ones.
        let huge = granted(huge, &|| map.advise(Advice::HugePage));
        let locked = granted(asked.lock, &|| map.lock());
        if huge {
            tally.huge.fetch_add(len, Ordering::Relaxed);
        }
        if locked {
            tally.locked.fetch_add(len, Ordering::Relaxed);
        }
        Some(Anonymous { map, locked, huge, tally: tally.clone() })
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.map
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.map
    }
}

impl Drop for Anonymous {
    fn drop(&mut self) {
        // Unmapping unlocks.
        if self.huge {
            self.tally.huge.fetch_sub(self.map.len(), Ordering::Relaxed);
        }
        if self.locked {
            self.tally.locked.fetch_sub(self.map.len(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_grants_is_counted_while_it_lives() {
        let tally = Arc::new(HostMemoryTally::default());
        let asked = HostMemory { lock: true, huge_pages: true };
        let kept = Anonymous::new(64 << 10, asked, &tally).expect("64 KiB can be mapped");
        assert!(kept.as_slice().iter().all(|&b| b == 0));
        // Whether locking is allowed is the machine's affair; that it is counted one way or the other is ours.
        assert_eq!((tally.locked_bytes() == 64 << 10) as u64 + tally.refused(), 1);
        assert_eq!(tally.huge_bytes(), 0, "smaller than a huge page");
        drop(kept);
        assert_eq!((tally.locked_bytes(), tally.huge_bytes()), (0, 0));
    }

    #[test]
    fn small_memory_and_no_wish_are_left_to_the_allocator() {
        let tally = Arc::new(HostMemoryTally::default());
        assert!(Anonymous::new(1 << 20, HostMemory::default(), &tally).is_none());
        assert!(Anonymous::new(256, HostMemory { lock: true, huge_pages: true }, &tally).is_none());
        assert!(Anonymous::new(1 << 20, HostMemory { lock: false, huge_pages: true }, &tally).is_none());
    }
}
