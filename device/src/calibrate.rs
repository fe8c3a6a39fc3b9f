//! The timing model against published figures of real sticks, without blobs: each network's load lies in a table.
//!
//! ```no_run
//! use ncs2_device::{Profile, calibrate};
//! let rows = calibrate::rows(&Profile::load("ncs2")?)?;
//! println!("{}", calibrate::table(&rows));
//! # Ok::<(), ncs2::Error>(())
//! ```

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use ncs2::blob::Graph;
use ncs2::clock::Instant;
use ncs2::error::{Error, ErrorKind, Result};
use serde::Deserialize;

use crate::cost::{GraphCost, StageLoad, stage_loads};
use crate::executors::{Chip, Executors};
use crate::profile::{Profile, Speed};

const NETWORKS: &str = include_str!("../profiles/calibration.toml");
const PUBLISHED: &str = include_str!("../profiles/published.toml");
/// Inferences of a prediction, and those of them that come before it counts.
const RUNS: usize = 12;
const SKIPPED: usize = 4;

/// One published figure and what the model says.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// Network, requests in flight, and link.
    pub name: String,
    /// `fps` or `ms`.
    pub unit: String,
    /// As NCS2_FACTS section 2 has it.
    pub published: f64,
    /// `A` lab or vendor figure with method, `B` reproducible tool output.
    pub trust: String,
    /// By the profile's constants. Simulated.
    pub predicted: f64,
    /// By constants that were fitted to all other figures, where that was asked for. Simulated.
    pub left_out: Option<f64>,
}

impl Row {
    /// Relative error of the prediction; positive where the model promises more.
    pub fn error(&self) -> f64 {
        self.predicted / self.published - 1.0
    }

