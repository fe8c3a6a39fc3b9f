//! `ncs2ctl thermal` and `ncs2ctl thermal watch`

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use ncs2::runtime::{FleetConfig, StickStats};
use ncs2::{ErrorKind, StickId};
use ncs2_device::{Engine, HeatLaw};
use serde::Serialize;

use crate::cli::{Global, positive_duration};
use crate::failure::{Failure, Outcome, Result};
use crate::heat::{Forecast, forecast, law, sparkline};
use crate::interrupt::Interrupt;
use crate::open::{Opened, Simulation, Sticks};
use crate::output::{Output, Style, wrap};

/// A stick that has not told its temperature by then is shown without.
const TELEMETRY: Duration = Duration::from_secs(3);
/// Values that a sparkline shows.
const HISTORY: usize = 24;
/// °C that fill a sparkline's height at least.
const SPAN_C: f64 = 2.0;

/// `thermal`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl thermal
  ncs2ctl thermal --alert 70 || echo hot
  ncs2ctl --sim 2 thermal watch --interval 1s --count 10")]
pub struct ThermalArgs {
    /// Keep watching.
    #[command(subcommand)]
    pub command: Option<ThermalCommand>,
    /// Exit 1 when a stick is this warm or warmer, degrees Celsius
    #[arg(long, global = true, value_name = "C", value_parser = crate::cli::positive)]
    pub alert: Option<f64>,
    /// Comma-separated values instead of text
    #[arg(long, global = true)]
    pub csv: bool,
}

/// `thermal …`
#[derive(Subcommand, Debug)]
pub enum ThermalCommand {
    /// Looks again and again until Ctrl-C, --count or --alert
    #[command(after_help = "\
Examples:
  ncs2ctl thermal watch
  ncs2ctl thermal watch --interval 10s --csv > heat.csv
  ncs2ctl thermal watch --json --count 5 | jq -c '.devices[].temperature_c'
  ncs2ctl thermal watch --alert 70 && echo never hot")]
    Watch {
        /// Time between two looks
        #[arg(long, value_name = "TIME", default_value = "1s", value_parser = positive_duration)]
        interval: Duration,
        /// End after so many looks
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
    },
}

#[derive(Serialize)]
struct Body {
    simulated: bool,
    profile: Option<String>,
    time_s: f64,
    devices: Vec<Device>,
    /// Changes of level and alerts since the last look.
    events: Vec<Event>,
}

#[derive(Serialize)]
struct Device {
    id: String,
    temperature_c: Option<f64>,
    throttle_level: Option<u8>,
    headroom_c: Option<f64>,
    seconds_to_throttle: Option<f64>,
    /// Why one of the two is null.
    reason: Option<String>,
    /// Of the work of all sticks since the last look; null when there was none, or no look before.
    load_share: Option<f64>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum Event {
    LevelChanged { id: String, from: u8, to: u8, temperature_c: Option<f64> },
    Alert { id: String, temperature_c: f64, limit_c: f64 },
}

/// Shows temperatures; exit 1 when `--alert` is crossed.
pub fn thermal(global: &Global, output: &Output, args: &ThermalArgs) -> Result<Outcome> {
    if args.csv && output.is_json() {
        return Err(Failure::usage(
            "--csv: expected no --json beside it, found one",
            "choose one of the two",
        ));
    }
    let (interval, count) = match &args.command {
        None => (Duration::ZERO, Some(1)),
        Some(ThermalCommand::Watch { interval, count }) => (*interval, *count),
    };
    let interrupt = Interrupt::install()?;
    let sticks = Sticks::find(global, Engine::Hash)?;
    let spinner = output.spinner("opening");
    let opened = sticks.open(FleetConfig::default())?;
    spinner.finish_and_clear();
    let mut watch = Watch {
        law: opened.simulation.as_ref().and_then(|s| law(&s.profile)),
        simulation: opened.simulation.clone(),
        begin: Instant::now(),
        earlier: BTreeMap::new(),
        looked: None,
        history: BTreeMap::new(),
        alert: args.alert,
    };
    if args.csv {
        output.text(
            "time_s,id,temperature_c,throttle_level,headroom_c,seconds_to_throttle,load_share,simulated\n",
        )?;
    }
    let watching = args.command.is_some();
    let (mut looks, mut alerted) = (0, false);
    loop {
        let body = watch.look(&opened)?;
        alerted |= body.events.iter().any(|e| matches!(e, Event::Alert { .. }));
        if output.is_json() {
            if watching { output.line(&body)? } else { output.document(&body)? }
        } else if args.csv {
            output.text(&csv(&body))?;
        } else {
            output.text(&watch.text(output, &body, watching))?;
        }
        looks += 1;
        if alerted || count.is_some_and(|count| looks >= count) {
            break;
        }
        let _ = interrupt.channel().recv_timeout(interval);
        if interrupt.is_pressed() {
            break;
        }
    }
    if let Some(simulation) = &opened.simulation
        && !output.is_json()
        && !args.csv
    {
        output.text(&format!(
            "{} (profile {})\n",
            output.paint(Style::Warn, "simulated"),
            simulation.profile
        ))?;
    }
    opened.close()?;
    Ok(if alerted { Outcome::Negative } else { Outcome::Ok })
}

struct Watch {
    law: Option<HeatLaw>,
    simulation: Option<Simulation>,
    begin: Instant,
    /// Per stick: its busy time and level at the last look.
    earlier: BTreeMap<StickId, (Duration, Option<u8>)>,
    looked: Option<Instant>,
    history: BTreeMap<StickId, VecDeque<f64>>,
    alert: Option<f64>,
}

impl Watch {
    fn look(&mut self, opened: &Opened) -> Result<Body> {
        if let Err(error) = opened.fleet.refresh_telemetry(TELEMETRY) {
            // A silent sensor shows as unknown; a closed fleet is the end.
            if error.kind() != ErrorKind::Timeout {
                return Err(error.into());
            }
        }
        let now = Instant::now();
        let since = self.looked.replace(now).map(|t| now - t);
        let stats = opened.fleet.stats();
        let worked = |s: &StickStats| {
            self.earlier.get(&s.id).map(|(busy, _)| s.busy.saturating_sub(*busy).as_secs_f64())
        };
        let all: f64 = stats.sticks.iter().filter_map(worked).sum();
        let (mut devices, mut events) = (Vec::new(), Vec::new());
        for stick in &stats.sticks {
            let celsius = stick.temperature_c.map(f64::from);
            let busy = worked(stick);
            let load = busy.zip(since).map(|(busy, since)| busy / since.as_secs_f64().max(1e-9));
            let Forecast { headroom_c, seconds_to_throttle, reason } =
                forecast(self.law.as_ref(), celsius, stick.throttle_level, load);
            let id = stick.id.to_string();
            let before = self.earlier.get(&stick.id).and_then(|(_, level)| *level);
            if let Some((from, to)) = before.zip(stick.throttle_level)
                && from != to
            {
                events.push(Event::LevelChanged {
                    id: id.clone(),
                    from,
                    to,
                    temperature_c: celsius.map(tenth),
                });
            }
            if let Some((t, limit_c)) = celsius.zip(self.alert)
                && t >= limit_c
            {
                events.push(Event::Alert { id: id.clone(), temperature_c: tenth(t), limit_c });
            }
            if let Some(t) = celsius {
                let history = self.history.entry(stick.id.clone()).or_default();
                history.push_back(t);
                while history.len() > HISTORY {
                    history.pop_front();
                }
            }
            devices.push(Device {
                id,
                temperature_c: celsius.map(tenth),
                throttle_level: stick.throttle_level,
                headroom_c: headroom_c.map(tenth),
                seconds_to_throttle: seconds_to_throttle.map(tenth),
                reason,
                load_share: busy.filter(|_| all > 0.0).map(|busy| (busy / all * 1e3).round() / 1e3),
            });
        }
        self.earlier = stats.sticks.iter().map(|s| (s.id.clone(), (s.busy, s.throttle_level))).collect();
        Ok(Body {
            simulated: self.simulation.is_some(),
            profile: self.simulation.as_ref().map(|s| s.profile.clone()),
            time_s: tenth(self.begin.elapsed().as_secs_f64()),
            devices,
            events,
        })
    }

