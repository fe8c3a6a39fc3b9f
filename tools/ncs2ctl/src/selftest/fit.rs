//! A profile of the virtual stick from a report: what was seen replaces what was assumed, each value with where it is from.

use std::fmt::Write as _;
use std::time::Duration;

use ncs2_device::{Profile, calibrate};

use super::carried::{self, Carried};
use super::report::{HeatPoint, Report};

/// Round trips that one after the other make an inference in vendor order, PROTOCOL 5.3.
const ROUND_TRIPS: f64 = 6.0;
/// Shortest heat run that says something about a time constant.
const HEAT_SECONDS: f64 = 120.0;

/// The profile as a file.
pub fn profile(report: &Report) -> Result<String, String> {
    let base = Profile::load("ncs2").map_err(|e| e.to_string())?;
    let from = if report.simulated { "a VIRTUAL stick: proves nothing" } else { "a real stick" };
    let mut text = format!(
        "# Fitted by `ncs2ctl sim calibrate --from` to a selftest report ({}, tool {}) of {from}.\nbase = \"ncs2\"\n",
        report.mode, report.tool
    );
    link(report, &base, &mut text);
    timing(report, &base, &mut text);
    heat(report, &base, &mut text);
    firmware(report, &mut text);
    // What is written must be what the virtual stick reads.
    Profile::parse("fitted", &text).map_err(|e| format!("the fitted profile is not one: {e}"))?;
    Ok(text)
}

fn line(text: &mut String, key: &str, value: impl std::fmt::Display, why: &str) {
    let _ = writeln!(text, "{:32}# {why}", format!("{key} = {value}"));
}

fn link(report: &Report, base: &Profile, text: &mut String) {
    text.push_str("\n[link]\n");
    let stick = &report.stick;
    if stick.max_packet_bytes > 0 {
        line(text, "max_packet_bytes", stick.max_packet_bytes, "of the transport");
    }
    if stick.link_mbps > 0 {
        line(text, "speed_mbps", stick.link_mbps, "as the port says");
    }
    // The largest upload, where it took long enough to be a rate.
    let largest = report.graphs.iter().max_by_key(|g| g.bytes[0]).filter(|g| g.upload_ms > 1.0);
    if let Some(graph) = largest {
        let rate = (graph.bytes[0] as f64 / graph.upload_ms * 1e3).min(base.link.bytes_per_s * 4.0);
        line(text, "bytes_per_s", format!("{rate:.0}"), "upload of the largest graph");
    }
    if stick.ping_us > 0.0 {
        line(text, "transfer_us", format!("{:.1}", stick.ping_us / 2.0), "half of the fastest ping");
    }
}

/// Measured stage times over those of the profile: `measured = trigger + factor · stages`, least squares.
fn timing(report: &Report, base: &Profile, text: &mut String) {
    let known: [fn() -> Carried; 4] =
        [carried::tiny, carried::mlp, carried::squeezenet, carried::full_packets];
    let mut points: Vec<(f64, f64)> = Vec::new();
    for carried in known.map(|make| make()) {
        let Some(run) = report.graphs.iter().find(|g| g.name == carried.name && g.good) else { continue };
        let (_, stages): (Duration, Duration) = calibrate::service(base, &carried.graph, &carried.blob);
        let [_, input, output] = run.bytes;
        let link =
            ROUND_TRIPS * report.stick.ping_us / 1e3 + (input + output) as f64 / base.link.bytes_per_s * 1e3;
        points.push((stages.as_secs_f64() * 1e3, (run.infer_ms - link).max(0.0)));
    }
    let Some((trigger_ms, factor)) = fit_line(&points) else { return };
    text.push_str("\n[timing]\n");
    let why = format!(
        "{} graphs, least squares; all stage costs are {factor:.3} of the profile ncs2",
        points.len()
    );
    let speed = &base.timing;
    line(text, "trigger_us", format!("{:.1}", trigger_ms * 1e3), &why);
    line(text, "stage_us", format!("{:.2}", speed.stage_us * factor), "that factor");
    line(text, "nce_stage_us", format!("{:.2}", speed.nce_stage_us * factor), "that factor");
    line(text, "nce_macs_per_s", format!("{:.4e}", speed.nce_macs_per_s / factor), "that factor");
    line(text, "shave_elements_per_s", format!("{:.4e}", speed.shave_elements_per_s / factor), "that factor");
    line(text, "dram_bytes_per_s", format!("{:.4e}", speed.dram_bytes_per_s / factor), "that factor");
}

/// Intercept and slope, neither negative; `None` where the points say nothing.
fn fit_line(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let n = points.len() as f64;
    if points.len() < 2 {
        return None;
    }
    // Relative errors count: the small graphs say what an inference costs at least.
    let weight = |y: f64| 1.0 / (y * y).max(1e-6);
    let sum = |f: &dyn Fn(f64, f64) -> f64| points.iter().map(|&(x, y)| weight(y) * f(x, y)).sum::<f64>();
    let (w, wx, wy) = (sum(&|_, _| 1.0), sum(&|x, _| x), sum(&|_, y| y));
    let (wxx, wxy) = (sum(&|x, _| x * x), sum(&|x, y| x * y));
    let spread = w * wxx - wx * wx;
    let slope = if spread.abs() > 1e-12 * n { (w * wxy - wx * wy) / spread } else { return None };
    let slope = slope.max(0.01);
    Some((((wy - slope * wx) / w).max(0.0), slope))
}

