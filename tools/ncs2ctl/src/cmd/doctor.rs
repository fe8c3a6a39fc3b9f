//! `ncs2ctl doctor`

use clap::Args;
use serde::Serialize;

use crate::cli::Global;
use crate::doctor::{Check, Machine, Status, checks};
use crate::failure::{Outcome, Result};
use crate::output::{Output, Style, wrap};

/// `doctor`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl doctor
  ncs2ctl doctor --json | jq -r '.checks[] | select(.status == \"fail\") | .mend'

Opens no stick, changes nothing, needs no rights. pass: as it should be; skip: nothing here to look at;
warn: works, but not as well as it could; fail: sticks do not work like this. Exits 1 when one fails.")]
pub struct DoctorArgs {}

#[derive(Serialize)]
struct Body<'a> {
    simulated: bool,
    checks: &'a [Check],
    passed: usize,
    skipped: usize,
    warned: usize,
    failed: usize,
}

/// Looks at the machine; exit 1 when a check fails.
pub fn doctor(global: &Global, output: &Output) -> Result<Outcome> {
    let checks = checks(&Machine::this(), global);
    let count = |status: Status| checks.iter().filter(|c| c.status == status).count();
    let body = Body {
        simulated: global.sim.is_some(),
        checks: &checks,
        passed: count(Status::Pass),
        skipped: count(Status::Skip),
        warned: count(Status::Warn),
        failed: count(Status::Fail),
    };
    if output.is_json() {
        output.document(&body)?;
    } else {
        output.prose(&text(output, &body))?;
    }
    Ok(if body.failed == 0 { Outcome::Ok } else { Outcome::Negative })
}

fn text(output: &Output, body: &Body<'_>) -> String {
    // Behind verdict and name.
    const INDENT: &str = "                    ";
    let width = output.width() - INDENT.len();
    let mut text = String::new();
    for check in body.checks {
        let status = check.status.as_str();
        let verdict = match check.status {
            Status::Pass => status.to_owned(),
            Status::Skip => output.paint(Style::Dim, status),
            Status::Warn => output.paint(Style::Warn, status),
            Status::Fail => output.paint(Style::Bad, status),
        };
        text.push_str(&format!("{verdict}  {:<12}  {}\n", check.name, wrap(&check.evidence, width, INDENT)));
        if let Some(mend) = &check.mend {
            let mend = wrap(&format!("{} {mend}", output.glyph("→", "->")), width, INDENT);
            text.push_str(&format!("{INDENT}{}\n", output.paint(Style::Bold, mend)));
        }
    }
    let Body { passed, skipped, warned, failed, .. } = body;
    if body.simulated {
        let remark =
            "simulated: --sim asks for virtual sticks; the other checks are of this machine and of real ones";
        text.push_str(&format!("{}\n", output.paint(Style::Warn, remark)));
    }
    text.push_str(&format!("{passed} passed, {skipped} skipped, {warned} warned, {failed} failed\n"));
    text
}
