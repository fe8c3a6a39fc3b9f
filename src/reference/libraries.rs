//! Where OpenVINO's shared libraries lie.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The name that other programs look for, which wheels do not carry.
pub const MENDED_LINK: &str = "libopenvino_c.so";
/// Where the libraries stand inside an installation, a wheel's folder, or a folder of their own.
const SUBFOLDERS: [&str; 7] =
    ["", "runtime/lib/intel64", "runtime/lib/aarch64", "openvino/libs", "libs", "lib", "lib64"];
/// Where system packages put them.
const SYSTEM: [&str; 5] = [
    "/opt/intel/openvino",
    "/opt/intel/openvino_2025",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
];

/// A folder that holds OpenVINO.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Libraries {
    /// The folder.
    pub folder: PathBuf,
    /// Its C interface: `libopenvino_c.so` or `libopenvino_c.so.2541`.
    pub c_api: PathBuf,
}

/// What was done about the missing link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mended {
    /// The link was there.
    Whole,
    /// It was made.
    Made,
}

impl Libraries {
    /// The libraries under `folder`: in itself, or where an installation or an unpacked wheel has them.
    pub fn under(folder: &Path) -> Option<Self> {
        SUBFOLDERS.iter().find_map(|sub| Self::inside(&folder.join(sub)))
    }

    fn inside(folder: &Path) -> Option<Self> {
        let names = fs::read_dir(folder).ok()?.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let mut found: Vec<(u64, String)> = names
            .filter_map(|name| {
                let rest = name.strip_prefix(MENDED_LINK)?;
                let version = match rest.strip_prefix('.') {
                    Some(digits) => digits.parse().ok()?,
                    None if rest.is_empty() => 0,
                    None => return None,
                };
                // A dangling link is no library.
                folder.join(&name).is_file().then_some((version, name))
            })
            .collect();
        found.sort();
        let (_, name) = found.pop()?;
        Some(Libraries { folder: folder.to_path_buf(), c_api: folder.join(name) })
    }

    /// Looks in this order: `OPENVINO_INSTALL_DIR`, the folder of `ncs2ctl setup openvino`, `INTEL_OPENVINO_DIR`,
    /// `LD_LIBRARY_PATH`, where system packages put them.
    pub fn find() -> Option<Self> {
        Self::find_in(|name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from))
    }

    fn find_in(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<Self> {
        let own = Self::data_folder_in(&variable);
        let paths = variable("LD_LIBRARY_PATH").unwrap_or_default();
        let folders = [variable("OPENVINO_INSTALL_DIR"), own, variable("INTEL_OPENVINO_DIR")];
        let all = folders.into_iter().flatten().chain(std::env::split_paths(&paths));
        all.filter(|folder| folder.is_absolute())
            .chain(SYSTEM.map(PathBuf::from))
            .find_map(|folder| Self::under(&folder))
    }

    /// Folder of `ncs2ctl setup openvino`: `$XDG_DATA_HOME/ncs2/openvino`, by default under `~/.local/share`.
    pub fn data_folder() -> Option<PathBuf> {
        Self::data_folder_in(&|name: &str| {
            std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
        })
    }

    fn data_folder_in(variable: &impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
        let data = variable("XDG_DATA_HOME").or_else(|| Some(variable("HOME")?.join(".local/share")))?;
        Some(data.join("ncs2").join("openvino"))
    }

    /// Wheels carry `libopenvino_c.so.2541` and no `libopenvino_c.so`, which is what programs open: makes the link.
    pub fn mend(&self) -> io::Result<Mended> {
        let link = self.folder.join(MENDED_LINK);
        if link.is_file() {
            return Ok(Mended::Whole);
        }
        let target = self.c_api.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        if link.is_symlink() {
            fs::remove_file(&link)?;
        }
        std::os::unix::fs::symlink(target, &link)?;
        Ok(Mended::Made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_library_is_found_and_the_link_mended() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let libs = folder.path().join("openvino/libs");
        fs::create_dir_all(&libs).expect("made");
        assert_eq!(Libraries::under(folder.path()), None);
        for name in
            ["libopenvino_c.so.2500", "libopenvino_c.so.2541", "libopenvino_c.so.x", "libopenvino_cc.so"]
        {
            fs::write(libs.join(name), "").expect("written");
        }
        std::os::unix::fs::symlink("gone", libs.join(MENDED_LINK)).expect("made");
        let found = Libraries::under(folder.path()).expect("there");
        assert_eq!(found.c_api, libs.join("libopenvino_c.so.2541"));
        assert_eq!(found.mend().expect("made"), Mended::Made);
        assert_eq!(found.mend().expect("there"), Mended::Whole);
        assert_eq!(fs::read_link(libs.join(MENDED_LINK)).expect("link"), Path::new("libopenvino_c.so.2541"));
    }

    #[test]
    fn the_users_variable_comes_first() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (a, b) = (folder.path().join("a"), folder.path().join("b/ncs2/openvino"));
        for path in [&a, &b] {
            fs::create_dir_all(path).expect("made");
            fs::write(path.join(MENDED_LINK), "").expect("written");
        }
        let variable = |install: Option<PathBuf>| {
            let data = folder.path().join("b");
            move |name: &str| match name {
                "OPENVINO_INSTALL_DIR" => install.clone(),
                "XDG_DATA_HOME" => Some(data.clone()),
                _ => None,
            }
        };
        let folder_of = |install| Libraries::find_in(variable(install)).map(|l| l.folder);
        assert_eq!(folder_of(Some(a.clone())), Some(a.join("")));
        assert_eq!(folder_of(None), Some(b.join("")));
        assert_eq!(folder_of(Some(folder.path().join("nothing"))), Some(b.join("")));
    }
}
