//! Pooling of regions of interest: ROIPooling (65), PSROIPooling (66), ROIAlign (123).
use super::memory::Place;
use super::params::Context;
use super::{Operation, Prepared, Scratch, sized};

#[derive(Clone, Copy, PartialEq, Debug)]
enum Method {
    /// Largest element of each cell; the region in pixels times the scale, both ends included.
    Max,
    /// One point per cell; the region in parts of the plane.
    Bilinear,
    /// Mean of each cell, which reads a channel of its own.
    OwnChannels,
    /// Mean (or maximum) of points in each cell.
    Align { points: usize, max: bool },
}

struct Roi {
    /// W, H, C, N.
    data: Place,
    rois: Place,
    /// Image of each region, where the region does not begin with it.
    images: Option<Place>,
    output: Place,
    scale: f32,
    method: Method,
    size: Size,
}

#[derive(Clone, Copy, Debug)]
struct Size {
    width: usize,
    height: usize,
    channels: usize,
    images: usize,
    across: usize,
    down: usize,
    /// Channels of the output.
    made: usize,
}

/// Value between four neighbours, all inside the plane.
fn blend(plane: &[f32], width: usize, (x, y): (f32, f32)) -> f32 {
    let height = plane.len() / width;
    let (left, top) = ((x as usize).min(width - 1), (y as usize).min(height - 1));
    let (right, bottom) = ((left + 1).min(width - 1), (top + 1).min(height - 1));
    let at = |x: usize, y: usize| plane[y * width + x];
    let (dx, dy) = ((x - left as f32).clamp(0.0, 1.0), (y - top as f32).clamp(0.0, 1.0));
    let upper = at(left, top) + (at(right, top) - at(left, top)) * dx;
    let lower = at(left, bottom) + (at(right, bottom) - at(left, bottom)) * dx;
    upper + (lower - upper) * dy
}

/// Whole positions between two, inside `size`; `as` saturates at 0.
fn cells(from: f32, to: f32, size: usize) -> std::ops::Range<usize> {
    (from.floor() as usize).min(size)..(to.ceil() as usize).min(size)
}

impl Roi {
    /// One cell of the result.
    fn cell(&self, image: &[f32], corners: [f32; 4], (channel, row, column): (usize, usize, usize)) -> f32 {
        let s = &self.size;
        let plane = |channel: usize| &image[channel * s.width * s.height..][..s.width * s.height];
        let area = |channel: usize, across: std::ops::Range<usize>, down: std::ops::Range<usize>| {
            let plane = plane(channel);
            down.flat_map(move |y| plane[y * s.width..][..s.width][across.clone()].iter().copied())
        };
        let (x, y) = (column as f32, row as f32);
        match self.method {
            Method::Max => {
                let [left, top, right, bottom] = corners.map(|v| (v * self.scale).round());
                let width = (right - left + 1.0).max(1.0) / s.across as f32;
                let height = (bottom - top + 1.0).max(1.0) / s.down as f32;
                let across = cells((x * width).floor() + left, ((x + 1.0) * width).ceil() + left, s.width);
                let down = cells((y * height).floor() + top, ((y + 1.0) * height).ceil() + top, s.height);
                if across.is_empty() || down.is_empty() {
                    return 0.0;
                }
                area(channel, across, down).fold(f32::NEG_INFINITY, f32::max)
            }
            Method::Bilinear => {
                let [left, top, right, bottom] = corners;
                let place = |at: f32, cells: usize, from: f32, to: f32, size: usize| {
                    let most = (size - 1) as f32;
                    if cells > 1 {
                        at * ((to - from) * most / (cells - 1) as f32) + from * most
                    } else {
                        0.5 * (from + to) * most
                    }
                };
                let x = place(x, s.across, left, right, s.width);
                let y = place(y, s.down, top, bottom, s.height);
                let inside =
                    (0.0..=(s.width - 1) as f32).contains(&x) && (0.0..=(s.height - 1) as f32).contains(&y);
                if inside { blend(plane(channel), s.width, (x, y)) } else { 0.0 }
            }
            Method::OwnChannels => {
                let [left, top] = [corners[0], corners[1]].map(|v| v.round() * self.scale);
                let [right, bottom] = [corners[2], corners[3]].map(|v| (v.round() + 1.0) * self.scale);
                let (width, height) = ((right - left) / s.across as f32, (bottom - top) / s.down as f32);
                let across = cells(left + x * width, left + (x + 1.0) * width, s.width);
                let down = cells(top + y * height, top + (y + 1.0) * height, s.height);
                if across.is_empty() || down.is_empty() {
                    return 0.0;
                }
                let count = (across.len() * down.len()) as f32;
                let own = (channel * s.down + row) * s.across + column;
                area(own, across, down).sum::<f32>() / count
            }
            Method::Align { points, max } => {
                let [left, top, right, bottom] = corners.map(|v| v * self.scale);
                let (width, height) =
                    ((right - left).max(1.0) / s.across as f32, (bottom - top).max(1.0) / s.down as f32);
                let plane = plane(channel);
                let samples = (0..points * points).map(|k| {
                    let part = |k: usize| (k as f32 + 0.5) / points as f32;
                    let x = left + (x + part(k % points)) * width;
                    let y = top + (y + part(k / points)) * height;
                    let inside =
                        (-1.0..=s.width as f32).contains(&x) && (-1.0..=s.height as f32).contains(&y);
                    if inside { blend(plane, s.width, (x.max(0.0), y.max(0.0))) } else { 0.0 }
                });
                if max {
                    // From 0 on, as the reference does it (unverified on hardware).
                    samples.fold(0.0, f32::max)
                } else {
                    samples.sum::<f32>() / (points * points) as f32
                }
            }
        }
    }
}

