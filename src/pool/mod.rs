//! Host buffers of one stick: recycled by size class, 64-byte aligned, never beyond a ceiling.
//!
//! A [`Lease`] is memory on loan: dropping it gives the buffer back. Its [`Buffer`] may travel further, into a
//! transfer and back, while the lease stays where it is ([`Lease::lend`], [`Lease::restore`]).
//!
//! Mapped memory of the stick's own ([`Pool::set_source`]) is taken first, ordinary memory next. It goes back to its mapping,
//! never into the pool's classes: a connection's mappings must not outlive it by more than its last lease.
//!
//! Inputs may not take what outputs need: a queue full of inputs and no memory for a single output would stand still
//! for ever. So each graph reserves its outputs ([`Pool::reserve_outputs`]) and inputs stay below the rest.

mod host;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};

use crate::error::{Error, ErrorKind};
use crate::transport::Buffer;
use crate::transport::HostMemoryTally;

pub use crate::transport::HostMemory;
pub use host::{DEFAULT_CEILING_BYTES, ceiling_for_host};

/// Smallest size class, bytes.
const SMALLEST_CLASS: usize = 256;

/// What a lease is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Use {
    /// An input element, or anything else that may wait.
    Input,
    /// An output element, which may use what is reserved for outputs.
    Output,
}

/// Counters and sizes of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolStats {
    /// Most bytes that the pool may hold.
    pub ceiling_bytes: usize,
    /// Bytes out on loan, whole classes.
    pub in_use_bytes: usize,
    /// Bytes kept for the next lease.
    pub idle_bytes: usize,
    /// Largest sum of both so far.
    pub high_water_bytes: usize,
    /// Bytes on loan that nobody asked for: classes are larger than requests.
    pub slack_bytes: usize,
    /// Of the bytes on loan, those in mappings.
    pub mapped_bytes: usize,
    /// Bytes that inputs may not take.
    pub reserved_bytes: usize,
    /// Leases out now.
    pub leases: usize,
    /// Leases served from kept buffers or a mapping.
    pub hits: u64,
    /// Leases that allocated.
    pub misses: u64,
    /// Leases refused, at once or after waiting.
    pub refused: u64,
    /// Of the bytes held, those that the kernel keeps out of swap.
    pub locked_bytes: usize,
    /// Of the bytes held, those that it was asked to lay on huge pages.
    pub huge_bytes: usize,
    /// How often it refused either.
    pub memory_refusals: u64,
}

/// The pool has no room: which pool, what was asked, what is in use.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "host pool {pool}: {asked} bytes asked, {in_use} of {ceiling} bytes in use; \
     drop outputs and inputs that are no longer needed, or raise the pool's ceiling"
)]
pub struct PoolError {
    /// Name of the pool.
    pub pool: String,
    /// Bytes asked.
    pub asked: usize,
    /// Bytes out on loan.
    pub in_use: usize,
    /// Most that the pool may hold.
    pub ceiling: usize,
}

impl From<PoolError> for Error {
    fn from(e: PoolError) -> Self {
        Error::new(ErrorKind::OutOfMemory, "lease host memory").detail(e.to_string())
    }
}

/// Buffers of one stick. Cheap to clone; all clones are the same pool.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

type Waker = Box<dyn Fn() + Send + Sync>;

/// Gives a buffer of exactly so many bytes, and says whether it may hold old bytes; `None` when it has none.
pub type Source = Box<dyn Fn(usize, Use) -> Option<(Buffer, bool)> + Send + Sync>;

struct Inner {
    name: String,
    state: Mutex<State>,
    freed: Condvar,
    /// A lease was refused without waiting: the next release calls `waker`.
    starved: AtomicBool,
    waker: OnceLock<Waker>,
    source: RwLock<Option<Source>>,
    memory: HostMemory,
    tally: Arc<HostMemoryTally>,
}

struct State {
    classes: Vec<Class>,
    input_bytes: usize,
    waiters: usize,
    stats: PoolStats,
}

struct Class {
    size: usize,
    idle: Vec<Buffer>,
    /// Fewest idle since the last trim: that many were never needed.
    spare: usize,
}

