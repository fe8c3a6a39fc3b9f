//! Several depths side by side, and where more of it stops paying.

use serde::Serialize;

use super::report::{Percentiles, Report};
use crate::output::{Output, Style, three_digits};

/// Share of the best speed that is as good as the best: what lies between is not worth its latency.
const GOOD_ENOUGH: f64 = 0.95;

/// A sweep. The rest of the document is the knee's report.
#[derive(Debug, Serialize)]
pub struct Sweep {
    /// The smallest depth that reaches 95 % of the best speed.
    pub knee_depth: u32,
    /// In order of depth.
    pub points: Vec<Point>,
}

/// One measurement of several, in short.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the names are those of the report")]
pub struct Point {
    pub depth: u32,
    pub graphs: u32,
    pub batch: u32,
    pub ordering: &'static str,
    pub fps: f64,
    pub elements_per_s: f64,
    pub stable: bool,
    pub latency_ms: Percentiles,
    pub tops: Option<f64>,
    pub completed: u64,
    pub failed: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub mismatched: Option<u64>,
    pub diagnosis: &'static str,
}

impl Point {
    /// What the table needs of a report.
    pub fn of(report: &Report) -> Self {
        Point {
            depth: report.config.depth,
            graphs: report.config.graphs,
            batch: report.config.batch,
            ordering: report.config.ordering,
            fps: report.fps,
            elements_per_s: report.elements_per_s,
            stable: report.stable,
            latency_ms: report.latency_ms.clone(),
            tops: report.tops,
            completed: report.completed,
            failed: report.failed,
            lost: report.lost,
            duplicated: report.duplicated,
            mismatched: report.mismatched,
            diagnosis: report.diagnosis,
        }
    }

    /// Answers that were wrong or did not come.
    pub fn wrong(&self) -> u64 {
        self.failed + self.lost + self.duplicated + self.mismatched.unwrap_or(0)
    }
}

/// Index of the first speed that is nearly the best; `None` without any.
pub fn knee(fps: &[f64]) -> Option<usize> {
    let best = fps.iter().copied().fold(0.0, f64::max);
    fps.iter().position(|&f| f >= GOOD_ENOUGH * best)
}

/// The table, the knee marked.
pub fn table(output: &Output, sweep: &Sweep) -> String {
    let mut table =
        output.table(&["depth", "fps", "p50 ms", "p99 ms", "TOPS", "verdict", "knee"], &["verdict", "knee"]);
    for point in &sweep.points {
        table.add_row([
            point.depth.to_string(),
            format!("{:.1}", point.fps),
            format!("{:.2}", point.latency_ms.p50),
            format!("{:.2}", point.latency_ms.p99),
            point.tops.map_or_else(|| "-".to_owned(), three_digits),
            point.diagnosis.to_owned(),
            if point.depth == sweep.knee_depth {
                output.glyph("◄ knee", "< knee").to_owned()
            } else {
                String::new()
            },
        ]);
    }
    let line = format!("depth {}: the smallest with 95 % of the best speed", sweep.knee_depth);
    format!("{}\n  {}\n\n", output.lines(&table), output.paint(Style::Bold, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knee_is_the_first_that_is_nearly_best() {
        assert_eq!(knee(&[40.0, 80.0, 96.0, 100.0, 99.0]), Some(2));
        assert_eq!(knee(&[100.0, 100.0]), Some(0));
        assert_eq!(knee(&[]), None);
        assert_eq!(knee(&[0.0, 0.0]), Some(0), "nothing at all is as good at any depth");
    }
}
