//! The `execute` engine against what the OpenVINO CPU plugin computes in FP32 for the same network and input.
//!
//! Runs over the committed models, and over every folder in `NCS2_MODELS` (separated by `:`). `NCS2_REPEATS` says how
//! often each is run for the best time; those are times of this machine's CPU, not of a stick.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Instant;

use half::f16;
use ncs2::blob::{Blob, DataType, Graph, IoTensor, Location, NceOp, Order, PoolKind, StageKind};
use ncs2_device::execute::{Program, Threads};
use npyz::{DType, NpyFile};
use proptest::prelude::*;

/// Largest accepted difference, of the largest reference value: FP16 storage explains 0.4 %.
const TOLERANCE: f32 = 0.01;

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models")
}

fn folders() -> Vec<PathBuf> {
    let more = std::env::var_os("NCS2_MODELS");
    std::iter::once(committed()).chain(more.iter().flat_map(std::env::split_paths)).collect()
}

fn blobs(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("folder can be listed").path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "blob"));
    paths.sort();
    paths
}

/// Shape and values of an array file; `None` when there is no such file.
fn array(path: &Path) -> Option<(Vec<u64>, Vec<f32>)> {
    let file = NpyFile::new(BufReader::new(File::open(path).ok()?)).expect("an array file");
    let shape = file.shape().to_vec();
    let DType::Plain(dtype) = file.dtype() else { panic!("{}: structured array", path.display()) };
    let values = match dtype.to_string().trim_start_matches(['<', '|', '>']) {
        "f2" => file.into_vec::<f16>().expect("f16 array").into_iter().map(f16::to_f32).collect(),
        "f4" => file.into_vec::<f32>().expect("f32 array"),
        "u1" => file.into_vec::<u8>().expect("u8 array").into_iter().map(f32::from).collect(),
        "i4" => file.into_vec::<i32>().expect("i32 array").into_iter().map(|v| v as f32).collect(),
        other => panic!("{}: element type {other}", path.display()),
    };
    Some((shape, values))
}

fn beside(blob: &Path, way: &str, tensor: &str) -> PathBuf {
    PathBuf::from(format!("{}.{way}.{tensor}.npy", blob.with_extension("").display()))
}

/// Byte offsets of a tensor's elements in the order of its shape (row-major), batch first.
fn positions(tensor: &IoTensor, batch: usize) -> Vec<usize> {
    let order: Vec<usize> = if tensor.dims.len() >= 6 {
        (0..tensor.dims.len()).rev().collect()
    } else {
        [4, 3, 5, 2, 1].into_iter().filter_map(|digit| tensor.order.position(digit)).collect()
    };
    let mut at: Vec<usize> = (0..batch).map(|b| tensor.offset + b * tensor.bytes()).collect();
    for d in order {
        let (dim, stride) = (tensor.dims[d] as usize, tensor.strides[d] as usize);
        at = at.into_iter().flat_map(|base| (0..dim).map(move |i| base + i * stride)).collect();
    }
    at
}

