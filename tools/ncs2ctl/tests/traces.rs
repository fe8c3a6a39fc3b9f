//! `--trace` and `decode`: what was written can be read back, whole and filtered.

mod tool;

use std::fs;

use tool::{fails, json, model, run};

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_trace_is_written_and_decoded_in_both_forms() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let blob = model("tiny_fp16_s1.blob");
    for (name, format) in [("t.log", "text"), ("t.pcapng", "pcapng")] {
        let file = folder.path().join(name);
        let ran = run(&[
            "--sim",
            "1",
            "--timing",
            "zero",
            "--trace",
            text(&file),
            "run",
            text(&blob),
            "--random",
            "1",
        ]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let (code, all) = json(&["decode", text(&file)], "decode");
        assert_eq!((code, &all["format"], &all["skipped"]), (0, &format.into(), &0.into()));
        let lines = all["lines"].as_array().expect("list");
        assert!(lines.len() > 20, "{}", lines.len());
        assert!(lines.iter().any(|l| l["text"].as_str().expect("text").contains("graphMonitor")));
        let (_, part) =
            json(&["decode", text(&file), "--stream", "graphMonitor", "--direction", "in"], "decode");
        let part = part["lines"].as_array().expect("list");
        assert!(!part.is_empty() && part.len() < lines.len());
        assert!(
            part.iter().all(|l| l["direction"] == "in" && l["stream_name"] == "graphMonitor"),
            "{part:?}"
        );
        let nothing = run(&["decode", text(&file), "--stream", "no-such"]);
        assert_eq!((nothing.code, nothing.stdout.as_str()), (1, ""));
    }
    // Both forms of the same kind of run tell the same story, apart from the note that only text can hold.
    let (_, log) = json(&["decode", text(&folder.path().join("t.log"))], "decode");
    assert_eq!(log["simulated"], true);
    assert!(log["lines"][0]["text"].as_str().expect("text").starts_with("simulated, profile ncs2"));
    // What `decode` prints is what it reads.
    let printed =
        tool::ncs2ctl().args(["decode", text(&folder.path().join("t.log"))]).output().expect("it starts");
    assert_eq!(printed.stdout, fs::read(folder.path().join("t.log")).expect("written"));
}

#[test]
fn traces_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let blob = model("tiny_fp16_s1.blob");
    fails(&["--sim", "1", "--trace", &path("t.xyz"), "info"], "info", 64, "Usage", &["--trace", ".pcapng"]);
    fails(
        &["--trace", &path("t.log"), "--sim", "1", "list"],
        "list",
        64,
        "Usage",
        &["--trace", "opens sticks"],
    );
    fails(&["--trace", &path("t.log"), "blob", "info", text(&blob)], "blob-info", 64, "Usage", &["--trace"]);
    fails(&["--sim", "1", "--trace", &path("no/t.log"), "info"], "info", 2, "NotFound", &["t.log"]);
    fails(&["decode", &path("none.log")], "decode", 2, "NotFound", &["none.log"]);
    fs::write(path("text.log"), "hello\n").expect("written");
    fails(&["decode", &path("text.log")], "decode", 2, "InvalidInput", &["lines of a trace", "--trace FILE"]);
}
