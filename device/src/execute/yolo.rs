//! RegionYolo (29) and ReorgYolo (30).
use super::memory::Place;
use super::params::Context;
use super::{Operation, Prepared, Scratch, sized};

struct Region {
    /// W before H before C, whatever the order in memory.
    input: Place,
    output: Place,
    plane: usize,
    images: usize,
    anchors: usize,
    coords: usize,
    classes: usize,
    softmax: bool,
}

fn sigmoid(values: &mut [f32]) {
    values.iter_mut().for_each(|v| *v = 1.0 / (1.0 + (-*v).exp()));
}

impl Operation for Region {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let values = sized(&mut scratch.a, self.input.elements());
        self.input.read(arena, values);
        let channels = self.coords + 1 + self.classes;
        let anchors = values.chunks_exact_mut(values.len() / self.images).flat_map(|image| {
            let size = channels * self.plane;
            image.chunks_exact_mut(size).take(self.anchors)
        });
        for anchor in anchors {
            sigmoid(&mut anchor[..2 * self.plane]);
            let (_, rest) = anchor.split_at_mut(self.coords * self.plane);
            if !self.softmax {
                sigmoid(rest);
                continue;
            }
            let (object, classes) = rest.split_at_mut(self.plane);
            sigmoid(object);
            for at in 0..self.plane {
                let along = || (at..classes.len()).step_by(self.plane);
                let most = along().fold(f32::NEG_INFINITY, |m, i| m.max(classes[i]));
                let sum: f32 = along().map(|i| (classes[i] - most).exp()).sum();
                for i in along() {
                    classes[i] = (classes[i] - most).exp() / sum;
                }
            }
        }
        self.output.write(arena, values);
    }
}

/// Parameters: classes, coords, num, maskSize, doSoftmax.
pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output) = (context.operand(0)?, context.target(1)?);
    let (classes, coords) = (context.size(0, 1)?, context.size(1, 2)?);
    let softmax = context.flag(4)?;
    let anchors = context.size(if softmax { 2 } else { 3 }, 1)?;
    let (channels, images) = (input.dim(3), input.dim(4));
    if (coords + 1 + classes).saturating_mul(anchors) > channels || output.elements() != input.elements() {
        return Err(format!(
            "{anchors} anchors of {coords} coordinates and {classes} classes do not fit {channels} channels"
        ));
    }
    let plane = input.elements() / channels / images;
    // The output may be a plain vector.
    let seen =
        if output.dim(3) == channels && output.rank == input.rank { output.planar() } else { output.clone() };
    let work = 16 * input.elements() as u64;
    let operation =
        Region { input: input.planar(), output: seen, plane, images, anchors, coords, classes, softmax };
    Ok(Prepared { operation: Box::new(operation), outputs: vec![output], work })
}

struct Reorg {
    input: Place,
    output: Place,
    stride: usize,
    width: usize,
    height: usize,
    channels: usize,
}

impl Operation for Reorg {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let Scratch { a, b, .. } = scratch;
        let n = self.input.elements();
        let (from, to) = (sized(a, n), sized(b, n));
        self.input.read(arena, from);
        let (s, w, h) = (self.stride, self.width, self.height);
        // As Darknet does it: memory seen as fewer, larger planes, whatever its own dims say.
        let fewer = self.channels / (s * s);
        let image = w * h * self.channels;
        for (from, to) in from.chunks_exact(image).zip(to.chunks_exact_mut(image)) {
            for (c, plane) in to.chunks_exact_mut(w * h).enumerate() {
                let (source, shift) = (c % fewer, c / fewer);
                for (y, row) in plane.chunks_exact_mut(w).enumerate() {
                    let line = (source * h * s + y * s + shift / s) * w * s + shift % s;
                    row.iter_mut().enumerate().for_each(|(x, value)| *value = from[line + x * s]);
                }
            }
        }
        self.output.write(arena, to);
    }
}

/// Parameter: stride.
pub(super) fn prepare_reorg(context: &Context<'_>) -> Result<Prepared, String> {
    let (input, output) = (context.operand(0)?, context.target(1)?);
    let stride = context.size(0, 1)?;
    let (width, height, channels) = (input.dim(1), input.dim(2), input.dim(3));
    let square = stride.saturating_mul(stride);
    let named = width * height * channels * input.dim(4);
    if channels % square != 0 || named != input.elements() || output.elements() != input.elements() {
        return Err(format!("{channels} channels cannot be spread over {stride}x{stride}"));
    }
    let work = 4 * input.elements() as u64;
    let operation = Reorg { input: input.planar(), output: output.planar(), stride, width, height, channels };
    Ok(Prepared { operation: Box::new(operation), outputs: vec![output], work })
}
