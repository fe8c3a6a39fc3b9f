//! Reading and writing by computed indices: Gather (100), ScatterUpdate (103), ScatterElementsUpdate (126), GatherND (136),
//! GatherElements (139). An index outside is undefined; here it becomes the nearest one inside.
use super::memory::Place;
use super::params::{Context, same_dims};
use super::{Operation, Prepared, Scratch, sized};

pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    match context.kind() {
        100 => gather(context),
        136 => gather_nd(context),
        139 => gather_elements(context),
        _ => scatter(context),
    }
}

/// Negative indices count from the end.
fn inside(index: i32, size: usize) -> usize {
    let (index, size) = (i64::from(index), size as i64);
    (if index < 0 { index + size } else { index }).clamp(0, size - 1) as usize
}

fn integers(place: &Place, arena: &[u16]) -> Vec<i32> {
    let mut values = vec![0; place.elements()];
    place.read_i32(arena, &mut values);
    values
}

/// Tensors of equal element type are moved as 32-bit values where they are integers, else as f32.
struct Moved {
    input: Place,
    indices: Place,
    updates: Option<Place>,
    output: Place,
    rule: Rule,
}

enum Rule {
    /// Rows of `inner` elements out of `count`.
    Rows { inner: usize, count: usize },
    /// Element by element along one dimension.
    Elements { dims: Vec<usize>, axis: usize },
    /// Rows of `inner` elements found by as many indices as there are sizes (minor first), `batches` times.
    Points { sizes: Vec<usize>, inner: usize, batches: usize },
}

/// Index in the dense input of element `at` of indices with dims `dims`, where `index` replaces the place along `axis`.
fn along(at: usize, dims: &[usize], input: &[usize], axis: usize, index: i32) -> usize {
    let (mut rest, mut step, mut sum) = (at, 1, 0);
    for (d, (&dim, &size)) in dims.iter().zip(input).enumerate() {
        let position = rest % dim;
        rest /= dim;
        sum += step * if d == axis { inside(index, size) } else { position };
        step *= size;
    }
    sum
}

impl Moved {
    fn select<T: Copy>(&self, from: &[T], indices: &[i32], updates: &[T], to: &mut [T]) {
        let scatters = self.updates.is_some();
        if scatters {
            to.copy_from_slice(from);
        }
        match &self.rule {
            &Rule::Rows { inner, count } if scatters => {
                for (block, updates) in
                    to.chunks_exact_mut(inner * count).zip(updates.chunks_exact(inner * indices.len()))
                {
                    for (&index, row) in indices.iter().zip(updates.chunks_exact(inner)) {
                        block[inside(index, count) * inner..][..inner].copy_from_slice(row);
                    }
                }
            }
            &Rule::Rows { inner, count } => {
                let blocks = from.chunks_exact(inner * count);
                for (from, to) in blocks.zip(to.chunks_exact_mut(inner * indices.len())) {
                    for (&index, to) in indices.iter().zip(to.chunks_exact_mut(inner)) {
                        to.copy_from_slice(&from[inside(index, count) * inner..][..inner]);
                    }
                }
            }
            Rule::Elements { dims, axis } => {
                for (at, &index) in indices.iter().enumerate() {
                    let place = along(at, self.indices.dims(), dims, *axis, index);
                    if scatters {
                        to[place] = updates[at];
                    } else {
                        to[at] = from[place];
                    }
                }
            }
            Rule::Points { sizes, inner, batches } => {
                let points = indices.chunks_exact(sizes.len());
                let each = points.len() / batches;
                for (at, (point, to)) in points.zip(to.chunks_exact_mut(*inner)).enumerate() {
                    // Indices are written major first.
                    let place = point.iter().zip(sizes.iter().rev());
                    let row = place.fold(at / each, |sum, (&index, &size)| sum * size + inside(index, size));
                    to.copy_from_slice(&from[row * inner..][..*inner]);
                }
            }
        }
    }
}

impl Operation for Moved {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let indices = integers(&self.indices, arena);
        if self.input.dtype == ncs2::blob::DataType::S32 {
            let from = integers(&self.input, arena);
            let updates = self.updates.as_ref().map_or(Vec::new(), |place| integers(place, arena));
            let mut to = vec![0; self.output.elements()];
            self.select(&from, &indices, &updates, &mut to);
            self.output.write_i32(arena, &to);
            return;
        }
        let Scratch { a, b, c, .. } = scratch;
        let (from, to) = (sized(a, self.input.elements()), sized(b, self.output.elements()));
        self.input.read(arena, from);
        let updates = match &self.updates {
            Some(place) => {
                let updates = sized(c, place.elements());
                place.read(arena, updates);
                &updates[..]
            }
            None => &[],
        };
        self.select(from, &indices, updates, to);
        self.output.write(arena, to);
    }
}

