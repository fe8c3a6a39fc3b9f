//! Normalisations over channels or planes: LRN (11), InnerLRN (18), Normalize (35), GRN (61), MVN (62).
use super::memory::Place;
use super::params::{Context, same_dims};
use super::{Operation, Prepared, Scratch, sized};

enum Kind {
    /// `x · (k + alpha/size · Σ x²)^−beta` over `size` neighbouring channels.
    Lrn { size: usize, k: f32, alpha: f32, beta: f32 },
    /// The same over the neighbours in the plane, `size²` of them (those outside count as 0).
    InnerLrn { size: usize, k: f32, alpha: f32, beta: f32, width: usize },
    /// `x · scale / sqrt(Σ x² + eps)`, over channels or over everything of an image.
    Normalize { across_spatial: bool, eps: f32, scales: Vec<f32> },
    /// `x / sqrt(bias + Σ x²)` over channels.
    Grn { bias: f32 },
    /// Mean 0 and, if wanted, variance 1 of each plane or image.
    Mvn { variance: bool, across_channels: bool, eps: f32 },
}

/// Works on images seen as `[N][C][H][W]`, however they lie in memory.
struct Norm {
    input: Place,
    output: Place,
    channels: usize,
    plane: usize,
    kind: Kind,
}

impl Operation for Norm {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let n = self.input.elements();
        let Scratch { a, b, .. } = scratch;
        let (values, results) = (sized(a, n), sized(b, n));
        self.input.read(arena, values);
        let (channels, plane) = (self.channels, self.plane);
        for (x, y) in values.chunks_exact(channels * plane).zip(results.chunks_exact_mut(channels * plane)) {
            let squares = |p: usize, range: std::ops::Range<usize>| {
                range.map(|c| x[c * plane + p] * x[c * plane + p]).sum::<f32>()
            };
            match &self.kind {
                &Kind::Lrn { size, k, alpha, beta } => {
                    for c in 0..channels {
                        let first = c.saturating_sub((size - 1) / 2);
                        let last = (c + size / 2 + 1).min(channels);
                        for p in 0..plane {
                            let sum = squares(p, first..last);
                            y[c * plane + p] = x[c * plane + p] * (k + alpha / size as f32 * sum).powf(-beta);
                        }
                    }
                }
                &Kind::InnerLrn { size, k, alpha, beta, width } => {
                    let around = |at: usize, most: usize| {
                        at.saturating_sub((size - 1) / 2)..(at + size / 2 + 1).min(most)
                    };
                    let area = (size * size) as f32;
                    for (x, y) in x.chunks_exact(plane).zip(y.chunks_exact_mut(plane)) {
                        for (p, y) in y.iter_mut().enumerate() {
                            let (row, column) = (p / width, p % width);
                            let rows =
                                around(row, plane / width).map(|r| &x[r * width..][around(column, width)]);
                            let sum: f32 = rows.flatten().map(|v| v * v).sum();
                            *y = x[p] * (k + alpha / area * sum).powf(-beta);
                        }
                    }
                }
                Kind::Normalize { across_spatial: true, eps, scales } => {
                    let norm = (x.iter().map(|v| v * v).sum::<f32>() + eps).sqrt();
                    for (c, (x, y)) in x.chunks_exact(plane).zip(y.chunks_exact_mut(plane)).enumerate() {
                        let scale = scales[c % scales.len()];
                        y.iter_mut().zip(x).for_each(|(y, x)| *y = x * scale / norm);
                    }
                }
                Kind::Normalize { across_spatial: false, eps, scales } => {
                    for p in 0..plane {
                        let norm = (squares(p, 0..channels) + eps).sqrt();
                        for c in 0..channels {
                            y[c * plane + p] = x[c * plane + p] * scales[c % scales.len()] / norm;
                        }
                    }
                }
                Kind::Grn { bias } => {
                    for p in 0..plane {
                        let norm = (squares(p, 0..channels) + bias).sqrt();
                        (0..channels).for_each(|c| y[c * plane + p] = x[c * plane + p] / norm);
                    }
                }
                &Kind::Mvn { variance, across_channels, eps } => {
                    let part = if across_channels { channels * plane } else { plane };
                    for (x, y) in x.chunks_exact(part).zip(y.chunks_exact_mut(part)) {
                        let mean = x.iter().sum::<f32>() / part as f32;
                        let spread = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / part as f32;
                        let norm = if variance { spread.sqrt() + eps } else { 1.0 };
                        y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mean) / norm);
                    }
                }
            }
        }
        self.output.write(arena, results);
    }
}

pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output) = (context.operand(0)?, context.target(1)?);
    same_dims(&input, &output)?;
    if input.digits != output.digits {
        return Err("input and output lie in different orders".into());
    }
    let channels = input.dim(3);
    let plane = input.elements() / (channels * input.dim(4));
    let mut per_element = 4;
    let kind = match context.kind() {
        11 => {
            let size = context.size(0, 1)?;
            per_element = size.min(channels) as u64 + 8;
            Kind::Lrn { size, k: context.half(2)?, alpha: context.half(3)?, beta: context.half(4)? }
        }
        18 => {
            let (size, width) = (context.size(0, 1)?, input.dim(1));
            if size > 1 << 12 || plane % width != 0 {
                return Err(format!("a window of {size} on planes {width} wide"));
            }
            per_element = (size.min(width) * size.min(plane / width)) as u64 + 8;
            Kind::InnerLrn {
                size,
                k: context.half(2)?,
                alpha: context.half(3)?,
                beta: context.half(4)?,
                width,
            }
        }
        35 => {
            let mut scales = context.constants(2)?;
            scales.truncate(if context.flag(1)? { 1 } else { channels });
            if scales.len() > 1 && scales.len() != channels {
                return Err(format!("{} scales for {channels} channels", scales.len()));
            }
            Kind::Normalize { across_spatial: context.flag(0)?, eps: context.float(2)?, scales }
        }
        61 => Kind::Grn { bias: context.float(0)? },
        62 => Kind::Mvn {
            variance: context.flag(0)?,
            across_channels: context.flag(1)?,
            eps: context.float(3)?,
        },
        _ => return Err("the parameters of this normalisation are not known".into()),
    };
    let work = (input.elements() as u64).saturating_mul(per_element);
    let outputs = vec![output.clone()];
    let operation = Norm { input: input.planar(), output: output.planar(), channels, plane, kind };
    Ok(Prepared { operation: Box::new(operation), outputs, work })
}
