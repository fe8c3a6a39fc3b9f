//! `ncs2ctl boot` and `ncs2ctl reset`: every stick at the same time, each ending in a device or a reason.

use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use ncs2::transport::usb::{discover, reset};
use ncs2::{ErrorKind, Port, StickId};
use ncs2_device::{Engine, Identity, VirtualStick, face};
use serde::Serialize;

use crate::cli::{Global, Sim};
use crate::failure::{Failure, Outcome, Result};
use crate::open::{Models, Sticks};
use crate::output::{Output, Style, wrap};

/// Longest boot: image, re-enumeration, two more tries.
const BOOT: Duration = Duration::from_secs(20);
/// Longest wait for a boot ROM after a reset, and after power was given again.
const RESET: Duration = Duration::from_secs(5);
const POWER: Duration = Duration::from_secs(10);
/// Between two looks at a virtual stick that is on its way.
const LOOK: Duration = Duration::from_millis(5);
/// Of [`face::StickStatus`]: the host of such a stick is a process, not a kernel.
const SOCKET_FACE: &str = "socket";

/// `boot`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl boot                       # all that are plugged in
  ncs2ctl boot --device 1-2.3
  ncs2ctl boot --json | jq '.devices[] | select(.error)'

Loads the firmware, waits for the booted stick on its port, opens it, and lets it go again: the next
command boots it afresh. Exits 1 when some did not boot, 2 when none did.")]
pub struct BootArgs {}

/// `reset`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl reset --device 1-2.3
  sudo ncs2ctl reset --power         # for a stick that a USB reset does not reach

A stick that a process holds is left alone. --power cuts the power of the stick's hub port for two
seconds; not every hub can. Exits 1 when some did not come back, 2 when none did.")]
pub struct ResetArgs {
    /// Cut the power of the hub port instead; the stick may be off the bus, name its port then
    #[arg(long)]
    pub power: bool,
}

#[derive(Serialize)]
struct Body {
    simulated: bool,
    profile: Option<String>,
    devices: Vec<Device>,
}

/// How it went with one stick.
#[derive(Serialize)]
struct Device {
    id: String,
    simulated: bool,
    /// `booted` or `unbooted`; null where it failed.
    state: Option<&'static str>,
    usb_speed_mbps: Option<u32>,
    time_ms: f64,
    error: Option<Reason>,
}

#[derive(Serialize)]
struct Reason {
    kind: &'static str,
    message: String,
    hint: String,
}

