//! Running other programs, with their command line printed first.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::Stop;

/// The workspace's root, wherever the caller stands.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_path_buf()
}

/// `cargo` with these arguments, in the root, by the same toolchain that runs us.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Prints the command, runs it with our own standard streams, and fails unless it succeeds.
pub fn step(name: &str, mut command: Command) -> Result<(), Stop> {
    println!("\n=== {name}: {}", line(&command));
    let start = Instant::now();
    let status =
        command.status().map_err(|e| Stop::Missing(format!("{name}: cannot run {}: {e}", line(&command))))?;
    println!("=== {name}: {:.1} s", start.elapsed().as_secs_f64());
    if status.success() { Ok(()) } else { Err(Stop::Failed(format!("{name} failed ({status})"))) }
}

/// True when the program starts and says that all is well; its output is thrown away.
pub fn succeeds(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|out| out.status.success())
}

fn line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    std::iter::once(program)
        .chain(command.get_args())
        .map(|s| s.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
