//! Figures of one output over all inferences.

use crate::flags::Tolerance;
use crate::tensor::compare::compare;

/// An inference whose best class is another one than the reference's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Miss {
    /// Which inference.
    pub inference: usize,
    /// Best class found.
    pub found: usize,
    /// Best class of the reference.
    pub reference: usize,
}

/// Differences of one output, gathered inference by inference.
#[derive(Clone, PartialEq, Debug)]
pub struct Score {
    tolerance: Tolerance,
    /// Values of one batch element; 0 where the output is no list of classes.
    classes: usize,
    /// Inferences added.
    pub inferences: usize,
    /// Those beyond the tolerance.
    pub beyond: usize,
    /// Largest absolute difference; NaN where a value is no number on one side only.
    pub max_error: f64,
    /// Largest absolute reference value.
    pub max_reference: f64,
    /// Smallest difference that is not allowed any more, over all inferences.
    pub allowed: f64,
    /// Of the worst inference, −1 to 1.
    pub cosine: f64,
    sum_error: f64,
    values: usize,
    /// Lists of classes compared: batch elements of all inferences.
    pub lists: usize,
    /// Those with the same best class.
    pub top1: usize,
    /// Those whose five best hold the reference's best; `None` where there are not more than five classes.
    pub top5: Option<usize>,
    /// The first few that differ in the best class.
    pub misses: Vec<Miss>,
}

const MOST_MISSES: usize = 10;

impl Score {
    /// For an output whose batch element has this shape.
    pub fn new(shape: &[usize], tolerance: Tolerance) -> Self {
        let wide: Vec<usize> = shape.iter().copied().filter(|&d| d > 1).collect();
        let classes = if let [classes] = *wide { classes } else { 0 };
        Score {
            tolerance,
            classes,
            inferences: 0,
            beyond: 0,
            max_error: 0.0,
            max_reference: 0.0,
            allowed: f64::INFINITY,
            cosine: 1.0,
            sum_error: 0.0,
            values: 0,
            lists: 0,
            top1: 0,
            top5: (classes > 5).then_some(0),
            misses: Vec::new(),
        }
    }

    /// Adds an inference; both lists are as long, and whole batches.
    pub fn add(&mut self, found: &[f64], reference: &[f64]) {
        let d = compare(found, reference, self.tolerance);
        // NaN stays: once a value was no number, the largest difference is none. `max` alone would forget it.
        let no_number = self.max_error.is_nan() || d.max_error.is_nan();
        self.max_error = if no_number { f64::NAN } else { self.max_error.max(d.max_error) };
        self.max_reference = self.max_reference.max(d.max_reference);
        self.allowed = self.allowed.min(d.allowed);
        self.beyond += usize::from(!d.pass);
        self.cosine = self.cosine.min(cosine(found, reference));
        for (a, b) in found.iter().zip(reference) {
            let error = (a - b).abs();
            if error.is_finite() {
                self.sum_error += error;
                self.values += 1;
            }
        }
        if self.classes > 0 {
            for (found, reference) in
                found.chunks_exact(self.classes).zip(reference.chunks_exact(self.classes))
            {
                self.add_list(found, reference);
            }
        }
        self.inferences += 1;
    }

    fn add_list(&mut self, found: &[f64], reference: &[f64]) {
        let (ours, best) = (ranking(found), ranking(reference)[0]);
        self.lists += 1;
        if ours[0] == best {
            self.top1 += 1;
        } else if self.misses.len() < MOST_MISSES {
            self.misses.push(Miss { inference: self.inferences, found: ours[0], reference: best });
        }
        if let Some(top5) = &mut self.top5 {
            *top5 += usize::from(ours.iter().take(5).any(|&index| index == best));
        }
    }

    /// Mean absolute difference of all values that are numbers on both sides.
    pub fn mean_error(&self) -> f64 {
        if self.values == 0 { f64::NAN } else { self.sum_error / self.values as f64 }
    }

    /// Nothing was beyond the tolerance.
    pub fn pass(&self) -> bool {
        self.beyond == 0 && self.inferences > 0
    }
}

/// Indices by falling value; equal values keep their order, what is no number comes last.
fn ranking(values: &[f64]) -> Vec<usize> {
    let key = |i: usize| if values[i].is_nan() { f64::NEG_INFINITY } else { values[i] };
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| key(b).total_cmp(&key(a)));
    order
}

/// Cosine of the angle between two lists; 1 where both are all zeros, 0 where one is or a value is no number.
fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let (aa, bb) = (dot(a, a), dot(b, b));
    if aa == 0.0 && bb == 0.0 {
        return 1.0;
    }
    let cosine = dot(a, b) / (aa.sqrt() * bb.sqrt());
    if cosine.is_finite() { cosine.clamp(-1.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_worst() {
        let mut score = Score::new(&[1, 6], Tolerance::Absolute(0.5));
        score.add(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(score.pass());
        assert_eq!((score.max_error, score.mean_error(), score.cosine), (0.0, 0.0, 1.0));
        // The best class moves from 5 to 0, which the found five best do not hold.
        score.add(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &[6.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(!score.pass());
        assert_eq!((score.beyond, score.max_error, score.max_reference), (1, 6.0, 6.0));
        assert_eq!((score.lists, score.top1, score.top5), (2, 1, Some(1)));
        assert_eq!(score.misses, [Miss { inference: 1, found: 5, reference: 0 }]);
        assert_eq!(score.mean_error(), 0.5);
        assert!(score.cosine < 1.0);
    }

    #[test]
    fn every_batch_element_is_a_list() {
        let mut score = Score::new(&[1, 3], Tolerance::Share(1.0));
        score.add(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0], &[1.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!((score.inferences, score.lists, score.top1, score.top5), (1, 2, 1, None));
    }

    #[test]
    fn no_number_never_passes() {
        let mut score = Score::new(&[2, 2], Tolerance::Absolute(1e9));
        score.add(&[f64::NAN, 0.0, 0.0, 0.0], &[0.0; 4]);
        score.add(&[0.0; 4], &[0.0; 4]);
        assert!(!score.pass() && score.max_error.is_nan());
        assert_eq!((score.cosine, score.lists), (0.0, 0));
        assert!(!Score::new(&[2], Tolerance::Absolute(1.0)).pass(), "nothing was compared");
    }
}