impl Operation for Roi {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let Scratch { a, b, c, .. } = scratch;
        let data = sized(a, self.data.elements());
        let rois = sized(b, self.rois.elements());
        let result = sized(c, self.output.elements());
        self.data.read(arena, data);
        self.rois.read(arena, rois);
        result.fill(0.0);
        let images = self.images.as_ref().map(|place| {
            let mut images = vec![0; place.elements()];
            place.read_i32(arena, &mut images);
            images
        });
        let s = &self.size;
        let words = if images.is_some() { 4 } else { 5 };
        let image_size = s.channels * s.width * s.height;
        let regions = rois.chunks_exact(words).zip(result.chunks_exact_mut(s.made * s.across * s.down));
        for (index, (roi, result)) in regions.enumerate() {
            let image = images.as_ref().map_or(roi[0], |images| images[index] as f32);
            if images.is_none() && image < 0.0 {
                // The list of regions ends here.
                break;
            }
            let image = &data[(image as usize).min(s.images - 1) * image_size..][..image_size];
            let corners = &roi[words - 4..];
            let corners = [corners[0], corners[1], corners[2], corners[3]];
            for (at, value) in result.iter_mut().enumerate() {
                let (row, column) = (at / s.across % s.down, at % s.across);
                *value = self.cell(image, corners, (at / (s.across * s.down), row, column));
            }
        }
        self.output.write(arena, result);
    }
}

/// ROIPooling: pooledW, pooledH, scale, method. PSROIPooling: groupSize, outputDim, scale. ROIAlign: pooledW, pooledH,
/// samplingRatio, scale, mode, and a word that was always 2.
pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let data = context.operand(0)?;
    let kind = context.kind();
    let align = kind == 123;
    let (rois, output) = if align {
        (context.operand(1)?, context.target(3)?)
    } else {
        (context.operand(2)?, context.target(1)?)
    };
    let images = if align { Some(context.operand(2)?) } else { None };
    let (method, scale) = match kind {
        65 => {
            let method = match context.int(3)? {
                0 => Method::Max,
                1 => Method::Bilinear,
                other => return Err(format!("unknown method {other} of pooling")),
            };
            (method, context.float(2)?)
        }
        66 => (Method::OwnChannels, context.float(2)?),
        _ => {
            let points = context.size(2, 0)?;
            if points == 0 || points > 64 {
                return Err(format!(
                    "{points} points per cell; their number must be given, and be no more than 64"
                ));
            }
            let mode = context.int(4)?;
            if !(0..=1).contains(&mode) || context.int(5).unwrap_or(2) != 2 {
                return Err("unknown kind of alignment".into());
            }
            (Method::Align { points, max: mode == 1 }, context.float(3)?)
        }
    };
    let size = Size {
        width: data.dim(1),
        height: data.dim(2),
        channels: data.dim(3),
        images: data.dim(4),
        across: output.dim(1),
        down: output.dim(2),
        made: output.dim(3),
    };
    let wanted = if kind == 66 {
        let group = context.size(0, 1)?;
        (group, group, context.size(1, 1)?)
    } else {
        (context.size(0, 1)?, context.size(1, 1)?, size.channels)
    };
    let count = output.dim(4);
    let words = if align { 4 } else { 5 };
    let own = size.made.saturating_mul(size.across).saturating_mul(size.down);
    let fits = wanted == (size.across, size.down, size.made)
        && data.elements() == size.width * size.height * size.channels * size.images
        && output.elements() == own.saturating_mul(count)
        && rois.elements() == words * count
        && images.as_ref().is_none_or(|i| i.elements() == count)
        && (kind != 66 || own <= size.channels);
    if !fits {
        return Err(format!("operands do not fit {count} regions of {size:?}"));
    }
    let per_cell = match method {
        Method::Align { points, .. } => 8 * (points * points) as u64,
        Method::Bilinear => 8,
        // A region may be the whole plane, and so may each cell.
        Method::Max | Method::OwnChannels => (size.width * size.height) as u64,
    };
    let work = (output.elements() as u64).saturating_mul(per_cell) + data.elements() as u64;
    let operation = Roi { data: data.planar(), rois, images, output: output.planar(), scale, method, size };
    Ok(Prepared { operation: Box::new(operation), outputs: vec![output], work })
}
