//! Functions of elements, channels and planes.
use super::*;

fn unary(kind: u32, params: &[u32], values: &[f32]) -> Vec<f32> {
    let mut bench = Bench::default();
    let dims = [values.len() as u32, 1];
    bench.input(0x43, &dims, values);
    let out = bench.output(0x43, &dims);
    bench.read(kind, params, out)
}

#[test]
fn functions_of_one_element() {
    let x = [-4.0, -0.5, 0.0, 0.25, 3.0];
    let of = |g: &dyn Fn(f64) -> f64| x.iter().map(|&v| g(f64::from(v)) as f32).collect::<Vec<_>>();
    let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
    near(&unary(6, &[0, f(0.0)], &x), &[0.0, 0.0, 0.0, 0.25, 3.0]);
    near(&unary(44, &[0, f(0.5)], &x), &[-2.0, -0.25, 0.0, 0.25, 3.0]);
    near(&unary(57, &[f(-1.0), f(2.0)], &x), &[-1.0, -0.5, 0.0, 0.25, 2.0]);
    near(&unary(26, &[f(1.0), f(2.0), f(2.0)], &x), &of(&|v| (2.0 * v + 1.0).powi(2)));
    near(&unary(23, &[f(2.0)], &x), &of(&|v| if v > 0.0 { v } else { 2.0 * (v.exp() - 1.0) }));
    near(&unary(135, &[f(1.5)], &x), &of(&|v| v * sigmoid(1.5 * v)));
    near(&unary(20, &[], &x), &of(&sigmoid));
    near(&unary(21, &[], &x), &of(&f64::tanh));
    near(&unary(101, &[], &x), &of(&f64::exp));
    near(&unary(102, &[], &x), &[-4.0, -1.0, 0.0, 0.0, 3.0]);
    near(&unary(138, &[], &x), &[-4.0, 0.0, 0.0, 1.0, 3.0]);
    near(&unary(110, &[], &x), &[-1.0, -0.520_500, 0.0, 0.276_326, 0.999_978]);
    near(&unary(134, &[], &x), &of(&|v| v.exp().ln_1p()));
    near(&unary(137, &[], &x), &of(&|v| v * (v + 3.0).clamp(0.0, 6.0) / 6.0));
}

#[test]
fn results_round_to_nearest_even_and_overflow_to_infinity() {
    // 2048 + 1 lies between 2048 and 2050: to the even 2048. 2048 + 3 to 2052.
    near(&unary(26, &[f(1.0), f(1.0), f(1.0)], &[2048.0, 2050.0]), &[2048.0, 2052.0]);
    assert_eq!(unary(26, &[f(1.0), f(1.0), f(1.0)], &[2048.0, 2050.0]), [2048.0, 2052.0]);
    assert_eq!(unary(26, &[f(0.0), f(1000.0), f(1.0)], &[100.0, -100.0]), [f32::INFINITY, f32::NEG_INFINITY]);
    assert_eq!(unary(6, &[0, f(0.0)], &[f32::NEG_INFINITY, f32::INFINITY]), [0.0, f32::INFINITY]);
}

#[test]
fn functions_of_an_element_and_its_channel() {
    let channels = |kind: u32, order: u32, dims: &[u32], params: &[u32], vectors: &[[f32; 2]]| {
        let mut bench = Bench::default();
        bench.input(order, dims, &[-1.0, 2.0, -3.0, 4.0]);
        let out = bench.output(order, dims);
        for vector in vectors {
            bench.halves(C, &[2], vector);
        }
        bench.read(kind, params, out)
    };
    let planes = [2, 1, 2, 1];
    near(&channels(9, NCHW, &planes, &[], &[[10.0, 20.0]]), &[9.0, 12.0, 17.0, 24.0]);
    near(&channels(9, NHWC, &planes, &[], &[[10.0, 20.0]]), &[9.0, 22.0, 7.0, 24.0]);
    near(&channels(10, NCHW, &planes, &[], &[[0.5, 2.0]]), &[-0.5, 2.0, -6.0, 4.0]);
    near(&channels(15, NCHW, &planes, &[], &[[10.0, 20.0]]), &[-10.0, 20.0, -60.0, 80.0]);
    near(&channels(47, NCHW, &planes, &[], &[[10.0, 20.0], [1.0, 2.0]]), &[-9.0, 21.0, -58.0, 82.0]);
    near(&channels(45, NCHW, &planes, &[1, f(0.0)], &[[2.0, 1.0]]), &[1.0, 4.0, 0.0, 5.0]);
    near(&channels(46, NCHW, &planes, &[1, f(0.5)], &[[0.0, 1.0]]), &[-0.5, 2.0, -1.0, 5.0]);
}

