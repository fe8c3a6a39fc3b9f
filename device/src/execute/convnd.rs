//! ConvND (116): convolution of volumes, by its definition. The vendor's compiler cuts these into planes before it writes a
//! file, and no file with one was ever seen: parameters, operands and the order of the weights are those that its public source
//! would write, unverified.
use super::memory::Place;
use super::params::{Context, halves};
use super::{Operation, Prepared, Scratch, sized};

/// W, H, D.
const AXES: usize = 3;
/// Scalar code takes so many times as long as the matrix products that work is counted in.
const SLOWER: u64 = 8;

struct Volumes {
    input: Place,
    output: Place,
    /// Of the input, of the output and of the kernel: W, H, D.
    from: [usize; AXES],
    to: [usize; AXES],
    kernel: [usize; AXES],
    before: [usize; AXES],
    strides: [usize; AXES],
    dilations: [usize; AXES],
    channels: usize,
    /// `[oc][ic][kd][kh][kw]`.
    weights: Vec<f32>,
    /// One for each output channel.
    bias: Vec<f32>,
}

fn split(index: usize, dims: [usize; AXES]) -> [usize; AXES] {
    [index % dims[0], index / dims[0] % dims[1], index / (dims[0] * dims[1])]
}

impl Volumes {
    /// One output cell of one output channel.
    fn cell(&self, at: [usize; AXES], image: &[f32], weights: &[f32]) -> f32 {
        let cells: usize = self.from.iter().product();
        let taps: usize = self.kernel.iter().product();
        let mut sum = 0.0;
        for tap in 0..taps {
            let k = split(tap, self.kernel);
            let inside = |d: usize| {
                let place = at[d] * self.strides[d] + k[d] * self.dilations[d];
                place.checked_sub(self.before[d]).filter(|&place| place < self.from[d])
            };
            let (Some(x), Some(y), Some(z)) = (inside(0), inside(1), inside(2)) else { continue };
            let from = (z * self.from[1] + y) * self.from[0] + x;
            for channel in 0..self.channels {
                sum += weights[channel * taps + tap] * image[channel * cells + from];
            }
        }
        sum
    }
}

impl Operation for Volumes {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let Scratch { a, b, .. } = scratch;
        let (from, to) = (sized(a, self.input.elements()), sized(b, self.output.elements()));
        self.input.read(arena, from);
        let image = self.channels * self.from.iter().product::<usize>();
        let cells: usize = self.to.iter().product();
        let kernel = self.channels * self.kernel.iter().product::<usize>();
        for (image, out) in from.chunks_exact(image).zip(to.chunks_exact_mut(self.bias.len() * cells)) {
            let each = out.chunks_exact_mut(cells).zip(self.weights.chunks_exact(kernel)).zip(&self.bias);
            for ((out, weights), bias) in each {
                for (cell, value) in out.iter_mut().enumerate() {
                    *value = self.cell(split(cell, self.to), image, weights) + bias;
                }
            }
        }
        self.output.write(arena, to);
    }
}

/// Parameters: four lists (count, values; W first): padding before, padding after, strides, dilations; then groups. Operands:
/// input, output, weights (W, H, D, input channels, output channels), bias.
pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output) = (context.operand(0)?.planar(), context.target(1)?);
    let seen = output.planar();
    let weights = context.operand(2)?;
    halves(&[&input, &seen, &weights])?;
    let list = |which: usize, least: i32| -> Result<[usize; AXES], String> {
        let at = which * (AXES + 1);
        if context.size(at, 1)? != AXES {
            return Err(format!("expected lists of {AXES} axes"));
        }
        Ok([context.size(at + 1, least)?, context.size(at + 2, least)?, context.size(at + 3, least)?])
    };
    let (before, _, strides, dilations) = (list(0, 0)?, list(1, 0)?, list(2, 1)?, list(3, 1)?);
    if context.int(4 * (AXES + 1))? != 1 {
        return Err("groups of volumes".into());
    }
    let volume = |place: &Place| {
        let named = [1, 2, 5, 3].iter().all(|&digit| place.position(digit).is_some());
        named.then(|| [place.dim(1), place.dim(2), place.dim(5)]).ok_or("expected W, H, D and C")
    };
    let (from, to) = (volume(&input)?, volume(&seen)?);
    let (channels, made) = (input.dim(3), seen.dim(3));
    if input.dim(4) != seen.dim(4) || input.rank != seen.rank {
        return Err("input and output differ in their batch".into());
    }
    let &[w, h, d, ic, oc] = weights.dims() else { return Err("expected weights of 5 dimensions".into()) };
    if (ic, oc) != (channels, made) {
        return Err(format!("weights of {ic} and {oc} channels where {channels} and {made} are needed"));
    }
    let bias = match context.optional(3)? {
        Some(place) => place.constants()?,
        None => vec![0.0; made],
    };
    if bias.len() != made {
        return Err(format!("{} biases of {made} channels", bias.len()));
    }
    let sums = (seen.elements() as u64).saturating_mul((w * h * d) as u64).saturating_mul(ic as u64);
    let work = sums.saturating_mul(SLOWER).saturating_add(input.elements() as u64);
    let operation = Volumes {
        input,
        output: seen,
        from,
        to,
        kernel: [w, h, d],
        before,
        strides,
        dilations,
        channels,
        weights: weights.constants()?,
        bias,
    };
    Ok(Prepared { operation: Box::new(operation), outputs: vec![output], work })
}
