use super::*;
use crate::blob::Order;

/// NCHW with `w` innermost, packed, or with `gap` bytes after each row.
fn tensor(dtype: DataType, [c, h, w]: [u32; 3], gap: u32) -> IoTensor {
    let size = dtype.bytes() as u32;
    let row = w * size + gap;
    IoTensor {
        name: "data".into(),
        dtype,
        order: Order(0x4321),
        dims: vec![w, h, c, 1],
        strides: vec![size, row, row * h, row * h * c],
        offset: 0,
    }
}

fn graph(inputs: Vec<IoTensor>, outputs: Vec<IoTensor>, batch: u32) -> Graph {
    let bytes = |tensors: &[IoTensor]| tensors.iter().map(|t| t.offset + t.bytes() * batch as usize).max();
    Graph {
        version: (6, 0),
        file_bytes: 0,
        input_bytes: bytes(&inputs).unwrap_or(0),
        output_bytes: bytes(&outputs).unwrap_or(0),
        inputs,
        outputs,
        batch,
        bss_bytes: 0,
        cmx_slices: 0,
        shaves: 0,
        const_offset: 0,
        stages: Vec::new(),
    }
}

fn prepare(graph: &Graph, recipe: &Recipe, numbers: Numbers) -> Vec<u8> {
    let mut element = vec![0xaa; graph.input_bytes];
    recipe.prepare(graph, &[numbers], &mut element, &mut Scratch::default()).expect("good numbers");
    element
}

/// The definition: number by number, in doubles where they are exact.
fn expected(recipe: &InputRecipe, [c, h, w]: [usize; 3], x: impl Fn(usize) -> f32) -> Vec<f32> {
    let mut out = Vec::new();
    for channel in 0..c {
        let from = match (recipe.bgr, channel) {
            (true, 0) => c - 1,
            (true, last) if last == c - 1 => 0,
            _ => channel,
        };
        let of = |values: &[f32], none| match values.len() {
            0 => none,
            1 => values[0],
            _ => values[channel],
        };
        for pixel in 0..h * w {
            let at = match recipe.layout {
                Layout::Planar => from * h * w + pixel,
                Layout::Interleaved => pixel * c + from,
            };
            out.push((x(at) - of(&recipe.mean, 0.0)) / of(&recipe.scale, 1.0));
        }
    }
    out
}

