//! Circuit breaker: who fails often is left alone for a while, then tried with one job.

use std::time::Duration;

use crate::clock::Instant;

/// Settings of a breaker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BreakerConfig {
    /// Failures in a row that open it.
    pub failures: u32,
    /// First pause.
    pub backoff: Duration,
    /// Longest pause; each failed trial doubles it up to here.
    pub max_backoff: Duration,
    /// Successes in a row that close it again and forget the backoff.
    pub successes: u32,
}

/// What may be done now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    /// All is well.
    Closed,
    /// Nothing until then.
    Open(Instant),
    /// One job at a time, as a trial.
    Trial,
}

/// Health of one stick or one graph.
#[derive(Clone, Debug)]
pub struct Breaker {
    config: BreakerConfig,
    failed: u32,
    succeeded: u32,
    pause: Duration,
    until: Option<Instant>,
    opened: u32,
}

impl Breaker {
    /// Closed.
    pub fn new(config: BreakerConfig) -> Self {
        Breaker { config, failed: 0, succeeded: 0, pause: config.backoff, until: None, opened: 0 }
    }

    /// What may be done now.
    pub fn gate(&self, now: Instant) -> Gate {
        match self.until {
            None => Gate::Closed,
            Some(until) if now < until => Gate::Open(until),
            Some(_) => Gate::Trial,
        }
    }

    /// One job was answered.
    pub fn succeeded(&mut self) {
        self.failed = 0;
        if self.until.is_none() && self.pause == self.config.backoff {
            return;
        }
        self.succeeded += 1;
        if self.succeeded >= self.config.successes {
            self.until = None;
            self.pause = self.config.backoff;
        }
    }

    /// One job failed. True if that opened it.
    pub fn failed(&mut self, now: Instant) -> bool {
        self.succeeded = 0;
        self.failed += 1;
        if self.failed >= self.config.failures || self.until.is_some() { self.trip(now) } else { false }
    }

    /// It broke down altogether: opens at once. False where it was open already.
    pub fn trip(&mut self, now: Instant) -> bool {
        if matches!(self.gate(now), Gate::Open(_)) {
            return false;
        }
        self.succeeded = 0;
        self.failed = 0;
        self.until = Some(now + self.pause);
        self.pause = (self.pause * 2).min(self.config.max_backoff);
        self.opened += 1;
        true
    }

    /// Ends the pause: one job may be tried now.
    pub fn try_now(&mut self, now: Instant) {
        self.until = self.until.map(|until| until.min(now));
    }

    /// Times that it opened.
    pub fn opened(&self) -> u32 {
        self.opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_backs_off_and_heals() {
        let s = Duration::from_secs;
        let at = |t| Instant::ZERO + s(t);
        let config = BreakerConfig { failures: 3, backoff: s(1), max_backoff: s(4), successes: 2 };
        let mut b = Breaker::new(config);
        assert!(!b.failed(at(0)) && !b.failed(at(0)));
        b.succeeded();
        assert!(!b.failed(at(0)) && !b.failed(at(0)), "failures in a row count");
        assert!(b.failed(at(0)));
        assert_eq!(b.gate(at(0)), Gate::Open(at(1)));
        assert_eq!(b.gate(at(1)), Gate::Trial);
        for (t, next) in [(1, 3), (3, 7), (7, 11)] {
            assert!(b.failed(at(t)), "a failed trial opens at once");
            assert_eq!(b.gate(at(t)), Gate::Open(at(next)));
        }
        b.succeeded();
        assert_eq!(b.gate(at(11)), Gate::Trial);
        b.succeeded();
        assert_eq!(b.gate(at(11)), Gate::Closed);
        assert!(b.trip(at(20)));
        assert_eq!(b.gate(at(20)), Gate::Open(at(21)), "the backoff starts anew");
        assert_eq!(b.opened(), 5);
    }
}
