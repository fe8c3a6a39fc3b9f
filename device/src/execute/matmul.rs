//! GEMM (91): `alpha · A · B + beta · C`, matrices in the two minor dimensions, batches in the others.
use super::memory::{Place, RANK};
use super::params::Context;
use super::{Operation, Prepared, Scratch, sized};
use crate::gemm::{Matrix, multiply};

struct MatMul {
    /// Seen with the output's batch dimensions.
    a: Place,
    b: Place,
    addend: Option<Place>,
    output: Place,
    shape: (usize, usize, usize),
    transposed: (bool, bool),
    factors: (f32, f32),
}

impl Operation for MatMul {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let (m, n, k) = self.shape;
        let batches = self.output.elements() / (m * n);
        let parallel = scratch.parallel && m * n * k > 1 << 20;
        let Scratch { a, b, c, .. } = scratch;
        let (a, b, c) = (sized(a, batches * m * k), sized(b, batches * k * n), sized(c, batches * m * n));
        self.a.read(arena, a);
        self.b.read(arena, b);
        let matrix = |data, transposed: bool, rows: usize, columns: usize| {
            let (rows, columns) = if transposed { (1, rows) } else { (columns, 1) };
            Matrix { data, rows, columns }
        };
        for ((a, b), c) in a.chunks_exact(m * k).zip(b.chunks_exact(k * n)).zip(c.chunks_exact_mut(m * n)) {
            let (a, b) = (matrix(a, self.transposed.0, m, k), matrix(b, self.transposed.1, k, n));
            multiply(self.shape, a, b, c, parallel);
        }
        let (alpha, beta) = self.factors;
        if alpha != 1.0 {
            c.iter_mut().for_each(|v| *v *= alpha);
        }
        if let Some(addend) = &self.addend {
            let values = sized(&mut scratch.a, addend.elements());
            addend.read(arena, values);
            c.iter_mut().zip(values).for_each(|(c, v)| *c += beta * *v);
        }
        self.output.write(arena, c);
    }
}

/// Repeats dims of 1 from `from` on to fit the output, by position; the dims before stay as they are.
fn repeat(operand: &Place, output: &Place, from: usize) -> Result<Place, String> {
    let mut seen = operand.clone();
    seen.rank = output.rank;
    if operand.rank > output.rank {
        return Err("an operand has more dimensions than the output".into());
    }
    for i in from..output.rank {
        let dim = if i < operand.rank { operand.dims[i] } else { 1 };
        if dim == 1 {
            seen.strides[i] = 0;
        } else if dim != output.dims[i] {
            return Err("operand dims do not fit the output's".into());
        }
        seen.dims[i] = output.dims[i];
    }
    Ok(seen)
}

pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let factors = (context.float(0)?, context.float(1)?);
    let three = context.flag(2)?;
    let transposed = (context.flag(3)?, context.flag(4)?);
    let (a, b) = (context.operand(0)?, context.operand(1)?);
    let output = context.target(if three { 3 } else { 2 })?;
    let at = |place: &Place, i: usize| if i < RANK { place.dims[i] } else { 1 };
    let (columns, rows) = (|p: &Place| at(p, 0), |p: &Place| at(p, 1));
    let (m, k) = if transposed.0 { (columns(&a), rows(&a)) } else { (rows(&a), columns(&a)) };
    let (n, k2) = if transposed.1 { (rows(&b), columns(&b)) } else { (columns(&b), rows(&b)) };
    if k != k2 || (n, m) != (columns(&output), rows(&output)) {
        return Err(format!("matrices of {m}x{k} and {k2}x{n} do not give the output"));
    }
    let addend = if three { Some(repeat(&context.operand(2)?, &output, 0)?) } else { None };
    let work = (output.elements() as u64).saturating_mul(k as u64);
    // A repeated operand is unfolded, so its size is bounded by the output's, not by its area.
    let batches = output.elements() / (m * n);
    if batches.saturating_mul(k).saturating_mul(m.max(n)) > 1 << 28 {
        return Err("repeated matrices are larger than any stick's memory".into());
    }
    let operation = MatMul {
        a: repeat(&a, &output, 2)?,
        b: repeat(&b, &output, 2)?,
        addend,
        output: output.clone(),
        shape: (m, n, k),
        transposed,
        factors,
    };
    Ok(Prepared { operation: Box::new(operation), outputs: vec![output], work })
}