fn prepared(moved: Moved) -> Prepared {
    let places = [Some(&moved.input), Some(&moved.output), Some(&moved.indices), moved.updates.as_ref()];
    let work = places.into_iter().flatten().map(|p| 8 * p.elements() as u64).sum();
    Prepared { outputs: vec![moved.output.clone()], operation: Box::new(moved), work }
}

/// Parameter: axis (memory index). Buffers: in, out, indices.
fn gather(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output, indices) = (context.operand(0)?, context.target(1)?, context.operand(2)?);
    let axis = context.axis(0, &input)?;
    let (inner, count) = (input.dims[..axis].iter().product::<usize>(), input.dims[axis]);
    let expected = (input.elements() / count).saturating_mul(indices.elements());
    if expected != output.elements() {
        return Err(format!("{expected} elements for an output of {}", output.elements()));
    }
    Ok(prepared(Moved { input, indices, updates: None, output, rule: Rule::Rows { inner, count } }))
}

/// Parameters: axis (memory index), 0. Buffers: in, out, indices.
fn gather_elements(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output, indices) = (context.operand(0)?, context.target(1)?, context.operand(2)?);
    let axis = context.axis(0, &input)?;
    same_dims(&indices, &output)?;
    within(&indices, &input, axis)?;
    let dims = input.dims().to_vec();
    Ok(prepared(Moved { input, indices, updates: None, output, rule: Rule::Elements { dims, axis } }))
}

/// Refuses indices that are longer than the input in another dimension than `axis`.
fn within(indices: &Place, input: &Place, axis: usize) -> Result<(), String> {
    let shorter = |d: usize| d == axis || indices.dims[d] <= input.dims[d];
    if indices.rank != input.rank || !(0..input.rank).all(shorter) {
        return Err(format!("indices of dims {:?} for {:?}", indices.dims(), input.dims()));
    }
    Ok(())
}

/// Parameter: number of leading dimensions that indices and input share. Buffers: in, out, indices.
fn gather_nd(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output, indices) = (context.operand(0)?, context.target(1)?, context.operand(2)?);
    let (shared, depth) = (context.size(0, 0)?, indices.dims[0]);
    if shared.saturating_add(depth) > input.rank || shared >= indices.rank {
        return Err(format!("{depth} indices after {shared} shared dimensions of {}", input.rank));
    }
    let rest = input.rank - shared - depth;
    let inner: usize = input.dims[..rest].iter().product();
    let batches: usize = input.dims[input.rank - shared..input.rank].iter().product();
    let shares = (0..shared).all(|d| input.dims[input.rank - 1 - d] == indices.dims[indices.rank - 1 - d]);
    if !shares || output.elements() != (indices.elements() / depth).saturating_mul(inner) {
        return Err("indices do not give the output's dims".into());
    }
    let sizes = input.dims[rest..rest + depth].to_vec();
    let rule = Rule::Points { sizes, inner, batches };
    Ok(prepared(Moved { input, indices, updates: None, output, rule }))
}

/// No parameters. Buffers: in, out, indices, updates, axis (S32, in the order N, C, [D], H, W).
fn scatter(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output) = (context.operand(0)?, context.target(1)?);
    let (indices, updates) = (context.operand(2)?, context.operand(3)?);
    same_dims(&input, &output)?;
    if (updates.dtype == ncs2::blob::DataType::S32) != (input.dtype == ncs2::blob::DataType::S32) {
        return Err("updates have another type than the input".into());
    }
    let axis = *context.operand(4)?.constant_integers()?.first().ok_or("no axis")?;
    let axes = input.axes();
    let at = if axis < 0 { i64::from(axis) + axes.len() as i64 } else { i64::from(axis) };
    let at = usize::try_from(at).ok().and_then(|a| axes.get(a));
    let axis = *at.ok_or_else(|| format!("axis {axis} of {} dimensions", input.rank))?;
    let rule = if context.kind() == 126 {
        same_dims(&indices, &updates)?;
        within(&indices, &input, axis)?;
        Rule::Elements { dims: input.dims().to_vec(), axis }
    } else {
        let (inner, count) = (input.dims[..axis].iter().product::<usize>(), input.dims[axis]);
        if updates.elements() != (input.elements() / count).saturating_mul(indices.elements()) {
            return Err("updates do not fit the indices".into());
        }
        Rule::Rows { inner, count }
    };
    Ok(prepared(Moved { input, indices, updates: Some(updates), output, rule }))
}
