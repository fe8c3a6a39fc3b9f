//! The report as people read it.

use super::energy::Span;
use super::report::{Device, Percentiles, Report};
use crate::open::Simulation;
use crate::output::{Output, Style, bytes, grouped, three_digits, time, wrap};
use std::time::Duration;

/// The whole report.
pub fn report(output: &Output, report: &Report, simulation: Option<&Simulation>) -> String {
    let sticks = match report.devices.len() {
        1 => "1 stick".to_owned(),
        n => format!("{n} sticks"),
    };
    let names: Vec<&str> = report.models.iter().map(|m| m.name.as_str()).collect();
    let mut text = format!("{} on {sticks}", output.paint(Style::Bold, names.join(", ")));
    if let Some(simulation) = simulation {
        text.push_str(&format!(", {}", output.paint(Style::Warn, simulation.describe())));
    }
    text.push_str("\n\n");
    let mut line = |name: &str, value: String| {
        let value = wrap(&value, output.width() - 14, &" ".repeat(14));
        text.push_str(&format!("  {name:<12}{value}\n"));
    };
    line(
        "model",
        format!(
            "{} multiply-accumulates ({} GOP), sha256 {}",
            grouped(report.model.macs),
            three_digits(report.model.ops_per_inference as f64 / 1e9),
            &report.model.sha256[..16.min(report.model.sha256.len())]
        ),
    );
    let config = &report.config;
    let mut settings = format!(
        "{} after {} warm-up, depth {}{}, {} graph{} a stick, batch {}, {}, {} order, input {}",
        seconds(report.seconds),
        // Ctrl-C ends a warm-up, too.
        seconds(config.warmup_s.min(report.warmup_seconds)),
        config.depth,
        if config.depth_mode == "auto" { " (found)" } else { "" },
        config.graphs,
        if config.graphs == 1 { "" } else { "s" },
        config.batch_variants.iter().map(u32::to_string).collect::<Vec<_>>().join(" or "),
        config.policy,
        config.ordering,
        crate::failure::one_line(&config.input),
    );
    if let Some(rate) = config.rate_fps {
        settings.push_str(&format!(", sent at {rate} fps"));
    }
    if let Some(ms) = config.target_latency_ms {
        settings.push_str(&format!(", target latency {ms} ms"));
    }
    if config.pin.policy != "none" {
        settings.push_str(&match &*config.pin.reactor {
            [] => ", threads not pinned (two cores or fewer)".to_owned(),
            cpus => format!(
                ", threads on CPU {}",
                cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
            ),
        });
    }
    line("settings", settings);
    let stable = if report.stable {
        "stable: the last three windows within 10 %".to_owned()
    } else if report.fps_windows.len() < 3 {
        "too short to say whether it is stable".to_owned()
    } else {
        output.paint(Style::Warn, "not stable: the last three windows are not within 10 %")
    };
    let mut speed = format!("{} fps", output.paint(Style::Bold, format!("{:.1}", report.fps)));
    if report.models.iter().any(|m| m.batch > 1) {
        speed.push_str(&format!(", {:.1} elements/s", report.elements_per_s));
    }
    line("speed", format!("{speed}, {stable}"));
    line("latency", latency(output, &report.latency_ms));
    let s = &report.stage_us;
    let stage = |name: &str, us: f64| format!("{name} {}", micros(output, us));
    let stages = [
        stage("queue", s.queue.mean),
        stage("prepare", s.prepare.mean),
        stage("upload", s.upload.mean),
        stage("execute", s.execute.mean),
        stage("download", s.download.mean),
        stage("finish", s.finish.mean),
    ];
    line("stages", stages.join(", "));
    line("compute", compute(report));
    if let Some(target) = report.target_tops {
        let progress = report.target_ratio.map_or("unknown".to_owned(), |ratio| {
            format!("{} {} %", bar(output, ratio, 30), three_digits(100.0 * ratio))
        });
        line("target", format!("{progress} of {target} TOPS"));
    }
    line("answers", answers(output, report));
    if let Some(cpu) = &report.fallback {
        let said = format!(
            "{} answers beside these, {:.1} fps by {}, p50 {}: this computer's CPU, in no stick's figure",
            grouped(cpu.completed),
            cpu.fps,
            cpu.name,
            micros(output, 1e3 * cpu.latency_ms.p50)
        );
        line("fallback", output.paint(Style::Warn, said));
    }
    if report.devices.len() > 1
        && let Some(scaling) = report.scaling_efficiency
    {
        line("scaling", format!("{:.2} of {} times the best stick", scaling, report.devices.len()));
    }
    if let Some(ceiling) = report.link_ceiling_fps {
        line("link", format!("{:.0} fps is the most that it could carry (estimate)", ceiling));
    }
    line("host", host(output, report));
    if let Some(untold) = untold(report) {
        line("not told", untold);
    }
    line("io", io(report));
    if let Some(energy) = &report.energy {
        let Span { low, high } = energy.joules_per_inference;
        line(
            "energy",
            format!(
                "{} to {} J an inference (estimate from published power; the sticks have no sensor)",
                three_digits(low),
                three_digits(high)
            ),
        );
    }
    text.push('\n');
    if report.models.len() > 1 {
        text.push_str(&models(output, report));
        text.push('\n');
    }
    text.push_str(&devices(output, report));
    text.push('\n');
    let verdict = format!("{}: {}", report.diagnosis, report.diagnosis_text);
    text.push_str(&format!("  {}\n", wrap(&verdict, output.width() - 2, "  ")));
    if report.interrupted {
        text.push_str("  interrupted: what was measured until then\n");
    }
    text
}

