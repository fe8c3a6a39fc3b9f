//! Plain snapshot structs and histograms. No locks, no references: a snapshot is a value.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The six times of one request, in nanoseconds. Their sum is the caller's latency.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StageTimes {
    /// Submitted until a stick's pipeline took it.
    pub queue_ns: u64,
    /// Input converted and laid into its buffer.
    pub prepare_ns: u64,
    /// Input on its way, until the stick accepted the trigger.
    pub upload_ns: u64,
    /// Until the first byte of the output. On a real stick this includes waiting behind other jobs: an estimate.
    pub execute_ns: u64,
    /// First to last byte of the output.
    pub download_ns: u64,
    /// Output converted and handed to the caller.
    pub finish_ns: u64,
}

impl StageTimes {
    /// How many stages there are.
    pub const COUNT: usize = 6;

    /// Names, in order, as `--json` has them.
    pub const NAMES: [&'static str; Self::COUNT] =
        ["queue", "prepare", "upload", "execute", "download", "finish"];

    /// The times in the order of [`Self::NAMES`].
    pub fn as_array(&self) -> [u64; Self::COUNT] {
        [self.queue_ns, self.prepare_ns, self.upload_ns, self.execute_ns, self.download_ns, self.finish_ns]
    }

    /// Sum of the six.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.as_array().iter().sum())
    }
}

/// A mergeable histogram of times, 1 µs to 1 h, three significant digits. Recording does not allocate.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Latency {
    /// Empty.
    pub fn new() -> Self {
        // Nanoseconds; the bounds are constants that hdrhistogram accepts.
        Latency(Histogram::new_with_bounds(1_000, 3_600_000_000_000, 3).expect("constant bounds are valid"))
    }

    /// Adds one time; longer than an hour counts as an hour.
    pub fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Latency) {
        // Same bounds everywhere, so it cannot fail for want of range.
        let _ = self.0.add(&other.0);
    }

    /// Number of times recorded.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Mean; zero when empty.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.0.mean() as u64)
    }

    /// Value at quantile `q` in 0..=1; zero when empty.
    pub fn quantile(&self, q: f64) -> Duration {
        if self.0.is_empty() { Duration::ZERO } else { Duration::from_nanos(self.0.value_at_quantile(q)) }
    }

    /// How many were at most `time`, within the histogram's three digits.
    pub fn count_up_to(&self, time: Duration) -> u64 {
        self.0.count_between(0, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Largest; zero when empty.
    pub fn max(&self) -> Duration {
        if self.0.is_empty() { Duration::ZERO } else { Duration::from_nanos(self.0.max()) }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_below_a_time() {
        let mut latency = Latency::new();
        [1, 2, 2, 50].iter().for_each(|&ms| latency.record(Duration::from_millis(ms)));
        let below = |ms| latency.count_up_to(Duration::from_millis(ms));
        assert_eq!((below(0), below(1), below(10), below(100)), (0, 1, 3, 4));
        assert_eq!(latency.count_up_to(Duration::from_secs(1 << 40)), 4, "beyond the histogram");
    }
}
