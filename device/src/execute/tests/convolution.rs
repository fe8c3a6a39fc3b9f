//! Convolution and pooling, of the NCE and of software, against the definition.
use ncs2::blob::{Activation, NceDescriptor, NceOp, PoolKind};
use proptest::prelude::*;

use super::*;

fn nce(op: NceOp, kernel: (u32, u32), stride: u32, pad: Option<u32>, channels: u32) -> Nce {
    let conv = !matches!(op, NceOp::Pool(_));
    // Two descriptors where there is something to share.
    let first = channels.div_ceil(2);
    let mut descriptors = vec![NceDescriptor { first_channel: 0, channels: first }];
    if channels > first {
        descriptors.insert(0, NceDescriptor { first_channel: first, channels: channels - first });
    }
    Nce {
        op,
        mode: 0,
        pad,
        kernel,
        stride,
        activation: Activation { relu: None, clamp: None },
        input: 0,
        output: 1,
        weights: conv.then_some(2),
        bias: None,
        scale: None,
        descriptors,
    }
}

/// `[oc][ic][tap]` to the file's `[oc/8][ic][tap][oc%8]`.
fn blocked(weights: &[f32], oc: usize, ic: usize, taps: usize) -> Vec<f32> {
    let mut blocks = vec![0.0; oc.next_multiple_of(8) * ic * taps];
    for o in 0..oc {
        for x in 0..ic * taps {
            blocks[(o / 8 * ic * taps + x) * 8 + o % 8] = weights[o * ic * taps + x];
        }
    }
    blocks
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    ic: usize,
    oc: usize,
    from: (usize, usize),
    to: (usize, usize),
    kernel: (usize, usize),
    stride: (usize, usize),
    dilation: (usize, usize),
    pad: (usize, usize),
}

/// Straight from the definition, in f64.
fn definition(s: Shape, input: &[f32], weights: &[f32]) -> Vec<f32> {
    let mut out = Vec::new();
    for o in 0..s.oc {
        for y in 0..s.to.1 {
            for x in 0..s.to.0 {
                let mut sum = 0f64;
                for c in 0..s.ic {
                    for ky in 0..s.kernel.1 {
                        for kx in 0..s.kernel.0 {
                            let iy = (y * s.stride.1 + ky * s.dilation.1).wrapping_sub(s.pad.1);
                            let ix = (x * s.stride.0 + kx * s.dilation.0).wrapping_sub(s.pad.0);
                            if iy < s.from.1 && ix < s.from.0 {
                                let w = weights[((o * s.ic + c) * s.kernel.1 + ky) * s.kernel.0 + kx];
                                sum += f64::from(w) * f64::from(input[(c * s.from.1 + iy) * s.from.0 + ix]);
                            }
                        }
                    }
                }
                out.push(sum as f32);
            }
        }
    }
    out
}

