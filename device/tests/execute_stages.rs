//! Every stage type that the `execute` engine knows, each in a small compiled graph, against what the OpenVINO CPU plugin
//! computes in FP32 for the same network and input (`tests/data/stages`, made by `tools/models/make_stage_models.py`).
//!
//! `NCS2_STAGES` names another folder of such graphs for the table.

mod execute_support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use execute_support::{TOLERANCE, array, beside, blobs, data, error, exact, input_of, integers, unpack};
use ncs2::blob::{Blob, DataType, Graph, Stage};
use ncs2_device::execute::{Program, Threads};

fn folder() -> PathBuf {
    std::env::var_os("NCS2_STAGES").map_or_else(|| data("stages"), PathBuf::from)
}

/// All stages with the injected ones.
fn stages(graph: &Graph) -> Vec<&Stage> {
    let parents = graph.stages.iter();
    parents.flat_map(|s| std::iter::successors(Some(s), |s| s.injected.as_deref())).collect()
}

/// Runs a graph in memory full of NaN and compares all its outputs: the largest error, or what went wrong.
fn compare(path: &Path) -> Result<f32, String> {
    let blob = Blob::open(path).map_err(|e| e.to_string())?;
    let graph = blob.graph();
    let program = Program::prepare(blob.bytes(), graph).map_err(|e| e.to_string())?;
    let input = input_of(path, graph).ok_or("no input array beside it")?;
    let mut output = vec![0; graph.output_bytes];
    let mut arena = program.arena();
    arena.fill(0x7E00);
    program.run(&mut arena, &input, &mut output);
    let mut again = vec![0; graph.output_bytes];
    for threads in [Threads::One, Threads::All] {
        program.run_on(threads, &mut arena, &input, &mut again);
        if output != again {
            return Err("another run gives another answer".into());
        }
    }
    let mut largest = 0f32;
    for tensor in &graph.outputs {
        let (shape, reference) = array(&beside(path, "out", &tensor.name))
            .ok_or_else(|| format!("no array for output {}", tensor.name))?;
        let values = unpack(tensor, graph.batch as usize, &output);
        if values.len() != reference.len() {
            return Err(format!("{} has {} values, not shape {shape:?}", tensor.name, values.len()));
        }
        if tensor.dtype == DataType::S32
            && integers(tensor, graph.batch as usize, &output) != exact(&beside(path, "out", &tensor.name))
        {
            return Err(format!("{} is not exactly the reference", tensor.name));
        }
        let error = error(&values, &reference);
        if error > TOLERANCE && std::env::var_os("NCS2_SHOW").is_some() {
            println!("{}: found {values:?}\nexpected {reference:?}", tensor.name);
        }
        largest = largest.max(error);
    }
    Ok(largest)
}

#[test]
fn table() {
    let mut wrong = Vec::new();
    for path in blobs(&folder()) {
        let name = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        let blob = Blob::open(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let kinds: BTreeSet<_> = stages(blob.graph()).iter().map(|s| s.kind).collect();
        let kinds: Vec<_> = kinds.iter().map(|k| format!("{} {}", k.0, k.name().unwrap_or("?"))).collect();
        match compare(&path) {
            Ok(error) => {
                println!("{name:28} {:8.4} % {}", error * 100.0, kinds.join(", "));
                if error > TOLERANCE {
                    wrong.push(name);
                }
            }
            Err(why) => {
                println!("{name:28} {why:>10} {}", kinds.join(", "));
                wrong.push(name);
            }
        }
    }
    assert!(wrong.is_empty(), "{} graphs are wrong: {wrong:?}", wrong.len());
}
