//! Convolution: the core that NCE and software stages share, and the software weight layouts.
//!
//! ```text
//! input planes (FP16, strided) ─► im2col tile (f32, padding and zero stuffing included) ─► GEMM ─► bias, scale, activation ─► FP16
//! ```
//! Tiles are bands of output rows, so that scratch stays in cache whatever the plane. Input channels whose weights are all
//! zero are never read: the NCE is fed padding channels that nobody wrote, and 0·NaN would spoil the sum. Where every
//! output channel has one input channel (depthwise run as dense), the planes are filtered one by one instead.

use std::cell::RefCell;

use rayon::prelude::*;

use super::memory::Place;
use super::params::Context;
use super::planes::Planes;
use super::{Operation, Prepared, Scratch, sized};
use crate::gemm::{Matrix, multiply, wide};

/// f32 elements of an im2col tile that still stay in cache beside their product.
const TILE: usize = 1 << 18;
/// Most f32 elements that one band of rows may take: beyond any graph that fits a stick.
const LARGEST: usize = 1 << 26;
/// Multiply-accumulates from which on it pays to wake the other cores.
pub(super) const WORTH_WAKING: u64 = 1 << 18;

/// What follows the sum.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Finish {
    /// (factor below or at zero, factor above).
    pub relu: Option<(f32, f32)>,
    /// `min(max(r, 0), clamp)`.
    pub clamp: Option<f32>,
}

impl Finish {
    #[inline]
    pub fn apply(&self, values: &mut [f32]) {
        match self.relu {
            Some((0.0, 1.0)) => values.iter_mut().for_each(|v| *v = v.max(0.0)),
            // Not a product: 0·∞ would be no number.
            Some((0.0, above)) => values.iter_mut().for_each(|v| *v = v.max(0.0) * above),
            Some((below, above)) => {
                values.iter_mut().for_each(|v| *v *= if *v > 0.0 { above } else { below });
            }
            None => {}
        }
        if let Some(most) = self.clamp {
            values.iter_mut().for_each(|v| *v = v.max(0.0).min(most));
        }
    }
}

#[derive(Debug)]
enum Weights {
    /// `[oc][channels.len() · taps]`, over the listed input channels: the order in which GEMM packs fastest.
    Dense { matrix: Vec<f32>, channels: Vec<usize> },
    /// One input channel per output channel, `None` where all its weights are zero; `[oc][taps]`.
    PerChannel { sources: Vec<Option<usize>>, taps: Vec<f32> },
}

/// Geometry of a convolution, x before y.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub kernel: (usize, usize),
    pub stride: (usize, usize),
    pub dilation: (usize, usize),
    pub pad: (usize, usize),
    /// Zero stuffing of the input: (1, 1) for none.
    pub stuffing: (usize, usize),
}

/// A prepared convolution.
pub(super) struct Convolution {
    input: Planes,
    output: Planes,
    window: Window,
    weights: Weights,
    bias: Option<Vec<f32>>,
    scale: Option<Vec<f32>>,
    finish: Finish,
    /// 2×2 stride-2 maximum of the result.
    pooled: bool,
    /// Output rows (before pooling) of a tile.
    band: usize,
    parallel: bool,
}

/// Everything beside weights that [`Convolution::new`] needs.
pub(super) struct Setup {
    pub input: Place,
    pub output: Place,
    pub window: Window,
    pub bias: Option<Vec<f32>>,
    pub scale: Option<Vec<f32>>,
    pub finish: Finish,
    pub pooled: bool,
}