/// Size class of a request: four steps per doubling, so that at most a fifth of a buffer is slack.
fn class_size(len: usize) -> usize {
    if len <= SMALLEST_CLASS {
        return SMALLEST_CLASS;
    }
    let step = len.next_power_of_two() / 8;
    len.next_multiple_of(step)
}

impl State {
    fn fits(&self, size: usize, purpose: Use) -> bool {
        let s = &self.stats;
        let total = s.in_use_bytes.saturating_add(size);
        // Outputs may always have half, however large a reservation somebody asked for.
        let inputs = s.ceiling_bytes - s.reserved_bytes.min(s.ceiling_bytes / 2);
        total <= s.ceiling_bytes
            && (purpose == Use::Output || self.input_bytes.saturating_add(size) <= inputs)
    }

    fn class(&mut self, size: usize) -> &mut Class {
        let at = match self.classes.binary_search_by_key(&size, |c| c.size) {
            Ok(at) => at,
            Err(at) => {
                self.classes.insert(at, Class { size, idle: Vec::new(), spare: 0 });
                at
            }
        };
        &mut self.classes[at]
    }

    /// Takes the memory of a lease into account; `mapped`: the lease has its buffer. Else one that was kept, or the caller
    /// allocates.
    fn take(&mut self, size: usize, len: usize, purpose: Use, mapped: bool) -> (Option<Buffer>, Vec<Buffer>) {
        let mut kept = None;
        if mapped {
            self.stats.mapped_bytes += size;
        } else {
            let class = self.class(size);
            kept = class.idle.pop();
            class.spare = class.spare.min(class.idle.len());
        }
        let mut evicted = Vec::new();
        if kept.is_some() {
            self.stats.hits += 1;
            self.stats.idle_bytes -= size;
        } else {
            if mapped {
                self.stats.hits += 1;
            } else {
                self.stats.misses += 1;
            }
            // Kept buffers of other classes make room, the largest first.
            for class in self.classes.iter_mut().rev() {
                while self.stats.in_use_bytes + self.stats.idle_bytes + size > self.stats.ceiling_bytes {
                    let Some(buffer) = class.idle.pop() else { break };
                    class.spare = class.spare.min(class.idle.len());
                    self.stats.idle_bytes -= class.size;
                    evicted.push(buffer);
                }
            }
        }
        self.stats.in_use_bytes += size;
        self.stats.slack_bytes += size - len;
        self.stats.leases += 1;
        if purpose == Use::Input {
            self.input_bytes += size;
        }
        let held = self.stats.in_use_bytes + self.stats.idle_bytes;
        self.stats.high_water_bytes = self.stats.high_water_bytes.max(held);
        (kept, evicted)
    }
}

impl Pool {
    /// An empty pool that holds at most `ceiling_bytes`. `name` is for messages: the stick's.
    pub fn new(name: impl Into<String>, ceiling_bytes: usize) -> Self {
        Self::with_memory(name, ceiling_bytes, HostMemory::default())
    }

    /// As [`Pool::new`], asking for such memory where it allocates.
    pub fn with_memory(name: impl Into<String>, ceiling_bytes: usize, memory: HostMemory) -> Self {
        Pool(Arc::new(Inner {
            name: name.into(),
            state: Mutex::new(State {
                classes: Vec::new(),
                input_bytes: 0,
                waiters: 0,
                stats: PoolStats { ceiling_bytes, ..PoolStats::default() },
            }),
            freed: Condvar::new(),
            starved: AtomicBool::new(false),
            waker: OnceLock::new(),
            source: RwLock::new(None),
            memory,
            tally: Arc::default(),
        }))
    }

    /// What is called when memory comes back after [`Pool::try_lease`] was refused. The first call counts; it must
    /// not block and must not use the pool.
    pub fn on_release(&self, waker: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.waker.set(Box::new(waker));
    }

    /// Memory of at least `len` bytes, now or not at all.
    pub fn try_lease(&self, len: usize, purpose: Use) -> Result<Lease, PoolError> {
        let size = class_size(len);
        let mut state = self.0.state.lock();
        if !state.fits(size, purpose) {
            // Under the lock, so that no release can fall between the refusal and the flag.
            self.0.starved.store(true, Ordering::Relaxed);
            state.stats.refused += 1;
            return Err(self.refusal(len, &state));
        }
        Ok(self.finish(state, size, len, purpose))
    }

