//! Buffers that the host controller reads and writes directly: taken first, as long as the kernel gives any.
//!
//! The kernel caps the memory of all usbfs files together (`usbfs_memory_mb`, 16 MB by default), and URBs over ordinary
//! memory count too. So mappings grow with need, take at most their part of the cap ([`Budget`]), and a refusal means
//! ordinary memory, not failure. Where a mapping is not cached (no coherent DMA) reading it can be many times slower than
//! ordinary memory: that is measured once, and buffers to receive into are mapped only where reading is fast enough.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::buffer::{Buffer, Region};
use super::{Direction, MemoryKind};
use crate::clock::{Clock as _, Monotonic};

/// Largest mapping: beyond it the kernel's allocator has no contiguous memory (measured: 8 MiB is refused at any limit).
pub const LARGEST_MAPPING: usize = 4 << 20;
/// The first mapping, made when the stick is opened; enough for headers, small tensors and the measurement.
const FIRST_MAPPING: usize = 256 << 10;
const PAGE: usize = 4096;
/// After a refusal the kernel is asked again once in so many times.
const ASK_AGAIN: u32 = 256;

/// Bytes that a process may have mapped, all its sticks together.
#[derive(Debug)]
pub(super) struct Budget {
    mapped: AtomicUsize,
}

impl Budget {
    pub(super) const fn new() -> Self {
        Budget { mapped: AtomicUsize::new(0) }
    }

