//! Functions of one element: Relu and its kin, Clamp, Power, Elu, Sigmoid, Tanh…; and of one element and its channel:
//! Bias, PRelu, Scale, ScaleShift.
use super::memory::Place;
use super::params::{Context, same_dims};
use super::{Operation, Prepared, Scratch, sized};

/// A function of one element, with its parameters.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Function {
    /// Factor below zero.
    Relu(f32),
    Clamp(f32, f32),
    /// `(x·scale + shift)^power`.
    Power {
        shift: f32,
        scale: f32,
        power: f32,
    },
    Elu(f32),
    Swish(f32),
    Sigmoid,
    Tanh,
    Exp,
    Floor,
    Ceiling,
    Erf,
    SoftPlus,
    HSwish,
    Log,
    Mish,
    Gelu,
    /// To the nearest integer; halves to the even one, or away from zero.
    Round {
        away: bool,
    },
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Abramowitz and Stegun 7.1.26, error below 2e-7: far under FP16's.
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let poly = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    (1.0 - poly * (-x * x).exp()).copysign(x)
}

impl Function {
    pub fn of(self, x: f32) -> f32 {
        match self {
            Function::Relu(below) => {
                if x > 0.0 {
                    x
                } else if below == 0.0 {
                    0.0
                } else {
                    x * below
                }
            }
            Function::Clamp(least, most) => x.max(least).min(most),
            Function::Power { shift, scale, power } => {
                let base = x * scale + shift;
                if power == 1.0 { base } else { base.powf(power) }
            }
            Function::Elu(alpha) => {
                if x > 0.0 {
                    x
                } else {
                    alpha * x.exp_m1()
                }
            }
            Function::Swish(beta) => x * sigmoid(beta * x),
            Function::Sigmoid => sigmoid(x),
            Function::Tanh => x.tanh(),
            Function::Exp => x.exp(),
            Function::Floor => x.floor(),
            Function::Ceiling => x.ceil(),
            Function::Erf => erf(x),
            // ln(1 + e^x) without overflow.
            Function::SoftPlus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            Function::Log => x.ln(),
            Function::Mish => x * Function::SoftPlus.of(x).tanh(),
            Function::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
            Function::Round { away: true } => x.round(),
            Function::Round { away: false } => x.round_ties_even(),
            Function::HSwish => x * (x + 3.0).clamp(0.0, 6.0) / 6.0,
        }
    }

    pub fn apply(self, values: &mut [f32]) {
        match self {
            Function::Relu(0.0) => values.iter_mut().for_each(|v| *v = v.max(0.0)),
            _ => values.iter_mut().for_each(|v| *v = self.of(*v)),
        }
    }
}

struct Elementwise {
    input: Place,
    output: Place,
    /// Added per channel before the function.
    bias: Option<PerChannel>,
    function: Function,
}

/// A vector and how to find an element's entry in it: `index / inner % vector.len()`.
struct PerChannel {
    vector: Vec<f32>,
    inner: usize,
}

impl PerChannel {
    /// Channels are the dimension named C; without one, the minor dimension of matching size.
    fn new(vector: Vec<f32>, place: &Place) -> Result<Self, String> {
        let position = place.position(3).unwrap_or(0);
        if vector.len() == 1 {
            return Ok(PerChannel { vector, inner: place.elements() });
        }
        if vector.len() < place.dims[position] {
            return Err(format!("{} values for {} channels", vector.len(), place.dims[position]));
        }
        let mut vector = vector;
        vector.truncate(place.dims[position]);
        Ok(PerChannel { vector, inner: place.dims[..position].iter().product() })
    }

    /// Calls `f` for each run of elements of one channel.
    fn each(&self, values: &mut [f32], mut f: impl FnMut(f32, &mut [f32])) {
        for (values, &entry) in values.chunks_mut(self.inner).zip(self.vector.iter().cycle()) {
            f(entry, values);
        }
    }
}

impl Operation for Elementwise {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let values = sized(&mut scratch.a, self.input.elements());
        self.input.read(arena, values);
        if let Some(bias) = &self.bias {
            bias.each(values, |b, values| values.iter_mut().for_each(|v| *v += b));
        }
        self.function.apply(values);
        self.output.write(arena, values);
    }
}

pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output) = (context.operand(0)?, context.target(1)?);
    same_dims(&input, &output)?;
    let float = |index| context.float(index);
    let kind = context.kind();
    let mut bias = None;
    let function = match kind {
        6 | 44 | 45 | 46 => {
            if context.flag(0)? {
                bias = Some(PerChannel::new(context.constants(2)?, &input)?);
            }
            Function::Relu(float(1)?)
        }
        57 => Function::Clamp(float(0)?, float(1)?),
        26 => Function::Power { shift: float(0)?, scale: float(1)?, power: float(2)? },
        23 => Function::Elu(float(0)?),
        135 => Function::Swish(float(0)?),
        20 => Function::Sigmoid,
        21 => Function::Tanh,
        101 => Function::Exp,
        102 => Function::Floor,
        138 => Function::Ceiling,
        110 => Function::Erf,
        134 => Function::SoftPlus,
        137 => Function::HSwish,
        92 => Function::Log,
        131 => Function::Mish,
        132 => Function::Gelu,
        140 => match context.int(0)? {
            mode @ 0..=1 => Function::Round { away: mode == 1 },
            other => return Err(format!("unknown mode {other} of rounding")),
        },
        _ => return Err("no such function of one element".into()),
    };
    let work = 8 * input.elements() as u64;
    let outputs = vec![output.clone()];
    Ok(Prepared { operation: Box::new(Elementwise { input, output, bias, function }), outputs, work })
}

/// What is done to the elements of a channel with its entries in one or two vectors.
struct Channelwise {
    input: Place,
    output: Place,
    /// Factor, factor for negative elements only, addend: in this order.
    scale: Option<PerChannel>,
    slope: Option<PerChannel>,
    shift: Option<PerChannel>,
}

impl Operation for Channelwise {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let values = sized(&mut scratch.a, self.input.elements());
        self.input.read(arena, values);
        if let Some(scale) = &self.scale {
            scale.each(values, |s, values| values.iter_mut().for_each(|v| *v *= s));
        }
        if let Some(slope) = &self.slope {
            slope.each(values, |s, values| {
                values.iter_mut().for_each(|v| *v = if *v < 0.0 { *v * s } else { *v })
            });
        }
        if let Some(shift) = &self.shift {
            shift.each(values, |s, values| values.iter_mut().for_each(|v| *v += s));
        }
        self.output.write(arena, values);
    }
}

/// Bias (9), PRelu (10), Scale (15), ScaleShift (47): in, out, vectors.
pub(super) fn prepare_channels(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output) = (context.operand(0)?, context.target(1)?);
    same_dims(&input, &output)?;
    let vector = |index| PerChannel::new(context.constants(index)?, &input).map(Some);
    let (scale, slope, shift) = match context.kind() {
        9 => (None, None, vector(2)?),
        10 => (None, vector(2)?, None),
        15 => (vector(2)?, None, None),
        _ => (vector(2)?, None, vector(3)?),
    };
    let work = 2 * input.elements() as u64;
    let outputs = vec![output.clone()];
    Ok(Prepared { operation: Box::new(Channelwise { input, output, scale, slope, shift }), outputs, work })
}