fn bench(s: Shape, op: NceOp, pad: Option<u32>, input: &[f32], weights: &[f32]) -> Bench {
    let mut bench = Bench::default();
    // Rows with gaps, as the NCE's alignment makes them.
    let rows = |w: usize, h: usize| {
        let row = (w as u32 * 2).next_multiple_of(16);
        vec![2, row, row * h as u32, row * h as u32 * 64]
    };
    let dims = |(w, h): (usize, usize), c: usize| [w as u32, h as u32, c as u32, 1];
    bench.strided(NCHW, &dims(s.from, s.ic), rows(s.from.0, s.from.1), input);
    bench.view(DataType::F16, NCHW, &dims(s.to, s.oc), rows(s.to.0, s.to.1), Location::Bss);
    let taps = s.kernel.0 * s.kernel.1;
    let blocks = blocked(weights, s.oc, s.ic, taps);
    bench.halves(NCHW, &[8, taps as u32, s.ic as u32, s.oc.div_ceil(8) as u32], &blocks);
    let kernel = (s.kernel.0 as u32, s.kernel.1 as u32);
    bench.nce = Some(nce(op, kernel, s.stride.0 as u32, pad, s.oc as u32));
    bench
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nce_convolution_is_the_definition(
        (ic, oc) in (1usize..7, 1usize..19),
        from in (1usize..14, 1usize..14),
        kernel in (1usize..5, 1usize..5),
        stride in 1usize..4,
        padded: bool,
        way in 0usize..3,
        seed: u32,
    ) {
        let pad = if padded { (kernel.0 / 2, kernel.1 / 2) } else { (0, 0) };
        // The output may well ask for more than the input has: zeros.
        let to = |from: usize| (from / stride).max(1);
        let s = Shape { ic, oc, from, to: (to(from.0), to(from.1)), kernel, stride: (stride, stride), dilation: (1, 1), pad };
        let input = noise(ic * from.0 * from.1, seed);
        let mut weights = noise(oc * ic * kernel.0 * kernel.1, !seed);
        let taps = kernel.0 * kernel.1;
        for (at, kernel) in weights.chunks_mut(taps).enumerate() {
            let (o, c) = (at / ic, at % ic);
            // Dense, diagonal, or with input channels that do not count.
            if (way == 1 && o % ic != c) || (way == 2 && c % 2 == 1) {
                kernel.fill(0.0);
            }
        }
        let expected = definition(s, &input, &weights);
        near(&bench(s, NceOp::Conv, padded.then_some(0), &input, &weights).read(38, &[], 1), &expected);
    }

    #[test]
    fn software_convolution_is_the_definition(
        (ic, oc) in (1usize..5, 1usize..6),
        from in (1usize..12, 1usize..12),
        kernel in (1usize..4, 1usize..4),
        stride in (1usize..3, 1usize..3),
        dilation in (1usize..3, 1usize..3),
        pad in (0usize..3, 0usize..3),
        seed: u32,
    ) {
        let to = (from.0.div_ceil(stride.0), from.1.div_ceil(stride.1));
        let s = Shape { ic, oc, from, to, kernel, stride, dilation, pad };
        let input = noise(ic * from.0 * from.1, seed);
        let weights = noise(oc * ic * kernel.0 * kernel.1, !seed);
        let expected = definition(s, &input, &weights);
        let taps = kernel.0 * kernel.1;
        // [tap][oc][ic], but [oc][ic] for one tap, which is the same.
        let mut stored = Vec::new();
        for tap in 0..taps {
            stored.extend((0..oc * ic).map(|k| weights[k * taps + tap]));
        }
        let mut bench = Bench::default();
        bench.input(NCHW, &[from.0 as u32, from.1 as u32, ic as u32, 1], &input);
        let out = bench.output(NCHW, &[to.0 as u32, to.1 as u32, oc as u32, 1]);
        bench.halves(0x321, &[taps as u32, ic as u32, oc as u32], &stored);
        let params = [kernel.0, kernel.1, stride.0, stride.1, pad.0, pad.1, dilation.0, dilation.1].map(|p| p as u32);
        near(&bench.read(0, &params, out), &expected);
        // The reference form has this order of weights for every kernel.
        near(&bench.read(58, &params, out), &expected);
    }
}

