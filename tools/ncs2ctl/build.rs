//! Puts the commit into `ncs2ctl --version`, where there is one to ask for.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let mut version = env!("CARGO_PKG_VERSION").to_owned();
    if let Some(commit) = git(&["rev-parse", "--short=10", "HEAD"]) {
        version.push_str(&format!(" ({commit})"));
        // Written at every commit and checkout. A path that is not there would rebuild every time.
        if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
            && std::path::Path::new(&log).exists()
        {
            println!("cargo::rerun-if-changed={log}");
        }
    }
    println!("cargo::rustc-env=NCS2CTL_VERSION={version}");
}
