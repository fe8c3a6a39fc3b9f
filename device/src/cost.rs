//! What a stage costs on the chip: work, bytes, and a fixed part.

use ncs2::blob::{Graph, Location, Stage, StageKind, View};

use crate::profile::Speed;

/// One stage on one executor.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct StageCost {
    /// Before anything moves.
    pub(crate) fixed_ns: f64,
    /// NCE or SHAVE time.
    pub(crate) work_ns: f64,
    /// DRAM traffic, concurrent with the work, on a bus that executors share.
    pub(crate) bytes: f64,
}

/// A graph's stages in order, run `batch` times.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct GraphCost {
    pub(crate) stages: Vec<StageCost>,
    pub(crate) batch: u32,
    /// Of the blob: what an executor occupies.
    pub(crate) shaves: u32,
    pub(crate) cmx_slices: u32,
    /// Once per inference.
    pub(crate) trigger_ns: f64,
}

impl GraphCost {
    /// `blob` are the bytes of the file that `graph` was parsed from.
    pub(crate) fn new(graph: &Graph, blob: &[u8], speed: &Speed) -> Self {
        let macs = graph.macs(blob);
        let batch = graph.batch.max(1);
        let stages = graph.stages.iter().enumerate().map(|(i, stage)| {
            let ordered = macs.per_stage.get(i).map_or(0, |&(_, ordered)| ordered) as f64 / f64::from(batch);
            stage_cost(stage, ordered, speed)
        });
        GraphCost {
            stages: stages.collect(),
            batch,
            shaves: graph.shaves,
            cmx_slices: graph.cmx_slices,
            trigger_ns: speed.trigger_us * 1e3,
        }
    }

    /// Time of each stage on an executor that has the DRAM to itself, all batch elements, nanoseconds.
    pub(crate) fn solo_ns(&self, dram_bytes_per_ns: f64) -> impl Iterator<Item = f64> {
        self.stages
            .iter()
            .map(move |s| (s.fixed_ns + s.work_ns.max(s.bytes / dram_bytes_per_ns)) * f64::from(self.batch))
    }
}

fn stage_cost(stage: &Stage, ordered_macs: f64, speed: &Speed) -> StageCost {
    let nce_ns = if stage.nce.is_some() { ordered_macs / speed.nce_macs_per_s * 1e9 } else { 0.0 };
    let mut work_ns = nce_ns;
    if stage.nce.is_none() {
        work_ns = software_ns(stage, ordered_macs, speed);
    }
    let mut bytes = dram_bytes(stage);
    if let Some(injected) = &stage.injected {
        // Runs beside its parent on units of its own.
        work_ns = work_ns.max(software_ns(injected, 0.0, speed));
        bytes += dram_bytes(injected);
    }
    StageCost { fixed_ns: speed.stage_us * 1e3, work_ns, bytes }
}

/// SHAVEs work on the elements of the largest operand; a multiply-accumulate counts as an element of an eighth (one
/// vector instruction does eight of them).
fn software_ns(stage: &Stage, macs: f64, speed: &Speed) -> f64 {
    if stage.kind == StageKind::COPY {
        return 0.0;
    }
    let elements = stage.buffers.iter().filter(|v| is_data(v)).map(View::elements).max().unwrap_or(0) as f64;
    let work = elements.max(macs / 8.0);
    work / (speed.shave_elements_per_s * f64::from(stage.shaves.max(1))) * 1e9
}

fn is_data(view: &View) -> bool {
    !matches!(view.location, Location::None | Location::Blob)
}

/// Every operand that does not lie in CMX crosses the DRAM bus once.
fn dram_bytes(stage: &Stage) -> f64 {
    stage
        .buffers
        .iter()
        .filter(|v| !matches!(v.location, Location::None | Location::Cmx))
        .map(|v| (v.elements() * v.dtype.bytes()) as f64)
        .sum()
}
