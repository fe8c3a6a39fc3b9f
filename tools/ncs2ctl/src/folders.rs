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
    std::fs::create_dir_all(path).map_err(|e| {
        let is_other = |path: &&Path| path.exists() && !path.is_dir();
        match path.ancestors().find(is_other) {
            Some(other) => {
                let at = if other == path { String::new() } else { format!(" at {}", other.display()) };
                Failure::new(
                    ErrorKind::InvalidInput,
                    format!("{}: expected a folder{at}, found a file", path.display()),
                    "name another folder",
                )
            }
            None => Failure::file(path, "make", &e),
        }
    })
}

/// A folder of this process beside `path`, removed with all in it when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes `.NAME.PID` beside `path`.
    pub fn beside(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let folder = path.with_file_name(format!(".{name}.{}", std::process::id()));
        sweep(&folder, &format!(".{name}."));
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

/// Removes what processes left beside `folder` that were killed: of names that begin with `prefix` and end in the number of
/// a process that is gone. A young one may be of a process in another container, which cannot be seen from here.
fn sweep(folder: &Path, prefix: &str) {
    const YOUNG: std::time::Duration = std::time::Duration::from_secs(3600);
    let entries = folder.parent().and_then(|parent| std::fs::read_dir(parent).ok());
    for entry in entries.into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u32>().ok());
        let gone = process.is_some_and(|id| !Path::new("/proc").join(id.to_string()).exists());
        let modified = entry.metadata().and_then(|meta| meta.modified()).ok();
        let old = modified.is_some_and(|time| time.elapsed().is_ok_and(|age| age > YOUNG));
        if gone && old {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Gone when it became another folder; else there is nobody left to tell.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_processes_left_is_swept() {
        let home = tempfile::tempdir().expect("temporary folder");
        let at = |name: &str| home.path().join(name);
        // No process has this number: the kernel's largest is 4 194 304.
        let (old, young, other) = (at(".making.4999999"), at(".making.4999998"), at(".made.4999999"));
        let own = at(&format!(".making.{}", std::process::id()));
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        for folder in [&old, &young, &other] {
            std::fs::create_dir(folder).expect("made");
            if folder != &young {
                std::fs::File::open(folder).and_then(|f| f.set_modified(long_ago)).expect("set");
            }
        }
        let scratch = Scratch::beside(&at("making")).expect("made");
        assert_eq!(scratch.path(), own);
        assert_eq!([&old, &young, &other, &own].map(|p| p.exists()), [false, true, true, true]);
        drop(scratch);
        assert!(!own.exists());
    }
}
