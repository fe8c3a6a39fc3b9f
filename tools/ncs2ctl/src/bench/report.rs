//! The figures of a run, as `--json` has them. What is not known is null, never invented.

use std::time::Duration;

use ncs2::blob::Blob;
use ncs2::stats::{Latency, StageTimes};
use ncs2_device::Timing;
use serde::Serialize;

use super::diagnosis::{Diagnosis, Signs};
use super::host::Cost;
use super::load::StickTally;
use super::measure::{Measured, StickRun, is_stable};
use crate::open::Simulation;

/// Peak of one stick's neural compute engine, TOPS (NCS2_FACTS section 1). A second source gives half of it for FP16.
pub const PEAK_TOPS: f64 = 1.0;

/// What was asked for.
pub struct Context<'a> {
    /// The network.
    pub blob: &'a Blob,
    /// Virtual sticks.
    pub simulation: Option<&'a Simulation>,
    /// Whether they kept their pace.
    pub paced: Option<bool>,
    /// As in the document.
    pub config: Config,
    /// `--target-tops`.
    pub target_tops: Option<f64>,
}

/// `config` of the document.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// Asked for; `seconds` of the report is what it came to.
    pub duration_s: f64,
    /// Before it.
    pub warmup_s: f64,
    /// In flight on each graph of each stick.
    pub depth: u32,
    /// Instances on each stick.
    pub graphs: u32,
    /// Elements of one inference.
    pub batch: u32,
    /// Which stick gets the next request.
    pub policy: &'static str,
    /// Order on the wire.
    pub ordering: &'static str,
    /// `--rate`.
    pub rate_fps: Option<f64>,
    /// `random 0`, or files.
    pub input: String,
    /// How many sticks.
    pub sticks: usize,
}

/// The document.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "the names are the contract's, CLI.md says what they are")]
pub struct Report {
    pub simulated: bool,
    pub profile: Option<String>,
    pub model: Model,
    pub engine: Option<&'static str>,
    pub timing: Option<&'static str>,
    pub paced: Option<bool>,
    pub config: Config,
    pub interrupted: bool,
    pub seconds: f64,
    pub completed: u64,
    pub failed: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub retried: u64,
    pub mismatched: Option<u64>,
    pub fps: f64,
    pub fps_windows: Vec<f64>,
    pub window_s: f64,
    pub stable: bool,
    pub latency_ms: Millis,
    pub stage_us: Stages,
    pub tops: Option<f64>,
    pub tops_nce: Option<f64>,
    pub tops_peak: f64,
    pub percent_of_peak: Option<f64>,
    pub tops_reason: Option<&'static str>,
    pub target_tops: Option<f64>,
    pub target_ratio: Option<f64>,
    pub scaling_efficiency: Option<f64>,
    pub link_ceiling_fps: Option<f64>,
    pub host: Host,
    pub devices: Vec<Device>,
    pub cache: Option<()>,
    pub pool: Pool,
    pub io: Io,
    /// Fields that are estimates, by path.
    pub estimated: &'static [&'static str],
    pub diagnosis: &'static str,
    pub diagnosis_text: String,
}

#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "see Report")]
pub struct Model {
    pub name: String,
    pub sha256: String,
    pub ops_per_inference: u64,
    pub ops_source: &'static str,
    pub macs: u64,
    pub macs_nce: u64,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "see Report")]
pub struct Millis {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "see Report")]
pub struct Micros {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "see Report")]
pub struct Stages {
    pub queue: Micros,
    pub prepare: Micros,
    pub upload: Micros,
    pub execute: Micros,
    pub download: Micros,
    pub finish: Micros,
}

#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "see Report")]
pub struct Host {
    pub cpu_us_per_inference: Option<f64>,
    /// Work of in-process virtual sticks, which is no cost of the host.
    pub virtual_sticks_cpu_us_per_inference: Option<f64>,
    pub threads: u64,
    pub context_switches_per_inference: Option<f64>,
    pub involuntary_switches: u64,
    pub page_faults: u64,
    pub rss_bytes: u64,
    pub throttled: Option<bool>,
}

