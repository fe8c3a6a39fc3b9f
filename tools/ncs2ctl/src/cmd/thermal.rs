//! `ncs2ctl thermal` and `ncs2ctl thermal watch`

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use ncs2_device::HeatLaw;
use serde::Serialize;

use crate::failure::{Failure, Outcome, Result};
use crate::flags::{Global, positive_duration};
use crate::heat::{Forecast, forecast, law, sparkline};
use crate::interrupt::Interrupt;
use crate::output::{Output, Style, wrap};
use crate::stats::source::name_of;
use crate::stats::{Snapshot, Source, Stick, Window};

/// Values that a sparkline shows.
const HISTORY: usize = 24;
/// °C that fill a sparkline's height at least.
const SPAN_C: f64 = 2.0;
/// Of `thermal`, which shows one look: the load is what happened since one that it took this long before.
const LOAD_WINDOW: Duration = Duration::from_millis(250);

/// States of a stick that are told.
const LOST: &str = "lost";
const READY: &str = "ready";

/// `thermal`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl thermal
  ncs2ctl thermal --alert 70 || echo hot
  ncs2ctl --sim 2 thermal watch --interval 1s --count 10

Works beside a program that uses the sticks: see `ncs2ctl top --help`.")]
pub struct ThermalArgs {
    /// Keep watching.
    #[command(subcommand)]
    pub command: Option<ThermalCommand>,
    /// Exit 1 when a stick is this warm or warmer, degrees Celsius
    #[arg(long, global = true, value_name = "C", value_parser = crate::flags::positive)]
    pub alert: Option<f64>,
    /// Comma-separated values instead of text
    #[arg(long, global = true)]
    pub csv: bool,
    /// Of the sticks that this process has open, rather than all that there are
    #[arg(long, global = true, value_name = "PID")]
    pub attach: Option<u32>,
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
    simulated: bool,
    /// The process that has the stick open, where it is not this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<u32>,
    /// `starting`, `ready`, `lost`, `closed`.
    state: String,
    temperature_c: Option<f64>,
    throttle_level: Option<u8>,
    headroom_c: Option<f64>,
    seconds_to_throttle: Option<f64>,
    /// Why one of the two is null; of a lost stick, why it is lost.
    reason: Option<String>,
    /// Of the work of all sticks since the last look; null when there was none, or no look before.
    load_share: Option<f64>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum Event {
    LevelChanged { id: String, from: u8, to: u8, temperature_c: Option<f64> },
    Lost { id: String, reason: Option<String> },
    Returned { id: String },
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
    let mut source = Source::find(global, output, args.attach)?;
    let mut watch = Watch {
        begin: Instant::now(),
        // The path that the user gave; what a stick says of itself is a name.
        profile: source.opened().and_then(|o| o.simulation.as_ref()).map(|s| s.profile.clone()),
        own: source.opened().is_some(),
        laws: BTreeMap::new(),
        before: Vec::new(),
        levels: BTreeMap::new(),
        lost: BTreeSet::new(),
        history: BTreeMap::new(),
        alert: args.alert,
    };
    if args.csv {
        output.text(
            "time_s,id,temperature_c,throttle_level,headroom_c,seconds_to_throttle,load_share,simulated\n",
        )?;
    }
    let watching = args.command.is_some();
    if !watching {
        watch.look(source.look(false)?);
        // That look is not shown, so nothing of it was told.
        watch.lost.clear();
        let _ = interrupt.channel().recv_timeout(LOAD_WINDOW);
    }
    let (mut looks, mut alerted) = (0, false);
    loop {
        let body = watch.look(source.look(true)?);
        alerted |= body.events.iter().any(|e| matches!(e, Event::Alert { .. }));
        if output.is_json() {
            if watching { output.line(&body)? } else { output.document(&body)? }
        } else if args.csv {
            output.text(&csv(&body))?;
        } else {
            output.prose(&watch.text(output, &body, watching))?;
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
    if !output.is_json() && !args.csv {
        output.prose(&watch.footer(output))?;
    }
    source.close(output)?;
    Ok(if alerted { Outcome::Negative } else { Outcome::Ok })
}

struct Watch {
    begin: Instant,
    profile: Option<String>,
    own: bool,
    /// By profile.
    laws: BTreeMap<String, Option<HeatLaw>>,
    before: Vec<Snapshot>,
    levels: BTreeMap<String, u8>,
    /// Sticks whose loss was told.
    lost: BTreeSet<String>,
    history: BTreeMap<String, VecDeque<f64>>,
    alert: Option<f64>,
}

impl Watch {
    fn look(&mut self, snapshots: Vec<Snapshot>) -> Body {
        let (mut devices, mut events) = (Vec::new(), Vec::new());
        for (fleet, now) in snapshots.iter().enumerate() {
            let before = self.before.iter().find(|b| b.process == now.process);
            let window = Window::between(before, now);
            for (stick, rates) in now.sticks.iter().zip(&window.sticks) {
                let id = name_of(&snapshots, fleet, &stick.id);
                let Forecast { headroom_c, seconds_to_throttle, reason } = self.forecast(stick, rates.busy);
                self.happened(&id, stick, &mut events);
                devices.push(Device {
                    id,
                    simulated: stick.simulated,
                    process: Some(now.process.pid).filter(|_| !self.own),
                    state: stick.state.clone(),
                    temperature_c: stick.temperature_c.map(tenth),
                    throttle_level: stick.throttle_level,
                    headroom_c: headroom_c.map(tenth),
                    seconds_to_throttle: seconds_to_throttle.map(tenth),
                    reason,
                    load_share: rates.load_share.map(|share| (share * 1e3).round() / 1e3),
                });
            }
        }
        let profile = snapshots.iter().flat_map(|s| &s.sticks).find_map(|s| s.profile.clone());
        let body = Body {
            simulated: snapshots.iter().any(|s| s.simulated),
            profile: self.profile.clone().or(profile),
            time_s: tenth(self.begin.elapsed().as_secs_f64()),
            devices,
            events,
        };
        self.before = snapshots;
        body
    }

    fn forecast(&mut self, stick: &Stick, load: Option<f64>) -> Forecast {
        if stick.state == LOST {
            let why = stick.failure.as_deref().map_or(String::new(), |why| format!(": {why}"));
            let reason = Some(format!("the stick is lost{why}"));
            return Forecast { headroom_c: None, seconds_to_throttle: None, reason };
        }
        let known = match (stick.simulated, self.profile.as_ref().or(stick.profile.as_ref())) {
            (true, Some(profile)) => {
                self.laws.entry(profile.clone()).or_insert_with(|| law(profile)).as_ref()
            }
            _ => None,
        };
        if stick.simulated && known.is_none() {
            let reason = Some("the profile of this virtual stick cannot be read here".to_owned());
            return Forecast { headroom_c: None, seconds_to_throttle: None, reason };
        }
        forecast(known, stick.temperature_c, stick.throttle_level, load)
    }

    fn happened(&mut self, id: &str, stick: &Stick, events: &mut Vec<Event>) {
        if stick.state == LOST && self.lost.insert(id.to_owned()) {
            events.push(Event::Lost { id: id.to_owned(), reason: stick.failure.clone() });
        } else if stick.state == READY && self.lost.remove(id) {
            events.push(Event::Returned { id: id.to_owned() });
        }
        if let Some(to) = stick.throttle_level
            && let Some(from) = self.levels.insert(id.to_owned(), to)
            && from != to
        {
            let temperature_c = stick.temperature_c.map(tenth);
            events.push(Event::LevelChanged { id: id.to_owned(), from, to, temperature_c });
        }
        let Some(t) = stick.temperature_c else { return };
        if let Some(limit_c) = self.alert.filter(|limit| t >= *limit) {
            events.push(Event::Alert { id: id.to_owned(), temperature_c: tenth(t), limit_c });
        }
        let history = self.history.entry(id.to_owned()).or_default();
        history.push_back(t);
        while history.len() > HISTORY {
            history.pop_front();
        }
    }

    /// Where it came from.
    fn footer(&self, output: &Output) -> String {
        let mut text = String::new();
        if !self.own {
            let whose = |s: &Snapshot| format!("process {} ({})", s.process.pid, s.process.name);
            let whose: Vec<String> = self.before.iter().map(whose).collect();
            text.push_str(&format!("as told by {}\n", whose.join(", ")));
        }
        let profile = self.before.iter().flat_map(|s| &s.sticks).find_map(|s| s.profile.as_ref());
        if let Some(profile) = self.profile.as_ref().or(profile) {
            text.push_str(&format!("{} (profile {profile})\n", output.paint(Style::Warn, "simulated")));
        }
        text
    }

    fn text(&self, output: &Output, body: &Body, watching: bool) -> String {
        let degree = output.glyph("°C", "C");
        let dash = || "-".to_owned();
        let mut table = output.table(
            &["time", "stick", "state", degree, "level", "headroom", "throttles in", "load", "trend"],
            &["stick", "state", "trend"],
        );
        for device in &body.devices {
            let steps = output.glyph("▁▂▃▄▅▆▇█", "_.-=+*#@");
            let history: Vec<f64> = self.history.get(&device.id).into_iter().flatten().copied().collect();
            table.add_row([
                format!("{:.1} s", body.time_s),
                device.id.clone(),
                device.state.clone(),
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
            // Of a lost one the event below says it.
            for device in body.devices.iter().filter(|device| device.state != LOST) {
                if let Some(reason) = &device.reason {
                    let line = format!("{}: {reason}", device.id);
                    text.push_str(&format!("  {}\n", wrap(&line, output.width() - 2, "  ")));
                }
            }
            if body.devices.iter().all(|device| device.load_share.is_none()) {
                text.push_str("  no load to share out: none of them worked between two looks\n");
            }
        }
        for event in &body.events {
            let line = match event {
                Event::Lost { id, reason: Some(reason) } => format!("{id}: lost: {reason}"),
                Event::Lost { id, reason: None } => format!("{id}: lost"),
                Event::Returned { id } => format!("{id}: back"),
                Event::LevelChanged { id, from, to, temperature_c } => {
                    let at = temperature_c.map_or_else(String::new, |t| format!(" at {t:.1} {degree}"));
                    format!("{id}: throttle level {from} to {to}{at}")
                }
                Event::Alert { id, temperature_c, limit_c } => {
                    format!("{id}: {temperature_c:.1} {degree}, the alert is at {limit_c} {degree}")
                }
            };
            let style = if matches!(event, Event::Returned { .. }) { Style::Bold } else { Style::Bad };
            text.push_str(&format!("  {}\n", output.paint(style, wrap(&line, output.width() - 2, "  "))));
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
