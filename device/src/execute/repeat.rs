//! Loops: LoopStart (119) and LoopEnd (120) around the stages of a body.
//!
//! ```text
//! LoopStart: for each rule, slice `turn` of a tensor ─► the body's operand
//! … body …
//! LoopEnd:   for each rule, the body's result ─► slice `turn` of a tensor; back to LoopStart until all turns are done
//! ```
//! What the body hands to its next turn it copies itself.
use super::memory::{Place, Transfer};
use super::params::Context;
use super::{Flow, Operation, Prepared, Scratch};

/// Most turns of a loop: far more steps than a sequence has.
const MOST_TURNS: usize = 1 << 20;

/// One tensor that is taken apart or put together.
struct Rule {
    whole: Place,
    part: Place,
    axis: usize,
    /// Index along the axis where the slice of turn 0 begins, and the distance to the next.
    first: isize,
    stride: isize,
}

impl Rule {
    /// Parameters: axis (memory index), start, stride, end. Negative starts count from the end.
    fn new(
        context: &Context<'_>,
        at: usize,
        whole: Place,
        part: Place,
        turns: usize,
    ) -> Result<Self, String> {
        let axis = context.axis(at, &whole)?;
        let (start, stride) = (context.int(at + 1)? as isize, context.int(at + 2)? as isize);
        let mut dims = whole.dims;
        dims[axis] = part.dims[axis];
        if part.rank != whole.rank || dims != part.dims || part.dtype.bytes() != whole.dtype.bytes() {
            return Err(format!("slices of {:?} are not {:?}", whole.dims(), part.dims()));
        }
        let (size, length) = (whole.dims[axis] as isize, part.dims[axis] as isize);
        let start = if start < 0 { start + size } else { start };
        // Backwards, the start names the last element of the first slice.
        let first = if stride < 0 { start - (length - 1) } else { start };
        let last = first + stride * (turns as isize - 1);
        if first.min(last) < 0 || first.max(last) + length > size {
            return Err(format!("{turns} slices from {start} by {stride} leave the {size} elements"));
        }
        Ok(Rule { whole, part, axis, first, stride })
    }

    fn slice(&self, turn: usize) -> Place {
        let mut slice = self.whole.clone();
        slice.dims[self.axis] = self.part.dims[self.axis];
        slice.offset += (self.first + self.stride * turn as isize) * self.whole.strides[self.axis];
        slice
    }
}

struct Slices {
    rules: Vec<Rule>,
    /// Takes apart, or puts together.
    apart: bool,
}

impl Operation for Slices {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        for rule in &self.rules {
            let slice = rule.slice(scratch.turn);
            let (from, to) = if self.apart { (slice, rule.part.clone()) } else { (rule.part.clone(), slice) };
            // Dims and types were found equal in `Rule::new`.
            if let Ok(transfer) = Transfer::new(from, to) {
                transfer.run(arena, &mut scratch.words);
            }
        }
    }
}

/// Turns of a loop, from either of its ends.
fn turns(context: &Context<'_>) -> Result<usize, String> {
    if context.int(0)? == -1 {
        return Err("the number of its turns is known at run time only".into());
    }
    match context.size(0, 1)? {
        turns if turns > MOST_TURNS => Err(format!("{turns} turns of a loop")),
        turns => Ok(turns),
    }
}

/// LoopStart: turns, stages, count of rules, rules; buffers: (in, out) pairs. LoopEnd: turns, count of rules, rules; buffers:
/// (out, in) pairs.
pub(super) fn prepare(context: &Context<'_>) -> Result<(Prepared, Flow), String> {
    let apart = context.kind() == 119;
    let turns = turns(context)?;
    let head = if apart { 2 } else { 1 };
    let count = context.size(head, 0)?;
    if count.saturating_mul(2) > context.operands() {
        return Err(format!("{count} rules for {} operands", context.operands()));
    }
    let mut rules = Vec::with_capacity(count);
    let (mut outputs, mut work) = (Vec::with_capacity(count), 0);
    for index in 0..count {
        let (whole, part) = if apart {
            (context.operand(2 * index)?, context.target(2 * index + 1)?)
        } else {
            (context.target(2 * index)?, context.operand(2 * index + 1)?)
        };
        outputs.push(if apart { part.clone() } else { whole.clone() });
        work += part.elements() as u64;
        rules.push(Rule::new(context, head + 1 + 4 * index, whole, part, turns)?);
    }
    let flow = if apart { Flow::Start { turns } } else { Flow::End { turns, start: 0 } };
    Ok((Prepared { operation: Box::new(Slices { rules, apart }), outputs, work }, flow))
}
