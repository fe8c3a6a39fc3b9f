//! Defaults from a file and from `NCS2_*` variables. A flag beats a variable, a variable the file, the file what is
//! built in. The file's values become clap's defaults, so each is checked as the flag would be.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind as ClapKind};
use ncs2::ErrorKind;
use toml::{Table, Value};

use crate::failure::{Failure, Result, one_line};

/// A value that may be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    /// In the file: `sim`, or `bench.duration` for `duration` in `[bench]`.
    pub key: &'static str,
    /// Of the flag; `None` for one that every command takes.
    pub command: Option<&'static str>,
    /// clap's name of the flag.
    pub id: &'static str,
    /// Environment variable.
    pub variable: &'static str,
}

const fn global(key: &'static str, variable: &'static str) -> Setting {
    Setting { key, command: None, id: key, variable }
}

const fn of(command: &'static str, key: &'static str, id: &'static str, variable: &'static str) -> Setting {
    Setting { key, command: Some(command), id, variable }
}

/// Everything that may be set.
pub const SETTINGS: [Setting; 21] = [
    global("sim", "NCS2_SIM"),
    global("device", "NCS2_DEVICE"),
    global("firmware", "NCS2_FIRMWARE"),
    global("engine", "NCS2_ENGINE"),
    global("timing", "NCS2_TIMING"),
    global("color", "NCS2_COLOR"),
    global("stats_socket", "NCS2_STATS_SOCKET"),
    global("on_warm", "NCS2_ON_WARM"),
    global("warm_at", "NCS2_WARM_AT"),
    of("bench", "bench.duration", "duration", "NCS2_BENCH_DURATION"),
    of("bench", "bench.warmup", "warmup", "NCS2_BENCH_WARMUP"),
    of("bench", "bench.depth", "depth", "NCS2_BENCH_DEPTH"),
    of("bench", "bench.graphs", "graphs", "NCS2_BENCH_GRAPHS"),
    of("bench", "bench.ordering", "ordering", "NCS2_BENCH_ORDERING"),
    of("bench", "bench.retries", "retries", "NCS2_BENCH_RETRIES"),
    of("bench", "bench.fallback", "fallback", "NCS2_BENCH_FALLBACK"),
    of("batch", "batch.fallback", "fallback", "NCS2_BATCH_FALLBACK"),
    of("run", "run.ordering", "ordering", "NCS2_RUN_ORDERING"),
    of("run", "run.tolerance", "tolerance", "NCS2_RUN_TOLERANCE"),
    of("run", "run.fallback", "fallback", "NCS2_RUN_FALLBACK"),
    of("thermal", "thermal.alert", "alert", "NCS2_THERMAL_ALERT"),
];

/// A file that was read; empty where there is none.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct File {
    /// Where it lies; `None` without one.
    pub path: Option<PathBuf>,
    /// By key.
    pub values: BTreeMap<&'static str, String>,
}

/// The file that `--config` names, or `NCS2_CONFIG`, or the user's own where there is one.
pub fn find(args: &[OsString]) -> Result<File> {
    let mut named = None;
    let mut words = args.iter().skip(1).take_while(|a| *a != "--");
    while let Some(word) = words.next() {
        if word == "--config" {
            named = words.next().map(PathBuf::from);
        } else if let Some(path) = word.to_str().and_then(|w| w.strip_prefix("--config=")) {
            named = Some(path.into());
        }
    }
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(path) = named.or_else(|| variable("NCS2_CONFIG")) {
        return read(&path);
    }
    match user_file().filter(|path| path.is_file()) {
        Some(path) => read(&path),
        None => Ok(File::default()),
    }
}

/// `$XDG_CONFIG_HOME/ncs2/config.toml`, by default under `~/.config`.
pub fn user_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let folder = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
    Some(folder.join("ncs2").join("config.toml"))
}

fn read(path: &Path) -> Result<File> {
    let text = fs::read_to_string(path).map_err(|e| Failure::file(path, "read", &e))?;
    let values = parse(&text).map_err(|(message, hint)| {
        Failure::new(ErrorKind::InvalidInput, format!("{}: {message}", path.display()), hint)
    })?;
    Ok(File { path: Some(path.to_owned()), values })
}

/// `(message, hint)` for a file that is not as it should be.
fn parse(text: &str) -> Result<BTreeMap<&'static str, String>, (String, String)> {
    let table: Table = text.parse().map_err(|e: toml::de::Error| {
        (format!("expected TOML, found: {}", one_line(e.message())), "see `ncs2ctl config --help`".to_owned())
    })?;
    let mut values = BTreeMap::new();
    for (name, value) in &table {
        match value {
            Value::Table(section) => {
                for (key, value) in section {
                    insert(&mut values, format!("{name}.{key}"), value)?;
                }
            }
            value => insert(&mut values, name.clone(), value)?,
        }
    }
    Ok(values)
}

fn insert(
    values: &mut BTreeMap<&'static str, String>,
    key: String,
    value: &Value,
) -> Result<(), (String, String)> {
    let Some(setting) = SETTINGS.iter().find(|s| s.key == key) else {
        let hint = match nearest(&key) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "see `ncs2ctl config` for the keys that there are".to_owned(),
        };
        return Err((format!("unknown key `{}`", one_line(&key)), hint));
    };
    let scalar = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(n) => Some(n.to_string()),
        Value::Float(x) => Some(x.to_string()),
        _ => None,
    };
    let text = match value {
        // Several sticks, as the flag takes them.
        Value::Array(list) if setting.key == "device" => {
            list.iter().map(scalar).collect::<Option<Vec<_>>>().map(|l| l.join(","))
        }
        Value::Boolean(yes) if setting.key == "stats_socket" => Some(yes.to_string()),
        value => scalar(value),
    };
    let text = text.ok_or_else(|| {
        (
            format!("{key}: expected text or a number, found {}", value.type_str()),
            "write it as the flag takes it".into(),
        )
    })?;
    values.insert(setting.key, text);
    Ok(())
}