/// A volume of depth 1 is a plane, and a sum over planes is a volume: both against the definition of planes.
#[test]
fn volumes_are_convolved_by_the_definition() {
    // W, H, D, C in and out; kernel, stride, dilation, padding along W, H, D.
    for (from, (ic, oc), kernel, stride, dilation, pad) in [
        ([5, 4, 3], (2, 3), [3, 2, 2], [1, 1, 1], [1, 1, 1], [1, 1, 0]),
        ([6, 5, 4], (1, 2), [2, 2, 3], [2, 1, 1], [1, 2, 1], [0, 0, 1]),
        ([4, 4, 1], (3, 1), [3, 3, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]),
    ] {
        let to: [usize; 3] = std::array::from_fn(|d| {
            (from[d] + 2 * pad[d] - (dilation[d] * (kernel[d] - 1) + 1)) / stride[d] + 1
        });
        let cells: usize = from.iter().product();
        let taps: usize = kernel.iter().product();
        let (input, weights) = (noise(ic * cells, 3), noise(oc * ic * taps, 4));
        let bias = noise(oc, 5);
        let mut expected = Vec::new();
        for o in 0..oc {
            for z in 0..to[2] {
                let mut plane = vec![bias[o]; to[0] * to[1]];
                for kz in 0..kernel[2] {
                    let Some(depth) = (z * stride[2] + kz * dilation[2]).checked_sub(pad[2]) else {
                        continue;
                    };
                    if depth >= from[2] {
                        continue;
                    }
                    let area = from[0] * from[1];
                    let slice = |c: usize| &input[c * cells + depth * area..][..area];
                    let flat: Vec<f32> = (0..ic).flat_map(slice).copied().collect();
                    let square = kernel[0] * kernel[1];
                    let of = |c: usize| &weights[(o * ic + c) * taps + kz * square..][..square];
                    let kernels: Vec<f32> = (0..ic).flat_map(of).copied().collect();
                    let pair = |a: [usize; 3]| (a[0], a[1]);
                    let s = Shape {
                        ic,
                        oc: 1,
                        from: pair(from),
                        to: pair(to),
                        kernel: pair(kernel),
                        stride: pair(stride),
                        dilation: pair(dilation),
                        pad: pair(pad),
                    };
                    let more = definition(s, &flat, &kernels);
                    plane.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
                }
                expected.extend(plane);
            }
        }
        const NCDHW: u32 = 0x43521;
        let dims = |v: [usize; 3], c: usize| [v[0], v[1], v[2], c, 1].map(|d| d as u32);
        let mut bench = Bench::default();
        bench.input(NCDHW, &dims(from, ic), &input);
        let out = bench.output(NCDHW, &dims(to, oc));
        bench.halves(NCDHW, &[kernel[0], kernel[1], kernel[2], ic, oc].map(|d| d as u32), &weights);
        bench.halves(C, &[oc as u32], &bias);
        let list = |v: [usize; 3]| [3, v[0] as u32, v[1] as u32, v[2] as u32];
        let mut params = [pad, pad, stride, dilation].map(list).concat();
        params.push(1);
        near(&bench.read(116, &params, out), &expected);
        // Two groups, and lists of two axes: refused by name, not computed wrongly.
        *params.last_mut().expect("groups") = 2;
        assert!(bench.why(116, &params).contains("groups"));
        params[0] = 2;
        assert!(bench.why(116, &params).contains("3 axes"));
    }
}

#[test]
fn large_convolutions_run_in_bands_and_on_all_cores() {
    let s = Shape {
        ic: 20,
        oc: 24,
        from: (70, 61),
        to: (70, 61),
        kernel: (3, 3),
        stride: (1, 1),
        dilation: (1, 1),
        pad: (1, 1),
    };
    let (input, weights) = (noise(20 * 70 * 61, 1), noise(24 * 20 * 9, 2));
    let expected = definition(s, &input, &weights);
    near(&bench(s, NceOp::Conv, Some(0), &input, &weights).read(38, &[], 1), &expected);
}

#[test]
fn an_output_over_its_own_input_sees_the_input_as_it_was() {
    let s = Shape {
        ic: 32,
        oc: 32,
        from: (64, 64),
        to: (64, 64),
        kernel: (3, 3),
        stride: (1, 1),
        dilation: (1, 1),
        pad: (1, 1),
    };
    let (input, weights) = (noise(32 * 64 * 64, 5), noise(32 * 32 * 9, 6));
    let mut bench = bench(s, NceOp::Conv, Some(0), &input, &weights);
    bench.buffers[1].offset = bench.buffers[0].offset;
    near(&bench.read(38, &[], 1), &definition(s, &input, &weights));
}

