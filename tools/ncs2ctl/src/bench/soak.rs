//! Load until the temperature is level: what is left of the first stretch's speed then.

use serde::Serialize;

use super::report::Report;
use crate::output::{Output, wrap};

/// Level: no stick's mean temperature changes faster than this, K a minute.
const LEVEL_K_PER_MIN: f64 = 0.5;
/// Over this many stretches.
const STRETCHES: usize = 3;

/// A soak. The rest of the document is the last stretch's report.
#[derive(Debug, Serialize)]
pub struct Soak {
    /// How often it was measured.
    pub stretches: usize,
    /// All of it.
    pub seconds: f64,
    /// False when it was interrupted before, or no stick tells its temperature.
    pub level: bool,
    /// The first stretch.
    pub first: Stretch,
    /// The last.
    pub steady: Stretch,
    /// Of the speed.
    pub fps_change_percent: f64,
}

/// One stretch.
#[derive(Clone, Debug, Serialize)]
pub struct Stretch {
    /// Speed.
    pub fps: f64,
    /// Latency.
    pub p99_ms: f64,
    /// Hottest stick.
    pub temperature_c: Option<f64>,
    /// Highest level.
    pub throttle_level_max: Option<u8>,
    #[serde(skip)]
    means: Vec<f64>,
    #[serde(skip)]
    seconds: f64,
}

impl Stretch {
    /// What counts of a report.
    pub fn of(report: &Report) -> Self {
        let heat = || report.devices.iter().filter_map(|d| d.temperature_c.as_ref());
        Stretch {
            fps: report.fps,
            p99_ms: report.latency_ms.p99,
            temperature_c: heat().map(|t| t.max).reduce(f64::max),
            throttle_level_max: report.devices.iter().filter_map(|d| d.throttle_level_max).max(),
            means: heat().map(|t| t.mean).collect(),
            seconds: report.seconds,
        }
    }
}

/// True when every stick told its temperature and none changes any more.
pub fn is_level(stretches: &[Stretch]) -> bool {
    let Some(last) = stretches.last_chunk::<STRETCHES>() else { return false };
    let (from, to) = (&last[0], &last[STRETCHES - 1]);
    // From the middle of the first to the middle of the last.
    let minutes = (from.seconds / 2.0
        + last[1..STRETCHES - 1].iter().map(|s| s.seconds).sum::<f64>()
        + to.seconds / 2.0)
        / 60.0;
    !to.means.is_empty()
        && from.means.len() == to.means.len()
        && from.means.iter().zip(&to.means).all(|(a, b)| (b - a).abs() <= LEVEL_K_PER_MIN * minutes)
}

impl Soak {
    /// `None` without a stretch.
    pub fn of(stretches: &[Stretch]) -> Option<Self> {
        let (first, steady) = (stretches.first()?, stretches.last()?);
        Some(Soak {
            stretches: stretches.len(),
            seconds: (stretches.iter().map(|s| s.seconds).sum::<f64>() * 10.0).round() / 10.0,
            level: is_level(stretches),
            fps_change_percent: if first.fps > 0.0 {
                (1e4 * (steady.fps / first.fps - 1.0)).round() / 100.0
            } else {
                0.0
            },
            first: first.clone(),
            steady: steady.clone(),
        })
    }

    /// As people read it.
    pub fn text(&self, output: &Output) -> String {
        let degree = output.glyph("°C", "C");
        let stretch = |s: &Stretch| {
            let heat =
                s.temperature_c.map_or_else(|| "unknown heat".to_owned(), |t| format!("{t:.1} {degree}"));
            format!("{:.1} fps, p99 {:.2} ms, {heat}", s.fps, s.p99_ms)
        };
        let line = format!(
            "soak of {:.0} s, temperature {}: first stretch {}; last {}; speed {:+.1} %",
            self.seconds,
            if self.level { "level" } else { "NOT level yet" },
            stretch(&self.first),
            stretch(&self.steady),
            self.fps_change_percent
        );
        format!("  {}\n", wrap(&line, output.width() - 2, "  "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(mean: f64) -> Stretch {
        Stretch {
            fps: 100.0 - mean,
            p99_ms: 1.0,
            temperature_c: Some(mean),
            throttle_level_max: Some(0),
            means: vec![mean],
            seconds: 60.0,
        }
    }

    #[test]
    fn level_is_a_rate_over_three_stretches() {
        let run = |means: &[f64]| is_level(&means.iter().copied().map(stretch).collect::<Vec<_>>());
        assert!(run(&[30.0, 70.0, 70.4, 70.9]), "0.9 K in two minutes");
        assert!(!run(&[70.0, 70.5, 71.5]), "1.5 K in two minutes");
        assert!(!run(&[70.0, 70.0]), "too few");
        let silent = Stretch { means: Vec::new(), ..stretch(0.0) };
        assert!(!is_level(&[silent.clone(), silent.clone(), silent]), "unknown is not level");
    }

    #[test]
    fn soak_shows_what_heat_takes() {
        let soak = Soak::of(&[stretch(20.0), stretch(40.0), stretch(40.0), stretch(40.0)]).expect("some");
        assert_eq!((soak.fps_change_percent, soak.level, soak.stretches), (-25.0, true, 4));
        assert!(Soak::of(&[]).is_none());
    }
}
