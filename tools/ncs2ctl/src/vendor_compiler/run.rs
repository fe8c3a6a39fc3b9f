//! One compilation: the glue runs in a child process, whatever the vendor's libraries do there.

use std::path::Path;
use std::process::{Command, Output};

use ncs2::ErrorKind;

use crate::failure::{Failure, Result};

/// Our glue's name beside the libraries.
pub(super) const PROGRAM: &str = "ncs2-compile";

/// What the compiler is asked for, in its own words.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// `U8`, `FP16`, `FP32`.
    pub input_type: Option<&'static str>,
    /// `FP16`, `FP32`.
    pub output_type: Option<&'static str>,
    /// `NCHW`, `NHWC`.
    pub layout: Option<&'static str>,
    /// Sets the first dimension of every input.
    pub batch: Option<u32>,
    /// The compiler's keys (BLOB_FORMAT 8.2).
    pub settings: Vec<(String, String)>,
}

impl Options {
    /// As the glue takes them; also what the cache knows them by.
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        for (key, value) in
            [("input-type", self.input_type), ("output-type", self.output_type), ("layout", self.layout)]
        {
            words.extend(value.map(|value| format!("{key}={value}")));
        }
        words.extend(self.batch.map(|n| format!("batch={n}")));
        let mut settings: Vec<String> = self.settings.iter().map(|(k, v)| format!("set:{k}={v}")).collect();
        settings.sort();
        words.append(&mut settings);
        words
    }
}

/// The compiler ran and said no.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// `load`, `read`, `configure`, `compile`, `export`.
    pub phase: String,
    /// The vendor's words, one line.
    pub text: String,
    /// Inputs that it found without a shape.
    pub open_inputs: Vec<String>,
}

/// Compiles `model` to `out`. The outer error is ours to report, the inner one the compiler's to explain.
pub fn run(folder: &Path, model: &Path, options: &Options, out: &Path) -> Result<Result<(), Refused>> {
    let mut command = program(folder);
    command.arg("compile").arg(model).arg(out).args(options.words());
    let output = start(&mut command, folder)?;
    match lines(&output) {
        Some(Ok(_)) => Ok(Ok(())),
        Some(Err(refused)) => Ok(Err(refused)),
        None => Err(broken(&output)),
    }
}

/// What the libraries say of themselves; proves that all of them load.
pub(super) fn version(folder: &Path) -> Result<String> {
    let output = start(program(folder).arg("version"), folder)?;
    match lines(&output) {
        Some(Ok(build)) => Ok(build),
        Some(Err(refused)) => Err(Failure::new(
            ErrorKind::Unsupported,
            format!("the vendor's libraries do not load: {}", refused.text),
            "install what is named there; the libraries need glibc 2.17 and libstdc++",
        )),
        None => Err(broken(&output)),
    }
}

fn program(folder: &Path) -> Command {
    let mut command = Command::new(folder.join(PROGRAM));
    // Nothing but the folder: another OpenVINO of the user's must not get between these libraries.
    command.arg(folder).env("LD_LIBRARY_PATH", folder).env_remove("LD_PRELOAD");
    command
}

fn start(command: &mut Command, folder: &Path) -> Result<Output> {
    command.output().map_err(|e| Failure::file(&folder.join(PROGRAM), "run", &e))
}

/// What our glue said: `Ok` with the version or nothing, the refusal, or `None` when it did not come to an end.
fn lines(output: &Output) -> Option<Result<String, Refused>> {
    let text = String::from_utf8_lossy(&output.stdout);
    let mut open_inputs = Vec::new();
    let mut end = None;
    for line in text.lines() {
        let fields: Vec<&str> = line.splitn(4, '\t').collect();
        match *fields {
            ["ncs2", "version", build] => end = Some(Ok(build.to_owned())),
            ["ncs2", "done"] => end = Some(Ok(String::new())),
            ["ncs2", "input", "", name] => open_inputs.push(name.to_owned()),
            ["ncs2", "error", phase, text] => {
                let (phase, text) = (phase.to_owned(), text.to_owned());
                end = Some(Err(Refused { phase, text, open_inputs: Vec::new() }));
            }
            _ => {}
        }
    }
    end.map(|end| end.map_err(|refused| Refused { open_inputs, ..refused }))
}

/// The child ended without a word of ours.
fn broken(output: &Output) -> Failure {
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().map(str::trim).rfind(|l| !l.is_empty());
    let line = line.map(|l| format!(": {l}")).unwrap_or_default();
    let message = format!("the vendor's compiler broke down ({}){line}", output.status);
    Failure::new(
        ErrorKind::Unsupported,
        message,
        "try without --set; if it comes back, set it up anew with --setup",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    fn said(stdout: &str) -> Output {
        Output { status: ExitStatus::from_raw(0), stdout: stdout.into(), stderr: Vec::new() }
    }

    #[test]
    fn only_our_lines_count() {
        assert_eq!(lines(&said("chatter\nncs2\tdone\n")), Some(Ok(String::new())));
        assert_eq!(lines(&said("ncs2\tversion\t2021.4.2-1\n")), Some(Ok("2021.4.2-1".into())));
        assert_eq!(lines(&said("[Warning] done\n")), None);
        let refused = lines(&said("ncs2\tinput\t\tx\nncs2\tinput\t1,3\ty\nncs2\terror\tcompile\ta\tb\n"));
        let expected =
            Refused { phase: "compile".into(), text: "a\tb".into(), open_inputs: vec!["x".to_owned()] };
        assert_eq!(refused, Some(Err(expected)));
    }

    #[test]
    fn words_do_not_depend_on_the_order_of_settings() {
        let with = |settings: &[(&str, &str)]| Options {
            input_type: Some("U8"),
            batch: Some(4),
            settings: settings.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect(),
            ..Options::default()
        };
        let words = with(&[("B", "1"), ("A", "2")]).words();
        assert_eq!(words, ["input-type=U8", "batch=4", "set:A=2", "set:B=1"]);
        assert_eq!(words, with(&[("A", "2"), ("B", "1")]).words());
    }
}
