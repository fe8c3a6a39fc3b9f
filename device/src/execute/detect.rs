//! DetectionOutput (37): boxes of an SSD from offsets, scores and prior boxes.
use super::boxes::{Rect, best_first, suppress};
use super::memory::Place;
use super::params::Context;
use super::{Operation, Prepared, Scratch};

/// How four numbers change a prior box.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Code {
    /// Added to the corners.
    Corner,
    /// Moves the centre and stretches the sides.
    CenterSize,
    /// Added to the corners in parts of the prior's sides (unverified: the reference does not know it).
    CornerSize,
}

/// Names of parameters are the compiler's.
struct Detection {
    loc: Place,
    conf: Place,
    priors: Place,
    /// Scores and offsets of a first detector, whose objects these are made finer.
    arm: Option<(Place, Place)>,
    output: Place,
    classes: usize,
    share_location: bool,
    background: i32,
    nms_threshold: f32,
    top_k: usize,
    code: Code,
    keep_top_k: usize,
    confidence: f32,
    variance_encoded: bool,
    count: usize,
    clip_before: bool,
    clip_after: bool,
    decrease_label: bool,
    image: (f32, f32),
    normalized: bool,
    images: usize,
    objectness: f32,
    prior_sets: usize,
}

/// Values of the operands, and what decoding needs of them.
struct Decoder<'a> {
    detection: &'a Detection,
    priors: &'a [f32],
    variances: &'a [f32],
}

impl Decoder<'_> {
    /// Words of a prior: four corners, after an index of the image where they are in pixels.
    fn prior(&self, index: usize) -> Rect {
        if self.detection.normalized {
            let p = &self.priors[index * 4..index * 4 + 4];
            Rect { left: p[0], top: p[1], right: p[2], bottom: p[3] }
        } else {
            let p = &self.priors[index * 5 + 1..index * 5 + 5];
            Rect { left: p[0], top: p[1], right: p[2], bottom: p[3] }
        }
    }

    /// Priors in use: those in pixels may end early.
    fn count(&self) -> usize {
        if self.detection.normalized {
            return self.detection.count;
        }
        let indices = self.priors.chunks_exact(5).take(self.detection.count);
        indices.take_while(|p| p[0] != -1.0).count()
    }

    fn decode(&self, prior: Rect, index: usize, offsets: &[f32]) -> Rect {
        let mut by = [offsets[0], offsets[1], offsets[2], offsets[3]];
        if !self.detection.variance_encoded {
            by.iter_mut().zip(&self.variances[index * 4..]).for_each(|(b, v)| *b *= v);
        }
        let (width, height) = (prior.right - prior.left, prior.bottom - prior.top);
        let decoded = match self.detection.code {
            Code::Corner => Rect {
                left: prior.left + by[0],
                top: prior.top + by[1],
                right: prior.right + by[2],
                bottom: prior.bottom + by[3],
            },
            Code::CornerSize => Rect {
                left: prior.left + by[0] * width,
                top: prior.top + by[1] * height,
                right: prior.right + by[2] * width,
                bottom: prior.bottom + by[3] * height,
            },
            Code::CenterSize => {
                let x = by[0] * width + (prior.left + prior.right) / 2.0;
                let y = by[1] * height + (prior.top + prior.bottom) / 2.0;
                let (half_width, half_height) = (by[2].exp() * width / 2.0, by[3].exp() * height / 2.0);
                Rect {
                    left: x - half_width,
                    top: y - half_height,
                    right: x + half_width,
                    bottom: y + half_height,
                }
            }
        };
        if self.detection.clip_before { decoded.clipped(1.0, 1.0) } else { decoded }
    }

    fn boxes(&self, loc: &[f32], arm: Option<&[f32]>, class: usize) -> Vec<Rect> {
        let sets = self.detection.location_classes();
        let (w, h) = self.detection.image;
        let decode = |index: usize| {
            let at = (index * sets + class) * 4;
            let mut prior = self.prior(index);
            if !self.detection.normalized {
                prior = Rect {
                    left: prior.left / w,
                    top: prior.top / h,
                    right: prior.right / w,
                    bottom: prior.bottom / h,
                };
            }
            if let Some(arm) = arm {
                prior = self.decode(prior, index, &arm[at..at + 4]);
            }
            self.decode(prior, index, &loc[at..at + 4])
        };
        (0..self.count()).map(decode).collect()
    }
}

