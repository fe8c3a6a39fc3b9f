//! Requests that no stick can take, computed elsewhere: on the CPU, marked as such, never counted into a stick's work.
//!
//! A request goes there when no stick is left that could answer it, when all that tried have failed, and, where it has a
//! deadline, when it still waits after half of its time: all sticks may be too hot, or too busy. What a stick already
//! works on stays with the stick.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::core::{Core, Shared};
use super::jobs::Waiting;
use super::ticket::{Output, late};
use crate::blob::Blob;
use crate::clock::{Clock, Instant};
use crate::error::{Error, ErrorKind, Result};
use crate::id::StickId;
use crate::pool::Use;
use crate::stats::StageTimes;

/// Who computes what no stick can take.
pub trait Fallback: Send + Sync + std::fmt::Debug {
    /// What results are marked with, such as `cpu-execute`.
    fn name(&self) -> &str;

    /// One inference: the whole input element in, the whole output element out, both as the blob lays them. Called on a
    /// thread of the fleet's own, one request after another.
    ///
    /// # Errors
    /// What the caller of the request is told.
    fn run(&self, blob: &Blob, input: &[u8], output: &mut [u8]) -> Result<()>;
}

/// Whether another place may help: the request itself is sound.
fn is_for_want_of_sticks(error: &Error) -> bool {
    use ErrorKind::{
        DeadlineExceeded, NotFound, OutOfMemory, Overheated, Protocol, Timeout, Unplugged, Unsupported,
    };
    matches!(
        error.kind(),
        DeadlineExceeded | NotFound | OutOfMemory | Overheated | Protocol | Timeout | Unplugged | Unsupported
    )
}

/// When a request that still waits then goes to the fallback: when half of its time is over. The other half is for the
/// fallback, or for the stick that took it just before, which heat may have made slow.
pub(super) fn spill_at(submitted: Instant, deadline: Instant) -> Instant {
    submitted + (deadline - submitted) / 2
}

/// The same of a request; `None` for one that has all time, or that is for one stick only.
fn spill_of(job: &Waiting) -> Option<Instant> {
    let deadline = job.tag.deadline.filter(|_| job.pinned.is_none())?;
    Some(spill_at(job.submitted, deadline))
}

impl Shared {
    /// Takes to the fallback what no stick has taken by now, and asks to be called when the next such moment is.
    pub(super) fn spill(&self, core: &mut Core) {
        if self.config.fallback.is_none() {
            return;
        }
        let now = self.now();
        self.end_waiting(core, |_, job| {
            spill_of(job).filter(|&at| at <= now)?;
            Some(
                Error::new(ErrorKind::DeadlineExceeded, "infer")
                    .detail("no stick had room for it within its deadline"),
            )
        });
        if let Some(next) = core.jobs.waiting().filter_map(spill_of).min() {
            self.bell.at(next);
        }
    }

    /// Ends a request that is in no book any more: by the fallback, or with the error where there is none.
    pub(super) fn fall_back_or_end(&self, core: &mut Core, job: Waiting, error: Error) {
        let blob = core.graph(job.graph).map(|g| g.blob().clone());
        let place = self.config.fallback.clone().zip(blob).zip(self.me.upgrade());
        // A request for one stick is about that stick, and one whose time is over is no use to anybody.
        let may = is_for_want_of_sticks(&error)
            && job.pinned.is_none()
            && job.tag.is_wanted()
            && !job.tag.is_late(self.now());
        let Some(((fallback, blob), shared)) = place.filter(|_| may) else {
            core.failed += 1;
            return job.tag.end(Err(error));
        };
        core.on_fallback += 1;
        self.cpu.run(Box::new(move || {
            let outcome = shared.compute(&*fallback, blob, &job, error);
            let mut core = shared.core.lock();
            core.on_fallback -= 1;
            match &outcome {
                Ok(_) => core.fallback_completed += 1,
                Err(_) => core.failed += 1,
            }
            job.tag.end(outcome);
            shared.after_ends(&mut core);
        }));
    }

    fn compute(&self, fallback: &dyn Fallback, blob: Blob, job: &Waiting, why: Error) -> Result<Output> {
        let begun = self.clock.now();
        if job.tag.is_late(begun) {
            return Err(late());
        }
        let pool = &self.sticks[0].pool;
        let mut lease = pool.lease(blob.graph().output_bytes, Use::Output, self.config.wait_timeout)?;
        let explain = |error: Error| {
            let detail = format!("{error}; it ran on {} since {why}", fallback.name());
            Error::new(error.kind(), "infer").detail(detail)
        };
        // A panic in the caller's code is the request's failure and nobody else's.
        let ran = AssertUnwindSafe(|| fallback.run(&blob, job.input.as_slice(), lease.as_mut_slice()));
        catch_unwind(ran)
            .unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Unsupported, "fall back").detail("the fallback panicked"))
            })
            .map_err(explain)?;
        let ended = self.clock.now();
        let prepare_ns = job.tag.worked.prepare_ns;
        let times = StageTimes {
            queue_ns: ((begun - job.submitted).as_nanos() as u64).saturating_sub(prepare_ns),
            prepare_ns,
            execute_ns: (ended - begun).as_nanos() as u64,
            ..StageTimes::default()
        };
        Ok(Output { lease, blob, stick: StickId::new(fallback.name()), fallback: true, times })
    }
}
