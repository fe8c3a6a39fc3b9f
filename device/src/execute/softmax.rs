//! SoftMax (3) along one dimension.
use super::memory::Place;
use super::params::{Context, same_dims};
use super::{Operation, Prepared, Scratch, sized};

struct SoftMax {
    input: Place,
    output: Place,
    /// Elements along the axis, and distance between them in a dense tensor.
    count: usize,
    inner: usize,
}

impl Operation for SoftMax {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let values = sized(&mut scratch.a, self.input.elements());
        self.input.read(arena, values);
        for block in values.chunks_exact_mut(self.count * self.inner) {
            for begin in 0..self.inner {
                let along = || (begin..self.count * self.inner).step_by(self.inner);
                let most = along().fold(f32::NEG_INFINITY, |m, i| m.max(block[i]));
                let mut sum = 0.0;
                for i in along() {
                    block[i] = (block[i] - most).exp();
                    sum += block[i];
                }
                along().for_each(|i| block[i] /= sum);
            }
        }
        self.output.write(arena, values);
    }
}

pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output) = (context.operand(0)?, context.target(1)?);
    same_dims(&input, &output)?;
    let axis = context.axis(0, &input)?;
    let (count, inner) = (input.dims[axis], input.dims[..axis].iter().product());
    let work = 16 * input.elements() as u64;
    let outputs = vec![output.clone()];
    Ok(Prepared { operation: Box::new(SoftMax { input, output, count, inner }), outputs, work })
}
