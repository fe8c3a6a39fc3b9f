//! `ncs2ctl completions`

use clap_complete::Shell;
use serde::Serialize;

use crate::failure::{Outcome, Result};
use crate::output::Output;

#[derive(Serialize)]
struct Body {
    shell: String,
    script: String,
}

/// Prints the script.
pub fn completions(output: &Output, mut definition: clap::Command, shell: Shell) -> Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut definition, "ncs2ctl", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    if output.is_json() {
        output.document(&Body { shell: shell.to_string(), script })?;
    } else {
        output.text(&script)?;
    }
    Ok(Outcome::Ok)
}
