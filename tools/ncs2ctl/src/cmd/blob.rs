//! `ncs2ctl blob info`

use std::path::Path;

use ncs2::blob::{Blob, CMX_SLICE_BYTES, Graph, IoTensor, Macs, NceOp, PoolKind, Stage};
use serde::Serialize;

use crate::cli::Global;
use crate::failure::{Outcome, Result};
use crate::output::{Output, Style, bytes, grouped, three_digits};
use crate::tensor::{layout, shape_text};

#[derive(Serialize)]
struct Body {
    name: String,
    sha256: String,
    file_bytes: usize,
    version: String,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    stages: usize,
    macs: u64,
    macs_nce: u64,
    weights_bytes: usize,
    bss_bytes: usize,
    cmx_bytes: usize,
    shaves: u32,
    cmx_slices: u32,
    batch: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<Layer>>,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    dtype: &'static str,
    layout: String,
    bytes: usize,
}

#[derive(Serialize)]
struct Layer {
    index: usize,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    type_id: u32,
    macs: u64,
    macs_nce: u64,
    output_shape: Vec<usize>,
    injected: Option<String>,
}

/// Prints what a compiled graph takes, gives and costs.
pub fn info(_global: &Global, output: &Output, file: &Path, with_layers: bool) -> Result<Outcome> {
    let blob = Blob::open(file)?;
    let graph = blob.graph();
    let macs = blob.macs();
    let body = Body {
        name: blob.name().to_owned(),
        sha256: blob.hash().to_string(),
        file_bytes: graph.file_bytes,
        version: format!("{}.{}", graph.version.0, graph.version.1),
        inputs: graph.inputs.iter().map(tensor).collect(),
        outputs: graph.outputs.iter().map(tensor).collect(),
        stages: graph.stages.len(),
        macs: macs.model,
        macs_nce: macs.ordered,
        weights_bytes: graph.weights_bytes(),
        bss_bytes: graph.bss_bytes,
        cmx_bytes: graph.cmx_slices as usize * CMX_SLICE_BYTES,
        shaves: graph.shaves,
        cmx_slices: graph.cmx_slices,
        batch: graph.batch,
        layers: with_layers.then(|| layers(graph, macs)),
    };
    if output.is_json() {
        output.document(&body)?;
    } else {
        output.prose(&text(output, &body))?;
    }
    Ok(Outcome::Ok)
}

fn tensor(t: &IoTensor) -> Tensor {
    Tensor {
        name: t.name.clone(),
        shape: layout::shape(t),
        dtype: t.dtype.as_str(),
        layout: t.order.layout(),
        bytes: t.bytes(),
    }
}

fn layers(graph: &Graph, macs: &Macs) -> Vec<Layer> {
    let counts = macs.per_stage.iter().copied().chain(std::iter::repeat((0, 0)));
    graph
        .stages
        .iter()
        .zip(counts)
        .enumerate()
        .map(|(index, (stage, (model, ordered)))| Layer {
            index,
            name: stage_name(stage),
            kind: kind_name(stage),
            type_id: stage.kind.0,
            macs: model,
            macs_nce: ordered,
            output_shape: output_shape(stage),
            injected: stage.injected.as_deref().map(stage_name),
        })
        .collect()
}

/// The compiler's name for the kind.
pub(super) fn kind_name(stage: &Stage) -> String {
    stage.kind.name().map_or_else(|| format!("type {}", stage.kind.0), str::to_owned)
}

/// What the stage does; blobs carry no layer names.
pub(super) fn stage_name(stage: &Stage) -> String {
    let Some(nce) = &stage.nce else { return kind_name(stage) };
    let (w, h) = nce.kernel;
    match nce.op {
        NceOp::Conv => format!("conv {w}x{h}/{}", nce.stride),
        NceOp::ConvPool => format!("conv {w}x{h}/{} + max 2x2/2", nce.stride),
        NceOp::FullyConnected => "fully connected".into(),
        NceOp::Pool(PoolKind::Max) => format!("max {w}x{h}/{}", nce.stride),
        NceOp::Pool(PoolKind::Average) => format!("average {w}x{h}/{}", nce.stride),
    }
}

/// Shape of what the stage writes. Where the output stands among the buffers: BLOB_FORMAT 2.3.
pub(super) fn output_shape(stage: &Stage) -> Vec<usize> {
    let last = stage.buffers.iter().rposition(|b| b.is_present());
    let index = match (&stage.nce, stage.kind.0) {
        (Some(nce), _) => Some(nce.output),
        // CTCDecoder, GEMM, ReverseSequence, Concat, Broadcast, StridedSlice.
        (None, 43 | 91 | 94 | 128 | 129 | 133) => last,
        // DetectionOutput: inputs, output, temporary.
        (None, 37) => last.and_then(|n| n.checked_sub(1)),
        // TopK: values, k, outputs.
        (None, 104) => Some(2),
        // LSTMCell, StaticShapeNMS: five inputs first.
        (None, 70 | 130) => Some(5),
        _ => Some(1),
    };
    index
        .and_then(|n| stage.buffers.get(n))
        .filter(|view| view.is_present())
        .map_or_else(Vec::new, |view| layout::named_shape(view.order, &view.dims))
}

fn text(output: &Output, body: &Body) -> String {
    let mut text = format!(
        "{}  blob {}, {}, sha256 {}\n\n",
        output.paint(Style::Bold, &body.name),
        body.version,
        bytes(body.file_bytes as u64),
        &body.sha256[..16.min(body.sha256.len())],
    );
    let mut table = output
        .table(&["", "name", "shape", "type", "layout", "bytes"], &["", "name", "shape", "type", "layout"]);
    for (what, tensors) in [("input", &body.inputs), ("output", &body.outputs)] {
        for t in tensors {
            table.add_row([
                what.to_owned(),
                crate::failure::one_line(&t.name),
                shape_text(&t.shape),
                t.dtype.to_owned(),
                t.layout.clone(),
                grouped(t.bytes as u64),
            ]);
        }
    }
    text.push_str(&output.lines(&table));
    text.push('\n');
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<13} {value}\n"));
    line(
        "work",
        format!(
            "{} multiply-accumulates ({} GOP)",
            grouped(body.macs),
            three_digits(2e-9 * body.macs as f64)
        ),
    );
    line("work as run", format!("{} with the tiling and padding of the compiler", grouped(body.macs_nce)));
    line("stages", body.stages.to_string());
    line("weights", bytes(body.weights_bytes as u64));
    line("scratch", format!("{} of the stick's memory for each executor", bytes(body.bss_bytes as u64)));
    line(
        "executor",
        format!("{} SHAVEs, {} CMX slices ({})", body.shaves, body.cmx_slices, bytes(body.cmx_bytes as u64)),
    );
    line("batch", body.batch.to_string());
    if let Some(layers) = &body.layers {
        text.push('\n');
        let mut table = output.table(
            &["#", "type", "stage", "MACs", "MACs as run", "output", "beside it"],
            &["type", "stage", "output", "beside it"],
        );
        for layer in layers {
            table.add_row([
                layer.index.to_string(),
                layer.kind.clone(),
                layer.name.clone(),
                grouped(layer.macs),
                grouped(layer.macs_nce),
                shape_text(&layer.output_shape),
                layer.injected.clone().unwrap_or_default(),
            ]);
        }
        text.push_str(&output.lines(&table));
    }
    text
}