    fn take(&self, bytes: usize, limit: usize) -> bool {
        let add = |mapped: usize| mapped.checked_add(bytes).filter(|&sum| sum <= limit);
        self.mapped.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.mapped.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What [`MappedMemory`] found and has, for reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryReport {
    /// [`MemoryKind::Mapped`] when the controller reads the buffers that are sent directly.
    pub kind: MemoryKind,
    /// True when it also writes received tensors directly; false where the mapping is too slow to read.
    pub maps_received: bool,
    /// Bytes mapped now.
    pub mapped_bytes: usize,
    /// Reading a mapping, MB/s; 0 when there was none to measure.
    pub mapped_read_mb_s: u32,
    /// Reading ordinary memory, MB/s, measured beside it.
    pub ordinary_read_mb_s: u32,
    /// Why not, or not all: the kernel's limit, mostly.
    pub why_not: Option<String>,
}

type Map = Box<dyn Fn(usize) -> Result<Arc<Region>, Errno> + Send + Sync>;

/// Mapped memory of one open stick.
pub struct MappedMemory {
    map: Map,
    budget: &'static Budget,
    /// Most that the budget may hold.
    limit: usize,
    maps_received: bool,
    mapped_read_mb_s: u32,
    ordinary_read_mb_s: u32,
    regions: Mutex<Regions>,
}

#[derive(Default)]
struct Regions {
    regions: Vec<Charged>,
    why_not: Option<String>,
    /// Requests to turn down before the kernel is asked again.
    pause: u32,
}

/// A region with its part of the budget. The budget counts what can still be lent out, not what callers keep of a stick
/// that is gone; the kernel counts both, and refuses.
struct Charged {
    region: Arc<Region>,
    budget: &'static Budget,
}

impl Drop for Charged {
    fn drop(&mut self) {
        self.budget.give_back(self.region.len());
    }
}

impl MappedMemory {
    /// Makes the first mapping and measures it. `limit`: most bytes of `budget`.
    pub(super) fn new(map: Map, budget: &'static Budget, limit: usize) -> Self {
        let mut memory = MappedMemory {
            map,
            budget,
            limit,
            maps_received: false,
            mapped_read_mb_s: 0,
            ordinary_read_mb_s: 0,
            regions: Mutex::default(),
        };
        let first = memory.grow(&mut memory.regions.lock(), PAGE);
        if let Some(region) = first
            && let Some(piece) = region.take(region.len())
        {
            let (mapped, ordinary) = compare_reading(Buffer::from(piece));
            memory.mapped_read_mb_s = mapped;
            memory.ordinary_read_mb_s = ordinary;
            memory.maps_received = reads_well(mapped, ordinary);
        }
        memory
    }

    /// A buffer of exactly `len` bytes to send or to receive into, and whether it may hold somebody's old bytes; `None`: take
    /// ordinary memory.
    pub fn take(&self, len: usize, direction: Direction) -> Option<(Buffer, bool)> {
        if len == 0 || len > LARGEST_MAPPING || (direction == Direction::In && !self.maps_received) {
            return None;
        }
        let mut regions = self.regions.lock();
        let piece = regions.regions.iter().find_map(|c| c.region.take(len));
        let piece = piece.or_else(|| self.grow(&mut regions, len)?.take(len))?;
        let stale = piece.is_stale();
        Some((Buffer::from(piece), stale))
    }

    /// Another mapping, for `len` bytes at least.
    fn grow(&self, regions: &mut Regions, len: usize) -> Option<Arc<Region>> {
        if regions.pause > 0 {
            regions.pause -= 1;
            return None;
        }
        let len = len.next_multiple_of(PAGE);
        let last = regions.regions.last().map_or(FIRST_MAPPING / 2, |c| c.region.len());
        // Twice the last, so that few mappings serve a large need and a small need takes little from other sticks.
        let mut size = (last * 2).min(LARGEST_MAPPING).max(len);
        let why_not = loop {
            let why_not = if self.budget.take(size, self.limit) {
                match (self.map)(size) {
                    Ok(region) => {
                        regions.why_not = None;
                        regions.regions.push(Charged { region: region.clone(), budget: self.budget });
                        return Some(region);
                    }
                    Err(errno) => {
                        self.budget.give_back(size);
                        if errno != Errno::NOMEM {
                            break format!("the kernel does not map its file: {errno}");
                        }
                        "the kernel has no memory left for USB: raise usbcore.usbfs_memory_mb"
                    }
                }
            } else {
                "the sticks of this process have their part of usbcore.usbfs_memory_mb: raise it"
            };
            if size == len {
                break why_not.to_owned();
            }
            size = (size / 2).next_multiple_of(PAGE).max(len);
        };
        regions.pause = ASK_AGAIN;
        regions.why_not = Some(why_not);
        None
    }

    /// What there is now.
    pub fn report(&self) -> MemoryReport {
        let regions = self.regions.lock();
        let mapped_bytes = regions.regions.iter().map(|c| c.region.len()).sum();
        MemoryReport {
            kind: if mapped_bytes > 0 { MemoryKind::Mapped } else { MemoryKind::Copied },
            maps_received: self.maps_received,
            mapped_bytes,
            mapped_read_mb_s: self.mapped_read_mb_s,
            ordinary_read_mb_s: self.ordinary_read_mb_s,
            why_not: regions.why_not.clone(),
        }
    }
}

impl fmt::Debug for MappedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.report())
    }
}

/// Reading has to reach half of ordinary memory's rate; less, and the copy that a mapping saves is the cheaper way.
fn reads_well(mapped: u32, ordinary: u32) -> bool {
    mapped > 0 && u64::from(mapped) * 2 >= u64::from(ordinary)
}

