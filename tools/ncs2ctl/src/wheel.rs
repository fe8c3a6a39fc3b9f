//! Python wheels, for the libraries in them: fetched by pip, checked for name, version and machine, unpacked.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use ncs2::ErrorKind;
use zip::ZipArchive;

use crate::failure::{Failure, Result};

/// A package that pip can fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Requirement {
    /// Name in the index.
    pub name: &'static str,
    /// The one version that will do.
    pub version: &'static str,
    /// Python that the wheel is asked for; the libraries in it do not care.
    pub python: &'static str,
    /// Platform tags that pip is asked for.
    pub platform: &'static str,
    /// Machine of the libraries inside, as ELF numbers them.
    pub machine: u16,
}

/// ELF machine numbers.
pub mod machine {
    /// x86-64.
    pub const X86_64: u16 = 62;
    /// 64-bit ARM.
    pub const AARCH64: u16 = 183;

    /// In words.
    pub fn name(machine: u16) -> String {
        match machine {
            X86_64 => "x86-64".into(),
            AARCH64 => "aarch64".into(),
            3 => "x86 (32 bits)".into(),
            40 => "ARM (32 bits)".into(),
            other => format!("machine {other}"),
        }
    }
}

/// A wheel, open.
pub struct Wheel {
    path: PathBuf,
    archive: ZipArchive<File>,
    requirement: Requirement,
}

/// Has pip fetch the wheel into `folder`; `ours` is our own command that takes a wheel instead.
pub fn fetch(requirement: &Requirement, folder: &Path, ours: &str) -> Result<PathBuf> {
    let python =
        std::env::var_os("NCS2_PYTHON").filter(|v| !v.is_empty()).unwrap_or_else(|| "python3".into());
    let package = format!("{}=={}", requirement.name, requirement.version);
    let mut command = Command::new(&python);
    command.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
    ]);
    command.args(["--only-binary=:all:", "--python-version", requirement.python]);
    command.args(["--platform", requirement.platform, "--dest"]).arg(folder).arg(&package);
    let python = Path::new(&python).display();
    let way_out =
        format!("install Python with pip, or fetch the wheel of {package} elsewhere and run `{ours}`");
    let output = command.output().map_err(|e| {
        let message = match e.kind() {
            io::ErrorKind::NotFound => format!("expected {python} to fetch {package} with pip, found none"),
            _ => format!("{python}: does not start: {e}"),
        };
        Failure::new(ErrorKind::NotFound, message, way_out.clone())
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("No module named pip") {
            let message = format!("expected pip in {python} to fetch {package}, found none");
            return Err(Failure::new(ErrorKind::NotFound, message, way_out));
        }
        if said.contains("No space left on device") {
            return Err(Failure::file(folder, "write", &io::ErrorKind::StorageFull.into()));
        }
        let line = said.lines().rev().find(|l| l.starts_with("ERROR:")).or_else(|| said.lines().last());
        let line = line.unwrap_or("it does not say why").trim_start_matches("ERROR:").trim();
        return Err(Failure::new(
            ErrorKind::NotFound,
            format!("pip could not fetch {package}: {line}"),
            format!("check the network, or fetch the wheel elsewhere and run `{ours}`"),
        ));
    }
    let entries = std::fs::read_dir(folder).map_err(|e| Failure::file(folder, "read", &e))?;
    let wheel =
        entries.filter_map(|e| Some(e.ok()?.path())).find(|p| p.extension().is_some_and(|e| e == "whl"));
    wheel.ok_or_else(|| {
        Failure::new(
            ErrorKind::NotFound,
            format!("pip says that it fetched {package}, and there is no wheel"),
            format!("fetch it elsewhere and run `{ours}`"),
        )
    })
}

/// Names in an archive; those that are no text are nobody's.
fn names(archive: &ZipArchive<File>) -> Vec<String> {
    archive.file_names().filter_map(|name| name.ok().map(|name| name.into_owned())).collect()
}

