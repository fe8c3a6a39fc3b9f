//! TopK (104): the largest or smallest elements along one dimension, and where they were.
use super::memory::Place;
use super::params::Context;
use super::{Operation, Prepared, Scratch, sized};

struct TopK {
    input: Place,
    values: Option<Place>,
    indices: Option<Place>,
    count: usize,
    kept: usize,
    inner: usize,
    smallest: bool,
    by_index: bool,
}

impl Operation for TopK {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let from = sized(&mut scratch.a, self.input.elements());
        self.input.read(arena, from);
        let outer = from.len() / (self.count * self.inner);
        let kept = sized(&mut scratch.b, outer * self.kept * self.inner);
        let mut places = vec![0i32; kept.len()];
        let mut order: Vec<usize> = Vec::with_capacity(self.count);
        for block in 0..outer {
            for i in 0..self.inner {
                let value = |k: usize| from[(block * self.count + k) * self.inner + i];
                order.clear();
                order.extend(0..self.count);
                // Stable, so equal values keep their order.
                if self.smallest {
                    order.sort_by(|&a, &b| value(a).total_cmp(&value(b)));
                } else {
                    order.sort_by(|&a, &b| value(b).total_cmp(&value(a)));
                }
                order.truncate(self.kept);
                if self.by_index {
                    order.sort_unstable();
                }
                for (k, &from) in order.iter().enumerate() {
                    let to = (block * self.kept + k) * self.inner + i;
                    kept[to] = value(from);
                    places[to] = from as i32;
                }
            }
        }
        if let Some(place) = &self.values {
            place.write(arena, kept);
        }
        if let Some(place) = &self.indices {
            place.write_i32(arena, &places);
        }
    }
}

/// Parameters: axis, mode (0 max, 1 min), sort (0 none, 1 value, 2 index), hasValues, hasIndices. Buffers: values, k,
/// \[values out\], \[indices out\].
pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let input = context.operand(0)?;
    let axis = context.axis(0, &input)?;
    let (mode, sort) = (context.int(1)?, context.int(2)?);
    if !(0..=1).contains(&mode) || !(0..=2).contains(&sort) {
        return Err(format!("unknown mode {mode} or order {sort}"));
    }
    let mut next = 2;
    let mut output = |wanted: bool| {
        if !wanted {
            return Ok(None);
        }
        next += 1;
        context.target(next - 1).map(Some)
    };
    let values = output(context.flag(3)?)?;
    let indices = output(context.flag(4)?)?;
    let outputs: Vec<Place> = [&values, &indices].into_iter().flatten().cloned().collect();
    let kept = outputs.first().ok_or("it has no output")?.dims[axis];
    let mut dims = input.dims;
    dims[axis] = kept;
    if kept > input.dims[axis] || outputs.iter().any(|p| p.dims != dims) {
        return Err("output dims do not fit the input's".into());
    }
    let work = 32 * input.elements() as u64;
    let operation = TopK {
        count: input.dims[axis],
        kept,
        inner: input.dims[..axis].iter().product(),
        smallest: mode == 1,
        by_index: sort == 2,
        input,
        values,
        indices,
    };
    Ok(Prepared { operation: Box::new(operation), outputs, work })
}
