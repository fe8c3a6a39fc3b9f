//! Two runs against each other, and whether their difference is more than the noise of their windows.

use std::fs;
use std::path::Path;

use ncs2::ErrorKind;
use serde::Serialize;
use serde_json::Value;

use super::report::Report;
use crate::failure::{Failure, Result, one_line};

/// This run against a saved one.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// The saved report.
    pub file: String,
    /// Its speed.
    pub fps_before: f64,
    /// This run's, in percent of it, less 100.
    pub fps_change_percent: Option<f64>,
    /// Of the median latency.
    pub p50_change_percent: Option<f64>,
    /// Of the 99th percentile.
    pub p99_change_percent: Option<f64>,
    /// Welch's t of the windows; null with fewer than two on either side.
    pub t: Option<f64>,
    /// Whether the speed differs with 95 % confidence; null where `t` is.
    pub significant: Option<bool>,
    /// Settings that are not the same, by name: with any, the two measure different things.
    pub differences: Vec<String>,
}

/// Welch's t, and the value that it passes by chance in one of twenty comparisons; `None` with too few samples.
pub fn welch(a: &[f64], b: &[f64]) -> Option<(f64, f64)> {
    fn moments(v: &[f64]) -> Option<(f64, f64, f64)> {
        let n = v.len() as f64;
        let mean = v.iter().sum::<f64>() / n;
        (v.len() >= 2).then(|| (n, mean, v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)))
    }
    let ((na, ma, va), (nb, mb, vb)) = (moments(a)?, moments(b)?);
    let (sa, sb) = (va / na, vb / nb);
    let error = (sa + sb).sqrt();
    if error == 0.0 {
        // Windows without any noise: equal, or different for certain.
        return Some((if ma == mb { 0.0 } else { (mb - ma).signum() * 1e9 }, 1.96));
    }
    let freedom = (sa + sb).powi(2) / (sa.powi(2) / (na - 1.0) + sb.powi(2) / (nb - 1.0));
    Some(((mb - ma) / error, critical(freedom)))
}

/// Student's t for 95 % on both sides; between table entries the more careful one.
fn critical(freedom: f64) -> f64 {
    const TABLE: [(f64, f64); 12] = [
        (1.0, 12.706),
        (2.0, 4.303),
        (3.0, 3.182),
        (4.0, 2.776),
        (5.0, 2.571),
        (6.0, 2.447),
        (8.0, 2.306),
        (10.0, 2.228),
        (15.0, 2.131),
        (20.0, 2.086),
        (30.0, 2.042),
        (60.0, 2.000),
    ];
    TABLE.iter().rev().find(|(f, _)| freedom >= *f).map_or(12.706, |(_, t)| *t)
}

/// Reads a report that `--save` wrote.
pub fn read(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).map_err(|e| Failure::file(path, "read", &e))?;
    let bad = |found: &str| {
        Failure::new(
            ErrorKind::InvalidInput,
            format!("{}: expected a report of bench, found {found}", path.display()),
            "write one with `bench --save FILE`",
        )
    };
    let saved: Value = serde_json::from_str(&text).map_err(|_| bad("no JSON document"))?;
    match saved["schema"].as_str() {
        Some("ncs2ctl.bench/1") if saved["fps"].is_number() => Ok(saved),
        Some(schema) => Err(bad(&one_line(schema))),
        None => Err(bad("a document of something else")),
    }
}

/// Compares.
pub fn compare(path: &Path, saved: &Value, report: &Report, now: &Value) -> Comparison {
    let number = |field: &Value| field.as_f64();
    let change = |before: Option<f64>, after: f64| {
        before.filter(|&b| b > 0.0).map(|b| ((100.0 * (after / b - 1.0)) * 1e3).round() / 1e3)
    };
    let windows = |v: &Value| -> Vec<f64> {
        v["fps_windows"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
    };
    let tested = welch(&windows(saved), &report.fps_windows);
    let mut differences = Vec::new();
    let mut differs = |name: &str, before: &Value, after: &Value| {
        if before != after {
            differences.push(format!("{name}: {before} before, {after} now"));
        }
    };
    differs("model", &saved["model"]["sha256"], &now["model"]["sha256"]);
    for name in ["simulated", "profile", "engine", "timing", "paced"] {
        differs(name, &saved[name], &now[name]);
    }
    for name in ["depth", "graphs", "batch", "policy", "ordering", "rate_fps", "sticks", "input"] {
        differs(name, &saved["config"][name], &now["config"][name]);
    }
    let fps_before = number(&saved["fps"]).unwrap_or_default();
    Comparison {
        file: path.display().to_string(),
        fps_before,
        fps_change_percent: change(Some(fps_before), report.fps),
        p50_change_percent: change(number(&saved["latency_ms"]["p50"]), report.latency_ms.p50),
        p99_change_percent: change(number(&saved["latency_ms"]["p99"]), report.latency_ms.p99),
        t: tested.map(|(t, _)| (t * 1e3).round() / 1e3),
        significant: tested.map(|(t, limit)| t.abs() > limit),
        differences,
    }
}

impl Comparison {
    /// As people read it, a line for each thing to say.
    pub fn lines(&self, fps: f64) -> Vec<String> {
        let percent = |x: Option<f64>| x.map_or_else(|| "unknown".to_owned(), |x| format!("{x:+.1} %"));
        let verdict = match self.significant {
            Some(true) => "more than the noise of the windows (95 % confidence)",
            Some(false) => "within the noise of the windows: no difference shown",
            None => "too few windows to say whether that is noise",
        };
        let mut lines = vec![format!(
            "{fps:.1} fps against {:.1} in {}: {}, {verdict}; p50 {}, p99 {}",
            self.fps_before,
            one_line(&self.file),
            percent(self.fps_change_percent),
            percent(self.p50_change_percent),
            percent(self.p99_change_percent)
        )];
        if !self.differences.is_empty() {
            lines.push(format!("not the same settings: {}", one_line(&self.differences.join("; "))));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn welch_is_the_textbook_value() {
        // By hand: means 3 and 8, variances 2.5 and 2.5, five each: t = 5 / sqrt(0.5 + 0.5), 8 degrees of freedom.
        let (t, limit) = welch(&[1.0, 2.0, 3.0, 4.0, 5.0], &[6.0, 7.0, 8.0, 9.0, 10.0]).expect("enough");
        assert!((t - 5.0).abs() < 1e-12 && limit == 2.306, "{t} {limit}");
        assert_eq!(welch(&[1.0], &[1.0, 2.0]), None);
        assert_eq!(welch(&[2.0, 2.0], &[2.0, 2.0]).expect("enough").0, 0.0);
        assert!(welch(&[2.0, 2.0], &[3.0, 3.0]).expect("enough").0 > 100.0);
    }

    #[test]
    fn critical_values_never_flatter() {
        assert_eq!(critical(0.5), 12.706);
        assert_eq!(critical(2.9), 4.303);
        assert_eq!(critical(1000.0), 2.0);
    }
}
