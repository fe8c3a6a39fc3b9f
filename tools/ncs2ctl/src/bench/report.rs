//! The figures of a run, as `--json` has them. What is not known is null, never invented.

use std::time::Duration;

use ncs2::stats::{Latency, StageTimes};
use ncs2_device::Timing;
use serde::Serialize;

use super::diagnosis::{Diagnosis, Signs};
use super::energy::{self, Energy};
use super::host::Cost;
use super::load::Served;
use super::load::StickTally;
use super::machine::Machine;
use super::measure::{Measured, StickRun, is_stable};
use super::network::Network;
use super::targets;
use crate::open::Simulation;

/// Peak of one stick's neural compute engine, TOPS (NCS2_FACTS section 1). A second source gives half of it for FP16.
pub const PEAK_TOPS: f64 = 1.0;

/// Place of `execute` among the stages.
const EXECUTE: usize = 3;

/// What was asked for.
pub struct Context<'a> {
    /// The networks, at least one; the first one's name is the report's.
    pub networks: &'a [Network],
    /// Virtual sticks.
    pub simulation: Option<&'a Simulation>,
    /// Whether they kept their pace.
    pub paced: Option<bool>,
    /// As in the document.
    pub config: Config,
    /// `--target-tops`.
    pub target_tops: Option<f64>,
    /// How transfers are waited for.
    pub reactor: &'static str,
    /// How tensors reach the sticks.
    pub zero_copy: Option<&'static str>,
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
    /// `fixed`, or `auto`: the fleet found it, and `depth` is the largest in force at the end.
    pub depth_mode: &'static str,
    /// Instances on each stick.
    pub graphs: u32,
    /// Elements of one inference.
    pub batch: u32,
    /// Batches that the fleet may choose from.
    pub batch_variants: Vec<u32>,
    /// Which stick gets the next request.
    pub policy: String,
    /// Order on the wire.
    pub ordering: &'static str,
    /// `--rate`.
    pub rate_fps: Option<f64>,
    /// `--target-latency`.
    pub target_latency_ms: Option<f64>,
    /// How often an inference may move.
    pub retries: u32,
    /// CPUs of the driver's threads.
    pub pin: Pinned,
    /// `random 0`, or files.
    pub input: String,
    /// How many sticks.
    pub sticks: usize,
}

/// `--pin` and what came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pinned {
    /// As it was typed.
    pub policy: String,
    /// CPUs of the threads that talk to the kernel; empty where the kernel chooses.
    pub reactor: Vec<usize>,
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
    /// What came before, the search for depths too.
    pub warmup_seconds: f64,
    pub completed: u64,
    pub failed: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub retried: u64,
    pub retries_refused: u64,
    pub mismatched: Option<u64>,
    pub fps: f64,
    pub elements_per_s: f64,
    pub fps_windows: Vec<f64>,
    pub window_s: f64,
    pub stable: bool,
    pub latency_ms: Percentiles,
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
    pub energy: Option<Energy>,
    pub models: Vec<ModelReport>,
    pub devices: Vec<Device>,
    /// What the CPU answered in place of sticks, apart from everything else; `None` where it was not needed.
    pub fallback: Option<Stand>,
    pub cache: Option<Cache>,
    pub pool: Pool,
    pub io: Io,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<targets::Outcome>>,
    /// Fields that are estimates, by path.
    pub estimated: &'static [&'static str],
    pub diagnosis: &'static str,
    pub diagnosis_text: String,
}

#[derive(Debug, Default, Serialize)]
#[allow(missing_docs, reason = "see Report")]
pub struct Model {
    pub name: String,
    pub sha256: String,
    pub ops_per_inference: u64,
    pub ops_source: &'static str,
    pub macs: u64,
    pub macs_nce: u64,
}

/// One network of the run.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "see Report")]
pub struct ModelReport {
    pub name: String,
    pub sha256: String,
    pub batch: u32,
    /// Of the requests in flight, or of the rate.
    pub share: f64,
    /// Of the answers.
    pub share_completed: Option<f64>,
    /// Of the time that inferences spent on the sticks.
    pub share_execute: Option<f64>,
    pub completed: u64,
    pub failed: u64,
    pub mismatched: Option<u64>,
    pub fps: f64,
    pub elements_per_s: f64,
    pub tops: Option<f64>,
    pub latency_ms: Percentiles,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "see Report")]
pub struct Percentiles {
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
    pub queue: Percentiles,
    pub prepare: Percentiles,
    pub upload: Percentiles,
    pub execute: Percentiles,
    pub download: Percentiles,
    pub finish: Percentiles,
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
    pub throttled_reason: Option<String>,
    pub usb_interrupts: Option<u64>,
    pub usb_interrupts_reason: Option<String>,
    pub cache_misses_per_inference: Option<f64>,
    pub cache_misses_reason: Option<String>,
}

