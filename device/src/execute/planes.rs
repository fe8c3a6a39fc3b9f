//! FP16 tensors as planes of pixels, read to f32 and written back, in parallel over channels.
use rayon::prelude::*;

use super::memory::Place;
use super::params::halves;
use crate::gemm::halves::{from_f32, to_f32};

/// Planes of an FP16 place, by name of dimension; distances in words.
#[derive(Clone, Debug)]
pub(super) struct Planes {
    pub place: Place,
    pub width: usize,
    pub height: usize,
    pub channels: usize,
    pub batch: usize,
    base: usize,
    column: usize,
    row: usize,
    channel: usize,
    image: usize,
}

impl Planes {
    pub fn new(place: &Place) -> Result<Self, String> {
        halves(&[place])?;
        let named: usize = (1..=4).map(|digit| place.dim(digit)).product();
        if named != place.elements() {
            return Err("an operand has dimensions beside W, H, C and N".into());
        }
        let step = |digit| usize::try_from(place.stride(digit) / 2).unwrap_or(0);
        Ok(Planes {
            width: place.dim(1),
            height: place.dim(2),
            channels: place.dim(3),
            batch: place.dim(4),
            base: place.offset as usize / 2,
            column: step(1),
            row: step(2),
            channel: step(3),
            image: step(4),
            place: place.clone(),
        })
    }

    /// Reads a part of a row to f32.
    pub fn read_row(
        &self,
        words: &[u16],
        (image, channel, y, x): (usize, usize, usize, usize),
        out: &mut [f32],
    ) {
        let at = self.base + image * self.image + channel * self.channel + y * self.row + x * self.column;
        if self.column == 1 || out.len() == 1 {
            to_f32(&words[at..at + out.len()], out);
        } else {
            for (i, value) in out.iter_mut().enumerate() {
                *value = half::f16::from_bits(words[at + i * self.column]).to_f32();
            }
        }
    }

    /// Reads whole rows, from `first` on, to f32.
    pub fn read_rows(&self, words: &[u16], (image, channel, first): (usize, usize, usize), out: &mut [f32]) {
        if self.column == 1 && self.row == self.width {
            self.read_row(words, (image, channel, first, 0), out);
            return;
        }
        for (y, row) in out.chunks_exact_mut(self.width).enumerate() {
            self.read_row(words, (image, channel, first + y, 0), row);
        }
    }

    /// Reads a whole plane to f32, row after row.
    pub fn read_plane(&self, words: &[u16], image: usize, channel: usize, out: &mut [f32]) {
        self.read_rows(words, (image, channel, 0), &mut out[..self.width * self.height]);
    }

    /// For words of which the first `words` were cut off.
    pub fn rebase(&mut self, words: usize) {
        self.base -= words;
    }

    /// Words that one channel's plane spans.
    fn plane_span(&self) -> usize {
        (self.height - 1) * self.row + (self.width - 1) * self.column + 1
    }

    /// Moves rows `first..first + rows` of every channel of an image from dense FP16 planes, `stride` words apart.
    /// In parallel where the planes do not interleave.
    pub fn move_bands(
        &self,
        words: &mut [u16],
        (image, first, rows): (usize, usize, usize),
        (data, stride): (&[u16], usize),
        parallel: bool,
    ) {
        let write = |words: &mut [u16], at: usize, values: &[u16]| {
            if self.column == 1 && (self.row == self.width || rows == 1) {
                words[at..at + values.len()].copy_from_slice(values);
                return;
            }
            for (y, row) in values.chunks_exact(self.width).enumerate() {
                let at = at + y * self.row;
                if self.column == 1 {
                    words[at..at + self.width].copy_from_slice(row);
                } else {
                    row.iter().enumerate().for_each(|(x, &value)| words[at + x * self.column] = value);
                }
            }
        };
        let count = rows * self.width;
        let begin = self.base + image * self.image;
        let data = &data[..self.channels * stride];
        if parallel && self.channels > 1 && self.channel >= self.plane_span() {
            let planes = words[begin..].par_chunks_mut(self.channel).zip(data.par_chunks_exact(stride));
            planes
                .with_min_len((1 << 15) / count + 1)
                .for_each(|(words, values)| write(words, first * self.row, &values[..count]));
        } else {
            for (channel, values) in data.chunks_exact(stride).enumerate() {
                write(words, begin + channel * self.channel + first * self.row, &values[..count]);
            }
        }
    }

    /// Writes rows `first..first + rows` of every channel of an image from dense f32 planes; `finish(channel, plane)`
    /// may change a plane first. In parallel where the planes do not interleave.
    pub fn write_bands(
        &self,
        words: &mut [u16],
        (image, first, rows): (usize, usize, usize),
        (data, stride): (&mut [f32], usize),
        parallel: bool,
        finish: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let count = rows * self.width;
        let write = |words: &mut [u16], at: usize, values: &[f32]| {
            if self.column == 1 && (self.row == self.width || rows == 1) {
                from_f32(values, &mut words[at..at + count]);
                return;
            }
            for (y, row) in values.chunks_exact(self.width).enumerate() {
                let at = at + y * self.row;
                if self.column == 1 {
                    from_f32(row, &mut words[at..at + self.width]);
                } else {
                    for (x, &value) in row.iter().enumerate() {
                        words[at + x * self.column] = half::f16::from_f32(value).to_bits();
                    }
                }
            }
        };
        let begin = self.base + image * self.image;
        let data = &mut data[..self.channels * stride];
        if parallel && self.channels > 1 && self.channel >= self.plane_span() {
            let planes = words[begin..].par_chunks_mut(self.channel);
            planes.zip(data.par_chunks_exact_mut(stride)).enumerate().with_min_len(4).for_each(
                |(channel, (words, values))| {
                    finish(channel, values);
                    write(words, first * self.row, &values[..count]);
                },
            );
        } else {
            for (channel, values) in data.chunks_exact_mut(stride).enumerate() {
                finish(channel, values);
                write(words, begin + channel * self.channel + first * self.row, &values[..count]);
            }
        }
    }
}
