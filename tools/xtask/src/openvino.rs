//! `cargo xtask openvino-test`: the vendor's compiler and OpenVINO's CPU reference, fetched by pip, from end to end.

use std::path::Path;
use std::process::Command;

use crate::run::{cargo, root, step};
use crate::{Stop, native};

/// Sets both up under the target folder, once, then runs the tests that need them. Nothing fetched is committed.
pub fn run() -> Result<(), Stop> {
    native::ensure()?;
    if (std::env::consts::OS, std::env::consts::ARCH) != ("linux", "x86_64") {
        return Err(Stop::Missing("the vendor's compiler runs on Linux on x86-64 only".into()));
    }
    // Of the whole workspace, as `cargo xtask test` builds: for one package alone cargo would choose other features of what
    // it depends on, and build nearly everything again. The test needs the tool, so both are made.
    let test = ["test", "--workspace", "--test", "openvino"];
    step("build", cargo(&[&test[..], &["--no-run"]].concat()))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let data = target.join("openvino-test");
    std::fs::create_dir_all(&data).map_err(|e| Stop::Missing(format!("{}: {e}", data.display())))?;
    let tool = target.join("debug/ncs2ctl");
    let compiler = data.join("ncs2/compiler/2021.4.2/setup.json");
    if !compiler.exists() {
        set_up(&tool, &data, &["compile", "--setup"])?;
    }
    set_up(&tool, &data, &["setup", "openvino"])?;
    let mut tests = cargo(&[&test[..], &["--", "--nocapture", "--test-threads=1"]].concat());
    tests.env("NCS2_OPENVINO_TEST", &data);
    step("compile, run, check", tests)
}

/// What cannot be fetched is missing, not failed; the tool's own line says why.
fn set_up(tool: &Path, data: &Path, args: &[&str]) -> Result<(), Stop> {
    println!("\n=== set up: ncs2ctl {}", args.join(" "));
    let mut command = Command::new(tool);
    command.args(args).env("XDG_DATA_HOME", data);
    for name in ["OPENVINO_INSTALL_DIR", "INTEL_OPENVINO_DIR", "LD_LIBRARY_PATH"] {
        command.env_remove(name);
    }
    let output = command.output().map_err(|e| Stop::Missing(format!("{}: {e}", tool.display())))?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if output.status.success() {
        return Ok(());
    }
    Err(Stop::Missing(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
