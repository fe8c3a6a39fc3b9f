//! The live view without a screen: cells of its table, and one look as text.

use super::view::{Row, Totals, View};
use crate::output::{Output, Style, bytes, grouped, three_digits, wrap};

/// Headings of [`cells`].
pub fn headings(degree: &'static str) -> [&'static str; 14] {
    [
        "stick", "state", degree, "level", "fps", "busy", "depth", "done", "errors", "resets", "memory",
        "pool", "hits", "cache",
    ]
}

/// A stick's row.
pub fn cells(row: &Row) -> [String; 14] {
    let dash = || "-".to_owned();
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    [
        row.id.clone(),
        if row.resting { "resting".to_owned() } else { row.state.clone() },
        row.temperature_c.map_or_else(dash, |t| format!("{t:.1}")),
        row.throttle_level.map_or_else(dash, |l| l.to_string()),
        row.fps.map_or_else(dash, |fps| format!("{fps:.1}")),
        row.busy_ratio.map_or_else(dash, percent),
        row.depth_mean.map_or_else(dash, |depth| format!("{depth:.1}")),
        grouped(row.completed),
        grouped(row.failed),
        row.resets.to_string(),
        row.used_memory_bytes.map_or_else(dash, bytes),
        bytes(row.pool_bytes),
        row.pool_hit_rate.map_or_else(dash, |rate| format!("{:.1} %", 100.0 * rate)),
        row.cache_hit_rate.map_or_else(dash, |rate| format!("{:.1} %", 100.0 * rate)),
    ]
}

/// `547.6 fps, 0.382 of 3 TOPS (12.7 %)`, with what is known.
pub fn speed(totals: &Totals) -> String {
    let fps = totals.fps.map_or_else(|| "no speed yet".to_owned(), |fps| format!("{fps:.1} fps"));
    match (totals.tops, totals.percent_of_peak) {
        (Some(tops), Some(percent)) => {
            format!("{fps}, {} of {} TOPS ({percent:.1} %)", three_digits(tops), totals.tops_peak)
        }
        _ => fps,
    }
}

/// `12 queued, 1 234 done, 0 failed, 0 moved`, and how many no stick answered where there are such.
pub fn counts(totals: &Totals) -> String {
    let mut text = format!(
        "{} queued, {} done, {} failed, {} moved",
        grouped(totals.queued),
        grouped(totals.completed),
        grouped(totals.failed),
        grouped(totals.retried)
    );
    if totals.fallback > 0 {
        text.push_str(&format!(", {} by the fallback", grouped(totals.fallback)));
    }
    text
}

/// Whose sticks, what they run.
pub fn whose(view: &View) -> Vec<String> {
    let fleets = view.fleets.iter();
    fleets
        .map(|f| {
            let whose =
                if view.own { String::new() } else { format!("process {} ({}): ", f.process, f.program) };
            let models = if f.models.is_empty() { "no network".to_owned() } else { f.models.join(", ") };
            format!(
                "{whose}{models}, {}, latency p50 {:.2} ms, p99 {:.2} ms",
                f.policy, f.latency_p50_ms, f.latency_p99_ms
            )
        })
        .collect()
}

/// One look as text.
pub fn text(output: &Output, view: &View) -> String {
    let mut text = format!("{}\n", output.paint(Style::Bold, speed(&view.totals)));
    text.push_str(&format!("{}\n", wrap(&counts(&view.totals), output.width(), "")));
    for line in whose(view) {
        text.push_str(&format!("{}\n", wrap(&line, output.width(), "")));
    }
    text.push('\n');
    let mut table = output.table(&headings(output.glyph("°C", "C")), &["stick", "state"]);
    for row in &view.rows {
        table.add_row(cells(row));
    }
    text.push_str(&output.lines(&table));
    for row in &view.rows {
        if let Some(failure) = &row.failure {
            let line = format!("{}: {failure}", row.id);
            text.push_str(&format!(
                "  {}\n",
                output.paint(Style::Bad, wrap(&line, output.width() - 2, "  "))
            ));
        }
    }
    if let Some(reason) = &view.totals.tops_reason {
        text.push_str(&format!("{}\n", wrap(&format!("no TOPS: {reason}"), output.width(), "")));
    }
    if view.simulated {
        text.push_str(&format!("{}: no device is behind these\n", output.paint(Style::Warn, "simulated")));
    }
    text
}
