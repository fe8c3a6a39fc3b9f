//! Convolution: the core that NCE and software stages share, and the software weight layouts.
//!
//! ```text
//! input planes (FP16, strided) ─► panels (f32, padding and zero stuffing included) ─► product ─► bias, scale, activation ─► FP16
//! ```
//! A band of output rows goes all the way at once, so that what lies between stays in cache, and bands are what threads
//! share. Input channels whose weights are all
//! zero are never read: the NCE is fed padding channels that nobody wrote, and 0·NaN would spoil the sum. Where every
//! output channel has one input channel (depthwise run as dense), the planes are filtered one by one instead.

use std::cell::RefCell;

use rayon::prelude::*;

use super::memory::Place;
use super::params::Context;
use super::planes::Planes;
use super::{Operation, Prepared, Scratch, sized};
use crate::gemm::halves::from_f32;
use crate::gemm::panel::{self, LANES, Line};
use crate::gemm::{Matrix, multiply, wide};

/// f32 elements of unfolded input that stay in cache beside weights and product.
const TILE: usize = 1 << 17;
/// Pixels of a plane up to which a product is more a sum over weights than one over panels.
const FEW_PIXELS: usize = 4;
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
    /// Over the listed input channels, `channels.len() · taps` deep.
    Dense { weights: panel::Weights, channels: Vec<usize> },
    /// The same as `[oc][channels.len() · taps]`, for planes of [`FEW_PIXELS`].
    Flat { matrix: Vec<f32>, channels: Vec<usize> },
    /// One input channel per output channel, `None` where all its weights are zero; `[oc][taps]`.
    PerChannel { sources: Vec<Option<usize>>, taps: Vec<f32> },
    /// None but zeros.
    Zero,
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
            let factor = if setup.pooled { 4 } else { 1 };
            let pixels = output.width * output.height * factor;
            analyse(kernels, oc, ic, taps, pixels <= FEW_PIXELS && output.batch == 1)
        };
        let factor = if setup.pooled { 2 } else { 1 };
        let width = output.width * factor;
        let inner = match &weights {
            Weights::Dense { channels, .. } | Weights::Flat { channels, .. } => channels.len() * taps,
            Weights::PerChannel { .. } | Weights::Zero => taps,
        };
        let row = inner.max(1).saturating_mul(width).saturating_mul(factor);
        if row.max(oc.saturating_mul(width * factor)) > LARGEST {
            return Err("one row of the plane is larger than any cache".into());
        }
        let band = match &weights {
            Weights::Dense { .. } => (TILE * factor / row).max(1) * factor,
            Weights::Flat { .. } => output.height * factor,
            Weights::PerChannel { .. } | Weights::Zero => {
                (4 * TILE / (oc * width)).max(1).next_multiple_of(factor)
            }
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
        w.kernel == (1, 1)
            && (w.stride, w.pad, w.stuffing) == ((1, 1), (0, 0), (1, 1))
            && self.input.width == self.width()
            && self.input.height >= self.output.height * if self.pooled { 2 } else { 1 }
    }

    /// Width of the product: twice the output's, where it is pooled.
    fn width(&self) -> usize {
        self.output.width * if self.pooled { 2 } else { 1 }
    }

    /// The kernel of nearly all depthwise layers, in the form that [`three_by_three`] takes.
    fn is_three_by_three(&self) -> bool {
        let w = &self.window;
        !self.pooled && w.kernel == (3, 3) && (w.stride, w.dilation) == ((1, 1), (1, 1))
    }

    /// Calls `block(number, values)` for every channel and tap in turn, with what that tap sees of the input: a value for
    /// each pixel of the band, and room up to a whole panel.
    fn unfold(
        &self,
        source: (&Planes, &[u16]),
        (image, first, rows): (usize, usize, usize),
        channels: &[usize],
        (strip, line): (&mut Vec<f32>, &mut Vec<f32>),
        mut block: impl FnMut(usize, &[f32]),
    ) {
        let Window { kernel, stride, dilation, .. } = self.window;
        let width = self.width();
        let Some((strip_width, strip_height)) = self.strip(rows) else { return };
        let n = rows * width;
        let line = sized(line, n.next_multiple_of(LANES));
        let strip = sized(strip, strip_width * strip_height);
        for (number, &channel) in channels.iter().enumerate() {
            if self.is_direct() {
                source.0.read_rows(source.1, (image, channel, first), &mut line[..n]);
                block(number, line);
                continue;
            }
            self.load(source, (image, channel, first * stride.1), strip_width, strip);
            let taps = kernel.0 * kernel.1;
            for tap in 0..taps {
                let (kx, ky) = (tap % kernel.0, tap / kernel.0);
                for (y, row) in line[..n].chunks_exact_mut(width).enumerate() {
                    let at = (y * stride.1 + ky * dilation.1) * strip_width + kx * dilation.0;
                    pick(&strip[at..], stride.0, row);
                }
                block(number * taps + tap, line);
            }
        }
    }

    /// A band of one image, all the way to FP16: output channels `stride` words apart.
    fn band(
        &self,
        source: (&Planes, &[u16]),
        (image, first, rows): (usize, usize, usize),
        room: &mut Room,
        (dense, stride): (&mut [u16], usize),
    ) {
        let n = rows * self.width();
        let Room { strip, line, panels, product } = room;
        match &self.weights {
            Weights::Dense { weights, channels } => {
                let depth = weights.depth();
                let panels = sized(panels, n.div_ceil(LANES) * depth);
                self.unfold(source, (image, first, rows), channels, (strip, line), |number, line| {
                    let lines = line.as_chunks::<LANES>().0;
                    panels[number..].iter_mut().step_by(depth).zip(lines).for_each(|(to, from)| *to = *from);
                });
                if !self.pooled {
                    weights.multiply(panels, n, Rounded { convolution: self, dense, stride });
                    return;
                }
                let step = n.next_multiple_of(LANES);
                let product = sized(product, self.output.channels * step);
                weights.multiply(panels, n, |row: usize, at: usize, sums: &mut Line| {
                    product[row * step + at..][..LANES].copy_from_slice(sums);
                });
                for (channel, values) in product.chunks_exact_mut(step).enumerate() {
                    self.complete(channel, rows, &mut values[..n], &mut dense[channel * stride..]);
                }
            }
            Weights::PerChannel { sources, taps } if self.is_three_by_three() => {
                let Some((width, height)) = self.strip(rows) else { return };
                let strip = sized(strip, width * height);
                // Rows with the strip's gaps between them: one long loop, whatever the width.
                let plane = sized(product, (rows - 1) * width + self.output.width);
                for (channel, (&from, taps)) in sources.iter().zip(taps.as_chunks::<9>().0).enumerate() {
                    if let Some(from) = from {
                        self.load(source, (image, from, first), width, strip);
                    }
                    let dense = &mut dense[channel * stride..][..n];
                    wide(|| {
                        match from {
                            Some(_) => three_by_three(strip, width, taps, plane),
                            None => plane.fill(0.0),
                        }
                        self.finish(channel, plane);
                    });
                    for (to, from) in dense.chunks_exact_mut(self.output.width).zip(plane.chunks(width)) {
                        from_f32(&from[..self.output.width], to);
                    }
                }
            }
            Weights::PerChannel { sources, taps } => {
                let count = self.window.kernel.0 * self.window.kernel.1;
                let plane = sized(product, n);
                for (channel, (&from, taps)) in sources.iter().zip(taps.chunks_exact(count)).enumerate() {
                    plane.fill(0.0);
                    if let Some(from) = from {
                        self.filter(source, (image, from, first), taps, strip, plane);
                    }
                    self.complete(channel, rows, plane, &mut dense[channel * stride..]);
                }
            }
            Weights::Flat { .. } | Weights::Zero => {
                let plane = sized(product, n);
                for channel in 0..self.output.channels {
                    plane.fill(0.0);
                    self.complete(channel, rows, plane, &mut dense[channel * stride..]);
                }
            }
        }
    }

    /// The only image, whose plane is a pixel or a few.
    fn flat(
        &self,
        source: (&Planes, &[u16]),
        rows: usize,
        (matrix, channels): (&[f32], &[usize]),
        (tile, product): (&mut Vec<f32>, &mut Vec<f32>),
        parallel: bool,
    ) {
        let n = rows * self.width();
        let depth = channels.len() * self.window.kernel.0 * self.window.kernel.1;
        let tile = sized(tile, depth * n);
        with_room(|Room { strip, line, .. }| {
            self.unfold(source, (0, 0, rows), channels, (strip, line), |number, line| {
                tile[number * n..][..n].copy_from_slice(&line[..n]);
            });
        });
        multiply(
            (self.output.channels, n, depth),
            Matrix { data: matrix, rows: depth, columns: 1 },
            Matrix { data: tile, rows: n, columns: 1 },
            sized(product, self.output.channels * n),
            parallel,
        );
    }

    /// One input plane through one kernel, added to `plane`.
    fn filter(
        &self,
        source: (&Planes, &[u16]),
        (image, channel, first): (usize, usize, usize),
        taps: &[f32],
        strip: &mut Vec<f32>,
        plane: &mut [f32],
    ) {
        let Window { kernel, stride, dilation, .. } = self.window;
        let width = self.width();
        let Some((strip_width, strip_height)) = self.strip(plane.len() / width) else { return };
        let strip = sized(strip, strip_width * strip_height);
        self.load(source, (image, channel, first * stride.1), strip_width, strip);
        wide(|| {
            for (y, row) in plane.chunks_exact_mut(width).enumerate() {
                for (ky, taps) in taps.chunks_exact(kernel.0).enumerate() {
                    let line = &strip[(y * stride.1 + ky * dilation.1) * strip_width..][..strip_width];
                    accumulate(row, line, taps, stride.0, dilation.0);
                }
            }
        });
    }

    /// Bias, then scale, then activation.
    #[inline(always)]
    fn finish(&self, channel: usize, values: &mut [f32]) {
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
    }

    /// Bias, then scale, then activation, then pooling, then FP16.
    fn complete(&self, channel: usize, rows: usize, values: &mut [f32], dense: &mut [u16]) {
        let width = self.width();
        wide(|| {
            self.finish(channel, values);
            let mut count = values.len();
            if self.pooled {
                for y in 0..rows / 2 {
                    for x in 0..width / 2 {
                        let at = 2 * y * width + 2 * x;
                        let most = values[at].max(values[at + 1]);
                        let below = values[at + width].max(values[at + width + 1]);
                        values[y * (width / 2) + x] = most.max(below);
                    }
                }
                count /= 4;
            }
            from_f32(&values[..count], &mut dense[..count]);
        });
    }
}