/// MB/s of reading `mapped`, and of reading ordinary memory as long; best of some passes, taken in turn.
fn compare_reading(mapped: Buffer) -> (u32, u32) {
    /// An uncached mapping is slow: one pass tells.
    const LIMIT: Duration = Duration::from_millis(5);
    let clock = Monotonic::new();
    let ordinary = Buffer::zeroed(mapped.len());
    let pass = |buffer: &Buffer| {
        let begin = clock.now();
        let words = buffer.as_slice().as_chunks::<8>().0;
        let sum = words.iter().fold(0_u64, |sum, word| sum.wrapping_add(u64::from_ne_bytes(*word)));
        std::hint::black_box(sum);
        clock.now() - begin
    };
    let begin = clock.now();
    let mut best = [Duration::MAX; 2];
    for _ in 0..8 {
        best = [best[0].min(pass(&mapped)), best[1].min(pass(&ordinary))];
        if clock.now() - begin > LIMIT {
            break;
        }
    }
    let rate = |time: Duration| (mapped.len() as u128 * 1000 / time.as_nanos().max(1)) as u32;
    (rate(best[0]), rate(best[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> &'static Budget {
        Box::leak(Box::new(Budget::new()))
    }

    /// As the kernel: refuses beyond `cap` bytes.
    fn kernel(cap: usize) -> (Map, Arc<Mutex<Vec<usize>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, given) = (asked.clone(), AtomicUsize::new(0));
        let map = move |len| {
            seen.lock().push(len);
            if given.load(Ordering::Relaxed) + len > cap {
                return Err(Errno::NOMEM);
            }
            given.fetch_add(len, Ordering::Relaxed);
            Region::anonymous(len)
        };
        (Box::new(map), asked)
    }

    #[test]
    fn mappings_grow_with_need_up_to_the_budget() {
        let budget = budget();
        let memory = MappedMemory::new(kernel(usize::MAX).0, budget, 1 << 20);
        assert_eq!(memory.report().mapped_bytes, FIRST_MAPPING);
        let (small, stale) = memory.take(100, Direction::Out).expect("room");
        assert!(small.is_mapped() && small.len() == 100);
        assert!(stale, "the measurement may have been there");
        let large: Vec<_> = std::iter::from_fn(|| memory.take(256 << 10, Direction::Out)).collect();
        assert_eq!(large.len(), 3, "what is left of 1 MiB beside the first mapping");
        let report = memory.report();
        assert_eq!((report.kind, report.mapped_bytes), (MemoryKind::Mapped, 1 << 20));
        assert!(report.why_not.expect("a reason").contains("usbfs_memory_mb"));
        assert!(memory.take(LARGEST_MAPPING + 1, Direction::Out).is_none());
        drop((memory, large, small));
        assert_eq!(budget.mapped.load(Ordering::Relaxed), 0, "all given back");
    }

    #[test]
    fn a_refusal_of_the_kernel_is_no_failure_and_not_repeated_each_time() {
        let (map, asked) = kernel(300 << 10);
        let memory = MappedMemory::new(map, budget(), usize::MAX);
        let held = memory.take(200 << 10, Direction::Out).expect("of the first mapping");
        let times = || asked.lock().len();
        let before = times();
        assert!(memory.take(200 << 10, Direction::Out).is_none());
        assert!(times() > before, "smaller ones were tried");
        let before = times();
        assert!((0..100).all(|_| memory.take(200 << 10, Direction::Out).is_none()));
        assert_eq!(times(), before, "the kernel is left in peace for a while");
        assert!(memory.report().why_not.expect("a reason").contains("no memory left for USB"));
        drop(held);
        assert!(memory.take(200 << 10, Direction::Out).is_some(), "what came back is used again");
    }

    #[test]
    fn kernel_that_maps_nothing_leaves_ordinary_memory() {
        let memory = MappedMemory::new(Box::new(|_| Err(Errno::NODEV)), budget(), usize::MAX);
        assert!(memory.take(100, Direction::Out).is_none());
        let report = memory.report();
        assert_eq!((report.kind, report.mapped_bytes, report.maps_received), (MemoryKind::Copied, 0, false));
        assert!(report.why_not.expect("a reason").contains("does not map"));
    }

    #[test]
    fn slow_mappings_are_for_sending_alone() {
        assert!(reads_well(5_000, 10_000) && reads_well(10_001, 10_000));
        assert!(!reads_well(4_999, 10_000) && !reads_well(0, 0));
        let mut memory = MappedMemory::new(kernel(usize::MAX).0, budget(), usize::MAX);
        assert!(memory.mapped_read_mb_s > 0 && memory.ordinary_read_mb_s > 0, "both were measured");
        for maps_received in [true, false] {
            memory.maps_received = maps_received;
            assert_eq!(memory.take(1024, Direction::In).is_some(), maps_received);
            assert!(memory.take(1024, Direction::Out).is_some());
        }
    }
}