impl Convolution {
    /// `weights` is `[oc][ic][ky][kx]` with the input's channels, or `[oc][1][ky][kx]` when `depthwise`.
    pub fn prepare(setup: Setup, weights: &[f32], depthwise: bool) -> Result<Prepared, String> {
        let (input, output) = (Planes::new(&setup.input)?, Planes::new(&setup.output)?);
        let (kw, kh) = setup.window.kernel;
        let taps = kw * kh;
        let (oc, ic) = (output.channels, if depthwise { 1 } else { input.channels });
        if input.batch != output.batch {
            return Err("input and output have different batches".into());
        }
        if weights.len() < oc.saturating_mul(ic).saturating_mul(taps) || taps == 0 {
            return Err("too few weights for the channels".into());
        }
        if [&setup.bias, &setup.scale].into_iter().flatten().any(|v| v.len() < oc) {
            return Err("too few bias or scale values for the channels".into());
        }
        let kernels = weights.chunks_exact(ic * taps).take(oc);
        let weights = if depthwise {
            if input.channels != oc {
                return Err("a depthwise convolution must keep the number of channels".into());
            }
            Weights::PerChannel { sources: (0..oc).map(Some).collect(), taps: weights[..oc * taps].to_vec() }
        } else {
            analyse(kernels, oc, ic, taps)
        };
        let factor = if setup.pooled { 2 } else { 1 };
        let width = output.width * factor;
        let inner = match &weights {
            Weights::Dense { channels, .. } => channels.len() * taps,
            Weights::PerChannel { .. } => taps,
        };
        let row = inner.max(1).saturating_mul(width).saturating_mul(factor);
        if row.max(oc.saturating_mul(width * factor)) > LARGEST {
            return Err("one row of the plane is larger than any cache".into());
        }
        let band = match &weights {
            Weights::Dense { .. } => (TILE * factor / row).max(1) * factor,
            Weights::PerChannel { .. } => (4 * TILE / (oc * width)).max(1).next_multiple_of(factor),
        }
        .min(output.height * factor);
        let work = (oc * output.height * factor * width) as u64 * inner as u64 * output.batch as u64;
        let convolution = Convolution {
            input,
            output,
            window: setup.window,
            weights,
            bias: setup.bias,
            scale: setup.scale,
            finish: setup.finish,
            pooled: setup.pooled,
            band,
            parallel: work >= WORTH_WAKING,
        };
        if convolution.strip(band).is_none_or(|(w, h)| w.saturating_mul(h) > LARGEST) {
            return Err("the window reaches farther than any plane".into());
        }
        let moved = setup.input.elements() + setup.output.elements();
        let work = work
            .saturating_add((inner.saturating_mul(width).saturating_mul(output_rows(&convolution))) as u64);
        Ok(Prepared {
            outputs: vec![setup.output],
            work: work.saturating_add(moved as u64),
            operation: Box::new(convolution),
        })
    }

    /// Width and height of the padded input that `rows` rows of the result see.
    fn strip(&self, rows: usize) -> Option<(usize, usize)> {
        let Window { kernel, stride, dilation, .. } = self.window;
        let width = self.output.width * if self.pooled { 2 } else { 1 };
        let reach = |n: usize, stride: usize, kernel: usize, dilation: usize| {
            let span = (n - 1).checked_mul(stride)?;
            span.checked_add((kernel - 1).checked_mul(dilation)?)?.checked_add(1)
        };
        Some((reach(width, stride.0, kernel.0, dilation.0)?, reach(rows, stride.1, kernel.1, dilation.1)?))
    }

    /// Reads a channel's plane, padded and stuffed, from row `top` on (in coordinates of the padded plane).
    fn load(
        &self,
        (source, words): (&Planes, &[u16]),
        (image, channel, top): (usize, usize, usize),
        width: usize,
        strip: &mut [f32],
    ) {
        let Window { pad, stuffing, .. } = self.window;
        let columns = width.saturating_sub(pad.0).div_ceil(stuffing.0).min(source.width);
        let mut line = [0.0; 64];
        for (y, row) in strip.chunks_exact_mut(width).enumerate() {
            let y = (top + y).checked_sub(pad.1).filter(|y| y % stuffing.1 == 0).map(|y| y / stuffing.1);
            let Some(y) = y.filter(|&y| y < source.height && columns > 0) else {
                row.fill(0.0);
                continue;
            };
            if stuffing.0 == 1 {
                row[..pad.0].fill(0.0);
                source.read_row(words, (image, channel, y, 0), &mut row[pad.0..pad.0 + columns]);
                row[pad.0 + columns..].fill(0.0);
                continue;
            }
            row.fill(0.0);
            for begin in (0..columns).step_by(line.len()) {
                let part = &mut line[..(columns - begin).min(64)];
                source.read_row(words, (image, channel, y, begin), part);
                for (i, &value) in part.iter().enumerate() {
                    row[pad.0 + (begin + i) * stuffing.0] = value;
                }
            }
        }
    }

    /// A kernel of one pixel on the plane as it is: the tile is the plane.
    fn is_direct(&self) -> bool {
        let w = &self.window;
        w.kernel == (1, 1) && w.stride == (1, 1) && w.pad == (0, 0) && w.stuffing == (1, 1)
    }

