//! What the live view knows: a row for each stick, totals, histories, and how they are sorted. No terminal here.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};

use clap::ValueEnum;
use serde::Serialize;

use crate::stats::source::name_of;
use crate::stats::{Snapshot, Stick, Window, window::StickWindow};

/// Looks that a plot can show.
const HISTORY: usize = 240;
/// Peak of a Myriad X, TOPS.
const PEAK_TOPS: f64 = 1.0;

/// What decides the order of the rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sort {
    /// As the fleet has them
    Id,
    /// Fastest first
    Fps,
    /// Warmest first
    Temperature,
    /// Most errors and resets first
    Errors,
}

impl Sort {
    /// The next, and after the last the first.
    pub fn next(self) -> Sort {
        match self {
            Sort::Id => Sort::Fps,
            Sort::Fps => Sort::Temperature,
            Sort::Temperature => Sort::Errors,
            Sort::Errors => Sort::Id,
        }
    }

    /// As the flag has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Sort::Id => "id",
            Sort::Fps => "fps",
            Sort::Temperature => "temperature",
            Sort::Errors => "errors",
        }
    }
}

/// One stick.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[allow(missing_docs, reason = "the names are those of the document")]
pub struct Row {
    pub id: String,
    pub simulated: bool,
    /// The process that has it open, where it is not this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<u32>,
    pub state: String,
    pub failure: Option<String>,
    pub temperature_c: Option<f64>,
    pub throttle_level: Option<u8>,
    pub fps: Option<f64>,
    pub busy_ratio: Option<f64>,
    pub depth_mean: Option<f64>,
    pub in_flight: u32,
    pub completed: u64,
    pub failed: u64,
    pub resets: u32,
    pub memory_bytes: Option<u64>,
    pub used_memory_bytes: Option<u64>,
    pub pool_bytes: u64,
    pub pool_hit_rate: Option<f64>,
    pub cache_hit_rate: Option<f64>,
    pub resting: bool,
}

/// All sticks together.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the names are those of the document")]
pub struct Totals {
    pub fps: Option<f64>,
    pub tops: Option<f64>,
    pub tops_reason: Option<String>,
    pub tops_peak: f64,
    pub percent_of_peak: Option<f64>,
    pub completed: u64,
    pub failed: u64,
    pub retried: u64,
    /// Of those completed, by what stands in for sticks.
    pub fallback: u64,
    pub queued: u64,
}

/// Whose sticks are shown.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[allow(missing_docs, reason = "the names are those of the document")]
pub struct Fleet {
    pub process: u32,
    pub program: String,
    pub policy: String,
    pub models: Vec<String>,
    pub elapsed_s: f64,
    pub latency_p50_ms: f64,
    pub latency_p99_ms: f64,
}

/// Values of one stick at the last looks, oldest first; `None` where nothing was known.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct History {
    /// °C.
    pub temperature_c: VecDeque<Option<f64>>,
    /// Inferences a second.
    pub fps: VecDeque<Option<f64>>,
}

impl History {
    fn push(&mut self, row: &Row) {
        for (values, value) in [(&mut self.temperature_c, row.temperature_c), (&mut self.fps, row.fps)] {
            values.push_back(value);
            while values.len() > HISTORY {
                values.pop_front();
            }
        }
    }
}

/// Everything that is shown.
pub struct View {
    /// Sorted.
    pub rows: Vec<Row>,
    /// All sticks together.
    pub totals: Totals,
    /// One for each process.
    pub fleets: Vec<Fleet>,
    /// Any stick is virtual.
    pub simulated: bool,
    /// By name of the stick.
    pub histories: BTreeMap<String, History>,
    /// Order of the rows.
    pub sort: Sort,
    /// The other way round.
    pub reverse: bool,
    /// Looks are not taken over.
    pub paused: bool,
    /// First row that is shown.
    pub offset: usize,
    /// The fleet is ours.
    pub own: bool,
    /// To be shown once, such as why a key did nothing.
    pub remark: Option<String>,
    /// Why this fleet's TOPS would say nothing.
    pub no_tops: Option<&'static str>,
    before: Vec<Snapshot>,
}

impl View {
    /// Of our own fleet or of others.
    pub fn new(own: bool, sort: Sort) -> View {
        View {
            rows: Vec::new(),
            totals: Totals::default(),
            fleets: Vec::new(),
            simulated: false,
            histories: BTreeMap::new(),
            sort,
            reverse: false,
            paused: false,
            offset: 0,
            own,
            remark: None,
            no_tops: None,
            before: Vec::new(),
        }
    }

    /// Takes over what the fleets say now.
    pub fn handle_look(&mut self, snapshots: Vec<Snapshot>) {
        let windows: Vec<Window> = snapshots
            .iter()
            .map(|now| Window::between(self.before.iter().find(|b| b.process == now.process), now))
            .collect();
        self.simulated = snapshots.iter().any(|s| s.simulated);
        self.totals = totals(&snapshots, &windows, self.own, self.no_tops);
        self.fleets = snapshots.iter().map(fleet).collect();
        self.rows = snapshots
            .iter()
            .zip(&windows)
            .enumerate()
            .flat_map(|(at, (now, window))| {
                let name = |stick: &Stick| name_of(&snapshots, at, &stick.id);
                let process = Some(now.process.pid).filter(|_| !self.own);
                let sticks = now.sticks.iter().zip(&window.sticks);
                sticks.map(|(s, rates)| row(name(s), process, s, rates)).collect::<Vec<_>>()
            })
            .collect();
        for row in &self.rows {
            self.histories.entry(row.id.clone()).or_default().push(row);
        }
        let rows = &self.rows;
        self.histories.retain(|id, _| rows.iter().any(|row| row.id == *id));
        self.before = snapshots;
        self.sort_rows();
    }

