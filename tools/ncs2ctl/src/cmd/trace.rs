//! `ncs2ctl trace`

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};
use ncs2::ErrorKind;
use ncs2::stats::StageTimes;
use serde::Serialize;
use serde_json::Value;

use crate::failure::{Failure, Outcome, Result, one_line};
use crate::output::{Output, Style, grouped, time};
use crate::timeline::read::{self, Filter, Summary};

/// `trace`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl --sim 2 bench net.blob --trace-out run.json
  ncs2ctl trace run.json
  ncs2ctl trace run.json --stage execute --from 500 --to 1500
  ncs2ctl trace run.json --json

The file opens in https://ui.perfetto.dev and in chrome://tracing, too.")]
pub struct TraceArgs {
    /// What `bench --trace-out` wrote, or another Chrome trace
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Only this stage: queue, prepare, upload, execute, download or finish
    #[arg(long, value_name = "S")]
    stage: Option<String>,
    /// Only what begins at this moment of the run or later, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0.0, value_parser = moment, allow_negative_numbers = true)]
    from: f64,
    /// Only what begins before this moment of the run, milliseconds
    #[arg(long, value_name = "MS", value_parser = moment, allow_negative_numbers = true)]
    to: Option<f64>,
    /// How many of the slowest to show
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=1000))]
    slowest: u16,
}

fn moment(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ms) if ms >= 0.0 && ms.is_finite() => Ok(ms),
        _ => Err("expected milliseconds, 0 or more".into()),
    }
}

#[derive(Serialize)]
struct Body {
    file: String,
    simulated: Option<bool>,
    profile: Value,
    from_ms: f64,
    to_ms: Option<f64>,
    seconds: f64,
    requests: u64,
    failed: u64,
    stages: Vec<StageBody>,
    slowest: Vec<SlowBody>,
    devices: Vec<DeviceBody>,
    marks: Vec<MarkBody>,
}

#[derive(Serialize)]
struct StageBody {
    stage: String,
    count: u64,
    mean_us: f64,
    p99_us: f64,
    max_us: f64,
    total_ms: f64,
    share: f64,
}

#[derive(Serialize)]
struct SlowBody {
    stage: String,
    device: String,
    request: Option<u64>,
    start_ms: f64,
    duration_us: f64,
}

#[derive(Serialize)]
struct DeviceBody {
    id: String,
    temperature_c: Option<RangeBody>,
}

#[derive(Serialize)]
struct RangeBody {
    min: f64,
    max: f64,
}

#[derive(Serialize)]
struct MarkBody {
    at_ms: f64,
    name: String,
}

/// Prints what the stages took; exit 1 when the file has none in the range asked for.
pub fn trace(output: &Output, args: &TraceArgs) -> Result<Outcome> {
    if args.to.is_some_and(|to| to <= args.from) {
        return Err(Failure::usage("--to: expected a moment after --from, found none", "swap them"));
    }
    let path = &args.file;
    let file = File::open(path).map_err(|e| Failure::file(path, "read", &e))?;
    let filter = Filter {
        stage: args.stage.clone(),
        from_ms: args.from,
        to_ms: args.to.unwrap_or(f64::INFINITY),
        slowest: usize::from(args.slowest),
    };
    let summary = read::read(BufReader::with_capacity(1 << 16, file), &filter).map_err(|e| {
        let found = one_line(&e.to_string());
        let message = format!("{}: expected a Chrome trace, found: {found}", path.display());
        if e.is_io() {
            return Failure::new(ErrorKind::InvalidInput, message, "check the disk and the path");
        }
        Failure::new(ErrorKind::InvalidInput, message, "write one with `ncs2ctl bench --trace-out FILE.json`")
    })?;
    let body = body(args, summary);
    if output.is_json() {
        output.document(&body)?;
    } else {
        output.prose(&text(output, &body))?;
    }
    if body.stages.is_empty() {
        let stage = args.stage.as_deref().map_or(String::new(), |s| format!(" named {}", one_line(s)));
        output.remark(&format!("no stage{stage} begins in this range"));
        return Ok(Outcome::Negative);
    }
    Ok(Outcome::Ok)
}

