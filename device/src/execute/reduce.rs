//! Reductions over a constant list of dimensions: And (93), Min (105), Max (112), Sum (113), Mean (114).
use super::memory::{Place, RANK};
use super::params::Context;
use super::{Operation, Prepared, Scratch, sized};

struct Reduce {
    kind: u32,
    input: Place,
    output: Place,
    /// Distance in the dense result that a step along each input dimension makes; 0 along reduced ones.
    steps: [usize; RANK],
    count: usize,
}

impl Operation for Reduce {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let values = sized(&mut scratch.a, self.input.elements());
        self.input.read(arena, values);
        let result = sized(&mut scratch.b, self.output.elements());
        result.fill(match self.kind {
            93 => 1.0,
            105 => f32::INFINITY,
            112 => f32::NEG_INFINITY,
            _ => 0.0,
        });
        let mut index = [0; RANK];
        let mut at = 0;
        for &mut value in values {
            let sum = &mut result[at];
            match self.kind {
                93 => *sum = if *sum != 0.0 && value != 0.0 { 1.0 } else { 0.0 },
                105 => *sum = sum.min(value),
                112 => *sum = sum.max(value),
                _ => *sum += value,
            }
            for ((index, &dim), step) in index.iter_mut().zip(self.input.dims()).zip(self.steps) {
                *index += 1;
                at += step;
                if *index < dim {
                    break;
                }
                at -= step * *index;
                *index = 0;
            }
        }
        if self.kind == 114 {
            result.iter_mut().for_each(|v| *v /= self.count as f32);
        }
        self.output.write(arena, result);
    }
}

/// Parameter: keepDims. Buffers: in, out, axes (S32 in the file, memory indices of the input's dimensions).
pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output) = (context.operand(0)?, context.target(1)?);
    let axes = context.operand(2)?.constant_integers()?;
    let mut reduced = [false; RANK];
    for axis in axes {
        let position = usize::try_from(axis).ok().filter(|&a| a < input.rank);
        reduced[position.ok_or_else(|| format!("axis {axis} is none of the input's"))?] = true;
    }
    // Where each of the others is in the output, which may lie in another order, with or without dims of 1.
    let kept = input.axes().into_iter().filter(|&d| !reduced[d] && input.dims[d] > 1).collect::<Vec<_>>();
    let targets = output.axes().into_iter().filter(|&t| output.dims[t] > 1).collect::<Vec<_>>();
    let same = |(&t, &d): (&usize, &usize)| output.dims[t] == input.dims[d];
    if targets.len() != kept.len() || !targets.iter().zip(&kept).all(same) {
        return Err(format!("the results for {:?} do not fit {:?}", input.dims(), output.dims()));
    }
    let mut seen = output.clone();
    (seen.rank, seen.dims, seen.strides) = (kept.len().max(1), [1; RANK], [0; RANK]);
    let (mut steps, mut size, mut rank) = ([0; RANK], 1, 0);
    for (d, step) in steps.iter_mut().enumerate().take(input.rank) {
        let Some(target) = kept.iter().position(|&k| k == d).map(|at| targets[at]) else { continue };
        (seen.dims[rank], seen.strides[rank]) = (output.dims[target], output.strides[target]);
        rank += 1;
        *step = size;
        size *= input.dims[d];
    }
    let work = 4 * input.elements() as u64;
    let count = input.elements() / size;
    let operation = Reduce { kind: context.kind(), input, output: seen, steps, count };
    Ok(Prepared { operation: Box::new(operation), outputs: vec![output], work })
}
