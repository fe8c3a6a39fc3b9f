//! Moving elements about: Copy (19), Tile (28), Permute (34), Pad (71), Upsampling (73), Convert (111),
//! Concat (128), Broadcast (129), StridedSlice (133).
use ncs2::blob::DataType;

use super::memory::{Place, RANK, Transfer};
use super::params::Context;
use super::{Operation, Prepared, Scratch, sized};

pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    match context.kind() {
        19 => copy(context.operand(0)?, context.target(1)?),
        34 => permute(context),
        128 => concat(context),
        111 => convert(context),
        28 | 71 | 73 | 133 => remap(context),
        129 => broadcast(context),
        _ => Err("this engine does not know this way of moving elements".into()),
    }
}

struct Moves(Vec<Transfer>);

impl Operation for Moves {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        self.0.iter().for_each(|transfer| transfer.run(arena, &mut scratch.words));
    }
}

fn moves(transfers: Vec<Transfer>, output: Place) -> Prepared {
    let work = transfers.iter().map(|t| t.elements() as u64).sum();
    Prepared { operation: Box::new(Moves(transfers)), outputs: vec![output], work }
}

/// Bit by bit where type and dims agree, else by value in memory order.
fn copy(input: Place, output: Place) -> Result<Prepared, String> {
    if input.dtype == output.dtype && input.dims() == output.dims() {
        return Ok(moves(vec![Transfer::new(input, output.clone())?], output));
    }
    if input.elements() != output.elements() {
        return Err(format!("input dims {:?} do not fill output dims {:?}", input.dims(), output.dims()));
    }
    Ok(affine(input, output, 1.0, 0.0))
}

fn permute(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output) = (context.operand(0)?, context.target(1)?);
    let mut seen = Place { rank: output.rank, ..input.clone() };
    let mut taken = [false; RANK];
    for k in 0..output.rank {
        let from = context.int(k)?;
        let from = usize::try_from(from).ok().filter(|&f| f < input.rank && !taken[f]);
        let from = from.ok_or("the order of dimensions is no permutation")?;
        taken[from] = true;
        (seen.dims[k], seen.strides[k]) = (input.dims[from], input.strides[from]);
    }
    if input.rank != output.rank {
        return Err("input and output have different numbers of dimensions".into());
    }
    Ok(moves(vec![Transfer::new(seen, output.clone())?], output))
}

/// Parameters: axis, count. Buffers: inputs, output.
fn concat(context: &Context<'_>) -> Result<Prepared, String> {
    let count = context.operands().checked_sub(1).ok_or("no operands")?;
    let output = context.target(count)?;
    let axis = context.axis(0, &output)?;
    let mut transfers = Vec::with_capacity(count);
    let mut begin = 0;
    for index in 0..count {
        let input = context.operand(index)?;
        if count > 1 && input.overlaps(&output) {
            return Err("an input of several overlaps the output".into());
        }
        let mut part = output.clone();
        part.dims[axis] = input.dims[axis];
        part.offset += begin as isize * part.strides[axis];
        begin += input.dims[axis];
        if begin > output.dims[axis] {
            return Err("the inputs are longer than the output".into());
        }
        transfers.push(Transfer::new(input, part)?);
    }
    if begin != output.dims[axis] {
        return Err("the inputs do not fill the output".into());
    }
    Ok(moves(transfers, output))
}

/// `in · scale + bias` between element types; dimensions are matched by name, so it may also change the order.
fn convert(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output) = (context.operand(0)?, context.target(1)?);
    let (scale, bias) = (context.float(0)?, context.float(1)?);
    if input.elements() != output.elements() {
        return Err(format!("input dims {:?} do not fill output dims {:?}", input.dims(), output.dims()));
    }
    let input = if input.dims() == output.dims() && input.digits == output.digits {
        input
    } else {
        input.broadcast_to(&output)?
    };
    Ok(affine(input, output, scale, bias))
}

struct Affine {
    input: Place,
    output: Place,
    scale: f32,
    bias: f32,
}

fn affine(input: Place, output: Place, scale: f32, bias: f32) -> Prepared {
    let outputs = vec![output.clone()];
    let work = 2 * output.elements() as u64;
    Prepared { operation: Box::new(Affine { input, output, scale, bias }), outputs, work }
}

impl Operation for Affine {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let values = sized(&mut scratch.a, self.input.elements());
        self.input.read(arena, values);
        if (self.scale, self.bias) != (1.0, 0.0) {
            values.iter_mut().for_each(|v| *v = *v * self.scale + self.bias);
        }
        self.output.write(arena, values);
    }
}

