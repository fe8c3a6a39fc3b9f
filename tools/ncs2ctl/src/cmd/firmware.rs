//! `ncs2ctl firmware list`, `verify`, `install` and `fetch`

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueHint};
use ncs2::ErrorKind;
use ncs2::transport::usb::firmware::{self, Firmware};
use serde::Serialize;
use zip::ZipArchive;

use crate::aside;
use crate::failure::{Failure, Outcome, Result};
use crate::flags::Global;
use crate::folders::{self, Scratch};
use crate::output::Output;
use crate::selftest::proven::{self, Proven};
use crate::vendor_compiler::REQUIREMENT;
use crate::wheel;

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
    /// Takes the firmware out of a wheel, a folder or a file of yours and puts it where sticks are booted from
    #[command(after_help = "\
Examples:
  ncs2ctl firmware install openvino-2021.4.2-*.whl
  ncs2ctl firmware install /opt/intel/openvino_2021

The wheel is that of the Python package openvino==2021.4.2 for Linux.")]
    Install {
        /// A wheel, a folder of an installed OpenVINO, or the .mvcmd file itself
        #[arg(value_name = "WHEEL|FOLDER|FILE", value_hint = ValueHint::AnyPath)]
        from: PathBuf,
    },
    /// Has pip fetch the vendor's wheel, takes the firmware out of it and installs it
    #[command(after_help = "\
Examples:
  ncs2ctl firmware fetch
  NCS2_PYTHON=python3.11 ncs2ctl firmware fetch

The wheel comes from where your pip fetches packages, 150 MB once; nothing of it is kept but the firmware.")]
    Fetch,
}

/// Larger entries of an archive are no firmware.
const LARGEST_BYTES: u64 = 64 << 20;
/// What is looked at of a folder: an installed OpenVINO has a tenth of this. A whole disk is searched by `find`, not here.
const LIMITS: Limits = Limits { deepest: 8, entries: 100_000 };

/// How far a search goes.
#[derive(Clone, Copy)]
struct Limits {
    /// Folders below the named one.
    deepest: usize,
    /// Files and folders in all.
    entries: usize,
}

/// What a search found.
#[derive(PartialEq, Eq, Debug)]
enum Search {
    At(PathBuf),
    Nowhere,
    /// It ended at the limit of entries.
    TooMuch,
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
    proven: Proven,
}

/// Lists or verifies.
pub fn firmware(global: &Global, output: &Output, command: &FirmwareCommand) -> Result<Outcome> {
    match command {
        FirmwareCommand::List => list(output),
        FirmwareCommand::Verify { file } => verify(global, output, file.as_ref()),
        FirmwareCommand::Install { from } => install(global, output, from),
        FirmwareCommand::Fetch => fetch(global, output),
    }
}

#[derive(Serialize)]
struct Installed {
    simulated: bool,
    from: String,
    file: String,
    size_bytes: usize,
    sha256: String,
    known: bool,
    release: Option<String>,
}

fn fetch(global: &Global, output: &Output) -> Result<Outcome> {
    let scratch = Scratch::beside(&folders::cache()?.join("firmware"))?;
    let spinner = output.spinner("pip fetches openvino==2021.4.2");
    let wheel = wheel::fetch(&REQUIREMENT, scratch.path(), "ncs2ctl firmware install WHEEL")?;
    spinner.finish_and_clear();
    install(global, output, &wheel)
}

fn install(global: &Global, output: &Output, from: &Path) -> Result<Outcome> {
    let (name, found) = take(from, global.any_firmware)?;
    let folder = firmware::data_folder().ok_or_else(|| {
        Failure::new(
            ErrorKind::NotFound,
            "expected a home folder to install the firmware under, found none",
            "set HOME or XDG_DATA_HOME",
        )
    })?;
    folders::make(&folder)?;
    let file = folder.join(name);
    aside::write(&file, &found.image)?;
    let release = found.known.map(|k| k.release);
    if output.is_json() {
        output.document(&Installed {
            simulated: false,
            from: from.display().to_string(),
            file: file.display().to_string(),
            size_bytes: found.image.len(),
            sha256: found.sha256,
            known: release.is_some(),
            release,
        })?;
    } else {
        let what = release.unwrap_or_else(|| "a release that this version does not know".into());
        output.prose(&format!("installed  {}: {} bytes, of {what}\n", file.display(), found.image.len()))?;
    }
    Ok(Outcome::Ok)
}

