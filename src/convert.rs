//! Stages 1 and 5: callers' numbers to the network's and back. `u8`/`f32` ⇄ `f16`, mean and scale in the same pass,
//! planar ⇄ interleaved.
//!
//! Each conversion has a scalar form, which is the definition, and on x86-64 with AVX2 and F16C a vector form that
//! gives the same bits (no fused multiply-add in either). Other machines use the scalar form, which `half` maps to
//! their own instructions.

use half::f16;

pub mod layout;
pub mod recipe;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

/// `y = x · mul + add`, applied in `f32` before rounding to the network's type.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Affine {
    /// Factor.
    pub mul: f32,
    /// Summand.
    pub add: f32,
}

impl Affine {
    /// Leaves numbers as they are.
    pub const IDENTITY: Affine = Affine { mul: 1.0, add: 0.0 };

    /// The usual preparation of images, `(x − mean) · scale`.
    pub fn mean_scale(mean: f32, scale: f32) -> Self {
        Affine { mul: scale, add: -mean * scale }
    }
}

macro_rules! dispatch {
    ($name:ident($src:expr, $dst:expr $(, $arg:expr)*)) => {{
        assert_eq!($src.len(), $dst.len(), "source and destination must have as many elements");
        #[cfg(target_arch = "x86_64")]
        if x86::$name($src, $dst $(, $arg)*) {
            return;
        }
        scalar::$name($src, $dst $(, $arg)*)
    }};
}

/// Rounds to nearest even, overflow to infinity. Panics when the lengths differ.
pub fn f32_to_f16(src: &[f32], dst: &mut [f16], affine: Affine) {
    dispatch!(f32_to_f16(src, dst, affine))
}

/// Panics when the lengths differ.
pub fn u8_to_f16(src: &[u8], dst: &mut [f16], affine: Affine) {
    dispatch!(u8_to_f16(src, dst, affine))
}

/// Exact. Panics when the lengths differ.
pub fn f16_to_f32(src: &[f16], dst: &mut [f32]) {
    dispatch!(f16_to_f32(src, dst))
}

/// Panics when the lengths differ.
pub fn u8_to_f32(src: &[u8], dst: &mut [f32], affine: Affine) {
    assert_eq!(src.len(), dst.len(), "source and destination must have as many elements");
    scalar::u8_to_f32(src, dst, affine);
}

/// Rounds to nearest even and clamps to 0..=255; NaN becomes 0. Panics when the lengths differ.
pub fn f32_to_u8(src: &[f32], dst: &mut [u8], affine: Affine) {
    assert_eq!(src.len(), dst.len(), "source and destination must have as many elements");
    scalar::f32_to_u8(src, dst, affine);
}

/// Interleaved (`HWC`, pixels together) to planar (`CHW`). `swap_first_and_last` exchanges channels 0 and C−1: RGB to
/// BGR. Panics unless both slices hold `channels` × some number of pixels and are as long as each other.
pub fn interleaved_to_planar<T: Copy>(src: &[T], dst: &mut [T], channels: usize, swap_first_and_last: bool) {
    let pixels = pixels(src.len(), dst.len(), channels);
    for (plane, dst) in dst.chunks_exact_mut(pixels.max(1)).enumerate() {
        let channel = source_channel(plane, channels, swap_first_and_last);
        for (to, from) in dst.iter_mut().zip(src.chunks_exact(channels)) {
            *to = from[channel];
        }
    }
}

/// Planar (`CHW`) to interleaved (`HWC`); see [`interleaved_to_planar`].
pub fn planar_to_interleaved<T: Copy>(src: &[T], dst: &mut [T], channels: usize, swap_first_and_last: bool) {
    let pixels = pixels(src.len(), dst.len(), channels);
    for (plane, src) in src.chunks_exact(pixels.max(1)).enumerate() {
        let channel = source_channel(plane, channels, swap_first_and_last);
        for (to, from) in dst.chunks_exact_mut(channels).zip(src) {
            to[channel] = *from;
        }
    }
}

fn pixels(src: usize, dst: usize, channels: usize) -> usize {
    assert_eq!(src, dst, "source and destination must have as many elements");
    assert!(
        channels > 0 && src.is_multiple_of(channels),
        "{src} elements are no whole pixels of {channels} channels"
    );
    src / channels
}

fn source_channel(plane: usize, channels: usize, swap: bool) -> usize {
    match plane {
        0 if swap => channels - 1,
        last if swap && last == channels - 1 => 0,
        same => same,
    }
}

#[cfg(test)]
mod tests;
