//! The `execute` engine: runs the stages of a compiled graph on the CPU.
//!
//! ```text
//! Program::prepare(blob, graph) ─► operations (weights unpacked to f32, every shape checked; shared by all executors)
//! Program::arena()              ─► memory of one executor (input and output slots, BSS, CMX, scratch)
//! Program::run(arena, in, out)  ─► per element of the batch: every operation in order
//! ```
//! # What the numbers mean
//! Storage is FP16, arithmetic inside a stage FP32 (S32 tensors: exact integers), rounding to nearest even at each store.
//! The reference is what the network means, as the OpenVINO CPU plugin computes it; every stage type here agrees with it
//! (`tests/data/stages`) but for those that the vendor's compiler was never seen to emit. Not known, and **unverified on
//! hardware**, since no stick was measured:
//! - the width of the accumulators of the NCE and of the SHAVE kernels, and the order of their sums;
//! - whether a store beyond 65504 gives infinity (as here) or saturates, what becomes of subnormal numbers and of NaN;
//! - S32: overflow (wraps here), division by 0 (0 here);
//! - where the epsilon of MVN stands (here beside the root, `sqrt(variance) + eps`: the file does not say);
//! - repetitions in CTCDecoder (always merged here), the thresholds of Proposal beside NMS, order of equal scores;
//! - indices out of range (the nearest one inside here);
//! - a padded average of the NCE: the descriptor is the same whether the network counts the padding or not (here the
//!   kernel's area divides, so a network that does not count it differs at the borders), and its one flag stands for both
//!   axes (here an axis is padded where the output's size leaves room for it);
//! - which dimension of an LSTM's sequence is time when both are equal (here the second in the order N, C, W: batch first).
//!
//! One file per family of stages; a family checks at prepare time everything that its loops rely on, so that running
//! cannot fail. A stage that no family knows is refused by name.

mod activation;
mod boxes;
mod conv;
mod convnd;
mod detect;
mod eltwise;
mod gather;
mod layout;
mod lstm;
mod matmul;
mod memory;
mod nce;
mod norm;
mod params;
mod planes;
mod pool;
mod proposal;
mod reduce;
mod repeat;
mod resample;
mod roi;
mod sequence;
mod softmax;
mod topk;
mod volume;
mod yolo;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ncs2::blob::{Graph, Location, Stage, StageKind, View};
use ncs2::clock::{Clock as _, Monotonic};

use memory::{Layout, Place};
use params::Context;

/// Stage types that this engine runs and that no compiled graph was ever seen with: tested by hand, from public sources.
pub const NEVER_SEEN: [u32; 5] = [58, 113, 116, 128, 129];

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
    flow: Flow,
}

/// Where it goes after a step.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Flow {
    /// To the next.
    On,
    /// Into the body of a loop.
    Start { turns: usize },
    /// Back to the step that starts the loop, while there are turns left.
    End { turns: usize, start: usize },
}