fn heat(report: &Report, base: &Profile, text: &mut String) {
    let points = &report.heat.iter().filter(|p| !p.resting).cloned().collect::<Vec<_>>();
    let Some(last) = points.last().filter(|p| p.seconds >= HEAT_SECONDS) else { return };
    text.push_str("\n[heat]\n");
    let (end, tau) = fit_heat(points);
    line(text, "tau_s", format!("{tau:.0}"), &format!("{:.0} s of load", last.seconds));
    let per_watt = (end - base.heat.ambient_c) / base.heat.full_w;
    let why = "to that run's end, at the ambient and the power of the profile ncs2";
    line(text, "kelvin_per_w", format!("{:.2}", per_watt.clamp(0.1, 500.0)), why);
    let median = |level: f32| {
        let mut times: Vec<f64> = points.iter().filter(|p| p.level == level).map(|p| p.service_ms).collect();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied()
    };
    let guard = |level: f32| points.iter().find(|p| p.level >= level).map(|p| f64::from(p.celsius));
    if let (Some(lower), Some(cool)) = (guard(1.0), median(0.0)) {
        line(text, "lower_guard_c", format!("{lower:.1}"), "first reading with level 1");
        if let Some(slow) = median(1.0) {
            line(
                text,
                "lower_speed",
                format!("{:.3}", (cool / slow).clamp(0.02, 1.0)),
                "service time, level 0 over 1",
            );
        }
        let upper = guard(2.0).unwrap_or(base.heat.upper_guard_c).max(lower);
        line(text, "upper_guard_c", format!("{upper:.1}"), "first reading with level 2, if there was one");
    }
}

/// Final temperature and time constant of `T = end − (end − start)·e^(−t/τ)`, by trying τ.
fn fit_heat(points: &[HeatPoint]) -> (f64, f64) {
    let start = points.first().map_or(25.0, |p| f64::from(p.celsius));
    let judge = |tau: f64| {
        // For a given τ the end follows by least squares.
        let (mut top, mut bottom) = (0.0, 0.0);
        for p in points {
            let rise = 1.0 - (-p.seconds / tau).exp();
            top += rise * (f64::from(p.celsius) - start);
            bottom += rise * rise;
        }
        let end = start + top / f64::max(bottom, 1e-9);
        let error: f64 = points
            .iter()
            .map(|p| (end - (end - start) * (-p.seconds / tau).exp() - f64::from(p.celsius)).powi(2))
            .sum();
        (error, end, tau)
    };
    let tries = (0..200).map(|n| judge(20.0 * 1.025_f64.powi(n)));
    let best = tries.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, start, 450.0));
    (best.1, best.2)
}

fn firmware(report: &Report, text: &mut String) {
    text.push_str("\n[firmware]\n");
    let version = report.stick.fw_version;
    if version[1] != 0 {
        line(text, "fw_version", format!("{version:?}"), "GET_CAPABILITIES");
    }
    let word = ["input_release", "status", "zero_length", "refused_input"];
    let legal = ["start", "end", "before", "after", "never", "full", "always", "release", "keep"];
    for name in [
        "max_graphs",
        "max_fifos",
        "max_executors",
        "tensor_version",
        "input_release",
        "status",
        "output_piece_bytes",
        "creates_streams",
        "zero_length",
        "ack_delay_us",
        "answers_reset",
        "refused_input",
        "watchdog_s",
    ] {
        let Some(finding) = report.unknowns.get(name).filter(|f| f.observed) else { continue };
        let value = if word.contains(&name) {
            if !legal.contains(&finding.answer.as_str()) {
                continue;
            }
            format!("\"{}\"", finding.answer)
        } else if matches!(name, "ack_delay_us" | "watchdog_s") {
            match finding.answer.parse::<f64>() {
                // Below this it is the noise of two small differences.
                Ok(us) if name == "ack_delay_us" && us < 100.0 => "0.0".into(),
                Ok(number) => format!("{number:.1}"),
                Err(_) => continue,
            }
        } else {
            finding.answer.clone()
        };
        line(text, name, value, "observed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_again() {
        let points: Vec<_> = [1.0, 2.0, 10.0].map(|x| (x, 0.7 + 1.3 * x)).to_vec();
        let (trigger, factor) = fit_line(&points).expect("two points and more");
        assert!((trigger - 0.7).abs() < 1e-6 && (factor - 1.3).abs() < 1e-6, "{trigger} {factor}");
        assert_eq!(fit_line(&points[..1]), None);
        assert_eq!(fit_line(&[(1.0, 2.0), (1.0, 3.0)]), None);
    }

    #[test]
    fn a_warming_is_found_again() {
        let at = |seconds: f64| HeatPoint {
            seconds,
            celsius: (70.0 - 40.0 * (-seconds / 300.0).exp()) as f32,
            level: 0.0,
            service_ms: 10.0,
            resting: false,
        };
        let points: Vec<_> = (0..900).map(|s| at(f64::from(s))).collect();
        let (end, tau) = fit_heat(&points);
        assert!((end - 70.0).abs() < 1.5 && (tau - 300.0).abs() < 15.0, "{end} {tau}");
    }
}
