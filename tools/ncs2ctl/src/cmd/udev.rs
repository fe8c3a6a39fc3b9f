//! `ncs2ctl udev print` and `ncs2ctl udev install`

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueHint};
use ncs2::ErrorKind;
use serde::Serialize;

use crate::failure::{Failure, Outcome, Result};
use crate::output::Output;

/// The rule.
pub const RULE: &str = include_str!("../../../../udev/70-ncs2.rules");
/// Memory of usbfs.
const MODULE: &str = include_str!("../../../../udev/modprobe.d/ncs2.conf");
/// Where they go.
const FILES: [(&str, &str); 2] =
    [("etc/udev/rules.d/70-ncs2.rules", RULE), ("etc/modprobe.d/ncs2.conf", MODULE)];

/// `udev …`
#[derive(Subcommand, Debug)]
pub enum UdevCommand {
    /// Prints the udev rule
    #[command(after_help = "\
Examples:
  ncs2ctl udev print
  ncs2ctl udev print --json | jq -r .rule")]
    Print,
    /// Writes the udev rule and the setting of usbfs memory; needs root, and says what it wrote
    #[command(after_help = "\
Examples:
  sudo ncs2ctl udev install
  ncs2ctl udev install --root image/    # into the file system of another machine")]
    Install {
        /// Write below this folder instead of /
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        root: Option<PathBuf>,
    },
}

#[derive(Serialize)]
struct Printed {
    simulated: bool,
    rule: &'static str,
}

#[derive(Serialize)]
struct Installed {
    simulated: bool,
    files: Vec<Written>,
    next: Vec<&'static str>,
}

#[derive(Serialize)]
struct Written {
    file: String,
    /// False where it was there already, word for word.
    changed: bool,
}

/// Prints or installs.
pub fn udev(output: &Output, command: &UdevCommand) -> Result<Outcome> {
    match command {
        UdevCommand::Print if output.is_json() => {
            output.document(&Printed { simulated: false, rule: RULE })?
        }
        UdevCommand::Print => output.text(RULE)?,
        UdevCommand::Install { root } => install(output, root.as_deref())?,
    }
    Ok(Outcome::Ok)
}

fn install(output: &Output, root: Option<&Path>) -> Result {
    let mut files = Vec::new();
    for (path, text) in FILES {
        let path = root.unwrap_or(Path::new("/")).join(path);
        let changed = fs::read(&path).map_or(true, |there| there != text.as_bytes());
        if changed {
            write(&path, text).map_err(|e| match e.kind() {
                std::io::ErrorKind::PermissionDenied => Failure::new(
                    ErrorKind::Permission,
                    format!("{}: may not write it", path.display()),
                    "run it as root: sudo ncs2ctl udev install",
                ),
                _ => Failure::file(&path, "write", &e),
            })?;
        }
        files.push(Written { file: path.display().to_string(), changed });
    }
    // Another machine's udev reads the rule when that machine starts.
    let next = match root {
        Some(_) => Vec::new(),
        None => vec![
            "udevadm control --reload",
            "udevadm trigger --subsystem-match=usb --attr-match=idVendor=03e7",
            "plug the sticks in again",
        ],
    };
    if output.is_json() {
        return output.document(&Installed { simulated: false, files, next });
    }
    let mut text = String::new();
    for Written { file, changed } in &files {
        text.push_str(&format!("{} {file}\n", if *changed { "wrote" } else { "unchanged" }));
    }
    for step in next {
        text.push_str(&format!("next: {step}\n"));
    }
    output.prose(&text)
}

/// Aside, then renamed: udev never reads half a rule.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // udev reads only names that end with .rules, modprobe only such that end with .conf.
    let aside = path.with_extension("new");
    fs::write(&aside, text)?;
    fs::rename(&aside, path).inspect_err(|_| drop(fs::remove_file(&aside)))
}