/// Graph caches of all sticks: requests that found their graph while it was measured, and what lies there at the end.
#[derive(Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "see Report")]
pub struct Cache {
    pub hits: u64,
    pub misses: u64,
    pub hit_rate: Option<f64>,
    pub evictions: u64,
    pub loads: u64,
    pub graphs: u32,
    pub used_bytes: u64,
    pub memory_bytes: u64,
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
    pub reactor: &'static str,
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
    pub latency_ms: Percentiles,
    pub busy_ratio: f64,
    pub depth_mean: f64,
    pub temperature_c: Option<Temperature>,
    pub throttle_level_max: Option<u8>,
    pub resets: u32,
    /// In force at the end, most of its graphs.
    pub depth: Option<u32>,
    /// Times that it rested because of heat since it was opened.
    pub rests: Option<u32>,
    /// On the stick, as it says itself.
    pub used_memory_bytes: Option<u32>,
    pub failure: Option<String>,
}

/// What stood in for sticks.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "see Report")]
pub struct Stand {
    pub name: String,
    pub completed: u64,
    pub fps: f64,
    pub latency_ms: Percentiles,
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
        let reason = no_tops(context);
        let tops_of = |operations: f64| reason.is_none().then_some(operations / seconds.max(1e-9) / 1e12);
        let models = models(context, measured, &tops_of);
        // Two operations each, of every network's answers.
        let operations = |macs: fn(&ncs2::blob::Macs) -> u64| {
            let of = |n: &Network, s: &Served| 2.0 * macs(n.blob.macs()) as f64 * s.tally.completed() as f64;
            context.networks.iter().zip(&measured.served).map(|(n, s)| of(n, s)).sum::<f64>()
        };
        let tops = tops_of(operations(|m| m.model));
        // Which network a stick answered is not told apart: it has its part of the whole.
        let tops_per_answer = if completed > 0 { tops.map(|t| t / completed as f64) } else { tops };
        let tops_peak = PEAK_TOPS * measured.sticks.len() as f64;

        let devices: Vec<Device> = measured
            .sticks
            .iter()
            .map(|stick| {
                let none = StickTally::default();
                let tally = measured.tally.sticks.get(&stick.stats.id).unwrap_or(&none);
                let tops = tops_per_answer.map(|t| t * tally.completed as f64);
                device(stick, tally, per_second(tally.completed), tops, measured.elapsed)
            })
            .collect();
        let best = devices.iter().map(|d| d.fps).fold(0.0, f64::max);
        let scaling_efficiency = (best > 0.0).then(|| fps / (best * devices.len() as f64));
        let traffic = Traffic::of(context, measured);
        let link_ceiling_fps = link_ceiling(&measured.sticks, &traffic);
        let busy: Vec<f64> = devices.iter().map(|d| d.busy_ratio).collect();
        let energy = if reason.is_none() { energy::estimate(&busy, fps) } else { None };
        let signs = signs(context, measured, &devices, link_ceiling_fps.map(|ceiling| fps / ceiling));
        let diagnosis = Diagnosis::of(&signs);
        Report {
            simulated: context.simulation.is_some(),
            profile: context.simulation.map(|s| s.profile.clone()),
            model: Model::of(context),
            engine: context.simulation.map(Simulation::engine_str),
            timing: context.simulation.map(Simulation::timing_str),
            paced: context.paced,
            config: context.config.clone(),
            interrupted: measured.interrupted,
            seconds: round(seconds),
            warmup_seconds: round(measured.warmed.as_secs_f64()),
            completed,
            failed: measured.tally.failed,
            // What was sent ends in an answer or in an error; anything else was lost on the way.
            lost: measured.sent.saturating_sub(measured.tally.total_answered + measured.tally.total_failed),
            duplicated: measured.fleet_completed.saturating_sub(measured.sent),
            retried: measured.retried,
            retries_refused: measured.retries_refused,
            mismatched: context.checked().then_some(measured.tally.mismatched),
            fps: round(fps),
            elements_per_s: round(models.iter().map(|m| m.elements_per_s).sum()),
            fps_windows: measured.windows.iter().copied().map(round).collect(),
            window_s: round(measured.window.as_secs_f64()),
            stable: is_stable(&measured.windows),
            latency_ms: Percentiles::millis(&measured.tally.latency),
            stage_us: stages(&measured.tally.stages),
            tops: tops.map(round6),
            tops_nce: tops_of(operations(|m| m.ordered)).map(round6),
            tops_peak,
            percent_of_peak: tops.map(|t| round6(100.0 * t / tops_peak)),
            tops_reason: reason,
            target_tops: context.target_tops,
            target_ratio: tops.zip(context.target_tops).map(|(t, target)| round6(t / target)),
            scaling_efficiency: scaling_efficiency.map(round),
            link_ceiling_fps: link_ceiling_fps.map(round),
            host: host(&measured.cost, &measured.machine, completed, context.simulation.is_some()),
            energy,
            models,
            fallback: measured.tally.fallback.as_ref().map(|(id, tally)| Stand {
                name: id.to_string(),
                completed: tally.completed,
                fps: round(per_second(tally.completed)),
                latency_ms: Percentiles::millis(&tally.latency),
            }),
            cache: cache(&measured.sticks),
            pool: pool(&measured.sticks),
            io: Io {
                reactor: context.reactor,
                zero_copy: context.zero_copy,
                out_bytes_per_s: round(fps * traffic.out_bytes),
                in_bytes_per_s: round(fps * traffic.in_bytes),
            },
            targets: None,
            estimated: &["stage_us.execute", "devices.busy_ratio", "link_ceiling_fps", "energy"],
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
            && self.networks.iter().all(Network::is_checkable)
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
        latency_ms: Percentiles::millis(&tally.latency),
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
        depth: stick.depth_in_force(),
        rests: stick.stats.sched.as_ref().map(|s| s.rests),
        used_memory_bytes: stick.stats.used_memory_bytes,
        failure: stick.stats.failure.clone(),
    }
}

