//! `ncs2ctl sim serve`, `sim attach`, `sim status` and `sim calibrate`: the virtual stick as a product of its own.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use ncs2::ErrorKind;
use ncs2_device::face::{self, Address, Command, Face, ServeOptions, Server, StickStatus, serve};
use ncs2_device::{Engine, Timing, calibrate};
use serde::Serialize;

use super::selftest;
use crate::failure::{Failure, Outcome, Result};
use crate::flags::{EngineArg, Global, TimingArg};
use crate::interrupt::Interrupt;
use crate::open;
use crate::output::{Output, Style, grouped};

/// `sim …`
#[derive(Subcommand, Debug)]
pub enum SimCommand {
    /// Serves virtual sticks to kernels in QEMU, to this machine's own, or to other processes, until Ctrl-C
    #[command(after_help = "\
Examples:
  ncs2ctl sim serve --usbredir /tmp/stick.sock
  ncs2ctl sim serve --vhci --sticks 4 --engine hash   # needs root and the module vhci-hcd
  ncs2ctl sim serve --socket /tmp/sticks.sock --control /tmp/control.sock

QEMU: -chardev socket,id=r0,path=/tmp/stick.sock,reconnect=1 -device qemu-xhci,id=x -device usb-redir,chardev=r0,bus=x.0")]
    Serve(Box<ServeArgs>),
    /// Prints what the sticks of a running `sim serve` are doing, and pulls them out or puts them back
    #[command(after_help = "\
Examples:
  ncs2ctl sim status /tmp/control.sock
  ncs2ctl sim status /tmp/sticks.sock --json          # the socket of the socket face answers, too
  ncs2ctl sim status /tmp/control.sock --detach sim0  # as if somebody pulled it out
  ncs2ctl sim status /tmp/control.sock --attach sim0  # back into its port, unbooted")]
    Status(StatusArgs),
    /// Plugs virtual sticks into this machine's own kernel, until Ctrl-C; needs root and the module vhci-hcd
    #[command(after_help = "\
Examples:
  sudo modprobe vhci-hcd
  sudo ncs2ctl sim attach --sticks 2
  ncs2ctl list                       # in another terminal: they look like sticks

Every program of this machine sees them on USB, and takes them for real ones: they say simulated nowhere
but here.")]
    Attach {
        /// How many
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=8))]
        sticks: u16,
        /// Built-in profile, or a file
        #[arg(long, value_name = "PROFILE", default_value = "ncs2")]
        profile: String,
        /// Take commands such as `unplug 0`, a line each, at a socket
        #[arg(long, value_name = "PATH")]
        control: Option<String>,
    },
    /// Prints what the virtual stick's timing predicts beside the published figures
    #[command(after_help = "\
Examples:
  ncs2ctl sim calibrate
  ncs2ctl sim calibrate --profile usb2 --json
  ncs2ctl sim calibrate --from report.json > mine.toml   # then --sim 1,mine.toml
  ncs2ctl sim calibrate --leave-one-out        # takes longer: one fit a figure")]
    Calibrate {
        /// Built-in profile, or a file
        #[arg(long, value_name = "PROFILE", default_value = "ncs2")]
        profile: String,
        /// Print a profile fitted to this report of `ncs2ctl selftest` instead
        #[arg(long, value_name = "REPORT", conflicts_with_all = ["profile", "leave_one_out"])]
        from: Option<PathBuf>,
        /// Also predict each figure by constants that were fitted to all others
        #[arg(long)]
        leave_one_out: bool,
    },
}

/// `sim status`
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Control socket of the server (`sim serve --control`), or that of its socket face
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// Pull this stick out of its port first, such as `sim0`; repeatable
    #[arg(long, value_name = "ID", value_parser = stick_number)]
    detach: Vec<usize>,
    /// Then put this stick back into its port; repeatable
    #[arg(long, value_name = "ID", value_parser = stick_number)]
    attach: Vec<usize>,
}

/// `sim2` or `2`.
fn stick_number(text: &str) -> std::result::Result<usize, String> {
    let number = text.strip_prefix("sim").unwrap_or(text);
    number.parse().map_err(|_| "expected a stick such as sim0".to_owned())
}

