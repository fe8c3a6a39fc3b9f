//! One stick's inferences from input to output, without I/O: prepare → upload → execute → download → finish.
//!
//! The pipeline owns the [`Stick`] and every buffer that is on its way. One turn of its owner:
//!
//! 1. [`Pipeline::handle_completion`] for each finished transfer;
//! 2. commands ([`Pipeline::submit`], [`Pipeline::load`], …) and [`Pipeline::handle_timeout`];
//! 3. [`Pipeline::poll_transfer`] until `None`, each to the transport, and what it rejects to
//!    [`Pipeline::handle_rejected`];
//! 4. cancel the transport's transfers when [`Pipeline::wants_cancel`] says so;
//! 5. [`Pipeline::poll_event`] until `None`;
//! 6. wait, at most until [`Pipeline::poll_timeout`].
//!
//! Bytes from the stick are a stream: a header may share a transfer with what follows it. IN transfers of one packet are
//! posted ahead into scratch memory, for headers and small packets; the rest of a longer tensor goes straight into its
//! output buffer, as whole packets. Bytes beyond a tensor's end land in the buffer's slack and are read on from there.
//!
//! When the epoch ends (the stick failed, the transport is gone, or the stick was closed), nothing is sent any more;
//! every transfer is cancelled and awaited, then each job comes back with its input, and the end is told last.

mod graphs;
mod jobs;
mod overdue;
#[cfg(test)]
mod tests;
mod transfers;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Instant;
use crate::pool::{Lease, Pool, PoolError};
use crate::stats::StageTimes;
use crate::stick::{LoadRequest, Stick, StickConfig, StickError, StickEvent};
use crate::transport::Direction;
use crate::transport::TransferError;
use crate::wire::{Capabilities, ThermalStats, TimingData};

use graphs::Group;
use jobs::Slots;
use transfers::Transfers;

/// Most instances of one graph on a stick.
pub const MAX_INSTANCES: u32 = 4;

/// How a blob's host copy is shared with transfers.
pub type BlobBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// The owner's name for a graph: all its instances on this stick.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct GraphId(pub u64);

/// Settings of one pipeline. `T` is what the owner ties to a job.
#[derive(Clone, Debug)]
pub struct PipelineConfig<T> {
    /// Settings of the protocol engine.
    pub stick: StickConfig,
    /// Largest packet of the IN pipe, bytes: lengths of IN transfers are multiples of it.
    pub max_packet_bytes: usize,
    /// Longest time of one inference; those ahead of it add theirs. Later than this ends the epoch.
    pub job_timeout: Duration,
    /// Longest wait for memory for an output.
    pub memory_timeout: Duration,
    /// False when nobody waits for this job any more: it comes back instead of being sent.
    pub wanted: fn(&T) -> bool,
}

/// A graph to load.
#[derive(Clone)]
pub struct GraphSpec {
    /// The owner's name.
    pub id: GraphId,
    /// Sizes and counts; its `key` is chosen by the pipeline.
    pub request: LoadRequest,
    /// The whole blob.
    pub blob: BlobBytes,
    /// Copies on the stick, 1 to [`MAX_INSTANCES`].
    pub instances: u32,
}

/// One inference to run. It must complete: what goes in comes out as [`Event::Done`], [`Event::Returned`] or
/// [`Event::InputLost`], exactly once.
#[derive(Debug)]
pub struct Job<T> {
    /// The owner's own.
    pub tag: T,
    /// On what.
    pub graph: GraphId,
    /// The input element, whole.
    pub input: Lease,
    /// When the caller asked.
    pub submitted: Instant,
}

/// An answered job.
#[derive(Debug)]
pub struct Done<T> {
    /// The owner's own.
    pub tag: T,
    /// On what.
    pub graph: GraphId,
    /// The output element; longer than it by slack.
    pub output: Lease,
    /// Five of the six times; `finish_ns` runs from `last_byte` and is the owner's to fill in.
    pub times: StageTimes,
    /// When the output was complete.
    pub last_byte: Instant,
}

