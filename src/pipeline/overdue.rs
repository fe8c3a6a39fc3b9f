//! When a transfer to the stick is overdue. A stick takes what it is sent within the link's time, since the host never
//! sends more than it has room for; a transfer that does not end holds its buffer and the job that it belongs to.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Instant;

/// Slowest rate that is believed, bytes per second: a USB 2 hub with eight busy sticks.
const SLOWEST: u64 = 4_000_000;

/// Distinguishes transfers under way; has [`NUMBER_BITS`] and wraps after more than any link moves in the time.
pub(super) type Number = u32;
pub(super) const NUMBER_BITS: u32 = 28;

/// OUT transfers that the transport has, oldest first.
pub(super) struct Overdue {
    limit: Duration,
    next: Number,
    /// When all that was given to the transport is certainly on the stick.
    wire_free: Instant,
    sent: VecDeque<(Number, Instant)>,
}

impl Overdue {
    /// `limit`: beside the time on the wire.
    pub(super) fn new(limit: Duration) -> Self {
        Overdue { limit, next: 0, wire_free: Instant::ZERO, sent: VecDeque::with_capacity(128) }
    }

    /// A transfer of so many bytes goes to the transport.
    pub(super) fn sent(&mut self, bytes: usize, now: Instant) -> Number {
        let number = self.next;
        self.next = (number + 1) & (u32::MAX >> (u32::BITS - NUMBER_BITS));
        self.wire_free = self.wire_free.max(now) + Duration::from_micros(bytes as u64 * 1_000_000 / SLOWEST);
        self.sent.push_back((number, self.wire_free + self.limit));
        number
    }

    /// It came back.
    pub(super) fn ended(&mut self, number: Number, now: Instant) {
        if let Some(at) = self.sent.iter().position(|(n, _)| *n == number) {
            self.sent.remove(at);
        }
        // Else a link faster than the slowest would push its deadlines ever further away.
        if self.sent.is_empty() {
            self.wire_free = now;
        }
    }

    /// When the oldest is overdue.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.sent.front().map(|(_, deadline)| *deadline)
    }

    /// Beside the time on the wire.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn each_has_its_time_behind_those_before_it() {
        let mut overdue = Overdue::new(LIMIT);
        assert_eq!(overdue.deadline(), None);
        let first = overdue.sent(4_000, at(10));
        let second = overdue.sent(4_000_000, at(10));
        assert_eq!(overdue.deadline(), Some(at(11) + LIMIT));
        overdue.ended(first, at(12));
        assert_eq!(overdue.deadline(), Some(at(1011) + LIMIT));
        overdue.ended(second, at(20));
        assert_eq!(overdue.deadline(), None);
        overdue.sent(4_000, at(30));
        assert_eq!(
            overdue.deadline(),
            Some(at(31) + LIMIT),
            "what was faster than thought is not waited for"
        );
    }

    #[test]
    fn one_that_stays_is_found_whatever_passes_it() {
        let mut overdue = Overdue::new(LIMIT);
        let stays = overdue.sent(84, at(0));
        let due = overdue.deadline();
        overdue.next = u32::MAX >> 4;
        for (ms, expected) in (0..3).zip([u32::MAX >> 4, 0, 1]) {
            // The first wraps onto the one that stays: so many cannot pass it in its time.
            let other = overdue.sent(84, at(ms));
            assert_eq!(other, expected);
            if other != stays {
                overdue.ended(other, at(ms));
                assert_eq!(overdue.deadline(), due);
            }
        }
    }
}
