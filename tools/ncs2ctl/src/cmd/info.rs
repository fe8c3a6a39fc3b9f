//! `ncs2ctl info`

use std::time::Duration;

use ncs2::runtime::{FleetConfig, StickStats};
use ncs2::wire::Capabilities;
use ncs2_device::Engine;
use serde::Serialize;

use crate::failure::{Outcome, Result};
use crate::flags::Global;
use crate::open::Sticks;
use crate::output::{Output, Style, bytes};

/// A stick that has not told its temperature by then is shown without.
const TELEMETRY: Duration = Duration::from_secs(3);

#[derive(Serialize)]
struct Body {
    simulated: bool,
    profile: Option<String>,
    devices: Vec<Device>,
}

#[derive(Serialize)]
struct Device {
    id: String,
    simulated: bool,
    state: &'static str,
    failure: Option<String>,
    usb_speed_mbps: Option<u32>,
    chip: Option<String>,
    firmware_version: Option<[u32; 4]>,
    max_graphs: Option<u32>,
    max_fifos: Option<u32>,
    max_executors: Option<u32>,
    max_memory_bytes: Option<u32>,
    used_memory_bytes: Option<u32>,
    temperature_c: Option<f32>,
    throttle_level: Option<u8>,
    resets: u32,
    buffers: Option<Buffers>,
}

/// How host buffers reach a real stick.
#[derive(Serialize)]
struct Buffers {
    zero_copy: &'static str,
    received_too: bool,
    mapped_bytes: usize,
    mapped_read_mb_s: u32,
    ordinary_read_mb_s: u32,
    why_not: Option<String>,
}

/// Opens the sticks and prints what they say; exit 1 when one of several did not open.
pub fn info(global: &Global, output: &Output) -> Result<Outcome> {
    let sticks = Sticks::find(global, Engine::Hash)?;
    let spinner = output.spinner("opening");
    let opened = sticks.open(FleetConfig::default())?;
    // One that does not answer shows as unknown below; the others are still worth showing.
    let silent = opened.fleet.refresh_telemetry(TELEMETRY).err();
    spinner.finish_and_clear();
    let stats = opened.fleet.stats();
    let simulation = opened.simulation.clone();
    let devices: Vec<Device> = stats.sticks.iter().map(device).collect();
    let all = stats.sticks.iter().all(|s| s.failure.is_none());
    if output.is_json() {
        let profile = simulation.as_ref().map(|s| s.profile.clone());
        output.document(&Body { simulated: simulation.is_some(), profile, devices })?;
    } else {
        let mut text = String::new();
        for device in &devices {
            text.push_str(&describe(output, device));
        }
        if let Some(simulation) = simulation {
            text.push_str(&format!(
                "{} (profile {})\n",
                output.paint(Style::Warn, "simulated"),
                simulation.profile
            ));
        }
        output.prose(&text)?;
    }
    opened.close(output)?;
    if let Some(error) = silent {
        output.remark(&format!("telemetry: {error}"));
    }
    Ok(if all { Outcome::Ok } else { Outcome::Negative })
}

fn device(stick: &StickStats) -> Device {
    let caps = stick.capabilities.as_ref();
    Device {
        id: stick.id.to_string(),
        simulated: stick.simulated.is_some(),
        state: stick.state.as_str(),
        failure: stick.failure.clone(),
        usb_speed_mbps: Some(stick.speed_mbps).filter(|&s| s > 0),
        chip: caps.map(chip),
        firmware_version: caps.map(|c| c.fw_version),
        max_graphs: caps.map(|c| c.max_graphs),
        max_fifos: caps.map(|c| c.max_fifos),
        max_executors: caps.map(|c| c.max_executors),
        max_memory_bytes: caps.map(|c| c.max_memory_bytes),
        used_memory_bytes: stick.used_memory_bytes,
        temperature_c: stick.temperature_c,
        throttle_level: stick.throttle_level,
        resets: stick.resets,
        buffers: stick.memory.as_ref().map(|memory| Buffers {
            zero_copy: memory.kind.as_str(),
            received_too: memory.maps_received,
            mapped_bytes: memory.mapped_bytes,
            mapped_read_mb_s: memory.mapped_read_mb_s,
            ordinary_read_mb_s: memory.ordinary_read_mb_s,
            why_not: memory.why_not.clone(),
        }),
    }
}

fn chip(caps: &Capabilities) -> String {
    match caps.fw_version[1] {
        Capabilities::CHIP_MYRIAD_X => "Myriad X".into(),
        Capabilities::CHIP_MYRIAD_2 => "Myriad 2".into(),
        other => format!("unknown chip {other:#06x}"),
    }
}

fn describe_buffers(buffers: &Buffers) -> String {
    let mut text = match buffers.mapped_bytes {
        0 => "copied".to_owned(),
        mapped => format!(
            "{} mapped for {}; reading: mapped {} MB/s, ordinary memory {} MB/s",
            bytes(mapped as u64),
            if buffers.received_too { "both directions" } else { "sending alone" },
            buffers.mapped_read_mb_s,
            buffers.ordinary_read_mb_s
        ),
    };
    if let Some(why_not) = &buffers.why_not {
        text.push_str(&format!("; {why_not}"));
    }
    text
}

fn describe(output: &Output, device: &Device) -> String {
    let unknown = || "unknown".to_owned();
    let number = |n: Option<u32>| n.map_or_else(unknown, |n| n.to_string());
    let size = |n: Option<u32>| n.map_or_else(unknown, |n| bytes(n.into()));
    let mut text = format!("{}  {}\n", output.paint(Style::Bold, &device.id), device.state);
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<13} {value}\n"));
    if let Some(failure) = &device.failure {
        line("failure", crate::failure::one_line(failure));
    }
    line("chip", device.chip.clone().unwrap_or_else(unknown));
    let firmware = device.firmware_version.map(|v| v.map(|n| format!("{n:x}")).join("."));
    line("firmware", firmware.unwrap_or_else(unknown));
    line("link", device.usb_speed_mbps.map_or("no bus, or not told".into(), |s| format!("{s} Mb/s")));
    line("memory", format!("{} used of {}", size(device.used_memory_bytes), size(device.max_memory_bytes)));
    line(
        "holds",
        format!(
            "{} graphs, {} FIFOs, {} executors a graph",
            number(device.max_graphs),
            number(device.max_fifos),
            number(device.max_executors)
        ),
    );
    if let Some(buffers) = &device.buffers {
        line("buffers", describe_buffers(buffers));
    }
    let degree = output.glyph("°C", "C");
    line("temperature", device.temperature_c.map_or_else(unknown, |t| format!("{t:.1} {degree}")));
    line(
        "throttle",
        match device.throttle_level {
            Some(0) => "level 0: none".into(),
            Some(1) => "level 1: lower guard, short sleeps".into(),
            Some(2) => "level 2: upper guard, long sleeps".into(),
            Some(other) => format!("level {other}"),
            None => unknown(),
        },
    );
    text
}
