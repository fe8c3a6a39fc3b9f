//! PoolND (118): pooling of volumes. The compiler makes it where planes do not do: averages that leave padding out.
use super::memory::{Place, RANK};
use super::params::Context;
use super::{Operation, Prepared, Scratch, sized};

struct Volume {
    input: Place,
    output: Place,
    /// Number of pooled dimensions: W, H, D….
    axes: usize,
    /// Per axis: for each output index the first and one past the last input index, and the padded window's length.
    windows: Vec<Vec<(usize, usize, usize)>>,
    average: bool,
    exclude_pad: bool,
}

impl Operation for Volume {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let Scratch { a, b, .. } = scratch;
        let (from, to) = (sized(a, self.input.elements()), sized(b, self.output.elements()));
        self.input.read(arena, from);
        let block: usize = self.input.dims[..self.axes].iter().product();
        let cells: usize = self.output.dims[..self.axes].iter().product();
        for (from, to) in from.chunks_exact(block).zip(to.chunks_exact_mut(cells)) {
            for (cell, value) in to.iter_mut().enumerate() {
                let mut bounds = [(0, 1); RANK];
                let (mut rest, mut area) = (cell, 1);
                for (d, windows) in self.windows.iter().enumerate() {
                    let (first, end, padded) = windows[rest % windows.len()];
                    rest /= windows.len();
                    bounds[d] = (first, end);
                    area *= if self.exclude_pad { end - first } else { padded };
                }
                let start = if self.average { 0.0 } else { f32::NEG_INFINITY };
                let mut result = start;
                let mut index: [usize; RANK] = bounds.map(|b| b.0);
                'all: loop {
                    let mut step = 1;
                    let at = (0..self.axes).fold(0, |at, d| {
                        let at = at + index[d] * step;
                        step *= self.input.dims[d];
                        at
                    });
                    result = if self.average { result + from[at] } else { result.max(from[at]) };
                    for d in 0..=self.axes {
                        if d == self.axes {
                            break 'all;
                        }
                        index[d] += 1;
                        if index[d] < bounds[d].1 {
                            break;
                        }
                        index[d] = bounds[d].0;
                    }
                }
                *value = if self.average { result / area as f32 } else { result };
            }
        }
        self.output.write(arena, to);
    }
}

/// Parameters: four lists (count, values; W first): kernel, padding before, padding after, strides; then interleaved (0),
/// method (1 max, assumed; 2 average), rounding (3 floor), excludePad.
pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output) = (context.operand(0)?.planar(), context.target(1)?);
    let axes = context.size(0, 1)?;
    if axes > 3 || input.rank < axes || input.rank != output.rank {
        return Err(format!("{axes} axes of {} dimensions", input.rank));
    }
    let list = |which: usize, least: i32| {
        let at = which * (axes + 1);
        if context.size(at, 1)? != axes {
            return Err("its lists have different lengths".into());
        }
        (0..axes).map(|i| context.size(at + 1 + i, least)).collect::<Result<Vec<_>, String>>()
    };
    let (kernel, before, _, strides) = (list(0, 1)?, list(1, 0)?, list(2, 0)?, list(3, 1)?);
    let last = 4 * (axes + 1);
    let method = context.int(last + 1)?;
    if context.int(last)? != 0 || !(1..=2).contains(&method) {
        return Err(format!("unknown method {method} of pooling"));
    }
    let seen = output.planar();
    if (axes..input.rank).any(|d| input.dims[d] != seen.dims[d]) {
        return Err("input and output differ in a dimension that is not pooled".into());
    }
    let mut windows = Vec::with_capacity(axes);
    let mut per_cell = 1u64;
    for d in 0..axes {
        let window = |at: usize| {
            let begin = at * strides[d];
            let end = (begin + kernel[d]).saturating_sub(before[d]).min(input.dims[d]);
            let first = begin.saturating_sub(before[d]);
            (first < end).then_some((first, end, kernel[d])).ok_or("a window lies outside the input")
        };
        windows.push((0..seen.dims[d]).map(window).collect::<Result<Vec<_>, _>>()?);
        per_cell = per_cell.saturating_mul(kernel[d].min(input.dims[d]) as u64);
    }
    let work = (output.elements() as u64).saturating_mul(4 * per_cell) + input.elements() as u64;
    let operation = Volume {
        input,
        output: seen,
        axes,
        windows,
        average: method == 2,
        exclude_pad: context.flag(last + 3)?,
    };
    Ok(Prepared { operation: Box::new(operation), outputs: vec![output], work })
}
