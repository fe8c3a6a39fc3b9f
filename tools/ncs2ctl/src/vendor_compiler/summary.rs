//! What a compiled graph costs, and what in it costs more than it should.

use std::collections::BTreeMap;

use ncs2::blob::{Blob, DataType, Stage};
use serde::Serialize;

use crate::output::bytes;

/// Times the network's own work from which the rest is worth a word.
const HEAVY: f64 = 1.5;
/// Memory of a stick.
const STICK_BYTES: u64 = 512 << 20;

/// Where the stages run.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Stages {
    /// On the compute engine.
    pub nce: usize,
    /// Moves of data.
    pub dma: usize,
    /// On SHAVE cores, by name.
    pub shave: BTreeMap<String, usize>,
}

/// Figures of a blob.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Summary {
    /// The network's own multiply-accumulates, a whole call.
    pub macs: u64,
    /// Those that the stages order.
    pub macs_nce: u64,
    /// Elements of the batch in a call.
    pub batch: u32,
    /// Size.
    pub file_bytes: u64,
    /// What a loaded copy takes on the stick with one executor.
    pub stick_bytes: u64,
    /// Input of a call.
    pub input_bytes: u64,
    /// Output of a call.
    pub output_bytes: u64,
    /// Cores of an executor.
    pub shaves: u32,
    /// On-chip memory of an executor, slices of 128 KiB.
    pub cmx_slices: u32,
    /// Kinds of stages.
    pub stages: Stages,
    /// One line each.
    pub warnings: Vec<String>,
}

/// Looks a blob over.
pub fn summarise(blob: &Blob) -> Summary {
    let graph = blob.graph();
    let macs = blob.macs();
    let mut stages = Stages::default();
    let mut software: BTreeMap<String, u64> = BTreeMap::new();
    for (index, top) in graph.stages.iter().enumerate() {
        let mut next = Some(top);
        while let Some(stage) = next {
            match stage.kind.0 {
                38 => stages.nce += 1,
                19 | 119 | 120 => stages.dma += 1,
                _ => *stages.shave.entry(name(stage)).or_default() += 1,
            }
            next = stage.injected.as_deref();
        }
        let model = macs.per_stage.get(index).map_or(0, |(model, _)| *model);
        if top.kind.0 != 38 && model > 0 {
            *software.entry(name(top)).or_default() += model;
        }
    }
    let mut summary = Summary {
        macs: macs.model,
        macs_nce: macs.ordered,
        batch: graph.batch,
        file_bytes: graph.file_bytes as u64,
        stick_bytes: (graph.stick_bytes(1) + graph.input_bytes + graph.output_bytes) as u64,
        input_bytes: graph.input_bytes as u64,
        output_bytes: graph.output_bytes as u64,
        shaves: graph.shaves,
        cmx_slices: graph.cmx_slices,
        stages,
        warnings: Vec::new(),
    };
    summary.warnings = warnings(&summary, &software, graph.inputs.iter().any(|i| i.dtype == DataType::F32));
    summary
}

/// The compiler's name for a stage.
fn name(stage: &Stage) -> String {
    stage.kind.name().map_or_else(|| format!("type {}", stage.kind.0), str::to_owned)
}

fn warnings(summary: &Summary, software: &BTreeMap<String, u64>, float_input: bool) -> Vec<String> {
    let mut out = Vec::new();
    let ratio = summary.macs_nce as f64 / summary.macs.max(1) as f64;
    if ratio >= HEAVY {
        out.push(format!(
            "the stages order {ratio:.2} times the network's own multiply-accumulates: the compiler runs depthwise \
             convolutions as dense ones, and tiles overlap"
        ));
    }
    if !software.is_empty() && summary.macs > 0 {
        let list: Vec<String> = software
            .iter()
            .map(|(name, macs)| format!("{name} {:.0} %", 100.0 * *macs as f64 / summary.macs as f64))
            .collect();
        out.push(format!(
            "part of the work runs in software on SHAVE cores, slower than on the compute engine: {} of the \
             multiply-accumulates (dilation, unequal strides, kernels over 15, matrix products)",
            list.join(", ")
        ));
    }
    if float_input {
        out.push("FP32 input: four times the bytes of U8 on the wire, and a stage that converts it".into());
    }
    if summary.stick_bytes > STICK_BYTES {
        let needs = bytes(summary.stick_bytes);
        out.push(format!("needs {needs} on the stick, which has {}", bytes(STICK_BYTES)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(name: &str) -> Summary {
        let path = format!("{}/../../tests/data/models/{name}.blob", env!("CARGO_MANIFEST_DIR"));
        summarise(&Blob::open(std::path::Path::new(&path)).expect("committed"))
    }

    #[test]
    fn figures_and_warnings_of_known_blobs() {
        let tiny = blob("tiny_fp16_s1");
        assert_eq!((tiny.macs, tiny.macs_nce, tiny.shaves, tiny.cmx_slices), (714_480, 1_069_296, 16, 19));
        assert_eq!(tiny.stages.shave.get("SoftMax"), Some(&1));
        // 1.497: below the mark. A depthwise layer that weighs more is not.
        assert_eq!(tiny.warnings, Vec::<String>::new());
        let heavy = Summary { macs_nce: 2 * tiny.macs, ..tiny.clone() };
        assert!(warnings(&heavy, &BTreeMap::new(), false)[0].contains("2.00 times"));

        let software = blob("swconv_fp16_s1");
        assert!(software.warnings.iter().any(|w| w.contains("SHAVE") && w.contains("Conv ")), "{software:?}");
        assert_eq!(blob("squeezenet1_1_u8_s1").warnings, Vec::<String>::new());
    }

    #[test]
    fn large_graphs_and_float_inputs_are_told() {
        let large = Summary { stick_bytes: 600 << 20, ..blob("mlp_fp16_s1") };
        let said = warnings(&large, &BTreeMap::new(), true);
        assert!(
            said.iter().any(|w| w.contains("FP32 input")) && said.iter().any(|w| w.contains("on the stick"))
        );
    }
}