/// Loops inside loops that are accepted.
const MOST_LOOPS: usize = 8;

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
    more: Vec<u16>,
    /// Which turn of the innermost loop it is.
    turn: usize,
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
        // Steps that started a loop which is still open, with the work up to there.
        let mut loops: Vec<(usize, usize, u64)> = Vec::new();
        let mut add = |index: usize, stage: &Stage| -> Result<(), Unsupported> {
            let unsupported = |why: String| Unsupported { stage: index, kind: stage.kind, why };
            for view in &stage.buffers {
                // Constants become f32, and index maps take up to 16 bytes for each index of each dimension.
                let elements =
                    view.dims.iter().fold(1usize, |product, &dim| product.saturating_mul(dim as usize));
                let constants = if view.location == Location::Blob { elements.saturating_mul(4) } else { 0 };
                let indices = view.dims.iter().map(|&dim| 16 * dim as usize).sum();
                unpacked = unpacked.saturating_add(constants).saturating_add(indices);
            }
            if unpacked > MOST_UNPACKED {
                return Err(unsupported(
                    "the stages' constants and dims, each counted anew, exceed all memory".into(),
                ));
            }
            let context = Context::new(blob, consts, &layout, stage);
            let (prepared, mut flow) = match stage.kind.0 {
                119 | 120 => repeat::prepare(&context).map_err(unsupported)?,
                _ => (family(&context).map_err(unsupported)?, Flow::On),
            };
            work = work.saturating_add(prepared.work);
            match &mut flow {
                Flow::On => {}
                &mut Flow::Start { turns } => {
                    loops.push((steps.len(), turns, work));
                    if loops.len() > MOST_LOOPS {
                        return Err(unsupported(format!("more than {MOST_LOOPS} loops inside each other")));
                    }
                }
                Flow::End { turns, start } => {
                    let (begin, expected, before) =
                        loops.pop().ok_or_else(|| unsupported("it ends no loop".into()))?;
                    if expected != *turns {
                        return Err(unsupported(format!("{turns} turns of a loop of {expected}")));
                    }
                    *start = begin;
                    let once = (work - before).saturating_add(1);
                    work = work.saturating_add(once.saturating_mul(expected as u64 - 1));
                }
            }
            let Prepared { operation, outputs, .. } = prepared;
            steps.push(Step { stage: index, kind: stage.kind, operation, outputs, flow });
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
        if let Some(&(step, ..)) = loops.last() {
            let Step { stage, kind, .. } = steps[step];
            return Err(Unsupported { stage, kind, why: "the loop has no end".into() });
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

    /// All steps in order, those of loops once for each turn.
    fn walk(&self, mut each: impl FnMut(usize, &Step)) {
        // For each open loop the step that starts it, and the turn.
        let mut open: Vec<(usize, usize)> = Vec::new();
        let mut at = 0;
        while let Some(step) = self.steps.get(at) {
            if matches!(step.flow, Flow::Start { .. }) && open.last().is_none_or(|&(start, _)| start != at) {
                open.push((at, 0));
            }
            each(open.last().map_or(0, |&(_, turn)| turn), step);
            at += 1;
            if let (Flow::End { turns, start }, Some((_, turn))) = (step.flow, open.last_mut()) {
                *turn += 1;
                if *turn < turns {
                    at = start;
                } else {
                    open.pop();
                }
            }
        }
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
            self.walk(|turn, step| {
                arena.scratch.turn = turn;
                each(batch, step, arena);
            });
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

/// Said of a stage type that no family knows.
const UNKNOWN: &str = "this engine does not know this stage type";

/// Finds the family that knows a stage.
fn family(context: &Context<'_>) -> Result<Prepared, String> {
    match context.kind() {
        38 => nce::prepare(context),
        0 | 8 | 22 | 49 | 58 | 63 => conv::prepare(context),
        1 | 2 | 60 => pool::prepare(context),
        3 => softmax::prepare(context),
        4 => matmul::prepare_full(context),
        6
        | 20
        | 21
        | 23
        | 26
        | 44..=46
        | 57
        | 92
        | 101
        | 102
        | 110
        | 131
        | 132
        | 134
        | 135
        | 137
        | 138
        | 140 => activation::prepare(context),
        9 | 10 | 15 | 47 => activation::prepare_channels(context),
        11 | 18 | 35 | 61 | 62 => norm::prepare(context),
        12..=14 | 75..=90 => eltwise::prepare(context),
        19 | 28 | 34 | 71 | 73 | 111 | 128 | 129 | 133 => layout::prepare(context),
        29 => yolo::prepare(context),
        30 => yolo::prepare_reorg(context),
        37 => detect::prepare(context),
        43 | 94 | 117 => sequence::prepare(context),
        64 => proposal::prepare(context),
        65 | 66 | 123 => roi::prepare(context),
        67 | 72 => resample::prepare(context),
        70 => lstm::prepare(context),
        91 => matmul::prepare(context),
        93 | 105 | 112..=114 => reduce::prepare(context),
        100 | 103 | 126 | 136 | 139 => gather::prepare(context),
        104 => topk::prepare(context),
        116 => convnd::prepare(context),
        118 => volume::prepare(context),
        _ => Err(UNKNOWN.into()),
    }
}

/// Resolves a view for [`Context`].
fn resolve(view: &View, layout: &Layout, consts: &[u8]) -> Result<Place, String> {
    Place::resolve(view, layout, consts)
}