fn binary(kind: u32, params: &[u32], a: &[f32], b: &[f32]) -> Vec<f32> {
    let mut bench = Bench::default();
    let n = [a.len() as u32];
    bench.input(C, &n, a);
    let out = bench.output(C, &n);
    bench.input(C, &n, b);
    bench.fake();
    bench.read(kind, params, out)
}

#[test]
fn functions_of_two_elements() {
    let (a, b) = ([6.0, -7.0, 2.0, 0.0], [4.0, 2.0, 2.0, 5.0]);
    let plain = [f(1.0), f(1.0), i(-1), 0, 0, 0];
    let expected: [(u32, [f32; 4]); 15] = [
        (12, [10.0, -5.0, 4.0, 5.0]),
        (13, [24.0, -14.0, 4.0, 0.0]),
        (14, [6.0, 2.0, 2.0, 5.0]),
        (75, [1.5, -3.5, 1.0, 0.0]),
        (76, [4.0, -7.0, 2.0, 0.0]),
        (77, [4.0, 81.0, 0.0, 25.0]),
        (78, [0.0, 0.0, 1.0, 0.0]),
        (79, [1.0, 1.0, 0.0, 1.0]),
        (80, [1.0, 0.0, 0.0, 0.0]),
        (81, [1.0, 0.0, 1.0, 0.0]),
        (82, [0.0, 1.0, 0.0, 1.0]),
        (83, [0.0, 1.0, 1.0, 1.0]),
        (85, [1.0, 1.0, 1.0, 0.0]),
        (87, [0.0, 0.0, 0.0, 1.0]),
        (89, [2.0, 1.0, 0.0, 0.0]),
    ];
    for (kind, expected) in expected {
        assert_eq!(binary(kind, &plain, &a, &b), expected, "type {kind}");
    }
    near(&binary(88, &plain, &[2.0, 9.0], &[3.0, 0.5]), &[8.0, 3.0]);
    // Coefficients, and what may follow.
    near(&binary(12, &[f(2.0), f(-1.0), i(-1), 0, 0, 0], &a, &b), &[8.0, -16.0, 2.0, -5.0]);
    near(&binary(12, &[f(1.0), f(1.0), 6, 0, 0, 0], &a, &b), &[10.0, 0.0, 4.0, 5.0]);
    near(&binary(12, &[f(1.0), f(1.0), 44, f(0.1), 0, 0], &a, &b), &[10.0, -0.5, 4.0, 5.0]);
    near(&binary(12, &[f(1.0), f(1.0), 57, 0, f(-1.0), f(6.0)], &a, &b), &[6.0, -1.0, 4.0, 5.0]);
}

#[test]
fn operands_are_repeated_along_the_last_dimensions_or_by_name() {
    let plain = [f(1.0), f(1.0), i(-1), 0, 0, 0];
    // A vector lies along the last dimension, also where a dimension of its name is as long.
    let mut bench = Bench::default();
    bench.input(NCHW, &[2, 1, 2, 1], &[1.0, 2.0, 3.0, 4.0]);
    let out = bench.output(NCHW, &[2, 1, 2, 1]);
    bench.halves(C, &[2], &[10.0, 20.0]);
    near(&bench.read(12, &plain, out), &[11.0, 22.0, 13.0, 24.0]);
    bench.buffers[2].dims = vec![1];
    near(&bench.read(12, &plain, out), &[11.0, 12.0, 13.0, 14.0]);

    // By name where it does not fit there.
    let mut bench = Bench::default();
    bench.input(NCHW, &[1, 2, 2, 1], &[1.0, 2.0, 3.0, 4.0]);
    let out = bench.output(NCHW, &[1, 2, 2, 1]);
    bench.halves(C, &[2], &[10.0, 20.0]);
    near(&bench.read(12, &plain, out), &[11.0, 12.0, 23.0, 24.0]);
    bench.buffers[2].order = Order(0x1);
    assert!(bench.why(12, &plain).contains("fit"));

    let mut bench = Bench::default();
    bench.input(C, &[3], &[1.0, 0.0, 2.0]);
    let out = bench.output(C, &[3]);
    bench.input(C, &[3], &[1.0, 2.0, 3.0]);
    bench.input(C, &[1], &[9.0]);
    near(&bench.read(90, &plain, out), &[1.0, 9.0, 3.0]);
}