/// The key that differs least, if little enough to be a slip.
fn nearest(key: &str) -> Option<&'static str> {
    let (near, distance) = SETTINGS.iter().map(|s| (s.key, distance(s.key, key))).min_by_key(|(_, d)| *d)?;
    (distance <= 2.max(key.len() / 3)).then_some(near)
}

/// Letters to insert, remove or replace (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = before + usize::from(x != *y);
            before = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// The definition with the variables, and the file's values as defaults, of settings whose flag is not among `args`: clap would
/// refuse a bad one even there.
pub fn apply(mut command: clap::Command, file: &File, args: &[OsString]) -> clap::Command {
    for setting in SETTINGS {
        let given = setting.is_given(args);
        // clap keeps defaults for as long as the process lives; so few, read once, may stay.
        let value = file.values.get(setting.key).map(|v| &*String::leak(v.clone()));
        let change = move |arg: clap::Arg| {
            if given {
                return arg.env(None);
            }
            let arg = arg.env(setting.variable).hide_env_values(true);
            match value {
                Some(value) => arg.default_value(value),
                None => arg,
            }
        };
        command = match setting.command {
            None => command.mut_arg(setting.id, change),
            Some(name) => command.mut_subcommand(name, |c| c.mut_arg(setting.id, change)),
        };
    }
    command
}

/// Where a value that clap refused came from, when it was no flag.
pub fn origin(error: &clap::Error, args: &[OsString], file: &File) -> Option<String> {
    let setting = SETTINGS.iter().find(|setting| {
        let here = |name: &str| args.iter().skip(1).any(|word| word == name);
        refuses(error, setting) && setting.command.is_none_or(here)
    })?;
    if setting.is_given(args) {
        return None;
    }
    if std::env::var_os(setting.variable).is_some() {
        return Some(setting.variable.to_owned());
    }
    file.values.contains_key(setting.key).then(|| file.origin(setting))
}

/// True where clap's complaint is about the value of this setting's flag.
fn refuses(error: &clap::Error, setting: &Setting) -> bool {
    let about_value = matches!(error.kind(), ClapKind::InvalidValue | ClapKind::ValueValidation);
    let flag = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.split([' ', '=']).next(),
        _ => None,
    };
    about_value && flag == Some(&*setting.flag())
}

/// Why the setting's command would refuse the value; `None` where it would take it.
pub fn refusal(setting: &Setting, value: &str) -> Option<String> {
    let command = setting.command?;
    let words = ["ncs2ctl".to_owned(), command.to_owned(), format!("{}={value}", setting.flag())];
    // What else the command needs is not here; clap looks at values first.
    let error = crate::cli::definition().try_get_matches_from(words).err()?;
    refuses(&error, setting).then(|| crate::cli::said(&error))
}

impl Setting {
    fn flag(&self) -> String {
        format!("--{}", self.id.replace('_', "-"))
    }

    /// The flag is on the command line.
    fn is_given(&self, args: &[OsString]) -> bool {
        let flag = self.flag();
        let names = |word: &OsString| word.to_string_lossy().split('=').next() == Some(&*flag);
        args.iter().skip(1).take_while(|word| *word != "--").any(names)
    }
}

impl File {
    /// `KEY in FILE`.
    pub fn origin(&self, setting: &Setting) -> String {
        let path = self.path.as_deref().unwrap_or(Path::new("the file"));
        format!("{} in {}", setting.key, path.display())
    }
}

/// True where a value of the file or of the environment is a standing default and no wish for this run.
pub fn is_standing(file: &File, key: &str) -> bool {
    let variable = SETTINGS.iter().find(|s| s.key == key).and_then(|s| std::env::var_os(s.variable));
    variable.is_some() || file.values.contains_key(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_or_refused_with_a_suggestion() {
        let values = parse("sim = 3\ndevice = ['sim0', 'sim1']\n[bench]\nduration = '2s'\n").expect("good");
        assert_eq!(values.get("sim").map(String::as_str), Some("3"));
        assert_eq!(values.get("device").map(String::as_str), Some("sim0,sim1"));
        assert_eq!(values.get("bench.duration").map(String::as_str), Some("2s"));
        let refused = |text: &str| parse(text).expect_err("bad");
        assert_eq!(refused("simm = 3").1, "did you mean `sim`?");
        assert_eq!(refused("[bench]\nduratoin = '1s'").1, "did you mean `bench.duration`?");
        assert!(refused("[nothing]\nlike_this_at_all = 1").1.contains("ncs2ctl config"));
        assert!(refused("sim = true").0.contains("found boolean"));
        assert!(refused("sim = ").0.contains("expected TOML"));
    }

    #[test]
    fn every_setting_is_a_flag() {
        // clap panics where a setting names no flag.
        let values = SETTINGS.iter().map(|s| (s.key, "1".to_owned())).collect();
        apply(crate::cli::definition(), &File { path: None, values }, &[]);
        let mut variables: Vec<_> = SETTINGS.iter().map(|s| s.variable).collect();
        variables.sort_unstable();
        variables.dedup();
        assert_eq!(variables.len(), SETTINGS.len());
    }

    #[test]
    fn distance_counts_slips() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