impl Model {
    fn of(context: &Context<'_>) -> Self {
        let Some(network) = context.networks.first() else { return Model::default() };
        let macs = network.blob.macs();
        Model {
            name: network.blob.name().to_owned(),
            sha256: network.blob.hash().to_string(),
            ops_per_inference: 2 * macs.model,
            ops_source: "blob",
            macs: macs.model,
            macs_nce: macs.ordered,
        }
    }
}

fn models(
    context: &Context<'_>,
    measured: &Measured,
    tops_of: &impl Fn(f64) -> Option<f64>,
) -> Vec<ModelReport> {
    let seconds = measured.elapsed.as_secs_f64();
    let execute =
        |s: &Served| s.tally.stages[EXECUTE].mean().as_secs_f64() * s.tally.stages[EXECUTE].count() as f64;
    let all: u64 = measured.tally.completed();
    let all_execute: f64 = measured.served.iter().map(execute).sum();
    let model = |(network, served): (&Network, &Served)| {
        let completed = served.tally.completed();
        let fps = if seconds > 0.0 { completed as f64 / seconds } else { 0.0 };
        ModelReport {
            name: network.blob.name().to_owned(),
            sha256: network.blob.hash().to_string(),
            batch: network.batch(),
            share: round6(network.share),
            share_completed: (all > 0).then(|| round6(completed as f64 / all as f64)),
            share_execute: (all_execute > 0.0).then(|| round6(execute(served) / all_execute)),
            completed,
            failed: served.tally.failed,
            mismatched: (context.checked() && network.is_checkable()).then_some(served.tally.mismatched),
            fps: round(fps),
            elements_per_s: round(fps * f64::from(network.batch())),
            tops: tops_of(2.0 * network.blob.macs().model as f64 * completed as f64).map(round6),
            latency_ms: Percentiles::millis(&served.tally.latency),
        }
    };
    context.networks.iter().zip(&measured.served).map(model).collect()
}

/// Bytes of a mean inference.
struct Traffic {
    out_bytes: f64,
    in_bytes: f64,
}

impl Traffic {
    /// Weighted by what was answered; without an answer by what is sent.
    fn of(context: &Context<'_>, measured: &Measured) -> Self {
        let all = measured.tally.completed() as f64;
        let weight = |(network, served): (&Network, &Served)| match all {
            0.0 => network.share,
            all => served.tally.completed() as f64 / all,
        };
        let sum = |bytes: fn(&ncs2::blob::Graph) -> usize| {
            let pairs = context.networks.iter().zip(&measured.served);
            pairs.map(|(n, s)| weight((n, s)) * bytes(n.blob.graph()) as f64).sum()
        };
        Traffic { out_bytes: sum(|g| g.input_bytes), in_bytes: sum(|g| g.output_bytes) }
    }
}