/// Why a job came back without an answer.
#[derive(Clone, PartialEq, Debug)]
pub enum Reason {
    /// Nobody wants it any more; it was not sent.
    Unwanted,
    /// No memory for its output in time; it was not sent.
    NoMemory(PoolError),
    /// The stick, or its protocol engine, refused it.
    Refused(StickError),
    /// The epoch ended; `sent` when it was under way.
    Lost {
        /// Its input had been given to the stick, or was about to be.
        sent: bool,
    },
}

/// Why the epoch ended.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum Failure {
    /// The protocol engine gave up.
    #[error(transparent)]
    Stick(#[from] StickError),
    /// A transfer failed.
    #[error("bulk {direction:?} transfer: {error}")]
    Transfer {
        /// Which pipe.
        direction: Direction,
        /// How.
        error: TransferError,
    },
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<T> {
    /// Ready for commands.
    Opened(Capabilities),
    /// The graph is on the stick, `instances` times: fewer than asked when there was no room for more.
    Loaded {
        /// Which.
        graph: GraphId,
        /// Copies that fitted.
        instances: u32,
    },
    /// The graph was refused; the stick goes on.
    LoadFailed(GraphId, StickError),
    /// The graph is gone from the stick.
    Unloaded(GraphId),
    /// A job was answered. Per graph in the order of [`Pipeline::submit`].
    Done(Done<T>),
    /// A job ended without an answer; its input is handed back, to be run elsewhere.
    Returned(Job<T>, Reason),
    /// A job was lost together with its input: the transport never gave the buffer back.
    InputLost(T),
    /// Answer to [`Pipeline::request_telemetry`].
    Thermal(ThermalStats),
    /// Answer to [`Pipeline::request_telemetry`]: bytes.
    UsedMemory(u32),
    /// Answer to [`Pipeline::request_stage_times`].
    StageTimes(GraphId, TimingData),
    /// The stick was closed in good order. The last event.
    Closed,
    /// The epoch ended. The last event.
    Failed(Failure),
}

/// Sums over time, for means.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Load {
    /// Inferences on the stick now.
    pub in_flight: u32,
    /// Time with at least one.
    pub busy: Duration,
    /// Time times inferences in flight.
    pub depth_time: Duration,
}

#[derive(Debug)]
enum End {
    Failed(Failure),
    Closed,
}

/// Driver of one stick.
pub struct Pipeline<T> {
    config: PipelineConfig<T>,
    stick: Stick,
    pool: Pool,
    groups: Vec<Group<T>>,
    slots: Slots<T>,
    transfers: Transfers,
    events: VecDeque<Event<T>>,
    load: Load,
    load_since: Instant,
    held: bool,
    end: Option<End>,
    /// The end was told; nothing comes any more.
    over: bool,
    cancel_wanted: bool,
}

impl<T> Pipeline<T> {
    /// A pipeline for a stick that was just connected. Outputs come from `pool`.
    pub fn new(config: PipelineConfig<T>, pool: Pool, now: Instant) -> Self {
        Pipeline {
            stick: Stick::new(config.stick.clone()),
            transfers: Transfers::new(config.max_packet_bytes, config.stick.link_timeout),
            config,
            pool,
            groups: Vec::new(),
            slots: Slots::new(),
            events: VecDeque::with_capacity(32),
            load: Load::default(),
            load_since: now,
            held: false,
            end: None,
            over: false,
            cancel_wanted: false,
        }
    }

    // ---- getters ----------------------------------------------------------------------------------------------

    /// Load now; its integrals run to `now`.
    pub fn load_figures(&self, now: Instant) -> Load {
        let mut load = self.load;
        integrate(&mut load, now.saturating_since(self.load_since));
        load
    }

    /// Inferences on the stick now.
    pub fn in_flight(&self) -> u32 {
        self.load.in_flight
    }

    /// True when no job is inside.
    pub fn is_idle(&self) -> bool {
        self.slots.is_empty() && self.groups.iter().all(|g| g.waiting.is_empty())
    }

