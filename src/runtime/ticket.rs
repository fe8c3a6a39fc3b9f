//! A request from submission to answer: the caller's [`Ticket`] and the job's [`JobTag`] meet in a slot that is used
//! again when both are done with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::blob::Blob;
use crate::clock::{Clock, Instant, Monotonic};
use crate::error::{Error, ErrorKind, Result};
use crate::id::StickId;
use crate::pipeline::Job;
use crate::pool::Lease;
use crate::stats::StageTimes;

/// A job on its way through the fleet.
pub(super) type QueuedJob = Job<JobTag>;

/// Where the two sides of a request meet.
struct Slot {
    state: Mutex<State>,
    ready: Condvar,
    /// False when the caller has gone or has its answer.
    wanted: AtomicBool,
}

struct State {
    outcome: Option<Result<Output>>,
    /// An outcome was set, even if it was taken since.
    ended: bool,
    /// The caller sleeps until it is notified.
    waiting: bool,
    /// Ticket and job that still know the slot.
    parties: u8,
    /// The caller's limit.
    deadline: Option<Instant>,
}

impl State {
    fn new(deadline: Option<Instant>) -> Self {
        State { outcome: None, ended: false, waiting: false, parties: 2, deadline }
    }
}

/// A caller who sleeps although its outcome is there. Dropping it wakes them.
#[must_use]
pub(super) struct Sleeper(Arc<Slot>);

impl Drop for Sleeper {
    fn drop(&mut self) {
        // The slot may serve another request by now: then that one looks once more.
        self.0.ready.notify_all();
    }
}

/// Slots that are not in use, and the clock that deadlines are told by.
pub(super) struct Slots {
    free: Mutex<Vec<Arc<Slot>>>,
    clock: Arc<Monotonic>,
}

impl Slots {
    pub(super) fn new(clock: Arc<Monotonic>) -> Self {
        Slots { free: Mutex::new(Vec::with_capacity(64)), clock }
    }

    /// Both sides of a new request.
    pub(super) fn open(
        self: &Arc<Self>,
        deadline: Option<Instant>,
        pinned: Option<usize>,
    ) -> (Ticket, JobTag) {
        let kept = self.free.lock().pop();
        let slot = match kept {
            Some(slot) => {
                *slot.state.lock() = State::new(deadline);
                slot.wanted.store(true, Ordering::Relaxed);
                slot
            }
            None => Arc::new(Slot {
                state: Mutex::new(State::new(deadline)),
                ready: Condvar::new(),
                wanted: AtomicBool::new(true),
            }),
        };
        let ticket = Ticket { slot: Some(slot.clone()), slots: self.clone() };
        (ticket, JobTag { slot: Some(slot), slots: self.clone(), pinned, attempts: 0, deadline })
    }

    /// One party leaves.
    fn leave(
        &self,
        slot: Arc<Slot>,
        mut state: parking_lot::MutexGuard<'_, State>,
    ) -> Option<Result<Output>> {
        state.parties -= 1;
        let last = state.parties == 0;
        // Dropped by the caller of this, not under the lock: an output gives memory back to a pool.
        let outcome = if last { state.outcome.take() } else { None };
        drop(state);
        if last {
            self.free.lock().push(slot);
        }
        outcome
    }
}

/// The job's side of a request. It must be ended: one that is dropped tells its caller that the library lost it.
pub(super) struct JobTag {
    slot: Option<Arc<Slot>>,
    slots: Arc<Slots>,
    /// Index of the only stick that may run it.
    pub(super) pinned: Option<usize>,
    /// Sticks that were lost under it.
    pub(super) attempts: u32,
    /// The caller's limit.
    pub(super) deadline: Option<Instant>,
}

impl JobTag {
    /// True while the caller waits for the answer.
    pub(super) fn is_wanted(&self) -> bool {
        self.slot.as_ref().is_some_and(|s| s.wanted.load(Ordering::Relaxed))
    }

    /// True from the caller's limit on.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|d| now >= d)
    }

    /// Ends the request with an answer or an error. The first outcome stands.
    pub(super) fn end(mut self, outcome: Result<Output>) {
        drop(self.end_in_place(outcome));
    }

    /// As [`JobTag::end`], but leaves it to the owner when to wake the caller: after what must not wait.
    pub(super) fn end_quietly(mut self, outcome: Result<Output>) -> Option<Sleeper> {
        self.end_in_place(outcome)
    }

    /// Ends the request for the caller while the job is still on a stick; its answer will be thrown away.
    pub(super) fn preempt(&self, error: Error) {
        if let Some(slot) = &self.slot {
            let mut state = slot.state.lock();
            if !state.ended {
                state.ended = true;
                state.outcome = Some(Err(error));
                slot.ready.notify_all();
            }
        }
    }

    fn end_in_place(&mut self, outcome: Result<Output>) -> Option<Sleeper> {
        let slot = self.slot.take()?;
        let mut sleeper = None;
        let mut surplus = Some(outcome);
        // A second handle, so that the guard does not borrow what `leave` takes.
        let guarded = slot.clone();
        let mut state = guarded.state.lock();
        if !state.ended && state.parties == 2 {
            state.outcome = surplus.take();
            sleeper = state.waiting.then(|| Sleeper(slot.clone()));
        }
        state.ended = true;
        let left = self.slots.leave(slot, state);
        drop((left, surplus));
        sleeper
    }
}

