//! `udev print` and `udev install`: what is printed is what is written, and what was written is said.

mod tool;

use std::fs;

use tool::{json, run};

#[test]
fn the_rule_is_printed_and_installed_below_a_root() {
    let rule = run(&["udev", "print"]).stdout;
    assert!(rule.contains("03e7") && rule.contains("f63b"), "{rule}");
    assert_eq!(json(&["udev", "print"], "udev").1["rule"], rule);
    let folder = tempfile::tempdir().expect("temporary folder");
    let root = folder.path().to_str().expect("UTF-8");
    let (code, d) = json(&["udev", "install", "--root", root], "udev");
    assert_eq!((code, &d["files"][0]["changed"], &d["files"][1]["changed"]), (0, &true.into(), &true.into()));
    for file in d["files"].as_array().expect("list") {
        assert!(fs::metadata(file["file"].as_str().expect("text")).is_ok(), "{file}");
    }
    assert_eq!(
        fs::read_to_string(folder.path().join("etc/udev/rules.d/70-ncs2.rules")).expect("written"),
        rule
    );
    let again = run(&["udev", "install", "--root", root]);
    assert_eq!((again.code, again.stdout.matches("unchanged ").count()), (0, 2), "{}", again.stdout);
    let names: Vec<_> = fs::read_dir(folder.path().join("etc/udev/rules.d")).expect("made").collect();
    assert_eq!(names.len(), 1, "nothing is left aside");
    fs::write(folder.path().join("file"), "").expect("written");
    let below_a_file = format!("{root}/file");
    assert_eq!(run(&["udev", "install", "--root", &below_a_file]).code, 2);
}
