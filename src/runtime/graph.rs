//! A graph on the fleet, and the memory that its inputs are written to.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::StickState;
use super::config::{LoadOptions, SubmitOptions};
use super::core::{Core, Phase, Shared, number};
use super::failure::Cause;
use super::fallback::spill_at;
use super::graphs::{GraphEntry, Presence, key_of};
use super::inbox::Command;
use super::jobs::Waiting;
use super::ticket::{Output, Ticket, Worked};
use crate::blob::Blob;
use crate::clock::{Clock, Instant};
use crate::error::{Error, ErrorKind, Result};
use crate::id::StickId;
use crate::pool::{Lease, Use};
use crate::sched::{CallerNo, Event, GraphNo, JobSpec, Placement};
use crate::wire::TimingData;

/// A graph that is loaded on the fleet. When the last clone is dropped, it stays on the sticks as long as nothing else
/// needs the room: loading it again is then a matter of microseconds.
#[derive(Clone)]
pub struct Graph(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    no: GraphNo,
    blob: Blob,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.handle_dropped(self.no);
    }
}

/// Finds or registers the graph, puts it on all ready sticks and waits for their answers.
pub(super) fn load(shared: &Arc<Shared>, blobs: &[Blob], options: LoadOptions) -> Result<Graph> {
    let op = "load graph";
    options.check()?;
    refuse_custom(shared, blobs)?;
    let until = shared.clock.now() + options.timeout;
    let mut core = shared.core.lock();
    if core.phase != Phase::Open {
        return Err(closed(op));
    }
    let key = key_of(blobs, &options);
    let known = core.graphs.iter().position(|g| g.as_ref().is_some_and(|g| g.key == key));
    let no = match known {
        Some(no) => GraphNo(no as u32),
        None => {
            let executors = core.sticks.iter().filter_map(|s| s.capabilities).map(|c| c.max_executors);
            let most = executors.max().unwrap_or(LoadOptions::MAX_EXECUTORS);
            let entry = GraphEntry::new(blobs, &options, most, shared.sticks.len())?;
            core.enter(entry)
        }
    };
    let Some(entry) = core.graph_mut(no) else { return Err(closed(op)) };
    entry.handles += 1;
    let blob = entry.blob().clone();
    let spec = (entry.handles == 1).then(|| entry.sched_spec(Placement::Everywhere));
    // From here on its drop gives the registration back.
    let graph = Graph(Arc::new(Handle { shared: shared.clone(), no, blob }));
    if let Some(spec) = spec {
        let now = shared.clock.now();
        core.tell(Event::GraphAdded { graph: no, spec }, now);
        let rings = shared.carry_out(&mut core);
        shared.ring(rings);
    }
    let outcome = loop {
        let Some(entry) = core.graph(no) else { break Err(closed(op)) };
        let on = || entry.on.iter().zip(&core.sticks);
        let loaded = entry.on.iter().any(|o| matches!(o.presence, Presence::Loaded));
        let waiting = on()
            .any(|(on, stick)| matches!(on.presence, Presence::Loading) && stick.state == StickState::Ready);
        let now = shared.clock.now();
        if !waiting || now >= until {
            break if loaded { Ok(()) } else { Err(why_not_loaded(shared, &core, no, &options)) };
        }
        shared.changed.wait_for(&mut core, until - now);
    };
    drop(core);
    outcome.map(|()| graph)
}

/// Before anything is sent: a custom stage is somebody's code.
fn refuse_custom(shared: &Shared, blobs: &[Blob]) -> Result<()> {
    let custom = |blob: &&Blob| blob.graph().custom_stages() > 0;
    let Some(blob) = blobs.iter().find(custom).filter(|_| !shared.config.allow_custom) else { return Ok(()) };
    Err(Error::new(ErrorKind::Unsupported, "load graph").detail(format!(
        "{}: {} of its stages (kind 115) bring code of their own to the stick; if you trust whoever made it, say \
         --allow-custom (FleetConfig::allow_custom)",
        blob.name(),
        blob.graph().custom_stages()
    )))
}

