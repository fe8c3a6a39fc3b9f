//! An estimate of the sticks' energy. There is no power sensor in the protocol: this is a published range times time.

use serde::Serialize;

/// Idle, W (NCS2_FACTS section 1).
const IDLE_W: f64 = 1.2;
/// Running, W: the published range.
const RUNNING_W: (f64, f64) = (1.66, 2.21);

/// Always an estimate.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Energy {
    /// True: nothing here was measured.
    pub estimated: bool,
    /// How.
    pub method: &'static str,
    /// All sticks together.
    pub watts: Span,
    /// For each inference.
    pub joules_per_inference: Span,
}

/// From a published range.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Span {
    /// At least.
    pub low: f64,
    /// At most.
    pub high: f64,
}

/// From the sticks' busy shares (0 to 1 each) and their speed together; `None` without an inference.
pub fn estimate(busy: &[f64], fps: f64) -> Option<Energy> {
    if fps <= 0.0 || busy.is_empty() {
        return None;
    }
    let watts =
        |running: f64| busy.iter().map(|b| IDLE_W + (running - IDLE_W) * b.clamp(0.0, 1.0)).sum::<f64>();
    let (low, high) = (watts(RUNNING_W.0), watts(RUNNING_W.1));
    let round = |x: f64| (x * 1e6).round() / 1e6;
    Some(Energy {
        estimated: true,
        method: "1.2 W idle and 1.66 to 2.21 W running, as published, by the share of time that each stick was busy",
        watts: Span { low: round(low), high: round(high) },
        joules_per_inference: Span { low: round(low / fps), high: round(high / fps) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energy_is_power_by_time() {
        // One stick all the time, one never: 1.66 + 1.2 to 2.21 + 1.2 W over 10 inferences a second.
        let energy = estimate(&[1.0, 0.0], 10.0).expect("inferences");
        assert_eq!(energy.watts, Span { low: 2.86, high: 3.41 });
        assert_eq!(energy.joules_per_inference, Span { low: 0.286, high: 0.341 });
        assert_eq!(estimate(&[1.0], 0.0), None);
    }
}
