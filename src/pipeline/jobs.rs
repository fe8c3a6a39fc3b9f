//! Jobs on the stick: slots, the order of their results, and what each stage took.

use std::time::Duration;

use super::{Done, Event, Job, Pipeline, Reason};
use crate::clock::Instant;
use crate::pool::{Lease, Use};
use crate::stats::StageTimes;
use crate::stick::{GraphKey, JobToken, StickError};

/// One job that was given to the stick.
pub(super) struct Slot<T> {
    generation: u32,
    pub(super) job: Job<T>,
    /// `None` only after it was delivered.
    pub(super) output: Option<Lease>,
    instance: GraphKey,
    ended: Option<Result<(), StickError>>,
    taken: Instant,
    pub(super) triggered: Option<Instant>,
    pub(super) first_byte: Option<Instant>,
    last_byte: Instant,
}

impl<T> Slot<T> {
    /// Ended, and neither buffer is with the transport.
    fn is_settled(&self) -> bool {
        self.ended.is_some() && !self.job.input.is_lent() && !self.output.as_ref().is_some_and(Lease::is_lent)
    }

    /// The five times up to the last byte. Events may come in another order than stages (a status after the
    /// output's header): then the later stage counts as begun when the former ended.
    fn times(&self) -> StageTimes {
        let triggered = self.triggered.unwrap_or(self.taken).max(self.taken).min(self.last_byte);
        let first = self.first_byte.unwrap_or(self.last_byte).max(triggered).min(self.last_byte);
        let ns = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        StageTimes {
            queue_ns: ns(self.taken - self.job.submitted),
            // The input was laid into its buffer by the caller, before it was submitted.
            prepare_ns: 0,
            upload_ns: ns(triggered - self.taken),
            execute_ns: ns(first - triggered),
            download_ns: ns(self.last_byte - first),
            finish_ns: 0,
        }
    }
}

/// A slab. Tokens carry a generation, so that one of a former user finds nothing.
pub(super) struct Slots<T> {
    slots: Vec<Option<Slot<T>>>,
    free: Vec<u32>,
    generation: u32,
}

