//! `--levels`: a baseline, each lever alone, and all of them together, so that everybody sees what each one buys.

use serde::Serialize;

use super::sweep::Point;
use crate::flags::OrderingArg;
use crate::output::Output;

/// What is set for one measurement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    /// In flight on each graph of each stick; where it is adaptive, the most.
    pub depth: u32,
    /// The fleet finds the depth.
    pub adaptive: bool,
    /// Instances on each stick.
    pub graphs: u32,
    /// Order on the wire.
    pub ordering: OrderingArg,
}

/// The levels, in order: names and settings. `best` has every lever at the value to try.
pub fn levels(best: Setting) -> [(&'static str, Setting); 5] {
    let baseline = Setting { depth: 1, adaptive: false, graphs: 1, ordering: OrderingArg::Vendor };
    [
        ("baseline", baseline),
        ("depth", Setting { depth: best.depth, adaptive: best.adaptive, ..baseline }),
        ("graphs", Setting { graphs: best.graphs, ..baseline }),
        ("pipelined", Setting { ordering: best.ordering, ..baseline }),
        ("all", best),
    ]
}

/// One level.
#[derive(Clone, Debug, Serialize)]
pub struct Level {
    /// Its name.
    pub level: &'static str,
    /// Speed over that of the baseline; `None` where that is 0.
    pub gain: Option<f64>,
    /// CPU of this computer for one inference.
    pub cpu_us_per_inference: Option<f64>,
    /// Figures.
    #[serde(flatten)]
    pub point: Point,
}

impl Level {
    /// Beside the baseline's speed.
    pub fn of(
        level: &'static str,
        point: Point,
        cpu_us_per_inference: Option<f64>,
        baseline_fps: f64,
    ) -> Self {
        let gain = (baseline_fps > 0.0).then(|| (point.fps / baseline_fps * 1e3).round() / 1e3);
        Level { level, gain, cpu_us_per_inference, point }
    }
}

/// As people read it.
pub fn table(output: &Output, levels: &[Level]) -> String {
    let headings =
        ["level", "depth", "graphs", "order", "fps", "gain", "p50 ms", "p99 ms", "CPU us", "verdict"];
    let mut table = output.table(&headings, &["level", "order", "verdict"]);
    let dash = || "-".to_owned();
    for Level { level, gain, cpu_us_per_inference, point } in levels {
        table.add_row([
            (*level).to_owned(),
            point.depth.to_string(),
            point.graphs.to_string(),
            point.ordering.to_owned(),
            format!("{:.1}", point.fps),
            gain.map_or_else(dash, |g| format!("{g:.2}x")),
            format!("{:.2}", point.latency_ms.p50),
            format!("{:.2}", point.latency_ms.p99),
            cpu_us_per_inference.map_or_else(dash, |us| format!("{us:.0}")),
            point.diagnosis.to_owned(),
        ]);
    }
    format!("{}\n", output.lines(&table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lever_moves_alone() {
        let best = Setting { depth: 4, adaptive: true, graphs: 2, ordering: OrderingArg::Pipelined };
        let [baseline, depth, graphs, pipelined, all] = levels(best).map(|(_, s)| s);
        let moved = |s: Setting| {
            [
                (s.depth, s.adaptive) != (baseline.depth, baseline.adaptive),
                s.graphs != baseline.graphs,
                s.ordering != baseline.ordering,
            ]
        };
        assert_eq!(moved(depth), [true, false, false]);
        assert_eq!(moved(graphs), [false, true, false]);
        assert_eq!(moved(pipelined), [false, false, true]);
        assert_eq!(moved(all), [true, true, true]);
    }
}