fn pack(tensor: &IoTensor, batch: usize, values: &[f32], element: &mut [u8]) {
    let at = positions(tensor, batch);
    assert_eq!(at.len(), values.len(), "elements of input {}", tensor.name);
    for (&at, &value) in at.iter().zip(values) {
        match tensor.dtype {
            DataType::F16 => element[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            DataType::F32 => element[at..at + 4].copy_from_slice(&value.to_le_bytes()),
            DataType::S32 => element[at..at + 4].copy_from_slice(&(value as i32).to_le_bytes()),
            DataType::U8 => element[at] = value as u8,
            DataType::I8 => element[at] = value as i8 as u8,
        }
    }
}

fn unpack(tensor: &IoTensor, batch: usize, element: &[u8]) -> Vec<f32> {
    let word = |at: usize| [element[at], element[at + 1], element[at + 2], element[at + 3]];
    let value = |at: usize| match tensor.dtype {
        DataType::F16 => f16::from_le_bytes([element[at], element[at + 1]]).to_f32(),
        DataType::F32 => f32::from_le_bytes(word(at)),
        DataType::S32 => i32::from_le_bytes(word(at)) as f32,
        DataType::U8 => f32::from(element[at]),
        DataType::I8 => f32::from(element[at] as i8),
    };
    positions(tensor, batch).into_iter().map(value).collect()
}

fn top(values: &[f32]) -> usize {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap_or(0)
}

/// The input element of a blob from the arrays beside it.
fn input_of(path: &Path, graph: &Graph) -> Option<Vec<u8>> {
    let mut element = vec![0; graph.input_bytes];
    for tensor in &graph.inputs {
        let (_, values) = array(&beside(path, "in", &tensor.name))?;
        pack(tensor, graph.batch as usize, &values, &mut element);
    }
    Some(element)
}

#[test]
fn every_model_agrees_with_the_reference() {
    let repeats: usize = std::env::var("NCS2_REPEATS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let mut compared = 0;
    println!(
        "{:24} {:>8} {:>7} {:>6} {:>9} {:>9}",
        "model", "output", "error %", "top-1", "first ms", "best ms"
    );
    for path in folders().iter().flat_map(|folder| blobs(folder)) {
        let name = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        let blob = Blob::open(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let graph = blob.graph();
        let program = Program::prepare(blob.bytes(), graph).unwrap_or_else(|e| panic!("{name}: {e}"));
        let Some(input) = input_of(&path, graph) else {
            println!("{name:24} no input array beside it");
            continue;
        };
        let mut output = vec![0; graph.output_bytes];
        let mut arena = program.arena();
        // Memory that other work left, full of NaN: nothing that counts may come of it.
        arena.fill(0x7E00);
        let start = Instant::now();
        program.run(&mut arena, &input, &mut output);
        let first = start.elapsed();
        let mut again = output.clone();
        let best = (0..repeats).map(|_| {
            let start = Instant::now();
            program.run(&mut arena, &input, &mut again);
            start.elapsed()
        });
        let best = best.min().unwrap_or(first);
        assert_eq!(output, again, "{name}: another run gives another answer");
        for threads in [Threads::One, Threads::All] {
            program.run_on(threads, &mut arena, &input, &mut again);
            assert_eq!(output, again, "{name}: the answer depends on the number of threads");
        }

        for tensor in &graph.outputs {
            let Some((shape, reference)) = array(&beside(&path, "out", &tensor.name)) else { continue };
            let values = unpack(tensor, graph.batch as usize, &output);
            assert_eq!(values.len(), reference.len(), "{name}: {} has shape {shape:?}", tensor.name);
            let largest = reference.iter().fold(0f32, |m, v| m.max(v.abs()));
            let error = values.iter().zip(&reference).fold(0f32, |m, (a, b)| {
                let error = (a - b).abs() / largest;
                if error.is_nan() { f32::INFINITY } else { m.max(error) }
            });
            let agrees = top(&values) == top(&reference);
            println!(
                "{name:24} {:>8} {:7.3} {:>6} {:9.2} {:9.2}",
                tensor.name,
                error * 100.0,
                if agrees { "same" } else { "other" },
                first.as_secs_f64() * 1e3,
                best.as_secs_f64() * 1e3
            );
            assert!(error <= TOLERANCE, "{name}: {} is off by {:.3} %", tensor.name, error * 100.0);
            assert!(agrees || tensor.name != "prob", "{name}: another class comes first");
            compared += 1;
        }
    }
    assert!(compared >= 14, "only {compared} outputs were compared");
}

#[test]
fn stages_can_be_watched_and_answers_do_not_depend_on_it() {
    let path = committed().join("tiny_u8_s1.blob");
    let blob = Blob::open(&path).expect("committed model");
    let graph = blob.graph();
    let program = Program::prepare(blob.bytes(), graph).expect("known stages");
    let input = input_of(&path, graph).expect("committed array");
    let mut plain = vec![0; graph.output_bytes];
    program.run(&mut program.arena(), &input, &mut plain);

    let mut watched = vec![0; graph.output_bytes];
    let mut seen = Vec::new();
    let mut last = Vec::new();
    program.run_stages(&mut program.arena(), &input, &mut watched, |run| {
        seen.push((run.stage, run.kind));
        last = run.output(0).expect("every stage writes something");
        let dims = run.output_dims(0).expect("every stage writes something");
        assert_eq!(last.len(), dims.iter().product::<usize>());
        assert!(run.output(run.outputs()).is_none());
    });
    let mut expected = Vec::new();
    for (index, stage) in graph.stages.iter().enumerate() {
        expected.push((index, stage.kind));
        expected.extend(stage.injected.iter().map(|s| (index, s.kind)));
    }
    assert_eq!(seen, expected);
    assert_eq!(plain, watched);
    assert_eq!(last, unpack(&graph.outputs[0], 1, &plain), "the last stage writes the output");
}

/// A graph with FP32 inputs and outputs and a reduction, which no array accompanies.
#[test]
fn a_graph_with_fp32_tensors_gives_probabilities() {
    let path = committed().join("../../golden/01.blob");
    let blob = Blob::open(&path).expect("committed blob");
    let graph = blob.graph();
    let program = Program::prepare(blob.bytes(), graph).expect("known stages");
    let (_, values) = array(&path.with_file_name("01.in0.npy")).expect("committed array");
    let mut input = vec![0; graph.input_bytes];
    pack(&graph.inputs[0], 1, &values, &mut input);
    let mut output = vec![0; graph.output_bytes];
    let mut arena = program.arena();
    arena.fill(0x7E00);
    program.run(&mut arena, &input, &mut output);
    let values = unpack(&graph.outputs[0], 1, &output);
    assert!((values.iter().sum::<f32>() - 1.0).abs() < 0.01, "{values:?}");
    assert!(values.iter().all(|v| (0.0..=1.0).contains(v)), "{values:?}");
    input.fill(0);
    program.run(&mut arena, &input, &mut output);
    assert_ne!(unpack(&graph.outputs[0], 1, &output), values, "the input does not matter");
}

#[test]
fn an_unknown_stage_is_refused_by_name() {
    let blob = Blob::open(committed().join("tiny_u8_s1.blob")).expect("committed model");
    let mut graph = blob.graph().clone();
    let index = graph.stages.len() - 1;
    graph.stages[index].kind = StageKind(69);
    let Err(refusal) = Program::prepare(blob.bytes(), &graph) else { panic!("MTCNN was accepted") };
    assert_eq!((refusal.stage, refusal.kind), (index, StageKind(69)));
    let text = refusal.to_string();
    assert!(text.contains(&format!("stage {index} (")) && text.contains("MTCNN"), "{text}");
}

#[test]
fn wrong_element_sizes_do_not_panic() {
    let blob = Blob::open(committed().join("tiny_u8_s1.blob")).expect("committed model");
    let program = Program::prepare(blob.bytes(), blob.graph()).expect("known stages");
    let mut arena = program.arena();
    for (input, output) in [(0, 0), (1, 1), (5000, 3), (3, 5000)] {
        program.run(&mut arena, &vec![1; input], &mut vec![0; output]);
    }
}

/// `PROPTEST_CASES` for a longer search.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    /// Fields of the parsed graph overwritten, as no parser would let them pass, and parameters: `prepare` refuses, or
    /// the graph runs to its end.
    #[test]
    fn damaged_graphs_never_panic(
        model in 0usize..6,
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0usize..24, any::<prop::sample::Index>(), any::<u32>()), 1..5),
    ) {
        let name = ["tiny_fp16_s2", "tiny_u8_s1", "lstm_fp16_s1", "swconv_fp16_s1", "ssd_head_u8_s1", "mlp_fp16_s1"][model];
        let mut bytes = std::fs::read(committed().join(format!("{name}.blob"))).expect("committed model");
        let mut graph = Graph::parse(&bytes).expect("committed model");
        for (stage, what, index, value) in damage {
            let count = graph.stages.len();
            let stage = &mut graph.stages[stage.index(count)];
            let small = value % 12;
            let wild = [0, 1, 3, 17, 64, 255, 4096, 1 << 16, 1 << 24, 1 << 31, u32::MAX, value][small as usize];
            let buffers = stage.buffers.len();
            let view = &mut stage.buffers[index.index(buffers)];
            if view.dims.is_empty() {
                continue;
            }
            let d = index.index(view.dims.len().min(view.strides.len()));
            match what {
                0 => stage.kind = StageKind(value % 142),
                1 => view.dims[d] = wild,
                2 => view.dims[d] = view.dims[d].wrapping_add(small).wrapping_sub(6),
                3 => view.strides[d] = wild,
                4 => view.strides[d] = view.strides[d].wrapping_mul(small),
                5 => view.offset = wild as usize,
                6 => view.offset = view.offset.wrapping_add(small as usize * 2).wrapping_sub(12),
                7 => view.order = Order([0x1, 0x3, 0x21, 0x43, 0x321, 0x213, 0x4321, 0x4213, 0x3333, 0, wild, value][small as usize]),
                8 => view.dtype = [DataType::F16, DataType::U8, DataType::S32, DataType::F32, DataType::I8][small as usize % 5],
                9 => {
                    use Location::{Blob, Bss, Cmx, Input, None, Output};
                    view.location = [None, Input(0), Input(9), Output(0), Output(9), Blob, Bss, Cmx][small as usize % 8];
                }
                10 => view.dims.truncate(d),
                11 => (view.dims, view.strides) = (vec![small; d + 1], vec![wild; d + 1]),
                12 => stage.buffers.truncate(index.index(buffers + 1).max(1)),
                13 => stage.buffers.swap(0, index.index(buffers)),
                14..=17 => {
                    let words = stage.params.len() / 4;
                    if words > 0 {
                        let at = stage.params.start + index.index(words) * 4;
                        let new = if what < 16 { wild } else { small };
                        bytes[at..at + 4].copy_from_slice(&new.to_le_bytes());
                    }
                }
                _ => {
                    let Some(nce) = &mut stage.nce else { continue };
                    match what {
                        18 => nce.kernel = (wild, small),
                        19 => nce.stride = wild,
                        20 => nce.pad = [None, Some(0), Some(15), Some(value)][small as usize % 4],
                        21 => nce.input = small as usize,
                        22 => nce.descriptors[0].channels = wild,
                        _ => nce.op = [NceOp::Conv, NceOp::ConvPool, NceOp::Pool(PoolKind::Max), NceOp::Pool(PoolKind::Average), NceOp::FullyConnected][small as usize % 5],
                    }
                }
            }
        }
        let Ok(program) = Program::prepare(&bytes, &graph) else { return Ok(()) };
        if program.work() < 1 << 28 {
            let mut output = vec![0; graph.output_bytes];
            program.run(&mut program.arena(), &vec![1; graph.input_bytes], &mut output);
        }
    }

    /// Words of the header, stage records and dims arrays overwritten: either the parser or `prepare` refuses, or the
    /// graph runs to its end.
    #[test]
    fn damaged_blobs_never_panic(
        model in 0usize..5,
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0usize..3, any::<u32>()), 1..6),
    ) {
        let name = ["tiny_fp16_s1", "tiny_u8_s1", "lstm_fp16_s1", "swconv_fp16_s1", "ssd_head_u8_s1"][model];
        let mut bytes = std::fs::read(committed().join(format!("{name}.blob"))).expect("committed model");
        let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        // Where the structure is: from the counts to the constants, and the dims arrays at their end.
        let consts = word(&bytes, 128) as usize;
        let last = bytes.len() / 4;
        let structure = (17..consts / 4).chain(last.saturating_sub(600)..last).collect::<Vec<_>>();
        for (index, way, value) in damage {
            let at = structure[index.index(structure.len())] * 4;
            let old = word(&bytes, at);
            let new = match way {
                0 => value,
                1 => old.wrapping_add(value % 9).wrapping_sub(4),
                _ => [0, 1, 2, 7, 64, 0xFFFF, 0x7FFF_FFFF, u32::MAX][value as usize % 8],
            };
            bytes[at..at + 4].copy_from_slice(&new.to_le_bytes());
        }
        let Ok(graph) = Graph::parse(&bytes) else { return Ok(()) };
        let Ok(program) = Program::prepare(&bytes, &graph) else { return Ok(()) };
        // What is accepted is bounded, but perhaps by hours; a test has seconds.
        let memory = graph.bss_bytes + graph.input_bytes + graph.output_bytes;
        if program.work() < 1 << 28 && memory < 1 << 26 {
            let mut output = vec![0; graph.output_bytes];
            program.run(&mut program.arena(), &vec![1; graph.input_bytes], &mut output);
        }
    }
}