    /// The im2col tile `[channel][ky][kx][row][column]`.
    fn unfold(
        &self,
        source: (&Planes, &[u16]),
        (image, first, rows): (usize, usize, usize),
        channels: &[usize],
        tile: &mut [f32],
        parallel: bool,
    ) {
        let Window { kernel, stride, dilation, .. } = self.window;
        let width = self.output.width * if self.pooled { 2 } else { 1 };
        let Some((strip_width, strip_height)) = self.strip(rows) else { return };
        let n = rows * width;
        let block = |(&channel, block): (&usize, &mut [f32])| {
            if self.is_direct() {
                self.load(source, (image, channel, first), width, block);
                return;
            }
            with_strip(strip_width * strip_height, |strip| {
                self.load(source, (image, channel, first * stride.1), strip_width, strip);
                for (tap, block) in block.chunks_exact_mut(n).enumerate() {
                    let (kx, ky) = (tap % kernel.0, tap / kernel.0);
                    for (y, row) in block.chunks_exact_mut(width).enumerate() {
                        let at = (y * stride.1 + ky * dilation.1) * strip_width + kx * dilation.0;
                        pick(&strip[at..], stride.0, row);
                    }
                }
            });
        };
        let blocks = n * kernel.0 * kernel.1;
        if parallel {
            let tile = tile.par_chunks_exact_mut(blocks);
            channels.par_iter().zip(tile).with_min_len((1 << 13) / blocks + 1).for_each(block);
        } else {
            channels.iter().zip(tile.chunks_exact_mut(blocks)).for_each(block);
        }
    }

    /// One input plane per output plane.
    fn filter(
        &self,
        source: (&Planes, &[u16]),
        (image, first, rows): (usize, usize, usize),
        (sources, taps): (&[Option<usize>], &[f32]),
        product: &mut [f32],
        parallel: bool,
    ) {
        let Window { kernel, stride, dilation, .. } = self.window;
        let width = self.output.width * if self.pooled { 2 } else { 1 };
        let Some((strip_width, strip_height)) = self.strip(rows) else { return };
        let count = kernel.0 * kernel.1;
        let plane = |((&channel, taps), plane): ((&Option<usize>, &[f32]), &mut [f32])| {
            plane.fill(0.0);
            let Some(channel) = channel else { return };
            with_strip(strip_width * strip_height, |strip| {
                self.load(source, (image, channel, first * stride.1), strip_width, strip);
                wide(|| {
                    for (y, row) in plane.chunks_exact_mut(width).enumerate() {
                        for (ky, taps) in taps.chunks_exact(kernel.0).enumerate() {
                            let line =
                                &strip[(y * stride.1 + ky * dilation.1) * strip_width..][..strip_width];
                            accumulate(row, line, taps, stride.0, dilation.0);
                        }
                    }
                });
            });
        };
        if parallel {
            let planes = product.par_chunks_exact_mut(rows * width);
            let kernels = sources.par_iter().zip(taps.par_chunks_exact(count));
            kernels.zip(planes).with_min_len(2).for_each(plane);
        } else {
            let planes = product.chunks_exact_mut(rows * width);
            sources.iter().zip(taps.chunks_exact(count)).zip(planes).for_each(plane);
        }
    }

    /// Bias, then scale, then activation, then pooling, then FP16.
    fn store(
        &self,
        arena: &mut [u16],
        (image, first, rows): (usize, usize, usize),
        product: &mut [f32],
        parallel: bool,
    ) {
        let width = self.output.width * if self.pooled { 2 } else { 1 };
        let finish = |channel: usize, values: &mut [f32]| {
            wide(|| {
                let bias = self.bias.as_ref().map_or(0.0, |b| b[channel]);
                match &self.scale {
                    Some(scale) => {
                        let scale = scale[channel];
                        values.iter_mut().for_each(|v| *v = (*v + bias) * scale);
                    }
                    None if self.bias.is_some() => values.iter_mut().for_each(|v| *v += bias),
                    None => {}
                }
                self.finish.apply(values);
                if self.pooled {
                    for y in 0..rows / 2 {
                        for x in 0..width / 2 {
                            let at = 2 * y * width + 2 * x;
                            let most = values[at].max(values[at + 1]);
                            let below = values[at + width].max(values[at + width + 1]);
                            values[y * (width / 2) + x] = most.max(below);
                        }
                    }
                }
            });
        };
        let factor = if self.pooled { 2 } else { 1 };
        let band = (image, first / factor, rows / factor);
        self.output.write_bands(arena, band, (product, rows * width), parallel, finish);
    }
}

