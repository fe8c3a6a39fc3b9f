//! Functions of two or three elements, with broadcasting: Sum (12) to Max (14), Div (75) to Select (90).
use ncs2::blob::DataType;

use super::activation::Function;
use super::memory::Place;
use super::params::Context;
use super::{Operation, Prepared, Scratch, sized};

struct Eltwise {
    kind: u32,
    /// Seen with the output's dims.
    inputs: Vec<Place>,
    output: Place,
    factors: (f32, f32),
    post: Option<Function>,
    /// All operands are S32: computed exactly.
    integers: bool,
}

fn truth(value: bool) -> f32 {
    f32::from(u8::from(value))
}

/// One element. Logical functions take anything but 0 for true and give 1 or 0.
fn of(kind: u32, a: f32, b: f32) -> f32 {
    match kind {
        12 => a + b,
        13 => a * b,
        14 => a.max(b),
        75 => a / b,
        76 => a.min(b),
        77 => (a - b) * (a - b),
        78 => truth(a == b),
        79 => truth(a != b),
        80 => truth(a > b),
        81 => truth(a >= b),
        82 => truth(a < b),
        83 => truth(a <= b),
        84 => truth(a == 0.0),
        85 => truth(a != 0.0 && b != 0.0),
        86 => truth(a != 0.0 || b != 0.0),
        87 => truth((a != 0.0) != (b != 0.0)),
        88 => a.powf(b),
        // Sign of the divisor, as in Python.
        _ => a - b * (a / b).floor(),
    }
}

/// One element of integers; overflow wraps around (unverified on hardware), a division by 0 gives 0.
fn of_integers(kind: u32, a: i32, b: i32) -> i32 {
    match kind {
        12 => a.wrapping_add(b),
        13 => a.wrapping_mul(b),
        14 => a.max(b),
        75 => a.checked_div(b).unwrap_or(0),
        76 => a.min(b),
        77 => a.wrapping_sub(b).wrapping_mul(a.wrapping_sub(b)),
        78 => i32::from(a == b),
        79 => i32::from(a != b),
        80 => i32::from(a > b),
        81 => i32::from(a >= b),
        82 => i32::from(a < b),
        83 => i32::from(a <= b),
        84 => i32::from(a == 0),
        85 => i32::from(a != 0 && b != 0),
        86 => i32::from(a != 0 || b != 0),
        87 => i32::from((a != 0) != (b != 0)),
        88 => (a as f32).powf(b as f32) as i32,
        _ if b == 0 => 0,
        // Sign of the divisor, as for floats.
        _ => match a.wrapping_rem(b) {
            rest if rest != 0 && (rest < 0) != (b < 0) => rest + b,
            rest => rest,
        },
    }
}

impl Eltwise {
    fn run_integers(&self, arena: &mut [u16]) {
        let read = |place: &Place| {
            let mut values = vec![0; place.elements()];
            place.read_i32(arena, &mut values);
            values
        };
        let inputs: Vec<Vec<i32>> = self.inputs.iter().map(read).collect();
        let (first, second) = (self.factors.0 as i32, self.factors.1 as i32);
        let value = |i: usize| match (inputs[0][i], inputs.get(1), inputs.get(2)) {
            (a, Some(b), Some(c)) => {
                if a != 0 {
                    b[i]
                } else {
                    c[i]
                }
            }
            (a, Some(b), None) => of_integers(self.kind, a.wrapping_mul(first), b[i].wrapping_mul(second)),
            (a, ..) => of_integers(self.kind, a, 0),
        };
        let values: Vec<i32> = (0..self.output.elements()).map(value).collect();
        self.output.write_i32(arena, &values);
    }
}

impl Operation for Eltwise {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        if self.integers {
            self.run_integers(arena);
            return;
        }
        let n = self.output.elements();
        let Scratch { a, b, c, .. } = scratch;
        let a = sized(a, n);
        self.inputs[0].read(arena, a);
        if let Some(input) = self.inputs.get(1) {
            let b = sized(b, n);
            input.read(arena, b);
            let (first, second) = self.factors;
            match (self.kind, self.inputs.get(2)) {
                (90, Some(otherwise)) => {
                    let c = sized(c, n);
                    otherwise.read(arena, c);
                    for ((a, &b), &c) in a.iter_mut().zip(&*b).zip(&*c) {
                        *a = if *a != 0.0 { b } else { c };
                    }
                }
                (12, _) if self.factors == (1.0, 1.0) => a.iter_mut().zip(b).for_each(|(a, b)| *a += *b),
                (kind, _) => {
                    a.iter_mut().zip(b).for_each(|(a, b)| *a = of(kind, first * *a, second * *b));
                }
            }
        } else {
            a.iter_mut().for_each(|a| *a = of(self.kind, *a, 0.0));
        }
        if let Some(post) = self.post {
            post.apply(a);
        }
        self.output.write(arena, a);
    }
}

/// Parameters: coef1, coef2 (integers where the inputs are), postOp, negSlope, min, max. Buffers: a, out, b, c.
pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let output = context.target(1)?;
    let kind = context.kind();
    let count = match kind {
        84 => 1,
        90 => 3,
        _ => 2,
    };
    let inputs = [0, 2, 3][..count].iter().map(|&i| context.operand(i)?.broadcast_last_to(&output));
    let inputs = inputs.collect::<Result<Vec<_>, String>>()?;
    let whole = inputs[0].dtype == DataType::S32;
    let integers = inputs.iter().chain([&output]).all(|p| p.dtype == DataType::S32);
    let factor = |index| if whole { context.int(index).map(|i| i as f32) } else { context.float(index) };
    let factors = (factor(0)?, factor(1)?);
    let post = match context.int(2)? {
        -1 => None,
        6 => Some(Function::Relu(0.0)),
        44 => Some(Function::Relu(context.float(3)?)),
        57 => Some(Function::Clamp(context.float(4)?, context.float(5)?)),
        other => return Err(format!("unknown operation {other} after an elementwise one")),
    };
    if integers && post.is_some() {
        return Err("an operation after one on integers".into());
    }
    let work = 3 * output.elements() as u64;
    let outputs = vec![output.clone()];
    Ok(Prepared {
        operation: Box::new(Eltwise { kind, inputs, output, factors, post, integers }),
        outputs,
        work,
    })
}
