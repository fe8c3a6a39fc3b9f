//! Who wrote a byte: asked backwards over the stages, for the few bytes that matter, instead of keeping an id for
//! each element of memory.
use super::Graph;
use super::roles;
use super::stage::Stage;
use super::tensor::{Location, MAX_DIMS, View};

/// A byte of a memory area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub location: Location,
    pub byte: usize,
}

impl Place {
    /// The element of `view` at the given index of each dimension.
    pub fn of(view: &View, index: impl IntoIterator<Item = usize>) -> Self {
        let along: usize = index.into_iter().zip(&view.strides).map(|(i, &s)| i * s as usize).sum();
        Place { location: view.location, byte: view.offset + along }
    }
}

/// A stage or an injected stage.
#[derive(Clone, Copy)]
pub(super) struct Unit<'a> {
    pub stage: &'a Stage,
    /// Index in [`Graph::stages`], of the parent for an injected stage.
    pub top: usize,
}

pub(super) fn units(graph: &Graph) -> Vec<Unit<'_>> {
    let mut units = Vec::with_capacity(graph.stages.len());
    for (top, stage) in graph.stages.iter().enumerate() {
        units.push(Unit { stage, top });
        units.extend(stage.injected.as_deref().map(|stage| Unit { stage, top }));
    }
    units
}

/// Where the bytes at a place come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// Nobody wrote them.
    Unwritten,
    /// The caller's input or the file.
    Given(Place),
    /// Unit number, and the place that it wrote.
    Written(usize, Place),
}

/// Bounds the work on a hostile graph.
pub(super) struct Budget(u64);

impl Budget {
    pub fn new(steps: u64) -> Self {
        Budget(steps)
    }

    /// False when the budget is used up.
    pub fn spend(&mut self, steps: u64) -> bool {
        self.0 = self.0.saturating_sub(steps);
        self.0 > 0
    }
}

pub(super) struct Trace<'a> {
    pub units: Vec<Unit<'a>>,
    bytes: &'a [u8],
}

impl<'a> Trace<'a> {
    pub fn new(graph: &'a Graph, bytes: &'a [u8]) -> Self {
        Trace { units: units(graph), bytes }
    }

    /// The last writer of a place before stage `top`. `None` when the budget is used up.
    pub fn writer(&self, place: Place, top: usize, budget: &mut Budget) -> Option<Origin> {
        self.last_write(place, top, budget).map(|(origin, _)| origin)
    }

    /// As `writer`, but what a Copy or Permute wrote comes from where that stage read it.
    pub fn origin(&self, mut place: Place, mut top: usize, budget: &mut Budget) -> Option<Origin> {
        loop {
            let (origin, index) = self.last_write(place, top, budget)?;
            let Origin::Written(unit, _) = origin else { return Some(origin) };
            let Unit { stage, top: earlier } = self.units[unit];
            let Some(strides) = roles::moved_strides(stage, self.bytes) else { return Some(origin) };
            let source = &stage.buffers[0];
            let along: usize = index.iter().zip(&strides).map(|(&i, &s)| i * s as usize).sum();
            // The source lies inside its area (checked by the parser), and each step goes back in time: this ends.
            place = Place { location: source.location, byte: source.offset + along };
            top = earlier;
        }
    }

    fn last_write(
        &self,
        place: Place,
        top: usize,
        budget: &mut Budget,
    ) -> Option<(Origin, [usize; MAX_DIMS])> {
        let nowhere = [0; MAX_DIMS];
        if matches!(place.location, Location::Input(_) | Location::Blob | Location::None) {
            return Some((Origin::Given(place), nowhere));
        }
        let end = self.units.partition_point(|unit| unit.top < top);
        for (number, unit) in self.units[..end].iter().enumerate().rev() {
            if !budget.spend(1 + unit.stage.buffers.len() as u64) {
                return None;
            }
            for view in roles::outputs(unit.stage) {
                if let Some(index) = index_of(view, place) {
                    return Some((Origin::Written(number, place), index));
                }
            }
        }
        Some((Origin::Unwritten, nowhere))
    }
}

/// The element of the view that holds the place. Finds it where strides do not decrease from minor to major, as in
/// every blob seen; otherwise it may miss one.
fn index_of(view: &View, place: Place) -> Option<[usize; MAX_DIMS]> {
    if view.location != place.location {
        return None;
    }
    let mut rest = place.byte.checked_sub(view.offset)?;
    let mut index = [0; MAX_DIMS];
    for (k, (&dim, &stride)) in view.dims.iter().zip(&view.strides).enumerate().rev() {
        if dim > 1 && stride > 0 {
            index[k] = rest / stride as usize;
            if index[k] >= dim as usize {
                return None;
            }
            rest %= stride as usize;
        }
    }
    (rest < view.dtype.bytes()).then_some(index)
}