    /// True when there is nothing to do but to stay in touch: no job inside, no graph that comes or goes.
    pub fn is_resting(&self) -> bool {
        self.end.is_none() && self.is_idle() && self.groups.iter().all(Group::is_loaded)
    }

    /// True when it rests and the stick has answered everything.
    pub fn is_quiet(&self) -> bool {
        self.is_resting() && self.stick.is_quiet()
    }

    /// True once [`Event::Closed`] or [`Event::Failed`] was put out.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// True once, when all transfers are to be cancelled.
    pub fn wants_cancel(&mut self) -> bool {
        std::mem::take(&mut self.cancel_wanted)
    }

    /// Transfers that the transport has not given back.
    pub fn outstanding(&self) -> usize {
        self.transfers.outstanding
    }

    /// What the owner tied to the jobs inside, those on the stick first.
    pub fn tags(&self) -> impl Iterator<Item = &T> {
        let sent = self.slots.iter().map(|s| &s.job.tag);
        sent.chain(self.groups.iter().flat_map(|g| g.waiting.iter().map(|j| &j.tag)))
    }

    // ---- commands ---------------------------------------------------------------------------------------------

    /// Brings the stick up: ends in [`Event::Opened`] or [`Event::Failed`].
    pub fn open(&mut self, now: Instant) {
        self.stick.open(now);
        self.settle(now);
    }

    /// Takes a job. It waits here while the graph's FIFO is full.
    pub fn submit(&mut self, job: Job<T>, now: Instant) {
        if self.end.is_some() {
            self.events.push_back(Event::Returned(job, Reason::Lost { sent: false }));
            return;
        }
        match self.groups.iter_mut().find(|g| g.id == job.graph && g.is_loaded()) {
            Some(group) => group.waiting.push_back(job),
            // The owner's knowledge is older than ours: the graph was lost or unloaded meanwhile.
            None => self.events.push_back(Event::Returned(job, Reason::Lost { sent: false })),
        }
        self.feed_stick(now);
    }

    /// Sends no more inferences until [`Pipeline::resume`]; those on the stick go on.
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// Ends [`Pipeline::hold`].
    pub fn resume(&mut self, now: Instant) {
        self.held = false;
        self.feed_stick(now);
    }

    /// Takes back the jobs that were not sent, as [`Event::Returned`] with [`Reason::Lost`].
    pub fn return_waiting(&mut self) {
        for group in &mut self.groups {
            for job in group.waiting.drain(..) {
                self.events.push_back(Event::Returned(job, Reason::Lost { sent: false }));
            }
            group.starved_until = None;
        }
    }

    /// Asks for the temperature, and for the memory in use where it is wanted.
    pub fn request_telemetry(&mut self, memory: bool, now: Instant) {
        if self.end.is_none() {
            self.stick.request_thermal(now);
            if memory {
                self.stick.request_used_memory(now);
            }
            self.settle(now);
        }
    }

    /// Unloads all and resets the stick: ends in [`Event::Closed`] or [`Event::Failed`]. Jobs on the stick are
    /// answered first.
    pub fn close(&mut self, now: Instant) {
        self.return_waiting();
        self.held = true;
        self.stick.close(now);
        self.settle(now);
    }

    /// Ends the epoch at once.
    pub fn abort(&mut self, failure: Failure, now: Instant) {
        self.finish(End::Failed(failure));
        self.stick.handle_link_down(now);
        self.settle(now);
    }

    /// The owner waits no longer for transfers after the end: what is still lent is lost, and the jobs come back.
    pub fn handle_abandon(&mut self, now: Instant) {
        if self.end.is_some() {
            self.transfers.outstanding = 0;
            self.settle(now);
        }
    }

    // ---- inputs and outputs -----------------------------------------------------------------------------------

