//! The vendor's firmware file: where it may lie, and whether it is one that we know.
//!
//! No firmware is part of this software. `firmware/manifest.toml` names known files by size and SHA-256 and says which
//! wire variant each speaks; a file that it does not name is refused for a real stick unless the user insists.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, ErrorKind, Result};
use crate::wire::WireVersion;

/// Environment variable that names the file.
pub const FIRMWARE_VARIABLE: &str = "NCS2_FIRMWARE";
/// Larger files are no firmware of this stick.
const LARGEST_BYTES: u64 = 64 << 20;
const OP: &str = "find firmware";

/// A file that the manifest knows.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// File name in the vendor's packages.
    pub name: String,
    /// Which release it is from.
    pub release: String,
    /// Size of the file.
    pub bytes: u64,
    /// Hash of the file, lower-case hex.
    pub sha256: String,
    /// Variant that it speaks, as the manifest writes it.
    wire: String,
    /// True when a field report has shown that it boots a stick with this driver.
    pub verified_on_hardware: bool,
}

impl Known {
    /// Variant that it speaks.
    pub fn version(&self) -> Option<WireVersion> {
        (self.wire == "V1").then_some(WireVersion::V1)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    firmware: Vec<Known>,
}

/// Every file that this version knows.
pub fn manifest() -> Vec<Known> {
    // A test reads it, so a damaged manifest does not get as far as a user.
    toml::from_str::<Manifest>(include_str!("../../../firmware/manifest.toml"))
        .map(|m| m.firmware)
        .unwrap_or_default()
}

/// A firmware image, read and looked up.
#[derive(Clone, Debug)]
pub struct Firmware {
    /// Where it was found.
    pub path: PathBuf,
    /// The file.
    pub image: Vec<u8>,
    /// Hash, lower-case hex.
    pub sha256: String,
    /// Its manifest entry; `None` for an unknown file that the user insisted on.
    pub known: Option<Known>,
}

/// What was asked for, the variable included, and what was found.
type Asked = (Option<PathBuf>, Option<OsString>, bool);
static LAST: Mutex<Option<(Asked, Weak<Firmware>)>> = Mutex::new(None);

impl Firmware {
    /// Variant of the protocol to speak with it: `chosen` by the user, else the manifest's if it was proven with a real
    /// firmware. Variants that are known from source alone are refused. A file that the manifest does not name, which the
    /// user insisted on, is spoken to in the proven one.
    pub fn wire(&self, chosen: Option<WireVersion>) -> Result<WireVersion> {
        match (chosen, &self.known) {
            (Some(chosen), _) => Ok(chosen),
            (None, None) => Ok(WireVersion::default()),
            (None, Some(known)) => known.version().ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, OP).detail(format!(
                    "{}: release {} speaks wire variant {}, which was never proven: install another firmware, or \
                     choose a variant with --wire",
                    self.path.display(),
                    known.release,
                    known.wire
                ))
            }),
        }
    }

    /// Reads `path`. A file that the manifest does not name is refused unless `any_firmware`.
    pub fn read(path: &Path, any_firmware: bool) -> Result<Self> {
        let failed =
            |kind, detail: String| Error::new(kind, OP).detail(format!("{}: {detail}", path.display()));
        let size =
            fs::metadata(path).map_err(|e| failed(kind_of(&e), "cannot be read".into()).caused_by(e))?.len();
        if size == 0 || size > LARGEST_BYTES {
            return Err(failed(ErrorKind::Firmware, format!("{size} bytes are no firmware of this stick")));
        }
        let image = fs::read(path).map_err(|e| failed(kind_of(&e), "cannot be read".into()).caused_by(e))?;
        Self::from_image(path, image, any_firmware)
    }

    /// The same for an image that was read already, out of the archive or file `path`.
    pub fn from_image(path: &Path, image: Vec<u8>, any_firmware: bool) -> Result<Self> {
        let failed =
            |kind, detail: String| Error::new(kind, OP).detail(format!("{}: {detail}", path.display()));
        let sha256: String = Sha256::digest(&image).iter().map(|byte| format!("{byte:02x}")).collect();
        let known = manifest().into_iter().find(|k| k.bytes == image.len() as u64 && k.sha256 == sha256);
        if known.is_none() && !any_firmware {
            return Err(failed(
                ErrorKind::Firmware,
                format!(
                    "{} bytes, sha256 {sha256}: not a firmware that this version knows ({}). \
                     Install the known one with `ncs2ctl firmware install WHEEL`, or insist with --any-firmware",
                    image.len(),
                    manifest()
                        .iter()
                        .map(|k| format!("{} of {}", k.name, k.release))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            ));
        }
        Ok(Firmware { path: path.to_path_buf(), image, sha256, known })
    }

    /// As [`Firmware::find`], for sticks that boot at the same time: the file is read and hashed for the first of them, and
    /// kept as long as one uses it.
    pub(super) fn find_shared(explicit: Option<&Path>, any_firmware: bool) -> Result<Arc<Self>> {
        // Held while it is read: the others want the same.
        let mut last = LAST.lock();
        let asked = (explicit.map(Path::to_path_buf), std::env::var_os(FIRMWARE_VARIABLE), any_firmware);
        if let Some((of, kept)) = &*last
            && *of == asked
            && let Some(firmware) = kept.upgrade()
        {
            return Ok(firmware);
        }
        let firmware = Arc::new(Self::find(explicit, any_firmware)?);
        *last = Some((asked, Arc::downgrade(&firmware)));
        Ok(firmware)
    }

    /// Looks in this order: `explicit`, `NCS2_FIRMWARE`, the user's data folder, an installed OpenVINO. The first two
    /// must be good when they are given; of the others the first known file is taken.
    pub fn find(explicit: Option<&Path>, any_firmware: bool) -> Result<Self> {
        if let Some(path) = explicit {
            return Self::read(path, any_firmware);
        }
        if let Some(path) = std::env::var_os(FIRMWARE_VARIABLE).filter(|v| !v.is_empty()) {
            return Self::read(Path::new(&path), any_firmware);
        }
        let candidates = candidates();
        let mut refused = None;
        for path in candidates.iter().filter(|path| path.is_file()) {
            match Self::read(path, any_firmware) {
                Ok(firmware) => return Ok(firmware),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or_else(|| {
            Error::new(ErrorKind::Firmware, OP).detail(format!(
                "no firmware file found (looked at --firmware, {FIRMWARE_VARIABLE}, {}): take it out of the \
                 openvino==2021.4.2 wheel with `ncs2ctl firmware install WHEEL`",
                candidates.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
            ))
        }))
    }
}

/// Folder that `firmware install` writes to: `$XDG_DATA_HOME/ncs2/firmware`, by default under `~/.local/share`.
pub fn data_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let data = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")))?;
    Some(data.join("ncs2").join("firmware"))
}

