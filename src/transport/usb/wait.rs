//! Waiting for a stick to appear on its port, as somebody still wants it.

use std::time::Duration;

use super::discover::{self, Found};
use super::uevent::Bell;
use crate::clock::{Clock as _, Instant, Monotonic};
use crate::error::{Error, ErrorKind, Result};
use crate::id::StickId;
use crate::transport::GiveUp;

/// Waits for things to happen on one port.
pub(super) struct Wait<'a> {
    pub(super) id: &'a StickId,
    pub(super) clock: &'a Monotonic,
    pub(super) give_up: &'a GiveUp,
    /// What waits, for errors.
    op: &'static str,
    /// Rings from the beginning, so that nothing is missed between a deed and the wait for what comes of it.
    bell: Bell,
}

impl<'a> Wait<'a> {
    pub(super) fn new(id: &'a StickId, op: &'static str, clock: &'a Monotonic, give_up: &'a GiveUp) -> Self {
        Wait { id, clock, give_up, op, bell: Bell::new() }
    }

    /// A pause that ends early when nobody wants the stick any more.
    pub(super) fn pause(&self, time: Duration) {
        const LOOK: Duration = Duration::from_millis(50);
        let until = self.clock.now() + time;
        while !self.give_up.is_asked() && self.clock.now() < until {
            std::thread::sleep(LOOK.min(until.saturating_since(self.clock.now())));
        }
    }

    /// The stick, once it is as wanted; at `deadline` an error that says what is missing.
    /// Sooner when nobody wants the stick any more.
    pub(super) fn until(
        &self,
        deadline: Instant,
        missing: &str,
        wanted: impl Fn(&Found) -> bool,
    ) -> Result<Found> {
        self.look(deadline, missing, wanted, || self.give_up.is_asked())
    }

    /// As `until`, whoever has lost interest: a stick that has its firmware is not left to itself.
    pub(super) fn to_the_end(
        &self,
        deadline: Instant,
        missing: &str,
        wanted: impl Fn(&Found) -> bool,
    ) -> Result<Found> {
        self.look(deadline, missing, wanted, || false)
    }

    fn look(
        &self,
        deadline: Instant,
        missing: &str,
        wanted: impl Fn(&Found) -> bool,
        is_over: impl Fn() -> bool,
    ) -> Result<Found> {
        let names = discover::names(self.id);
        loop {
            if is_over() {
                let detail = "nobody waits for it any more";
                return Err(Error::new(ErrorKind::Cancelled, self.op).on(self.id).detail(detail));
            }
            if let Some(found) = discover::find(self.id).filter(&wanted) {
                return Ok(found);
            }
            let left = deadline.saturating_since(self.clock.now());
            if left.is_zero() {
                return Err(Error::new(ErrorKind::Timeout, self.op).on(self.id).detail(missing));
            }
            self.bell.wait_about(&names, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stick_that_is_not_there_fails_by_the_deadline_and_says_so() {
        let clock = Monotonic::new();
        let id = StickId::new("250-250");
        let give_up = GiveUp::default();
        let wait = Wait::new(&id, "boot", &clock, &give_up);
        let error = wait.until(clock.now(), "the stick is not on the bus", |_| true).expect_err("no stick");
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert_eq!(error.to_string(), "250-250: boot: the stick is not on the bus");

        // Whoever gives up on another thread does not wait for the deadline, but a stick that has its firmware is waited for.
        let far = clock.now() + Duration::from_secs(600);
        let error = std::thread::scope(|scope| {
            scope.spawn(|| give_up.now());
            wait.until(far, "the stick is not on the bus", |_| true).expect_err("no stick")
        });
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        let error = wait.to_the_end(clock.now(), "it did not come back", |_| true).expect_err("no stick");
        assert_eq!(error.kind(), ErrorKind::Timeout);
    }
}
