//! Help texts, word for word, and that each holds an example.

mod tool;

use tool::run;

#[test]
fn help_texts_are_as_reviewed() {
    trycmd::TestCases::new().env("COLUMNS", "100").case("tests/cmd/*.trycmd");
}

#[test]
fn every_help_has_an_example() {
    for command in [
        &["list"][..],
        &["info"],
        &["blob", "info"],
        &["run"],
        &["bench"],
        &["compile"],
        &["check"],
        &["setup", "openvino"],
        &["completions"],
        &["man"],
        &["decode"],
        &["sim", "serve"],
        &["sim", "status"],
        &["sim", "calibrate"],
        &["selftest"],
        &["firmware", "list"],
        &["firmware", "verify"],
        &["firmware", "install"],
        &["firmware", "fetch"],
        &["batch"],
        &["boot"],
        &["doctor"],
        &["reset"],
        &["sim", "attach"],
        &["top"],
        &["trace"],
        &["quantize"],
        &["udev", "print"],
        &["udev", "install"],
        &["config"],
        &["thermal"],
        &["thermal", "watch"],
    ] {
        let ran = run(&[command, &["--help"]].concat());
        assert_eq!(ran.code, 0, "{command:?}");
        let example = format!("ncs2ctl {}", command.join(" "));
        let after = ran.stdout.split("Examples:").nth(1).unwrap_or_default();
        let words = example.split(' ').skip(1).all(|word| after.contains(word));
        assert!(after.contains("  ncs2ctl") && words, "{command:?}: {}", ran.stdout);
    }
}

#[test]
fn completions_and_pages_come_from_the_same_definitions() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(&["completions", shell]);
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.contains("ncs2ctl") && ran.stdout.contains("target-tops"), "{shell}");
    }
    let page = run(&["man"]);
    assert!(page.stdout.contains(".TH ncs2ctl 1"), "{}", page.stdout);
    let folder = tempfile::tempdir().expect("temporary folder");
    let ran = run(&["man", "--output", folder.path().to_str().expect("UTF-8")]);
    assert_eq!(ran.code, 0);
    let mut names: Vec<String> = std::fs::read_dir(folder.path())
        .expect("made")
        .map(|e| e.expect("entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    let commands = [
        "-batch",
        "-bench",
        "-blob-info",
        "-blob",
        "-boot",
        "-check",
        "-compile",
        "-completions",
        "-config",
        "-decode",
        "-doctor",
        "-firmware-fetch",
        "-firmware-install",
        "-firmware-list",
        "-firmware-verify",
        "-firmware",
        "-info",
        "-list",
        "-man",
        "-quantize",
        "-reset",
        "-run",
        "-selftest",
        "-setup-openvino",
        "-setup",
        "-sim-attach",
        "-sim-calibrate",
        "-sim-serve",
        "-sim-status",
        "-sim",
        "-thermal-watch",
        "-thermal",
        "-top",
        "-trace",
        "-udev-install",
        "-udev-print",
        "-udev",
        "",
    ];
    assert_eq!(names, commands.map(|c| format!("ncs2ctl{c}.1")));
    let bench = std::fs::read_to_string(folder.path().join("ncs2ctl-bench.1")).expect("written");
    assert!(bench.contains("target\\-tops"), "{bench}");
}
