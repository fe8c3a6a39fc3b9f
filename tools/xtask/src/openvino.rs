//! `cargo xtask openvino-test`: the vendor's compiler and OpenVINO's CPU reference, fetched by pip, from end to end.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{cargo, root, step, succeeds};
use crate::{Stop, native};

/// A wheel that the tool has pip fetch, as the tool should ask for it.
struct Wheel {
    package: &'static str,
    python: &'static str,
}

const COMPILER: Wheel = Wheel { package: "openvino==2021.4.2", python: "3.9" };
const REFERENCE: Wheel = Wheel { package: "openvino==2025.4.1", python: "3.11" };
const PLATFORM: &str = "manylinux2014_x86_64";

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
    make(&data)?;
    let tool = target.join("debug/ncs2ctl");
    if !data.join("ncs2/compiler/2021.4.2/setup.json").exists() {
        set_up(&tool, &data, &["compile", "--setup"], &COMPILER)?;
    }
    set_up(&tool, &data, &["setup", "openvino"], &REFERENCE)?;
    // Without it the rest is tested all the same.
    let model = public_model(&data);
    let mut tests = cargo(&[&test[..], &["--", "--nocapture", "--test-threads=1"]].concat());
    tests.env("NCS2_OPENVINO_TEST", &data);
    step("compile, run, check", tests)?;
    model
}

/// Runs a command of the tool. Where it fails and nothing is missing here, it is the tool that failed.
fn set_up(tool: &Path, data: &Path, args: &[&str], wheel: &Wheel) -> Result<(), Stop> {
    println!("\n=== set up: ncs2ctl {}", args.join(" "));
    let mut command = Command::new(tool);
    command.args(args).env("XDG_DATA_HOME", data);
    for name in ["OPENVINO_INSTALL_DIR", "INTEL_OPENVINO_DIR", "LD_LIBRARY_PATH"] {
        command.env_remove(name);
    }
    let output = command.output().map_err(|e| Stop::Failed(format!("{}: {e}", tool.display())))?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let said = format!("ncs2ctl {} ({}): {said}", args.join(" "), output.status);
    Err(match lacking(wheel, data) {
        Some(what) => Stop::Missing(format!("{said}\nxtask: {what}")),
        None => Stop::Failed(said),
    })
}

/// What this machine lacks for a set-up, found out without the tool.
fn lacking(wheel: &Wheel, data: &Path) -> Option<String> {
    let python = python();
    let name = python.to_string_lossy();
    if !succeeds(&name, &["-m", "pip", "--version"]) {
        return Some(format!("{name} with pip is not here"));
    }
    let named = std::env::var("CXX").ok().filter(|cxx| !cxx.is_empty());
    let compilers = named.as_deref().map_or(vec!["g++", "c++", "clang++"], |cxx| vec![cxx]);
    if !compilers.iter().any(|cxx| succeeds(cxx, &["--version"])) {
        return Some(format!("no C++ compiler is here: none of {}", compilers.join(", ")));
    }
    let to = data.join("asked");
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--only-binary=:all:"]);
    pip.args(["--python-version", wheel.python, "--platform", PLATFORM, wheel.package, "--dest"]).arg(&to);
    let fetched = pip.output().is_ok_and(|output| output.status.success());
    let _ = fs::remove_dir_all(&to);
    (!fetched).then(|| format!("pip cannot fetch {} here", wheel.package))
}

/// SqueezeNet 1.1 with random weights, as the README makes it: a network of ordinary size for the tests. Its script needs
/// the Python package `onnx`, which is fetched and thrown away again.
fn public_model(data: &Path) -> Result<(), Stop> {
    let folder = data.join("models");
    let model = folder.join("squeezenet1_1.onnx");
    if model.exists() {
        return Ok(());
    }
    make(&folder)?;
    let (packages, part) = (data.join("python"), folder.join("part"));
    let mut pip = Command::new(python());
    pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]);
    pip.args(["--root-user-action=ignore", "--only-binary=:all:", "onnx", "--target"]).arg(&packages);
    let script: PathBuf = root().join("tools/models/make_squeezenet.py");
    let mut write = Command::new(python());
    write.arg(script).arg(&part).env("PYTHONPATH", &packages);
    let made = step("fetch onnx", pip).map_err(|_| {
        Stop::Missing("pip cannot fetch onnx here: nothing was tested with squeezenet1_1".into())
    });
    let made = made.and_then(|()| step("make squeezenet1_1", write));
    let _ = fs::remove_dir_all(&packages);
    made?;
    fs::rename(&part, &model).map_err(|e| Stop::Failed(format!("{}: {e}", model.display())))
}

fn make(folder: &Path) -> Result<(), Stop> {
    fs::create_dir_all(folder).map_err(|e| Stop::Failed(format!("{}: {e}", folder.display())))
}

/// The one that the tool takes.
fn python() -> OsString {
    std::env::var_os("NCS2_PYTHON").filter(|name| !name.is_empty()).unwrap_or_else(|| "python3".into())
}
