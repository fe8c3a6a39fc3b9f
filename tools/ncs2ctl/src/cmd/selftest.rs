//! `ncs2ctl selftest`: the report that a stranger's stick sends back.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ncs2::ErrorKind;
use ncs2::transport::usb::firmware::Firmware;
use ncs2_device::Engine;

use crate::aside;
use crate::failure::{Failure, Outcome, Result};
use crate::flags::Global;
use crate::interrupt::Interrupt;
use crate::open::Sticks;
use crate::output::Output;
use crate::selftest::{Exam, Mode, Report, replay};

/// `selftest`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl selftest --report report.json               # under a minute, harms nothing
  ncs2ctl selftest --full --yes --report report.json  # under three minutes, disturbs the stick
  ncs2ctl --sim 1 selftest                            # on a virtual stick: says simulated
  ncs2ctl selftest --replay report.json               # the recorded transfers once more, no stick

The report holds no serial number, host name, user name or path. Exits 1 when a step failed.
Ctrl-C skips the rest and resets the stick; the report is written, and it exits 1.")]
pub struct SelftestArgs {
    /// The steps that harm nothing, in under a minute; the default
    #[arg(long, conflicts_with_all = ["full", "heat"])]
    quick: bool,
    /// All steps, in under three minutes
    #[arg(long, conflicts_with = "heat")]
    full: bool,
    /// All steps, then load with temperature, level and service time each second
    #[arg(long)]
    heat: bool,
    /// Length of the load
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, requires = "heat")]
    heat_seconds: u64,
    /// Also the steps that disturb the stick: refused trigger, missing answers, stop in mid-tensor, watchdog
    #[arg(long)]
    yes: bool,
    /// Time for all steps but heat, instead of the mode's; what does not fit is skipped, and said
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(20..=86400))]
    within: Option<u64>,
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Replay the transfers of this report instead; needs no stick
    #[arg(long, value_name = "REPORT", conflicts_with_all = ["quick", "full", "heat", "yes", "within", "report"])]
    replay: Option<PathBuf>,
}

#[derive(serde::Serialize)]
struct Replayed {
    simulated: bool,
    transfers: usize,
}

/// Reads a report; the error names the file.
pub fn read(path: &std::path::Path) -> Result<Report> {
    let text = fs::read_to_string(path).map_err(|e| Failure::file(path, "read", &e))?;
    Report::parse(&text).map_err(|why| {
        Failure::new(
            ErrorKind::InvalidInput,
            format!("{}: expected a report of `ncs2ctl selftest`, found: {why}", path.display()),
            "give the file that --report wrote",
        )
    })
}

/// Runs or replays.
pub fn selftest(global: &Global, output: &Output, args: &SelftestArgs) -> Result<Outcome> {
    if let Some(path) = &args.replay {
        let report = read(path)?;
        let transfers = replay(&report).map_err(|why| {
            Failure::new(
                ErrorKind::Protocol,
                format!("{}: the replay differs: {why}", path.display()),
                "a report of another version may differ in what we send",
            )
        })?;
        if output.is_json() {
            output.document(&Replayed { simulated: report.simulated, transfers })?;
        } else {
            output.prose(&format!(
                "{transfers} transfers replayed as recorded; the findings are those of the report\n"
            ))?;
        }
        return Ok(Outcome::Ok);
    }
    if let Some(path) = &args.report {
        aside::check(path)?;
    }
    let mode = match (args.full, args.heat) {
        (_, true) => Mode::Heat(Duration::from_secs(args.heat_seconds)),
        (true, _) => Mode::Full,
        _ => Mode::Quick,
    };
    let (alive, mut ports) = Sticks::find(global, Engine::Execute)?.into_ports();
    if ports.is_empty() {
        return Err(Failure::new(ErrorKind::NotFound, "no stick to test", "see `ncs2ctl list`"));
    }
    let port = ports.remove(0);
    if !ports.is_empty() {
        let (id, others) = (port.id(), ports.len());
        output.warn(&format!("{id} alone is tested, not the {others} others; --device names another"));
    }
    let interrupt = Interrupt::install()?;
    let spinner = output.spinner("selftest");
    let seen = spinner.clone();
    // Real sticks are booted with this file; one that cannot be found fails at the first step, with its reason.
    let firmware = match port.profile() {
        Some(_) => None,
        None => Firmware::find(global.firmware.as_deref(), global.any_firmware).ok().map(|f| f.sha256),
    };
    let tell = move |step: &str| seen.set_message(format!("selftest: {step}"));
    let report = Exam::new(port, mode, args.yes, tell)
        .within(args.within.map(Duration::from_secs))
        .firmware(firmware)
        .stop_when(move || interrupt.is_pressed())
        .run();
    spinner.finish_and_clear();
    drop(alive);
    let written = args.report.as_deref().map_or(Ok(()), |path| aside::write(path, report.text().as_bytes()));
    if output.is_json() {
        output.text(&report.text())?;
    } else {
        output.prose(&report.summary())?;
        match &args.report {
            Some(_) if written.is_err() => {}
            Some(path) => output.remark(&format!("written to {}", path.display())),
            None => output.remark("--report FILE writes all of it, ready to be sent"),
        }
    }
    if let Err(failure) = written {
        return Ok(output.failed_behind(&failure));
    }
    Ok(if report.passed { Outcome::Ok } else { Outcome::Negative })
}