#[test]
fn a_sum_may_be_written_over_its_operand() {
    let mut bench = Bench::default();
    bench.input(C, &[4], &[1.0, 2.0, 3.0, 4.0]);
    let out = bench.output(C, &[4]);
    bench.input(C, &[4], &[10.0, 20.0, 30.0, 40.0]);
    for operand in [0, 2] {
        // Also shifted by one element.
        for shift in [0, 2] {
            bench.buffers[out].offset = bench.buffers[operand].offset + shift;
            let found = bench.read(12, &[f(1.0), f(1.0), i(-1), 0, 0, 0], out);
            near(&found, &[11.0, 22.0, 33.0, 44.0]);
        }
    }
}

#[test]
fn softmax_goes_along_its_axis() {
    let mut bench = Bench::default();
    bench.input(0x43, &[2, 2], &[0.0, 1.0, 1000.0, 1000.0]);
    let out = bench.output(0x43, &[2, 2]);
    near(&bench.read(3, &[0], out), &[0.268_94, 0.731_06, 0.5, 0.5]);
    near(&bench.read(3, &[1], out), &[0.0, 0.0, 1.0, 1.0]);
    assert!(bench.why(3, &[2]).contains("axis"));
}

#[test]
fn normalisations() {
    let x = [1.0, 2.0, 3.0, 4.0, -1.0, 1.0];
    let run = |kind: u32, params: &[u32], scales: Option<&[f32]>| {
        let mut bench = Bench::default();
        bench.input(NCHW, &[2, 1, 3, 1], &x);
        let out = bench.output(NCHW, &[2, 1, 3, 1]);
        if let Some(scales) = scales {
            bench.halves(C, &[scales.len() as u32], scales);
        }
        bench.read(kind, params, out)
    };
    // Three neighbours, k = 1, alpha = 3, beta = 1.
    let half = |v: f32| u32::from(half::f16::from_f32(v).to_bits());
    let lrn = [3, half(1.0) | half(3.0) << 16, half(1.0)];
    let expected = [1.0 / 11.0, 2.0 / 21.0, 3.0 / 12.0, 4.0 / 22.0, -1.0 / 11.0, 1.0 / 18.0];
    near(&run(11, &lrn, None), &expected);
    let lengths = [11f32.sqrt(), 21f32.sqrt()];
    let expected: Vec<f32> = x.iter().enumerate().map(|(at, v)| v / lengths[at % 2]).collect();
    near(&run(61, &[f(0.0)], None), &expected);
    near(&run(35, &[0, 1, f(0.0)], Some(&[1.0])), &expected);
    let scaled: Vec<f32> = expected.iter().enumerate().map(|(at, v)| v * [1.0, 2.0, 3.0][at / 2]).collect();
    near(&run(35, &[0, 0, f(0.0)], Some(&[1.0, 2.0, 3.0])), &scaled);
    let whole: Vec<f32> = x.iter().map(|v| v / 32f32.sqrt()).collect();
    near(&run(35, &[1, 1, f(0.0)], Some(&[1.0])), &whole);
    near(&run(62, &[1, 0, 0, f(0.0)], None), &[-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]);
    let mean = 10.0 / 6.0;
    near(&run(62, &[0, 1, 0, f(0.0)], None), &x.map(|v| v - mean));
}

#[test]
fn reductions_by_name_of_dimension() {
    let mut bench = Bench::default();
    bench.input(NCHW, &[2, 2, 2, 1], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 0.0]);
    let out = bench.output(NCHW, &[1, 1, 2, 1]);
    bench.integers(&[0, 1]);
    near(&bench.read(114, &[1], out), &[2.5, 4.5]);
    near(&bench.read(113, &[1], out), &[10.0, 18.0]);
    near(&bench.read(112, &[1], out), &[4.0, 7.0]);
    near(&bench.read(105, &[1], out), &[1.0, 0.0]);
    near(&bench.read(93, &[1], out), &[1.0, 0.0]);
    bench.buffers[out].dims = vec![2];
    bench.buffers[out].strides = vec![2];
    bench.buffers[out].order = Order(C);
    near(&bench.read(114, &[0], out), &[2.5, 4.5]);
    bench.buffers[2].dims = vec![1];
    assert!(bench.why(114, &[0]).contains("results"));
}