    /// Memory of at least `len` bytes; waits for at most `timeout` for others to give theirs back.
    pub fn lease(&self, len: usize, purpose: Use, timeout: Duration) -> Result<Lease, PoolError> {
        let size = class_size(len);
        let mut state = self.0.state.lock();
        // What the whole pool could not hold is not worth waiting for.
        if !state.fits(size, purpose) && size <= state.stats.ceiling_bytes {
            state.waiters += 1;
            self.0.freed.wait_while_for(&mut state, |state| !state.fits(size, purpose), timeout);
            state.waiters -= 1;
        }
        if !state.fits(size, purpose) {
            state.stats.refused += 1;
            return Err(self.refusal(len, &state));
        }
        Ok(self.finish(state, size, len, purpose))
    }

    fn refusal(&self, asked: usize, state: &State) -> PoolError {
        PoolError {
            pool: self.0.name.clone(),
            asked,
            in_use: state.stats.in_use_bytes,
            ceiling: state.stats.ceiling_bytes,
        }
    }

    fn finish(
        &self,
        mut state: parking_lot::MutexGuard<'_, State>,
        size: usize,
        len: usize,
        purpose: Use,
    ) -> Lease {
        let given = self.take_mapped(size, purpose);
        let mapped = given.is_some();
        let (kept, evicted) = state.take(size, len, purpose, mapped);
        drop(state);
        // Freeing and zeroing are slow: not under the lock.
        drop(evicted);
        let (buffer, stale) = match (given, kept) {
            (Some(given), _) => given,
            (None, Some(kept)) => (kept, true),
            (None, None) => (Buffer::zeroed_with(size, self.0.memory, &self.0.tally), false),
        };
        Lease { pool: self.clone(), buffer: Some(buffer), len, size, purpose, stale, mapped }
    }

    /// Where buffers come from first, until it has none: mappings of the connection at hand. `None` when it ends.
    pub fn set_source(&self, source: Option<Source>) {
        let before = std::mem::replace(&mut *self.0.source.write(), source);
        // Taking back mappings is slow: not under the lock.
        drop(before);
    }

    fn take_mapped(&self, len: usize, purpose: Use) -> Option<(Buffer, bool)> {
        self.0.source.read().as_ref().and_then(|source| source(len, purpose))
    }

    /// A buffer of exactly `len` bytes that the pool does not count: for the few small ones that a connection keeps.
    pub fn uncounted(&self, len: usize, purpose: Use) -> Buffer {
        self.take_mapped(len, purpose).map_or_else(|| Buffer::zeroed(len), |(buffer, _)| buffer)
    }

    /// Keeps `bytes` for outputs.
    pub fn reserve_outputs(&self, bytes: usize) {
        self.0.state.lock().stats.reserved_bytes += bytes;
    }

    /// Takes a reservation back.
    pub fn unreserve_outputs(&self, bytes: usize) {
        let mut state = self.0.state.lock();
        state.stats.reserved_bytes = state.stats.reserved_bytes.saturating_sub(bytes);
        drop(state);
        self.0.freed.notify_all();
    }

    /// Frees kept buffers that nobody needed since the last call.
    pub fn trim(&self) {
        let mut freed = Vec::new();
        let mut state = self.0.state.lock();
        let state = &mut *state;
        for class in &mut state.classes {
            let from = class.idle.len() - class.spare.min(class.idle.len());
            state.stats.idle_bytes -= class.size * (class.idle.len() - from);
            freed.extend(class.idle.drain(from..));
            class.spare = class.idle.len();
        }
    }

    /// Counters and sizes now.
    pub fn stats(&self) -> PoolStats {
        let tally = &self.0.tally;
        PoolStats {
            locked_bytes: tally.locked_bytes(),
            huge_bytes: tally.huge_bytes(),
            memory_refusals: tally.refused(),
            ..self.0.state.lock().stats
        }
    }

