//! Vector forms: AVX-512 with sixteen elements at a time, AVX2 with F16C with eight. Each returns false where the machine lacks
//! both.
#![allow(
    unsafe_code,
    reason = "vector intrinsics have no safe form; the features are checked before each call"
)]

use std::arch::x86_64::*;

use half::f16;

use super::{Affine, scalar};

const LANES: usize = 8;
const WIDE: usize = 16;

/// Which form this machine has.
enum Form {
    Avx512,
    Avx2,
    None,
}

fn form() -> Form {
    if is_x86_feature_detected!("avx512f") {
        Form::Avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        Form::Avx2
    } else {
        Form::None
    }
}

pub(super) fn f32_to_f16(src: &[f32], dst: &mut [f16], affine: Affine) -> bool {
    match form() {
        // SAFETY: the form's features were detected; the slices stay borrowed by us for the call.
        Form::Avx512 => unsafe { f32_to_f16_avx512(src, dst, affine) },
        // SAFETY: as above.
        Form::Avx2 => unsafe { f32_to_f16_avx2(src, dst, affine) },
        Form::None => return false,
    }
    true
}

pub(super) fn u8_to_f16(src: &[u8], dst: &mut [f16], affine: Affine) -> bool {
    match form() {
        // SAFETY: the form's features were detected; the slices stay borrowed by us for the call.
        Form::Avx512 => unsafe { u8_to_f16_avx512(src, dst, affine) },
        // SAFETY: as above.
        Form::Avx2 => unsafe { u8_to_f16_avx2(src, dst, affine) },
        Form::None => return false,
    }
    true
}

pub(super) fn f16_to_f32(src: &[f16], dst: &mut [f32]) -> bool {
    match form() {
        // SAFETY: the form's features were detected; the slices stay borrowed by us for the call.
        Form::Avx512 => unsafe { f16_to_f32_avx512(src, dst) },
        // SAFETY: as above.
        Form::Avx2 => unsafe { f16_to_f32_avx2(src, dst) },
        Form::None => return false,
    }
    true
}

/// # Safety
/// The machine must have AVX-512F.
#[target_feature(enable = "avx512f")]
unsafe fn f32_to_f16_avx512(src: &[f32], dst: &mut [f16], affine: Affine) {
    let (mul, add) = (_mm512_set1_ps(affine.mul), _mm512_set1_ps(affine.add));
    let (head, tail) = src.as_chunks::<WIDE>();
    let (to_head, to_tail) = dst.as_chunks_mut::<WIDE>();
    for (to, from) in to_head.iter_mut().zip(head) {
        // SAFETY: both arrays hold sixteen elements, and the unaligned forms ask for no alignment.
        unsafe {
            let x = _mm512_loadu_ps(from.as_ptr());
            let y = _mm512_add_ps(_mm512_mul_ps(x, mul), add);
            let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(y);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), half);
        }
    }
    scalar::f32_to_f16(tail, to_tail, affine);
}

/// # Safety
/// The machine must have AVX-512F.
#[target_feature(enable = "avx512f")]
unsafe fn u8_to_f16_avx512(src: &[u8], dst: &mut [f16], affine: Affine) {
    let (mul, add) = (_mm512_set1_ps(affine.mul), _mm512_set1_ps(affine.add));
    let (head, tail) = src.as_chunks::<WIDE>();
    let (to_head, to_tail) = dst.as_chunks_mut::<WIDE>();
    for (to, from) in to_head.iter_mut().zip(head) {
        // SAFETY: sixteen bytes are read and 32 written, which is what the arrays hold; no alignment is asked for.
        unsafe {
            let x = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())));
            let y = _mm512_add_ps(_mm512_mul_ps(x, mul), add);
            let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(y);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), half);
        }
    }
    scalar::u8_to_f16(tail, to_tail, affine);
}

/// # Safety
/// The machine must have AVX-512F.
#[target_feature(enable = "avx512f")]
unsafe fn f16_to_f32_avx512(src: &[f16], dst: &mut [f32]) {
    let (head, tail) = src.as_chunks::<WIDE>();
    let (to_head, to_tail) = dst.as_chunks_mut::<WIDE>();
    for (to, from) in to_head.iter_mut().zip(head) {
        // SAFETY: 32 bytes are read and 64 written, which is what the arrays hold; no alignment is asked for.
        unsafe {
            let half = _mm256_loadu_si256(from.as_ptr().cast());
            _mm512_storeu_ps(to.as_mut_ptr(), _mm512_cvtph_ps(half));
        }
    }
    scalar::f16_to_f32(tail, to_tail);
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// The dispatcher takes the widest form; this is for the one that it leaves out where there are both.
    #[test]
    fn the_narrow_forms_give_the_same_bits() {
        if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")) {
            let _ = writeln!(std::io::stderr(), "skipped: this machine has no AVX2 with F16C");
            return;
        }
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let affine = Affine { mul: 0.37, add: -1.5 };
        let same = |a: f16, b: f16| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        // Lengths that end in a tail, too.
        for len in [halves.len(), halves.len() - 3] {
            let (mut wide, mut slow) = (vec![0.0; len], vec![0.0; len]);
            // SAFETY: the features were detected above.
            unsafe { f16_to_f32_avx2(&halves[..len], &mut wide) };
            scalar::f16_to_f32(&halves[..len], &mut slow);
            assert!(
                wide.iter().zip(&slow).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
            );
            let (mut fast, mut back) = (vec![f16::ZERO; len], vec![f16::ZERO; len]);
            // SAFETY: as above.
            unsafe { f32_to_f16_avx2(&wide, &mut fast, affine) };
            scalar::f32_to_f16(&wide, &mut back, affine);
            assert!(fast.iter().zip(&back).all(|(&a, &b)| same(a, b)));
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 % 256) as u8).collect();
            // SAFETY: as above.
            unsafe { u8_to_f16_avx2(&bytes, &mut fast, affine) };
            scalar::u8_to_f16(&bytes, &mut back, affine);
            assert!(fast.iter().zip(&back).all(|(&a, &b)| same(a, b)));
        }
    }
}
