//! Requests that no stick can take, computed elsewhere: on the CPU, marked as such, never counted into a stick's work.

use super::core::{Core, Shared};
use super::jobs::Waiting;
use super::ticket::Output;
use crate::blob::Blob;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::id::StickId;
use crate::pool::Use;
use crate::stats::StageTimes;

/// Who computes what no stick can take.
pub trait Fallback: Send + Sync + std::fmt::Debug {
    /// What results are marked with, such as `cpu-execute`.
    fn name(&self) -> &str;

    /// One inference: the whole input element in, the whole output element out, both as the blob lays them.
    ///
    /// # Errors
    /// What the caller of the request is told.
    fn run(&self, blob: &Blob, input: &[u8], output: &mut [u8]) -> Result<()>;
}

/// Whether another place may help: the request itself is sound.
fn is_for_want_of_sticks(error: &Error) -> bool {
    use ErrorKind::{NotFound, OutOfMemory, Overheated, Protocol, Timeout, Unplugged, Unsupported};
    matches!(error.kind(), NotFound | OutOfMemory | Overheated | Protocol | Timeout | Unplugged | Unsupported)
}

impl Shared {
    /// Ends a request that is in no book any more: by the fallback, or with the error where there is none.
    pub(super) fn fall_back_or_end(&self, core: &mut Core, job: Waiting, error: Error) {
        let blob = core.graph(job.graph).map(|g| g.blob().clone());
        let place = self.config.fallback.clone().zip(blob).zip(self.me.upgrade());
        // A request for one stick is about that stick.
        let Some(((fallback, blob), shared)) =
            place.filter(|_| is_for_want_of_sticks(&error) && job.pinned.is_none())
        else {
            core.failed += 1;
            return job.tag.end(Err(error));
        };
        core.on_fallback += 1;
        self.bell.calls.run(Box::new(move || {
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
        let pool = &self.sticks[0].pool;
        let mut lease = pool.lease(blob.graph().output_bytes, Use::Output, self.config.wait_timeout)?;
        fallback.run(&blob, job.input.as_slice(), lease.as_mut_slice()).map_err(|error| {
            let detail = format!("{error}; it ran on {} since {why}", fallback.name());
            Error::new(error.kind(), "infer").detail(detail)
        })?;
        let ended = self.clock.now();
        let times = StageTimes {
            queue_ns: (begun - job.submitted).as_nanos() as u64,
            execute_ns: (ended - begun).as_nanos() as u64,
            ..StageTimes::default()
        };
        Ok(Output { lease, blob, stick: StickId::new(fallback.name()), fallback: true, times })
    }
}