/// Host memory of all sticks: leases while it was measured, and the most that was held since open.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "see Report")]
pub struct Pool {
    pub hits: u64,
    pub misses: u64,
    pub hit_rate: Option<f64>,
    pub high_water_bytes: usize,
}

#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "see Report")]
pub struct Io {
    pub reactor: Option<&'static str>,
    pub zero_copy: Option<&'static str>,
    pub out_bytes_per_s: f64,
    pub in_bytes_per_s: f64,
}

#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "see Report")]
pub struct Device {
    pub id: String,
    pub fps: f64,
    pub tops: Option<f64>,
    pub completed: u64,
    pub failed: u64,
    pub success_rate: Option<f64>,
    pub latency_ms: Millis,
    pub busy_ratio: f64,
    pub depth_mean: f64,
    pub temperature_c: Option<Temperature>,
    pub throttle_level_max: Option<u8>,
    pub resets: u32,
    pub failure: Option<String>,
}

#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "see Report")]
pub struct Temperature {
    pub min: f64,
    pub mean: f64,
    pub max: f64,
}

/// Why there are no TOPS; `None` when there are.
fn no_tops(context: &Context<'_>) -> Option<&'static str> {
    match (context.simulation, context.paced) {
        (Some(s), _) if s.timing == Timing::Zero => {
            Some("timing zero: the virtual sticks take no time, so this is the speed of this computer")
        }
        (_, Some(false)) => {
            Some("this computer could not keep the pace of the model, so this is its own speed")
        }
        _ => None,
    }
}

impl Report {
    /// Puts the figures together.
    pub fn new(context: &Context<'_>, measured: &Measured) -> Report {
        let seconds = measured.elapsed.as_secs_f64();
        let completed = measured.tally.completed();
        let per_second = |n: u64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
        let fps = per_second(completed);
        let macs = context.blob.macs();
        let reason = no_tops(context);
        let tops_of = |macs: u64, fps: f64| reason.is_none().then_some(2.0 * macs as f64 * fps / 1e12);
        let tops = tops_of(macs.model, fps);
        let tops_peak = PEAK_TOPS * measured.sticks.len() as f64;

        let devices: Vec<Device> = measured
            .sticks
            .iter()
            .map(|stick| {
                let none = StickTally::default();
                let tally = measured.tally.sticks.get(&stick.stats.id).unwrap_or(&none);
                let fps = per_second(tally.completed);
                device(stick, tally, fps, tops_of(macs.model, fps), measured.elapsed)
            })
            .collect();
        let best = devices.iter().map(|d| d.fps).fold(0.0, f64::max);
        let scaling_efficiency = (best > 0.0).then(|| fps / (best * devices.len() as f64));
        let graph = context.blob.graph();
        let link_ceiling_fps = link_ceiling(&measured.sticks, graph.input_bytes, graph.output_bytes);
        let signs = signs(context, measured, &devices, link_ceiling_fps.map(|ceiling| fps / ceiling));
        let diagnosis = Diagnosis::of(&signs);
        Report {
            simulated: context.simulation.is_some(),
            profile: context.simulation.map(|s| s.profile.clone()),
            model: Model {
                name: context.blob.name().to_owned(),
                sha256: context.blob.hash().to_string(),
                ops_per_inference: 2 * macs.model,
                ops_source: "blob",
                macs: macs.model,
                macs_nce: macs.ordered,
            },
            engine: context.simulation.map(Simulation::engine_str),
            timing: context.simulation.map(Simulation::timing_str),
            paced: context.paced,
            config: context.config.clone(),
            interrupted: measured.interrupted,
            seconds: round(seconds),
            completed,
            failed: measured.tally.failed,
            // What was sent ends in an answer or in an error; anything else was lost on the way.
            lost: measured.sent.saturating_sub(measured.tally.total_answered + measured.tally.total_failed),
            duplicated: measured.fleet_completed.saturating_sub(measured.sent),
            retried: measured.retried,
            mismatched: context.checked().then_some(measured.tally.mismatched),
            fps: round(fps),
            fps_windows: measured.windows.iter().copied().map(round).collect(),
            window_s: round(measured.window.as_secs_f64()),
            stable: is_stable(&measured.windows),
            latency_ms: Millis::of(&measured.tally.latency),
            stage_us: stages(&measured.tally.stages),
            tops: tops.map(round6),
            tops_nce: tops_of(macs.ordered, fps).map(round6),
            tops_peak,
            percent_of_peak: tops.map(|t| round6(100.0 * t / tops_peak)),
            tops_reason: reason,
            target_tops: context.target_tops,
            target_ratio: tops.zip(context.target_tops).map(|(t, target)| round6(t / target)),
            scaling_efficiency: scaling_efficiency.map(round),
            link_ceiling_fps: link_ceiling_fps.map(round),
            host: host(&measured.cost, completed, context.simulation.is_some()),
            cache: None,
            pool: pool(&measured.sticks),
            io: Io {
                reactor: None,
                zero_copy: None,
                out_bytes_per_s: round(fps * graph.input_bytes as f64),
                in_bytes_per_s: round(fps * graph.output_bytes as f64),
            },
            estimated: &["stage_us.execute", "devices.busy_ratio", "link_ceiling_fps"],
            diagnosis: diagnosis.as_str(),
            diagnosis_text: diagnosis.sentence(&signs),
            devices,
        }
    }
}

impl Context<'_> {
    /// Only the `hash` engine gives the same bytes for the same input by definition.
    fn checked(&self) -> bool {
        self.simulation.is_some_and(|s| s.engine == ncs2_device::Engine::Hash)
    }
}

