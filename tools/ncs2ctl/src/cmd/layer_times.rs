//! What each stage of a network took, as the stick says of its latest inference (`run --layers`).

use std::time::Duration;

use ncs2::StickId;
use ncs2::runtime::Graph;
use serde::Serialize;

use super::blob::{kind_name, output_shape, stage_name};
use crate::failure::Result;
use crate::output::{Output, grouped, time};
use crate::tensor::shape_text;

/// How long a stick may take to say it; it answers behind the inferences that are under way.
const PATIENCE: Duration = Duration::from_secs(5);

/// The table, as documents have it.
#[derive(Clone, Serialize)]
pub struct LayerTimes {
    device: String,
    /// To receive the input.
    receive_ms: f32,
    /// As the stick adds it up itself.
    total_ms: f32,
    stages: Vec<LayerTime>,
}

#[derive(Clone, Serialize)]
struct LayerTime {
    index: usize,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    macs: u64,
    output_shape: Vec<usize>,
    time_ms: f32,
    /// Of the sum of all stages; null where that is no number.
    share: Option<f64>,
}

impl LayerTimes {
    /// Asks the stick that ran `graph`.
    pub fn ask(graph: &Graph, stick: &StickId) -> Result<Self> {
        let times = graph.stage_times(stick, PATIENCE)?;
        let blob = graph.blob();
        let macs = &blob.macs().per_stage;
        let sum: f64 = times.stages_ms.iter().copied().map(f64::from).sum();
        let stages = blob.graph().stages.iter().zip(&times.stages_ms).enumerate();
        let stages = stages.map(|(index, (stage, &time_ms))| LayerTime {
            index,
            name: stage_name(stage),
            kind: kind_name(stage),
            macs: macs.get(index).map_or(0, |(model, _)| *model),
            output_shape: output_shape(stage),
            time_ms,
            share: (sum > 0.0).then(|| f64::from(time_ms) / sum),
        });
        Ok(LayerTimes {
            device: stick.to_string(),
            receive_ms: times.receive_ms,
            total_ms: times.total_ms,
            stages: stages.collect(),
        })
    }

    /// As people read it.
    pub fn text(&self, output: &Output) -> String {
        let shown = |ms: f32| match Duration::try_from_secs_f32(ms / 1e3) {
            Ok(length) => time(output, length),
            // Received as it is: a broken stick may say anything.
            Err(_) => format!("{ms} ms"),
        };
        let headings = ["#", "type", "stage", "output", "MACs", "time", "share"];
        let mut table = output.table(&headings, &["type", "stage", "output"]);
        for stage in &self.stages {
            table.add_row([
                stage.index.to_string(),
                stage.kind.clone(),
                stage.name.clone(),
                shape_text(&stage.output_shape),
                grouped(stage.macs),
                shown(stage.time_ms),
                stage.share.map_or_else(|| "-".to_owned(), |s| format!("{:.1} %", 100.0 * s)),
            ]);
        }
        format!(
            "\n{}\n  {} says of its latest inference: {} in these stages, {} in all, {} to receive the input\n",
            output.lines(&table),
            self.device,
            shown(self.stages.iter().map(|stage| stage.time_ms).sum()),
            shown(self.total_ms),
            shown(self.receive_ms)
        )
    }
}
