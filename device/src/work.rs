//! Computing that the model hands to its face: to be done on worker threads, or inline in simulation.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use ncs2::blob::{BlobHash, Graph};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::Engine;
use crate::cost::GraphCost;
use crate::execute::{Arena, Program};
use crate::profile::Speed;

/// A blob as the stick uses it after ALLOCATE.
pub(crate) struct Prepared {
    pub(crate) hash: BlobHash,
    pub(crate) stages: u32,
    pub(crate) input_bytes: usize,
    pub(crate) output_bytes: usize,
    pub(crate) file_bytes: usize,
    pub(crate) bss_bytes: usize,
    pub(crate) cost: Arc<GraphCost>,
    /// `None` for the hash engine.
    program: Option<Program>,
    /// Executors' memory that is not in use. As many as workers have computed at the same time.
    arenas: Mutex<Vec<Arena>>,
}

impl Prepared {
    fn execute(&self, input: &[u8], output: &mut [u8]) {
        let Some(program) = &self.program else { return };
        let known = self.arenas.lock().pop();
        let mut arena = known.unwrap_or_else(|| program.arena());
        program.run(&mut arena, input, output);
        self.arenas.lock().push(arena);
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prepared({})", self.hash)
    }
}

/// Why a blob is refused: text for the debug data and the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// No blob, or a damaged one.
    Invalid(String),
    /// Stages that the engine does not execute.
    Unsupported(String),
}

/// Prepared blobs of a process by hash: sticks of one configuration that hold the same graph share one.
#[derive(Clone, Debug, Default)]
pub struct PreparedCache(Arc<Mutex<HashMap<[u8; 32], Weak<Prepared>>>>);

#[derive(Debug)]
pub(crate) enum Task {
    Prepare { blob: Vec<u8>, engine: Engine, speed: Speed, result: Option<Result<Arc<Prepared>, Refusal>> },
    Execute { graph: Arc<Prepared>, input: Vec<u8>, output: Vec<u8> },
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
            Task::Execute { graph, input, output } => graph.execute(input, output),
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
    let program = match engine {
        Engine::Execute => {
            Some(Program::prepare(blob, &graph).map_err(|e| Refusal::Unsupported(e.to_string()))?)
        }
        Engine::Hash => None,
    };
    let prepared = Arc::new(Prepared {
        hash: BlobHash(hash),
        stages: graph.stages.len() as u32,
        input_bytes: graph.input_bytes,
        output_bytes: graph.output_bytes,
        file_bytes: graph.file_bytes,
        bss_bytes: graph.bss_bytes,
        cost: Arc::new(GraphCost::new(&graph, blob, speed)),
        program,
        arenas: Mutex::new(Vec::new()),
    });
    let mut known = cache.0.lock();
    known.retain(|_, weak| weak.strong_count() > 0);
    known.insert(hash, Arc::downgrade(&prepared));
    Ok(prepared)
}
