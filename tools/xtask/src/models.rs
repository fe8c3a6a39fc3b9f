//! `cargo xtask models DIR`: the table of models over a folder of blobs, inputs and reference outputs.

use std::path::Path;

use crate::run::{cargo, step};
use crate::{Stop, native};

/// The same tests that run over the committed models, over `dir`; each prints its table.
pub fn run(dir: &str) -> Result<(), Stop> {
    let dir = Path::new(dir);
    let has_blobs = std::fs::read_dir(dir)
        .map_err(|e| Stop::Missing(format!("{}: {e}: name a folder that holds .blob files", dir.display())))?
        .filter_map(Result::ok)
        .any(|entry| entry.path().extension().is_some_and(|e| e == "blob"));
    if !has_blobs {
        return Err(Stop::Missing(format!("{}: no .blob file in this folder", dir.display())));
    }
    let dir = dir.canonicalize().map_err(|e| Stop::Missing(format!("{}: {e}", dir.display())))?;
    native::ensure()?;
    for (name, package, test) in
        [("structure and operation counts", "ncs2", "blob_models"), ("answers", "ncs2-device", "execute")]
    {
        let mut command = cargo(&[
            "test",
            "--quiet",
            "--package",
            package,
            "--test",
            test,
            "--",
            "--nocapture",
            "--test-threads=1",
        ]);
        command.env("NCS2_MODELS", &dir);
        step(name, command)?;
    }
    Ok(())
}
