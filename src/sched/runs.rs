//! Inferences in flight, by names that are never used twice.

use crate::clock::Instant;

use super::event::{GraphNo, Jobs, RunId, StickNo};
use super::queue::Place;

/// One inference on one stick.
#[derive(Clone, Debug)]
pub struct Run {
    /// Where.
    pub stick: StickNo,
    /// What.
    pub graph: GraphNo,
    /// Which batch size.
    pub variant: u32,
    /// For whom.
    pub jobs: Jobs,
    /// When it was given to the stick's pipeline.
    pub assigned: Instant,
    /// Predicted device time of itself and of what was ahead, microseconds.
    pub own_us: f64,
    /// What was ahead of it, microseconds.
    pub ahead_us: f64,
    /// Added to its deadline alone, where its time was never measured.
    pub unsure_us: f64,
    /// Whose share it was charged to.
    pub place: Option<Place>,
    /// Counts against the cap on heavy work.
    pub heavy: bool,
    /// It is a suspect, alone on its stick.
    pub suspect: bool,
    /// The depth was reached with it.
    pub full: bool,
}

/// Slots that are used again under new names.
#[derive(Debug, Default)]
pub struct Runs {
    slots: Vec<(u32, Option<Run>)>,
    free: Vec<u32>,
}

impl Runs {
    /// Adds one.
    pub fn insert(&mut self, run: Run) -> RunId {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[at as usize];
        slot.1 = Some(run);
        RunId(u64::from(slot.0) << 32 | u64::from(at))
    }

    /// Looks at one; `None` for one that is over.
    pub fn peek(&self, id: RunId) -> Option<&Run> {
        let (generation, run) = self.slots.get(id.0 as u32 as usize)?;
        if u64::from(*generation) == id.0 >> 32 { run.as_ref() } else { None }
    }

    /// Ends one; `None` for one that is over.
    pub fn remove(&mut self, id: RunId) -> Option<Run> {
        self.peek(id)?;
        let slot = &mut self.slots[id.0 as u32 as usize];
        slot.0 = slot.0.wrapping_add(1);
        self.free.push(id.0 as u32);
        slot.1.take()
    }

    /// In flight now.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// True when nothing is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sched::event::JobId;

    #[test]
    fn names_are_never_used_twice() {
        let run = Run {
            stick: StickNo(0),
            graph: GraphNo(0),
            variant: 0,
            jobs: Jobs::One(JobId(1)),
            assigned: Instant::ZERO,
            own_us: 1.0,
            ahead_us: 0.0,
            unsure_us: 0.0,
            place: None,
            heavy: false,
            suspect: false,
            full: false,
        };
        let mut runs = Runs::default();
        let a = runs.insert(run.clone());
        assert!(runs.remove(a).is_some() && runs.remove(a).is_none());
        let b = runs.insert(run);
        assert_ne!(a, b);
        assert!(runs.peek(a).is_none() && runs.peek(b).is_some());
        assert_eq!(runs.len(), 1);
    }
}
