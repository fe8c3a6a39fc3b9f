//! The README's way from a model to an answer: exactly its commands, and what it says that they print.

use std::fs;

use super::Setup;
use super::tool::ncs2ctl;
use super::tool::redact::figures;

const README: &str = include_str!("../../../../README.md");
const SECTION: &str = "\n## From a model to an answer\n";
const MODEL: &str = "python3 tools/models/make_squeezenet.py squeezenet1_1.onnx";

/// Commands of the section's console, each with what it prints there.
fn commands() -> Vec<(&'static str, String)> {
    let section = README.split_once(SECTION).expect("the section").1;
    let console = section.split_once("```console\n").expect("a console").1;
    let mut found: Vec<(&str, String)> = Vec::new();
    for line in console.split_once("```").expect("its end").0.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => found.push((command, String::new())),
            None => found.last_mut().expect("a command first").1.push_str(&format!("{line}\n")),
        }
    }
    found
}

#[test]
fn four_commands_lead_from_a_model_to_a_checked_answer() {
    let Some(setup) = Setup::find("four_commands_lead_from_a_model_to_a_checked_answer") else { return };
    let commands = commands();
    assert_eq!(commands.len(), 4, "{commands:?}");
    // The first needs a Python package: `cargo xtask openvino-test` ran it.
    assert_eq!(commands[0], (MODEL, String::new()));
    let made = setup.data.join("models/squeezenet1_1.onnx");
    if !made.exists() {
        println!("skipped: {} is not there", made.display());
        return;
    }
    fs::copy(&made, setup.path("squeezenet1_1.onnx")).expect("copied");
    for (command, printed) in &commands[1..] {
        let words: Vec<&str> = command.split_whitespace().collect();
        assert_eq!(words[0], "ncs2ctl", "{command}");
        let mut tool = ncs2ctl();
        tool.args(&words[1..]).current_dir(setup.folder.path()).env("COLUMNS", "100");
        tool.env("XDG_DATA_HOME", &setup.data).env("XDG_CACHE_HOME", setup.path("cache"));
        let output = tool.output().expect("it starts");
        assert_eq!(output.status.code(), Some(0), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(figures(&said), figures(printed), "{command}: the README is not what it prints:\n{said}");
        // What does not depend on the machine is the same to the last digit.
        let exact = |text: &str| {
            let lines = text.lines().filter(|line| {
                ["input ", "output ", "work ", "memory ", "executor ", "stages "]
                    .iter()
                    .any(|word| line.trim_start().starts_with(word))
            });
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(exact(&said), exact(printed), "{command}");
    }
}