/// Output element (i, j…) is input element (map₀\[i\], map₁\[j\]…), or the fill value where a map says so.
pub(super) struct Remap {
    input: Place,
    output: Place,
    /// Per dimension, for each output index: distance in the dense input, or `FILL`.
    maps: Vec<Vec<usize>>,
    fill: f32,
}

/// No source.
const FILL: usize = usize::MAX;

impl Remap {
    /// `maps` give indices; `None` for the fill value. One map per dimension of the output, as long as it is.
    pub fn prepare(
        input: Place,
        output: Place,
        maps: Vec<Vec<Option<usize>>>,
        fill: f32,
    ) -> Result<Prepared, String> {
        if input.rank != output.rank || maps.len() != output.rank {
            return Err("input and output have different numbers of dimensions".into());
        }
        let mut distance = 1;
        let mut scaled = Vec::with_capacity(maps.len());
        for (d, map) in maps.into_iter().enumerate() {
            if map.len() != output.dims[d] {
                return Err(format!("dimension {d} of the output is {}, not {}", output.dims[d], map.len()));
            }
            if map.iter().flatten().any(|&i| i >= input.dims[d]) {
                return Err(format!("dimension {d} of the input is exceeded"));
            }
            scaled.push(map.into_iter().map(|i| i.map_or(FILL, |i| i * distance)).collect());
            distance *= input.dims[d];
        }
        let work = 2 * (output.elements() + input.elements()) as u64;
        let outputs = vec![output.clone()];
        Ok(Prepared { operation: Box::new(Remap { input, output, maps: scaled, fill }), outputs, work })
    }

    fn select<T: Copy>(&self, from: &[T], to: &mut [T], fill: T) {
        let minor = &self.maps[0];
        let mut index = [0; RANK];
        for row in to.chunks_exact_mut(minor.len()) {
            let base = (1..self.maps.len()).try_fold(0, |sum, d| {
                let step = self.maps[d][index[d]];
                (step != FILL).then(|| sum + step)
            });
            match base {
                Some(base) => row
                    .iter_mut()
                    .zip(minor)
                    .for_each(|(value, &step)| *value = if step == FILL { fill } else { from[base + step] }),
                None => row.fill(fill),
            }
            for (index, map) in index.iter_mut().zip(&self.maps).skip(1) {
                *index += 1;
                if *index < map.len() {
                    break;
                }
                *index = 0;
            }
        }
    }
}

impl Operation for Remap {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        if self.input.dtype == DataType::S32 {
            let mut from = vec![0; self.input.elements()];
            let mut to = vec![0; self.output.elements()];
            self.input.read_i32(arena, &mut from);
            self.select(&from, &mut to, self.fill as i32);
            self.output.write_i32(arena, &to);
            return;
        }
        let from = sized(&mut scratch.a, self.input.elements());
        let to = sized(&mut scratch.b, self.output.elements());
        self.input.read(arena, from);
        self.select(from, to, self.fill);
        self.output.write(arena, to);
    }
}

fn whole(size: usize) -> Vec<Option<usize>> {
    (0..size).map(Some).collect()
}

fn remap(context: &Context<'_>) -> Result<Prepared, String> {
    let input = context.operand(0)?;
    let output =
        context.target(if context.kind() == 133 { context.operands().saturating_sub(1) } else { 1 })?;
    let mut maps: Vec<_> = (0..output.rank).map(|d| whole(output.dims[d])).collect();
    let mut fill = 0.0;
    match context.kind() {
        28 => {
            let axis = context.axis(0, &input)?;
            context.size(1, 1)?;
            let map = maps.get_mut(axis).ok_or("the axis is none of the output's")?;
            *map = (0..map.len()).map(|i| Some(i % input.dims[axis])).collect();
        }
        71 => {
            // Four pairs, minor to major, whatever the number of dimensions.
            let mode = context.int(9)?;
            fill = context.float(8)?;
            for (d, map) in maps.iter_mut().enumerate().take(4) {
                let before = context.size(2 * d, 0)?;
                let size = input.dims[d];
                *map = (0..map.len()).map(|i| pad(i as isize - before as isize, size, mode)).collect();
            }
            if !(0..=3).contains(&mode) {
                return Err(format!("unknown kind {mode} of padding"));
            }
        }
        73 => {
            for (axis, digit) in [1, 2, 3].into_iter().enumerate() {
                let Some(d) = output.position(digit) else { continue };
                let (factor, before) = (context.size(axis, 1)?, context.size(3 + 2 * axis, 0)?);
                let source = |i: usize| {
                    let i = i.checked_sub(before).filter(|i| i % factor == 0)? / factor;
                    (i < input.dims[d]).then_some(i)
                };
                maps[d] = (0..maps[d].len()).map(source).collect();
            }
        }
        _ => maps = slices(context, &input, &output)?,
    }
    Remap::prepare(input, output, maps, fill)
}