/// The most that the links could carry: NCS2_FACTS section 4 gives up to 350 MB/s in each direction after boot on
/// USB 3 and up to 40 MB/s, both directions together, on USB 2. `None` where a stick's link speed is not known.
fn link_ceiling(sticks: &[StickRun], traffic: &Traffic) -> Option<f64> {
    const USB3_BYTES_PER_S: f64 = 350e6;
    const USB2_BYTES_PER_S: f64 = 40e6;
    let (out, input) = (traffic.out_bytes, traffic.in_bytes);
    sticks
        .iter()
        .map(|stick| match stick.stats.speed_mbps {
            0 => None,
            480.. if stick.stats.speed_mbps >= 5000 => Some(USB3_BYTES_PER_S / out.max(input).max(1.0)),
            _ => Some(USB2_BYTES_PER_S / (out + input).max(1.0)),
        })
        .sum()
}

fn signs(context: &Context<'_>, measured: &Measured, devices: &[Device], link_share: Option<f64>) -> Signs {
    let count = devices.len().max(1) as f64;
    let [_, _, upload, execute, download, _] =
        std::array::from_fn(|n| measured.tally.stages[n].mean().as_secs_f64());
    let on_stick = upload + execute + download;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
    let largest = context.networks.iter().map(|n| n.share).fold(f64::MIN_POSITIVE, f64::max);
    let per_network = context.config.depth * context.config.graphs;
    let cpu = (measured.cost.cpu + measured.cost.virtual_cpu).as_secs_f64();
    Signs {
        throttle_level: devices.iter().filter_map(|d| d.throttle_level_max).max().unwrap_or(0),
        busy: devices.iter().map(|d| d.busy_ratio).sum::<f64>() / count,
        depth_mean: devices.iter().map(|d| d.depth_mean).sum::<f64>() / count,
        depth: context.networks.iter().map(|n| n.share).sum::<f64>() / largest * f64::from(per_network),
        execute_share: if on_stick > 0.0 { execute / on_stick } else { 1.0 },
        cpu_share: cpu / (measured.elapsed.as_secs_f64().max(1e-9) * cores),
        link_share,
        adaptive: context.config.depth_mode == "auto",
        rated: context.config.rate_fps.is_some(),
        unpaced: no_tops(context).is_some(),
    }
}

fn host(cost: &Cost, machine: &Machine, completed: u64, simulated: bool) -> Host {
    let reason = |told: &Result<u64, String>| told.as_ref().err().cloned();
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
        throttled: machine.throttles.as_ref().ok().map(|&n| n > 0),
        throttled_reason: reason(&machine.throttles),
        usb_interrupts: machine.usb_interrupts.as_ref().ok().copied(),
        usb_interrupts_reason: reason(&machine.usb_interrupts),
        cache_misses_per_inference: machine.cache_misses.as_ref().ok().and_then(|&n| per(n as f64)),
        cache_misses_reason: reason(&machine.cache_misses),
    }
}

/// `None` where no stick was ever open.
fn cache(sticks: &[StickRun]) -> Option<Cache> {
    let mut cache = Cache {
        hits: 0,
        misses: 0,
        hit_rate: None,
        evictions: 0,
        loads: 0,
        graphs: 0,
        used_bytes: 0,
        memory_bytes: 0,
    };
    let mut known = false;
    for stick in sticks {
        let Some(sched) = &stick.stats.sched else { continue };
        known = true;
        cache.hits += stick.cache.0;
        cache.misses += stick.cache.1;
        cache.evictions += sched.cache.evictions;
        cache.loads += sched.cache.loads;
        cache.graphs += sched.cache.graphs;
        cache.used_bytes += sched.cache.used_bytes;
        cache.memory_bytes += sched.cache.memory_bytes;
    }
    let tried = cache.hits + cache.misses;
    cache.hit_rate = (tried > 0).then(|| cache.hits as f64 / tried as f64);
    known.then_some(cache)
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
    let [queue, prepare, upload, execute, download, finish] =
        std::array::from_fn(|n| Percentiles::micros(&stages[n]));
    Stages { queue, prepare, upload, execute, download, finish }
}

impl Percentiles {
    /// In milliseconds.
    fn millis(latency: &Latency) -> Self {
        Percentiles::of(latency, 1e3)
    }

    /// In microseconds.
    fn micros(latency: &Latency) -> Self {
        Percentiles::of(latency, 1e6)
    }

    fn of(latency: &Latency, unit: f64) -> Self {
        // A histogram's bucket may reach past the largest value; no percentile is larger than the largest.
        let max = latency.max();
        let q = |q: f64| latency.quantile(q).min(max);
        let figures = [latency.mean(), q(0.5), q(0.9), q(0.95), q(0.99), max];
        let [mean, p50, p90, p95, p99, max] = figures.map(|d| round(d.as_secs_f64() * unit));
        Percentiles { mean, p50, p90, p95, p99, max }
    }
}

/// Three decimals are more than any of these figures is worth.
fn round(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}

/// TOPS of small networks need more.
fn round6(x: f64) -> f64 {
    (x * 1e6).round() / 1e6
}
