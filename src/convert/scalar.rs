//! The definition of each conversion, and what runs where no vector form does.

use half::f16;
use half::slice::HalfFloatSliceExt as _;

use super::Affine;

/// Elements converted at a time through the stack; `half` converts slices with what the machine has.
const BLOCK: usize = 256;

pub(super) fn f32_to_f16(src: &[f32], dst: &mut [f16], affine: Affine) {
    let mut block = [0.0_f32; BLOCK];
    for (src, dst) in src.chunks(BLOCK).zip(dst.chunks_mut(BLOCK)) {
        for (to, from) in block.iter_mut().zip(src) {
            *to = from * affine.mul + affine.add;
        }
        dst.convert_from_f32_slice(&block[..src.len()]);
    }
}

pub(super) fn u8_to_f16(src: &[u8], dst: &mut [f16], affine: Affine) {
    let mut block = [0.0_f32; BLOCK];
    for (src, dst) in src.chunks(BLOCK).zip(dst.chunks_mut(BLOCK)) {
        u8_to_f32(src, &mut block[..src.len()], affine);
        dst.convert_from_f32_slice(&block[..src.len()]);
    }
}

pub(super) fn f16_to_f32(src: &[f16], dst: &mut [f32]) {
    src.convert_to_f32_slice(dst);
}

pub(super) fn u8_to_f32(src: &[u8], dst: &mut [f32], affine: Affine) {
    for (to, from) in dst.iter_mut().zip(src) {
        *to = f32::from(*from) * affine.mul + affine.add;
    }
}

pub(super) fn f32_to_u8(src: &[f32], dst: &mut [u8], affine: Affine) {
    for (to, from) in dst.iter_mut().zip(src) {
        // `as` saturates and takes NaN to 0.
        *to = (from * affine.mul + affine.add).round_ties_even() as u8;
    }
}
