//! Models on this computer's CPU side by side: how fast each is, and how far its answers are from the first one's.

use std::path::Path;
use std::time::{Duration, Instant};

use ncs2::blob::Graph;
use ncs2::reference::Source as Origin;
use ncs2::stats::Latency;

use super::Score;
use super::cpu::Reference;
use crate::failure::{Failure, Result};
use crate::flags::Tolerance;
use crate::tensor::input::Element;
use crate::tensor::layout;
use crate::vendor_compiler::source::{Changes, Source};

/// Fewer runs give no median.
const LEAST_RUNS: u64 = 10;

/// What one model did.
pub struct Timed {
    /// Of its file.
    pub file_bytes: u64,
    /// One inference at a time, with all cores that OpenVINO takes.
    pub latency: Latency,
    /// Inferences a second, one after another.
    pub fps: f64,
    /// Against the first model, by output.
    pub scores: Vec<Score>,
}

/// Runs every model on the inputs, which are elements of `graph`'s inputs, then measures it for `time`. `changes` are
/// made to each.
pub fn measure(
    models: &[&Path],
    changes: &Changes<'_>,
    graph: &Graph,
    inputs: &[Element],
    time: Duration,
) -> Result<Vec<Timed>> {
    crate::reference_libraries::find()?;
    let mut expected: Vec<Vec<Vec<f64>>> = Vec::new();
    let mut timed = Vec::with_capacity(models.len());
    for model in models {
        let changed = Source::read(model)?.normalised(changes)?;
        let origin = changed.as_deref().map_or(Origin::File(model), Origin::Onnx);
        let mut reference = Reference::read(model, origin, graph)?;
        let mut scores: Vec<Score> =
            graph.outputs.iter().map(|t| Score::new(&layout::shape(t), Tolerance::Share(1.0))).collect();
        for (n, input) in inputs.iter().enumerate() {
            let found = reference.infer(graph, &input.bytes)?;
            if expected.len() == n {
                expected.push(found.clone());
            }
            scores.iter_mut().zip(&found).zip(&expected[n]).for_each(|((s, f), e)| s.add(f, e));
        }
        let mut latency = Latency::new();
        let begun = Instant::now();
        while begun.elapsed() < time || latency.count() < LEAST_RUNS {
            let start = Instant::now();
            reference.repeat()?;
            latency.record(start.elapsed());
        }
        let fps = latency.count() as f64 / begun.elapsed().as_secs_f64();
        let file = std::fs::metadata(model).map_err(|e| Failure::file(model, "read", &e))?;
        timed.push(Timed { file_bytes: file.len(), latency, fps, scores });
    }
    Ok(timed)
}