    fn text(&self, output: &Output, body: &Body, watching: bool) -> String {
        let degree = output.glyph("°C", "C");
        let dash = || "-".to_owned();
        let mut table = output.table(
            &["time", "stick", degree, "level", "headroom", "throttles in", "load", "trend"],
            &["stick", "trend"],
        );
        for (device, id) in body.devices.iter().zip(self.earlier.keys()) {
            let steps = output.glyph("▁▂▃▄▅▆▇█", "_.-=+*#@");
            // The table is in the fleet's order, which need not be that of the names.
            let key = self.earlier.keys().find(|k| k.as_str() == device.id).unwrap_or(id);
            let history: Vec<f64> = self.history.get(key).into_iter().flatten().copied().collect();
            table.add_row([
                format!("{:.1} s", body.time_s),
                device.id.clone(),
                device.temperature_c.map_or_else(dash, |t| format!("{t:.1}")),
                device.throttle_level.map_or_else(dash, |l| l.to_string()),
                device.headroom_c.map_or_else(dash, |h| format!("{h:.1}")),
                device.seconds_to_throttle.map_or_else(dash, |s| format!("{s:.0} s")),
                device.load_share.map_or_else(dash, |s| format!("{:.0} %", 100.0 * s)),
                if watching { sparkline(&history, steps, SPAN_C) } else { String::new() },
            ]);
        }
        let mut text = output.lines(&table);
        if !watching {
            for device in &body.devices {
                if let Some(reason) = &device.reason {
                    let line = format!("{}: {reason}", device.id);
                    text.push_str(&format!("  {}\n", wrap(&line, output.width() - 2, "  ")));
                }
            }
        }
        for event in &body.events {
            let line = match event {
                Event::LevelChanged { id, from, to, temperature_c } => {
                    let at = temperature_c.map_or_else(String::new, |t| format!(" at {t:.1} {degree}"));
                    format!("{id}: throttle level {from} to {to}{at}")
                }
                Event::Alert { id, temperature_c, limit_c } => {
                    format!("{id}: {temperature_c:.1} {degree}, the alert is at {limit_c} {degree}")
                }
            };
            text.push_str(&format!("  {}\n", output.paint(Style::Bad, line)));
        }
        text
    }
}

fn tenth(x: f64) -> f64 {
    (x * 10.0).round() / 10.0
}

fn csv(body: &Body) -> String {
    let cell = |x: Option<f64>| x.map_or_else(String::new, |x| x.to_string());
    body.devices
        .iter()
        .map(|d| {
            format!(
                "{},{},{},{},{},{},{},{}\n",
                body.time_s,
                d.id,
                cell(d.temperature_c),
                cell(d.throttle_level.map(f64::from)),
                cell(d.headroom_c),
                cell(d.seconds_to_throttle),
                cell(d.load_share),
                body.simulated
            )
        })
        .collect()
}