fn seconds(s: f64) -> String {
    format!("{s:.1} s")
}

fn micros(output: &Output, us: f64) -> String {
    time(output, Duration::from_secs_f64(us.max(0.0) / 1e6))
}

fn latency(output: &Output, ms: &Percentiles) -> String {
    let t = |ms: f64| micros(output, ms * 1e3);
    format!(
        "mean {}, p50 {}, p90 {}, p95 {}, p99 {}, max {}",
        t(ms.mean),
        t(ms.p50),
        t(ms.p90),
        t(ms.p95),
        t(ms.p99),
        t(ms.max)
    )
}

fn compute(report: &Report) -> String {
    let (Some(tops), Some(percent)) = (report.tops, report.percent_of_peak) else {
        return format!("no TOPS: {}", report.tops_reason.unwrap_or("unknown"));
    };
    let of = if report.simulated { " (simulated)" } else { "" };
    format!(
        "{} TOPS{of}, {} % of the peak of {:.1}; {} % of the {:.1} that a second source gives for FP16",
        three_digits(tops),
        three_digits(percent),
        report.tops_peak,
        three_digits(2.0 * percent),
        report.tops_peak / 2.0
    )
}

fn answers(output: &Output, report: &Report) -> String {
    let bad = |n: u64, what: &str| {
        let text = format!("{} {what}", grouped(n));
        if n > 0 { output.paint(Style::Bad, text) } else { text }
    };
    let mut parts = vec![
        format!("{} completed", grouped(report.completed)),
        bad(report.failed, "failed"),
        bad(report.lost, "lost"),
        bad(report.duplicated, "duplicated"),
        format!("{} retried", grouped(report.retried)),
    ];
    parts.push(report.mismatched.map_or("not checked".into(), |n| bad(n, "wrong")));
    parts.join(", ")
}

fn host(output: &Output, report: &Report) -> String {
    let host = &report.host;
    let Some(cpu) = host.cpu_us_per_inference else { return "nothing to divide by".into() };
    let mut text = format!(
        "{} CPU and {:.1} context switches an inference, {} threads, {} resident",
        micros(output, cpu),
        host.context_switches_per_inference.unwrap_or(0.0),
        host.threads,
        bytes(host.rss_bytes)
    );
    text.push_str(&format!(", {} page faults", grouped(host.page_faults)));
    if host.involuntary_switches > 0 {
        text.push_str(&format!(", {} times pushed off its core", grouped(host.involuntary_switches)));
    }
    if let Some(misses) = host.cache_misses_per_inference {
        text.push_str(&format!(", {misses:.0} cache misses an inference"));
    }
    if let Some(interrupts) = host.usb_interrupts {
        text.push_str(&format!(", {} interrupts of USB", grouped(interrupts)));
    }
    match host.throttled {
        Some(true) => {
            text.push_str(&format!(", {}", output.paint(Style::Warn, "slowed itself down by heat")));
        }
        Some(false) => text.push_str(", not slowed by heat"),
        None => {}
    }
    if let Some(cpu) = host.virtual_sticks_cpu_us_per_inference.filter(|&cpu| cpu > 0.0) {
        text.push_str(&format!(" (virtual sticks beside it: {} CPU)", micros(output, cpu)));
    }
    text
}

