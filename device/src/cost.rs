//! What a stage costs on the chip: work, bytes, and a fixed part.

use ncs2::blob::{Graph, Location, Stage, StageKind, View};

use crate::profile::Speed;

/// What a stage asks for, whatever the chip's speed. All a calibration needs of a blob.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct StageLoad {
    /// Multiply-accumulates that the NCE's descriptors order.
    pub(crate) nce_macs: f64,
    /// Elements of software, divided by the SHAVEs that share them.
    pub(crate) shave_elements: f64,
    /// DRAM traffic.
    pub(crate) bytes: f64,
}

impl StageLoad {
    fn cost(&self, speed: &Speed) -> StageCost {
        let nce_ns = self.nce_macs / speed.nce_macs_per_s * 1e9;
        let shave_ns = self.shave_elements / speed.shave_elements_per_s * 1e9;
        let on_nce = self.nce_macs > 0.0;
        let fixed_us = if on_nce { speed.nce_stage_us } else { speed.stage_us };
        StageCost { fixed_ns: fixed_us * 1e3, work_ns: nce_ns.max(shave_ns), bytes: self.bytes, on_nce }
    }
}

/// One stage on one executor.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct StageCost {
    /// Before anything moves.
    pub(crate) fixed_ns: f64,
    /// NCE or SHAVE time.
    pub(crate) work_ns: f64,
    /// DRAM traffic, concurrent with the work, on a bus that executors share.
    pub(crate) bytes: f64,
    /// Needs one of the chip's NCEs for its work.
    pub(crate) on_nce: bool,
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
        let loads = stage_loads(graph, blob);
        Self::of_loads(&loads, (graph.batch.max(1), graph.shaves, graph.cmx_slices), speed)
    }

    /// `needs`: batch, SHAVEs and CMX slices of an executor.
    pub(crate) fn of_loads(loads: &[StageLoad], needs: (u32, u32, u32), speed: &Speed) -> Self {
        let (batch, shaves, cmx_slices) = needs;
        GraphCost {
            stages: loads.iter().map(|load| load.cost(speed)).collect(),
            batch,
            shaves,
            cmx_slices,
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

/// The load of each stage, of one batch element.
pub(crate) fn stage_loads(graph: &Graph, blob: &[u8]) -> Vec<StageLoad> {
    let macs = graph.macs(blob);
    let batch = f64::from(graph.batch.max(1));
    let ordered = |i: usize| macs.per_stage.get(i).map_or(0, |&(_, ordered)| ordered) as f64 / batch;
    graph.stages.iter().enumerate().map(|(i, stage)| stage_load(stage, ordered(i))).collect()
}

fn stage_load(stage: &Stage, ordered_macs: f64) -> StageLoad {
    let (mut nce_macs, mut shave_elements) = (0.0, 0.0);
    if stage.nce.is_some() {
        nce_macs = ordered_macs;
    } else {
        shave_elements = software_elements(stage, ordered_macs);
    }
    let mut bytes = dram_bytes(stage);
    if let Some(injected) = &stage.injected {
        // Runs beside its parent on units of its own.
        shave_elements = shave_elements.max(software_elements(injected, 0.0));
        bytes += dram_bytes(injected);
    }
    StageLoad { nce_macs, shave_elements, bytes }
}

/// SHAVEs work on the elements of the largest operand; a multiply-accumulate counts as an element of an eighth (one
/// vector instruction does eight of them).
fn software_elements(stage: &Stage, macs: f64) -> f64 {
    if stage.kind == StageKind::COPY {
        return 0.0;
    }
    let elements = stage.buffers.iter().filter(|v| is_data(v)).map(View::elements).max().unwrap_or(0) as f64;
    elements.max(macs / 8.0) / f64::from(stage.shaves.max(1))
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