#[test]
fn bias_comes_before_scale_and_slopes_after() {
    let mut bench = Bench::default();
    bench.input(NCHW, &[4, 1, 1, 1], &[-3.0, -1.0, 1.0, 4.0]);
    let out = bench.output(NCHW, &[4, 1, 1, 1]);
    let mut weights = [0.0; 8];
    weights[0] = 2.0;
    bench.halves(NCHW, &[8, 1, 1, 1], &weights);
    let mut bias = [0.0; 8];
    bias[0] = 1.0;
    bench.halves(C, &[8], &bias);
    let mut scale = [0.0; 8];
    scale[0] = 0.5;
    bench.halves(C, &[8], &scale);
    let mut conv = nce(NceOp::Conv, (1, 1), 1, None, 1);
    (conv.bias, conv.scale) = (Some(3), Some(4));
    // (2x + 1) / 2, then leaky: 1 below zero, 10 above.
    conv.activation.relu = Some((0, 1, 10));
    bench.nce = Some(conv.clone());
    near(&bench.read(38, &[], out), &[-2.5, -0.5, 15.0, 45.0]);
    conv.activation = Activation { relu: None, clamp: Some(2.0) };
    bench.nce = Some(conv);
    near(&bench.read(38, &[], out), &[0.0, 0.0, 1.5, 2.0]);
}

#[test]
fn stale_channels_with_zero_weights_are_not_read() {
    // The bench fills memory with NaN; the third channel is never written.
    let mut bench = Bench::default();
    bench.view(DataType::F16, NCHW, &[2, 1, 3, 1], vec![2, 4, 4, 12], Location::Bss);
    let out = bench.output(NCHW, &[2, 1, 2, 1]);
    let weights = [[1.0, 0.0, 0.0], [2.0, 1.0, 0.0]].concat();
    bench.halves(NCHW, &[8, 1, 3, 1], &blocked(&weights, 2, 3, 1));
    bench.nce = Some(nce(NceOp::Conv, (1, 1), 1, None, 2));
    // The same memory, seen without that channel, gets the values.
    bench.buffers.push(View { dims: vec![2, 1, 2, 1], ..bench.buffers[0].clone() });
    bench.values.push((3, vec![1.0, 2.0, 3.0, 4.0]));
    near(&bench.read(38, &[], out), &[1.0, 2.0, 5.0, 8.0]);
}

#[test]
fn conv_pool_takes_the_largest_of_each_square() {
    let s = Shape {
        ic: 3,
        oc: 9,
        from: (10, 6),
        to: (10, 6),
        kernel: (3, 3),
        stride: (1, 1),
        dilation: (1, 1),
        pad: (1, 1),
    };
    let (input, weights) = (noise(3 * 60, 3), noise(9 * 27, 4));
    let full = definition(s, &input, &weights);
    let mut expected = Vec::new();
    for c in 0..9 {
        for y in 0..3 {
            for x in 0..5 {
                let at = |dy: usize, dx: usize| full[(c * 6 + 2 * y + dy) * 10 + 2 * x + dx];
                expected.push(at(0, 0).max(at(0, 1)).max(at(1, 0)).max(at(1, 1)));
            }
        }
    }
    let pooled = Shape { to: (5, 3), ..s };
    near(&bench(pooled, NceOp::ConvPool, Some(0), &input, &weights).read(38, &[], 1), &expected);
}

#[test]
fn nce_pooling_ignores_what_is_outside() {
    let mut bench = Bench::default();
    bench.input(NCHW, &[3, 3, 1, 1], &[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0, -9.0]);
    let out = bench.output(NCHW, &[2, 2, 1, 1]);
    // Repeat on all sides: one row and column of padding left and above.
    bench.nce = Some(nce(NceOp::Pool(PoolKind::Max), (3, 3), 2, Some(15), 1));
    near(&bench.read(38, &[], out), &[-1.0, -2.0, -4.0, -5.0]);
    // No padding: the second window hangs over the right and bottom edge.
    bench.nce = Some(nce(NceOp::Pool(PoolKind::Max), (2, 2), 2, None, 1));
    near(&bench.read(38, &[], out), &[-1.0, -3.0, -7.0, -9.0]);
    bench.nce = Some(nce(NceOp::Pool(PoolKind::Average), (2, 2), 1, None, 1));
    near(&bench.read(38, &[], out), &[-3.0, -4.0, -6.0, -7.0]);
}