/// Class, prior, score.
type Found = (usize, usize, f32);

impl Detection {
    fn location_classes(&self) -> usize {
        if self.share_location { 1 } else { self.classes }
    }

    /// Suppression within each class, over all priors.
    fn by_class(&self, score: impl Fn(usize, usize) -> f32, boxes: &[Vec<Rect>]) -> Vec<Found> {
        let mut found = Vec::new();
        for class in (0..self.classes).filter(|&c| c as i32 != self.background) {
            let boxes = &boxes[if self.share_location { 0 } else { class }];
            let mut candidates: Vec<usize> =
                (0..boxes.len()).filter(|&p| score(class, p) > self.confidence).collect();
            best_first(&mut candidates, |p| score(class, p));
            candidates.truncate(self.top_k);
            let kept = suppress(&candidates, boxes, (self.nms_threshold, 0.0), usize::MAX);
            found.extend(kept.into_iter().map(|p| (class, p, score(class, p))));
        }
        found
    }

    /// Each prior counts for its best class only; class 0 is the background.
    fn by_prior(&self, score: impl Fn(usize, usize) -> f32, boxes: &[Vec<Rect>]) -> Vec<Found> {
        let count = boxes[0].len();
        let best = (0..count).filter_map(|p| {
            let mut best = (0, -1.0);
            for class in 1..self.classes {
                if score(class, p) > best.1 {
                    best = (class, score(class, p));
                }
            }
            (best.0 > 0 && best.1 >= self.confidence).then_some(best.0 * count + p)
        });
        let mut best: Vec<usize> = best.collect();
        best_first(&mut best, |i| score(i / count, i % count));
        best.truncate(self.top_k);
        let mut found = Vec::new();
        for class in 1..self.classes {
            let own: Vec<usize> = best.iter().filter(|&i| i / count == class).map(|i| i % count).collect();
            let boxes = &boxes[if self.share_location { 0 } else { class }];
            let kept = suppress(&own, boxes, (self.nms_threshold, 0.0), usize::MAX);
            found.extend(kept.into_iter().map(|p| (class, p, score(class, p))));
        }
        found
    }
}

impl Operation for Detection {
    fn run(&self, arena: &mut [u16], _: &mut Scratch) {
        let read = |place: &Place| {
            let mut values = vec![0.0; place.elements()];
            place.read(arena, &mut values);
            values
        };
        let (loc, conf, priors) = (read(&self.loc), read(&self.conf), read(&self.priors));
        let arm = self.arm.as_ref().map(|(conf, loc)| (read(conf), read(loc)));
        let mut rows = vec![0.0; self.output.elements()];
        let mut lines = rows.chunks_exact_mut(7);
        let locations = self.location_classes() * self.count * 4;
        for image in 0..self.images {
            let set =
                &priors[if self.prior_sets > 1 { image } else { 0 } * (priors.len() / self.prior_sets)..];
            let size = self.count * if self.normalized { 4 } else { 5 };
            let decoder = Decoder {
                detection: self,
                priors: &set[..size],
                variances: if self.variance_encoded { &[] } else { &set[size..] },
            };
            let part = |values: &[f32], size: usize| image * size..((image + 1) * size).min(values.len());
            let offsets = &loc[part(&loc, locations)];
            let first = arm.as_ref().map(|(_, loc)| &loc[part(loc, locations)]);
            let boxes: Vec<Vec<Rect>> =
                (0..self.location_classes()).map(|class| decoder.boxes(offsets, first, class)).collect();
            let scores = &conf[part(&conf, self.count * self.classes)];
            let objects = arm.as_ref().map(|(conf, _)| &conf[part(conf, self.count * 2)]);
            let score = |class: usize, prior: usize| match objects {
                Some(objects) if objects[prior * 2 + 1] < self.objectness => {
                    f32::from(u8::from(class as i32 == self.background))
                }
                _ => scores[prior * self.classes + class],
            };
            let mut found =
                if self.decrease_label { self.by_prior(score, &boxes) } else { self.by_class(score, &boxes) };
            if found.len() > self.keep_top_k {
                found.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.1.cmp(&b.1)));
                found.truncate(self.keep_top_k);
                // By class again, best first within each.
                found.sort_by_key(|f| f.0);
            }
            for (class, prior, score) in found {
                let Some(line) = lines.next() else { break };
                let mut rect = boxes[if self.share_location { 0 } else { class }][prior];
                if self.clip_after {
                    rect = rect.clipped(1.0, 1.0);
                }
                let label = class as f32 - if self.decrease_label { 1.0 } else { 0.0 };
                line.copy_from_slice(&[
                    image as f32,
                    label,
                    score,
                    rect.left,
                    rect.top,
                    rect.right,
                    rect.bottom,
                ]);
            }
        }
        if let Some(end) = lines.next() {
            end[0] = -1.0;
        }
        self.output.write(arena, &rows);
    }
}

