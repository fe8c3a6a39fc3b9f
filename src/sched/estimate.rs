//! How long a graph occupies a stick: the median of the last samples, so that one bad sample moves nothing.

use crate::clock::Instant;

/// Samples in the window. Half of them, less one, may be lies.
const WINDOW: usize = 7;
/// Weight of a new median in the smoothed value.
const GAIN: f64 = 0.25;
/// A median that differs by this factor or more is a change, not noise: taken at once.
const STEP: f64 = 1.25;
/// An unmeasured stick is thought this much faster than the measured ones, so that it is tried.
pub const OPTIMISM: f64 = 0.9;

/// Device time of one inference on one stick at one throttle level, microseconds.
#[derive(Clone, Debug, Default)]
pub struct Estimate {
    ring: [f32; WINDOW],
    count: u32,
    value: f64,
    last: Instant,
}

impl Estimate {
    /// Adds a measured time.
    pub fn record(&mut self, us: f64, now: Instant) {
        if !us.is_finite() || us < 0.0 {
            return;
        }
        self.ring[self.count as usize % WINDOW] = us as f32;
        self.count = self.count.saturating_add(1);
        self.last = now;
        let median = f64::from(self.median());
        let known = self.count > 1 && self.value > 0.0;
        let ratio = if known { median / self.value } else { f64::INFINITY };
        if (1.0 / STEP..STEP).contains(&ratio) {
            self.value += GAIN * (median - self.value);
        } else {
            self.value = median;
        }
    }

    fn median(&self) -> f32 {
        let n = (self.count as usize).min(WINDOW);
        let mut sorted = self.ring;
        sorted[..n].sort_unstable_by(f32::total_cmp);
        // Of an even number the lower one: optimistic, as the prior.
        sorted[n.saturating_sub(1) / 2]
    }

    /// Microseconds; `None` before the first sample.
    pub fn us(&self) -> Option<f64> {
        (self.count > 0).then_some(self.value)
    }

    /// True once enough samples are in for a decision that costs something.
    pub fn is_settled(&self) -> bool {
        self.count >= 5
    }

    /// Samples so far.
    pub fn samples(&self) -> u32 {
        self.count
    }

    /// When the last sample came.
    pub fn last(&self) -> Instant {
        self.last
    }

    /// A value that nobody confirmed for long: a tenth of the way to what an unmeasured stick is credited with, so that a
    /// stick that was slow once is tried again.
    pub fn fade(&mut self, prior_us: f64) {
        if self.count > 0 && prior_us < self.value {
            self.value += 0.1 * (prior_us - self.value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_sample_moves_nothing_and_a_lasting_change_arrives() {
        let mut e = Estimate::default();
        (0..10).for_each(|_| e.record(100.0, Instant::ZERO));
        e.record(1e9, Instant::ZERO);
        assert_eq!(e.us(), Some(100.0));
        (0..10).for_each(|_| e.record(100.0, Instant::ZERO));
        let needed = (1..20).find(|_| {
            e.record(400.0, Instant::ZERO);
            e.us() == Some(400.0)
        });
        assert_eq!(needed, Some(4), "samples until a lasting slow-down is believed");
    }

    #[test]
    fn a_bad_first_sample_is_outvoted() {
        let mut e = Estimate::default();
        e.record(1e9, Instant::ZERO);
        e.record(100.0, Instant::ZERO);
        assert_eq!(e.us(), Some(100.0));
    }

    #[test]
    fn noise_is_smoothed() {
        let mut e = Estimate::default();
        for i in 0..100 {
            e.record(100.0 + f64::from(i * 7 % 11) - 5.0, Instant::ZERO);
        }
        assert!((e.us().expect("samples") - 100.0).abs() < 2.5, "{:?}", e.us());
    }
}
