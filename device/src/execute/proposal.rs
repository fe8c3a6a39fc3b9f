//! Proposal (64): regions of interest of a two-stage detector.
use super::boxes::{Rect, best_first, suppress};
use super::memory::Place;
use super::params::Context;
use super::{Operation, Prepared, Scratch, sized};

/// Names of parameters are the compiler's.
struct Proposal {
    scores: Place,
    deltas: Place,
    info: Place,
    output: Place,
    probabilities: Option<Place>,
    anchors: Vec<Rect>,
    width: usize,
    height: usize,
    feat_stride: f32,
    min_size: f32,
    pre_nms: usize,
    post_nms: usize,
    nms_threshold: f32,
    box_size_scale: f32,
    box_coordinate_scale: f32,
    /// 1 where coordinates name whole pixels.
    border: f32,
    initial_clip: bool,
    clip_before: bool,
    clip_after: bool,
    normalize: bool,
    swap_xy: bool,
}

impl Proposal {
    /// An anchor moved by its deltas, or `None` when the result is too small.
    fn moved(
        &self,
        (anchor, y, x): (usize, usize, usize),
        by: [f32; 4],
        image: (f32, f32),
        least: (f32, f32),
    ) -> (Rect, bool) {
        let (x, y) = if self.swap_xy { (y, x) } else { (x, y) };
        let (x, y) = (x as f32 * self.feat_stride, y as f32 * self.feat_stride);
        let base = self.anchors[anchor];
        let mut rect =
            Rect { left: x + base.left, top: y + base.top, right: x + base.right, bottom: y + base.bottom };
        if self.initial_clip {
            rect = rect.clipped(image.0, image.1);
        }
        let (width, height) = (rect.right - rect.left + self.border, rect.bottom - rect.top + self.border);
        let x = by[0] / self.box_coordinate_scale * width + rect.left + 0.5 * width;
        let y = by[1] / self.box_coordinate_scale * height + rect.top + 0.5 * height;
        let half_width = 0.5 * (by[2] / self.box_size_scale).exp() * width;
        let half_height = 0.5 * (by[3] / self.box_size_scale).exp() * height;
        let mut rect = Rect {
            left: x - half_width,
            top: y - half_height,
            right: x + half_width,
            bottom: y + half_height,
        };
        if self.clip_before {
            rect = rect.clipped(image.0 - self.border, image.1 - self.border);
        }
        let wide = least.0 <= rect.right - rect.left + self.border;
        (rect, wide && least.1 <= rect.bottom - rect.top + self.border)
    }
}

impl Operation for Proposal {
    fn run(&self, arena: &mut [u16], scratch: &mut Scratch) {
        let Scratch { a, b, .. } = scratch;
        let (scores, deltas) = (sized(a, self.scores.elements()), sized(b, self.deltas.elements()));
        self.scores.read(arena, scores);
        self.deltas.read(arena, deltas);
        let mut info = vec![0.0; self.info.elements()];
        self.info.read(arena, &mut info);
        // Height first, and one scale for both axes or one for each.
        let image = if self.swap_xy { (info[0], info[1]) } else { (info[1], info[0]) };
        let scale = (info.get(3).copied().unwrap_or(info[2]), info[2]);
        let least = (self.min_size * scale.0, self.min_size * scale.1);
        let (plane, count) = (self.width * self.height, self.anchors.len());
        let mut boxes = Vec::with_capacity(plane * count);
        let mut values = Vec::with_capacity(plane * count);
        for at in 0..plane * count {
            let (place, anchor) = (at / count, at % count);
            let by = [0, 1, 2, 3].map(|k| deltas[(anchor * 4 + k) * plane + place]);
            let (rect, large) =
                self.moved((anchor, place / self.width, place % self.width), by, image, least);
            boxes.push(rect);
            // The second half of the channels says that something is there.
            values.push(if large { scores[(count + anchor) * plane + place] } else { 0.0 });
        }
        let mut order: Vec<usize> = (0..boxes.len()).collect();
        best_first(&mut order, |i| values[i]);
        order.truncate(self.pre_nms);
        let kept = suppress(&order, &boxes, (self.nms_threshold, self.border), self.post_nms);
        let mut rows = vec![0.0; self.output.elements()];
        let mut found = vec![0.0; rows.len() / 5];
        let mut lines = rows.chunks_exact_mut(5);
        for ((&index, line), found) in kept.iter().zip(&mut lines).zip(&mut found) {
            let mut rect = boxes[index];
            if self.clip_after {
                rect = rect.clipped(image.0, image.1);
            }
            let (w, h) = if self.normalize { image } else { (1.0, 1.0) };
            line.copy_from_slice(&[0.0, rect.left / w, rect.top / h, rect.right / w, rect.bottom / h]);
            *found = values[index];
        }
        if let Some(end) = rows.chunks_exact_mut(5).nth(kept.len()) {
            end[0] = -1.0;
        }
        self.output.write(arena, &rows);
        if let Some(place) = &self.probabilities {
            place.write(arena, &found);
        }
    }
}