/// Counters that this computer does not have, and why.
fn untold(report: &Report) -> Option<String> {
    let host = &report.host;
    let reasons = [&host.cache_misses_reason, &host.usb_interrupts_reason, &host.throttled_reason];
    let reasons: Vec<&str> = reasons.into_iter().flatten().map(String::as_str).collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

fn io(report: &Report) -> String {
    let memory = match report.io.zero_copy {
        Some("mapped") => ", zero copy (mapped from the kernel)",
        Some("copied") => ", tensors copied by the kernel",
        Some("in-process") => ", no bus: virtual sticks of this process",
        Some(_) => ", some tensors mapped, some copied",
        None => "",
    };
    let mut text = format!(
        "{}{memory}, {} out and {} in a second",
        report.io.reactor,
        bytes(report.io.out_bytes_per_s as u64),
        bytes(report.io.in_bytes_per_s as u64)
    );
    if let Some(rate) = report.pool.hit_rate {
        text.push_str(&format!(", {:.1} % of buffers reused", 100.0 * rate));
    }
    if let Some(rate) = report.cache.as_ref().and_then(|c| c.hit_rate) {
        text.push_str(&format!(", {:.1} % found their graph on the stick", 100.0 * rate));
    }
    text
}

fn models(output: &Output, report: &Report) -> String {
    let headings =
        ["network", "batch", "share", "answers", "time", "fps", "TOPS", "done", "failed", "p50", "p99"];
    let mut table = output.table(&headings, &["network"]);
    let percent =
        |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |s| format!("{:.1} %", 100.0 * s));
    for m in &report.models {
        table.add_row([
            m.name.clone(),
            m.batch.to_string(),
            percent(Some(m.share)),
            percent(m.share_completed),
            percent(m.share_execute),
            format!("{:.1}", m.fps),
            m.tops.map_or_else(|| "-".to_owned(), three_digits),
            m.completed.to_string(),
            m.failed.to_string(),
            micros(output, 1e3 * m.latency_ms.p50),
            micros(output, 1e3 * m.latency_ms.p99),
        ]);
    }
    output.lines(&table)
}

fn devices(output: &Output, report: &Report) -> String {
    let degree = output.glyph("°C", "C");
    let dash = || "-".to_owned();
    type Cell<'a> = (&'a str, Box<dyn Fn(&Device) -> String + 'a>);
    let mut columns: Vec<Cell<'_>> = vec![
        ("stick", Box::new(|d| d.id.clone())),
        ("fps", Box::new(|d| format!("{:.1}", d.fps))),
        ("TOPS", Box::new(|d| d.tops.map_or_else(dash, three_digits))),
        ("done", Box::new(|d| d.completed.to_string())),
        ("failed", Box::new(|d| d.failed.to_string())),
        ("busy", Box::new(|d| format!("{:.0} %", 100.0 * d.busy_ratio))),
        ("depth", Box::new(|d| format!("{:.1}", d.depth_mean))),
        ("p50", Box::new(|d| micros(output, 1e3 * d.latency_ms.p50))),
        ("p99", Box::new(|d| micros(output, 1e3 * d.latency_ms.p99))),
        (degree, Box::new(|d| d.temperature_c.as_ref().map_or_else(dash, |t| format!("{:.1}", t.max)))),
        ("level", Box::new(|d| d.throttle_level_max.map_or_else(dash, |l| l.to_string()))),
        ("resets", Box::new(|d| d.resets.to_string())),
    ];
    // Broken words say less than fewer columns.
    if output.width() < 96 {
        columns.retain(|(name, _)| !["done", "failed", "depth", "level", "resets"].contains(name));
    }
    let headings: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let mut table = output.table(&headings, &["stick"]);
    for d in &report.devices {
        table.add_row(columns.iter().map(|(_, cell)| cell(d)));
    }
    let mut text = output.lines(&table);
    for d in &report.devices {
        if let Some(failure) = &d.failure {
            let failure = format!("{}: {}", d.id, crate::failure::one_line(failure));
            text.push_str(&format!("  {}\n", output.paint(Style::Bad, failure)));
        }
    }
    text
}

/// A filled bar.
fn bar(output: &Output, ratio: f64, width: usize) -> String {
    let filled = ((ratio.clamp(0.0, 1.0) * width as f64).round() as usize).min(width);
    let (full, empty) = (output.glyph("█", "#"), output.glyph("░", "."));
    full.repeat(filled) + &empty.repeat(width - filled)
}
