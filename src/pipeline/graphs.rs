//! Graphs on the stick: each a group of instances with FIFOs of their own, fed from one queue.

use std::collections::VecDeque;

use super::{BlobBytes, Event, GraphId, GraphSpec, Job, MAX_INSTANCES, Pipeline};
use crate::clock::Instant;
use crate::stick::{GraphKey, LoadRequest, StickError};
use crate::wire::TimingData;

/// All instances of one graph, and its jobs in order of submission.
pub(super) struct Group<T> {
    pub(super) id: GraphId,
    pub(super) request: LoadRequest,
    blob: BlobBytes,
    wanted_instances: u32,
    state: GroupState,
    pub(super) instances: Vec<Instance>,
    /// Not yet sent.
    pub(super) waiting: VecDeque<Job<T>>,
    /// Slots of those that were sent: results leave in this order.
    pub(super) order: VecDeque<u32>,
    /// Set while the first in line waits for output memory: when it gives up.
    pub(super) starved_until: Option<Instant>,
    /// Bytes kept in the pool for outputs.
    pub(super) reserved_bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum GroupState {
    Loading { unload_after: bool },
    Loaded,
    Unloading,
}

/// One copy on the stick.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) key: GraphKey,
    pub(super) running: u32,
}

impl<T> Group<T> {
    pub(super) fn is_loaded(&self) -> bool {
        self.state == GroupState::Loaded
    }
}

/// Instances of a graph are neighbours in the stick's name space.
fn instance_key(graph: GraphId, instance: u32) -> GraphKey {
    GraphKey(graph.0 * u64::from(MAX_INSTANCES) + u64::from(instance))
}

fn graph_of(key: GraphKey) -> GraphId {
    GraphId(key.0 / u64::from(MAX_INSTANCES))
}

impl<T> Pipeline<T> {
    /// Puts a graph on the stick: ends in [`Event::Loaded`] or [`Event::LoadFailed`].
    pub fn load(&mut self, spec: GraphSpec, now: Instant) {
        let id = spec.id;
        if self.end.is_some() {
            return;
        }
        if self.groups.iter().any(|g| g.id == id) {
            let error = StickError::Invalid("a graph of this name is on the stick already");
            self.events.push_back(Event::LoadFailed(id, error));
            return;
        }
        self.groups.push(Group {
            id,
            request: spec.request,
            blob: spec.blob,
            wanted_instances: spec.instances.clamp(1, MAX_INSTANCES),
            state: GroupState::Loading { unload_after: false },
            instances: Vec::new(),
            waiting: VecDeque::new(),
            order: VecDeque::new(),
            starved_until: None,
            reserved_bytes: 0,
        });
        self.load_instance(id, now);
        self.settle(now);
    }

    /// Takes a graph off the stick: ends in [`Event::Unloaded`]. Jobs that were not sent come back.
    pub fn unload(&mut self, id: GraphId, now: Instant) {
        let Some(group) = self.groups.iter_mut().find(|g| g.id == id) else {
            self.events.push_back(Event::Unloaded(id));
            return;
        };
        if let GroupState::Loading { unload_after } = &mut group.state {
            *unload_after = true;
            return;
        }
        group.state = GroupState::Unloading;
        for job in group.waiting.drain(..) {
            self.events.push_back(Event::Returned(job, super::Reason::Lost { sent: false }));
        }
        group.instances.retain(|i| self.stick.unload(i.key, now).is_ok());
        self.settle(now);
    }

    /// Asks how long the stages of the graph's first instance took in its latest inference: ends in
    /// [`Event::StageTimes`].
    ///
    /// # Errors
    /// `Invalid` for a graph that is not on the stick.
    pub fn request_stage_times(&mut self, id: GraphId, now: Instant) -> Result<(), StickError> {
        let first =
            self.groups.iter().find(|g| g.id == id && g.is_loaded()).and_then(|g| g.instances.first());
        let key = first.ok_or(StickError::Invalid("the graph is not on the stick"))?.key;
        self.stick.request_timing(key, now)?;
        self.settle(now);
        Ok(())
    }

