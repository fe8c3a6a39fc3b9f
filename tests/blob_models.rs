//! Real compiled graphs against `tests/data/models/table.json`: the committed ones, and those of the folder that
//! `NCS2_MODELS` names. The table's counts come from the networks' ONNX graphs, not from this library.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ncs2::blob::{Blob, Graph, IoTensor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    macs: u64,
    nce_work: u64,
    stages: usize,
    shaves: u32,
    cmx: u32,
}

#[derive(Deserialize, PartialEq, Debug)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    layout: String,
}

impl From<&IoTensor> for Tensor {
    fn from(io: &IoTensor) -> Self {
        Tensor {
            name: io.name.clone(),
            shape: io.shape(),
            dtype: io.dtype.as_str().into(),
            layout: io.order.layout(),
        }
    }
}

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models")
}

fn table() -> BTreeMap<String, Row> {
    let text = std::fs::read_to_string(committed().join("table.json")).expect("table.json is committed");
    serde_json::from_str(&text).expect("table.json has the shape of `Row`")
}

fn blobs(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("the folder can be listed").path())
        .filter(|path| path.extension().is_some_and(|e| e == "blob"))
        .collect();
    paths.sort();
    paths
}

fn shapes(tensors: &[IoTensor]) -> String {
    let one = |t: &IoTensor| {
        let shape: Vec<_> = t.shape().iter().map(ToString::to_string).collect();
        format!("{} {}", t.name, shape.join("x"))
    };
    tensors.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Prints a line and compares with the table. Returns whether the table knows the blob.
fn check(path: &Path, table: &BTreeMap<String, Row>) -> bool {
    let start = Instant::now();
    let blob = Blob::open(path).unwrap_or_else(|e| panic!("{e}"));
    let opened = start.elapsed();
    let start = Instant::now();
    let macs = blob.macs();
    let counted = start.elapsed();
    let graph = blob.graph();
    let row = table.get(blob.name());

    println!(
        "| {} | {} | {} | {} | {} | {} | {}/{} | {} | open {opened:.1?}, count {counted:.1?} |{}",
        blob.name(),
        shapes(&graph.inputs),
        shapes(&graph.outputs),
        macs.model,
        macs.ordered,
        graph.stages.len(),
        graph.shaves,
        graph.cmx_slices,
        graph.weights_bytes(),
        if row.is_some() { "" } else { " not in the table" }
    );

    assert!(graph.weights_bytes() < graph.file_bytes);
    assert!(macs.ordered >= macs.model, "the compiler never leaves work out: {macs:?}");
    assert_eq!(macs.per_stage.len(), graph.stages.len());
    let sums = macs.per_stage.iter().fold((0, 0), |sum, stage| (sum.0 + stage.0, sum.1 + stage.1));
    assert_eq!(sums, (macs.model, macs.ordered), "the stages add up");
    assert_eq!(blob.bytes().len(), graph.file_bytes);

    let Some(row) = row else { return false };
    let io = |tensors: &[IoTensor]| tensors.iter().map(Tensor::from).collect::<Vec<_>>();
    let name = blob.name();
    assert_eq!(io(&graph.inputs), row.inputs, "{name}");
    assert_eq!(io(&graph.outputs), row.outputs, "{name}");
    assert_eq!(
        (macs.model, macs.ordered),
        (row.macs, row.nce_work),
        "{name}: multiply-accumulates, NCE work"
    );
    assert_eq!(graph.stages.len(), row.stages, "{name}: stages");
    assert_eq!((graph.shaves, graph.cmx_slices), (row.shaves, row.cmx), "{name}: SHAVEs and CMX slices");
    true
}

#[test]
fn committed_models_agree_with_the_table() {
    let table = table();
    let paths = blobs(&committed());
    assert!(paths.len() >= 8, "the committed models are gone: {paths:?}");
    for path in paths {
        assert!(check(&path, &table), "{} is committed but not in the table", path.display());
    }
}

/// Corners that the models do not reach, see `tests/data/blobs/README.md`.
#[test]
fn corner_cases_count_as_their_networks() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/blobs");
    let text = std::fs::read_to_string(folder.join("macs.json")).expect("macs.json is committed");
    let counts: BTreeMap<String, u64> = serde_json::from_str(&text).expect("names and counts");
    let paths = blobs(&folder);
    assert_eq!(paths.len(), counts.len(), "{paths:?}");
    for path in paths {
        check(&path, &BTreeMap::new());
        let blob = Blob::open(&path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(blob.macs().model, counts[blob.name()], "{}", blob.name());
    }
}

#[test]
fn models_of_a_folder_agree_with_the_table() {
    let Some(folder) = std::env::var_os("NCS2_MODELS") else {
        println!("skipped: NCS2_MODELS names no folder");
        return;
    };
    let table = table();
    let paths = blobs(Path::new(&folder));
    assert!(!paths.is_empty(), "no .blob in {}", folder.display());
    let known = paths.iter().filter(|path| check(path, &table)).count();
    println!("{} blobs, {known} of them in the table", paths.len());
}

/// A photo of where the time goes. The bounds are loose: they are there to catch an accidental square law.
#[test]
fn resnet18_is_fast() {
    let folder = std::env::var_os("NCS2_MODELS").map_or_else(committed, PathBuf::from);
    let path = folder.join("resnet18_u8_s1.blob");
    if !path.exists() {
        println!("skipped: no resnet18_u8_s1.blob in {}", folder.display());
        return;
    }
    let blob = Blob::open(&path).unwrap_or_else(|e| panic!("{e}"));
    let best = |what: &dyn Fn()| {
        let once = |_| {
            let start = Instant::now();
            what();
            start.elapsed()
        };
        (0..10).map(once).min().unwrap_or_default()
    };
    let parse = best(&|| drop(Graph::parse(blob.bytes())));
    let count = best(&|| drop(blob.graph().macs(blob.bytes())));
    let open = best(&|| drop(Blob::open(&path)));
    println!("resnet18: parse {parse:.1?}, count {count:.1?}, open with copy and hash {open:.1?}");
    assert!(parse < Duration::from_millis(30), "parse took {parse:?}");
    assert!(count < Duration::from_millis(800), "count took {count:?}");
}