impl Drop for JobTag {
    fn drop(&mut self) {
        if self.slot.is_some() {
            tracing::error!("a job was dropped without an end");
            let error = Error::new(ErrorKind::Cancelled, "infer").detail(
                "the request was dropped inside the library, which is a defect of it; submit it again",
            );
            drop(self.end_in_place(Err(error)));
        }
    }
}

impl std::fmt::Debug for JobTag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JobTag(attempts {}, wanted {})", self.attempts, self.is_wanted())
    }
}

/// The caller's hold on one inference. Dropping it cancels if not yet sent and discards the answer if it is.
pub struct Ticket {
    /// `None` after the outcome was taken.
    slot: Option<Arc<Slot>>,
    slots: Arc<Slots>,
}

impl Ticket {
    /// The answer. It comes within a bounded time even without a deadline: a stick that takes longer than
    /// [`super::FleetConfig::job_timeout`] counts as lost, a job moves at most [`super::FleetConfig::retries`]
    /// times, and without a stick the request fails.
    ///
    /// # Errors
    /// `DeadlineExceeded` when the caller's deadline passed first; `Unplugged`, `Timeout` or `Protocol` when sticks
    /// were lost under it too often or none is left; `OutOfMemory` when there was no memory for the output;
    /// `Cancelled` when the fleet was closed.
    pub fn wait(mut self) -> Result<Output> {
        match self.wait_until(Instant::FAR_FUTURE)? {
            Some(output) => Ok(output),
            None => Err(spent()),
        }
    }

    /// `Ok(None)` when nothing came within `timeout`; the ticket stays good.
    ///
    /// # Errors
    /// As [`Ticket::wait`]; `InvalidInput` when the answer was taken before.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<Output>> {
        let until = self.slots.clock.now() + timeout;
        self.wait_until(until)
    }

    /// True when [`Ticket::wait`] would return at once.
    pub fn is_ready(&self) -> bool {
        self.slot.as_ref().is_none_or(|s| s.state.lock().ended)
    }

    fn wait_until(&mut self, until: Instant) -> Result<Option<Output>> {
        let Some(slot) = self.slot.clone() else { return Err(spent()) };
        let mut state = slot.state.lock();
        loop {
            if let Some(outcome) = state.outcome.take() {
                drop(state);
                self.leave();
                return outcome.map(Some);
            }
            let now = self.slots.clock.now();
            if state.deadline.is_some_and(|d| now >= d) {
                drop(state);
                self.leave();
                return Err(late());
            }
            if now >= until {
                return Ok(None);
            }
            state.waiting = true;
            match state.deadline.into_iter().chain([until]).min() {
                Some(at) if at != Instant::FAR_FUTURE => {
                    slot.ready.wait_for(&mut state, at - now);
                }
                _ => slot.ready.wait(&mut state),
            }
            state.waiting = false;
        }
    }

    fn leave(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.wanted.store(false, Ordering::Relaxed);
            let guarded = slot.clone();
            let mut state = guarded.state.lock();
            let answer = state.outcome.take();
            let left = self.slots.leave(slot, state);
            drop((answer, left));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.leave();
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ticket({})", if self.is_ready() { "ready" } else { "waiting" })
    }
}

fn spent() -> Error {
    Error::new(ErrorKind::InvalidInput, "wait").detail("the answer of this ticket was taken before")
}

/// The caller's limit has passed.
pub(super) fn late() -> Error {
    Error::new(ErrorKind::DeadlineExceeded, "wait")
        .detail("no answer before the request's deadline; give it more time or the fleet less to do")
}

/// The answer, a lease to read. Dropping it gives the memory back to the pool.
#[derive(Debug)]
pub struct Output {
    pub(super) lease: Lease,
    pub(super) blob: Blob,
    pub(super) stick: StickId,
    pub(super) times: StageTimes,
}

impl Output {
    /// The whole output element.
    pub fn bytes(&self) -> &[u8] {
        self.lease.as_slice().get(..self.blob.graph().output_bytes).unwrap_or(&[])
    }

    /// The bytes of output `index`: all batch elements, as the blob lays them. Empty for an index that the graph
    /// does not have.
    pub fn tensor(&self, index: usize) -> &[u8] {
        let graph = self.blob.graph();
        let Some(tensor) = graph.outputs.get(index) else { return &[] };
        let bytes = tensor.bytes() * graph.batch.max(1) as usize;
        self.bytes().get(tensor.offset..tensor.offset + bytes).unwrap_or(&[])
    }

    /// Who computed it.
    pub fn stick(&self) -> &StickId {
        &self.stick
    }

    /// What each stage took.
    pub fn times(&self) -> StageTimes {
        self.times
    }

    /// From submission to here: the sum of the six times.
    pub fn latency(&self) -> Duration {
        self.times.total()
    }
}