    /// The same for constants that never saw this figure.
    pub fn left_out_error(&self) -> Option<f64> {
        self.left_out.map(|value| value / self.published - 1.0)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Networks {
    network: Vec<Network>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    name: String,
    batch: u32,
    shaves: u32,
    cmx_slices: u32,
    input_bytes: f64,
    output_bytes: f64,
    stages: Vec<[f64; 3]>,
}

impl Network {
    fn cost(&self, speed: &Speed) -> Arc<GraphCost> {
        let load =
            |&[nce_macs, shave_elements, bytes]: &[f64; 3]| StageLoad { nce_macs, shave_elements, bytes };
        let loads: Vec<_> = self.stages.iter().map(load).collect();
        Arc::new(GraphCost::of_loads(&loads, (self.batch, self.shaves, self.cmx_slices), speed))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    host_us: f64,
    beside: Vec<Beside>,
    figure: Vec<Figure>,
}

/// A stage that was measured with a network and that its table lacks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Beside {
    network: String,
    stage: [f64; 3],
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum What {
    Fps,
    Ms,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Via {
    Device,
    Usb2,
    Usb3,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Figure {
    network: String,
    what: What,
    depth: usize,
    link: Via,
    value: f64,
    trust: String,
}

/// All that a prediction needs beside the chip's constants.
struct Bench {
    networks: Vec<Network>,
    published: Published,
    usb2_bytes_per_ns: f64,
    usb3_bytes_per_ns: f64,
}

impl Bench {
    fn load() -> Result<Bench> {
        let bad = |e: toml::de::Error| Error::new(ErrorKind::InvalidInput, "calibrate").detail(e.to_string());
        let mut networks: Networks = toml::from_str(NETWORKS).map_err(bad)?;
        let published: Published = toml::from_str(PUBLISHED).map_err(bad)?;
        if let Some(f) =
            published.figure.iter().find(|f| !networks.network.iter().any(|n| n.name == f.network))
        {
            let why = format!("{}: a figure is published, and the table has no such network", f.network);
            return Err(Error::new(ErrorKind::NotFound, "calibrate").detail(why));
        }
        for network in &mut networks.network {
            let more = published.beside.iter().filter(|b| b.network == network.name);
            network.stages.extend(more.map(|b| b.stage));
        }
        Ok(Bench {
            networks: networks.network,
            published,
            usb2_bytes_per_ns: Profile::load("usb2")?.link.bytes_per_s / 1e9,
            usb3_bytes_per_ns: Profile::load("ncs2")?.link.bytes_per_s / 1e9,
        })
    }

    fn predict(&self, figure: &Figure, speed: &Speed) -> f64 {
        let Some(network) = self.networks.iter().find(|n| n.name == figure.network) else { return f64::NAN };
        let cost = network.cost(speed);
        let bytes = network.input_bytes + network.output_bytes;
        let outside_ns = match figure.link {
            Via::Device => 0.0,
            Via::Usb2 => self.published.host_us * 1e3 + bytes / self.usb2_bytes_per_ns,
            Via::Usb3 => self.published.host_us * 1e3 + bytes / self.usb3_bytes_per_ns,
        };
        let executors = (speed.shaves / network.shaves.max(1))
            .min(speed.cmx_slices / network.cmx_slices.max(1))
            .min(speed.max_executors)
            .max(1) as usize;
        let (fps, run_ms) = closed_loop(&cost, Chip::new(speed), executors, figure.depth, outside_ns);
        match figure.what {
            What::Fps => fps,
            What::Ms => run_ms + outside_ns / 1e6,
        }
    }

    /// Sum of what the logarithms are off, a large error counting less than its square.
    fn loss(&self, speed: &Speed, without: Option<usize>) -> f64 {
        let figures = self.published.figure.iter().enumerate().filter(|(i, _)| Some(*i) != without);
        figures
            .map(|(_, f)| {
                let off = (self.predict(f, speed) / f.value).ln().abs();
                if off < 0.15 { off * off / 0.3 } else { off - 0.075 }
            })
            .sum()
    }

    fn row(&self, figure: &Figure, speed: &Speed) -> Row {
        let link = match figure.link {
            Via::Device => "on the device",
            Via::Usb2 => "USB 2",
            Via::Usb3 => "USB 3",
        };
        Row {
            name: format!("{}, {} in flight, {link}", figure.network, figure.depth),
            unit: if figure.what == What::Fps { "fps" } else { "ms" }.into(),
            published: figure.value,
            trust: figure.trust.clone(),
            predicted: self.predict(figure, speed),
            left_out: None,
        }
    }
}

/// Inferences per second, and milliseconds of one on its executor, with `depth` requests that each spend `outside_ns`
/// on the host and the wire between two executions.
fn closed_loop(
    cost: &Arc<GraphCost>,
    chip: Chip,
    executors: usize,
    depth: usize,
    outside_ns: f64,
) -> (f64, f64) {
    let mut chip = Executors::new(chip);
    let after = |ns: f64| Duration::from_nanos(ns as u64);
    let solo_ns = cost.trigger_ns + cost.stages.iter().map(|s| s.fixed_ns + s.work_ns).sum::<f64>();
    // Out of step with each other, as requests of a real host are.
    let mut ready: VecDeque<Instant> =
        (0..depth).map(|i| Instant::ZERO + after(0.37 * solo_ns * i as f64)).collect();
    let (mut running, mut started, mut stages) = (0, 0, Vec::new());
    let mut ends: Vec<(Instant, Duration)> = Vec::with_capacity(RUNS);
    let mut clock = Instant::ZERO;
    while ends.len() < RUNS {
        let next = ready.front().filter(|_| running < executors).copied();
        let until = next.unwrap_or(clock + Duration::from_secs(1000));
        if chip.advance(until) {
            while let Some(finished) = chip.take_finished() {
                clock = finished.at;
                ends.push((clock, chip.rest(finished.run, 1.0, &mut stages)));
                running -= 1;
                ready.push_back(clock + after(outside_ns));
            }
        } else if ready.pop_front().is_some() {
            started += 1;
            running += 1;
            chip.start(started, cost);
        }
    }
    let counted = &ends[SKIPPED..RUNS];
    let took = counted[counted.len() - 1].0.saturating_since(ends[SKIPPED - 1].0).as_secs_f64();
    let run: f64 = counted.iter().map(|(_, d)| d.as_secs_f64()).sum();
    (counted.len() as f64 / took, run * 1e3 / counted.len() as f64)
}

/// Every published figure beside the prediction by this profile's constants.
pub fn rows(profile: &Profile) -> Result<Vec<Row>> {
    let bench = Bench::load()?;
    Ok(bench.published.figure.iter().map(|f| bench.row(f, &profile.timing)).collect())
}

/// [`rows`], each with the prediction by constants that were fitted to all the others. Takes some seconds.
pub fn leave_one_out(profile: &Profile, seed: u64) -> Result<Vec<Row>> {
    let bench = Bench::load()?;
    let row = |(i, figure): (usize, &Figure)| {
        let speed = fit_without(&bench, &profile.timing, Some(i), seed);
        Row { left_out: Some(bench.predict(figure, &speed)), ..bench.row(figure, &profile.timing) }
    };
    Ok(bench.published.figure.iter().enumerate().map(row).collect())
}

/// The constants that fit the published figures best, near those of the profile. Those that are facts stay.
pub fn fit(profile: &Profile, seed: u64) -> Result<Speed> {
    Ok(fit_without(&Bench::load()?, &profile.timing, None, seed))
}

type Field = fn(&mut Speed) -> &mut f64;

/// What is fitted, and how far it may go.
const FITTED: [(Field, f64, f64); 6] = [
    // Two NCEs of 1 TOPS together would do 250e9 each at their peak, which no convolution reaches.
    (|s| &mut s.nce_macs_per_s, 50e9, 200e9),
    (|s| &mut s.dram_efficiency, 0.05, 0.9),
    (|s| &mut s.stage_us, 1.0, 300.0),
    (|s| &mut s.nce_stage_us, 1.0, 300.0),
    (|s| &mut s.shave_elements_per_s, 5e6, 5e9),
    (|s| &mut s.trigger_us, 10.0, 2000.0),
];

/// Steps along one axis at a time or along all, in logarithms, shrinking where none helps.
fn fit_without(bench: &Bench, start: &Speed, without: Option<usize>, seed: u64) -> Speed {
    let mut random = Random(seed);
    let mut best = (*start, bench.loss(start, without));
    for round in 0..3 {
        let mut here = best.0;
        if round > 0 {
            for (field, low, high) in FITTED {
                let value = field(&mut here);
                *value = (*value * (1.2 * random.normal()).exp()).clamp(low, high);
            }
        }
        let mut loss = bench.loss(&here, without);
        let mut width = 0.4;
        while width > 0.01 {
            let mut better = false;
            for axis in 0..2 * FITTED.len() {
                let mut next = here;
                for (i, (field, low, high)) in FITTED.into_iter().enumerate() {
                    let step = match axis.checked_sub(FITTED.len()) {
                        None if i == axis => {
                            if random.normal() < 0.0 {
                                -width
                            } else {
                                width
                            }
                        }
                        None => 0.0,
                        Some(_) => width * random.normal(),
                    };
                    let value = field(&mut next);
                    *value = (*value * step.exp()).clamp(low, high);
                }
                let found = bench.loss(&next, without);
                if found < loss {
                    (here, loss, better) = (next, found, true);
                }
            }
            width *= if better { 1.0 } else { 0.7 };
        }
        if loss < best.1 {
            best = (here, loss);
        }
    }
    best.0
}

/// SplitMix64.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// From 0 to 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Nearly normal, of deviation 1.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

/// Median of the errors' sizes, and the largest.
pub fn spread(errors: impl Iterator<Item = f64>) -> (f64, f64) {
    let mut sizes: Vec<f64> = errors.map(f64::abs).collect();
    sizes.sort_by(f64::total_cmp);
    let at = |i: usize| sizes.get(i).copied().unwrap_or(f64::NAN);
    let n = sizes.len();
    ((at(n.saturating_sub(1) / 2) + at(n / 2)) / 2.0, at(n.saturating_sub(1)))
}

/// The rows as text, errors in per cent, with medians.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| figure | trust | published | simulated | error | left out |\n|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let left_out = row.left_out_error().map_or("-".into(), |e| format!("{:+.0} %", e * 100.0));
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} {} | {:.1} | {:+.0} % | {left_out} |",
            row.name,
            row.trust,
            row.published,
            row.unit,
            row.predicted,
            row.error() * 100.0
        );
    }
    let (median, worst) = spread(rows.iter().map(Row::error));
    let _ = write!(text, "\nmedian error {:.1} %, largest {:.1} %", median * 100.0, worst * 100.0);
    if rows.iter().any(|r| r.left_out.is_some()) {
        let (median, worst) = spread(rows.iter().filter_map(Row::left_out_error));
        let _ = write!(text, "; left out: median {:.1} %, largest {:.1} %", median * 100.0, worst * 100.0);
    }
    text.push('\n');
    text
}

/// What one inference of a blob takes on a profile's chip that does nothing else: the fixed cost of an inference, and
/// all its stages. Simulated.
pub fn service(profile: &Profile, graph: &Graph, blob: &[u8]) -> (Duration, Duration) {
    let speed = &profile.timing;
    let cost = GraphCost::new(graph, blob, speed);
    let stages: f64 = cost.solo_ns(speed.dram_bytes_per_s * speed.dram_efficiency / 1e9).sum();
    (Duration::from_nanos(cost.trigger_ns as u64), Duration::from_nanos(stages as u64))
}

/// One entry of `profiles/calibration.toml`, from a blob.
pub fn summary(name: &str, blob: &[u8]) -> Result<String> {
    let graph = Graph::parse(blob)
        .map_err(|e| Error::new(ErrorKind::InvalidBlob, "summarise a blob").detail(format!("{name}: {e}")))?;
    let mut text = format!(
        "\n[[network]]\nname = \"{name}\"\nbatch = {}\nshaves = {}\ncmx_slices = {}\ninput_bytes = {}\noutput_bytes = {}\nstages = [\n",
        graph.batch.max(1),
        graph.shaves,
        graph.cmx_slices,
        graph.input_bytes,
        graph.output_bytes
    );
    for load in stage_loads(&graph, blob) {
        let _ = writeln!(text, "  [{}, {:.1}, {}],", load.nce_macs, load.shave_elements, load.bytes);
    }
    text.push_str("]\n");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_constants_fit_what_was_published() {
        let rows = rows(&Profile::load("ncs2").expect("built in")).expect("tables");
        let (median, worst) = spread(rows.iter().map(Row::error));
        assert!(median <= 0.15 && worst <= 0.35, "{}", table(&rows));
    }

    #[test]
    fn four_in_flight_gain_what_was_published_on_googlenet() {
        let rows = rows(&Profile::load("ncs2").expect("built in")).expect("tables");
        let fps = |depth: &str| {
            let name = format!("googlenet_v1, {depth} in flight, USB 3");
            rows.iter().find(|r| r.name == name).expect("published").predicted
        };
        let gain = fps("4") / fps("1");
        assert!((1.8..=2.4).contains(&gain), "{gain}");
    }

    /// But for its last column, which takes a fit for each figure.
    #[test]
    fn the_table_in_the_docs_is_the_one_that_is_printed() {
        let docs = include_str!("../../docs/virtual-stick.md");
        let rows = rows(&Profile::load("ncs2").expect("built in")).expect("tables");
        let cells = |line: &str| -> Vec<String> {
            line.trim_matches('|').split('|').take(5).map(|cell| cell.trim().to_owned()).collect()
        };
        let printed: Vec<_> = table(&rows).lines().filter(|l| l.starts_with('|')).map(cells).collect();
        let (_, rest) = docs.split_once("| figure | trust |").expect("the table's head");
        let written: Vec<_> =
            std::iter::once("| figure | trust |".to_owned() + rest.lines().next().unwrap_or_default())
                .chain(rest.lines().skip(1).take_while(|l| l.starts_with('|')).map(str::to_owned))
                .map(|line| cells(&line))
                .collect();
        assert_eq!(written, printed, "put the output of `ncs2ctl sim calibrate --leave-one-out` there");
    }

    #[test]
    fn medians_are_medians() {
        assert_eq!(spread([0.1, -0.3, 0.2].into_iter()), (0.2, 0.3));
        assert_eq!(spread([1.0, -3.0].into_iter()), (2.0, 3.0));
    }
}
