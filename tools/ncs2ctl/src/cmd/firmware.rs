//! `ncs2ctl firmware list` and `ncs2ctl firmware verify`

use std::path::PathBuf;

use clap::{Subcommand, ValueHint};
use ncs2::transport::usb::firmware::{self, Firmware};
use serde::Serialize;

use crate::cli::Global;
use crate::failure::{Outcome, Result};
use crate::output::Output;

/// `firmware …`
#[derive(Subcommand, Debug)]
pub enum FirmwareCommand {
    /// Lists the files that this version knows, and those that it finds
    #[command(after_help = "\
Examples:
  ncs2ctl firmware list
  ncs2ctl firmware list --json | jq '.found[] | select(.known)'

Exits 1 when no known file is found.")]
    List,
    /// Checks size and hash of the file that would boot a stick, or of FILE
    #[command(after_help = "\
Examples:
  ncs2ctl firmware verify
  ncs2ctl firmware verify usb-ma2x8x.mvcmd")]
    Verify {
        /// The file
        #[arg(value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
    },
}

#[derive(Serialize)]
struct Listed {
    simulated: bool,
    manifest: Vec<Known>,
    found: Vec<Found>,
}

#[derive(Serialize)]
struct Known {
    name: String,
    release: String,
    size_bytes: u64,
    sha256: String,
    verified_on_hardware: bool,
}

#[derive(Serialize)]
struct Found {
    file: String,
    known: bool,
    sha256: Option<String>,
    problem: Option<String>,
}

#[derive(Serialize)]
struct Verified {
    simulated: bool,
    file: String,
    size_bytes: usize,
    sha256: String,
    known: bool,
    release: Option<String>,
    verified_on_hardware: Option<bool>,
}

/// Lists or verifies.
pub fn firmware(global: &Global, output: &Output, command: &FirmwareCommand) -> Result<Outcome> {
    match command {
        FirmwareCommand::List => list(output),
        FirmwareCommand::Verify { file } => verify(global, output, file.as_ref()),
    }
}

fn list(output: &Output) -> Result<Outcome> {
    let manifest = firmware::manifest();
    let found: Vec<Found> = firmware::candidates()
        .into_iter()
        .filter(|path| path.is_file())
        .map(|path| {
            let file = path.display().to_string();
            match Firmware::read(&path, true) {
                Ok(f) => Found { file, known: f.known.is_some(), sha256: Some(f.sha256), problem: None },
                Err(e) => Found { file, known: false, sha256: None, problem: Some(e.to_string()) },
            }
        })
        .collect();
    let outcome = if found.iter().any(|f| f.known) { Outcome::Ok } else { Outcome::Negative };
    if output.is_json() {
        let manifest = manifest
            .into_iter()
            .map(|k| Known {
                name: k.name,
                release: k.release,
                size_bytes: k.bytes,
                sha256: k.sha256,
                verified_on_hardware: k.verified_on_hardware,
            })
            .collect();
        output.document(&Listed { simulated: false, manifest, found })?;
        return Ok(outcome);
    }
    let mut text = String::new();
    for known in &manifest {
        let tried = if known.verified_on_hardware { "boots sticks" } else { "not tried on hardware" };
        text.push_str(&format!(
            "known  {} of {}, {} bytes, {tried}\n",
            known.name, known.release, known.bytes
        ));
    }
    for f in &found {
        let verdict = match (&f.problem, f.known) {
            (Some(problem), _) => crate::failure::one_line(problem),
            (None, true) => "known, hash right".to_owned(),
            (None, false) => "NOT a file that this version knows".to_owned(),
        };
        text.push_str(&format!("found  {}: {verdict}\n", f.file));
    }
    if found.is_empty() {
        text.push_str("found  none\n");
        output.remark("Name one with --firmware FILE or NCS2_FIRMWARE.");
    }
    output.text(&text)?;
    Ok(outcome)
}

fn verify(global: &Global, output: &Output, file: Option<&PathBuf>) -> Result<Outcome> {
    let firmware = match file {
        Some(path) => Firmware::read(path, global.any_firmware)?,
        None => Firmware::find(global.firmware.as_deref(), global.any_firmware)?,
    };
    let (known, path) = (firmware.known, firmware.path.display().to_string());
    if output.is_json() {
        output.document(&Verified {
            simulated: false,
            file: path,
            size_bytes: firmware.image.len(),
            sha256: firmware.sha256,
            release: known.as_ref().map(|k| k.release.clone()),
            verified_on_hardware: known.as_ref().map(|k| k.verified_on_hardware),
            known: known.is_some(),
        })?;
    } else {
        let what = known.map_or_else(
            || "unknown to this version, accepted because of --any-firmware".to_owned(),
            |k| format!("{} of {}, size and sha256 right", k.name, k.release),
        );
        output.text(&format!("{path}: {what}\n"))?;
    }
    Ok(Outcome::Ok)
}