/// Paths that are looked at when the user names none.
pub fn candidates() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = data_folder().into_iter().collect();
    folders.extend(
        ["OPENVINO_INSTALL_DIR", "INTEL_OPENVINO_DIR"]
            .iter()
            .filter_map(|name| std::env::var_os(name).filter(|v| !v.is_empty()))
            .map(PathBuf::from)
            .chain(["/opt/intel/openvino_2021".into(), "/opt/intel/openvino".into()])
            .map(|root| root.join("deployment_tools/inference_engine/lib/intel64")),
    );
    let names: Vec<String> = manifest().into_iter().map(|known| known.name).collect();
    folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name))).collect()
}

fn kind_of(error: &std::io::Error) -> ErrorKind {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => ErrorKind::Permission,
        _ => ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifest_reads_and_names_what_it_must() {
        let manifest = manifest();
        assert!(!manifest.is_empty(), "the manifest must parse");
        for known in manifest {
            assert!(known.version().is_some(), "{}: unknown wire variant", known.name);
            assert_eq!(known.sha256.len(), 64);
            assert!(known.sha256.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()));
        }
    }

    #[test]
    fn unknown_file_is_refused_by_hash_and_taken_when_the_user_insists() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x.mvcmd");
        fs::write(&path, b"no firmware").expect("written");
        let error = Firmware::read(&path, false).expect_err("unknown");
        assert_eq!(error.kind(), ErrorKind::Firmware);
        assert!(error.to_string().contains("--any-firmware"), "{error}");
        let firmware = Firmware::read(&path, true).expect("insisted");
        assert_eq!((firmware.known, firmware.image.len()), (None, 11));
    }

    #[test]
    fn sticks_that_boot_together_share_one_image() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x.mvcmd");
        fs::write(&path, b"first").expect("written");
        let first = Firmware::find_shared(Some(&path), true).expect("insisted");
        let second = Firmware::find_shared(Some(&path), true).expect("insisted");
        assert!(Arc::ptr_eq(&first, &second));
        assert!(Firmware::find_shared(Some(&path), false).is_err(), "another question");
        drop((first, second));
        fs::write(&path, b"another").expect("written");
        assert_eq!(Firmware::find_shared(Some(&path), true).expect("read anew").image, b"another");
    }

    #[test]
    fn wire_variant_that_nobody_proved_is_refused_until_it_is_chosen() {
        let path = Path::new("x.mvcmd");
        let mut firmware = Firmware::from_image(path, vec![1, 2, 3], true).expect("insisted");
        assert_eq!(firmware.wire(None).expect("the proven one"), WireVersion::V1);
        firmware.known = Some(Known {
            name: "x.mvcmd".into(),
            release: "2022.3".into(),
            bytes: 3,
            sha256: String::new(),
            wire: "V2".into(),
            verified_on_hardware: false,
        });
        let error = firmware.wire(None).expect_err("known from source alone");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("V2") && error.to_string().contains("--wire"), "{error}");
        assert_eq!(firmware.wire(Some(WireVersion::V1)).expect("chosen"), WireVersion::V1);
    }

    #[test]
    fn missing_and_empty_files_are_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let missing = folder.path().join("none.mvcmd");
        let error = Firmware::read(&missing, true).expect_err("missing");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("none.mvcmd"), "{error}");
        let empty = folder.path().join("empty.mvcmd");
        fs::write(&empty, b"").expect("written");
        assert_eq!(Firmware::read(&empty, true).expect_err("empty").kind(), ErrorKind::Firmware);
    }
}