    /// Call when `now` has reached [`Pipeline::poll_timeout`]; harmless at other times.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.transfers.unblock(now);
        if self.end.is_none() {
            self.stick.handle_timeout(now);
        }
        self.settle(now);
        if self.end.is_none()
            && let Some((_, after)) = self.transfers.overdue().filter(|(due, _)| *due <= now)
        {
            self.abort(Failure::Stick(StickError::Timeout { step: "transfer to the stick", after }), now);
        }
    }

    /// When [`Pipeline::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.end.is_some() {
            return None;
        }
        let starved = self.groups.iter().filter_map(|g| g.starved_until);
        let overdue = self.transfers.overdue().map(|(due, _)| due);
        starved.chain(self.stick.poll_timeout()).chain(self.transfers.blocked_until).chain(overdue).min()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event<T>> {
        self.events.pop_front()
    }

    // ---- inside -----------------------------------------------------------------------------------------------

    /// What has become possible since the last input.
    fn settle(&mut self, now: Instant) {
        while let Some(event) = self.stick.poll_event() {
            self.handle_stick_event(event, now);
        }
        if self.end.is_none() {
            self.feed_stick(now);
            self.forget_unloaded();
        }
        self.end_when_drained(now);
    }

    fn handle_stick_event(&mut self, event: StickEvent, now: Instant) {
        match event {
            StickEvent::Opened(capabilities) => self.events.push_back(Event::Opened(capabilities)),
            StickEvent::Loaded(key) => self.instance_loaded(key, now),
            StickEvent::LoadFailed(key, error) => self.instance_refused(key, error, now),
            StickEvent::Unloaded(key) => self.instance_unloaded(key),
            StickEvent::Triggered(token) => {
                if let Some(slot) = self.slots.find(token) {
                    slot.triggered.get_or_insert(now);
                }
            }
            StickEvent::Done(token) => self.job_ended(token, Ok(()), now),
            StickEvent::Refused(token, error) => self.job_ended(token, Err(error), now),
            StickEvent::Thermal(thermal) => self.events.push_back(Event::Thermal(thermal)),
            StickEvent::UsedMemory(bytes) => self.events.push_back(Event::UsedMemory(bytes)),
            StickEvent::Closed => self.finish(End::Closed),
            StickEvent::Failed(error) => self.finish(End::Failed(Failure::Stick(error))),
            StickEvent::Timing(key, ms) => self.stage_times(key, ms),
            // Debug data: nobody asks for them here yet. InputReleased frees nothing on the host, whose buffer comes
            // back with its transfer.
            _ => {}
        }
    }

    fn change_load(&mut self, now: Instant, by: i32) {
        integrate(&mut self.load, now.saturating_since(self.load_since));
        self.load_since = now.max(self.load_since);
        self.load.in_flight = self.load.in_flight.saturating_add_signed(by);
    }

    /// The first reason stands: what follows a failure are its consequences.
    fn finish(&mut self, end: End) {
        if self.end.is_none() {
            self.end = Some(end);
            self.cancel_wanted = self.transfers.outstanding > 0;
        }
    }

    fn end_when_drained(&mut self, now: Instant) {
        if self.over || self.end.is_none() {
            return;
        }
        // Rejected or not yet submitted transfers are still ours.
        while let Some(transfer) = self.transfers.take_unsent() {
            self.take_buffer_back(transfer);
        }
        if self.transfers.outstanding > 0 {
            return;
        }
        self.over = true;
        self.change_load(now, 0);
        self.load.in_flight = 0;
        self.return_sent();
        self.return_waiting();
        for group in self.groups.drain(..) {
            self.pool.unreserve_outputs(group.reserved_bytes);
        }
        self.events.push_back(match self.end.take() {
            Some(End::Failed(failure)) => Event::Failed(failure),
            _ => Event::Closed,
        });
        // Stays set, so that late calls see that nothing is accepted.
        self.end = Some(End::Closed);
    }
}

impl<T> Drop for Pipeline<T> {
    fn drop(&mut self) {
        for group in &self.groups {
            self.pool.unreserve_outputs(group.reserved_bytes);
        }
    }
}

fn integrate(load: &mut Load, time: Duration) {
    if load.in_flight > 0 {
        load.busy += time;
        load.depth_time += time * load.in_flight;
    }
}
