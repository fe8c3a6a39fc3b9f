//! The counters of a fleet as JSON, `ncs2.stats/1`: what the stats socket tells. Names are stable and carry their
//! units; fields may be added.
//!
//! All counters run from the opening of the fleet: take two documents and subtract for a window.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{FleetStats, StickState, StickStats};
use crate::sched::{Forecast, StickSchedStats};
use crate::stats::{Latency, StageTimes};

/// Value of the document's first field.
pub const SCHEMA: &str = "ncs2.stats/1";

/// A graph that a fleet holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GraphSummary {
    /// Name of the blob.
    pub name: String,
    /// Its multiply-accumulates for one inference.
    pub macs: u64,
    /// Most inferences in flight per instance.
    pub depth: u32,
    /// Instances per stick.
    pub instances: u32,
}

impl StickState {
    /// As documents and reports have it.
    pub fn as_str(self) -> &'static str {
        match self {
            StickState::Starting => "starting",
            StickState::Ready => "ready",
            StickState::Lost => "lost",
            StickState::Closed => "closed",
        }
    }
}

/// The document. `policy` is how work is shared out.
pub fn document(stats: &FleetStats, graphs: &[GraphSummary], policy: &str) -> Value {
    let stages: Map<String, Value> = StageTimes::NAMES
        .iter()
        .zip(&stats.stages)
        .map(|(name, times)| {
            let us = |t: Duration| t.as_secs_f64() * 1e6;
            let times =
                json!({ "mean": us(times.mean()), "p50": us(times.quantile(0.5)), "p99": us(times.quantile(0.99)) });
            ((*name).to_owned(), times)
        })
        .collect();
    let graphs: Vec<Value> = graphs
        .iter()
        .map(|g| json!({ "name": g.name, "macs": g.macs, "depth": g.depth, "instances": g.instances }))
        .collect();
    json!({
        "schema": SCHEMA,
        "simulated": stats.sticks.iter().any(|s| s.simulated.is_some()),
        "process": { "pid": std::process::id(), "name": process_name() },
        "policy": policy,
        "elapsed_s": stats.elapsed.as_secs_f64(),
        "submitted": stats.submitted,
        "completed": stats.completed,
        "failed": stats.failed,
        "retried": stats.retried,
        "retries_refused": stats.retries_refused,
        "fallback": stats.fallback,
        "queued": stats.queued,
        "latency_ms": latency(&stats.latency),
        "stage_us": stages,
        "graphs": graphs,
        "sticks": stats.sticks.iter().map(stick).collect::<Vec<Value>>(),
    })
}

fn stick(stick: &StickStats) -> Value {
    let pool = &stick.host_pool;
    json!({
        "id": stick.id.as_str(),
        "simulated": stick.simulated.is_some(),
        "profile": stick.simulated,
        "paced": stick.paced,
        "state": stick.state.as_str(),
        "failure": stick.failure,
        "usb_speed_mbps": Some(stick.speed_mbps).filter(|&s| s > 0),
        "memory_bytes": stick.capabilities.as_ref().map(|c| c.max_memory_bytes),
        "used_memory_bytes": stick.used_memory_bytes,
        "temperature_c": stick.temperature_c,
        "throttle_level": stick.throttle_level,
        "completed": stick.completed,
        "failed": stick.failed,
        "in_flight": stick.in_flight,
        "busy_s": stick.busy.as_secs_f64(),
        "depth_s": stick.depth_time.as_secs_f64(),
        "resets": stick.resets,
        "latency_ms": latency(&stick.latency),
        "schedule": stick.sched.as_ref().map(schedule),
        "pool": {
            "ceiling_bytes": pool.ceiling_bytes,
            "in_use_bytes": pool.in_use_bytes,
            "idle_bytes": pool.idle_bytes,
            "high_water_bytes": pool.high_water_bytes,
            "leases": pool.leases,
            "hits": pool.hits,
            "misses": pool.misses,
            "refused": pool.refused,
        },
    })
}

/// What the scheduler knows of a stick.
fn schedule(stick: &StickSchedStats) -> Value {
    let cache = &stick.cache;
    json!({
        "depth": stick.graphs.iter().filter(|g| g.ready).map(|g| g.depth).max(),
        "in_flight": stick.in_flight,
        "backlog_ms": stick.backlog.as_secs_f64() * 1e3,
        "resting": stick.resting,
        "rests": stick.rests,
        "level": stick.level,
        "level_source": if stick.level_reported { "sensor" } else { "service time" },
        "latched": stick.latched,
        "seconds_to_throttle": match stick.forecast {
            Forecast::Seconds(s) => Some(s),
            Forecast::Unsure | Forecast::Never => None,
        },
        "forecast": match stick.forecast {
            Forecast::Seconds(_) => "throttles",
            Forecast::Never => "never",
            Forecast::Unsure => "unsure",
        },
        "breaker_opened": stick.breaker_opened,
        "deaths": stick.deaths,
        "cache": {
            "graphs": cache.graphs,
            "used_bytes": cache.used_bytes,
            "memory_bytes": cache.memory_bytes,
            "hits": cache.hits,
            "misses": cache.misses,
            "hit_rate": cache.hit_rate(),
            "evictions": cache.evictions,
            "loads": cache.loads,
            "uploaded_bytes": cache.uploaded_bytes,
            "upload_s": cache.upload_time.as_secs_f64(),
        },
    })
}

fn latency(times: &Latency) -> Value {
    let ms = |t: Duration| t.as_secs_f64() * 1e3;
    json!({
        "mean": ms(times.mean()),
        "p50": ms(times.quantile(0.5)),
        "p90": ms(times.quantile(0.9)),
        "p95": ms(times.quantile(0.95)),
        "p99": ms(times.quantile(0.99)),
        "max": ms(times.max()),
    })
}

/// Name of this process's program, without control characters.
fn process_name() -> String {
    let name = std::env::current_exe().ok().and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
    name.unwrap_or_default().chars().filter(|c| !c.is_control()).collect()
}
