//! Copies, permutations, paddings, slices, changes of type and of size.
use super::*;

#[test]
fn copies_between_strides_and_within_their_own_memory() {
    let values = ramp(12);
    let mut bench = Bench::default();
    bench.strided(NCHW, &[3, 2, 2, 1], vec![2, 16, 32, 64], &values);
    let out = bench.view(DataType::F16, NCHW, &[3, 2, 2, 1], vec![2, 6, 12, 24], Location::Bss);
    near(&bench.read(19, &[], out), &values);
    // Channels last at the target, and every overlap of source and target.
    bench.buffers[out].strides = vec![4, 12, 2, 24];
    near(&bench.read(19, &[], out), &values);
    for offset in (0..64).step_by(2) {
        bench.buffers[0].offset = 64;
        bench.buffers[out].offset = 32 + offset;
        near(&bench.read(19, &[], out), &values);
    }
}

#[test]
fn copies_are_exact_for_integers() {
    let mut bench = Bench::default();
    bench.integers(&[i32::MAX, i32::MIN, 16_777_217]);
    let out = bench.view(DataType::S32, C, &[3], vec![4], Location::Bss);
    let program = bench.prepare(19, &[]).expect("known");
    let mut arena = program.arena();
    program.run(&mut arena, &[], &mut []);
    let (_, graph) = bench.graph(19, &[]);
    let layout = Layout::new(&graph).expect("small");
    let mut found = [0; 3];
    Place::resolve(&bench.buffers[out], &layout, &[]).expect("inside").read_i32(&arena.words, &mut found);
    assert_eq!(found, [i32::MAX, i32::MIN, 16_777_217]);
}

