//! Sequences: CTCDecoder (43), ReverseSequence (94), OneHot (117).
use super::memory::Place;
use super::params::Context;
use super::{Operation, Prepared, Scratch, sized};

pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    match context.kind() {
        43 => ctc(context),
        94 => reverse(context),
        117 => one_hot(context),
        _ => Err("this engine does not know this kind of sequence".into()),
    }
}

/// Best class of each step, repetitions and blanks (the last class) left out.
struct Ctc {
    input: Place,
    mask: Place,
    output: Place,
    classes: usize,
    batches: usize,
}

impl Operation for Ctc {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let Scratch { a, b, c, .. } = scratch;
        let (from, mask) = (sized(a, self.input.elements()), sized(b, self.mask.elements()));
        let to = sized(c, self.output.elements());
        self.input.read(arena, from);
        self.mask.read(arena, mask);
        to.fill(-1.0);
        let steps = mask.len() / self.batches;
        for (n, to) in to.chunks_exact_mut(steps).enumerate() {
            let (mut last, mut slots) = (self.classes, to.iter_mut());
            for step in (0..steps).map(|t| t * self.batches + n).take_while(|&s| mask[s] != 0.0) {
                let scores = &from[step * self.classes..][..self.classes];
                let best =
                    (1..self.classes).fold(0, |best, c| if scores[c] > scores[best] { c } else { best });
                if best != last && best != self.classes - 1 {
                    slots.next().into_iter().for_each(|slot| *slot = best as f32);
                }
                last = best;
            }
        }
        self.output.write(arena, to);
    }
}

/// No parameters: repetitions are always merged (the file does not say otherwise; unverified on hardware). Buffers: scores
/// (step, batch, class), mask (step, batch), out (batch, step).
fn ctc(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, mask, output) = (context.operand(0)?, context.operand(1)?, context.target(2)?);
    let (classes, batches) = (input.dims[0], mask.dims[0]);
    let fits = input.elements() == mask.elements() * classes
        && (input.rank < 2 || input.dims[1] == batches)
        && output.elements() == mask.elements();
    if !fits {
        return Err("scores, mask and output do not fit".into());
    }
    let work = 2 * input.elements() as u64;
    let outputs = vec![output.clone()];
    Ok(Prepared { operation: Box::new(Ctc { input, mask, output, classes, batches }), outputs, work })
}

struct Reverse {
    input: Place,
    lengths: Place,
    output: Place,
    /// (size, distance in the dense tensor).
    sequence: (usize, usize),
    batch: (usize, usize),
}

impl Operation for Reverse {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let Scratch { a, b, .. } = scratch;
        let n = self.input.elements();
        let (from, to) = (sized(a, n), sized(b, n));
        self.input.read(arena, from);
        let mut lengths = vec![0; self.lengths.elements()];
        self.lengths.read_i32(arena, &mut lengths);
        let (size, step) = self.sequence;
        for (at, value) in to.iter_mut().enumerate() {
            let position = at / step % size;
            let length = (lengths[at / self.batch.1 % self.batch.0].max(0) as usize).min(size);
            let source = if position < length { length - 1 - position } else { position };
            *value = from[at - position * step + source * step];
        }
        self.output.write(arena, to);
    }
}

/// Parameters: seqAxis, batchAxis (memory indices). Buffers: in, lengths, out.
fn reverse(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, lengths, output) = (context.operand(0)?, context.operand(1)?, context.target(2)?);
    super::params::same_dims(&input, &output)?;
    let axis = |index| {
        let axis = context.axis(index, &input)?;
        Ok::<_, String>((input.dims[axis], input.dims[..axis].iter().product()))
    };
    let (sequence, batch) = (axis(0)?, axis(1)?);
    if lengths.elements() != batch.0 {
        return Err(format!("{} lengths for {} sequences", lengths.elements(), batch.0));
    }
    let work = 8 * input.elements() as u64;
    let outputs = vec![output.clone()];
    Ok(Prepared { operation: Box::new(Reverse { input, lengths, output, sequence, batch }), outputs, work })
}

struct OneHot {
    input: Place,
    output: Place,
    inner: usize,
    depth: usize,
    on: f32,
    off: f32,
}

impl Operation for OneHot {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let to = sized(&mut scratch.a, self.output.elements());
        let mut from = vec![0; self.input.elements()];
        self.input.read_i32(arena, &mut from);
        to.fill(self.off);
        for (at, &index) in from.iter().enumerate() {
            // What lies outside is nowhere hot.
            if let Some(index) = usize::try_from(index).ok().filter(|&i| i < self.depth) {
                to[(at / self.inner * self.depth + index) * self.inner + at % self.inner] = self.on;
            }
        }
        self.output.write(arena, to);
    }
}

/// Parameters: axis (memory index in the output), depth, on, off.
fn one_hot(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output) = (context.operand(0)?, context.target(1)?);
    let (axis, depth) = (context.axis(0, &output)?, context.size(1, 1)?);
    let inner: usize = output.dims[..axis].iter().product();
    if output.dims[axis] != depth || output.elements() != input.elements().saturating_mul(depth) {
        return Err(format!("{} indices of depth {depth} do not fill the output", input.elements()));
    }
    let (on, off) = (context.float(2)?, context.float(3)?);
    let work = 2 * output.elements() as u64;
    let outputs = vec![output.clone()];
    Ok(Prepared { operation: Box::new(OneHot { input, output, inner, depth, on, off }), outputs, work })
}
