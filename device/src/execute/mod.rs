//! The `execute` engine: runs the stages of a compiled graph on the CPU.
//!
//! ```text
//! Program::prepare(blob, graph) ─► operations (weights unpacked to f32, every shape checked; shared by all executors)
//! Program::arena()              ─► memory of one executor (input and output slots, BSS, CMX, scratch)
//! Program::run(arena, in, out)  ─► per element of the batch: every operation in order
//! ```
//! Storage is FP16, arithmetic inside a stage FP32, rounding to nearest even at each store. What the real chip does in
//! the last bits and on overflow is not known (unverified on hardware).
//!
//! One file per family of stages; a family checks at prepare time everything that its loops rely on, so that running
//! cannot fail. A stage that no family knows is refused by name.

mod activation;
mod conv;
mod eltwise;
mod layout;
mod lstm;
mod matmul;
mod memory;
mod nce;
mod norm;
mod params;
mod planes;
mod pool;
mod reduce;
mod resample;
mod softmax;
mod topk;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ncs2::blob::{Graph, Location, Stage, StageKind, View};
use ncs2::clock::{Clock as _, Monotonic};

use memory::{Layout, Place};
use params::Context;

/// A graph that this engine cannot run: the first stage that stands in the way.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("stage {stage} ({}): {why}", label(*.kind))]
pub struct Unsupported {
    /// Index into [`Graph::stages`]; an injected stage has its parent's.
    pub stage: usize,
    /// What it is.
    pub kind: StageKind,
    /// What is unknown or impossible about it.
    pub why: String,
}

fn label(kind: StageKind) -> String {
    kind.name().map_or_else(|| format!("type {}", kind.0), |name| format!("{name}, type {}", kind.0))
}

/// Most element operations of one call that are accepted: minutes of a stick's time, so only a damaged graph has more.
const MOST_WORK: u64 = 1 << 44;

/// Element operations from which on a run gains more from other cores than waking them costs.
const WORTH_THE_POOL: u64 = 1 << 21;

/// Most bytes of unpacked constants and index maps. Stages may share constants (tiles do), and each unpacks its own. The
/// largest network that a stick's 512 MB can hold needs half of this.
const MOST_UNPACKED: usize = 2 << 30;

/// A graph made ready to run. One per allocated graph; executors share it.
pub struct Program {
    steps: Vec<Step>,
    layout: Layout,
    inputs: Vec<Slot>,
    outputs: Vec<Slot>,
    batch: usize,
    work: u64,
}

/// A tensor of a FIFO element and its slot in the arena.
struct Slot {
    /// Byte offset in the FIFO element.
    offset: usize,
    /// Byte offset in the arena.
    begin: usize,
    bytes: usize,
}

struct Step {
    stage: usize,
    kind: StageKind,
    operation: Box<dyn Operation>,
    /// Places that it writes, with their views.
    outputs: Vec<Place>,
}

/// A prepared stage.
trait Operation: Send + Sync {
    /// Runs it. Everything that could fail was checked at prepare time.
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch);
}

/// What a family makes of a stage.
struct Prepared {
    operation: Box<dyn Operation>,
    outputs: Vec<Place>,
    /// Element operations of one run, roughly (multiply-accumulates, or elements moved).
    work: u64,
}

/// Buffers that operations use while they run; they grow to the largest need and stay.
#[derive(Default)]
struct Scratch {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    words: Vec<u16>,
    /// Whether operations may use the other cores.
    parallel: bool,
}

/// The first `n` elements of a scratch buffer, with whatever they held before.
fn sized<T: Clone + Default>(buffer: &mut Vec<T>, n: usize) -> &mut [T] {
    if buffer.len() < n {
        buffer.resize(n, T::default());
    }
    &mut buffer[..n]
}

/// Memory of one executor: what the graph's views address, and scratch. Reusable; keeps its contents between runs, as a
/// stick's does.
pub struct Arena {
    words: Vec<u16>,
    scratch: Scratch,
}

impl Arena {
    /// Fills all memory with a 16-bit pattern, as other work may leave it. A right graph does not depend on it.
    pub fn fill(&mut self, pattern: u16) {
        self.words.fill(pattern);
    }
}

/// How many threads a run takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Threads {
    /// The caller's.
    One,
    /// Those of rayon's pool.
    All,
}

/// Runs of this process that go on at the moment.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Counts a run for as long as it goes on.
struct Turn {
    alone: bool,
}

