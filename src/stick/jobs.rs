//! Inferences in flight. Order is identity: outputs, statuses and input releases are matched to jobs by counting.

use std::collections::VecDeque;
use std::time::Duration;

use super::commands::GraphReply;
use super::tag::{Purpose, Tag};
use super::{
    GraphKey, IncomingOutput, JobToken, Ordering, Phase, SendPayload, Stick, StickError, StickEvent,
};
use crate::clock::Instant;
use crate::wire::StreamId;

#[derive(Clone, Copy, Debug)]
struct Job {
    token: JobToken,
    /// Since when `deadline` was reckoned.
    judged_from: Instant,
    deadline: Instant,
    /// For its inference alone.
    allowance: Duration,
    /// Its TRIGGER left for the stick, so an output may come: the link's mark behind it.
    trigger_sent: Option<u64>,
    /// The stick said that it is queued (and, under vendor order, that status was released).
    triggered: bool,
    /// All of its output lies in the owner's buffer.
    output_complete: bool,
}

/// The jobs of one graph, oldest first. Numbers count from 0 over the graph's life.
#[derive(Debug)]
pub(super) struct Jobs {
    queue: VecDeque<Job>,
    /// Number of the oldest job in `queue`.
    first: u64,
    /// Number of the next job whose input is to be written.
    next_start: u64,
    /// Number of the next job whose output is to come.
    next_output: u64,
    /// Number of the next job whose input is to be released.
    next_release: u64,
    /// Vendor order: a job is between its input and the release of its status.
    starting: bool,
    /// Vendor order: the release of an output is not acknowledged.
    releasing: bool,
}

