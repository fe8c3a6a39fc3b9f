//! `--targets FILE`: budgets of latency, speed and memory for each network, and whether they are kept.
//!
//! ```toml
//! [networks.squeezenet1_1]
//! fps = 250.0             # at least, inferences a second
//! p50_ms = 15.0           # at most; mean_ms, p90_ms, p95_ms, p99_ms and max_ms, too
//! stick_memory_mb = 40.0  # at most, what a stick says that it uses, for all networks together
//! host_memory_mb = 8.0    # at most, inputs and outputs on this computer, all sticks
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ncs2::ErrorKind;
use serde::{Deserialize, Serialize};

use super::report::{ModelReport, Report};
use crate::failure::{Failure, Result, one_line};
use crate::output::{Output, Style};

/// The file.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Targets {
    networks: BTreeMap<String, Budget>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    fps: Option<f64>,
    mean_ms: Option<f64>,
    p50_ms: Option<f64>,
    p90_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
    stick_memory_mb: Option<f64>,
    host_memory_mb: Option<f64>,
}

/// One budget and what was measured.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Outcome {
    /// Name of the network.
    pub network: String,
    /// Name of the figure, as the file has it.
    pub figure: &'static str,
    /// What the file says.
    pub budget: f64,
    /// `at least` or `at most`.
    pub bound: &'static str,
    /// `None` where it is not known.
    pub measured: Option<f64>,
    /// False where it is not known.
    pub met: bool,
}

/// Reads the file; every network of the run must be in it.
pub fn read<'a>(path: &Path, networks: impl Iterator<Item = &'a str>) -> Result<Targets> {
    let text = fs::read_to_string(path).map_err(|e| Failure::file(path, "read", &e))?;
    let bad = |message: String, hint: String| {
        Failure::new(ErrorKind::InvalidInput, format!("{}: {message}", path.display()), hint)
    };
    let targets: Targets = toml::from_str(&text).map_err(|e| {
        bad(
            format!("expected budgets, found: {}", one_line(e.message())),
            "write [networks.NAME] with fps, p50_ms, p99_ms, stick_memory_mb, host_memory_mb".to_owned(),
        )
    })?;
    for network in networks {
        let Some(budget) = targets.networks.get(network) else {
            let known: Vec<&str> = targets.networks.keys().map(String::as_str).collect();
            let found = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(bad(
                format!("expected [networks.{network}], found {found}"),
                "names are those of the blob files, without .blob".to_owned(),
            ));
        };
        let entries = budget.entries();
        if entries.is_empty() {
            return Err(bad(
                format!("expected a budget for {network}, found none"),
                "give fps, for one".into(),
            ));
        }
        if let Some((name, ..)) = entries.iter().find(|(_, value, _)| !(value.is_finite() && *value > 0.0)) {
            return Err(bad(format!("expected {name} of {network} above 0"), "mend the number".into()));
        }
    }
    Ok(targets)
}

impl Budget {
    /// Name, value, and whether it is a least.
    fn entries(&self) -> Vec<(&'static str, f64, bool)> {
        [
            ("fps", self.fps, true),
            ("mean_ms", self.mean_ms, false),
            ("p50_ms", self.p50_ms, false),
            ("p90_ms", self.p90_ms, false),
            ("p95_ms", self.p95_ms, false),
            ("p99_ms", self.p99_ms, false),
            ("max_ms", self.max_ms, false),
            ("stick_memory_mb", self.stick_memory_mb, false),
            ("host_memory_mb", self.host_memory_mb, false),
        ]
        .into_iter()
        .filter_map(|(name, value, least)| Some((name, value?, least)))
        .collect()
    }
}

impl Targets {
    /// Every budget of the networks in the report.
    pub fn judge(&self, report: &Report) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for model in &report.models {
            let Some(budget) = self.networks.get(&model.name) else { continue };
            for (figure, budget, least) in budget.entries() {
                let measured = figure_of(figure, model, report);
                outcomes.push(Outcome {
                    network: model.name.clone(),
                    figure,
                    budget,
                    bound: if least { "at least" } else { "at most" },
                    measured,
                    met: measured.is_some_and(|m| if least { m >= budget } else { m <= budget }),
                });
            }
        }
        outcomes
    }
}

fn figure_of(figure: &str, model: &ModelReport, report: &Report) -> Option<f64> {
    let latency = &model.latency_ms;
    // Without an answer there is no latency, and 0 would keep every budget.
    let ms = |ms: f64| (model.completed > 0).then_some(ms);
    match figure {
        "fps" => Some(model.fps),
        "mean_ms" => ms(latency.mean),
        "p50_ms" => ms(latency.p50),
        "p90_ms" => ms(latency.p90),
        "p95_ms" => ms(latency.p95),
        "p99_ms" => ms(latency.p99),
        "max_ms" => ms(latency.max),
        "stick_memory_mb" => {
            report.devices.iter().filter_map(|d| d.used_memory_bytes).max().map(|b| f64::from(b) / 1e6)
        }
        _ => Some(report.pool.high_water_bytes as f64 / 1e6),
    }
}

/// As people read it.
pub fn table(output: &Output, outcomes: &[Outcome]) -> String {
    let mut table =
        output.table(&["network", "budget", "", "measured", "kept"], &["network", "budget", "kept"]);
    let figure = |x: f64| format!("{}", (x * 1e3).round() / 1e3);
    for o in outcomes {
        table.add_row([
            o.network.clone(),
            format!("{} {}", o.figure, o.bound),
            figure(o.budget),
            o.measured.map_or_else(|| "unknown".to_owned(), figure),
            if o.met { "yes".to_owned() } else { output.paint(Style::Bad, "NO") },
        ]);
    }
    output.lines(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str, networks: &[&str]) -> Result<Targets> {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("t.toml");
        fs::write(&path, text).expect("written");
        read(&path, networks.iter().copied())
    }

    #[test]
    fn budgets_are_read_or_refused() {
        let targets = read_text("[networks.a]\nfps = 10\np99_ms = 3.5\n", &["a"]).expect("well formed");
        assert_eq!(targets.networks["a"].entries(), [("fps", 10.0, true), ("p99_ms", 3.5, false)]);
        for bad in [
            "",
            "[networks.a]\n",
            "[networks.a]\nfps = 0\n",
            "[networks.a]\nspeed = 1\n",
            "x",
            "[networks.b]\nfps=1",
        ] {
            assert!(read_text(bad, &["a"]).is_err(), "{bad}");
        }
    }
}
