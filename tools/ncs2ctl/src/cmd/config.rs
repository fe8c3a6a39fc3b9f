//! `ncs2ctl config`

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use serde::Serialize;

use crate::config::{self, File, SETTINGS, Setting};
use crate::failure::{Failure, Outcome, Result, one_line};
use crate::flags::{Global, Sim};
use crate::open;
use crate::output::Output;

/// `config`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl config
  ncs2ctl config --json | jq '.settings[] | select(.origin != \"built in\")'
  ncs2ctl --config lab.toml config

The file is TOML: `sim = 3` at the top, `duration = \"30s\"` under `[bench]`. Without --config and
NCS2_CONFIG it is ncs2/config.toml in the user's configuration folder, where there is one.
A flag beats a variable, a variable the file, the file what is built in. A value that cannot be used
is an error that says where it came from, and exits 64.")]
pub struct ConfigArgs {}

#[derive(Serialize)]
struct Body {
    simulated: bool,
    file: Option<String>,
    settings: Vec<InForce>,
}

#[derive(Serialize)]
struct InForce {
    key: &'static str,
    value: Option<String>,
    /// `flag`, `variable`, `file` or `built in`.
    origin: &'static str,
    variable: &'static str,
}

/// Prints every setting, its value and where it came from. Fails as usage where one cannot be used.
pub fn config(
    output: &Output,
    definition: &clap::Command,
    matches: &ArgMatches,
    global: &Global,
) -> Result<Outcome> {
    let (simulated, file) = (global.sim.is_some(), &global.file);
    let settings: Vec<InForce> =
        SETTINGS.iter().map(|setting| in_force(setting, definition, matches, file)).collect();
    let useless: Vec<String> = SETTINGS
        .iter()
        .zip(&settings)
        .filter_map(|(setting, found)| {
            let why = useless(setting, found, global)?;
            let from = match found.origin {
                "variable" => setting.variable.to_owned(),
                "file" => file.origin(setting),
                other => other.to_owned(),
            };
            Some(format!("{}, from {from}", one_line(&why)))
        })
        .collect();
    if !useless.is_empty() {
        return Err(Failure::usage(useless.join(", and "), "mend it there, or take it out"));
    }
    let path = file.path.as_ref().map(|p| p.display().to_string());
    if output.is_json() {
        output.document(&Body { simulated, file: path, settings })?;
        return Ok(Outcome::Ok);
    }
    let mut table =
        output.table(&["key", "value", "from", "variable"], &["key", "value", "from", "variable"]);
    for s in &settings {
        let value = s.value.as_deref().map_or_else(|| "-".to_owned(), one_line);
        table.add_row([s.key.to_owned(), value, s.origin.to_owned(), s.variable.to_owned()]);
    }
    let mut text = output.lines(&table);
    text.push_str(&format!("  file: {}\n", path.as_deref().unwrap_or("none")));
    output.prose(&text)?;
    Ok(Outcome::Ok)
}

/// Why a value is none that commands can use. Those of flags that all commands take were read before this one began.
fn useless(setting: &Setting, found: &InForce, global: &Global) -> Option<String> {
    match (setting.id, &global.sim, &global.firmware) {
        ("sim", Some(Sim::Rack { profile: Some(profile), .. }), _) => {
            open::load_profile(profile).err()?.into_report().map(|report| format!("sim: {}", report.message))
        }
        ("firmware", _, Some(path)) if !path.is_file() => {
            Some(format!("firmware: {}: expected a file, found none", path.display()))
        }
        _ => config::refusal(setting, found.value.as_deref()?).map(|why| format!("{}: {why}", setting.key)),
    }
}

fn in_force(setting: &Setting, definition: &clap::Command, matches: &ArgMatches, file: &File) -> InForce {
    let in_file = file.values.get(setting.key).cloned();
    // A command's own flags are not given here: its variable, the file, what is built in.
    let (given, by_flag) = match setting.command {
        None => {
            let source = matches.value_source(setting.id);
            let raw = matches
                .get_raw(setting.id)
                .map(|values| values.map(|v| v.to_string_lossy().into_owned()).collect::<Vec<_>>().join(","));
            match source {
                Some(ValueSource::CommandLine) => (raw, true),
                Some(ValueSource::EnvVariable) => (raw, false),
                _ => (None, false),
            }
        }
        Some(_) => {
            let variable = std::env::var_os(setting.variable);
            (variable.map(|value| value.to_string_lossy().into_owned()), false)
        }
    };
    let built_in = || {
        let command = match setting.command {
            None => Some(definition),
            Some(name) => definition.find_subcommand(name),
        };
        let arg = command.and_then(|c| c.get_arguments().find(|a| a.get_id() == setting.id));
        arg.and_then(|a| a.get_default_values().first()).map(|v| v.to_string_lossy().into_owned())
    };
    let (value, origin) = match (given, by_flag, in_file) {
        (Some(value), true, _) => (Some(value), "flag"),
        (Some(value), false, _) => (Some(value), "variable"),
        (None, _, Some(value)) => (Some(value), "file"),
        (None, _, None) => (built_in(), "built in"),
    };
    InForce { key: setting.key, value, origin, variable: setting.variable }
}