/// Source of padded index `i` (negative before the beginning): constant, edge, reflect, symmetric.
fn pad(i: isize, size: usize, mode: i32) -> Option<usize> {
    let last = size as isize - 1;
    if (0..=last).contains(&i) {
        return Some(i as usize);
    }
    match mode {
        1 => Some(i.clamp(0, last) as usize),
        // Mirrored once, without or with the edge itself; farther out is the edge's business (ONNX refuses it).
        2 => Some(if i < 0 { -i } else { 2 * last - i }.clamp(0, last) as usize),
        3 => Some(if i < 0 { -i - 1 } else { 2 * last + 1 - i }.clamp(0, last) as usize),
        _ => None,
    }
}

/// Index maps of a strided slice. Parameters: beginMask, endMask; buffers: in, begin, end, strides (IE order), out.
fn slices(context: &Context<'_>, input: &Place, output: &Place) -> Result<Vec<Vec<Option<usize>>>, String> {
    let (begin_mask, end_mask) = (context.int(0)?, context.int(1)?);
    let (begins, ends) = (context.operand(1)?.constant_integers()?, context.operand(2)?.constant_integers()?);
    let strides = match (context.operands() > 4).then(|| context.optional(3)).transpose()?.flatten() {
        Some(strides) => strides.constant_integers()?,
        None => vec![1; begins.len()],
    };
    if input.rank != output.rank {
        return Err("input and output have different numbers of dimensions".into());
    }
    let axes = input.axes();
    let mut maps: Vec<_> = (0..input.rank).map(|d| whole(input.dims[d])).collect();
    for (axis, &d) in axes.iter().enumerate() {
        let (Some(&begin), Some(&end)) = (begins.get(axis), ends.get(axis)) else { break };
        let stride = strides.get(axis).copied().unwrap_or(1);
        // A set bit means that the value counts (the opposite of what the IR says).
        let counts = |mask: i32| mask >> axis.min(31) & 1 == 1;
        let size = input.dims[d] as i64;
        let from_end = |v: i32| if v < 0 { i64::from(v) + size } else { i64::from(v) };
        let (first, stop) = match stride {
            0 => return Err("a slice has a stride of 0".into()),
            1.. => (
                if counts(begin_mask) { from_end(begin).clamp(0, size) } else { 0 },
                if counts(end_mask) { from_end(end).clamp(0, size) } else { size },
            ),
            _ => (
                if counts(begin_mask) { from_end(begin).clamp(-1, size - 1) } else { size - 1 },
                if counts(end_mask) { from_end(end).clamp(-1, size - 1) } else { -1 },
            ),
        };
        let inside = |i: &i64| if stride > 0 { *i < stop } else { *i > stop };
        let indices = std::iter::successors(Some(first), |i| Some(i + i64::from(stride)));
        maps[d] = indices.take_while(inside).map(|i| usize::try_from(i).ok()).collect();
    }
    Ok(maps)
}

/// Parameter: mode (0 numpy, 1 explicit, 2 bidirectional). Buffers: in, target shape \[, axes\], out. Axes count in the order
/// N, C, \[D\], H, W. (From the compiler's source; the compiler turns all broadcasts of known shapes into Tile.)
fn broadcast(context: &Context<'_>) -> Result<Prepared, String> {
    let input = context.operand(0)?;
    let mode = context.int(0)?;
    let output = context.target(if mode == 1 { 3 } else { 2 })?;
    let (from, to) = (input.axes(), output.axes());
    let targets: Vec<usize> = match mode {
        0 | 2 if from.len() <= to.len() => (to.len() - from.len()..to.len()).collect(),
        1 => {
            let axes = context.operand(2)?.constant_integers()?;
            axes.into_iter().filter_map(|a| usize::try_from(a).ok()).collect()
        }
        _ => return Err(format!("unknown mode {mode} of broadcasting")),
    };
    if targets.len() != from.len() {
        return Err("not one axis for each dimension of the input".into());
    }
    let mut seen = Place { rank: output.rank, digits: output.digits, dims: output.dims, ..input.clone() };
    seen.strides = [0; RANK];
    for (&d, &axis) in from.iter().zip(&targets) {
        let at = *to.get(axis).ok_or("an axis is none of the output's")?;
        if input.dims[d] != 1 && input.dims[d] != output.dims[at] {
            return Err(format!("input dims {:?} cannot be repeated to {:?}", input.dims(), output.dims()));
        }
        if input.dims[d] != 1 {
            seen.strides[at] = input.strides[d];
        }
    }
    Ok(moves(vec![Transfer::new(seen, output.clone())?], output))
}
