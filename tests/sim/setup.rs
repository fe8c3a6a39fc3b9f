//! What is simulated: models, sticks, faults, random numbers.

use ncs2::blob::BlobHash;
use ncs2::cache::{CacheKey, GraphNeeds, LoadKey};
use ncs2::sched::{GraphSpec, SchedConfig, StickNo, VariantSpec};

use super::heat::ThrottleLaw;

/// Small, fast, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// Exponential with this mean.
    pub fn exp(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }
}

/// How requests for one model come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// Always so many outstanding.
    Saturate(u32),
    /// So many per second, at random.
    Poisson(f64),
    /// So many at once, each so many seconds.
    Bursts(u32, f64),
    /// None.
    Silent,
}

#[derive(Clone, Debug)]
pub struct SimModel {
    pub service_s: f64,
    pub noise: f64,
    pub arrivals: Arrivals,
    pub priority: u8,
    pub callers: u32,
    pub deadline_s: Option<f64>,
    pub spec: GraphSpec,
    /// Seconds of one inference per batch size, if other than a multiple of `service_s`.
    pub batch_s: Vec<f64>,
    pub always_refused: bool,
    /// The only stick that its jobs may run on.
    pub stick: Option<StickNo>,
}

pub fn model(n: u8, service_s: f64, arrivals: Arrivals) -> SimModel {
    let key =
        CacheKey { hash: BlobHash([n; 32]), options: LoadKey { executors: 1, elements: 4, instances: 1 } };
    let needs = GraphNeeds {
        version: (6, 0),
        file_bytes: 5 << 20,
        bss_bytes: 1 << 20,
        input_bytes: 150_528,
        output_bytes: 2048,
        elements: 4,
        instances: 1,
        executors: 1,
        shaves: 4,
        cmx_slices: 4,
    };
    SimModel {
        service_s,
        noise: 0.02,
        arrivals,
        priority: ncs2::sched::NORMAL_PRIORITY,
        callers: 1,
        deadline_s: None,
        spec: GraphSpec {
            variants: vec![VariantSpec { size: 1, hint_us: Some(0.7e6 * service_s) }],
            ..GraphSpec::new(key, needs)
        },
        batch_s: Vec::new(),
        always_refused: false,
        stick: None,
    }
}

#[derive(Clone, Debug)]
pub struct SimStickSpec {
    pub ambient_c: f64,
    /// Multiplies service times.
    pub slow: f64,
    pub guards_known: bool,
    pub sensor: bool,
    pub weight: f64,
}

impl Default for SimStickSpec {
    fn default() -> Self {
        SimStickSpec { ambient_c: 25.0, slow: 1.0, guards_known: true, sensor: true, weight: 1.0 }
    }
}

/// Means in seconds per stick; infinite for never.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub unplug_s: f64,
    pub hang_s: f64,
    pub short_output_s: f64,
    pub silence_s: f64,
    /// Share of runs that are refused.
    pub refuse: f64,
}

pub const NO_FAULTS: Faults = Faults {
    unplug_s: f64::INFINITY,
    hang_s: f64::INFINITY,
    short_output_s: f64::INFINITY,
    silence_s: f64::INFINITY,
    refuse: 0.0,
};

#[derive(Clone, Debug)]
pub struct SimConfig {
    pub seed: u64,
    pub sched: SchedConfig,
    pub sticks: Vec<SimStickSpec>,
    pub models: Vec<SimModel>,
    pub law: ThrottleLaw,
    /// Sticks never warm up: cheaper where heat is not the point.
    pub no_heat: bool,
    pub faults: Faults,
    /// Jobs with these numbers kill any stick that starts them.
    pub poison: Vec<u64>,
    pub seconds: f64,
    /// Stop the arrivals after so many jobs.
    pub jobs: u64,
}

impl SimConfig {
    pub fn new(seed: u64, sticks: usize, models: Vec<SimModel>) -> Self {
        SimConfig {
            seed,
            sched: SchedConfig { queue_limit: 100_000, ..SchedConfig::default() },
            sticks: vec![SimStickSpec::default(); sticks],
            models,
            law: ThrottleLaw::Cliff,
            no_heat: true,
            faults: NO_FAULTS,
            poison: Vec::new(),
            seconds: f64::INFINITY,
            jobs: u64::MAX,
        }
    }
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    Answer,
    GaveUp(String),
    Rejected,
    Expired,
    Cancelled,
}
