//! Virtual sticks behind usb-redir or vhci, until standard input ends.
//!
//! `sim_serve [--usbredir SOCKET|PORT|DEVICE] [--vhci] [--socket SOCKET] [--control SOCKET] [--sticks N] [--profile P] [--engine hash|execute]
//! [--timing model|zero] [--any-firmware] [--seed N]`. The VM test's own server: it ends with its
//! standard input. People use `ncs2ctl sim serve`.

use std::io::Read as _;
use std::process::ExitCode;

use ncs2_device::face::{Address, Face, ServeOptions, serve};
use ncs2_device::{Engine, Timing};

fn options(mut args: impl Iterator<Item = String>) -> Result<ServeOptions, String> {
    let mut options = ServeOptions { engine: Engine::Hash, ..ServeOptions::default() };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg}: a value is missing"));
        match arg.as_str() {
            "--usbredir" => options.faces.push(Face::Usbredir(Address::parse(&value()?))),
            "--socket" => options.faces.push(Face::Socket(Address::parse(&value()?))),
            "--vhci" => options.faces.push(Face::Vhci),
            "--control" => options.control = Some(Address::parse(&value()?)),
            "--sticks" => options.sticks = value()?.parse().map_err(|e| format!("{arg}: {e}"))?,
            "--seed" => options.seed = value()?.parse().map_err(|e| format!("{arg}: {e}"))?,
            "--profile" => options.profile = value()?,
            "--any-firmware" => options.any_firmware = true,
            "--engine" => {
                options.engine = match value()?.as_str() {
                    "hash" => Engine::Hash,
                    "execute" => Engine::Execute,
                    other => return Err(format!("{arg} {other}: expected hash or execute")),
                }
            }
            "--timing" => {
                options.timing = match value()?.as_str() {
                    "model" => Timing::Model,
                    "zero" => Timing::Zero,
                    other => return Err(format!("{arg} {other}: expected model or zero")),
                }
            }
            _ => return Err(format!("unknown option {arg}")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match options(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("sim_serve: {why}");
            return ExitCode::from(64);
        }
    };
    let server = match serve(options) {
        Ok(server) => server,
        Err(error) => {
            eprintln!("sim_serve: {error}");
            return ExitCode::from(2);
        }
    };
    println!("serving {} simulated sticks", server.sticks());
    // Whoever started this holds the other end: when he goes, this goes.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    match server.status() {
        Ok(sticks) => {
            for (n, stick) in sticks.iter().enumerate() {
                println!("{n} {stick}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("sim_serve: {error}");
            ExitCode::from(2)
        }
    }
}
