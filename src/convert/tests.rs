use super::*;

fn every_half() -> Vec<f16> {
    (0..=u16::MAX).map(f16::from_bits).collect()
}

fn same_bits(a: &[f16], b: &[f16]) {
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "element {i}: {a:?} and {b:?}");
    }
}

#[test]
fn all_65536_halves_survive_the_way_to_f32_and_back() {
    let halves = every_half();
    let mut wide = vec![0.0_f32; halves.len()];
    f16_to_f32(&halves, &mut wide);
    let mut reference = vec![0.0_f32; halves.len()];
    scalar::f16_to_f32(&halves, &mut reference);
    for ((h, w), r) in halves.iter().zip(&wide).zip(&reference) {
        assert!(w.to_bits() == r.to_bits() || (w.is_nan() && r.is_nan()), "{h:?}: {w} and {r}");
        assert!(*w == h.to_f32() || w.is_nan());
    }
    let mut back = vec![f16::ZERO; halves.len()];
    f32_to_f16(&wide, &mut back, Affine::IDENTITY);
    // The identity adds 0.0, which takes −0.0 to +0.0 in both forms.
    let mut reference = vec![f16::ZERO; halves.len()];
    scalar::f32_to_f16(&wide, &mut reference, Affine::IDENTITY);
    same_bits(&back, &reference);
    for (h, b) in halves.iter().zip(&back) {
        assert!(h == b || h.is_nan(), "{h:?} came back as {b:?}");
    }
}

#[test]
fn rounding_between_neighbouring_halves_is_the_same_in_both_forms() {
    let halves = every_half();
    let finite: Vec<f32> = halves.iter().map(|h| h.to_f32()).filter(|x| x.is_finite()).collect();
    // Midpoints, where ties go to even, and their neighbours on either side.
    let hard: Vec<f32> = finite
        .windows(2)
        .map(|w| (w[0] + w[1]) / 2.0)
        .flat_map(|m| {
            [m, f32::from_bits(m.to_bits().wrapping_add(1)), f32::from_bits(m.to_bits().wrapping_sub(1))]
        })
        .collect();
    for affine in [Affine::IDENTITY, Affine::mean_scale(127.5, 1.0 / 127.5)] {
        let (mut fast, mut slow) = (vec![f16::ZERO; hard.len()], vec![f16::ZERO; hard.len()]);
        f32_to_f16(&hard, &mut fast, affine);
        scalar::f32_to_f16(&hard, &mut slow, affine);
        same_bits(&fast, &slow);
    }
}

#[test]
fn bytes_are_scaled_in_one_pass_at_every_length() {
    let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let affine = Affine::mean_scale(103.94, 0.017);
    for len in (0..40).chain([255, 256, 257, 999]) {
        let (mut fast, mut slow) = (vec![f16::ZERO; len], vec![f16::ZERO; len]);
        u8_to_f16(&bytes[..len], &mut fast, affine);
        scalar::u8_to_f16(&bytes[..len], &mut slow, affine);
        same_bits(&fast, &slow);
        let expected: Vec<f16> =
            bytes[..len].iter().map(|&b| f16::from_f32(f32::from(b) * affine.mul + affine.add)).collect();
        same_bits(&fast, &expected);
    }
}

#[test]
fn bytes_saturate_and_nan_is_zero() {
    let src = [-1.0, 0.4, 0.5, 1.5, 254.6, 300.0, f32::NAN, f32::INFINITY];
    let mut dst = [9; 8];
    f32_to_u8(&src, &mut dst, Affine::IDENTITY);
    assert_eq!(dst, [0, 0, 0, 2, 255, 255, 0, 255]);
}

#[test]
fn layouts_turn_into_each_other() {
    let interleaved: Vec<u8> = (0..12).collect(); // four pixels of three channels
    let mut planar = vec![0; 12];
    interleaved_to_planar(&interleaved, &mut planar, 3, false);
    assert_eq!(planar, [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]);
    let mut bgr = vec![0; 12];
    interleaved_to_planar(&interleaved, &mut bgr, 3, true);
    assert_eq!(bgr, [2, 5, 8, 11, 1, 4, 7, 10, 0, 3, 6, 9]);
    let mut back = vec![0; 12];
    planar_to_interleaved(&bgr, &mut back, 3, true);
    assert_eq!(back, interleaved);
    interleaved_to_planar::<u8>(&[], &mut [], 3, true);
}

#[test]
#[should_panic(expected = "no whole pixels")]
fn half_a_pixel_is_refused() {
    interleaved_to_planar(&[0_u8; 4], &mut [0; 4], 3, false);
}
