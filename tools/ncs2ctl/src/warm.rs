//! `--on-warm`: a command of the user's that runs when a stick becomes warmer than `--warm-at`: a fan, a message.

use std::process::{Command, Stdio};
use std::sync::Arc;

use ncs2::StickId;
use ncs2::runtime::WarmHook;

/// Runs `command` in a shell at each crossing, with the stick's name, its degrees and the limit in variables. Nobody waits for it:
/// the sticks go on, and it may outlive this process. It has no input, and its output goes nowhere: stdout is the result's.
pub fn hook(command: String, limit_c: f64, simulated: bool) -> WarmHook {
    WarmHook(Arc::new(move |stick: &StickId, celsius: f64| {
        let started = Command::new("/bin/sh")
            .args(["-c", &command])
            .env("NCS2_STICK", stick.as_str())
            .env("NCS2_TEMPERATURE_C", format!("{celsius:.1}"))
            .env("NCS2_LIMIT_C", limit_c.to_string())
            .env("NCS2_SIMULATED", simulated.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let stick = stick.clone();
        // It is waited for on a thread of its own, or it would stay in the process table.
        let waited = started.and_then(|mut child| {
            std::thread::Builder::new().name("ncs2-on-warm".into()).spawn(move || match child.wait() {
                Ok(status) if status.success() => tracing::info!(%stick, "the command of --on-warm is done"),
                Ok(status) => tracing::error!(%stick, "the command of --on-warm failed: {status}"),
                Err(error) => tracing::error!(%stick, "the command of --on-warm: {error}"),
            })
        });
        if let Err(error) = waited {
            tracing::error!("the command of --on-warm did not start: {error}");
        }
    }))
}