#[test]
fn products_of_matrices() {
    // Memory order: A is 2 rows of 3, B 3 rows of 2.
    let mut bench = Bench::default();
    bench.input(0x21, &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    bench.input(0x21, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let out = bench.output(0x21, &[2, 2]);
    near(&bench.read(91, &[f(1.0), f(0.0), 0, 0, 0], out), &[22.0, 28.0, 49.0, 64.0]);
    bench.buffers[0].dims = vec![2, 3];
    bench.buffers[0].strides = vec![2, 4];
    near(&bench.read(91, &[f(0.5), f(0.0), 0, 1, 0], out), &[17.5, 22.0, 22.0, 28.0]);
    assert!(bench.why(91, &[f(1.0), f(0.0), 0, 0, 0]).contains("matrices"));

    let mut bench = Bench::default();
    bench.input(0x321, &[1, 2, 2], &[1.0, 2.0, 3.0, 4.0]);
    bench.input(0x321, &[1, 1, 1], &[10.0]);
    bench.halves(0x321, &[1, 1, 1], &[1.0]);
    let out = bench.output(0x321, &[1, 2, 2]);
    near(&bench.read(91, &[f(1.0), f(3.0), 1, 0, 1], out), &[13.0, 23.0, 33.0, 43.0]);
}

#[test]
fn long_short_term_memory() {
    let sigmoid = |v: f32| 1.0 / (1.0 + (-v).exp());
    let run = |forward: u32, out_index: usize| {
        let mut bench = Bench::default();
        bench.input(0x321, &[1, 2, 1], &[1.0, -2.0]);
        bench.input(0x43, &[1, 1], &[0.5]);
        bench.input(0x43, &[1, 1], &[0.25]);
        // Gates f, i, c, o: from the input, then from the state.
        bench.halves(C, &[8], &[0.5, 1.0, -1.0, 2.0, 0.25, -0.5, 1.5, 0.0]);
        bench.halves(C, &[4], &[0.0, 0.5, 0.0, -0.5]);
        bench.output(0x321, &[1, 2, 1]);
        bench.output(0x43, &[1, 1]);
        bench.output(0x43, &[1, 1]);
        bench.read(70, &[forward, 2, 1, 1, 3], out_index)
    };
    for forward in [1, 0] {
        let (mut h, mut c) = (0.5f32, 0.25f32);
        let mut y = [0.0; 2];
        for step in 0..2 {
            let t = if forward == 1 { step } else { 1 - step };
            let x = [1.0, -2.0][t];
            let (fg, ig) = (sigmoid(0.5 * x + 0.25 * h), sigmoid(x - 0.5 * h + 0.5));
            let (cg, og) = ((-x + 1.5 * h).tanh(), sigmoid(2.0 * x - 0.5));
            c = fg * c + ig * cg;
            h = og * c.tanh();
            y[t] = h;
        }
        near(&run(forward, 5), &y);
        near(&run(forward, 6), &[h]);
        near(&run(forward, 7), &[c]);
    }
}

#[test]
fn largest_and_smallest_elements() {
    let run = |params: &[u32], index: usize| {
        let mut bench = Bench::default();
        bench.input(0x43, &[4, 2], &[1.0, 4.0, 2.0, 3.0, 8.0, 8.0, 5.0, 6.0]);
        bench.integers(&[2]);
        bench.output(0x43, &[2, 2]);
        bench.view(DataType::S32, 0x43, &[2, 2], vec![4, 8], Location::Bss);
        bench.read(104, params, index)
    };
    assert_eq!(run(&[0, 0, 1, 1, 1], 2), [4.0, 3.0, 8.0, 8.0]);
    assert_eq!(run(&[0, 0, 1, 1, 1], 3), [1.0, 3.0, 0.0, 1.0]);
    assert_eq!(run(&[0, 1, 1, 1, 1], 2), [1.0, 2.0, 5.0, 6.0]);
    assert_eq!(run(&[0, 0, 2, 1, 1], 3), [1.0, 3.0, 0.0, 1.0]);
    assert_eq!(run(&[0, 1, 2, 1, 1], 3), [0.0, 2.0, 2.0, 3.0]);
}
