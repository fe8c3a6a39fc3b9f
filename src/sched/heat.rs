//! When a stick will reach its guard: an RC model fitted on line, and an honest "unsure".
//!
//! `T(t) = T0·e^(−t/τ) + c0·(1 − e^(−t/τ)) + c1·x(t)`, `x` the load smoothed with `τ`: c0 is where the idle stick comes to
//! rest, c1 what full load adds. For a given τ it is linear in (T0, c0, c1), so least squares on the temperature itself
//! (never on its derivative, which drowns in the sensor's noise), side by side for a fixed set of τ. The forecast is given
//! only where all τ that explain the record agree on it.

use crate::clock::Instant;

/// Time constants tried, seconds: from a bare board to a stick in a closed box, 8 % apart. A coarser grid would leave idle
/// and rise off by kelvins.
const TAUS: [f64; 36] = {
    let mut taus = [90.0; 36];
    let mut i = 1;
    while i < taus.len() {
        taus[i] = taus[i - 1] * 1.08;
        i += 1;
    }
    taus
};
/// What is forgotten: samples lose weight by e in this time, so that the fit follows the room.
const MEMORY_S: f64 = 3600.0;
/// Bounds of what may be believed, °C and kelvin.
const IDLE_C: (f64, f64) = (-20.0, 95.0);
const RISE_K: (f64, f64) = (2.0, 80.0);
/// Weak prior, so that the fit is defined before the load has varied: (T0, idle, rise) and how far off they may be.
const PRIOR: [f64; 3] = [45.0, 50.0, 25.0];
const PRIOR_SPREAD: [f64; 3] = [60.0, 30.0, 20.0];
/// Noise assumed of a sensor that shows whole degrees, kelvin.
const NOISE_K: f64 = 0.4;
/// Largest rms error that is still believed, kelvin.
const MAX_RMS_K: f64 = 1.5;
/// Record needed before any forecast, seconds.
const MIN_RECORD_S: f64 = 120.0;
/// Forecasts of the plausible τ may differ by this factor.
const AGREE: f64 = 1.6;

/// Seconds until the guard under a given load.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Forecast {
    /// Not enough, or contradictory, evidence.
    Unsure,
    /// It settles below the guard.
    Never,
    /// Reached in about so many seconds.
    Seconds(f64),
}

/// Parameters of a fit that passed its checks.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Fit {
    /// Time constant, seconds.
    pub tau_s: f64,
    /// Where the idle stick settles, °C.
    pub idle_c: f64,
    /// What full load adds, kelvin.
    pub rise_k: f64,
    /// Root mean square error, kelvin.
    pub rms_k: f64,
    /// Standard error of `rise_k`: large while the load never varied, since then idle and rise can not be told apart.
    pub rise_error_k: f64,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    decay: f64,
    load: f64,
    a: [[f64; 3]; 3],
    b: [f64; 3],
    yy: f64,
}

/// The record of one stick and the fits to it.
#[derive(Clone, Debug)]
pub struct RcModel {
    candidates: [Candidate; TAUS.len()],
    weight: f64,
    begun: Option<Instant>,
    last: Instant,
    celsius: f64,
}

impl Default for RcModel {
    fn default() -> Self {
        let empty = Candidate { decay: 1.0, load: 0.0, a: [[0.0; 3]; 3], b: [0.0; 3], yy: 0.0 };
        RcModel {
            candidates: [empty; TAUS.len()],
            weight: 0.0,
            begun: None,
            last: Instant::ZERO,
            celsius: 0.0,
        }
    }
}