fn body(args: &TraceArgs, summary: Summary) -> Body {
    let name = |pid: u64| {
        summary.processes.get(&pid).map_or_else(
            || pid.to_string(),
            |name| {
                // The mark of virtual sticks is for those who look at the picture; here it has its own field.
                one_line(name.strip_suffix(" (simulated)").unwrap_or(name))
            },
        )
    };
    let all: f64 = summary.stages.values().map(|s| s.total_us).sum();
    let mut stages: Vec<StageBody> = summary
        .stages
        .iter()
        .map(|(stage, sums)| StageBody {
            stage: one_line(stage),
            count: sums.times.count(),
            mean_us: round(sums.total_us / sums.times.count().max(1) as f64),
            p99_us: round((sums.times.quantile(0.99).as_secs_f64() * 1e6).min(sums.max_us)),
            max_us: round(sums.max_us),
            total_ms: round(sums.total_us / 1e3),
            share: if all > 0.0 { round(sums.total_us / all) } else { 0.0 },
        })
        .collect();
    // In the order of an inference; what another program named comes after.
    stages.sort_by_key(|s| StageTimes::NAMES.iter().position(|n| *n == s.stage).unwrap_or(StageTimes::COUNT));
    Body {
        file: args.file.display().to_string(),
        simulated: summary.about["simulated"].as_bool(),
        profile: summary.about["profile"].clone(),
        from_ms: args.from,
        to_ms: args.to,
        seconds: round(summary.end_us / 1e6),
        requests: summary.requests,
        failed: summary.failed,
        stages,
        slowest: summary
            .slowest
            .iter()
            .map(|slow| SlowBody {
                stage: one_line(&slow.name),
                device: name(slow.pid),
                request: slow.request,
                start_ms: round(slow.start_us / 1e3),
                duration_us: round(slow.us),
            })
            .collect(),
        devices: summary
            .processes
            .keys()
            .filter(|&&pid| pid != 0)
            .map(|&pid| DeviceBody {
                id: name(pid),
                temperature_c: summary
                    .temperature
                    .get(&pid)
                    .map(|r| RangeBody { min: round(r.min), max: round(r.max) }),
            })
            .collect(),
        marks: summary
            .marks
            .iter()
            .map(|(us, name)| MarkBody { at_ms: round(us / 1e3), name: one_line(name) })
            .collect(),
    }
}

fn text(output: &Output, body: &Body) -> String {
    let mut text = format!(
        "{}: {} inferences on {}, {:.1} s",
        one_line(&body.file),
        grouped(body.requests),
        match body.devices.len() {
            1 => "1 stick".to_owned(),
            n => format!("{n} sticks"),
        },
        body.seconds
    );
    if body.simulated == Some(true) {
        let profile = body.profile.as_str().map_or(String::new(), |p| format!(": profile {}", one_line(p)));
        text.push_str(&format!(", {}", output.paint(Style::Warn, format!("simulated{profile}"))));
    }
    if body.failed > 0 {
        let failed = format!("{} failed", grouped(body.failed));
        text.push_str(&format!(", {}", output.paint(Style::Bad, failed)));
    }
    text.push_str("\n\n");
    let us = |us: f64| time(output, Duration::try_from_secs_f64(us / 1e6).unwrap_or(Duration::MAX));
    let mut table = output.table(&["stage", "count", "mean", "p99", "max", "total", "share"], &["stage"]);
    for s in &body.stages {
        table.add_row([
            s.stage.clone(),
            grouped(s.count),
            us(s.mean_us),
            us(s.p99_us),
            us(s.max_us),
            us(s.total_ms * 1e3),
            format!("{:.1} %", 100.0 * s.share),
        ]);
    }
    text.push_str(&output.lines(&table));
    if !body.slowest.is_empty() {
        text.push('\n');
        let mut table =
            output.table(&["slowest", "stick", "inference", "begins at", "took"], &["slowest", "stick"]);
        for s in &body.slowest {
            table.add_row([
                s.stage.clone(),
                s.device.clone(),
                s.request.map_or_else(|| "-".to_owned(), |n| n.to_string()),
                format!("{:.1} ms", s.start_ms),
                us(s.duration_us),
            ]);
        }
        text.push_str(&output.lines(&table));
    }
    let degree = output.glyph("°C", "C");
    let heat: Vec<String> = body
        .devices
        .iter()
        .filter_map(|d| {
            let t = d.temperature_c.as_ref()?;
            Some(format!("{} {:.1} to {:.1} {degree}", d.id, t.min, t.max))
        })
        .collect();
    if !heat.is_empty() {
        text.push_str(&format!("\n  {}\n", crate::output::wrap(&heat.join(", "), output.width() - 2, "  ")));
    }
    text
}

fn round(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}
