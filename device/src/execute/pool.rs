//! Pooling: of the NCE, MaxPool (1), AvgPool (2), GlobalMaxPool (60).
use ncs2::blob::PoolKind;
use rayon::prelude::*;

use super::conv::{Finish, WORTH_WAKING};
use super::memory::Place;
use super::params::Context;
use super::planes::Planes;
use super::{Operation, Prepared, Scratch, sized};
use crate::gemm::wide;

/// Geometry of pooling, x before y. Elements outside the plane are ignored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub kernel: (usize, usize),
    pub stride: (usize, usize),
    pub pad: (usize, usize),
    /// An average divides by the elements inside the plane, not by the kernel's area.
    pub exclude_pad: bool,
}

impl Window {
    /// First and one past the last input position of output position `at` along one axis.
    fn range(at: usize, (kernel, stride, pad): (usize, usize, usize), size: usize) -> (usize, usize) {
        let begin = at * stride;
        let end = (begin + kernel).saturating_sub(pad).min(size);
        (begin.saturating_sub(pad).min(end), end)
    }

    fn columns(&self, x: usize, width: usize) -> (usize, usize) {
        Self::range(x, (self.kernel.0, self.stride.0, self.pad.0), width)
    }

    fn rows(&self, y: usize, height: usize) -> (usize, usize) {
        Self::range(y, (self.kernel.1, self.stride.1, self.pad.1), height)
    }
}

pub(super) struct Pool {
    input: Planes,
    output: Planes,
    window: Window,
    kind: PoolKind,
    finish: Finish,
    parallel: bool,
}

impl Pool {
    pub fn prepare(
        input: Place,
        output: Place,
        window: Window,
        kind: PoolKind,
        finish: Finish,
    ) -> Result<Prepared, String> {
        let (from, to) = (Planes::new(&input)?, Planes::new(&output)?);
        if from.channels != to.channels || from.batch != to.batch {
            return Err("input and output have different channels or batches".into());
        }
        let reach = |kernel: usize, size: usize| kernel.min(size) as u64;
        let per_element =
            reach(window.kernel.0, from.width).saturating_mul(reach(window.kernel.1, from.height));
        let work = (output.elements() as u64).saturating_mul(per_element) + input.elements() as u64;
        let parallel = work >= WORTH_WAKING;
        let operation = Box::new(Pool { input: from, output: to, window, kind, finish, parallel });
        Ok(Prepared { operation, outputs: vec![output], work })
    }

    #[inline(always)]
    fn plane(&self, input: &[f32], line: &mut [f32], output: &mut [f32]) {
        let (width, height) = (self.input.width, self.input.height);
        let start = if self.kind == PoolKind::Max { f32::NEG_INFINITY } else { 0.0 };
        for (y, out) in output.chunks_exact_mut(self.output.width).enumerate() {
            // Down the columns first: long loops over neighbours.
            line.fill(start);
            let (top, bottom) = self.window.rows(y, height);
            for row in input[top * width..bottom * width].chunks_exact(width) {
                match self.kind {
                    PoolKind::Max => {
                        line.iter_mut().zip(row).for_each(|(l, &v)| *l = if v > *l { v } else { *l })
                    }
                    PoolKind::Average => line.iter_mut().zip(row).for_each(|(l, &v)| *l += v),
                }
            }
            for (x, out) in out.iter_mut().enumerate() {
                let (left, right) = self.window.columns(x, width);
                let part = &line[left..right];
                *out = match self.kind {
                    PoolKind::Max => part.iter().fold(start, |m, &v| if v > m { v } else { m }),
                    PoolKind::Average => {
                        let inside = (right - left) * (bottom - top);
                        let area = self.window.kernel.0 * self.window.kernel.1;
                        let count = if self.window.exclude_pad { inside.max(1) } else { area };
                        part.iter().sum::<f32>() / count as f32
                    }
                };
            }
        }
    }
}

impl Operation for Pool {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let parallel = self.parallel && scratch.parallel;
        let Scratch { a, b, c, .. } = scratch;
        let (from, to) = (self.input.width * self.input.height, self.output.width * self.output.height);
        let line = self.input.width;
        let count = self.input.channels;
        let (planes, lines, results) = (sized(a, count * from), sized(b, count * line), sized(c, count * to));
        for image in 0..self.input.batch {
            let words = self.input.place.words(arena);
            let one = |channel: usize, plane: &mut [f32], line: &mut [f32], result: &mut [f32]| {
                self.input.read_plane(words, image, channel, plane);
                wide(|| self.plane(plane, line, result));
            };
            if parallel {
                let buffers = planes.par_chunks_exact_mut(from).zip(lines.par_chunks_exact_mut(line));
                buffers
                    .zip(results.par_chunks_exact_mut(to))
                    .enumerate()
                    .with_min_len(4)
                    .for_each(|(channel, ((plane, line), result))| one(channel, plane, line, result));
            } else {
                let buffers = planes.chunks_exact_mut(from).zip(lines.chunks_exact_mut(line));
                buffers
                    .zip(results.chunks_exact_mut(to))
                    .enumerate()
                    .for_each(|(channel, ((plane, line), result))| one(channel, plane, line, result));
            }
            let band = (image, 0, self.output.height);
            self.output.write_bands(arena, band, (results, to), parallel, |_, values| {
                self.finish.apply(values);
            });
        }
    }
}

/// Software pooling. Parameters: kW, kH, sX, sY, padL, padT, excludePad.
pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output) = (context.operand(0)?, context.target(1)?);
    let size = |index, least| context.size(index, least);
    let window = Window {
        kernel: (size(0, 1)?, size(1, 1)?),
        stride: (size(2, 1)?, size(3, 1)?),
        pad: (size(4, 0)?, size(5, 0)?),
        exclude_pad: context.flag(6)?,
    };
    let kind = if context.kind() == 2 { PoolKind::Average } else { PoolKind::Max };
    Pool::prepare(input, output, window, kind, Finish::default())
}
