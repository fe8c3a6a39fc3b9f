//! `cargo xtask test`: everything that must hold before a change lands.

use crate::run::{cargo, step, succeeds};
use crate::{Stop, native};

/// Format, lints (also without OpenVINO), docs, tests, doctests; stops at the first that fails.
pub fn run() -> Result<(), Stop> {
    native::ensure()?;
    for (component, probe) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if !succeeds("cargo", &[probe, "--version"]) {
            return Err(Stop::Missing(format!(
                "cargo {probe} is missing. Run this, then try again:\n\n    rustup component add {component}\n"
            )));
        }
    }
    step("format", cargo(&["fmt", "--all", "--check"]))?;
    step("lints", cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    // Who has no OpenVINO builds the tool without it; a check is all that costs less than building everything twice.
    let without = ["clippy", "--package", "ncs2ctl", "--no-default-features", "--all-targets"];
    step("lints without OpenVINO", cargo(&[&without[..], &["--", "-D", "warnings"]].concat()))?;
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    step("docs", doc)?;
    // nextest runs each test in a process of its own and several at once; cargo's own runner does as well.
    let runner: &[&str] = if succeeds("cargo", &["nextest", "--version"]) {
        &["nextest", "run", "--workspace", "--no-fail-fast"]
    } else {
        &["test", "--workspace", "--no-fail-fast", "--all-targets"]
    };
    step("tests", cargo(runner))?;
    step("doctests", cargo(&["test", "--workspace", "--doc"]))
}
