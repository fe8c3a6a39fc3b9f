//! Computing that the model hands to its face: to be done on worker threads, or inline in simulation.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use ncs2::blob::Graph;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::Engine;
use crate::cost::GraphCost;
use crate::profile::Speed;

/// A blob as the stick uses it after ALLOCATE.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) hash: [u8; 32],
    pub(crate) stages: u32,
    pub(crate) input_bytes: usize,
    pub(crate) output_bytes: usize,
    pub(crate) file_bytes: usize,
    pub(crate) bss_bytes: usize,
    pub(crate) cost: Arc<GraphCost>,
}

/// Why a blob is refused: text for the debug data and the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// No blob, or a damaged one.
    Invalid(String),
    /// Stages that the engine does not execute.
    Unsupported(String),
}

/// Prepared blobs of a process by hash: sticks that hold the same graph share one.
#[derive(Clone, Debug, Default)]
pub struct PreparedCache(Arc<Mutex<HashMap<[u8; 32], Weak<Prepared>>>>);

#[derive(Debug)]
pub(crate) enum Task {
    Prepare { blob: Vec<u8>, engine: Engine, speed: Speed, result: Option<Result<Arc<Prepared>, Refusal>> },
    Execute { input: Vec<u8>, output: Vec<u8> },
}

/// One piece of computing. [`Work::perform`] it anywhere, then give it back to the stick that it came from with
/// [`crate::VirtualStick::handle_work_done`].
#[derive(Debug)]
pub struct Work {
    /// Power cycle of the stick: what was begun before a reset is thrown away.
    pub(crate) epoch: u64,
    /// Run, or 0 for a preparation.
    pub(crate) run: u64,
    pub(crate) task: Task,
}

impl Work {
    /// Does it. Takes as long as it takes: up to seconds for a large network on the execute engine.
    pub fn perform(&mut self, cache: &PreparedCache) {
        match &mut self.task {
            Task::Prepare { blob, engine, speed, result } => {
                *result = Some(prepare(blob, *engine, speed, cache));
                // The stick has its own form of it now.
                *blob = Vec::new();
            }
            Task::Execute { .. } => {}
        }
    }
}

fn prepare(
    blob: &[u8],
    engine: Engine,
    speed: &Speed,
    cache: &PreparedCache,
) -> Result<Arc<Prepared>, Refusal> {
    let hash: [u8; 32] = Sha256::digest(blob).into();
    if let Some(known) = cache.0.lock().get(&hash).and_then(Weak::upgrade) {
        return Ok(known);
    }
    let graph = Graph::parse(blob).map_err(|e| Refusal::Invalid(e.to_string()))?;
    if engine == Engine::Execute {
        return Err(Refusal::Unsupported("no execute engine".into()));
    }
    let prepared = Arc::new(Prepared {
        hash,
        stages: graph.stages.len() as u32,
        input_bytes: graph.input_bytes,
        output_bytes: graph.output_bytes,
        file_bytes: graph.file_bytes,
        bss_bytes: graph.bss_bytes,
        cost: Arc::new(GraphCost::new(&graph, blob, speed)),
    });
    let mut known = cache.0.lock();
    known.retain(|_, weak| weak.strong_count() > 0);
    known.insert(hash, Arc::downgrade(&prepared));
    Ok(prepared)
}

/// Interim until the hash engine is merged.
pub(crate) fn hash_output(graph: &[u8; 32], sample: &[u8], output: &mut [u8]) {
    let mut state = graph
        .iter()
        .chain(sample)
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    for byte in output {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
}