    fn give_back(&self, buffer: Option<Buffer>, size: usize, len: usize, purpose: Use, mapped: bool) {
        let buffer = buffer.filter(|_| !mapped);
        let mut state = self.0.state.lock();
        state.stats.in_use_bytes -= size;
        state.stats.slack_bytes -= size - len;
        state.stats.leases -= 1;
        if mapped {
            state.stats.mapped_bytes -= size;
        }
        if purpose == Use::Input {
            state.input_bytes -= size;
        }
        if let Some(buffer) = buffer {
            state.stats.idle_bytes += size;
            state.class(size).idle.push(buffer);
        }
        let waiters = state.waiters;
        drop(state);
        if waiters > 0 {
            self.0.freed.notify_all();
        }
        if self.0.starved.load(Ordering::Relaxed)
            && self.0.starved.swap(false, Ordering::AcqRel)
            && let Some(waker) = self.0.waker.get()
        {
            waker();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({}, {:?})", self.0.name, self.stats())
    }
}

/// Memory on loan from a [`Pool`].
pub struct Lease {
    pool: Pool,
    buffer: Option<Buffer>,
    len: usize,
    size: usize,
    purpose: Use,
    stale: bool,
    mapped: bool,
}

impl Lease {
    /// The bytes asked for; empty while the buffer is lent.
    pub fn as_slice(&self) -> &[u8] {
        self.buffer.as_ref().and_then(|b| b.as_slice().get(..self.len)).unwrap_or(&[])
    }

    /// The bytes asked for; empty while the buffer is lent. They hold what a former user wrote, see
    /// [`Lease::is_stale`].
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let len = self.len;
        self.buffer.as_mut().and_then(Buffer::as_mut_slice).and_then(|b| b.get_mut(..len)).unwrap_or_default()
    }

    /// Bytes asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a lease of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True when the memory was used before and holds somebody's bytes; false when it is all zero.
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Takes the buffer out, for a transfer. `None` while it is lent.
    pub fn lend(&mut self) -> Option<Buffer> {
        self.buffer.take()
    }

    /// Puts the lent buffer back. A transport that lost it hands back an empty one: then the lease stays lent, false
    /// is returned, and the pool forgets the memory when the lease is dropped.
    pub fn restore(&mut self, buffer: Buffer) -> bool {
        debug_assert!(self.buffer.is_none(), "the lease has its buffer");
        if buffer.len() == self.size {
            self.buffer = Some(buffer);
        }
        self.buffer.is_some()
    }

    /// True while the buffer is lent.
    pub fn is_lent(&self) -> bool {
        self.buffer.is_none()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.give_back(self.buffer.take(), self.size, self.len, self.purpose, self.mapped);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({} of {} bytes{})", self.len, self.size, if self.is_lent() { ", lent" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn classes_grow_and_waste_little() {
        let mut last = 0;
        for len in (1..1_000_000).step_by(77) {
            let size = class_size(len);
            assert!(size >= len && size >= last, "{len} -> {size}");
            assert!(len <= SMALLEST_CLASS || size * 4 <= len * 5, "{len} -> {size}");
            last = size;
        }
    }

    #[test]
    fn a_lease_comes_back_and_is_used_again() {
        let pool = Pool::new("sim0", 1 << 20);
        let mut first = pool.try_lease(1000, Use::Input).unwrap();
        assert!(!first.is_stale());
        assert_eq!(first.as_slice(), vec![0; 1000]);
        first.as_mut_slice().fill(7);
        drop(first);
        let second = pool.try_lease(990, Use::Input).unwrap();
        assert!(second.is_stale());
        let stats = pool.stats();
        assert_eq!((stats.hits, stats.misses, stats.leases), (1, 1, 1));
        assert_eq!(stats.in_use_bytes, class_size(1000));
        drop(second);
        assert_eq!((pool.stats().in_use_bytes, pool.stats().slack_bytes), (0, 0));
        pool.trim();
        assert_eq!(pool.stats().idle_bytes, class_size(1000), "it was needed since the last trim");
        pool.trim();
        assert_eq!(pool.stats().idle_bytes, 0);
    }

