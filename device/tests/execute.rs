//! The `execute` engine against what the OpenVINO CPU plugin computes in FP32 for the same network and input.
//!
//! Runs over the committed models, and over every folder in `NCS2_MODELS` (separated by `:`). `NCS2_REPEATS` says how
//! often each is run for the best time; those are times of this machine's CPU, not of a stick.

mod execute_support;

use std::path::PathBuf;
use std::time::Instant;

use execute_support::{TOLERANCE, array, beside, blobs, data, error, input_of, pack, top, unpack};
use ncs2::blob::{Blob, StageKind};
use ncs2_device::execute::{Program, Threads};

/// The committed models.
fn committed() -> PathBuf {
    data("models")
}

fn folders() -> Vec<PathBuf> {
    let more = std::env::var_os("NCS2_MODELS");
    std::iter::once(committed()).chain(more.iter().flat_map(std::env::split_paths)).collect()
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
            let error = error(&values, &reference);
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

/// What all threads of this process took so far: it does not count the time that others had.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Times of one graph, wall and CPU, for `benches/execute_vs_cpu.py`: `NCS2_BLOB` names it, `NCS2_SECONDS` says how long.
#[test]
#[ignore = "prints times: a part of benches/execute_vs_cpu.py"]
fn times() {
    let path = PathBuf::from(std::env::var_os("NCS2_BLOB").expect("NCS2_BLOB names a graph"));
    let seconds = std::env::var("NCS2_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1.0);
    let blob = Blob::open(&path).expect("a graph");
    let graph = blob.graph();
    let program = Program::prepare(blob.bytes(), graph).expect("known stages");
    let input = input_of(&path, graph).expect("an array beside it");
    let mut output = vec![0; graph.output_bytes];
    let mut arena = program.arena();
    for _ in 0..2 {
        program.run(&mut arena, &input, &mut output);
    }
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < seconds {
        let (start, cpu) = (Instant::now(), cpu_seconds());
        program.run(&mut arena, &input, &mut output);
        println!("ms {:.4} {:.4}", start.elapsed().as_secs_f64() * 1e3, (cpu_seconds() - cpu) * 1e3);
    }
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