/// Parameters: 19 words, see the fields. Buffers: offsets, scores, priors \[, scores and offsets of a first detector\],
/// out, temporary. The output is a list of (image, label, score, left, top, right, bottom), ended by an image of −1.
pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let with_arm = context.flag(18)?;
    let (loc, conf, priors) = (context.operand(0)?, context.operand(1)?, context.operand(2)?);
    let arm = if with_arm { Some((context.operand(3)?, context.operand(4)?)) } else { None };
    let output = context.target(if with_arm { 5 } else { 3 })?;
    let limit = |index| Ok::<_, String>(usize::try_from(context.int(index)?).unwrap_or(usize::MAX));
    let code = match context.int(5)? {
        1 => Code::Corner,
        2 => Code::CenterSize,
        3 => Code::CornerSize,
        other => return Err(format!("unknown code {other} of boxes")),
    };
    let (classes, count, images) = (context.size(0, 1)?, context.size(9, 1)?, context.size(16, 1)?);
    let (share_location, variance_encoded) = (context.flag(1)?, context.flag(8)?);
    let normalized = context.flag(15)?;
    let image = (context.size(13, 1)? as f32, context.size(14, 1)? as f32);
    let set = count * if normalized { 4 } else { 5 } * if variance_encoded { 1 } else { 2 };
    let prior_sets = priors.elements() / set;
    let locations = images.saturating_mul(count).saturating_mul(4).saturating_mul(if share_location {
        1
    } else {
        classes
    });
    let scores = images.saturating_mul(count).saturating_mul(classes);
    let fits = loc.elements() == locations
        && conf.elements() == scores
        && (prior_sets == 1 || prior_sets == images)
        && priors.elements() == prior_sets * set
        && arm
            .as_ref()
            .is_none_or(|(conf, loc)| conf.elements() == images * count * 2 && loc.elements() == locations);
    if !fits || output.elements() % 7 != 0 {
        return Err(format!("operands do not fit {images} images, {count} priors, {classes} classes"));
    }
    let top_k = limit(4)?;
    // Each candidate of each class against each that was kept.
    let pairs = (top_k.min(count) as u64).saturating_mul(top_k.min(count) as u64);
    let work = pairs.saturating_mul(8).saturating_add(16 * count as u64);
    let work = work.saturating_mul((classes as u64).saturating_mul(images as u64));
    let operation = Detection {
        loc,
        conf,
        priors,
        arm,
        output: output.clone(),
        classes,
        share_location,
        background: context.int(2)?,
        nms_threshold: context.float(3)?,
        top_k,
        code,
        keep_top_k: limit(6)?,
        confidence: context.float(7)?,
        variance_encoded,
        count,
        clip_before: context.flag(10)?,
        clip_after: context.flag(11)?,
        decrease_label: context.flag(12)?,
        image,
        normalized,
        images,
        objectness: context.float(17)?,
        prior_sets,
    };
    Ok(Prepared { operation: Box::new(operation), outputs: vec![output], work })
}