fn device(stick: &StickRun, tally: &StickTally, fps: f64, tops: Option<f64>, elapsed: Duration) -> Device {
    let seconds = elapsed.as_secs_f64();
    let share = |time: Duration| if seconds > 0.0 { time.as_secs_f64() / seconds } else { 0.0 };
    let tried = tally.completed + stick.failed;
    Device {
        id: stick.stats.id.to_string(),
        fps: round(fps),
        tops: tops.map(round6),
        completed: tally.completed,
        failed: stick.failed,
        success_rate: (tried > 0).then(|| tally.completed as f64 / tried as f64),
        latency_ms: Millis::of(&tally.latency),
        // Both ends are read a moment apart from the clock.
        busy_ratio: round(share(stick.busy).min(1.0)),
        depth_mean: round(share(stick.depth_time)),
        temperature_c: stick.heat.map(|h| Temperature {
            min: round(f64::from(h.min)),
            mean: round(h.sum / f64::from(h.count.max(1))),
            max: round(f64::from(h.max)),
        }),
        throttle_level_max: stick.throttle_level_max,
        resets: stick.resets,
        failure: stick.stats.failure.clone(),
    }
}

/// The most that the links could carry: NCS2_FACTS section 4 gives up to 350 MB/s in each direction after boot on
/// USB 3 and up to 40 MB/s, both directions together, on USB 2. `None` where a stick's link speed is not known.
fn link_ceiling(sticks: &[StickRun], input_bytes: usize, output_bytes: usize) -> Option<f64> {
    const USB3_BYTES_PER_S: f64 = 350e6;
    const USB2_BYTES_PER_S: f64 = 40e6;
    let (input, output) = (input_bytes as f64, output_bytes as f64);
    sticks
        .iter()
        .map(|stick| match stick.stats.speed_mbps {
            0 => None,
            480.. if stick.stats.speed_mbps >= 5000 => Some(USB3_BYTES_PER_S / input.max(output).max(1.0)),
            _ => Some(USB2_BYTES_PER_S / (input + output).max(1.0)),
        })
        .sum()
}

