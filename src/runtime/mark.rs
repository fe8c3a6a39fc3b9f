//! The caller's own events in time: "decoded", "shown", "wrong answer". Kept only while somebody collects them, for a trace.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::core::Shared;
use super::ticket::RequestId;
use crate::clock::{Clock, Instant};
use crate::error::{Error, ErrorKind, Result};

/// Longest name of an event, bytes; the rest is cut off.
pub(super) const MAX_EVENT_BYTES: usize = 256;

/// One event of the caller's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    /// When, since the fleet was opened.
    pub at: Duration,
    /// Of which request.
    pub request: RequestId,
    /// What happened: the caller's words, at most 256 bytes of them.
    pub event: String,
}

/// The marks since they were last taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Marks {
    /// The present, since the fleet was opened: what `at` of the marks is to be compared with.
    pub now: Duration,
    /// In the order of their times.
    pub marks: Vec<Mark>,
    /// Marks since they were last taken that were lost, because nobody took the earlier ones in time: the oldest go first.
    pub dropped: u64,
}

/// Keeps the marks of a fleet until they are taken; when it goes, no more are kept.
pub struct MarkCollector(Arc<Shared>);

impl std::fmt::Debug for MarkCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MarkCollector")
    }
}

impl MarkCollector {
    /// All marks so far, once.
    pub fn take(&self) -> Marks {
        let mut ring = self.0.marks.ring.lock();
        // Read under the lock, so that no mark is later than `now`.
        let now = self.0.clock.now() - Instant::ZERO;
        let marks = ring.kept.drain(..).collect();
        Marks { now, marks, dropped: std::mem::take(&mut ring.dropped) }
    }
}

impl Drop for MarkCollector {
    fn drop(&mut self) {
        self.0.marks.collected.store(false, Ordering::Release);
        *self.0.marks.ring.lock() = Ring::default();
    }
}

/// Where a fleet's marks wait.
#[derive(Default)]
pub(super) struct MarkRing {
    /// Somebody wants them.
    collected: AtomicBool,
    ring: Mutex<Ring>,
}

#[derive(Default)]
struct Ring {
    kept: VecDeque<Mark>,
    /// Most that are kept; 0 while nobody collects.
    capacity: usize,
    dropped: u64,
}

impl MarkRing {
    /// Notes an event. Without a collector that is one load of a flag.
    pub(super) fn note(&self, clock: &impl Clock, request: RequestId, event: &str) {
        if !self.collected.load(Ordering::Acquire) {
            return;
        }
        let end = event.floor_char_boundary(MAX_EVENT_BYTES);
        let event = event[..end].to_owned();
        let mut ring = self.ring.lock();
        let at = clock.now() - Instant::ZERO;
        if ring.kept.len() >= ring.capacity {
            ring.kept.pop_front();
            ring.dropped += 1;
        }
        // The collector may have gone meanwhile.
        if ring.capacity > 0 {
            ring.kept.push_back(Mark { at, request, event });
        }
    }
}

pub(super) fn collect(shared: Arc<Shared>, capacity: usize) -> Result<MarkCollector> {
    let op = "collect marks";
    if capacity == 0 {
        return Err(
            Error::new(ErrorKind::InvalidInput, op).detail("room for 0 marks was asked; give it some")
        );
    }
    {
        let mut ring = shared.marks.ring.lock();
        if ring.capacity > 0 {
            let detail = "this fleet's marks are collected already; drop the other collector first";
            return Err(Error::new(ErrorKind::InUse, op).detail(detail));
        }
        *ring = Ring { capacity, ..Ring::default() };
        shared.marks.collected.store(true, Ordering::Release);
    }
    Ok(MarkCollector(shared))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Manual;

    fn ring(capacity: usize) -> MarkRing {
        let ring = Ring { capacity, ..Ring::default() };
        MarkRing { collected: AtomicBool::new(capacity > 0), ring: Mutex::new(ring) }
    }

    #[test]
    fn the_oldest_go_first_and_are_counted() {
        let (marks, clock) = (ring(3), Manual::new());
        for n in 0..5 {
            clock.advance(Duration::from_millis(10));
            marks.note(&clock, RequestId(n), "seen");
        }
        let ring = marks.ring.lock();
        assert_eq!(ring.dropped, 2);
        let kept: Vec<_> = ring.kept.iter().map(|m| (m.request.0, m.at.as_millis())).collect();
        assert_eq!(kept, [(2, 30), (3, 40), (4, 50)]);
    }

    #[test]
    fn nothing_is_kept_for_nobody() {
        let (marks, clock) = (ring(0), Manual::new());
        marks.note(&clock, RequestId(1), "seen");
        let ring = marks.ring.lock();
        assert_eq!((ring.kept.capacity(), ring.dropped), (0, 0), "no allocation");
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let (marks, clock) = (ring(1), Manual::new());
        marks.note(&clock, RequestId(1), &format!("{}é", "x".repeat(MAX_EVENT_BYTES - 1)));
        assert_eq!(marks.ring.lock().kept[0].event, "x".repeat(MAX_EVENT_BYTES - 1));
    }
}
