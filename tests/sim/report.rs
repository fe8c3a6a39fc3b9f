//! Tables of outcomes.

use super::Outcome;

pub fn ms(s: f64) -> String {
    format!("{:.1}", s * 1e3)
}

/// answers/s, p50 and p99 in ms.
pub fn speed(o: &Outcome) -> String {
    let l = o.all_latency();
    format!(
        "{:>8.1} /s  p50 {:>7} ms  p99 {:>8} ms",
        o.per_second(),
        ms(l.quantile(0.5).as_secs_f64()),
        ms(l.quantile(0.99).as_secs_f64())
    )
}

/// Share of stick time above the lower guard, percent.
pub fn above(o: &Outcome) -> f64 {
    100.0 * o.above_guard_s.iter().sum::<f64>() / (o.seconds * o.above_guard_s.len() as f64)
}
