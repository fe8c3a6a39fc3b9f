//! LSTMCell (70): one or several cells of a long short-term memory, gates in the order f, i, c, o.
use super::memory::Place;
use super::params::{Context, halves};
use super::{Operation, Prepared, Scratch};
use crate::gemm::{Matrix, multiply};

struct Lstm {
    input: Place,
    hidden: Place,
    cell: Place,
    /// `[4H][I]`, then `[4H][H]`, then `[4H]`.
    from_input: Vec<f32>,
    from_hidden: Vec<f32>,
    bias: Vec<f32>,
    output: Place,
    last_hidden: Option<Place>,
    last_cell: Option<Place>,
    forward: bool,
    inputs: usize,
    units: usize,
    cells: usize,
    batches: usize,
    /// The input is [cell][batch][input], not [batch][cell][input]; the same of the output.
    input_by_cell: bool,
    output_by_cell: bool,
}

/// Whether a sequence lies as [cell][batch][…] (networks of ONNX) or as [batch][cell][…]: the parameters do not say, the
/// dims do. `None` where they are no help. As many cells as batches are taken for the latter (unverified).
fn by_cell(place: &Place, cells: usize, batches: usize) -> Option<bool> {
    let rest: Vec<usize> = place.dims()[1..].iter().copied().filter(|&dim| dim != 1).collect();
    if rest == [cells, batches] { Some(false) } else { (rest == [batches, cells]).then_some(true) }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn dense(data: &[f32], rows: usize) -> Matrix<'_> {
    Matrix { data, rows, columns: 1 }
}

fn turned(data: &[f32], rows: usize) -> Matrix<'_> {
    Matrix { data, rows: 1, columns: rows }
}

impl Operation for Lstm {
    fn run(&self, arena: &mut [u16], _: &mut Scratch) {
        let (units, batches) = (self.units, self.batches);
        let read = |place: &Place| {
            let mut values = vec![0.0; place.elements()];
            place.read(arena, &mut values);
            values
        };
        let (x, mut hidden, mut cell) = (read(&self.input), read(&self.hidden), read(&self.cell));
        let steps = self.cells * batches;
        // Input parts of all gates at once, then step by step what depends on the step before.
        let mut gates = vec![0.0; steps * 4 * units];
        let shape = (steps, 4 * units, self.inputs);
        multiply(shape, dense(&x, self.inputs), turned(&self.from_input, self.inputs), &mut gates, false);
        let mut recurrent = vec![0.0; batches * 4 * units];
        let mut output = vec![0.0; steps * units];
        for step in 0..self.cells {
            let step = if self.forward { step } else { self.cells - 1 - step };
            // A sequence lies in one piece.
            let place =
                |n: usize, by_cell: bool| if by_cell { step * batches + n } else { n * self.cells + step };
            let shape = (batches, 4 * units, units);
            multiply(shape, dense(&hidden, units), turned(&self.from_hidden, units), &mut recurrent, false);
            for n in 0..batches {
                let (from, to) = (place(n, self.input_by_cell), place(n, self.output_by_cell));
                for u in 0..units {
                    let gate = |k: usize| {
                        let at = k * units + u;
                        gates[from * 4 * units + at] + recurrent[n * 4 * units + at] + self.bias[at]
                    };
                    let (forget, take, new, show) =
                        (sigmoid(gate(0)), sigmoid(gate(1)), gate(2).tanh(), sigmoid(gate(3)));
                    let at = n * units + u;
                    cell[at] = forget * cell[at] + take * new;
                    hidden[at] = show * cell[at].tanh();
                    output[to * units + u] = hidden[at];
                }
            }
        }
        self.output.write(arena, &output);
        if let Some(place) = &self.last_hidden {
            place.write(arena, &hidden);
        }
        if let Some(place) = &self.last_cell {
            place.write(arena, &cell);
        }
    }
}

/// Parameters: forward, nCells, nBatches, useCellState, nOutputs. Buffers: x, h0, c0, weights, bias, Y [, h, c] [, temp].
pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let forward = context.flag(0)?;
    let (cells, batches) = (context.size(1, 1)?, context.size(2, 1)?);
    let with_cell = context.flag(3)?;
    let count = context.size(4, 1)?;
    let (input, hidden, cell) = (context.operand(0)?, context.operand(1)?, context.operand(2)?);
    let (weights, bias) = (context.constants(3)?, context.constants(4)?);
    let output = context.target(5)?;
    halves(&[&input, &hidden, &cell, &output])?;
    let inputs = input.dims[0];
    let units = bias.len() / 4;
    let steps = cells.saturating_mul(batches);
    let fits = units > 0
        && bias.len() == 4 * units
        && input.elements() == steps.saturating_mul(inputs)
        && output.elements() == steps.saturating_mul(units)
        && hidden.elements() == batches * units
        && cell.elements() == batches * units
        && weights.len() == (4 * units).saturating_mul(inputs + units);
    if !fits {
        return Err(format!(
            "operands do not fit {cells} cells, {batches} batches, {inputs} inputs, {units} units"
        ));
    }
    let (last_hidden, last_cell) = match (count, with_cell) {
        (1, _) => (None, None),
        (2, true) => (None, context.optional(6)?),
        (3, _) => (context.optional(6)?, context.optional(7)?),
        _ => return Err(format!("what {count} outputs are is not known")),
    };
    let mut outputs = vec![output.clone()];
    for place in [&last_hidden, &last_cell].into_iter().flatten() {
        if place.elements() != batches * units || place.is_const() {
            return Err("a state output does not fit".into());
        }
        outputs.push(place.clone());
    }
    let (from_input, from_hidden) = weights.split_at(4 * units * inputs);
    let input_by_cell = by_cell(&input, cells, batches).unwrap_or(false);
    let output_by_cell = by_cell(&output, cells, batches).unwrap_or(input_by_cell);
    let work = (weights.len() as u64).saturating_mul(steps as u64);
    let operation = Lstm {
        input,
        hidden,
        cell,
        from_input: from_input.to_vec(),
        from_hidden: from_hidden.to_vec(),
        bias,
        output,
        last_hidden,
        last_cell,
        forward,
        inputs,
        units,
        cells,
        batches,
        input_by_cell,
        output_by_cell,
    };
    Ok(Prepared { operation: Box::new(operation), outputs, work })
}
