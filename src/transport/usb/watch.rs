//! Sticks that are plugged in and pulled out, as it happens.

use std::collections::VecDeque;
use std::time::Duration;

use super::discover::{self, Found};
use super::uevent::Bell;
use crate::clock::{Clock as _, Monotonic};
use crate::error::Result;
use crate::id::StickId;

/// What happened on a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A stick is where none was.
    Arrived(Found),
    /// The stick of this port is gone.
    Left(StickId),
    /// The same port, another state or address: it booted, was claimed, or fell back to its boot ROM.
    Changed(Found),
}

/// Follows the bus. The kernel's messages wake it; where they do not come (containers without them) it looks every
/// 20 ms. What is plugged in already when it begins is told first.
#[derive(Debug)]
pub struct Watch {
    bell: Bell,
    clock: Monotonic,
    known: Vec<Found>,
    changes: VecDeque<Change>,
}

impl Watch {
    /// Begins to follow.
    pub fn new() -> Result<Self> {
        // The bell before the first look, or what happens between them is heard of late.
        let bell = Bell::new();
        let mut watch = Watch { bell, clock: Monotonic::new(), known: Vec::new(), changes: VecDeque::new() };
        watch.look()?;
        Ok(watch)
    }

    /// The next change; `None` when there was none for `timeout`.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Change>> {
        let until = self.clock.now() + timeout;
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Ok(Some(change));
            }
            let left = until.saturating_since(self.clock.now());
            if left.is_zero() {
                return Ok(None);
            }
            self.bell.wait(left);
            self.look()?;
        }
    }

    /// True when the kernel tells of changes; else the bus is looked at 50 times a second.
    pub fn is_told(&self) -> bool {
        self.bell.tells()
    }

    fn look(&mut self) -> Result<()> {
        let now = discover::list()?;
        self.changes.extend(difference(&self.known, &now));
        self.known = now;
        Ok(())
    }
}

/// What leads from `before` to `now`; departures first.
fn difference(before: &[Found], now: &[Found]) -> Vec<Change> {
    let at = |list: &[Found], id: &StickId| list.iter().position(|found| found.id == *id);
    let left = before.iter().filter(|old| at(now, &old.id).is_none()).map(|old| Change::Left(old.id.clone()));
    let rest = now.iter().filter_map(|new| match at(before, &new.id) {
        None => Some(Change::Arrived(new.clone())),
        Some(old) if before[old] != *new => Some(Change::Changed(new.clone())),
        Some(_) => None,
    });
    left.chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::usb::discover::FoundState;

    fn stick(id: &str, state: FoundState, address: u8) -> Found {
        Found {
            id: StickId::new(id),
            state,
            product_id: 0x2485,
            bus: 1,
            address,
            ports: vec![1],
            speed_mbps: 480,
            serial: None,
        }
    }

    #[test]
    fn arrivals_departures_and_boots_are_told_by_port() {
        let unbooted = stick("1-1", FoundState::Unbooted, 3);
        let booted = stick("1-1", FoundState::Booted, 4);
        let other = stick("1-2", FoundState::Unbooted, 5);
        let only = std::slice::from_ref::<Found>;
        assert_eq!(difference(&[], only(&unbooted)), [Change::Arrived(unbooted.clone())]);
        assert_eq!(difference(only(&unbooted), only(&unbooted)), []);
        assert_eq!(difference(only(&unbooted), only(&booted)), [Change::Changed(booted.clone())]);
        let swapped = difference(only(&booted), only(&other));
        assert_eq!(swapped, [Change::Left(booted.id), Change::Arrived(other)]);
    }

    #[test]
    fn a_quiet_bus_tells_nothing_and_keeps_its_time() {
        let mut watch = Watch::new().expect("a look at the bus");
        while watch.next(Duration::ZERO).expect("a look").is_some() {}
        assert_eq!(watch.next(Duration::from_millis(30)).expect("a look"), None);
    }
}