impl Turn {
    fn take() -> Self {
        Turn { alone: RUNNING.fetch_add(1, Ordering::Relaxed) == 0 }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one stage did, for [`Program::run_stages`].
pub struct StageRun<'a> {
    /// Index into [`Graph::stages`]; an injected stage has its parent's.
    pub stage: usize,
    /// What it was.
    pub kind: StageKind,
    /// Which element of the batch.
    pub batch: usize,
    /// Wall time on this machine's CPU: not a stick's.
    pub wall: Duration,
    step: &'a Step,
    arena: &'a [u16],
}

impl StageRun<'_> {
    /// Number of tensors that the stage writes.
    pub fn outputs(&self) -> usize {
        self.step.outputs.len()
    }

    /// Dims of an output, minor to major.
    pub fn output_dims(&self, index: usize) -> Option<&[usize]> {
        self.step.outputs.get(index).map(Place::dims)
    }

    /// Values of an output right after the stage, minor to major.
    pub fn output(&self, index: usize) -> Option<Vec<f32>> {
        let place = self.step.outputs.get(index)?;
        let mut values = vec![0.0; place.elements()];
        place.read(self.arena, &mut values);
        Some(values)
    }
}

impl Program {
    /// Decodes all parameters and weights of `graph`, which was parsed from `blob`.
    ///
    /// # Errors
    /// The first stage that is unknown, or whose shapes do not fit together.
    pub fn prepare(blob: &[u8], graph: &Graph) -> Result<Program, Unsupported> {
        let whole = |why: String| Unsupported {
            stage: 0,
            kind: graph.stages.first().map_or(StageKind(5), |s| s.kind),
            why: format!("the graph as a whole: {why}"),
        };
        let layout = Layout::new(graph).map_err(whole)?;
        let consts = blob.get(graph.const_offset..).ok_or_else(|| whole("no constant section".into()))?;
        let mut steps = Vec::with_capacity(graph.stages.len());
        let mut work = 0u64;
        let mut unpacked = 0usize;
        let mut add = |index: usize, stage: &Stage| -> Result<(), Unsupported> {
            for view in &stage.buffers {
                // Constants become f32, and index maps take up to 16 bytes for each index of each dimension.
                let elements =
                    view.dims.iter().fold(1usize, |product, &dim| product.saturating_mul(dim as usize));
                let constants = if view.location == Location::Blob { elements.saturating_mul(4) } else { 0 };
                let indices = view.dims.iter().map(|&dim| 16 * dim as usize).sum();
                unpacked = unpacked.saturating_add(constants).saturating_add(indices);
            }
            if unpacked > MOST_UNPACKED {
                let why = "the stages' constants and dims, each counted anew, exceed all memory".into();
                return Err(Unsupported { stage: index, kind: stage.kind, why });
            }
            let context = Context::new(blob, consts, &layout, stage);
            let prepared =
                family(&context).map_err(|why| Unsupported { stage: index, kind: stage.kind, why })?;
            work = work.saturating_add(prepared.work);
            let Prepared { operation, outputs, .. } = prepared;
            steps.push(Step { stage: index, kind: stage.kind, operation, outputs });
            Ok(())
        };
        for (index, stage) in graph.stages.iter().enumerate() {
            add(index, stage)?;
            let mut parent = stage;
            while let Some(injected) = &parent.injected {
                add(index, injected)?;
                parent = injected;
            }
        }
        let slots = |tensors: &[ncs2::blob::IoTensor], areas: &[(usize, usize)]| {
            let pairs = tensors.iter().zip(areas);
            pairs.map(|(t, &(begin, bytes))| Slot { offset: t.offset, begin, bytes }).collect::<Vec<_>>()
        };
        let (inputs, outputs) =
            (slots(&graph.inputs, &layout.inputs), slots(&graph.outputs, &layout.outputs));
        let batch = graph.batch as usize;
        let work = work.saturating_mul(batch as u64);
        if work > MOST_WORK {
            return Err(whole(format!("{work} element operations in one call")));
        }
        Ok(Program { steps, layout, inputs, outputs, batch, work })
    }

    /// Memory for one executor, all zeros.
    pub fn arena(&self) -> Arena {
        // Two spare words: a row of bytes may end in the middle of a word.
        Arena { words: vec![0; self.layout.bytes / 2 + 2], scratch: Scratch::default() }
    }

    /// Element operations of one call, roughly: what a caller may use to bound the time of an untrusted graph.
    pub fn work(&self) -> u64 {
        self.work
    }

    /// One inference: a whole input FIFO element to a whole output FIFO element. Bytes between the tensors of the
    /// output become 0; an input that is too short counts as continued by zeros.
    ///
    /// Takes all cores while it is the only one that runs in this process, else only its caller's thread: many
    /// executors at once make the most of the cores without cutting each stage up. The answer is the same, bit by bit.
    pub fn run(&self, arena: &mut Arena, input: &[u8], output: &mut [u8]) {
        let turn = Turn::take();
        let threads = if turn.alone && self.work >= WORTH_THE_POOL { Threads::All } else { Threads::One };
        self.run_on(threads, arena, input, output);
    }

