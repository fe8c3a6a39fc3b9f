//! Requests that have not ended, by the scheduler's names for them.

use super::ticket::{JobTag, Preempt};
use crate::clock::Instant;
use crate::pipeline::Job;
use crate::pool::Lease;
use crate::sched::{GraphNo, JobId, RunId};

/// A request that no stick has.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) tag: JobTag,
    pub(super) graph: GraphNo,
    /// Index of the only stick that may run it.
    pub(super) pinned: Option<usize>,
    pub(super) input: Lease,
    pub(super) submitted: Instant,
}

/// What travels through a stick's pipeline: one inference, for one request or for a batch of them.
#[derive(Debug)]
pub(super) struct RunTag {
    pub(super) run: RunId,
    pub(super) graph: GraphNo,
    pub(super) members: Members,
}

/// The requests of one inference.
#[derive(Debug)]
pub(super) enum Members {
    /// One, whose input is the pipeline's own, and its only stick.
    One(JobTag, Option<usize>),
    /// Several, in the order of their places; their inputs were copied into the pipeline's.
    Many(Vec<Waiting>),
}

/// An inference on its way to a stick.
pub(super) type RunJob = Job<RunTag>;

impl RunTag {
    /// True while anybody waits for the answer.
    pub(super) fn is_wanted(&self) -> bool {
        match &self.members {
            Members::One(tag, _) => tag.is_wanted(),
            Members::Many(jobs) => jobs.iter().any(|j| j.tag.is_wanted()),
        }
    }

    /// Each request's side.
    pub(super) fn tags(&self) -> impl Iterator<Item = &JobTag> {
        let (one, many) = match &self.members {
            Members::One(tag, _) => (Some(tag), &[][..]),
            Members::Many(jobs) => (None, jobs.as_slice()),
        };
        one.into_iter().chain(many.iter().map(|j| &j.tag))
    }

    /// Each request's side, taken.
    pub(super) fn into_tags(self) -> impl Iterator<Item = JobTag> {
        let (one, many) = match self.members {
            Members::One(tag, _) => (Some(tag), Vec::new()),
            Members::Many(jobs) => (None, jobs),
        };
        one.into_iter().chain(many.into_iter().map(|j| j.tag))
    }
}

/// The requests of an inference that came back from a stick, each with its input.
pub(super) fn members_of(job: RunJob) -> Vec<Waiting> {
    let Job { tag: RunTag { graph, members, .. }, input, submitted, .. } = job;
    match members {
        Members::One(tag, pinned) => vec![Waiting { tag, graph, pinned, input, submitted }],
        Members::Many(jobs) => jobs,
    }
}

enum State {
    Waiting(Waiting),
    /// On a stick; with a hold on the caller's side where it has a deadline.
    Away(Option<Preempt>),
}

struct Entry {
    graph: GraphNo,
    state: State,
}

/// A slab; names carry a generation, so that none is used twice.
#[derive(Default)]
pub(super) struct JobTable {
    slots: Vec<(u32, Option<Entry>)>,
    free: Vec<u32>,
}

impl JobTable {
    /// Enters a new request; `make` is told its name.
    pub(super) fn insert(&mut self, graph: GraphNo, make: impl FnOnce(JobId) -> Waiting) -> JobId {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[at as usize];
        let id = JobId(u64::from(slot.0) << 32 | u64::from(at));
        slot.1 = Some(Entry { graph, state: State::Waiting(make(id)) });
        id
    }

    fn entry(&mut self, id: JobId) -> Option<&mut Entry> {
        let (generation, entry) = self.slots.get_mut(id.0 as u32 as usize)?;
        if u64::from(*generation) == id.0 >> 32 { entry.as_mut() } else { None }
    }

    /// Takes a waiting request's input and tag for a stick; the name stays. `None` where it does not wait.
    pub(super) fn send(&mut self, id: JobId) -> Option<Waiting> {
        let entry = self.entry(id)?;
        let State::Waiting(job) = &entry.state else { return None };
        let away = State::Away(job.tag.preempt_handle());
        match std::mem::replace(&mut entry.state, away) {
            State::Waiting(job) => Some(job),
            State::Away(_) => None,
        }
    }

    /// A request came back from a stick. Handed back where its name is gone: it had ended meanwhile.
    pub(super) fn came_back(&mut self, job: Waiting) -> Option<Waiting> {
        match self.entry(job.tag.id) {
            Some(entry) => {
                entry.state = State::Waiting(job);
                None
            }
            None => Some(job),
        }
    }

    /// Ends a name: the graph it was for, and what is to be told to the caller, if that was not done.
    pub(super) fn remove(&mut self, id: JobId) -> Option<(GraphNo, Option<Remaining>)> {
        self.entry(id)?;
        let slot = &mut self.slots[id.0 as u32 as usize];
        slot.0 = slot.0.wrapping_add(1);
        self.free.push(id.0 as u32);
        let entry = slot.1.take()?;
        let remaining = match entry.state {
            State::Waiting(job) => Some(Remaining::Waiting(job)),
            State::Away(preempt) => preempt.map(Remaining::Away),
        };
        Some((entry.graph, remaining))
    }

    /// All that wait.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Waiting> {
        self.slots.iter().filter_map(|(_, entry)| match &entry.as_ref()?.state {
            State::Waiting(job) => Some(job),
            State::Away(_) => None,
        })
    }

    /// Requests that have not ended.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// A request whose name ended before its caller was told.
pub(super) enum Remaining {
    Waiting(Waiting),
    Away(Preempt),
}