impl RcModel {
    /// Adds a reading; `load` is the mean share of full power since the last one, 0 to 1. Nonsense is ignored.
    pub fn sample(&mut self, now: Instant, celsius: f64, load: f64) {
        if !(-40.0..=150.0).contains(&celsius) || !load.is_finite() {
            return;
        }
        let dt = if self.begun.is_some() { now.saturating_since(self.last).as_secs_f64() } else { 0.0 };
        // After a long silence the load in between is unknown: begin anew.
        if self.begun.is_none() || dt > 60.0 {
            *self = RcModel { begun: Some(now), ..RcModel::default() };
        } else if dt < 0.5 {
            return;
        }
        self.last = now;
        self.celsius = celsius;
        let keep = (-dt / MEMORY_S).exp();
        self.weight = self.weight * keep + 1.0;
        for (c, tau) in self.candidates.iter_mut().zip(TAUS) {
            let e = (-dt / tau).exp();
            c.decay *= e;
            c.load = c.load * e + load.clamp(0.0, 1.0) * (1.0 - e);
            let r = [c.decay, 1.0 - c.decay, c.load];
            for i in 0..3 {
                for j in 0..3 {
                    c.a[i][j] = c.a[i][j] * keep + r[i] * r[j];
                }
                c.b[i] = c.b[i] * keep + r[i] * celsius;
            }
            c.yy = c.yy * keep + celsius * celsius;
        }
    }

    /// Last temperature, °C.
    pub fn celsius(&self) -> Option<f64> {
        self.begun.map(|_| self.celsius)
    }

    /// (fit, standard error of where full load settles, kelvin) for one τ.
    fn solve(&self, i: usize) -> Option<(Fit, f64)> {
        let c = &self.candidates[i];
        let (mut a, mut b) = (c.a, c.b);
        for k in 0..3 {
            let w = (NOISE_K / PRIOR_SPREAD[k]).powi(2);
            a[k][k] += w;
            b[k] += w * PRIOR[k];
        }
        let inv = invert(&a)?;
        let w: [f64; 3] = std::array::from_fn(|r| (0..3).map(|k| inv[r][k] * b[k]).sum());
        let quad: f64 = (0..3).map(|r| (0..3).map(|k| w[r] * c.a[r][k] * w[k]).sum::<f64>()).sum();
        let sse = (c.yy - 2.0 * (0..3).map(|k| w[k] * c.b[k]).sum::<f64>() + quad).max(0.0);
        let rms = (sse / self.weight.max(1.0)).sqrt();
        let spread = inv[1][1] + inv[2][2] + 2.0 * inv[1][2];
        let noise = rms.max(NOISE_K * 0.25);
        let rise_error_k = noise * inv[2][2].max(0.0).sqrt();
        let error = noise * spread.max(0.0).sqrt();
        Some((Fit { tau_s: TAUS[i], idle_c: w[1], rise_k: w[2], rms_k: rms, rise_error_k }, error))
    }

    /// All fits that the record does not rule out, best first.
    fn plausible(&self) -> Vec<(Fit, f64)> {
        let long = self.begun.is_some_and(|b| self.last.saturating_since(b).as_secs_f64() >= MIN_RECORD_S);
        if !long {
            return Vec::new();
        }
        let mut fits: Vec<(Fit, f64)> = (0..TAUS.len()).filter_map(|i| self.solve(i)).collect();
        fits.sort_by(|x, y| x.0.rms_k.total_cmp(&y.0.rms_k));
        let Some(best) = fits.first().map(|f| f.0.rms_k) else { return fits };
        // A τ is ruled out when its error exceeds the best one's by more than chance allows at this many samples.
        let chance = 1.0 + 6.0 / self.weight.max(1.0);
        fits.retain(|(f, _)| f.rms_k * f.rms_k <= best * best * chance + 1e-4);
        fits
    }

    /// The best fit, if it may be believed.
    pub fn fit(&self) -> Option<Fit> {
        let (fit, error) = *self.plausible().first()?;
        let sane = (IDLE_C.0..=IDLE_C.1).contains(&fit.idle_c) && (RISE_K.0..=RISE_K.1).contains(&fit.rise_k);
        (sane && fit.rms_k <= MAX_RMS_K && error <= 2.0).then_some(fit)
    }

