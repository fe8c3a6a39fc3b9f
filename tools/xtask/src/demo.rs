//! `cargo xtask demo`: what a newcomer types first.

use std::process::Command;

use crate::run::{cargo, root, step};
use crate::{Stop, native};

/// The demo's networks: committed blobs that the vendor's own compiler made.
const NETWORKS: [(&str, &str); 3] =
    [("mlp_fp16_s1", "data"), ("squeezenet1_1_u8_s1", "data"), ("ssd_head_u8_s1", "images")];

/// Builds the tool, then runs each network on three virtual sticks: first for its answer, then for speed.
pub fn run() -> Result<(), Stop> {
    native::ensure()?;
    step("build", cargo(&["build", "--release", "--package", "ncs2ctl"]))?;
    let models = root().join("tests/data/models");
    let ncs2ctl = || {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
        let mut command = Command::new(target.join("release/ncs2ctl"));
        command.current_dir(&models);
        command
    };
    println!("\nThree virtual sticks: every figure below is simulated. No stick was touched.");
    let mut list = ncs2ctl();
    list.args(["list", "--sim", "3"]);
    step("list", list)?;
    for (name, input) in NETWORKS {
        let mut command = ncs2ctl();
        command.args([
            "run",
            &format!("{name}.blob"),
            "--sim",
            "3",
            "--input",
            &format!("{name}.in.{input}.npy"),
        ]);
        command.args(["--top", "5"]);
        step(&format!("{name}: answer"), command)?;
    }
    for (name, _) in NETWORKS {
        let mut command = ncs2ctl();
        command.args(["bench", &format!("{name}.blob"), "--sim", "3", "--duration", "5s"]);
        step(&format!("{name}: speed"), command)?;
    }
    Ok(())
}