/// The firmware in `from` and the name to keep it under: the first that the manifest knows, else what the user insists on.
fn take(from: &Path, any_firmware: bool) -> Result<(String, Firmware)> {
    let names: Vec<String> = firmware::manifest().into_iter().map(|known| known.name).collect();
    let none = || {
        let depth =
            if from.is_dir() { format!(", {} folders deep at most,", LIMITS.deepest) } else { String::new() };
        Failure::new(
            ErrorKind::Firmware,
            format!("{}: expected {} in it{depth} found none", from.display(), names.join(" or ")),
            "give the wheel of openvino==2021.4.2 for Linux, or a folder that it was unpacked or installed to",
        )
    };
    let file_name =
        |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if from.is_dir() {
        let path = match search(from, &names, LIMITS) {
            Search::At(path) => path,
            Search::Nowhere => return Err(none()),
            Search::TooMuch => {
                return Err(Failure::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "{}: expected {} within {} files and folders, found none",
                        from.display(),
                        names.join(" or "),
                        LIMITS.entries
                    ),
                    "name the folder that OpenVINO was installed to, or the .mvcmd file itself",
                ));
            }
        };
        return Ok((file_name(&path), Firmware::read(&path, any_firmware)?));
    }
    let mut file = File::open(from).map_err(|e| Failure::file(from, "read", &e))?;
    let mut magic = [0; 2];
    // A file of fewer bytes is no archive, and no firmware either: reading it as one says so.
    let is_archive = file.read_exact(&mut magic).is_ok() && &magic == b"PK";
    if !is_archive {
        let known = Firmware::read(from, any_firmware)?;
        let name = known
            .known
            .as_ref()
            .map_or_else(|| names.first().cloned().unwrap_or_default(), |k| k.name.clone());
        return Ok((name, known));
    }
    let damaged = |e: std::io::Error| {
        Failure::new(
            ErrorKind::InvalidInput,
            format!("{}: a damaged archive: {e}", from.display()),
            "fetch the wheel again",
        )
    };
    let mut archive = ZipArchive::new(file).map_err(|e| damaged(e.into()))?;
    let entry = archive
        .file_names()
        .filter_map(|name| name.ok().map(|name| name.into_owned()))
        .find(|entry| names.contains(&file_name(Path::new(entry))))
        .ok_or_else(none)?;
    let mut image = Vec::new();
    archive
        .by_name(&entry)
        .map_err(std::io::Error::from)
        .and_then(|entry| entry.take(LARGEST_BYTES).read_to_end(&mut image))
        .map_err(damaged)?;
    Ok((file_name(Path::new(&entry)), Firmware::from_image(from, image, any_firmware)?))
}

/// The first file of one of these names, the nearest to `folder` first. Links are not followed, what may not be read is passed over.
fn search(folder: &Path, names: &[String], limits: Limits) -> Search {
    let mut folders = VecDeque::from([(folder.to_owned(), 0)]);
    let mut seen = 0;
    while let Some((folder, depth)) = folders.pop_front() {
        let entries = fs::read_dir(folder).into_iter().flatten().filter_map(std::result::Result::ok);
        for entry in entries {
            seen += 1;
            if seen > limits.entries {
                return Search::TooMuch;
            }
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_file() && names.iter().any(|name| entry.file_name() == name.as_str()) {
                return Search::At(entry.path());
            }
            if kind.is_dir() && depth < limits.deepest {
                folders.push_back((entry.path(), depth + 1));
            }
        }
    }
    Search::Nowhere
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
    output.prose(&text)?;
    Ok(outcome)
}

fn verify(global: &Global, output: &Output, file: Option<&PathBuf>) -> Result<Outcome> {
    let firmware = match file {
        Some(path) => Firmware::read(path, global.any_firmware)?,
        None => Firmware::find(global.firmware.as_deref(), global.any_firmware)?,
    };
    let proven = Proven::by(&proven::evidence(), &firmware.sha256);
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
            proven,
        })?;
    } else {
        let what = known.map_or_else(
            || "unknown to this version, accepted because of --any-firmware".to_owned(),
            |k| format!("{} of {}, size and sha256 right", k.name, k.release),
        );
        output.prose(&format!("{path}: {what}\nproven {}\n", proven.describe()))?;
    }
    Ok(Outcome::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_ends_at_its_limits() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let deep = folder.path().join("a/b/c");
        fs::create_dir_all(&deep).expect("made");
        fs::create_dir_all(folder.path().join("z")).expect("made");
        fs::write(deep.join("x.mvcmd"), "").expect("written");
        // A link to the folder above would have no end.
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a/up")).expect("linked");
        let names = ["x.mvcmd".to_owned()];
        let found = |deepest, entries| search(folder.path(), &names, Limits { deepest, entries });
        // Six entries: a, z; a/b, a/up; a/b/c; the file.
        assert_eq!(found(3, 100), Search::At(deep.join("x.mvcmd")));
        assert_eq!(found(3, 6), Search::At(deep.join("x.mvcmd")));
        assert_eq!(found(3, 5), Search::TooMuch);
        assert_eq!(found(2, 100), Search::Nowhere, "it lies three folders deep");
        assert_eq!(search(&folder.path().join("none"), &names, LIMITS), Search::Nowhere);
        // The nearest is the one.
        fs::write(folder.path().join("z/x.mvcmd"), "").expect("written");
        assert_eq!(found(8, 100), Search::At(folder.path().join("z/x.mvcmd")));
    }
}