    /// The same on a given number of threads.
    pub fn run_on(&self, threads: Threads, arena: &mut Arena, input: &[u8], output: &mut [u8]) {
        arena.scratch.parallel = threads == Threads::All;
        let mut run = || {
            self.execute(arena, input, output, |_, step, arena| {
                step.operation.run(&mut arena.words, &mut arena.scratch);
            });
        };
        match threads {
            Threads::One => run(),
            // Once into the pool for the whole run, not for each loop of each stage: entering costs two wake-ups.
            Threads::All => rayon::scope(|_| run()),
        }
    }

    /// Like [`Program::run`] on all cores, calling `look` after each stage with its time and a way to read what it wrote.
    pub fn run_stages(
        &self,
        arena: &mut Arena,
        input: &[u8],
        output: &mut [u8],
        mut look: impl FnMut(&StageRun<'_>) + Send,
    ) {
        arena.scratch.parallel = true;
        let clock = Monotonic::new();
        rayon::scope(|_| {
            self.execute(arena, input, output, |batch, step, arena| {
                let start = clock.now();
                step.operation.run(&mut arena.words, &mut arena.scratch);
                let wall = clock.now() - start;
                look(&StageRun {
                    stage: step.stage,
                    kind: step.kind,
                    batch,
                    wall,
                    step,
                    arena: &arena.words,
                });
            });
        });
    }

    fn execute(
        &self,
        arena: &mut Arena,
        input: &[u8],
        output: &mut [u8],
        mut each: impl FnMut(usize, &Step, &mut Arena),
    ) {
        arena.words.resize(self.layout.bytes / 2 + 2, 0);
        output.fill(0);
        for batch in 0..self.batch {
            for slot in &self.inputs {
                slot.fill(batch, input, &mut arena.words);
            }
            for step in &self.steps {
                each(batch, step, arena);
            }
            for slot in &self.outputs {
                slot.drain(batch, &arena.words, output);
            }
        }
    }
}

impl Slot {
    fn range(&self, batch: usize, element: usize) -> std::ops::Range<usize> {
        let begin = self.offset.saturating_add(batch.saturating_mul(self.bytes)).min(element);
        begin..begin.saturating_add(self.bytes).min(element)
    }

    fn fill(&self, batch: usize, element: &[u8], arena: &mut [u16]) {
        let bytes = &element[self.range(batch, element.len())];
        let words = &mut arena[self.begin / 2..(self.begin + self.bytes).div_ceil(2)];
        let (pairs, odd) = bytes.as_chunks::<2>();
        let (whole, rest) = words.split_at_mut(pairs.len());
        whole.iter_mut().zip(pairs).for_each(|(word, &pair)| *word = u16::from_le_bytes(pair));
        rest.fill(0);
        if let (Some(word), Some(&byte)) = (rest.first_mut(), odd.first()) {
            *word = u16::from(byte);
        }
    }

    fn drain(&self, batch: usize, arena: &[u16], element: &mut [u8]) {
        let range = self.range(batch, element.len());
        let bytes = &mut element[range];
        for (pair, word) in bytes.chunks_mut(2).zip(&arena[self.begin / 2..]) {
            pair.copy_from_slice(&word.to_le_bytes()[..pair.len()]);
        }
    }
}

/// Finds the family that knows a stage.
fn family(context: &Context<'_>) -> Result<Prepared, String> {
    match context.kind() {
        38 => nce::prepare(context),
        0 | 8 | 22 | 49 => conv::prepare(context),
        1 | 2 | 60 => pool::prepare(context),
        3 => softmax::prepare(context),
        6 | 20 | 21 | 23 | 26 | 44 | 45 | 46 | 57 | 101 | 102 | 110 | 134 | 135 | 137 | 138 => {
            activation::prepare(context)
        }
        9 | 10 | 15 | 47 => activation::prepare_channels(context),
        11 | 35 | 61 | 62 => norm::prepare(context),
        12..=14 | 75..=90 => eltwise::prepare(context),
        19 | 28 | 34 | 71 | 73 | 100 | 111 | 128 | 133 => layout::prepare(context),
        67 | 72 => resample::prepare(context),
        70 => lstm::prepare(context),
        91 => matmul::prepare(context),
        93 | 105 | 112..=114 => reduce::prepare(context),
        104 => topk::prepare(context),
        _ => Err("this engine does not know this stage type".into()),
    }
}

/// Resolves a view for [`Context`].
fn resolve(view: &View, layout: &Layout, consts: &[u8]) -> Result<Place, String> {
    Place::resolve(view, layout, consts)
}
