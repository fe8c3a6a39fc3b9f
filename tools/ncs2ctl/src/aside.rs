//! Files that are there whole or not at all: written beside their place, then renamed.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use ncs2::ErrorKind;

use crate::failure::{Failure, Result};

/// Writes `bytes` to `path`. Whatever happens, `path` holds either what it held before or all of `bytes`.
pub fn write(path: &Path, bytes: &[u8]) -> Result {
    write_with(path, |out| out.write_all(bytes))
}

/// The same for what `content` writes, for files that do not fit into memory.
pub fn write_with(path: &Path, content: impl FnOnce(&mut BufWriter<fs::File>) -> io::Result<()>) -> Result {
    check(path)?;
    let aside = Aside(name_beside(path));
    let failed = |e: io::Error| Failure::file(path, "write", &e);
    let mut out = BufWriter::new(fs::File::create(&aside.0).map_err(failed)?);
    content(&mut out).and_then(|()| out.flush()).map_err(failed)?;
    out.get_ref().sync_all().map_err(failed)?;
    fs::rename(&aside.0, path).map_err(failed)
}

/// Refuses a place that a rename would not replace as the user means it: a folder, a device.
pub fn check(path: &Path) -> Result {
    let found = match fs::metadata(path) {
        Ok(meta) if !meta.is_file() => {
            if meta.is_dir() {
                "a folder"
            } else {
                "a device"
            }
        }
        Ok(_) => return Ok(()),
        Err(_) => {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if folder.is_dir() && path.file_name().is_some() {
                return Ok(());
            }
            return Err(Failure::new(
                ErrorKind::NotFound,
                format!("{}: expected its folder, found none", path.display()),
                "make the folder first",
            ));
        }
    };
    let message = format!("{}: expected a file to write, found {found}", path.display());
    Err(Failure::new(ErrorKind::InvalidInput, message, "name a file"))
}

fn name_beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.part", std::process::id()))
}

/// Removes the file unless it was renamed.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