impl Jobs {
    pub(super) fn with_capacity(jobs: usize) -> Self {
        Jobs {
            queue: VecDeque::with_capacity(jobs),
            first: 0,
            next_start: 0,
            next_output: 0,
            next_release: 0,
            starting: false,
            releasing: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.queue.capacity()
    }

    fn by_number(&mut self, number: u64) -> Option<&mut Job> {
        self.queue.get_mut(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// Takes out the jobs of which nothing was given to the link.
    pub(super) fn take_unstarted(&mut self) -> impl Iterator<Item = JobToken> {
        let started = usize::try_from(self.next_start - self.first).unwrap_or(usize::MAX);
        self.queue.split_off(started.min(self.queue.len())).into_iter().map(|job| job.token)
    }
}

impl Stick {
    /// True when [`Stick::infer`] would accept a job now.
    pub fn can_infer(&self, key: GraphKey) -> bool {
        self.phase == Phase::Open
            && self
                .ready_slot(key)
                .is_ok_and(|slot| slot.jobs.queue.len() < slot.request.fifo_elements as usize)
    }

    /// Sends the job's input and triggers. `allowance`: how long its inference may take, those ahead of it on the stick not
    /// counted; when the output is not there by then, the epoch ends.
    /// [`StickError::Full`] when as many jobs as FIFO elements are in flight; a job without time is not taken, for it
    /// would end the epoch.
    pub fn infer(
        &mut self,
        key: GraphKey,
        job: JobToken,
        allowance: Duration,
        now: Instant,
    ) -> Result<(), StickError> {
        if self.phase != Phase::Open {
            return Err(StickError::Invalid("the stick is not open"));
        }
        if allowance.is_zero() {
            return Err(StickError::Timeout {
                step: "deadline of a job not yet sent",
                after: Duration::ZERO,
            });
        }
        let ahead: usize = self.graphs.iter().map(|s| s.jobs.queue.len()).sum();
        let deadline =
            now + allowance.saturating_mul(u32::try_from(ahead).unwrap_or(u32::MAX).saturating_add(1));
        if self.graphs.iter().any(|s| s.jobs.queue.iter().any(|j| j.token == job)) {
            return Err(StickError::Invalid("a job with this token is in flight"));
        }
        let slot = self.ready_slot_mut(key)?;
        if slot.jobs.queue.len() >= slot.request.fifo_elements as usize {
            return Err(StickError::Full);
        }
        slot.jobs.queue.push_back(Job {
            token: job,
            judged_from: now,
            deadline,
            allowance,
            trigger_sent: None,
            triggered: false,
            output_complete: false,
        });
        let graph = slot.graph;
        self.start_jobs(graph, now);
        self.settle(now);
        Ok(())
    }

    /// Writes inputs: under vendor order one job after the other, else all that are there.
    fn start_jobs(&mut self, graph: u32, now: Instant) {
        let vendor = self.config.ordering == Ordering::Vendor;
        while let Some(slot) = self.graphs.iter_mut().find(|s| s.graph == graph) {
            let jobs = &mut slot.jobs;
            if vendor && jobs.starting {
                return;
            }
            let number = jobs.next_start;
            let Some(&Job { token, deadline, .. }) = jobs.by_number(number).map(|job| &*job) else { return };
            jobs.next_start += 1;
            jobs.starting = true;
            let Some(stream) = slot.input.stream else { return };
            let size = slot.request.input_bytes;
            let tag = Tag::Input { graph, job: number };
            let written = self.link.write(stream, size, SendPayload::Tensor(token), tag, deadline, now);
            self.check(tag.step(), written);
        }
    }

    /// A job's input left for the stick. Pipelined, its TRIGGER follows at once, never before.
    pub(super) fn input_sent(&mut self, graph: u32, job: u64, now: Instant) {
        if self.config.ordering == Ordering::Pipelined {
            self.push_command(Purpose::Trigger(job), graph, GraphReply::Nothing, now);
        }
    }

    pub(super) fn input_acked(&mut self, graph: u32, job: u64, now: Instant) {
        if self.config.ordering == Ordering::Vendor {
            self.push_command(Purpose::Trigger(job), graph, GraphReply::Nothing, now);
        }
    }

    pub(super) fn trigger_sent(&mut self, graph: u32, job: u64) {
        let mark = self.link.mark();
        if let Some(job) = self.slot(graph).and_then(|s| s.jobs.by_number(job)) {
            job.trigger_sent = Some(mark);
        }
    }

    /// The stick accepted a TRIGGER.
    pub(super) fn triggered(&mut self, graph: u32, number: u64, now: Instant) {
        let Some(slot) = self.slot(graph) else { return };
        slot.jobs.starting = false;
        if let Some(job) = slot.jobs.by_number(number) {
            job.triggered = true;
            let token = job.token;
            self.events.push_back(StickEvent::Triggered(token));
        }
        self.finish_jobs(graph, now);
        self.start_jobs(graph, now);
    }

    /// The stick gave an input element back: the n-th release is of the n-th input.
    pub(super) fn input_released(&mut self, stream: StreamId) {
        let Some(slot) = self.graphs.iter_mut().find(|s| s.input.stream == Some(stream)) else { return };
        let number = slot.jobs.next_release;
        if number >= slot.jobs.next_start {
            return; // the goodbye packet
        }
        slot.jobs.next_release += 1;
        if let Some(job) = slot.jobs.by_number(number) {
            let token = job.token;
            self.events.push_back(StickEvent::InputReleased(token));
        }
    }

    /// An output begins: it must be the oldest job's that has none, triggered, and of the right length.
    pub(super) fn output_begun(&mut self, stream: StreamId, size: u32) {
        let step = "output";
        let Some(slot) = self.graphs.iter_mut().find(|s| s.output.stream == Some(stream)) else {
            let problem = format!("{size} bytes on stream {stream}, which is no output FIFO");
            return self.fail(StickError::Protocol { step, problem });
        };
        let expected = slot.request.output_bytes;
        let graph = slot.graph;
        let number = slot.jobs.next_output;
        let Some(job) = slot.jobs.by_number(number).filter(|job| job.trigger_sent.is_some()) else {
            let problem = format!("{size} bytes that no TRIGGER asked for");
            return self.fail(StickError::Protocol { step, problem });
        };
        let token = job.token;
        if size != expected {
            let problem = format!("{size} bytes, expected {expected}");
            return self.fail(StickError::Protocol { step, problem });
        }
        self.incoming = Some(IncomingOutput { graph, token });
    }

    pub(super) fn output_done(&mut self, now: Instant) {
        let Some(IncomingOutput { graph, .. }) = self.incoming.take() else { return };
        let Some(slot) = self.slot(graph) else { return };
        let number = slot.jobs.next_output;
        slot.jobs.next_output += 1;
        if let Some(job) = slot.jobs.by_number(number) {
            job.output_complete = true;
        }
        self.finish_jobs(graph, now);
    }

    pub(super) fn output_released(&mut self, graph: u32, now: Instant) {
        if self.config.ordering == Ordering::Pipelined {
            return;
        }
        let Some(slot) = self.slot(graph) else { return };
        slot.jobs.releasing = false;
        self.end_oldest(graph, now);
        self.finish_jobs(graph, now);
    }

    /// Finishes what waited for an answer of the link.
    pub(super) fn finish_answered(&mut self, now: Instant) {
        for at in 0..self.graphs.len() {
            let Some(slot) = self.graphs.get(at) else { return };
            if slot.jobs.queue.front().is_some_and(|job| job.triggered && job.output_complete) {
                self.finish_jobs(slot.graph, now);
            }
        }
    }

    /// Releases outputs of accepted jobs, oldest first. Under vendor order the caller gets a result once its release
    /// is acknowledged, as the vendor's does. Outputs carry no number, so a result counts only when the stick has answered
    /// all that was sent up to its TRIGGER: if it has not, the input may have been lost, and this is another's output.
    fn finish_jobs(&mut self, graph: u32, now: Instant) {
        let vendor = self.config.ordering == Ordering::Vendor;
        while let Some(slot) = self.graphs.iter_mut().find(|s| s.graph == graph) {
            let link = &self.link;
            let ready = slot.jobs.queue.front().is_some_and(|job| {
                job.triggered
                    && job.output_complete
                    && job.trigger_sent.is_some_and(|mark| link.has_answered(mark))
            });
            let Some(stream) = slot.output.stream.filter(|_| ready && !slot.jobs.releasing) else { return };
            slot.jobs.releasing = vendor;
            let released = self.link.release(stream, Some(Tag::OutputRelease { graph }));
            self.check("release of an output", released);
            if vendor {
                return;
            }
            self.end_oldest(graph, now);
        }
    }

    fn end_oldest(&mut self, graph: u32, now: Instant) {
        let others: usize = self.graphs.iter().filter(|s| s.graph != graph).map(|s| s.jobs.queue.len()).sum();
        let Some(slot) = self.slot(graph) else { return };
        if let Some(job) = slot.jobs.queue.pop_front() {
            slot.jobs.first += 1;
            if let Some(next) = slot.jobs.queue.front_mut() {
                // Its deadline counted those ahead of it, which are gone; what other graphs have may still be.
                let ahead = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1);
                next.judged_from = now;
                next.deadline = next.deadline.min(now + next.allowance.saturating_mul(ahead));
            }
            self.events.push_back(StickEvent::Done(job.token));
        }
    }

    pub(super) fn jobs_deadline(&self) -> Option<Instant> {
        let waiting = |job: &&Job| !job.output_complete;
        self.graphs.iter().flat_map(|s| s.jobs.queue.iter().filter(waiting)).map(|job| job.deadline).min()
    }

    /// Has a job no output by its deadline?
    pub(super) fn judge_jobs(&mut self, now: Instant) {
        let late = self
            .graphs
            .iter()
            .flat_map(|s| s.jobs.queue.iter())
            .find(|job| !job.output_complete && job.deadline <= now);
        if let Some(job) = late {
            let after = job.deadline - job.judged_from;
            self.fail(StickError::Timeout { step: "output", after });
        }
    }
}