/// Finishes sums on their way to FP16.
struct Rounded<'a> {
    convolution: &'a Convolution,
    dense: &'a mut [u16],
    stride: usize,
}

impl panel::After for Rounded<'_> {
    #[inline(always)]
    fn take(&mut self, row: usize, first: usize, sums: &mut Line) {
        self.convolution.finish(row, sums);
        from_f32(sums, &mut self.dense[row * self.stride + first..][..LANES]);
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

/// What [`accumulate`] makes of three rows, from 0 on and in the same order, for rows that lie in one strip as `plane`
/// shall have them: what comes between the rows means nothing.
#[inline(always)]
fn three_by_three(strip: &[f32], width: usize, taps: &[f32; 9], plane: &mut [f32]) {
    let n = plane.len();
    let line = |y: usize, x: usize| &strip[y * width + x..][..n];
    let (a, b, c) = (line(0, 0), line(0, 1), line(0, 2));
    let (d, e, f) = (line(1, 0), line(1, 1), line(1, 2));
    let (g, h, i) = (line(2, 0), line(2, 1), line(2, 2));
    for (x, sum) in plane.iter_mut().enumerate() {
        let first = 0.0 + taps[0] * a[x] + taps[1] * b[x] + taps[2] * c[x];
        let second = first + taps[3] * d[x] + taps[4] * e[x] + taps[5] * f[x];
        *sum = second + taps[6] * g[x] + taps[7] * h[x] + taps[8] * i[x];
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

/// What a band needs on its way.
#[derive(Default)]
struct Room {
    /// A padded plane.
    strip: Vec<f32>,
    /// What one tap sees.
    line: Vec<f32>,
    panels: Vec<Line>,
    product: Vec<f32>,
}

thread_local! {
    /// One per worker: large allocations per stage would cost page faults.
    static ROOM: RefCell<Room> = const {
        RefCell::new(Room { strip: Vec::new(), line: Vec::new(), panels: Vec::new(), product: Vec::new() })
    };
}

/// Lends this worker's room. `work` must not enter rayon (which could run another borrower on this thread).
fn with_room(work: impl FnOnce(&mut Room)) {
    ROOM.with_borrow_mut(work);
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
    flat: bool,
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
    match channels.len() * taps {
        0 => Weights::Zero,
        _ if flat => Weights::Flat { matrix, channels },
        depth => Weights::Dense { weights: panel::Weights::new(&matrix, depth), channels },
    }
}

impl Operation for Convolution {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let factor = if self.pooled { 2 } else { 1 };
        let height = self.output.height * factor;
        // Later bands and images must see the input as it was.
        let overlap = self.input.place.overlaps(&self.output.place);
        let parallel = self.parallel && scratch.parallel && !(overlap && self.output.batch > 1);
        let Scratch { a: tile, b: product, words: dense, more: snapshot, .. } = scratch;
        if let Weights::Flat { matrix, channels } = &self.weights {
            let source = (&self.input, self.input.place.words(arena));
            self.flat(source, height, (matrix, channels), (tile, product), parallel);
            let n = height * self.width();
            let stride = n / (factor * factor);
            let dense = sized(dense, self.output.channels * stride);
            let planes = product.chunks_exact_mut(n).zip(dense.chunks_exact_mut(stride));
            planes.take(self.output.channels).enumerate().for_each(|(channel, (values, dense))| {
                self.complete(channel, height, values, dense);
            });
            self.output.move_bands(arena, (0, 0, self.output.height), (dense, stride), false);
            return;
        }
        let shared = height.div_ceil(rayon::current_num_threads()).next_multiple_of(factor);
        let rows = if parallel { self.band.min(shared) } else { self.band };
        let stride = (rows / factor * self.output.width).next_multiple_of(LANES);
        let size = self.output.channels * stride;
        let bands = height.div_ceil(rows);
        let at = |number: usize| (number * rows, rows.min(height - number * rows));
        if parallel {
            // All bands before any is stored: they see the input as it was.
            let dense = sized(dense, bands * size);
            for image in 0..self.output.batch {
                let source = (&self.input, self.input.place.words(arena));
                dense.par_chunks_exact_mut(size).enumerate().for_each(|(number, dense)| {
                    let (first, rows) = at(number);
                    with_room(|room| self.band(source, (image, first, rows), room, (dense, stride)));
                });
                for (number, dense) in dense.chunks_exact(size).enumerate() {
                    let (first, rows) = at(number);
                    let band = (image, first / factor, rows / factor);
                    self.output.move_bands(arena, band, (dense, stride), true);
                }
            }
            return;
        }
        let moved = bands * self.output.batch > 1 && overlap;
        let mut source = self.input.clone();
        if moved {
            let (begin, end) = self.input.place.span();
            snapshot.clear();
            snapshot.extend_from_slice(&arena[begin / 2..end.div_ceil(2)]);
            source.rebase(begin / 2);
        }
        let dense = sized(dense, size);
        for image in 0..self.output.batch {
            for (first, rows) in (0..bands).map(at) {
                let words = if moved { &snapshot[..] } else { self.input.place.words(arena) };
                with_room(|room| self.band((&source, words), (image, first, rows), room, (dense, stride)));
                let band = (image, first / factor, rows / factor);
                self.output.move_bands(arena, band, (dense, stride), false);
            }
        }
    }
}

/// Software convolutions: Conv (0), DepthConv (8), Deconvolution (22), Im2ColConvolution (49), RefConvolution (58, which the
/// vendor's compiler makes only when it is built for it; never seen), DepthDeconv (63). Buffers: in, out, weights (whose own
/// dims say nothing), a temporary.
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
        // The reference form is made without any of the special ones: what is left of each order of data.
        (58, false) => (ic, 1, ic * oc),
        (58, true) => (ic * taps, 1, ic),
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
