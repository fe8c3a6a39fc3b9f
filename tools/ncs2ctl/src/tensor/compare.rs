//! Is an answer near enough to a reference?

use crate::flags::Tolerance;

/// Result of a comparison.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Difference {
    /// Largest absolute difference; NaN where a value is no number on one side only.
    pub max_error: f64,
    /// Largest absolute reference value.
    pub max_reference: f64,
    /// `max_error` may be at most this.
    pub allowed: f64,
    /// True when it is.
    pub pass: bool,
}

/// Compares element by element; the caller has checked that both are as long.
pub fn compare(found: &[f64], reference: &[f64], tolerance: Tolerance) -> Difference {
    let mut max_error = 0.0f64;
    let mut max_reference = 0.0f64;
    let mut comparable = true;
    for (&a, &b) in found.iter().zip(reference) {
        // Equal covers infinities of one sign; two NaNs agree that there is no number.
        if a == b || (a.is_nan() && b.is_nan()) {
        } else if (a - b).is_finite() {
            max_error = max_error.max((a - b).abs());
        } else {
            comparable = false;
        }
        if b.is_finite() {
            max_reference = max_reference.max(b.abs());
        }
    }
    let allowed = match tolerance {
        Tolerance::Share(share) => share * max_reference,
        Tolerance::Absolute(x) => x,
    };
    if !comparable {
        max_error = f64::NAN;
    }
    Difference { max_error, max_reference, allowed, pass: comparable && max_error <= allowed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_is_of_the_largest_reference() {
        let d = compare(&[1.0, 10.1], &[1.0, 10.0], Tolerance::Share(0.02));
        assert!(d.pass, "{d:?}");
        assert!(!compare(&[1.0, 10.1], &[1.0, 10.0], Tolerance::Share(0.001)).pass);
        assert!(compare(&[1.0], &[1.5], Tolerance::Absolute(0.5)).pass);
    }

    #[test]
    fn no_number_is_no_match() {
        assert!(!compare(&[f64::NAN], &[1.0], Tolerance::Absolute(1e9)).pass);
        assert!(!compare(&[f64::INFINITY], &[1.0], Tolerance::Absolute(1e9)).pass);
        assert!(compare(&[f64::INFINITY], &[f64::INFINITY], Tolerance::Absolute(0.0)).pass);
    }
}
