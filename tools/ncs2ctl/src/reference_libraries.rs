//! OpenVINO's libraries for the reference on the CPU: found where they are installed, or unpacked from a wheel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ncs2::ErrorKind;
use ncs2::reference::{self, Libraries, Mended};

use crate::failure::{Failure, Result};
use crate::folders::{self, Scratch};
use crate::wheel::{self, Requirement, Wheel, machine};

const WHEEL_FOLDER: &str = "openvino/libs";
/// What a wheel has that the CPU does without: other devices, other formats of models.
const LEFT_OUT: [&str; 8] =
    ["_gpu_", "_npu_", "_jax_", "_paddle_", "_pytorch_", "_tensorflow_", "_proxy", "cache.json"];
const COMMAND: &str = "ncs2ctl setup openvino";

/// Libraries that load, and what was done for it.
pub struct Ready {
    /// Where.
    pub libraries: Libraries,
    /// What they say of themselves.
    pub version: String,
    /// Whether the missing link had to be made; `None` where the folder may not be written to.
    pub mended: Option<Mended>,
    /// They were unpacked just now.
    pub unpacked: bool,
}

/// Libraries that are there already; an error says how to get them.
pub fn find() -> Result<Ready> {
    match installed() {
        Some(libraries) => ready(libraries, false),
        None => Err(Failure::new(
            ErrorKind::NotFound,
            "expected OpenVINO's libraries for the reference on the CPU, found none",
            format!("run `{COMMAND}`: pip then fetches them (50 MB); or compare with --reference FILE.npy"),
        )),
    }
}

/// From a wheel or a folder that the user names; else what is installed; else what pip fetches.
pub fn setup(from: Option<&Path>) -> Result<Ready> {
    match from {
        Some(folder) if folder.is_dir() => match Libraries::under(folder) {
            Some(libraries) => ready(libraries, false),
            None => Err(Failure::new(
                ErrorKind::NotFound,
                format!("{}: expected libopenvino_c.so in it, found none", folder.display()),
                "name the folder of the installation, or of the libraries",
            )),
        },
        Some(wheel) => unpack(Some(wheel)),
        // What is installed and does not load, because it is too old, is no reason to stop.
        None => match installed().map(|libraries| ready(libraries, false)) {
            Some(Ok(found)) => Ok(found),
            _ => unpack(None),
        },
    }
}

fn installed() -> Option<Libraries> {
    Libraries::find().or_else(|| Libraries::under(&python_package()?))
}

/// Where pip put the package, if it did.
fn python_package() -> Option<PathBuf> {
    const ASK: &str = "import importlib.util as u; s = u.find_spec('openvino'); \
                       print(list(s.submodule_search_locations)[0] if s else '')";
    let python =
        std::env::var_os("NCS2_PYTHON").filter(|v| !v.is_empty()).unwrap_or_else(|| "python3".into());
    let output = Command::new(python).args(["-c", ASK]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(text.trim())).filter(|path| output.status.success() && path.is_absolute())
}

fn ready(libraries: Libraries, unpacked: bool) -> Result<Ready> {
    let version = reference::load(&libraries)?;
    // A folder of the system's may be closed to us; we load the library by its full name and do not need the link.
    let mended = libraries.mend().ok();
    Ok(Ready { libraries, version, mended, unpacked })
}

fn requirement(arch: &str) -> Result<Requirement> {
    let (platform, machine) = match arch {
        "x86_64" => ("manylinux2014_x86_64", machine::X86_64),
        "aarch64" => ("manylinux_2_31_aarch64", machine::AARCH64),
        other => {
            return Err(Failure::new(
                ErrorKind::Unsupported,
                format!("there are no wheels of OpenVINO for {other}"),
                "build OpenVINO and set OPENVINO_INSTALL_DIR, or compare with --reference FILE.npy",
            ));
        }
    };
    Ok(Requirement { name: "openvino", version: "2025.4.1", python: "3.11", platform, machine })
}

fn unpack(wheel: Option<&Path>) -> Result<Ready> {
    let requirement = requirement(std::env::consts::ARCH)?;
    let folder = folders::data()?.join("openvino");
    let scratch = Scratch::beside(&folder)?;
    let down = scratch.path().join("wheel");
    let fetched;
    let wheel = match wheel {
        Some(path) => path,
        None => {
            folders::make(&down)?;
            fetched = wheel::fetch(&requirement, &down, &format!("{COMMAND} WHEEL"))?;
            &fetched
        }
    };
    let mut archive = Wheel::open(wheel, &requirement)?;
    let names = archive.names_in(WHEEL_FOLDER);
    if !names.iter().any(|name| name.starts_with("libopenvino_c.so")) {
        return Err(Failure::new(
            ErrorKind::InvalidInput,
            format!("{}: expected libopenvino_c.so in {WHEEL_FOLDER}, found none", wheel.display()),
            "fetch the wheel again",
        ));
    }
    for name in names.iter().filter(|name| !LEFT_OUT.iter().any(|part| name.contains(part))) {
        archive.unpack(WHEEL_FOLDER, name, scratch.path())?;
    }
    if down.exists() {
        fs::remove_dir_all(&down).map_err(|e| Failure::file(&down, "remove", &e))?;
    }
    scratch.become_folder(&folder)?;
    let libraries = Libraries::under(&folder).ok_or_else(|| {
        let message = format!("{}: expected the libraries just unpacked, found none", folder.display());
        Failure::new(ErrorKind::NotFound, message, "try again")
    })?;
    ready(libraries, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_without_wheels_are_told_what_to_do() {
        assert_eq!(requirement("aarch64").map(|r| r.machine).ok(), Some(machine::AARCH64));
        let Err(Failure::Report(report)) = requirement("riscv64") else { panic!("there are none") };
        assert!(report.message.contains("riscv64") && report.hint.contains("--reference"));
    }
}
