//! What the commands that need the vendor's compiler or OpenVINO print as text, without the figures. `quantize` has a snapshot
//! of its own, with figures that do not change the width of its columns.

use super::tool::redact::figures;
use super::{Setup, committed, text};

#[test]
fn texts_are_as_reviewed() {
    let Some(setup) = Setup::find("texts_are_as_reviewed") else { return };
    let tiny = committed("tiny.onnx");
    let blob = setup.path("net.blob");
    let at = |name: &str| setup.path(name);
    let shifted = at("shifted.blob");
    let sim = ["--sim", "1", "--timing", "zero"];
    let cases: [(&str, i32, Vec<&str>); 7] = [
        ("compile", 0, vec!["compile", text(&tiny), "-o", &blob, "--input-type", "fp32"]),
        ("compile-cached", 0, vec!["compile", text(&tiny), "-o", &blob, "--input-type", "fp32"]),
        ("compile-batches", 0, vec!["compile", text(&tiny), "-o", &blob, "--batch", "1,4"]),
        ("compile-shifted", 0, vec!["compile", text(&tiny), "-o", &shifted, "--mean", "300"]),
        ("check", 0, [&sim[..], &["check", text(&tiny), &blob, "--random", "2"]].concat()),
        ("check-beyond", 1, [&sim[..], &["check", text(&tiny), &shifted]].concat()),
        ("setup", 0, vec!["setup", "openvino"]),
    ];
    let models = committed("").display().to_string();
    let found = setup.json(0, &["setup", "openvino"]);
    let of = |name: &str| found[name].as_str().expect("text").to_owned();
    for (name, code, args) in &cases {
        let (ended, stdout, stderr) = setup.run(args);
        assert_eq!(ended, *code, "{name}: {stderr}");
        assert_eq!(stderr, "", "{name}");
        for line in stdout.lines() {
            assert!(super::tool::columns(line) <= 120, "{name}: {line}");
        }
        let settled = stdout
            .replace(&setup.path(""), "DIR/")
            .replace(&models, "MODELS/")
            .replace(&of("folder"), "FOLDER")
            .replace(&of("version"), "VERSION");
        insta::assert_snapshot!(*name, figures(&settled));
    }
}
