//! A graph on the fleet, and the memory that its inputs are written to.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::config::{LoadOptions, SubmitOptions};
use super::core::{Core, GraphEntry, Phase, Presence, Shared, StickSituation};
use super::inbox::Command;
use super::ticket::{Output, Ticket};
use super::{StickState, failure::Cause};
use crate::blob::Blob;
use crate::clock::{Clock, Instant};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::{GraphId, GraphSpec, Job};
use crate::pool::{Lease, Use};
use crate::stick::{GraphKey, LoadRequest};
use crate::wire::VERIFY_HEADER_LEN;

/// SHAVE cores and CMX slices that a stick's executors share.
const STICK_SHAVES: u32 = 16;
const STICK_CMX_SLICES: u32 = 19;

/// A graph that is loaded on the fleet. Dropping the last clone unloads it, after its requests have ended.
#[derive(Clone)]
pub struct Graph(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    id: GraphId,
    blob: Blob,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut core = self.shared.core.lock();
        if let Some(entry) = core.graph(self.id) {
            entry.handles -= 1;
        }
        self.shared.after_ends(&mut core);
    }
}

/// The blob's host copy, lent to transfers.
struct Bytes(Blob);

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// Executors when the caller leaves it to us: as many as share the stick's SHAVEs and CMX slices.
fn executors_for(blob: &Blob, asked: u32) -> u32 {
    if asked > 0 {
        return asked;
    }
    let graph = blob.graph();
    let by_shaves = STICK_SHAVES / graph.shaves.clamp(1, STICK_SHAVES);
    let by_cmx = STICK_CMX_SLICES / graph.cmx_slices.clamp(1, STICK_CMX_SLICES);
    by_shaves.min(by_cmx).clamp(1, LoadOptions::MAX_EXECUTORS)
}

fn spec_of(id: GraphId, blob: &Blob, options: &LoadOptions) -> Result<GraphSpec> {
    let op = "load graph";
    let graph = blob.graph();
    let size = |what: &str, bytes: usize| {
        u32::try_from(bytes).map_err(|_| {
            let detail =
                format!("{}: {what} of {bytes} bytes, at most {} fit the protocol", blob.name(), u32::MAX);
            Error::new(ErrorKind::InvalidBlob, op).detail(detail)
        })
    };
    let header = blob.bytes().first_chunk::<VERIFY_HEADER_LEN>().ok_or_else(|| {
        let detail = format!(
            "{}: {} bytes, a blob has more than {VERIFY_HEADER_LEN}",
            blob.name(),
            blob.bytes().len()
        );
        Error::new(ErrorKind::InvalidBlob, op).detail(detail)
    })?;
    Ok(GraphSpec {
        id,
        request: LoadRequest {
            key: GraphKey(0),
            header: *header,
            blob_bytes: size("file", blob.bytes().len())?,
            input_bytes: size("input", graph.input_bytes)?,
            output_bytes: size("output", graph.output_bytes)?,
            stages: size("stage list", graph.stages.len())?,
            executors: executors_for(blob, options.executors),
            fifo_elements: options.depth,
        },
        blob: Arc::new(Bytes(blob.clone())),
        instances: options.instances,
    })
}

/// Finds or registers the graph, puts it on all ready sticks and waits for their answers.
pub(super) fn load(shared: &Arc<Shared>, blob: &Blob, options: LoadOptions) -> Result<Graph> {
    let op = "load graph";
    options.check()?;
    let until = shared.clock.now() + options.timeout;
    let mut core = shared.core.lock();
    if core.phase != Phase::Open {
        return Err(closed(op));
    }
    let known = core.graphs.iter().find(|g| g.blob.hash() == blob.hash() && g.options.shares_with(&options));
    let id = match known {
        Some(entry) => entry.id,
        None => {
            let id = GraphId(core.next_graph);
            let spec = spec_of(id, blob, &options)?;
            core.next_graph += 1;
            let sticks = shared.sticks.len();
            let mut entry = GraphEntry::new(id, blob.clone(), options.clone(), spec.clone(), sticks);
            for (on, stick) in entry.on.iter_mut().zip(&core.sticks) {
                if stick.state == StickState::Ready {
                    on.presence = Presence::Loading;
                }
            }
            core.graphs.push(entry);
            shared.command_ready(&core, || Command::Load(spec.clone()));
            id
        }
    };
    if let Some(entry) = core.graph(id) {
        entry.handles += 1;
    }
    // From here on its drop gives the registration back.
    let graph = Graph(Arc::new(Handle { shared: shared.clone(), id, blob: blob.clone() }));
    let outcome = loop {
        let Core { sticks, graphs, .. } = &mut *core;
        let Some(entry) = graphs.iter().find(|g| g.id == id) else { break Err(closed(op)) };
        let pending = |(on, stick): (&super::core::OnStick, &super::core::StickEntry)| {
            matches!(on.presence, Presence::Loading) && stick.state == StickState::Ready
        };
        let loaded = entry.on.iter().any(|o| matches!(o.presence, Presence::Loaded { .. }));
        let waiting = entry.on.iter().zip(sticks.iter()).any(pending);
        let now = shared.clock.now();
        if !waiting || now >= until {
            break if loaded { Ok(()) } else { Err(why_not_loaded(shared, &core, id, &options)) };
        }
        shared.changed.wait_for(&mut core, until - now);
    };
    drop(core);
    outcome.map(|()| graph)
}