fn why_not_loaded(shared: &Shared, core: &Core, no: GraphNo, options: &LoadOptions) -> Error {
    let op = "load graph";
    let Some(entry) = core.graph(no) else { return closed(op) };
    let on_first = |cause: &Cause, at: usize| cause.error(op, &shared.sticks[at].id);
    for (at, on) in entry.on.iter().enumerate() {
        if let Presence::Refused(cause) = &on.presence {
            return on_first(cause, at);
        }
    }
    for (at, on) in entry.on.iter().enumerate() {
        if matches!(on.presence, Presence::Loading) {
            return Error::new(ErrorKind::Timeout, op).on(&shared.sticks[at].id).detail(format!(
                "{}: not loaded within {:?}; give it more time",
                entry.blob().name(),
                options.timeout
            ));
        }
    }
    if let Some((stick, refusal)) = core.sched.refusals(no).first() {
        return on_first(&Cause::of_refusal(refusal), stick.0 as usize);
    }
    let lost = core.sticks.iter().enumerate().find_map(|(at, s)| s.cause.as_ref().map(|c| (at, c)));
    match lost {
        Some((at, cause)) => on_first(cause, at),
        None => on_first(
            &Cause { kind: ErrorKind::Unplugged, detail: "the stick is still starting; try again".into() },
            0,
        ),
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
        Ok(InputLease { lease, graph: self.0.no, stale })
    }

    /// Queues an inference. Waits while the queue is full, at most until the request's deadline or for
    /// [`super::FleetConfig::wait_timeout`].
    ///
    /// # Errors
    /// `InvalidInput` for the lease of another graph, `NotFound` for a stick that the fleet does not have, `Closed`,
    /// `QueueFull` or `DeadlineExceeded` when there was no room in time, and when no stick is left what the first
    /// one died of.
    pub fn submit(&self, input: InputLease, options: SubmitOptions) -> Result<Ticket> {
        self.enqueue(input, &options, true, None).map_err(|(error, _)| error)
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
        self.enqueue(input, &options, false, None)
    }

    /// As [`Graph::submit`], for a worker that took the request at `submitted`.
    pub(super) fn submit_prepared(
        &self,
        input: InputLease,
        options: &SubmitOptions,
        submitted: Instant,
        worked: Worked,
    ) -> Result<Ticket> {
        self.enqueue(input, options, true, Some((submitted, worked))).map_err(|(error, _)| error)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
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

    /// How long each stage took in the latest inference of this graph on `stick`, as the stick measured it; of the
    /// network's first variant and its first instance. Milliseconds, in the order of the blob's stages.
    ///
    /// # Errors
    /// `NotFound` for a stick that the fleet does not have or that does not hold the graph, `Timeout` when it did not
    /// answer within `timeout`, `Unplugged` when it was lost meanwhile, and what the stick says where it refuses.
    pub fn stage_times(&self, stick: &StickId, timeout: Duration) -> Result<TimingData> {
        let op = "ask for stage times";
        let shared = &self.0.shared;
        let error = |kind, detail: String| Error::new(kind, op).on(stick).detail(detail);
        let absent =
            || error(ErrorKind::NotFound, "the graph is not on this stick; run it there first".into());
        let at = shared.sticks.iter().position(|s| s.id == *stick).ok_or_else(absent)?;
        let until = shared.clock.now() + timeout;
        let mut core = shared.core.lock();
        let copy = core.graph(self.0.no).and_then(|entry| entry.on[at].copy_of(0)).ok_or_else(absent)?;
        let question = core.sticks[at].stage_times.ask(copy);
        shared.sticks[at].inbox.command(Command::StageTimes(copy));
        loop {
            let entry = &mut core.sticks[at];
            if let Some(answer) = entry.stage_times.take(copy, question) {
                return answer.map_err(|cause| cause.error(op, stick));
            }
            if !entry.stage_times.knows(copy, question) {
                let why = entry.cause.as_ref().map_or("the stick was lost", |cause| cause.detail.as_str());
                return Err(error(ErrorKind::Unplugged, format!("{why}; ask again once it is back")));
            }
            let now = shared.clock.now();
            if now >= until {
                entry.stage_times.forget(copy);
                return Err(error(
                    ErrorKind::Timeout,
                    format!("no answer within {timeout:?}; give it more time"),
                ));
            }
            shared.changed.wait_for(&mut core, until - now);
        }
    }

    #[allow(clippy::result_large_err)]
    fn enqueue(
        &self,
        mut input: InputLease,
        options: &SubmitOptions,
        may_wait: bool,
        prepared: Option<(Instant, Worked)>,
    ) -> Result<Ticket, (Error, InputLease)> {
        let op = "submit";
        let shared = &self.0.shared;
        if input.graph != self.0.no {
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
        let now = shared.clock.now();
        let (submitted, worked) = prepared.unwrap_or((now, Worked::default()));
        let deadline = options.deadline.map(|d| submitted + d);
        let wait_until = if may_wait {
            let longest = now + shared.config.wait_timeout;
            deadline.map_or(longest, |d| d.min(longest))
        } else {
            now
        };
        let mut core = shared.core.lock();
        if let Err(error) = self.wait_for_room(&mut core, pinned, deadline, wait_until) {
            drop(core);
            return Err((error, input));
        }
        let InputLease { lease, .. } = input;
        let graph = self.0.no;
        let mut ticket = None;
        let job = core.jobs.insert(graph, |id| {
            let (caller, tag) = shared.slots.open(id, deadline, worked);
            ticket = Some(caller);
            Waiting { tag, graph, pinned, input: lease, submitted }
        });
        let Some(ticket) = ticket else {
            // `insert` calls its function.
            unreachable!("a request without a ticket");
        };
        core.submitted += 1;
        if let Some(entry) = core.graph_mut(graph) {
            entry.active += 1;
        }
        let spec = JobSpec {
            graph,
            caller: CallerNo(options.caller),
            priority: options.priority,
            deadline: deadline.unwrap_or(Instant::FAR_FUTURE),
            stick: pinned.map(number),
        };
        core.tell(Event::Arrived { job, spec }, now);
        if let (Some(deadline), None, Some(_)) = (deadline, pinned, &shared.config.fallback) {
            shared.bell.at(spill_at(submitted, deadline));
        }
        // Where no stick is left the fallback takes it now, not when the next attempt to reconnect has failed.
        if shared.config.fallback.is_some() && !self.is_at_work(&core, pinned) {
            shared.fail_hopeless(&mut core);
        }
        let rings = shared.carry_out(&mut core);
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
            if !core.sched.has_room() {
                shared.purge_queue(core);
                let rings = shared.carry_out(core);
                shared.ring(rings);
            }
            if core.sched.has_room() {
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
                    core.sched.queued()
                )));
            }
            core.room_waiters += 1;
            shared.room.wait_for(core, until - now);
            core.room_waiters -= 1;
        }
    }

    /// Whether a stick that may take the request has the graph and takes requests.
    fn is_at_work(&self, core: &Core, pinned: Option<usize>) -> bool {
        let Some(entry) = core.graph(self.0.no) else { return false };
        let at_work = |at: usize| {
            matches!(entry.on[at].presence, Presence::Loaded) && core.sticks[at].state == StickState::Ready
        };
        match pinned {
            Some(at) => at_work(at),
            None => (0..entry.on.len()).any(at_work),
        }
    }

    /// A request that no stick will ever take is refused at once.
    fn check_hope(&self, core: &Core, pinned: Option<usize>) -> Result<()> {
        let shared = &self.0.shared;
        if core.graph(self.0.no).is_none() {
            return Err(closed("submit"));
        }
        // The fallback takes what no stick will.
        if self.is_at_work(core, pinned) || shared.config.fallback.is_some() && pinned.is_none() {
            return Ok(());
        }
        shared.no_hope(core, self.0.no, pinned, shared.clock.now()).map_or(Ok(()), Err)
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
    graph: GraphNo,
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