impl Wheel {
    /// Opens a wheel and checks that it is the one that is required.
    pub fn open(path: &Path, requirement: &Requirement) -> Result<Self> {
        let wanted = format!("{} {}", requirement.name, requirement.version);
        let wrong = |found: String| {
            Failure::new(
                ErrorKind::InvalidInput,
                format!("{}: expected a wheel of {wanted}, found {found}", path.display()),
                format!("give a wheel of {wanted}, or none: pip then fetches it"),
            )
        };
        let file = File::open(path).map_err(|e| Failure::file(path, "read", &e))?;
        if file.metadata().is_ok_and(|m| m.is_dir()) {
            return Err(wrong("a folder".into()));
        }
        let mut archive = ZipArchive::new(file).map_err(|e| wrong(format!("no wheel ({e})")))?;
        let is_metadata = |n: &String| n.ends_with(".dist-info/METADATA") && n.matches('/').count() == 1;
        let Some(name) = names(&archive).into_iter().find(is_metadata) else {
            return Err(wrong("an archive that is no wheel".into()));
        };
        let mut text = String::new();
        archive
            .by_name(&name)
            .map_err(io::Error::from)
            .and_then(|entry| entry.take(1 << 20).read_to_string(&mut text))
            .map_err(|e| wrong(format!("a damaged one ({e})")))?;
        let field = |key: &str| {
            text.lines()
                .take_while(|line| !line.is_empty())
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
                .unwrap_or("?")
                .trim()
        };
        if (field("Name"), field("Version")) != (requirement.name, requirement.version) {
            return Err(wrong(format!("{} {}", field("Name"), field("Version"))));
        }
        Ok(Wheel { path: path.to_path_buf(), archive, requirement: *requirement })
    }

    /// Names of the files in `folder` of the wheel, without those in folders below.
    #[cfg(feature = "openvino")]
    pub fn names_in(&self, folder: &str) -> Vec<String> {
        let inside = |name: &String| {
            let name = name.strip_prefix(folder)?.strip_prefix('/')?;
            (!name.is_empty() && !name.contains('/')).then(|| name.to_owned())
        };
        let mut names: Vec<String> = names(&self.archive).iter().filter_map(inside).collect();
        names.sort();
        names
    }

    /// Unpacks `folder/name` of the wheel to `to/name`; gives its size. Shared libraries must be of the right machine.
    pub fn unpack(&mut self, folder: &str, name: &str, to: &Path) -> Result<u64> {
        let requirement = self.requirement;
        let path = self.path.display().to_string();
        let damaged = |what: String, hint: &str| {
            Failure::new(ErrorKind::InvalidInput, format!("{path}: {folder}/{name}: {what}"), hint.to_owned())
        };
        let again = "fetch the wheel again";
        let mut entry = self
            .archive
            .by_name(&format!("{folder}/{name}"))
            .map_err(|e| damaged(format!("expected in the wheel, found none ({e})"), again))?;
        let target = to.join(name);
        let failed = |e: io::Error| Failure::file(&target, "write", &e);
        let mut out = File::create(&target).map_err(failed)?;
        let mut head = [0; 20];
        let mut size = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            // Reading fails for a damaged wheel, writing for a full disk: the user has to know which.
            let n = entry.read(&mut buffer).map_err(|e| damaged(format!("damaged ({e})"), again))?;
            if n == 0 {
                break;
            }
            if size == 0 {
                let length = n.min(head.len());
                head[..length].copy_from_slice(&buffer[..length]);
            }
            io::Write::write_all(&mut out, &buffer[..n]).map_err(failed)?;
            size += n as u64;
        }
        if name.contains(".so") {
            let found = u16::from_le_bytes([head[18], head[19]]);
            if !head.starts_with(b"\x7fELF") {
                return Err(damaged("expected a shared library, found none".into(), again));
            }
            if found != requirement.machine {
                let (wanted, found) = (machine::name(requirement.machine), machine::name(found));
                let hint = format!("give the wheel for Linux on {wanted}, or none: pip then fetches it");
                return Err(damaged(format!("expected {wanted}, found {found}"), &hint));
            }
        }
        Ok(size)
    }
}