/// Boxes of all ratios and scales around the first position.
fn anchors(
    base: f32,
    ratios: &[f32],
    scales: &[f32],
    (border, round, shift): (f32, bool, bool),
) -> Vec<Rect> {
    let center = 0.5 * (base - border) - if shift { base * 0.5 } else { 0.0 };
    let sizes = ratios.iter().flat_map(|&ratio| {
        let width = (base * base / ratio).sqrt();
        let width = if round { width.round() } else { width };
        let height = if round { (width * ratio).round() } else { width * ratio };
        scales.iter().map(move |&scale| (width * scale, height * scale))
    });
    let rect = |(width, height): (f32, f32)| {
        let (x, y) = (0.5 * (width - border), 0.5 * (height - border));
        Rect { left: center - x, top: center - y, right: center + x, bottom: center + y }
    };
    sizes.map(rect).collect()
}

/// Parameters: featStride, baseSize, minSize, preNms, postNms, nmsThresh, preNmsThresh, boxSizeScale, boxCoordinateScale,
/// coordinatesOffset, initialClip, clipBefore, clipAfter, normalize, shiftAnchors, roundRatios, swapXY, then two lists
/// (count, values): scales, ratios. Buffers: scores, rois, \[probabilities\], deltas, image info, temporary.
/// preNmsThresh is not used, as in the reference (unverified on hardware).
pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let (scores, output) = (context.operand(0)?, context.target(1)?);
    let probabilities = context.optional(2)?;
    let (deltas, info) = (context.operand(3)?, context.operand(4)?);
    let list = |at: usize| {
        let count = context.size(at, 1)?;
        if count > 1 << 10 {
            return Err(format!("{count} scales or ratios"));
        }
        let values = (0..count).map(|i| context.float(at + 1 + i)).collect::<Result<Vec<_>, _>>()?;
        Ok((values, at + 1 + count))
    };
    let (scales, next) = list(17)?;
    let (ratios, _) = list(next)?;
    let border = context.float(9)?;
    let framework = (border, context.flag(15)?, context.flag(14)?);
    let anchors = anchors(context.size(1, 1)? as f32, &ratios, &scales, framework);
    let count = anchors.len();
    let plane = scores.dim(1) * scores.dim(2);
    let fits = scores.dim(3) == 2 * count
        && scores.elements() == plane * 2 * count
        && deltas.elements() == plane * 4 * count
        && (deltas.dim(1), deltas.dim(2)) == (scores.dim(1), scores.dim(2))
        && (3..=4).contains(&info.elements())
        && output.elements() % 5 == 0
        && probabilities.as_ref().is_none_or(|p| p.elements() == output.elements() / 5 && !p.is_const());
    if !fits {
        return Err(format!("operands do not fit {count} anchors, or are of several images"));
    }
    let limit = |index| Ok::<_, String>(usize::try_from(context.int(index)?).unwrap_or(usize::MAX));
    let (pre_nms, post_nms) = (limit(3)?, limit(4)?);
    let candidates = pre_nms.min(plane * count) as u64;
    let kept = post_nms.min(output.elements() / 5).min(plane * count);
    let work = candidates.saturating_mul(8 * kept as u64).saturating_add(64 * (plane * count) as u64);
    let mut outputs = vec![output.clone()];
    outputs.extend(probabilities.clone());
    let operation = Proposal {
        width: scores.dim(1),
        height: scores.dim(2),
        scores: scores.planar(),
        deltas: deltas.planar(),
        info,
        output,
        probabilities,
        anchors,
        feat_stride: context.size(0, 1)? as f32,
        min_size: context.size(2, 0)? as f32,
        pre_nms,
        post_nms: kept,
        nms_threshold: context.float(5)?,
        box_size_scale: context.float(7)?,
        box_coordinate_scale: context.float(8)?,
        border,
        initial_clip: context.flag(10)?,
        clip_before: context.flag(11)?,
        clip_after: context.flag(12)?,
        normalize: context.flag(13)?,
        swap_xy: context.flag(16)?,
    };
    Ok(Prepared { operation: Box::new(operation), outputs, work })
}