/// What a stick became, and its speed.
type Done = Result<(&'static str, Option<u32>)>;

/// Boots.
pub fn boot(global: &Global, output: &Output, _args: &BootArgs) -> Result<Outcome> {
    let sticks = Sticks::find(global, Engine::Hash)?;
    let spinner = output.spinner("booting");
    let profile = sticks.profile();
    let (models, ports) = sticks.into_ports();
    let devices =
        side_by_side(ports.into_iter().map(|port| (port.id().clone(), port)), |_, port| connect(port));
    drop(models);
    spinner.finish_and_clear();
    show(output, profile, devices)
}

fn connect(mut port: Port) -> Done {
    let connection = port.connect(BOOT)?;
    let speed = connection.transport.info().speed_mbps;
    Ok(("booted", Some(speed).filter(|&s| s > 0)))
}

/// Resets.
pub fn reset(global: &Global, output: &Output, args: &ResetArgs) -> Result<Outcome> {
    let spinner = output.spinner(if args.power { "cutting the power of the ports" } else { "resetting" });
    let (profile, devices) = match &global.sim {
        Some(Sim::Rack { .. }) => {
            let sticks = Sticks::find(global, Engine::Hash)?;
            let profile = sticks.profile();
            let (models, ports) = sticks.into_ports();
            let ids = ports.into_iter().map(|port| (port.id().clone(), port));
            let devices = side_by_side(ids, |id, port| reset_virtual(&models, id, port, args.power));
            (profile, devices)
        }
        Some(Sim::Server(path)) => {
            let served = face::status(path)?;
            let profile = served.first().map(|s| s.profile.clone());
            let wanted = chosen((0..served.len()).map(StickId::sim).collect(), &global.device)?;
            let command = if args.power { face::Command::Unplug } else { face::Command::Crash };
            let devices = side_by_side(wanted, |id, n: usize| {
                if served[n].connected && served[n].face == SOCKET_FACE {
                    return Err(held(id));
                }
                face::command(path, n, command)?;
                if args.power {
                    face::command(path, n, face::Command::Plug)?;
                }
                returned(id, || Ok(face::status(path)?.get(n).and_then(|stick| stick.identity)))
            });
            (profile, devices)
        }
        None => {
            let found: Vec<StickId> = discover::list()?.into_iter().map(|f| f.id).collect();
            let wanted = match (&*global.device, args.power) {
                // A stick that fell off the bus is in no list.
                (named @ [_, ..], true) => named.iter().map(StickId::new).zip(0..).collect(),
                _ => chosen(found, &global.device)?,
            };
            let devices = side_by_side(wanted, |id, _| {
                let found =
                    if args.power { reset::power_cycle(id, POWER)? } else { reset::reset_port(id, RESET)? };
                Ok(("unbooted", Some(found.speed_mbps).filter(|&s| s > 0)))
            });
            (None, devices)
        }
    };
    spinner.finish_and_clear();
    show(output, profile, devices)
}

/// Boots a virtual stick of this process, since it is new, and brings it back.
fn reset_virtual(models: &Models, id: &StickId, port: Port, power: bool) -> Done {
    connect(port)?;
    let number = id.as_str().trim_start_matches("sim").parse().ok();
    let stick = match models {
        Models::Rack(rack) => number.and_then(|n| rack.stick(n)),
        Models::None | Models::Served(_) => None,
    };
    let stick = stick.ok_or_else(|| {
        Failure::new(ErrorKind::NotFound, format!("{id}: expected a virtual stick"), "see `ncs2ctl list`")
    })?;
    if power {
        stick.unplug();
        stick.replug();
    } else {
        stick.crash();
    }
    returned(id, || Ok(stick.inspect(VirtualStick::identity)))
}

/// Waits until a virtual stick shows its boot ROM.
fn returned(id: &StickId, identity: impl Fn() -> Result<Option<Identity>>) -> Done {
    let deadline = Instant::now() + RESET;
    while identity()? != Some(Identity::Unbooted) {
        if Instant::now() >= deadline {
            return Err(Failure::new(
                ErrorKind::Timeout,
                format!("{id}: expected its boot ROM within {} s, found none", RESET.as_secs()),
                "see `ncs2ctl sim status SOCKET`, or end that server and start it again",
            ));
        }
        thread::sleep(LOOK);
    }
    Ok(("unbooted", None))
}

fn held(id: &StickId) -> Failure {
    Failure::new(
        ErrorKind::InUse,
        format!("{id}: held by another process of that server"),
        "end that process first, or use `ncs2ctl sim status SOCKET --detach ID` to pull the stick out",
    )
}

/// The sticks that `--device` names, with their places; all without it.
fn chosen(found: Vec<StickId>, wanted: &[String]) -> Result<Vec<(StickId, usize)>> {
    let missing = wanted.iter().find(|id| !found.iter().any(|f| f.as_str() == **id));
    if missing.is_some() || found.is_empty() {
        let names: Vec<&str> = found.iter().map(StickId::as_str).collect();
        return Err(Failure::new(
            ErrorKind::NotFound,
            match missing {
                Some(id) if !names.is_empty() => {
                    format!("{id}: expected a stick there, found {}", names.join(", "))
                }
                Some(id) => format!("{id}: expected a stick there, found none at all"),
                None => "no Neural Compute Stick 2 found on any USB bus".to_owned(),
            },
            "check plug, cable, hub power and `ncs2ctl list`; --power reaches a port whose stick is gone",
        ));
    }
    let wanted = |id: &StickId| wanted.is_empty() || wanted.iter().any(|w| w == id.as_str());
    Ok(found.into_iter().zip(0..).filter(|(id, _)| wanted(id)).collect())
}

/// One thread a stick; the results in the order of the sticks.
fn side_by_side<T: Send>(
    sticks: impl IntoIterator<Item = (StickId, T)>,
    each: impl Fn(&StickId, T) -> Done + Sync,
) -> Vec<(StickId, Duration, Done)> {
    let each = &each;
    thread::scope(|scope| {
        let threads: Vec<_> = sticks
            .into_iter()
            .map(|(id, what)| {
                let name = id.clone();
                let thread = scope.spawn(move || {
                    let begin = Instant::now();
                    let done = each(&id, what);
                    (begin.elapsed(), done)
                });
                (name, thread)
            })
            .collect();
        threads
            .into_iter()
            .map(|(id, thread)| {
                let (time, done) = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                (id, time, done)
            })
            .collect()
    })
}

fn show(
    output: &Output,
    profile: Option<String>,
    devices: Vec<(StickId, Duration, Done)>,
) -> Result<Outcome> {
    let simulated = profile.is_some();
    let good = devices.iter().filter(|(_, _, done)| done.is_ok()).count();
    let all = devices.len();
    // One stick alone: its reason is the command's.
    if let ([(_, _, Err(_))], false) = (&*devices, output.is_json()) {
        return devices.into_iter().next().map_or(Ok(Outcome::Ok), |(_, _, done)| done.map(|_| Outcome::Ok));
    }
    let devices: Vec<Device> = devices
        .into_iter()
        .map(|(id, time, done)| {
            let (state, usb_speed_mbps, error) = match done {
                Ok((state, speed)) => (Some(state), speed, None),
                Err(failure) => (None, None, failure.into_report().map(reason)),
            };
            let time_ms = (time.as_secs_f64() * 1e4).round() / 10.0;
            Device { id: id.to_string(), simulated, state, usb_speed_mbps, time_ms, error }
        })
        .collect();
    if output.is_json() {
        output.document(&Body { simulated, profile, devices })?;
    } else {
        output.prose(&text(output, &devices, profile.as_deref()))?;
    }
    match good {
        n if n == all => Ok(Outcome::Ok),
        0 => Ok(Outcome::Failed),
        _ => Ok(Outcome::Negative),
    }
}

fn reason(report: crate::failure::Report) -> Reason {
    Reason { kind: report.kind, message: report.message, hint: report.hint }
}

fn text(output: &Output, devices: &[Device], profile: Option<&str>) -> String {
    let mut text = String::new();
    for device in devices {
        let line = match (&device.error, device.state) {
            (Some(error), _) => format!("{}; {}", output.paint(Style::Bad, &error.message), error.hint),
            (None, state) => {
                let speed = device.usb_speed_mbps.map(|s| format!(", {s} Mb/s")).unwrap_or_default();
                format!("{} in {:.0} ms{speed}", state.unwrap_or("gone"), device.time_ms)
            }
        };
        let line = wrap(&line, output.width().saturating_sub(10), "          ");
        text.push_str(&format!("{:<8}  {line}\n", device.id));
    }
    if let Some(profile) = profile {
        text.push_str(&format!("{} (profile {profile})\n", output.paint(Style::Warn, "simulated")));
    }
    text
}
