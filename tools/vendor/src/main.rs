//! The vendor's own client and ours, side by side on the same virtual sticks: `cargo xtask vendor-test` boots a machine with a
//! stock kernel and runs this in it.
//!
//! ```text
//! host   ncs2-vendor-tests serve    virtual sticks behind usb-redir, set up anew for each test
//! guest  ncs2-vendor-tests guest    the tests: one list of steps, given to both clients in processes of their own
//!          ├─ python3.9 client.py STEPS     the vendor's client, unmodified
//!          └─ ncs2-vendor-tests ours STEPS  this driver
//! ```
//!
//! Exit codes: 0 all passed, 1 some failed, 2 there is nothing to test on.

mod bench;
mod client;
mod conformance;
mod faults;
mod figures;
mod guest;
mod host;
mod knobs;
mod ours;
mod wires;
mod work;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["serve", stick, control, out] => {
            host::serve_until_end(Path::new(stick), Path::new(control), Path::new(out)).map(|()| true)
        }
        ["ours", steps] => ours::run(Path::new(steps)).map(|()| true),
        ["guest", wanted @ ..] => guest::run(wanted),
        _ => Err("usage: ncs2-vendor-tests serve STICK CONTROL OUT | guest [WORD…] | ours STEPS".into()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(why) => {
            eprintln!("vendor-test: {why}");
            ExitCode::from(2)
        }
    }
}

/// An error with all that is behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