/// `sim serve`
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Listen for QEMU's usb-redir at a socket, a TCP port of loopback, or a character device
    #[arg(long, value_name = "SOCKET|PORT|DEVICE")]
    usbredir: Vec<String>,
    /// Plug the sticks into this machine's vhci-hcd; needs root
    #[arg(long)]
    vhci: bool,
    /// Listen for other processes of this software at a socket
    #[arg(long, value_name = "PATH")]
    socket: Vec<String>,
    /// Take commands such as `unplug 0`, a line each, at a socket
    #[arg(long, value_name = "PATH")]
    control: Option<String>,
    /// Sticks of each face
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    sticks: u16,
    /// Built-in profile, or a file
    #[arg(long, value_name = "PROFILE", default_value = "ncs2")]
    profile: String,
    /// Seed of everything that is drawn by chance
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = crate::flags::seed)]
    seed: u64,
}

#[derive(Serialize)]
struct Calibrated<'a> {
    simulated: bool,
    profile: &'a str,
    median_error: f64,
    largest_error: f64,
    figures: Vec<Figure>,
}

#[derive(Serialize)]
struct Figure {
    name: String,
    trust: String,
    unit: String,
    published: f64,
    predicted: f64,
    error: f64,
    left_out: Option<f64>,
    left_out_error: Option<f64>,
}

#[derive(Serialize)]
struct Served {
    simulated: bool,
    sticks: Vec<Stick>,
}

#[derive(Serialize)]
struct Stick {
    id: String,
    face: String,
    profile: String,
    state: &'static str,
    connected: bool,
    inferences: u64,
    resets: u64,
    temperature_c: f64,
    throttle_level: u8,
}

/// Serves or calibrates.
pub fn sim(global: &Global, output: &Output, command: &SimCommand) -> Result<Outcome> {
    if global.sim.is_some() {
        return Err(Failure::usage(
            "--sim has no meaning here: `sim` makes the sticks itself",
            "leave --sim out",
        ));
    }
    match command {
        SimCommand::Serve(args) => serve_until_interrupted(global, output, args),
        SimCommand::Status(args) => print_status(output, args),
        SimCommand::Attach { sticks, profile, control } => {
            let (sticks, profile, control) = (*sticks, profile.clone(), control.clone());
            let args = ServeArgs {
                usbredir: Vec::new(),
                vhci: true,
                socket: Vec::new(),
                control,
                sticks,
                profile,
                seed: 0,
            };
            serve_until_interrupted(global, output, &args)
        }
        SimCommand::Calibrate { from: Some(report), .. } => print_fitted(output, report),
        SimCommand::Calibrate { profile, leave_one_out, .. } => {
            print_calibration(output, profile, *leave_one_out)
        }
    }
}

fn serve_until_interrupted(global: &Global, output: &Output, args: &ServeArgs) -> Result<Outcome> {
    let mut faces: Vec<Face> = args.usbredir.iter().map(|a| Face::Usbredir(Address::parse(a))).collect();
    faces.extend(args.socket.iter().map(|a| Face::Socket(Address::parse(a))));
    if args.vhci {
        faces.push(Face::Vhci);
    }
    if faces.is_empty() {
        return Err(Failure::usage(
            "expected a face to serve the sticks at, found none",
            "give --usbredir, --socket or --vhci",
        ));
    }
    open::load_profile(&args.profile)?;
    let interrupt = Interrupt::install()?;
    let server: Server = serve(ServeOptions {
        faces,
        sticks: usize::from(args.sticks),
        profile: args.profile.clone(),
        engine: match global.engine {
            Some(EngineArg::Hash) => Engine::Hash,
            Some(EngineArg::Execute) | None => Engine::Execute,
        },
        timing: match global.timing {
            Some(TimingArg::Zero) => Timing::Zero,
            Some(TimingArg::Model | TimingArg::Layers) | None => Timing::Model,
        },
        any_firmware: global.any_firmware,
        seed: args.seed,
        control: args.control.as_deref().map(Address::parse),
        faults: global.fault.as_deref().map(open::fault_plan).transpose()?,
        ..ServeOptions::default()
    })
    .map_err(|error| match error.kind() {
        ErrorKind::Unsupported if !args.vhci => {
            Failure::from(error).hint("name sockets that are not there yet, in a folder of yours")
        }
        ErrorKind::Unsupported => {
            Failure::from(error).hint("or serve them at --socket or --usbredir, which need no module")
        }
        ErrorKind::Permission if args.vhci => Failure::from(error).hint("run it as root"),
        ErrorKind::InvalidInput if global.fault.is_some() => open::refused_plan(error),
        ErrorKind::InvalidInput => Failure::from(error).hint("serve fewer sticks, or at fewer faces"),
        _ => error.into(),
    })?;
    output.remark(&format!("serving {} virtual sticks, simulated, until Ctrl-C", server.sticks()));
    // Its end of the channel lives in the signal handler, so this ends with Ctrl-C alone.
    let _ = interrupt.channel().recv();
    print_sticks(output, &server.status()?)?;
    Ok(Outcome::Ok)
}

