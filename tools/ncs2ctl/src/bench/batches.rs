//! Batch variants of one network side by side, and the one that pays.

use serde::Serialize;

use super::sweep::Point;
use crate::output::{Output, Style, three_digits};

/// A larger batch must give this much more: it costs latency.
const WORTH: f64 = 1.03;

/// The variants. The rest of the document is the best one's report.
#[derive(Debug, Serialize)]
pub struct Batches {
    /// The smallest batch that no larger one beats by 3 %.
    pub best_batch: u32,
    /// In order of batch.
    pub points: Vec<Point>,
}

/// Index of the variant that pays: a larger one only where it gives 3 % more elements a second.
pub fn best(elements_per_s: &[f64]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (at, &speed) in elements_per_s.iter().enumerate() {
        if best.is_none_or(|b| speed > WORTH * elements_per_s[b]) {
            best = Some(at);
        }
    }
    best
}

/// As people read it.
pub fn table(output: &Output, batches: &Batches) -> String {
    let headings = ["batch", "elements/s", "fps", "p50 ms", "p99 ms", "TOPS", "verdict", "best"];
    let mut table = output.table(&headings, &["verdict", "best"]);
    for point in &batches.points {
        table.add_row([
            point.batch.to_string(),
            format!("{:.1}", point.elements_per_s),
            format!("{:.1}", point.fps),
            format!("{:.2}", point.latency_ms.p50),
            format!("{:.2}", point.latency_ms.p99),
            point.tops.map_or_else(|| "-".to_owned(), three_digits),
            point.diagnosis.to_owned(),
            if point.batch == batches.best_batch { output.glyph("◄ best", "< best") } else { "" }.to_owned(),
        ]);
    }
    let line = format!("batch {}: no larger one gives 3 % more elements a second", batches.best_batch);
    format!("{}\n  {}\n\n", output.lines(&table), output.paint(Style::Bold, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_batch_must_pay() {
        assert_eq!(best(&[100.0, 102.0, 120.0, 121.0]), Some(2));
        assert_eq!(best(&[100.0, 90.0]), Some(0));
        assert_eq!(best(&[]), None);
    }
}