    pub(super) fn stage_times(&mut self, key: GraphKey, mut ms: Vec<f32>) {
        // The engine has held the length against the stages of the blob.
        let (Some(total_ms), Some(receive_ms)) = (ms.pop(), ms.pop()) else { return };
        let times = TimingData { stages_ms: ms, receive_ms, total_ms };
        self.events.push_back(Event::StageTimes(graph_of(key), times));
    }

    fn load_instance(&mut self, id: GraphId, now: Instant) {
        let Some(group) = self.groups.iter().find(|g| g.id == id) else { return };
        let next = u32::try_from(group.instances.len()).unwrap_or(MAX_INSTANCES);
        let key = instance_key(id, next);
        let request = LoadRequest { key, ..group.request.clone() };
        if let Err(error) = self.stick.load(request, now) {
            self.instance_refused(key, error, now);
        }
    }

    pub(super) fn instance_loaded(&mut self, key: GraphKey, now: Instant) {
        let id = graph_of(key);
        let Some(group) = self.groups.iter_mut().find(|g| g.id == id) else { return };
        group.instances.push(Instance { key, running: 0 });
        if (group.instances.len() as u32) < group.wanted_instances && !group.unload_wanted() {
            self.load_instance(id, now);
        } else {
            self.group_loaded(id, now);
        }
    }

    pub(super) fn instance_refused(&mut self, key: GraphKey, error: StickError, now: Instant) {
        let id = graph_of(key);
        let Some(at) = self.groups.iter().position(|g| g.id == id) else { return };
        if self.groups[at].instances.is_empty() {
            self.groups.remove(at);
            self.events.push_back(Event::LoadFailed(id, error));
        } else {
            // There was room for fewer than asked; those work.
            self.group_loaded(id, now);
        }
    }

    fn group_loaded(&mut self, id: GraphId, now: Instant) {
        let element = self.config.max_packet_bytes;
        let Some(group) = self.groups.iter_mut().find(|g| g.id == id) else { return };
        let unload = group.unload_wanted();
        group.state = GroupState::Loaded;
        let instances = group.instances.len() as u32;
        let outputs = (group.request.fifo_elements * instances) as usize;
        group.reserved_bytes = outputs * (group.request.output_bytes as usize + element);
        self.pool.reserve_outputs(group.reserved_bytes);
        self.events.push_back(Event::Loaded { graph: id, instances });
        if unload {
            self.unload(id, now);
        }
    }

    pub(super) fn instance_unloaded(&mut self, key: GraphKey) {
        let id = graph_of(key);
        if let Some(group) = self.groups.iter_mut().find(|g| g.id == id) {
            group.instances.retain(|i| i.key != key);
        }
    }

    /// Lets go of graphs that are off the stick and whose last result was delivered.
    pub(super) fn forget_unloaded(&mut self) {
        let gone =
            |g: &Group<T>| g.state == GroupState::Unloading && g.instances.is_empty() && g.order.is_empty();
        while let Some(at) = self.groups.iter().position(gone) {
            let group = self.groups.remove(at);
            self.pool.unreserve_outputs(group.reserved_bytes);
            self.events.push_back(Event::Unloaded(group.id));
        }
    }

    /// Of the graphs that are on the stick, bytes.
    pub(super) fn longest_output(&self) -> usize {
        self.groups.iter().map(|g| g.request.output_bytes as usize).max().unwrap_or(0)
    }

    pub(super) fn blob_of(&self, key: GraphKey) -> Option<BlobBytes> {
        self.groups.iter().find(|g| g.id == graph_of(key)).map(|g| g.blob.clone())
    }
}

impl<T> Group<T> {
    fn unload_wanted(&self) -> bool {
        self.state == GroupState::Loading { unload_after: true }
    }
}