/// Adds one line of a plane, weighed by one row of a kernel, to a row of the result, tap by tap: deep depthwise networks
/// feel the order of rounding (mobilenet_v2 is 0.4 % off its FP32 reference so, 0.7 % with other orders or in f64).
#[inline(always)]
fn accumulate(row: &mut [f32], line: &[f32], taps: &[f32], stride: usize, dilation: usize) {
    let n = row.len();
    match (taps, stride, dilation) {
        // The kernels of all depthwise networks: one pass over the row instead of three.
        (&[a, b, c], 1, 1) => {
            let neighbours = line[..n].iter().zip(&line[1..=n]).zip(&line[2..n + 2]);
            row.iter_mut().zip(neighbours).for_each(|(r, ((x, y), z))| *r = *r + a * x + b * y + c * z);
        }
        (&[a, b, c], 2, 1) => {
            let pairs = line[..2 * n].as_chunks::<2>().0.iter().zip(line[1..=2 * n].as_chunks::<2>().0);
            row.iter_mut().zip(pairs).for_each(|(r, ([x, y], [_, z]))| *r = *r + a * x + b * y + c * z);
        }
        _ => {
            for (kx, &tap) in taps.iter().enumerate() {
                let values = line[kx * dilation..].iter().step_by(stride);
                row.iter_mut().zip(values).for_each(|(r, v)| *r += tap * v);
            }
        }
    }
}

/// Every `step`-th value.
fn pick(from: &[f32], step: usize, to: &mut [f32]) {
    match step {
        1 => to.copy_from_slice(&from[..to.len()]),
        2 => {
            // The last pair may be cut in half by the end of the strip.
            let (last, head) = match to.split_last_mut() {
                Some(split) => split,
                None => return,
            };
            let (pairs, _) = from.as_chunks::<2>();
            head.iter_mut().zip(pairs).for_each(|(t, pair)| *t = pair[0]);
            *last = from[2 * head.len()];
        }
        _ => to.iter_mut().zip(from.iter().step_by(step)).for_each(|(t, &f)| *t = f),
    }
}

thread_local! {
    /// A padded plane, one per worker: large allocations per stage would cost page faults.
    static STRIP: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends this worker's strip. `work` must not enter rayon (which could run another borrower on this thread).
fn with_strip(n: usize, work: impl FnOnce(&mut [f32])) {
    STRIP.with_borrow_mut(|strip| work(sized(strip, n)));
}

fn output_rows(convolution: &Convolution) -> usize {
    convolution.output.height * if convolution.pooled { 2 } else { 1 } * convolution.output.batch
}

/// Finds out which input channels matter, and whether each output channel has but one.
fn analyse<'a>(
    kernels: impl Iterator<Item = &'a [f32]> + Clone,
    oc: usize,
    ic: usize,
    taps: usize,
) -> Weights {
    let mut live = vec![false; ic];
    let mut sources = Vec::with_capacity(oc);
    for kernel in kernels.clone() {
        let mut used = 0;
        let mut source = None;
        for (channel, taps) in kernel.chunks_exact(taps).enumerate() {
            if taps.iter().any(|&w| w != 0.0) {
                live[channel] = true;
                used += 1;
                source = Some(channel);
            }
        }
        sources.push((used, source));
    }
    let channels: Vec<usize> = (0..ic).filter(|&c| live[c]).collect();
    if channels.len() > 1 && sources.iter().all(|&(used, _)| used <= 1) {
        let mut own = Vec::with_capacity(oc * taps);
        for (kernel, &(_, source)) in kernels.zip(&sources) {
            let at = source.unwrap_or(0) * taps;
            own.extend_from_slice(&kernel[at..at + taps]);
        }
        return Weights::PerChannel { sources: sources.into_iter().map(|(_, s)| s).collect(), taps: own };
    }
    let mut matrix = Vec::with_capacity(oc * channels.len() * taps);
    for kernel in kernels {
        for &channel in &channels {
            matrix.extend_from_slice(&kernel[channel * taps..(channel + 1) * taps]);
        }
    }
    Weights::Dense { matrix, channels }
}

