//! `firmware list` and `firmware verify`: what the manifest does not name is refused.

mod tool;

use std::fs;

use tool::{fails, json, ncs2ctl};

#[test]
fn files_that_the_manifest_does_not_name_are_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("x.mvcmd");
    let file = path.to_str().expect("UTF-8");
    fs::write(&path, "no firmware").expect("written");
    fails(&["firmware", "verify", file], "firmware", 2, "Firmware", &["x.mvcmd", "sha256"]);
    let (code, d) = json(&["firmware", "verify", file, "--any-firmware"], "firmware");
    assert_eq!((code, &d["known"], &d["size_bytes"]), (0, &false.into(), &11.into()));
    fails(&["firmware", "verify", "no-such.mvcmd"], "firmware", 2, "NotFound", &["no-such.mvcmd"]);
}

#[test]
fn the_list_has_the_manifest_and_what_lies_where_it_should() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let place = folder.path().join("ncs2/firmware");
    fs::create_dir_all(&place).expect("made");
    fs::write(place.join("usb-ma2x8x.mvcmd"), "not it").expect("written");
    let output = ncs2ctl()
        .env("XDG_DATA_HOME", folder.path())
        .args(["--json", "firmware", "list"])
        .output()
        .expect("it starts");
    let d: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert_eq!(d["manifest"][0]["name"], "usb-ma2x8x.mvcmd");
    assert_eq!(d["found"][0]["known"], false, "{d}");
}
