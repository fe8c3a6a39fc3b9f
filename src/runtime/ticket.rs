//! A request from submission to answer: the caller's [`Ticket`] and the job's [`JobTag`] meet in a slot that is used
//! again when both are done with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::keeper::Calls;
use crate::blob::Blob;
use crate::clock::{Clock, Instant, Monotonic};
use crate::error::{Error, ErrorKind, Result};
use crate::id::StickId;
use crate::pool::Lease;
use crate::sched::JobId;
use crate::stats::StageTimes;

/// Where the two sides of a request meet.
pub(super) struct Slot {
    state: Mutex<State>,
    ready: Condvar,
    /// False when the caller has gone or has its answer.
    wanted: AtomicBool,
}

struct State {
    /// Which request.
    id: JobId,
    outcome: Option<Result<Output>>,
    /// An outcome was set, even if it was taken since.
    ended: bool,
    /// The caller sleeps until it is notified.
    waiting: bool,
    /// Who is told instead of a caller that waits.
    then: Option<Then>,
    /// Ticket and job that still know the slot.
    parties: u8,
    /// The caller's limit.
    deadline: Option<Instant>,
}

impl State {
    fn new(id: JobId, deadline: Option<Instant>) -> Self {
        State { id, outcome: None, then: None, ended: false, waiting: false, parties: 2, deadline }
    }
}

/// What is to happen with an outcome, when no caller waits for it.
enum Then {
    /// The outcome goes to this function, on the thread for callbacks.
    Call(Box<dyn FnOnce(Result<Output>) + Send>),
    /// The outcome goes to this function at once, on the thread that has it and under the slot's lock: it must only pass it on.
    Post(Box<dyn FnOnce(Result<Output>) + Send>),
    /// A future is to be polled again.
    #[cfg(feature = "async")]
    Wake(std::task::Waker),
}