impl Operation for Convolution {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let factor = if self.pooled { 2 } else { 1 };
        let (width, height) = (self.output.width * factor, self.output.height * factor);
        let Scratch { a: tile, b: product, words: snapshot, .. } = scratch;
        let parallel = self.parallel && scratch.parallel;
        // Later tiles must see the input as it was.
        let tiles = height.div_ceil(self.band) * self.output.batch;
        let moved = tiles > 1 && self.input.place.overlaps(&self.output.place);
        let mut source = self.input.clone();
        if moved {
            let (begin, end) = self.input.place.span();
            snapshot.clear();
            snapshot.extend_from_slice(&arena[begin / 2..end.div_ceil(2)]);
            source.rebase(begin / 2);
        }
        for image in 0..self.output.batch {
            for first in (0..height).step_by(self.band) {
                let rows = self.band.min(height - first);
                let n = rows * width;
                let product = sized(product, self.output.channels * n);
                let words = if moved { &snapshot[..] } else { self.input.place.words(arena) };
                match &self.weights {
                    Weights::Dense { matrix, channels } => {
                        let k = channels.len() * self.window.kernel.0 * self.window.kernel.1;
                        let tile = sized(tile, k * n);
                        self.unfold((&source, words), (image, first, rows), channels, tile, parallel);
                        multiply(
                            (self.output.channels, n, k),
                            Matrix { data: matrix, rows: k, columns: 1 },
                            Matrix { data: tile, rows: n, columns: 1 },
                            product,
                            parallel,
                        );
                    }
                    Weights::PerChannel { sources, taps } => {
                        self.filter(
                            (&source, words),
                            (image, first, rows),
                            (sources, taps),
                            product,
                            parallel,
                        );
                    }
                }
                self.store(arena, (image, first, rows), product, parallel);
            }
        }
    }
}

/// Software convolutions: Conv (0), DepthConv (8), Deconvolution (22), Im2ColConvolution (49),
/// DepthDeconv (63). Buffers: in, out, weights
/// (whose own dims say nothing), a temporary.
pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output) = (context.operand(0)?, context.target(1)?);
    let weights = context.constants(2)?;
    let size = |index, least| context.size(index, least);
    let (kw, kh) = (size(0, 1)?, size(1, 1)?);
    let stride = (size(2, 1)?, size(3, 1)?);
    let pad = (size(4, 0)?, size(5, 0)?);
    let taps = kw.saturating_mul(kh);
    let kind = context.kind();
    let (ic, oc) = (input.dim(3), output.dim(3));
    let depthwise = kind == 8 || kind == 63;
    let needed = oc.saturating_mul(if depthwise { 1 } else { ic }).saturating_mul(taps);
    if weights.len() != needed {
        return Err(format!("{} weights where {needed} are needed", weights.len()));
    }
    let window = if kind == 22 || kind == 63 {
        // Zero stuffing by the stride, then a plain convolution; the kernel is stored flipped.
        let pad = (kw.checked_sub(1 + pad.0), kh.checked_sub(1 + pad.1));
        let (Some(left), Some(top)) = pad else { return Err("padding is larger than the kernel".into()) };
        Window { kernel: (kw, kh), stride: (1, 1), dilation: (1, 1), pad: (left, top), stuffing: stride }
    } else {
        Window { kernel: (kw, kh), stride, dilation: (size(6, 1)?, size(7, 1)?), pad, stuffing: (1, 1) }
    };
    // Strides of (oc, ic, tap) in the file.
    let (o, i, t) = match (kind, input.digits[0] == 3) {
        (8, _) => (1, 0, oc),
        (63, true) => (1, 0, oc),
        (63, false) => (taps, 0, 1),
        (22, _) => (ic, 1, ic * oc),
        (49, _) => (ic * taps, 1, ic),
        (_, _) if taps == 1 => (ic, 1, 0),
        (_, false) => (ic, 1, ic * oc),
        (_, true) if (3..=11).contains(&kw) && kw % 2 == 1 && kh != 1 && ic * oc <= 256 => (1, oc, ic * oc),
        (_, true) if (kw, kh) == (3, 3) && ic > 3 => (ic, 1, ic * oc),
        (_, true) => (ic * taps, 1, ic),
    };
    let mut ordered = Vec::with_capacity(needed);
    for out in 0..oc {
        for inp in 0..if depthwise { 1 } else { ic } {
            ordered.extend((0..taps).map(|tap| weights[out * o + inp * i + tap * t]));
        }
    }
    let setup =
        Setup { input, output, window, bias: None, scale: None, finish: Finish::default(), pooled: false };
    Convolution::prepare(setup, &ordered, depthwise)
}
