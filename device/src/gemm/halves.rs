//! FP16 to f32 and back, eight at a time where the CPU can; the same bits as `half`'s, without its check per slice.
#![allow(unsafe_code, reason = "vector intrinsics; features are checked before each call, lengths by arrays")]

use half::slice::{HalfBitsSliceExt as _, HalfFloatSliceExt as _};

/// Shorter slices gain nothing from a loop over eight.
const LANES: usize = 8;

/// FP16 bits to f32.
///
/// # Panics
/// When the lengths differ.
#[inline]
pub fn to_f32(words: &[u16], out: &mut [f32]) {
    assert_eq!(words.len(), out.len(), "as many values as bits");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("f16c") && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has the features, as was just found out.
        return unsafe { x86::to_f32(words, out) };
    }
    words.reinterpret_cast::<half::f16>().convert_to_f32_slice(out);
}

/// f32 to FP16 bits, rounding to nearest even.
///
/// # Panics
/// When the lengths differ.
#[inline]
pub fn from_f32(values: &[f32], out: &mut [u16]) {
    assert_eq!(values.len(), out.len(), "as many bits as values");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("f16c") && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has the features, as was just found out.
        return unsafe { x86::from_f32(values, out) };
    }
    out.reinterpret_cast_mut::<half::f16>().convert_from_f32_slice(values);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::LANES;

    /// A whole slice by eights and fours.
    macro_rules! slices {
        ($name:ident: $from:ty => $to:ty, $eight:ident, $four:ident) => {
            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            pub(super) fn $name(src: &[$from], dst: &mut [$to]) {
                let (head, tail) = src.as_chunks::<LANES>();
                head.iter().zip(dst.as_chunks_mut::<LANES>().0).for_each(|(from, to)| $eight(from, to));
                if tail.is_empty() {
                    return;
                }
                // The last ones once more, rather than a copy of the rest: rows of 7 and 14 pixels are common.
                if let (Some(from), Some(to)) = (src.last_chunk::<LANES>(), dst.last_chunk_mut::<LANES>()) {
                    $eight(from, to);
                    return;
                }
                match tail.first_chunk::<4>().zip(tail.last_chunk::<4>()) {
                    Some((first, last)) => {
                        let (first, last) = ($four(first), $four(last));
                        dst[..4].copy_from_slice(&first);
                        let at = dst.len() - 4;
                        dst[at..].copy_from_slice(&last);
                    }
                    None => {
                        let mut four = [<$from>::default(); 4];
                        four[..tail.len()].copy_from_slice(tail);
                        dst.copy_from_slice(&$four(&four)[..tail.len()]);
                    }
                }
            }
        };
    }

    slices!(to_f32: u16 => f32, widen, widen_four);
    slices!(from_f32: f32 => u16, narrow, narrow_four);

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn widen(from: &[u16; LANES], to: &mut [f32; LANES]) {
        // SAFETY: sixteen bytes are read and 32 written, which is what the arrays hold; no alignment is asked for.
        unsafe {
            let words = _mm_loadu_si128(from.as_ptr().cast());
            _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(words));
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn narrow(from: &[f32; LANES], to: &mut [u16; LANES]) {
        // SAFETY: 32 bytes are read and sixteen written, which is what the arrays hold; no alignment is asked for.
        unsafe {
            let words = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(from.as_ptr()));
            _mm_storeu_si128(to.as_mut_ptr().cast(), words);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn widen_four(from: &[u16; 4]) -> [f32; 4] {
        let mut to = [0.0; 4];
        // SAFETY: eight bytes are read and sixteen written, which is what the arrays hold; no alignment is asked for.
        unsafe { _mm_storeu_ps(to.as_mut_ptr(), _mm_cvtph_ps(_mm_loadl_epi64(from.as_ptr().cast()))) };
        to
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn narrow_four(from: &[f32; 4]) -> [u16; 4] {
        let mut to = [0; 4];
        // SAFETY: sixteen bytes are read and eight written, which is what the arrays hold; no alignment is asked for.
        unsafe {
            let words = _mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_loadu_ps(from.as_ptr()));
            _mm_storel_epi64(to.as_mut_ptr().cast(), words);
        }
        to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_slices_are_as_long_ones() {
        let words: Vec<u16> = (0..40).map(|i| 0x3C00 + i * 37).collect();
        for n in 0..words.len() {
            let (mut ours, mut back) = (vec![0.0; n], vec![0; n]);
            to_f32(&words[..n], &mut ours);
            let theirs = words[..n].iter().map(|&w| half::f16::from_bits(w).to_f32());
            assert!(theirs.eq(ours.iter().copied()), "{n}");
            from_f32(&ours, &mut back);
            assert_eq!(back, words[..n], "{n}");
        }
    }

    #[test]
    fn every_half_goes_there_and_back_as_the_crate_says() {
        let words: Vec<u16> = (0..=u16::MAX).collect();
        // Odd lengths and offsets reach the tails.
        for cut in [0, 1, 7, 13] {
            let words = &words[cut..];
            let (mut ours, mut theirs) = (vec![0.0; words.len()], vec![0.0; words.len()]);
            to_f32(words, &mut ours);
            words.reinterpret_cast::<half::f16>().convert_to_f32_slice(&mut theirs);
            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(bits(&ours) == bits(&theirs), "from {cut}");
            // Between two halves, too: rounding to even.
            let between: Vec<f32> = ours.iter().map(|v| v * 1.000_488_3).collect();
            for values in [&ours, &between] {
                let (mut a, mut b) = (vec![0u16; values.len()], vec![0u16; values.len()]);
                from_f32(values, &mut a);
                b.reinterpret_cast_mut::<half::f16>().convert_from_f32_slice(values);
                assert!(a == b, "from {cut}");
            }
        }
    }
}