#[test]
fn software_pooling_divides_by_what_it_is_told() {
    let mut bench = Bench::default();
    bench.input(NCHW, &[3, 1, 1, 1], &[3.0, 6.0, 9.0]);
    let out = bench.output(NCHW, &[3, 1, 1, 1]);
    near(&bench.read(2, &[3, 1, 1, 1, 1, 0, 0], out), &[3.0, 6.0, 5.0]);
    near(&bench.read(2, &[3, 1, 1, 1, 1, 0, 1], out), &[4.5, 6.0, 7.5]);
    near(&bench.read(1, &[3, 1, 1, 1, 1, 0, 0], out), &[6.0, 9.0, 9.0]);
}

#[test]
fn depthwise_and_transposed_software_convolutions() {
    let mut bench = Bench::default();
    bench.input(NCHW, &[2, 1, 2, 1], &[1.0, 2.0, 3.0, 4.0]);
    let out = bench.output(NCHW, &[2, 1, 2, 1]);
    // [kx][channel]
    bench.halves(0x321, &[2, 1, 2], &[1.0, 10.0, 2.0, 20.0]);
    near(&bench.read(8, &[2, 1, 1, 1, 0, 0, 1, 1], out), &[5.0, 2.0, 110.0, 40.0]);

    // Stride 2, kernel 2: each input makes its own pair of outputs; the kernel is stored flipped.
    let mut bench = Bench::default();
    bench.input(NCHW, &[2, 1, 1, 1], &[1.0, 3.0]);
    let out = bench.output(NCHW, &[4, 1, 1, 1]);
    bench.halves(0x321, &[2, 1, 1], &[2.0, 1.0]);
    near(&bench.read(22, &[2, 1, 2, 1, 0, 0], out), &[1.0, 2.0, 3.0, 6.0]);
}

#[test]
fn channels_last_weights_come_in_their_own_layouts() {
    // 3x3 over one pixel, all but the middle tap outside: [tap][ic][oc] because 2·3 ≤ 256.
    let mut bench = Bench::default();
    bench.input(NHWC, &[2, 1, 1, 1], &[1.0, 10.0]);
    let out = bench.output(NHWC, &[3, 1, 1, 1]);
    let mut weights = vec![9.0; 54];
    weights[4 * 6..5 * 6].copy_from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    bench.halves(0x321, &[9, 2, 3], &weights);
    near(&bench.read(0, &[3, 3, 1, 1, 1, 1, 1, 1], out), &[41.0, 52.0, 63.0]);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let s = Shape {
        ic: 2,
        oc: 8,
        from: (4, 4),
        to: (4, 4),
        kernel: (3, 3),
        stride: (1, 1),
        dilation: (1, 1),
        pad: (1, 1),
    };
    let good = || bench(s, NceOp::Conv, Some(0), &noise(32, 1), &noise(144, 2));
    assert!(good().prepare(38, &[]).is_ok());

    let mut bench = good();
    bench.buffers[2].dims[2] = 1;
    assert!(bench.why(38, &[]).contains("weights"));
    let mut bench = good();
    bench.nce.as_mut().expect("set").descriptors[0].channels = 3;
    assert!(bench.why(38, &[]).contains("cover"));
    let mut bench = good();
    bench.buffers[1].location = Location::Blob;
    assert!(bench.prepare(38, &[]).is_err());
    let mut bench = good();
    bench.buffers[2].location = Location::Bss;
    assert!(bench.why(38, &[]).contains("constant"));
    let mut bench = good();
    bench.buffers[0].dtype = DataType::F32;
    assert!(bench.prepare(38, &[]).is_err());
    let mut bench = good();
    bench.nce.as_mut().expect("set").stride = 0;
    assert!(bench.why(38, &[]).contains("stride"));
    let mut bench = good();
    bench.buffers[0].offset = bench.bss;
    assert!(bench.why(38, &[]).contains("area"));
    let mut bench = good();
    // More elements than the area holds bytes, by strides of 0.
    bench.buffers[0].dims = vec![1 << 9, 1 << 9, 1 << 9, 1];
    bench.buffers[0].strides = vec![0; 4];
    assert!(bench.why(38, &[]).contains("area"));
}
