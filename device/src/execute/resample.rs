//! Changing the size of planes: Interp (67, linear) and Resample (72, nearest).
use super::layout::Remap;
use super::memory::Place;
use super::params::Context;
use super::{Operation, Prepared, Scratch, sized};

/// How an output position maps to an input position; the compiler's numbers. An axis that keeps its size is left alone: no
/// stage says which axes the network resizes, and all modes but 3 give the same there anyway.
fn position(mode: i32, x: usize, from: usize, to: usize) -> Result<f32, String> {
    let ratio = from as f32 / to as f32;
    let x = x as f32;
    Ok(match mode {
        0..=4 if from == to => x,
        // half_pixel, pytorch_half_pixel, asymmetric, tf_half_pixel_for_nn, align_corners
        0 => (x + 0.5) * ratio - 0.5,
        1 if to > 1 => (x + 0.5) * ratio - 0.5,
        2 => x * ratio,
        3 => (x + 0.5) * ratio,
        4 if to > 1 => x * (from - 1) as f32 / (to - 1) as f32,
        1 | 4 => 0.0,
        _ => return Err(format!("unknown mode {mode} of coordinates")),
    })
}

/// Which neighbour is nearest; the compiler's numbers.
fn nearest(mode: i32, x: f32, shrinks: bool) -> Result<f32, String> {
    Ok(match mode {
        // round_prefer_floor, round_prefer_ceil, floor, ceil, simple
        0 => (x - 0.5).ceil(),
        1 => (x + 0.5).floor(),
        2 => x.floor(),
        3 => x.ceil(),
        4 if shrinks => x.ceil(),
        4 => x.trunc(),
        _ => return Err(format!("unknown mode {mode} of the nearest neighbour")),
    })
}

pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output) = (context.operand(0)?, context.target(1)?);
    if input.rank != output.rank || input.digits != output.digits {
        return Err("input and output lie in different orders".into());
    }
    for d in 0..input.rank {
        if !matches!(input.digits[d], 1 | 2) && input.dims[d] != output.dims[d] {
            return Err("dimensions beside W and H differ".into());
        }
    }
    if context.kind() == 67 { linear(context, input, output) } else { resample(context, input, output) }
}

/// Parameters: antialias, factor, type, coordMode, nearestMode.
fn resample(context: &Context<'_>, input: Place, output: Place) -> Result<Prepared, String> {
    let (kind, coordinates, mode) = (context.int(2)?, context.int(3)?, context.int(4)?);
    if kind != 0 {
        return Err(format!("unknown kind {kind} of resampling"));
    }
    let mut maps = Vec::with_capacity(output.rank);
    for d in 0..output.rank {
        let (from, to) = (input.dims[d], output.dims[d]);
        let source = |x: usize| {
            if !matches!(output.digits[d], 1 | 2) {
                return Ok(Some(x));
            }
            let x = nearest(mode, position(coordinates, x, from, to)?, to < from)?;
            // `as` saturates below at 0.
            Ok(Some((x as usize).min(from - 1)))
        };
        maps.push((0..to).map(source).collect::<Result<Vec<_>, String>>()?);
    }
    Remap::prepare(input, output, maps, 0.0)
}

/// For one output position: two neighbours and the share of the second.
type Blend = (usize, usize, f32);

struct Linear {
    input: Place,
    output: Place,
    /// W and H must be the minor dimensions of the dense planes.
    across: Vec<Blend>,
    down: Vec<Blend>,
}

impl Operation for Linear {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let Scratch { a, b, .. } = scratch;
        let (from, to) = (sized(a, self.input.elements()), sized(b, self.output.elements()));
        self.input.read(arena, from);
        let (width, height) = (self.input.dims[0], self.input.dims[1]);
        let planes = to.chunks_exact_mut(self.across.len() * self.down.len());
        for (from, to) in from.chunks_exact(width * height).zip(planes) {
            for (row, &(top, bottom, y)) in to.chunks_exact_mut(self.across.len()).zip(&self.down) {
                let (top, bottom) = (&from[top * width..][..width], &from[bottom * width..][..width]);
                for (value, &(left, right, x)) in row.iter_mut().zip(&self.across) {
                    let upper = top[left] + (top[right] - top[left]) * x;
                    let lower = bottom[left] + (bottom[right] - bottom[left]) * x;
                    *value = upper + (lower - upper) * y;
                }
            }
        }
        self.output.write(arena, to);
    }
}

/// W first, H second, whatever the order in memory.
fn planar(place: &Place) -> Result<Place, String> {
    let (w, h) = (place.position(1).ok_or("no width")?, place.position(2).ok_or("no height")?);
    let rest = (0..place.rank).filter(|&d| d != w && d != h);
    let mut seen = place.clone();
    for (to, from) in [w, h].into_iter().chain(rest).enumerate() {
        (seen.dims[to], seen.strides[to], seen.digits[to]) =
            (place.dims[from], place.strides[from], place.digits[from]);
    }
    Ok(seen)
}

/// Parameters: alignCorners, mode, coordMode.
fn linear(context: &Context<'_>, input: Place, output: Place) -> Result<Prepared, String> {
    let mode = context.int(1)?;
    if mode != 1 && mode != 3 {
        return Err(format!("unknown mode {mode} of interpolation"));
    }
    let coordinates = if context.flag(0)? { 4 } else { context.int(2)? };
    let (input, output) = (planar(&input)?, planar(&output)?);
    let blends = |d: usize| {
        let (from, to) = (input.dims[d], output.dims[d]);
        let blend = |x| {
            let x = position(coordinates, x, from, to)?.clamp(0.0, (from - 1) as f32);
            let first = x as usize;
            Ok((first, (first + 1).min(from - 1), x - first as f32))
        };
        (0..to).map(blend).collect::<Result<Vec<_>, String>>()
    };
    let (across, down) = (blends(0)?, blends(1)?);
    let work = (input.elements() + 8 * output.elements()) as u64;
    let outputs = vec![output.clone()];
    Ok(Prepared { operation: Box::new(Linear { input, output, across, down }), outputs, work })
}