#[test]
fn every_way_agrees_with_the_definition() {
    let shape = [3usize, 5, 7];
    let pixels: Vec<u8> = (0..105).map(|i| (i * 37 % 251) as u8).collect();
    let singles: Vec<f32> = pixels.iter().map(|&x| f32::from(x)).collect();
    let halves: Vec<f16> = singles.iter().map(|&x| f16::from_f32(x)).collect();
    let sources = [
        Numbers::U8(pixels.clone().into()),
        Numbers::F16(halves.into()),
        Numbers::F32(singles.clone().into()),
    ];
    let means = [vec![], vec![16.0], vec![104.0, 117.0, 123.0]];
    // Powers of two, so that the factor 1/scale is exact and so is every result before it is rounded.
    let scales = [vec![], vec![2.0], vec![0.5, 4.0, 64.0]];
    for dtype in [DataType::F16, DataType::F32, DataType::U8] {
        for gap in [0, 4] {
            let tensor = tensor(dtype, [3, 5, 7], gap);
            let graph = graph(vec![tensor.clone()], Vec::new(), 1);
            for (mean, scale) in means.iter().flat_map(|m| scales.iter().map(move |s| (m, s))) {
                for (layout, bgr) in [
                    (Layout::Planar, false),
                    (Layout::Planar, true),
                    (Layout::Interleaved, false),
                    (Layout::Interleaved, true),
                ] {
                    let input =
                        InputRecipe { layout, mean: mean.clone(), scale: scale.clone(), bgr, resize: None };
                    let want = expected(&input, shape, |at| singles[at]);
                    let recipe = Recipe { inputs: vec![input], top: 0 };
                    for source in &sources {
                        let element = prepare(&graph, &recipe, source.clone());
                        let packed = layout::gather(&tensor, &element);
                        let mut found = Vec::new();
                        append(dtype, &packed, &mut found);
                        for (at, (found, &want)) in found.iter().zip(&want).enumerate() {
                            let want = match dtype {
                                DataType::F16 => f16::from_f32(want).to_f32(),
                                DataType::U8 => want.round_ties_even().clamp(0.0, 255.0),
                                _ => want,
                            };
                            assert_eq!(*found, want, "{dtype:?} gap {gap} {recipe:?} {source:?} at {at}");
                        }
                        if gap > 0 {
                            let row = 7 * dtype.bytes();
                            assert_eq!(element[row..row + 4], [0xaa; 4], "gaps are nobody's");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn batch_elements_go_behind_each_other() {
    let graph = graph(vec![tensor(DataType::F16, [1, 1, 2], 0)], Vec::new(), 3);
    let element = prepare(&graph, &Recipe::default(), Numbers::U8([1, 2, 3, 4, 5, 6].into()));
    let mut values = Vec::new();
    append(DataType::F16, &element, &mut values);
    assert_eq!(values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
}

#[test]
fn a_tensor_at_an_odd_place_is_filled_all_the_same() {
    let mut odd = tensor(DataType::F16, [1, 1, 3], 0);
    odd.offset = 1;
    let graph = graph(vec![odd], Vec::new(), 1);
    let element = prepare(&graph, &Recipe::default(), Numbers::F32([1.0, 2.0, 3.0].into()));
    let mut values = Vec::new();
    append(DataType::F16, &element[1..7], &mut values);
    assert_eq!(values, [1.0, 2.0, 3.0]);
}

#[test]
fn a_resize_hook_makes_the_size() {
    let graph = graph(vec![tensor(DataType::U8, [1, 1, 4], 0)], Vec::new(), 1);
    let doubled = |numbers: &Numbers, tensor: &IoTensor| match numbers {
        Numbers::U8(v) => {
            Ok(Numbers::U8(v.iter().flat_map(|&x| [x, x]).take(layout::elements(tensor)).collect()))
        }
        _ => Err(invalid("bytes only".into())),
    };
    let input = InputRecipe { resize: Some(Arc::new(doubled)), ..InputRecipe::default() };
    let recipe = Recipe { inputs: vec![input], top: 0 };
    assert_eq!(prepare(&graph, &recipe, Numbers::U8([7, 9].into())), [7, 7, 9, 9]);
    let mut element = vec![0; 4];
    let refused =
        recipe.prepare(&graph, &[Numbers::F32([1.0].into())], &mut element, &mut Scratch::default());
    assert!(refused.is_err_and(|e| e.to_string().contains("bytes only")));
}

#[test]
fn what_does_not_fit_is_named() {
    let graph = graph(vec![tensor(DataType::U8, [3, 1, 2], 0)], Vec::new(), 1);
    let with = |mean: &[f32], scale: &[f32]| Recipe {
        inputs: vec![InputRecipe { mean: mean.into(), scale: scale.into(), ..InputRecipe::default() }],
        top: 0,
    };
    let refused = |recipe: &Recipe, numbers: &[Numbers]| {
        let mut element = vec![0; graph.input_bytes];
        let outcome = recipe.prepare(&graph, numbers, &mut element, &mut Scratch::default());
        outcome.expect_err("it does not fit").to_string()
    };
    let six = || Numbers::U8([0; 6].into());
    for (recipe, numbers, word) in [
        (with(&[1.0, 2.0], &[]), vec![six()], "expected 1 or 3 means, found 2"),
        (with(&[], &[0.0]), vec![six()], "scales other than 0"),
        (with(&[f32::NAN], &[]), vec![six()], "finite means"),
        (with(&[], &[]), vec![Numbers::U8([0; 5].into())], "expected 6 numbers, found 5"),
        (with(&[], &[]), vec![six(), six()], "numbers for 2 inputs were given, the network has 1"),
        (Recipe { inputs: vec![InputRecipe::default(); 2], top: 0 }, vec![six()], "2 inputs described"),
    ] {
        let said = refused(&recipe, &numbers);
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn outputs_become_singles_and_the_largest_are_found() {
    let output = tensor(DataType::F16, [4, 1, 1], 0);
    let graph = graph(Vec::new(), vec![output], 1);
    let bytes: Vec<u8> =
        [0.5f32, -1.0, 3.0, 0.5].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
    let recipe = Recipe { top: 3, ..Recipe::default() };
    let finished = recipe.finish(&graph, &[&bytes]);
    assert_eq!(finished[0].values, [0.5, -1.0, 3.0, 0.5]);
    assert_eq!(finished[0].top, [(2, 3.0), (0, 0.5), (3, 0.5)], "equal ones in their order");
    assert_eq!(largest(&[f32::NAN, 1.0], 5), [(1, 1.0)]);
    assert!(largest(&[1.0], 0).is_empty());
}

proptest::proptest! {
    #[test]
    fn the_largest_are_those_of_a_sort(values in proptest::collection::vec(-100i32..100, 0..60), count in 0usize..12) {
        let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
        let mut sorted: Vec<(usize, f32)> = values.iter().copied().enumerate().collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
        sorted.truncate(count);
        proptest::prop_assert_eq!(largest(&values, count), sorted);
    }
}

#[test]
fn one_element_packed_is_what_a_whole_input_is_made_of() {
    let recipe = InputRecipe {
        layout: Layout::Interleaved,
        mean: vec![1.0, 2.0, 3.0],
        scale: vec![2.0],
        bgr: true,
        ..InputRecipe::default()
    };
    let pixels = Numbers::U8((0..3 * 5 * 7).map(|n| n as u8).collect());
    for (dtype, gap) in [(DataType::F16, 0), (DataType::F16, 6), (DataType::F32, 4), (DataType::U8, 1)] {
        let tensor = tensor(dtype, [3, 5, 7], gap);
        let graph = graph(vec![tensor.clone()], Vec::new(), 1);
        let whole = Recipe { inputs: vec![recipe.clone()], top: 0 };
        let mut element = vec![0xaa; graph.input_bytes];
        let packed = recipe.packed(&tensor, &pixels).expect("good numbers");
        layout::scatter(&tensor, &packed, &mut element);
        assert_eq!(element, prepare(&graph, &whole, pixels.clone()), "{dtype:?}, gaps of {gap}");
    }
    let few = Numbers::U8([1, 2].into());
    let error = recipe.packed(&tensor(DataType::U8, [3, 5, 7], 0), &few).expect_err("too few");
    assert!(error.to_string().contains("expected 105 numbers, found 2"), "{error}");
}