#[test]
fn permutation_names_the_input_dimension_of_each_output_dimension() {
    let mut bench = Bench::default();
    bench.input(NCHW, &[3, 2, 1, 1], &ramp(6));
    let out = bench.output(NCHW, &[2, 1, 3, 1]);
    let params = [1, 2, 0, 3].map(i).into_iter().chain([i(-1); 4]).collect::<Vec<_>>();
    near(&bench.read(34, &params, out), &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert!(bench.why(34, &[1, 1, 0, 3]).contains("permutation"));
    assert!(bench.why(34, &[1, 9, 0, 3]).contains("permutation"));
    assert!(bench.why(34, &[1]).contains("missing"));
}

#[test]
fn conversion_scales_and_changes_the_order() {
    let mut bench = Bench::default();
    // Rows of bytes that begin at odd places.
    let bytes = bench.view(DataType::U8, NCHW, &[3, 2, 1, 1], vec![1, 3, 6, 6], Location::Bss);
    bench.values.push((bytes, vec![0.0, 1.0, 2.0, 127.0, 254.0, 255.0]));
    let out = bench.output(NCHW, &[3, 2, 1, 1]);
    near(&bench.read(111, &[f(2.0), f(-1.0), 0, 1], out), &[-1.0, 1.0, 3.0, 253.0, 507.0, 509.0]);
    bench.buffers[bytes].strides = vec![1, 5, 10, 10];
    near(&bench.read(111, &[f(1.0), f(0.0), 0, 1], out), &[0.0, 1.0, 2.0, 127.0, 254.0, 255.0]);

    let mut bench = Bench::default();
    bench.input(NHWC, &[3, 2, 1, 1], &ramp(6));
    let out = bench.view(DataType::F32, NCHW, &[2, 1, 3, 1], vec![4, 8, 8, 24], Location::Bss);
    near(&bench.read(111, &[f(1.0), f(0.0), 0, 1], out), &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);

    let mut bench = Bench::default();
    bench.input(C, &[5], &[-7.0, 1.75, 300.0, f32::NAN, 128.0]);
    let out = bench.view(DataType::U8, C, &[5], vec![1], Location::Bss);
    assert_eq!(bench.read(111, &[f(1.0), f(0.0), 0, 1], out), [0.0, 1.0, 255.0, 0.0, 128.0]);
}

#[test]
fn padding_in_four_ways() {
    let mut bench = Bench::default();
    bench.input(NCHW, &[3, 1, 1, 1], &[1.0, 2.0, 3.0]);
    let out = bench.output(NCHW, &[7, 1, 1, 1]);
    let params = |mode: u32| [2, 2, 0, 0, 0, 0, 0, 0, f(9.0), mode];
    assert_eq!(bench.read(71, &params(0), out), [9.0, 9.0, 1.0, 2.0, 3.0, 9.0, 9.0]);
    assert_eq!(bench.read(71, &params(1), out), [1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0]);
    assert_eq!(bench.read(71, &params(2), out), [3.0, 2.0, 1.0, 2.0, 3.0, 2.0, 1.0]);
    assert_eq!(bench.read(71, &params(3), out), [2.0, 1.0, 1.0, 2.0, 3.0, 3.0, 2.0]);
    assert!(bench.why(71, &params(4)).contains("padding"));

    let mut bench = Bench::default();
    bench.input(NCHW, &[1, 2, 1, 1], &[1.0, 2.0]);
    let out = bench.output(NCHW, &[2, 3, 1, 1]);
    assert_eq!(bench.read(71, &[1, 0, 1, 0, 0, 0, 0, 0, 0, 0], out), [0.0, 0.0, 0.0, 1.0, 0.0, 2.0]);
}

#[test]
fn zero_stuffing() {
    let mut bench = Bench::default();
    bench.input(NCHW, &[2, 2, 1, 1], &[1.0, 2.0, 3.0, 4.0]);
    let out = bench.output(NCHW, &[4, 3, 1, 1]);
    // Factors 2, 2, 1; one column before.
    let expected = [0.0, 1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0, 4.0];
    assert_eq!(bench.read(73, &[2, 2, 1, 1, 0, 0, 0, 0, 0], out), expected);
}

#[test]
fn tiles_and_rows() {
    let mut bench = Bench::default();
    bench.input(0x21, &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let out = bench.output(0x21, &[4, 2]);
    assert_eq!(bench.read(28, &[0, 2], out), [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
    bench.buffers[out].dims = vec![2, 4];
    bench.buffers[out].strides = vec![2, 4];
    assert_eq!(bench.read(28, &[1, 2], out), [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);

    let mut bench = Bench::default();
    bench.input(0x21, &[2, 3], &ramp(6));
    let out = bench.output(0x21, &[2, 2]);
    bench.integers(&[2, -3]);
    assert_eq!(bench.read(100, &[1], out), [4.0, 5.0, 0.0, 1.0]);
    let mut bench = Bench::default();
    bench.input(0x21, &[2, 3], &ramp(6));
    let out = bench.output(0x21, &[3, 3]);
    bench.integers(&[1, 0, 77]);
    // An index out of range is nobody's memory but the input's.
    assert_eq!(bench.read(100, &[0], out), [1.0, 0.0, 1.0, 3.0, 2.0, 3.0, 5.0, 4.0, 5.0]);
}

#[test]
fn strided_slices() {
    let run = |dims: &[u32], begin: &[i32], end: &[i32], strides: &[i32], masks: [u32; 2]| {
        let mut bench = Bench::default();
        bench.input(0x43, &[4, 2], &ramp(8));
        bench.integers(begin);
        bench.integers(end);
        bench.integers(strides);
        let out = bench.output(0x43, dims);
        bench.read(133, &[masks[0], masks[1], 0, 0, 0], out)
    };
    // IE order: N first, then C.
    assert_eq!(run(&[2, 1], &[1, 1], &[2, 3], &[1, 1], [3, 3]), [5.0, 6.0]);
    assert_eq!(run(&[2, 2], &[0, 0], &[2, 4], &[1, 2], [3, 3]), [0.0, 2.0, 4.0, 6.0]);
    assert_eq!(run(&[3, 2], &[0, -3], &[2, 4], &[1, 1], [3, 3]), [1.0, 2.0, 3.0, 5.0, 6.0, 7.0]);
    assert_eq!(run(&[4, 1], &[0, 3], &[1, 1], &[1, -1], [1, 1]), [3.0, 2.0, 1.0, 0.0]);
    // Axis 1 (C) has no bits: the whole of it.
    assert_eq!(run(&[4, 1], &[1, 2], &[2, 3], &[1, 1], [1, 1]), [4.0, 5.0, 6.0, 7.0]);
    // Without bits nothing counts.
    assert_eq!(run(&[4, 2], &[1, 1], &[2, 3], &[1, 1], [0, 0]), ramp(8));
}

#[test]
fn concatenation_fills_the_output() {
    let mut bench = Bench::default();
    bench.input(0x21, &[1, 2], &[1.0, 2.0]);
    bench.input(0x21, &[2, 2], &[3.0, 4.0, 5.0, 6.0]);
    let out = bench.output(0x21, &[3, 2]);
    assert_eq!(bench.read(128, &[0, 2], out), [1.0, 3.0, 4.0, 2.0, 5.0, 6.0]);
    bench.buffers[out].dims = vec![2, 2];
    assert!(bench.prepare(128, &[0, 2]).is_err());
}

#[test]
fn nearest_and_linear_resizing() {
    let mut bench = Bench::default();
    bench.input(NCHW, &[2, 1, 1, 1], &[1.0, 3.0]);
    let out = bench.output(NCHW, &[4, 1, 1, 1]);
    // asymmetric, floor
    assert_eq!(bench.read(72, &[0, f(-1.0), 0, 2, 2], out), [1.0, 1.0, 3.0, 3.0]);
    // align_corners, round_prefer_ceil: 0, 1/3, 2/3, 1
    assert_eq!(bench.read(72, &[0, f(-1.0), 0, 4, 1], out), [1.0, 1.0, 3.0, 3.0]);
    // half_pixel: −1/4, 1/4, 3/4, 5/4
    near(&bench.read(67, &[0, 1, 0], out), &[1.0, 1.5, 2.5, 3.0]);
    near(&bench.read(67, &[1, 1, 0], out), &[1.0, 1.0 + 2.0 / 3.0, 1.0 + 4.0 / 3.0, 3.0]);
    near(&bench.read(67, &[0, 3, 2], out), &[1.0, 2.0, 3.0, 3.0]);
    assert!(bench.why(67, &[0, 2, 0]).contains("mode"));
    assert!(bench.why(72, &[0, f(-1.0), 0, 9, 0]).contains("coordinates"));

    let mut bench = Bench::default();
    bench.input(NCHW, &[4, 2, 1, 1], &ramp(8));
    let out = bench.output(NCHW, &[2, 1, 1, 1]);
    // half_pixel: columns 0.5 and 2.5, row 0.5.
    near(&bench.read(67, &[0, 1, 0], out), &[2.5, 4.5]);
}

#[test]
fn broadcasts_by_place_or_by_list() {
    // Input C=2, H=1, W=2 to N=2, C=2, H=2, W=2: aligned at the minor end.
    let mut bench = Bench::default();
    bench.input(0x321, &[2, 1, 2], &[1.0, 2.0, 3.0, 4.0]);
    bench.integers(&[2, 2, 2, 2]);
    let out = bench.output(NCHW, &[2, 2, 2, 2]);
    let image = [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0];
    assert_eq!(bench.read(129, &[0], out), [image, image].concat());
    assert_eq!(bench.read(129, &[2], out), [image, image].concat());
    assert!(bench.why(129, &[3]).contains("mode"));
    bench.buffers[out].dims = vec![2, 2, 3, 1];
    bench.buffers[out].strides = vec![2, 4, 8, 24];
    assert!(bench.why(129, &[0]).contains("repeated"));

    // Input axes 0, 1 become axes 0, 2 of N, C, W.
    let mut bench = Bench::default();
    bench.input(0x21, &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    bench.integers(&[2, 2, 2]);
    bench.integers(&[0, 2]);
    let out = bench.output(0x321, &[2, 2, 2]);
    assert_eq!(bench.read(129, &[1], out), [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
    bench.consts[12..16].copy_from_slice(&9i32.to_le_bytes());
    assert!(bench.prepare(129, &[1]).is_err());
}

#[test]
fn loops_must_be_whole_and_stay_inside() {
    let mut bench = Bench::default();
    bench.input(0x21, &[3, 4], &ramp(12));
    let row = bench.output(0x21, &[3, 1]);
    // Turns, stages, one rule: axis, start, stride, end.
    let start = |turns: i32, start: i32, stride: i32| [i(turns), 1, 1, 1, i(start), i(stride), i(-1)];
    assert!(bench.why(119, &start(4, 0, 1)).contains("no end"));
    assert!(bench.why(119, &start(5, 0, 1)).contains("leave"));
    assert!(bench.why(119, &start(4, -1, 1)).contains("leave"));
    assert!(bench.why(119, &start(2, 0, i32::MAX)).contains("leave"));
    assert!(bench.why(119, &start(-1, 0, 1)).contains("run time"));
    assert!(bench.why(119, &start(0, 0, 1)).contains("parameter 0"));
    assert!(bench.why(120, &[i(4), 1, 1, 0, 1, i(-1)]).contains("ends no loop"));
    bench.buffers[row].dims = vec![2, 1];
    assert!(bench.why(119, &start(4, 0, 1)).contains("slices"));
}
