//! Vector forms for AVX2 with F16C, eight elements at a time. Each returns false where the machine lacks them.
#![allow(
    unsafe_code,
    reason = "vector intrinsics have no safe form; the features are checked before each call"
)]

use std::arch::x86_64::*;

use half::f16;

use super::{Affine, scalar};

const LANES: usize = 8;

fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")
}

pub(super) fn f32_to_f16(src: &[f32], dst: &mut [f16], affine: Affine) -> bool {
    let usable = available();
    if usable {
        // SAFETY: AVX2 and F16C were detected above; the slices stay borrowed by us for the call.
        unsafe { f32_to_f16_avx2(src, dst, affine) };
    }
    usable
}

pub(super) fn u8_to_f16(src: &[u8], dst: &mut [f16], affine: Affine) -> bool {
    let usable = available();
    if usable {
        // SAFETY: AVX2 and F16C were detected above; the slices stay borrowed by us for the call.
        unsafe { u8_to_f16_avx2(src, dst, affine) };
    }
    usable
}

pub(super) fn f16_to_f32(src: &[f16], dst: &mut [f32]) -> bool {
    let usable = available();
    if usable {
        // SAFETY: AVX2 and F16C were detected above; the slices stay borrowed by us for the call.
        unsafe { f16_to_f32_avx2(src, dst) };
    }
    usable
}

/// # Safety
/// The machine must have AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
unsafe fn f32_to_f16_avx2(src: &[f32], dst: &mut [f16], affine: Affine) {
    let (mul, add) = (_mm256_set1_ps(affine.mul), _mm256_set1_ps(affine.add));
    let (head, tail) = src.as_chunks::<LANES>();
    let (to_head, to_tail) = dst.as_chunks_mut::<LANES>();
    for (to, from) in to_head.iter_mut().zip(head) {
        // SAFETY: both arrays hold eight elements, and the unaligned forms ask for no alignment.
        unsafe {
            let x = _mm256_loadu_ps(from.as_ptr());
            let y = _mm256_add_ps(_mm256_mul_ps(x, mul), add);
            let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(y);
            _mm_storeu_si128(to.as_mut_ptr().cast(), half);
        }
    }
    scalar::f32_to_f16(tail, to_tail, affine);
}

/// # Safety
/// The machine must have AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
unsafe fn u8_to_f16_avx2(src: &[u8], dst: &mut [f16], affine: Affine) {
    let (mul, add) = (_mm256_set1_ps(affine.mul), _mm256_set1_ps(affine.add));
    let (head, tail) = src.as_chunks::<LANES>();
    let (to_head, to_tail) = dst.as_chunks_mut::<LANES>();
    for (to, from) in to_head.iter_mut().zip(head) {
        // SAFETY: eight bytes are read and sixteen written, which is what the arrays hold; no alignment is asked for.
        unsafe {
            let x = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.as_ptr().cast())));
            let y = _mm256_add_ps(_mm256_mul_ps(x, mul), add);
            let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(y);
            _mm_storeu_si128(to.as_mut_ptr().cast(), half);
        }
    }
    scalar::u8_to_f16(tail, to_tail, affine);
}

/// # Safety
/// The machine must have AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
unsafe fn f16_to_f32_avx2(src: &[f16], dst: &mut [f32]) {
    let (head, tail) = src.as_chunks::<LANES>();
    let (to_head, to_tail) = dst.as_chunks_mut::<LANES>();
    for (to, from) in to_head.iter_mut().zip(head) {
        // SAFETY: sixteen bytes are read and 32 written, which is what the arrays hold; no alignment is asked for.
        unsafe {
            let half = _mm_loadu_si128(from.as_ptr().cast());
            _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(half));
        }
    }
    scalar::f16_to_f32(tail, to_tail);
}