fn print_status(output: &Output, args: &StatusArgs) -> Result<Outcome> {
    let socket: &Path = &args.socket;
    for (sticks, command) in [(&args.detach, Command::Unplug), (&args.attach, Command::Plug)] {
        for &n in sticks {
            face::command(socket, n, command)?;
        }
    }
    print_sticks(output, &face::status(socket)?)?;
    Ok(Outcome::Ok)
}

fn print_sticks(output: &Output, sticks: &[StickStatus]) -> Result<()> {
    if output.is_json() {
        let sticks = sticks.iter().enumerate().map(|(n, stick)| Stick {
            id: format!("sim{n}"),
            face: stick.face.clone(),
            profile: stick.profile.clone(),
            state: stick.state(),
            connected: stick.connected,
            inferences: stick.inferences,
            resets: stick.resets,
            temperature_c: stick.celsius,
            throttle_level: stick.level,
        });
        return output.document(&Served { simulated: true, sticks: sticks.collect() });
    }
    let headings = ["stick", "face", "state", "host", "inferences", "resets", "C", "level", "profile"];
    let mut table = output.table(&headings, &["stick", "face", "state", "host", "profile"]);
    for (n, stick) in sticks.iter().enumerate() {
        table.add_row([
            format!("sim{n}"),
            stick.face.clone(),
            stick.state().to_owned(),
            if stick.connected { "connected" } else { "none" }.to_owned(),
            grouped(stick.inferences),
            stick.resets.to_string(),
            format!("{:.1}", stick.celsius),
            stick.level.to_string(),
            crate::failure::one_line(&stick.profile),
        ]);
    }
    let mut text = output.lines(&table);
    text.push_str(&format!("  {}: no device is behind these\n", output.paint(Style::Warn, "simulated")));
    output.prose(&text)
}

#[derive(Serialize)]
struct Fitted {
    simulated: bool,
    profile_toml: String,
}

fn print_fitted(output: &Output, path: &Path) -> Result<Outcome> {
    let report = selftest::read(path)?;
    let fitted = crate::selftest::profile(&report).map_err(|why| {
        Failure::new(ErrorKind::InvalidInput, format!("{}: {why}", path.display()), "run the selftest again")
    })?;
    if output.is_json() {
        output.document(&Fitted { simulated: true, profile_toml: fitted })?;
    } else {
        output.text(&fitted)?;
    }
    Ok(Outcome::Ok)
}

fn print_calibration(output: &Output, name: &str, leave_one_out: bool) -> Result<Outcome> {
    let profile = open::load_profile(name)?;
    let spinner = output.spinner("fitting");
    let rows =
        if leave_one_out { calibrate::leave_one_out(&profile, 1)? } else { calibrate::rows(&profile)? };
    spinner.finish_and_clear();
    if rows.is_empty() {
        return Err(Failure::new(
            ErrorKind::NotFound,
            "no published figure to compare with",
            "see docs/virtual-stick.md",
        ));
    }
    if !output.is_json() {
        output.text(&calibrate::table(&rows))?;
        output.remark(&format!(
            "simulated: profile {name}; errors are simulated against published, no stick was measured"
        ));
        return Ok(Outcome::Ok);
    }
    let (median_error, largest_error) = calibrate::spread(rows.iter().map(calibrate::Row::error));
    let figures = rows
        .iter()
        .map(|row| Figure {
            name: row.name.clone(),
            trust: row.trust.clone(),
            unit: row.unit.clone(),
            published: row.published,
            predicted: row.predicted,
            error: row.error(),
            left_out: row.left_out,
            left_out_error: row.left_out_error(),
        })
        .collect();
    output.document(&Calibrated { simulated: true, profile: name, median_error, largest_error, figures })?;
    Ok(Outcome::Ok)
}