    /// Time until `guard_c` under constant `load`, 0 to 1.
    pub fn seconds_to(&self, guard_c: f64, load: f64) -> Forecast {
        if self.begun.is_none() {
            return Forecast::Unsure;
        }
        if self.celsius >= guard_c {
            return Forecast::Seconds(0.0);
        }
        if self.fit().is_none() {
            return Forecast::Unsure;
        }
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for (fit, error) in self.plausible() {
            for settle in [-error, error].map(|e| fit.idle_c + fit.rise_k * load + e) {
                let s = if settle <= guard_c {
                    f64::INFINITY
                } else {
                    fit.tau_s * ((settle - self.celsius) / (settle - guard_c)).ln()
                };
                (least, most) = (least.min(s), most.max(s));
            }
        }
        match (least.is_finite(), most.is_finite()) {
            (false, false) => Forecast::Never,
            (true, true) if most <= least * AGREE + 5.0 => Forecast::Seconds((least * most).sqrt()),
            _ => Forecast::Unsure,
        }
    }
}

fn invert(m: &[[f64; 3]; 3]) -> Option<[[f64; 3]; 3]> {
    let minor = |r: usize, c: usize| {
        let (r1, r2) = ((r + 1) % 3, (r + 2) % 3);
        let (c1, c2) = ((c + 1) % 3, (c + 2) % 3);
        m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1]
    };
    let det = (0..3).map(|c| m[0][c] * minor(0, c)).sum::<f64>();
    (det.abs() > 1e-12).then(|| std::array::from_fn(|r| std::array::from_fn(|c| minor(c, r) / det)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A stick with these true values, its sensor rounded to `step` kelvin, under a load that changes.
    fn record(
        tau: f64,
        idle: f64,
        rise: f64,
        step: f64,
        load: impl Fn(u64) -> f64,
        seconds: u64,
    ) -> (RcModel, f64) {
        let (mut model, mut t) = (RcModel::default(), idle - 20.0);
        for s in 0..seconds {
            let u = load(s);
            let settle = idle + rise * u;
            t = settle + (t - settle) * (-1.0 / tau).exp();
            model.sample(Instant::ZERO + Duration::from_secs(s), (t / step).round() * step, u);
        }
        (model, t)
    }

    #[test]
    fn finds_the_truth_of_many_sticks() {
        let mut table = String::new();
        for (tau, idle, rise) in [(450.0, 54.3, 24.4), (200.0, 60.0, 30.0), (900.0, 64.3, 24.4)] {
            for (what, step) in [("exact", 1e-6), ("whole degrees", 1.0)] {
                let busy = |s: u64| if s % 300 < 200 { 1.0 } else { 0.3 };
                let (model, t) = record(tau, idle, rise, step, busy, 900);
                let true_s = |guard: f64| {
                    let settle = idle + rise;
                    if settle <= guard { f64::INFINITY } else { tau * ((settle - t) / (settle - guard)).ln() }
                };
                let guard = t + 5.0;
                let said = model.seconds_to(guard, 1.0);
                table += &format!(
                    "τ {tau} idle {idle} rise {rise}, {what}: {said:.0?}, truth {:.0}\n",
                    true_s(guard)
                );
                match said {
                    Forecast::Seconds(s) => assert!((s / true_s(guard) - 1.0).abs() < 0.35, "{table}"),
                    Forecast::Never => assert!(true_s(guard).is_infinite(), "{table}"),
                    Forecast::Unsure => assert_ne!(step, 1e-6, "exact readings must do: {table}"),
                }
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn says_unsure_when_it_can_not_know() {
        let (short, _) = record(450.0, 54.3, 24.4, 0.1, |_| 1.0, 60);
        assert_eq!(short.seconds_to(75.0, 1.0), Forecast::Unsure, "a minute is too short");
        let (idle, _) = record(450.0, 54.3, 24.4, 0.1, |_| 0.0, 3000);
        assert_eq!(idle.seconds_to(75.0, 1.0), Forecast::Unsure, "never saw load");
        assert_eq!(RcModel::default().seconds_to(75.0, 1.0), Forecast::Unsure);
        let mut mad = RcModel::default();
        for s in 0..2000_u64 {
            mad.sample(Instant::ZERO + Duration::from_secs(s), (s * 7919 % 60) as f64 + 20.0, 1.0);
        }
        assert_eq!(mad.seconds_to(95.0, 1.0), Forecast::Unsure, "a sensor that lies");
        assert_eq!(mad.fit(), None);
    }
}