/// A caller who sleeps although its outcome is there. Dropping it wakes them.
#[must_use]
pub(super) enum Sleeper {
    /// On the slot.
    Thread(Arc<Slot>),
    /// In an executor.
    #[cfg(feature = "async")]
    Future(Option<std::task::Waker>),
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        match self {
            // The slot may serve another request by now: then that one looks once more.
            Sleeper::Thread(slot) => {
                slot.ready.notify_all();
            }
            #[cfg(feature = "async")]
            Sleeper::Future(waker) => {
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

/// Slots that are not in use, and the clock that deadlines are told by.
pub(super) struct Slots {
    free: Mutex<Vec<Arc<Slot>>>,
    clock: Arc<Monotonic>,
    calls: Arc<Calls>,
}

impl Slots {
    pub(super) fn new(clock: Arc<Monotonic>, calls: Arc<Calls>) -> Self {
        Slots { free: Mutex::new(Vec::with_capacity(64)), clock, calls }
    }

    /// Stores an outcome, or hands it on, under the slot's lock. The first outcome stands: a later one comes back.
    fn settle(
        &self,
        slot: &Arc<Slot>,
        state: &mut State,
        outcome: Result<Output>,
    ) -> (Option<Sleeper>, Option<Result<Output>>) {
        if std::mem::replace(&mut state.ended, true) {
            return (None, Some(outcome));
        }
        match state.then.take() {
            Some(Then::Call(call)) => {
                self.calls.run(Box::new(move || call(outcome)));
                (None, None)
            }
            Some(Then::Post(post)) => {
                post(outcome);
                (None, None)
            }
            #[cfg(feature = "async")]
            Some(Then::Wake(waker)) => {
                state.outcome = Some(outcome);
                (Some(Sleeper::Future(Some(waker))), None)
            }
            // The job alone knows the slot: nobody waits.
            None if state.parties < 2 => (None, Some(outcome)),
            None => {
                state.outcome = Some(outcome);
                (state.waiting.then(|| Sleeper::Thread(slot.clone())), None)
            }
        }
    }

    /// Both sides of a new request.
    pub(super) fn open(
        self: &Arc<Self>,
        id: JobId,
        deadline: Option<Instant>,
        worked: Worked,
    ) -> (Ticket, JobTag) {
        let kept = self.free.lock().pop();
        let slot = match kept {
            Some(slot) => {
                *slot.state.lock() = State::new(id, deadline);
                slot.wanted.store(true, Ordering::Relaxed);
                slot
            }
            None => Arc::new(Slot {
                state: Mutex::new(State::new(id, deadline)),
                ready: Condvar::new(),
                wanted: AtomicBool::new(true),
            }),
        };
        let ticket = Ticket { id, slot: Some(slot.clone()), slots: self.clone() };
        (ticket, JobTag { id, slot: Some(slot), slots: self.clone(), deadline, worked })
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

/// What the fleet's workers have to do with a request; nothing, for one that came as an element.
#[derive(Clone, Copy, Default)]
pub(super) struct Worked {
    /// Time of stage 1.
    pub(super) prepare_ns: u64,
    /// They do stage 5, and record the times when it is over.
    pub(super) finish_later: bool,
}

/// The job's side of a request. It must be ended: one that is dropped tells its caller that the library lost it.
pub(super) struct JobTag {
    /// The scheduler's name for it.
    pub(super) id: JobId,
    slot: Option<Arc<Slot>>,
    slots: Arc<Slots>,
    /// The caller's limit.
    pub(super) deadline: Option<Instant>,
    pub(super) worked: Worked,
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
            preempt(&self.slots, slot, self.id, error);
        }
    }

    /// A hold on the caller's side, where there is a deadline that may pass while a stick has the job.
    pub(super) fn preempt_handle(&self) -> Option<Preempt> {
        self.deadline?;
        self.slot.clone().map(|slot| Preempt { slot, slots: self.slots.clone(), id: self.id })
    }

    fn end_in_place(&mut self, outcome: Result<Output>) -> Option<Sleeper> {
        let slot = self.slot.take()?;
        // A second handle, so that the guard does not borrow what `leave` takes.
        let guarded = slot.clone();
        let mut state = guarded.state.lock();
        let (sleeper, surplus) = self.slots.settle(&slot, &mut state, outcome);
        let left = self.slots.leave(slot, state);
        drop((left, surplus));
        sleeper
    }
}

fn preempt(slots: &Slots, slot: &Arc<Slot>, id: JobId, error: Error) {
    let mut state = slot.state.lock();
    // The slot may serve another request by now.
    if state.id == id {
        let told = slots.settle(slot, &mut state, Err(error));
        drop(state);
        drop(told);
    }
}

/// The caller's side of a job that is on a stick.
pub(super) struct Preempt {
    slot: Arc<Slot>,
    slots: Arc<Slots>,
    id: JobId,
}

impl Preempt {
    /// Ends the request for the caller.
    pub(super) fn end(self, error: Error) {
        preempt(&self.slots, &self.slot, self.id, error);
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
        write!(f, "JobTag({}, wanted {})", self.id.0, self.is_wanted())
    }
}

/// The caller's hold on one inference. Dropping it cancels if not yet sent and discards the answer if it is.
pub struct Ticket {
    id: JobId,
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

    /// The request's name, for [`super::Fleet::mark`].
    pub fn id(&self) -> RequestId {
        RequestId(self.id.0)
    }

    /// Hands the outcome to `call` instead of to a caller who waits, on a thread of the fleet that is for such calls
    /// alone. They run one after the other, so a long one delays the others.
    pub fn then(mut self, call: impl FnOnce(Result<Output>) + Send + 'static) {
        let Some(slot) = self.slot.take() else {
            return self.slots.calls.run(Box::new(move || call(Err(spent()))));
        };
        let guarded = slot.clone();
        let mut state = guarded.state.lock();
        match state.outcome.take() {
            Some(outcome) => self.slots.calls.run(Box::new(move || call(outcome))),
            None => state.then = Some(Then::Call(Box::new(call))),
        }
        // The slot stays wanted: this caller is still there, in the form of the call.
        drop(self.slots.leave(slot, state));
    }

    /// As [`Ticket::then`], but on the thread that has the outcome, which must not be held up.
    pub(super) fn post(mut self, post: impl FnOnce(Result<Output>) + Send + 'static) {
        let Some(slot) = self.slot.take() else { return post(Err(spent())) };
        let guarded = slot.clone();
        let mut state = guarded.state.lock();
        match state.outcome.take() {
            Some(outcome) => post(outcome),
            None => state.then = Some(Then::Post(Box::new(post))),
        }
        drop(self.slots.leave(slot, state));
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

/// A request's name, of use for [`super::Fleet::mark`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RequestId(pub(super) u64);

impl RequestId {
    /// As a number that no other request of the fleet has.
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

#[cfg(feature = "async")]
mod future {
    use std::future::{Future, IntoFuture};
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use super::{Output, Then, Ticket, spent};
    use crate::error::Result;

    /// The answer of a [`Ticket`], to be awaited. Dropping it is dropping the ticket.
    #[derive(Debug)]
    pub struct TicketFuture(Ticket);

    impl IntoFuture for Ticket {
        type Output = Result<Output>;
        type IntoFuture = TicketFuture;

        fn into_future(self) -> TicketFuture {
            TicketFuture(self)
        }
    }

    impl Future for TicketFuture {
        type Output = Result<Output>;

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Output>> {
            let Some(slot) = self.0.slot.clone() else { return Poll::Ready(Err(spent())) };
            let mut state = slot.state.lock();
            match state.outcome.take() {
                Some(outcome) => {
                    drop(state);
                    self.0.leave();
                    Poll::Ready(outcome)
                }
                None => {
                    state.then = Some(Then::Wake(context.waker().clone()));
                    Poll::Pending
                }
            }
        }
    }
}
#[cfg(feature = "async")]
pub use future::TicketFuture;

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
    pub(super) fallback: bool,
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

    /// True where no stick took the request and the fleet's fallback computed it; [`Output::stick`] then names that.
    pub fn is_fallback(&self) -> bool {
        self.fallback
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