    #[test]
    fn the_ceiling_holds_and_names_the_figures() {
        let pool = Pool::new("sim0", 4096);
        let held = pool.try_lease(4096, Use::Input).unwrap();
        let e: Error = pool.lease(100, Use::Input, NOW).unwrap_err().into();
        assert_eq!(e.kind(), ErrorKind::OutOfMemory);
        let text = e.to_string();
        assert!(
            text.contains("sim0") && text.contains("100 bytes") && text.contains("4096 of 4096"),
            "{text}"
        );
        drop(held);
        assert!(pool.lease(100, Use::Input, NOW).is_ok());
        assert!(pool.stats().high_water_bytes <= 4096);
        assert!(pool.try_lease(5000, Use::Output).is_err(), "larger than the whole pool");
    }

    #[test]
    fn kept_buffers_of_another_class_make_room() {
        let pool = Pool::new("sim0", 4096);
        drop(pool.try_lease(4096, Use::Input).unwrap());
        drop(pool.try_lease(256, Use::Input).unwrap());
        assert_eq!(pool.stats().idle_bytes, 256);
    }

    #[test]
    fn inputs_leave_room_for_outputs() {
        let pool = Pool::new("sim0", 8192);
        pool.reserve_outputs(4096);
        let _input = pool.try_lease(4096, Use::Input).unwrap();
        assert!(pool.try_lease(256, Use::Input).is_err());
        let _output = pool.try_lease(4096, Use::Output).unwrap();
        pool.unreserve_outputs(4096);
        assert_eq!(pool.stats().reserved_bytes, 0);
    }

    #[test]
    fn a_refused_lease_hears_of_the_next_release() {
        let pool = Pool::new("sim0", 4096);
        let calls = Arc::new(AtomicUsize::new(0));
        let seen = calls.clone();
        pool.on_release(move || {
            seen.fetch_add(1, Ordering::SeqCst);
        });
        let held = pool.try_lease(4096, Use::Output).unwrap();
        assert!(pool.try_lease(1, Use::Output).is_err());
        drop(held);
        drop(pool.try_lease(1, Use::Output).unwrap());
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_waiting_lease_gets_what_another_thread_drops() {
        let pool = Pool::new("sim0", 4096);
        let held = pool.try_lease(4096, Use::Input).unwrap();
        std::thread::scope(|scope| {
            let waiter =
                scope.spawn(|| pool.lease(4096, Use::Input, Duration::from_secs(20)).map(|l| l.len()));
            drop(held);
            assert_eq!(waiter.join().unwrap(), Ok(4096));
        });
    }

    #[test]
    fn the_source_comes_first_and_gets_its_memory_back() {
        let pool = Pool::new("sim0", 8192);
        let given = Arc::new(AtomicUsize::new(0));
        let count = given.clone();
        pool.set_source(Some(Box::new(move |len, purpose| {
            let first = purpose == Use::Input && count.fetch_add(1, Ordering::SeqCst) == 0;
            first.then(|| (Buffer::zeroed(len), true))
        })));
        let first = pool.try_lease(300, Use::Input).unwrap();
        assert!(first.is_stale(), "as the source says");
        let second = pool.try_lease(300, Use::Input).unwrap();
        assert!(!second.is_stale(), "ordinary memory beyond");
        assert!(!pool.try_lease(300, Use::Output).unwrap().is_stale());
        assert_eq!(given.load(Ordering::SeqCst), 2);
        pool.set_source(None);
        assert_eq!(Arc::strong_count(&given), 1, "the source is gone while its buffer is on loan");
        drop((first, second));
        assert_eq!((pool.stats().in_use_bytes, pool.stats().mapped_bytes), (0, 0));
    }

    #[test]
    fn a_lent_buffer_is_missing_until_it_is_restored() {
        let pool = Pool::new("sim0", 1 << 20);
        let mut lease = pool.try_lease(300, Use::Output).unwrap();
        let buffer = lease.lend().unwrap();
        assert!(lease.is_lent() && lease.as_slice().is_empty() && lease.as_mut_slice().is_empty());
        assert!(lease.restore(buffer));
        assert_eq!(lease.as_slice().len(), 300);
        drop(lease);
        let mut lost = pool.try_lease(300, Use::Output).unwrap();
        drop(lost.lend());
        assert!(!lost.restore(Buffer::zeroed(0)), "a transport gives an empty buffer for one that is lost");
        drop(lost);
        assert_eq!((pool.stats().in_use_bytes, pool.stats().idle_bytes), (0, 0));
    }
}