fn why_not_loaded(shared: &Shared, core: &Core, id: GraphId, options: &LoadOptions) -> Error {
    let op = "load graph";
    let Some(entry) = core.graphs.iter().find(|g| g.id == id) else { return closed(op) };
    for (at, on) in entry.on.iter().enumerate() {
        if let Presence::Refused(cause) = &on.presence {
            return cause.error(op, &shared.sticks[at].id);
        }
    }
    for (at, on) in entry.on.iter().enumerate() {
        if matches!(on.presence, Presence::Loading) {
            return Error::new(ErrorKind::Timeout, op).on(&shared.sticks[at].id).detail(format!(
                "{}: not loaded within {:?}; give it more time",
                entry.blob.name(),
                options.timeout
            ));
        }
    }
    let lost = core.sticks.iter().enumerate().find_map(|(at, s)| s.cause.as_ref().map(|c| (at, c)));
    match lost {
        Some((at, cause)) => cause.error(op, &shared.sticks[at].id),
        None => Cause { kind: ErrorKind::Unplugged, detail: "the stick is still starting; try again".into() }
            .error(op, &shared.sticks[0].id),
    }
}

pub(super) fn unload_everywhere(shared: &Shared, core_sticks: &Core, entry: &GraphEntry) {
    for (at, stick) in shared.sticks.iter().enumerate() {
        let there = matches!(entry.on[at].presence, Presence::Loading | Presence::Loaded { .. });
        if there && core_sticks.sticks[at].state == StickState::Ready {
            stick.inbox.command(Command::Unload(entry.id));
        }
    }
}

fn closed(op: &'static str) -> Error {
    Error::new(ErrorKind::Closed, op).detail("the fleet is closed; open a new one")
}

impl Graph {
    /// What was loaded.
    pub fn blob(&self) -> &Blob {
        &self.0.blob
    }

    /// A lease of host memory of `blob.graph().input_bytes`, to write the input element into. Waits for the pool.
    ///
    /// # Errors
    /// `OutOfMemory` when no pool had room within [`super::FleetConfig::wait_timeout`], `Closed` after the fleet was
    /// closed.
    pub fn input(&self) -> Result<InputLease> {
        let shared = &self.0.shared;
        let bytes = self.0.blob.graph().input_bytes;
        let sticks = &shared.sticks;
        let first = shared.next_pool.fetch_add(1, Ordering::Relaxed) % sticks.len();
        let order = (0..sticks.len()).map(|i| &sticks[(first + i) % sticks.len()].pool);
        let mut leases = order.map(|pool| pool.try_lease(bytes, Use::Input));
        let lease = match leases.find_map(std::result::Result::ok) {
            Some(lease) => lease,
            None => {
                if shared.core.lock().phase != Phase::Open {
                    return Err(closed("lease input"));
                }
                sticks[first].pool.lease(bytes, Use::Input, shared.config.wait_timeout)?
            }
        };
        let stale = lease.is_stale();
        Ok(InputLease { lease, graph: self.0.id, stale })
    }

    /// Queues an inference. Waits while the queue is full, at most until the request's deadline or for
    /// [`super::FleetConfig::wait_timeout`].
    ///
    /// # Errors
    /// `InvalidInput` for the lease of another graph, `NotFound` for a stick that the fleet does not have, `Closed`,
    /// `QueueFull` or `DeadlineExceeded` when there was no room in time, and when no stick is left what the first
    /// one died of.
    pub fn submit(&self, input: InputLease, options: SubmitOptions) -> Result<Ticket> {
        self.enqueue(input, &options, true).map_err(|(error, _)| error)
    }

    /// As [`Graph::submit`], but hands the input back with `QueueFull` instead of waiting.
    ///
    /// # Errors
    /// As [`Graph::submit`], with the input.
    // By value: boxing it would put an allocation on the back-pressure path.
    #[allow(clippy::result_large_err)]
    pub fn try_submit(
        &self,
        input: InputLease,
        options: SubmitOptions,
    ) -> Result<Ticket, (Error, InputLease)> {
        self.enqueue(input, &options, false)
    }

    /// Copies `input` (the whole element), runs, waits.
    ///
    /// # Errors
    /// `InvalidInput` for another length, and as [`Graph::submit`] and [`Ticket::wait`].
    pub fn infer(&self, input: &[u8]) -> Result<Output> {
        let mut lease = self.input()?;
        lease.copy_from(input)?;
        self.submit(lease, SubmitOptions::default())?.wait()
    }

