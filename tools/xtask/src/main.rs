//! The project's own commands: `cargo xtask demo`, `cargo xtask test`, `cargo xtask models DIR`.
//!
//! This package has no dependency, so that it builds on a machine that lacks the C libraries it looks for.

mod demo;
mod machine;
mod models;
mod native;
mod openvino;
mod run;
mod test;
mod vendor_test;
mod vm_test;

use std::process::ExitCode;

const USAGE: &str = "\
The project's own commands.

Usage: cargo xtask <COMMAND>

  demo          three compiled networks on three virtual sticks: answers, then speed
  test          fmt, clippy, docs, and every test; what .ci/run calls
  openvino-test the vendor's compiler and OpenVINO's CPU, fetched by pip: compile, run, check
  models DIR    parses, counts, executes and checks every blob of a folder
  vm-test       USB tests on a stock kernel in QEMU, against virtual sticks: [usbredir|serial|vhci] [TEST…]
  vendor-test   the vendor's own client and ours, side by side, in the same machine: [--release] [WORD…]

Exit codes: 0 ok, 1 a check failed, 2 something that is needed is missing, 64 usage.";

/// What a command ends with when it does not succeed.
#[derive(Debug)]
pub enum Stop {
    /// A step ran and failed: exit code 1.
    Failed(String),
    /// Something that is needed is not there: exit code 2.
    Missing(String),
    /// The command line is wrong: exit code 64.
    Usage(String),
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["demo"] => demo::run(),
        ["test"] => test::run(),
        ["openvino-test"] => openvino::run(),
        ["vm-test", rest @ ..] => vm_test::run(rest),
        ["vendor-test", rest @ ..] => vendor_test::run(rest),
        ["models", dir] => models::run(dir),
        ["models"] => {
            Err(Stop::Usage("models: name the folder, as in `cargo xtask models ../models`".into()))
        }
        ["help" | "-h" | "--help"] => {
            println!("{USAGE}");
            Ok(())
        }
        [] => Err(Stop::Usage(USAGE.into())),
        _ => Err(Stop::Usage(format!("unknown command `{}`\n\n{USAGE}", args.join(" ")))),
    };
    let (code, message) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Stop::Failed(message)) => (1, message),
        Err(Stop::Missing(message)) => (2, message),
        Err(Stop::Usage(message)) => (64, message),
    };
    eprintln!("xtask: {message}");
    ExitCode::from(code)
}
