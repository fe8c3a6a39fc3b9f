//! Where the tool keeps things: what was set up under the user's data, what can be made again under the cache.

use std::path::{Path, PathBuf};

use ncs2::ErrorKind;

use crate::failure::{Failure, Result};

/// `$XDG_DATA_HOME/ncs2`, by default `~/.local/share/ncs2`.
pub fn data() -> Result<PathBuf> {
    folder("XDG_DATA_HOME", ".local/share")
}

/// `$XDG_CACHE_HOME/ncs2`, by default `~/.cache/ncs2`.
pub fn cache() -> Result<PathBuf> {
    folder("XDG_CACHE_HOME", ".cache")
}

fn folder(variable: &str, under_home: &str) -> Result<PathBuf> {
    // The standard has paths that are not absolute ignored.
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = set(variable).or_else(|| Some(set("HOME")?.join(under_home)));
    base.map(|base| base.join("ncs2")).ok_or_else(|| {
        Failure::new(
            ErrorKind::NotFound,
            format!("expected the user's folder in {variable} or HOME, found neither"),
            format!("set {variable}"),
        )
    })
}

/// Makes a folder and those above it.
pub fn make(path: &Path) -> Result {
    std::fs::create_dir_all(path).map_err(|e| Failure::file(path, "make", &e))
}

/// A folder of this process beside `path`, removed with all in it when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes `.NAME.PID` beside `path`.
    pub fn beside(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let folder = path.with_file_name(format!(".{name}.{}", std::process::id()));
        make(&folder)?;
        Ok(Scratch(folder))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Puts the folder in the place of `path`.
    pub fn become_folder(self, path: &Path) -> Result {
        if path.exists() {
            std::fs::remove_dir_all(path).map_err(|e| Failure::file(path, "replace", &e))?;
        }
        std::fs::rename(&self.0, path).map_err(|e| Failure::file(path, "make", &e))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Gone when it became another folder; else there is nobody left to tell.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