impl<T> Slots<T> {
    pub(super) fn new() -> Self {
        Slots { slots: Vec::new(), free: Vec::new(), generation: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot<T>> {
        self.slots.iter().flatten()
    }

    /// The token that the next [`Slots::insert`] will have.
    fn next_token(&mut self) -> (u32, JobToken) {
        let index = match self.free.last() {
            Some(&index) => index,
            None => {
                self.slots.push(None);
                let index = self.slots.len() as u32 - 1;
                self.free.push(index);
                index
            }
        };
        self.generation = self.generation.wrapping_add(1);
        (index, JobToken(u64::from(self.generation) << 32 | u64::from(index)))
    }

    fn insert(&mut self, index: u32, slot: Slot<T>) {
        debug_assert_eq!(self.free.last(), Some(&index), "not the slot that was offered");
        self.free.pop();
        self.slots[index as usize] = Some(slot);
    }

    pub(super) fn at(&mut self, index: u32) -> Option<&mut Slot<T>> {
        self.slots.get_mut(index as usize)?.as_mut()
    }

    pub(super) fn find(&mut self, token: JobToken) -> Option<&mut Slot<T>> {
        let index = (token.0 & 0xFFFF_FFFF) as u32;
        self.at(index).filter(|s| u64::from(s.generation) == token.0 >> 32)
    }

    fn remove(&mut self, index: u32) -> Option<Slot<T>> {
        let slot = self.slots.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(slot)
    }
}

/// Index of a token's slot.
pub(super) fn slot_index(token: JobToken) -> u32 {
    (token.0 & 0xFFFF_FFFF) as u32
}

impl<T> Pipeline<T> {
    /// Gives waiting jobs to the stick, as many as its FIFOs and the pool take.
    pub(super) fn feed_stick(&mut self, now: Instant) {
        if self.held || self.end.is_some() {
            return;
        }
        for at in 0..self.groups.len() {
            while self.feed_one(at, now) {}
        }
    }

    /// True when the next job may be tried.
    fn feed_one(&mut self, at: usize, now: Instant) -> bool {
        let group = &mut self.groups[at];
        let Some(first) = group.waiting.front() else {
            return false;
        };
        if !(self.config.wanted)(&first.tag) {
            group.starved_until = None;
            if let Some(job) = group.waiting.pop_front() {
                self.events.push_back(Event::Returned(job, Reason::Unwanted));
            }
            return true;
        }
        let stick = &self.stick;
        let free = group.instances.iter_mut().filter(|i| stick.can_infer(i.key)).min_by_key(|i| i.running);
        let Some(instance) = free else {
            return false;
        };
        // Whole packets are received, so the last one may need room beyond the tensor.
        let len = group.request.output_bytes as usize + self.config.max_packet_bytes;
        let output = match self.pool.try_lease(len, Use::Output) {
            Ok(lease) => lease,
            Err(error) => {
                let until = *group.starved_until.get_or_insert(now + self.config.memory_timeout);
                if now < until {
                    return false;
                }
                group.starved_until = None;
                if let Some(job) = group.waiting.pop_front() {
                    self.events.push_back(Event::Returned(job, Reason::NoMemory(error)));
                }
                return true;
            }
        };
        group.starved_until = None;
        let (index, token) = self.slots.next_token();
        let accepted = self.stick.infer(instance.key, token, self.config.job_timeout, now);
        if matches!(accepted, Err(StickError::Full)) {
            return false;
        }
        let Some(job) = group.waiting.pop_front() else {
            return false;
        };
        if let Err(error) = accepted {
            self.events.push_back(Event::Returned(job, Reason::Refused(error)));
            return true;
        }
        instance.running += 1;
        group.order.push_back(index);
        let slot = Slot {
            generation: (token.0 >> 32) as u32,
            job,
            output: Some(output),
            instance: instance.key,
            ended: None,
            taken: now,
            triggered: None,
            first_byte: None,
            last_byte: now,
        };
        self.slots.insert(index, slot);
        self.change_load(now, 1);
        true
    }

    pub(super) fn job_ended(&mut self, token: JobToken, how: Result<(), StickError>, now: Instant) {
        let Some(slot) = self.slots.find(token) else { return };
        if slot.ended.is_some() {
            return;
        }
        slot.ended = Some(how);
        slot.last_byte = now;
        let (instance, graph) = (slot.instance, slot.job.graph);
        self.change_load(now, -1);
        if let Some(group) = self.groups.iter_mut().find(|g| g.id == graph)
            && let Some(instance) = group.instances.iter_mut().find(|i| i.key == instance)
        {
            instance.running -= 1;
        }
        self.deliver();
    }

    /// Results leave in the order of submission: whatever is complete at the head of each graph's queue.
    pub(super) fn deliver(&mut self) {
        for group in &mut self.groups {
            while let Some(&index) = group.order.front() {
                if !self.slots.at(index).is_some_and(|s| s.is_settled()) {
                    break;
                }
                group.order.pop_front();
                let Some(slot) = self.slots.remove(index) else { continue };
                self.events.push_back(end_of(slot));
            }
        }
    }

    /// The epoch ended: all that was sent comes back, in order of submission.
    pub(super) fn return_sent(&mut self) {
        for at in 0..self.groups.len() {
            while let Some(index) = self.groups[at].order.pop_front() {
                if let Some(slot) = self.slots.remove(index) {
                    self.events.push_back(end_of(slot));
                }
            }
        }
    }
}

fn end_of<T>(mut slot: Slot<T>) -> Event<T> {
    match (slot.ended.take(), slot.output.take()) {
        // The answer was complete before the epoch ended.
        (Some(Ok(())), Some(output)) if !output.is_lent() => Event::Done(Done {
            times: slot.times(),
            graph: slot.job.graph,
            tag: slot.job.tag,
            output,
            last_byte: slot.last_byte,
        }),
        (ended, _) if !slot.job.input.is_lent() => {
            let reason = match ended {
                Some(Err(error)) => Reason::Refused(error),
                _ => Reason::Lost { sent: true },
            };
            Event::Returned(slot.job, reason)
        }
        _ => Event::InputLost(slot.job.tag),
    }
}