    /// Another order.
    pub fn sort_by(&mut self, sort: Sort, reverse: bool) {
        (self.sort, self.reverse) = (sort, reverse);
        self.sort_rows();
    }

    fn sort_rows(&mut self) {
        let order = self.order();
        let high = |a: Option<f64>, b: Option<f64>| {
            b.unwrap_or(f64::NEG_INFINITY).total_cmp(&a.unwrap_or(f64::NEG_INFINITY))
        };
        let sort = self.sort;
        self.rows.sort_by(|a, b| {
            let by_id = || order.get(&a.id).cmp(&order.get(&b.id));
            match sort {
                Sort::Id => Ordering::Equal,
                Sort::Fps => high(a.fps, b.fps),
                Sort::Temperature => high(a.temperature_c, b.temperature_c),
                Sort::Errors => (b.failed, b.resets).cmp(&(a.failed, a.resets)),
            }
            .then_with(by_id)
        });
        if self.reverse {
            self.rows.reverse();
        }
    }

    /// Place of every stick in its fleet.
    fn order(&self) -> BTreeMap<String, (usize, usize)> {
        let fleets = self.before.iter().enumerate();
        fleets
            .flat_map(|(at, now)| {
                let sticks = now.sticks.iter().enumerate();
                sticks.map(move |(n, s)| (name_of(&self.before, at, &s.id), (at, n)))
            })
            .collect()
    }
}

fn row(id: String, process: Option<u32>, stick: &Stick, rates: &StickWindow) -> Row {
    let pool = &stick.pool;
    let rate = |hits: u64, misses: u64| {
        let all = hits + misses;
        (all > 0).then(|| rounded(hits as f64 / all as f64, 1e4))
    };
    let cache = stick.schedule.as_ref().map(|s| s.cache);
    Row {
        id,
        simulated: stick.simulated,
        process,
        state: stick.state.clone(),
        failure: stick.failure.clone(),
        temperature_c: stick.temperature_c.map(|t| rounded(t, 10.0)),
        throttle_level: stick.throttle_level,
        fps: rates.fps.map(|fps| rounded(fps, 10.0)),
        busy_ratio: rates.busy.map(|share| rounded(share, 1e3)),
        depth_mean: rates.depth.map(|depth| rounded(depth, 100.0)),
        in_flight: stick.in_flight,
        completed: stick.completed,
        failed: stick.failed,
        resets: stick.resets,
        memory_bytes: stick.memory_bytes,
        used_memory_bytes: stick.used_memory_bytes,
        pool_bytes: pool.in_use_bytes + pool.idle_bytes,
        pool_hit_rate: rate(pool.hits, pool.misses),
        cache_hit_rate: cache.and_then(|cache| rate(cache.hits, cache.misses)),
        resting: stick.schedule.as_ref().is_some_and(|s| s.resting),
    }
}

fn fleet(now: &Snapshot) -> Fleet {
    Fleet {
        process: now.process.pid,
        program: now.process.name.clone(),
        policy: now.policy.clone(),
        models: now.graphs.iter().map(|g| g.name.clone()).collect(),
        elapsed_s: rounded(now.elapsed_s, 10.0),
        latency_p50_ms: rounded(now.latency_ms.p50, 1e3),
        latency_p99_ms: rounded(now.latency_ms.p99, 1e3),
    }
}

fn totals(snapshots: &[Snapshot], windows: &[Window], own: bool, no_tops: Option<&'static str>) -> Totals {
    let sum = |of: fn(&Snapshot) -> u64| snapshots.iter().map(of).sum();
    let all = |of: fn(&Window) -> Option<f64>| {
        windows.iter().map(of).collect::<Option<Vec<f64>>>().map(|values| values.iter().sum::<f64>())
    };
    let sticks: usize = snapshots.iter().map(|s| s.sticks.len()).sum();
    let tops_peak = PEAK_TOPS * sticks as f64;
    let foreign =
        || snapshots.iter().flat_map(|s| &s.sticks).filter(|s| !own && s.simulated).find_map(unpaced);
    let reason = no_tops.or_else(foreign).or_else(|| windows.iter().find_map(|w| w.tops_reason));
    let tops = all(|w| w.tops).filter(|_| reason.is_none());
    Totals {
        fps: all(|w| w.fps).map(|fps| rounded(fps, 10.0)),
        tops: tops.map(|t| rounded(t, 1e4)),
        tops_reason: reason.map(str::to_owned),
        tops_peak,
        percent_of_peak: tops.map(|t| rounded(100.0 * t / tops_peak, 100.0)),
        completed: sum(|s| s.completed),
        failed: sum(|s| s.failed),
        retried: sum(|s| s.retried),
        fallback: sum(|s| s.fallback),
        queued: sum(|s| s.queued),
    }
}

/// Why the speed of a virtual stick of another process is none of the model.
fn unpaced(stick: &Stick) -> Option<&'static str> {
    match stick.paced {
        Some(true) => None,
        Some(false) => Some("the virtual sticks did not keep the pace of the model, or their timing is zero"),
        None => {
            Some("the process of the virtual sticks does not tell whether they keep the pace of the model")
        }
    }
}

fn rounded(x: f64, parts: f64) -> f64 {
    (x * parts).round() / parts
}