    #[allow(clippy::result_large_err)]
    fn enqueue(
        &self,
        mut input: InputLease,
        options: &SubmitOptions,
        may_wait: bool,
    ) -> Result<Ticket, (Error, InputLease)> {
        let op = "submit";
        let shared = &self.0.shared;
        if input.graph != self.0.id {
            let detail = "the input was leased from another graph; lease it from the one that is to run";
            return Err((Error::new(ErrorKind::InvalidInput, op).detail(detail), input));
        }
        let pinned = match &options.stick {
            None => None,
            Some(id) => match shared.sticks.iter().position(|s| s.id == *id) {
                Some(at) => Some(at),
                None => {
                    let names: Vec<&str> = shared.sticks.iter().map(|s| s.id.as_str()).collect();
                    let detail = format!("the fleet has no stick {id}; it has {}", names.join(", "));
                    return Err((Error::new(ErrorKind::NotFound, op).detail(detail), input));
                }
            },
        };
        input.clear_if_stale();
        let submitted = shared.clock.now();
        let deadline = options.deadline.map(|d| submitted + d);
        let wait_until = if may_wait {
            let longest = submitted + shared.config.wait_timeout;
            deadline.map_or(longest, |d| d.min(longest))
        } else {
            submitted
        };
        let mut core = shared.core.lock();
        if let Err(error) = self.wait_for_room(&mut core, pinned, deadline, wait_until) {
            drop(core);
            return Err((error, input));
        }
        let (ticket, tag) = shared.slots.open(deadline, pinned);
        let InputLease { lease, .. } = input;
        shared.enqueue(&mut core, Job { tag, graph: self.0.id, input: lease, submitted });
        let rings = shared.pump(&mut core);
        drop(core);
        shared.ring(rings);
        Ok(ticket)
    }

    fn wait_for_room(
        &self,
        core: &mut parking_lot::MutexGuard<'_, Core>,
        pinned: Option<usize>,
        deadline: Option<Instant>,
        until: Instant,
    ) -> Result<()> {
        let op = "submit";
        let shared = &self.0.shared;
        let limit = shared.config.queue_limit;
        loop {
            if core.phase != Phase::Open {
                return Err(closed(op));
            }
            if core.queued >= limit {
                shared.purge_queue(core);
            }
            if core.queued < limit {
                return self.check_hope(core, pinned);
            }
            let now = shared.clock.now();
            if now >= until {
                let kind = match deadline {
                    Some(d) if now >= d => ErrorKind::DeadlineExceeded,
                    _ => ErrorKind::QueueFull,
                };
                return Err(Error::new(kind, op).detail(format!(
                    "{} requests wait, {limit} may; take answers, wait, or raise the queue limit",
                    core.queued
                )));
            }
            core.room_waiters += 1;
            shared.room.wait_for(core, until - now);
            core.room_waiters -= 1;
        }
    }

    /// A request that no stick will ever take is refused at once.
    fn check_hope(&self, core: &Core, pinned: Option<usize>) -> Result<()> {
        let Some(entry) = core.graphs.iter().find(|g| g.id == self.0.id) else {
            return Err(closed("submit"));
        };
        let at_work = |at: usize| {
            matches!(entry.on[at].presence, Presence::Loaded { .. })
                && core.sticks[at].state == StickState::Ready
        };
        let sure = match pinned {
            Some(at) => at_work(at),
            None => (0..entry.on.len()).any(at_work),
        };
        if sure {
            return Ok(());
        }
        let presences: Vec<Presence> = entry.on.iter().map(|o| o.presence.clone()).collect();
        let situation = StickSituation { sticks: &core.sticks, presences: &presences };
        self.0.shared.no_hope(&situation, pinned, self.0.shared.clock.now()).map_or(Ok(()), Err)
    }
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Graph({})", self.0.blob.name())
    }
}

/// Host memory for one input element.
#[derive(Debug)]
pub struct InputLease {
    lease: Lease,
    graph: GraphId,
    /// Holds a former user's bytes and was not cleared.
    stale: bool,
}

impl InputLease {
    /// The whole element, zeroed where it was never written; tensors lie at their `IoTensor::offset`.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.clear_if_stale();
        self.lease.as_mut_slice()
    }

    /// The same, but not cleared: it holds bytes of former inputs, and the caller is to write all of it. Saves a pass
    /// over the memory.
    pub fn overwrite(&mut self) -> &mut [u8] {
        self.stale = false;
        self.lease.as_mut_slice()
    }

    /// Copies the whole element.
    ///
    /// # Errors
    /// `InvalidInput` when `input` has another length than the element.
    pub fn copy_from(&mut self, input: &[u8]) -> Result<()> {
        if input.len() != self.lease.len() {
            let detail =
                format!("the input element has {} bytes, {} were given", self.lease.len(), input.len());
            return Err(Error::new(ErrorKind::InvalidInput, "write input").detail(detail));
        }
        self.overwrite().copy_from_slice(input);
        Ok(())
    }

    fn clear_if_stale(&mut self) {
        if std::mem::take(&mut self.stale) {
            self.lease.as_mut_slice().fill(0);
        }
    }
}