fn signs(context: &Context<'_>, measured: &Measured, devices: &[Device], link_share: Option<f64>) -> Signs {
    let count = devices.len().max(1) as f64;
    let [_, _, upload, execute, download, _] =
        std::array::from_fn(|n| measured.tally.stages[n].mean().as_secs_f64());
    let on_stick = upload + execute + download;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
    let cpu = (measured.cost.cpu + measured.cost.virtual_cpu).as_secs_f64();
    Signs {
        throttle_level: devices.iter().filter_map(|d| d.throttle_level_max).max().unwrap_or(0),
        busy: devices.iter().map(|d| d.busy_ratio).sum::<f64>() / count,
        depth_mean: devices.iter().map(|d| d.depth_mean).sum::<f64>() / count,
        depth: f64::from(context.config.depth * context.config.graphs),
        execute_share: if on_stick > 0.0 { execute / on_stick } else { 1.0 },
        cpu_share: cpu / (measured.elapsed.as_secs_f64().max(1e-9) * cores),
        link_share,
        rated: context.config.rate_fps.is_some(),
        unpaced: no_tops(context).is_some(),
    }
}

fn host(cost: &Cost, completed: u64, simulated: bool) -> Host {
    let per = |x: f64| (completed > 0).then(|| round(x / completed as f64));
    Host {
        cpu_us_per_inference: per(cost.cpu.as_secs_f64() * 1e6),
        virtual_sticks_cpu_us_per_inference: simulated
            .then(|| per(cost.virtual_cpu.as_secs_f64() * 1e6))
            .flatten(),
        threads: cost.threads,
        context_switches_per_inference: per(cost.switches as f64),
        involuntary_switches: cost.involuntary,
        page_faults: cost.faults,
        rss_bytes: cost.rss_bytes,
        throttled: None,
    }
}

fn pool(sticks: &[StickRun]) -> Pool {
    let hits: u64 = sticks.iter().map(|s| s.pool.0).sum();
    let misses: u64 = sticks.iter().map(|s| s.pool.1).sum();
    Pool {
        hits,
        misses,
        hit_rate: (hits + misses > 0).then(|| hits as f64 / (hits + misses) as f64),
        high_water_bytes: sticks.iter().map(|s| s.stats.host_pool.high_water_bytes).sum(),
    }
}

fn stages(stages: &[Latency; 6]) -> Stages {
    debug_assert_eq!(StageTimes::NAMES, ["queue", "prepare", "upload", "execute", "download", "finish"]);
    let [queue, prepare, upload, execute, download, finish] = std::array::from_fn(|n| Micros::of(&stages[n]));
    Stages { queue, prepare, upload, execute, download, finish }
}

impl Millis {
    fn of(latency: &Latency) -> Self {
        let [mean, p50, p90, p95, p99, max] = figures(latency, 1e3);
        Millis { mean, p50, p90, p95, p99, max }
    }
}

impl Micros {
    fn of(latency: &Latency) -> Self {
        let [mean, p50, p90, p95, p99, max] = figures(latency, 1e6);
        Micros { mean, p50, p90, p95, p99, max }
    }
}

fn figures(latency: &Latency, unit: f64) -> [f64; 6] {
    // A histogram's bucket may reach past the largest value; no percentile is larger than the largest.
    let max = latency.max();
    let q = |q: f64| latency.quantile(q).min(max);
    [latency.mean(), q(0.5), q(0.9), q(0.95), q(0.99), max].map(|d| round(d.as_secs_f64() * unit))
}

/// Three decimals are more than any of these figures is worth.
fn round(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}

/// TOPS of small networks need more.
fn round6(x: f64) -> f64 {
    (x * 1e6).round() / 1e6
}
