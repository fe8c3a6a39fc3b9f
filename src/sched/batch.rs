//! How many waiting jobs go into one inference, where a model is loaded with several batch sizes.

use std::time::Duration;

use crate::clock::Instant;

/// One loaded batch size.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Variant {
    /// Jobs that one inference of it answers.
    pub size: u32,
    /// Measured device time of one inference, microseconds; `None` until measured.
    pub device_us: Option<f64>,
}

/// The decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BatchChoice {
    /// Run this variant now with so many jobs (its last places may stay empty).
    Run {
        /// Index of the variant.
        variant: usize,
        /// Jobs, 1 to its size.
        jobs: u32,
    },
    /// A fuller batch is worth waiting for, at most until then.
    WaitUntil(Instant),
}

/// What the decision is made from.
#[derive(Clone, Copy, Debug)]
pub struct BatchState<'a> {
    /// Sizes, ascending, at least one.
    pub variants: &'a [Variant],
    /// Jobs waiting, at least one.
    pub queued: u32,
    /// When the oldest of them arrived.
    pub oldest: Instant,
    /// Earliest deadline among them.
    pub deadline: Instant,
    /// Longest time that a job may wait for others.
    pub max_delay: Duration,
    /// The stick works on something: then waiting costs no device time.
    pub busy: bool,
}

/// A larger batch must be better by this factor per job to be preferred.
const GAIN: f64 = 1.03;
/// What an unmeasured variant is credited with per job, against the smallest: just enough to be tried.
const CREDIT: f64 = 0.95;

/// Depth comes first: an idle stick starts at once with what is there. A batch is used only where it measures better.
pub fn choose(s: BatchState<'_>, now: Instant) -> BatchChoice {
    let single = &s.variants[0];
    let unit = single.device_us.map(|us| us / f64::from(single.size));
    let cost = |v: &Variant| v.device_us.or(unit.map(|u| u * CREDIT * f64::from(v.size)));
    // Cost per job of an inference of `v` with what is there now. With nothing measured, the smallest is as good as any.
    let mut best = (0, unit.unwrap_or(f64::INFINITY), s.queued.min(single.size));
    let mut full = (0, best.1);
    for (i, v) in s.variants.iter().enumerate().skip(1) {
        let Some(us) = cost(v) else { continue };
        let jobs = s.queued.min(v.size);
        // Partly filled only with a measurement in hand.
        if (jobs == v.size || v.device_us.is_some()) && us / f64::from(jobs) * GAIN < best.1 {
            best = (i, us / f64::from(jobs), jobs);
        }
        if us / f64::from(v.size) * GAIN < full.1 {
            full = (i, us / f64::from(v.size));
        }
    }
    let preferred = &s.variants[full.0];
    if s.busy && s.queued < preferred.size {
        // Ready in time also for the most urgent of them: waiting ends while the inference still fits.
        let run = Duration::from_secs_f64(preferred.device_us.unwrap_or(0.0) * 2.0 / 1e6);
        let urgent = Instant::from_nanos(s.deadline.as_nanos().saturating_sub(run.as_nanos() as u64));
        let until = (s.oldest + s.max_delay).min(urgent);
        if now < until {
            return BatchChoice::WaitUntil(until);
        }
    }
    BatchChoice::Run { variant: best.0, jobs: best.2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variants(us: [Option<f64>; 3]) -> [Variant; 3] {
        [1, 4, 8].map(|size| Variant { size, device_us: us[(size as usize) / 4] })
    }

    #[test]
    fn the_grid_of_batches() {
        let mut table = String::new();
        let ms = Duration::from_millis;
        for (name, us) in [
            ("nothing measured", [None, None, None]),
            ("only 1 measured", [Some(1000.0), None, None]),
            ("batch pays", [Some(1000.0), Some(2000.0), Some(3500.0)]),
            ("batch does not pay", [Some(1000.0), Some(4000.0), Some(8100.0)]),
            ("4 pays, 8 does not", [Some(1000.0), Some(2000.0), Some(6000.0)]),
        ] {
            for queued in [1, 3, 4, 7, 20] {
                let variants = variants(us);
                let state = |busy, waited: u64| {
                    let now = Instant::ZERO + ms(100);
                    let s = BatchState {
                        variants: &variants,
                        queued,
                        oldest: Instant::ZERO + ms(100 - waited),
                        deadline: Instant::FAR_FUTURE,
                        max_delay: ms(5),
                        busy,
                    };
                    match choose(s, now) {
                        BatchChoice::Run { variant, jobs } => format!("{jobs} in {}", variants[variant].size),
                        BatchChoice::WaitUntil(t) => format!("wait {} ms", (t - now).as_millis()),
                    }
                };
                table += &format!(
                    "{name:<18} {queued:>2} waiting: idle {:<8} busy {:<10} busy, 5 ms old {}\n",
                    state(false, 0),
                    state(true, 0),
                    state(true, 5)
                );
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let variants = variants([Some(1000.0), Some(2000.0), None]);
        let s = BatchState {
            variants: &variants,
            queued: 2,
            oldest: Instant::ZERO,
            deadline: Instant::ZERO + Duration::from_millis(5),
            max_delay: Duration::from_millis(50),
            busy: true,
        };
        let BatchChoice::WaitUntil(until) = choose(s, Instant::ZERO) else { panic!("waits") };
        assert!(until <= Instant::ZERO + Duration::from_millis(5));
        assert!(matches!(choose(s, until), BatchChoice::Run { .. }));
    }
}
