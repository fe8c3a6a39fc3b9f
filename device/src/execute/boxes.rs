//! Boxes of detections: overlap and suppression, as DetectionOutput (37) and Proposal (64) share them.

/// Corners of a box.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rect {
    pub left: f32,
    pub top: f32,
    pub right: f32,
    pub bottom: f32,
}

impl Rect {
    /// Each coordinate brought between 0 and the size along its axis.
    pub fn clipped(self, width: f32, height: f32) -> Rect {
        let within = |v: f32, most: f32| v.min(most).max(0.0);
        Rect {
            left: within(self.left, width),
            top: within(self.top, height),
            right: within(self.right, width),
            bottom: within(self.bottom, height),
        }
    }

    fn area(&self, border: f32) -> f32 {
        (self.right - self.left + border) * (self.bottom - self.top + border)
    }

    /// Intersection over union. `border` is 1 where coordinates name whole pixels, both ends included, else 0.
    fn overlap(&self, other: &Rect, border: f32) -> f32 {
        let apart = other.left > self.right
            || other.right < self.left
            || other.top > self.bottom
            || other.bottom < self.top;
        let width = self.right.min(other.right) - self.left.max(other.left) + border;
        let height = self.bottom.min(other.bottom) - self.top.max(other.top) + border;
        if apart || width <= 0.0 || height <= 0.0 {
            return 0.0;
        }
        let common = width * height;
        common / (self.area(border) + other.area(border) - common)
    }
}

/// Non-maximum suppression: of the candidates, best first, those that overlap none that was kept before them by more than
/// the threshold; at most `most`.
pub(super) fn suppress(
    candidates: &[usize],
    boxes: &[Rect],
    (threshold, border): (f32, f32),
    most: usize,
) -> Vec<usize> {
    let mut kept: Vec<usize> = Vec::new();
    for &candidate in candidates {
        if kept.len() == most {
            break;
        }
        let covers = |&k: &usize| boxes[candidate].overlap(&boxes[k], border) > threshold;
        if !kept.iter().any(covers) {
            kept.push(candidate);
        }
    }
    kept
}

/// Sorts indices by their score, best first; equal scores keep the order of their indices.
pub(super) fn best_first(indices: &mut [usize], score: impl Fn(usize) -> f32) {
    indices.sort_unstable_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
}
