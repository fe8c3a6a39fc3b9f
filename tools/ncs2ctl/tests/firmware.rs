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

/// `--any-firmware` stands in for the vendor's file, which no test has.
#[test]
fn install_takes_the_file_out_of_a_folder_and_keeps_it_whole() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let lib = folder.path().join("openvino/libs");
    fs::create_dir_all(&lib).expect("made");
    fs::write(lib.join("usb-ma2x8x.mvcmd"), "an image").expect("written");
    let from = folder.path().join("openvino");
    let install = |args: &[&str]| {
        let output = ncs2ctl()
            .env("XDG_DATA_HOME", folder.path().join("data"))
            .args(["--json", "firmware", "install"])
            .arg(&from)
            .args(args)
            .output()
            .expect("it starts");
        let d: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one document");
        (output.status.code(), d)
    };
    let installed = folder.path().join("data/ncs2/firmware/usb-ma2x8x.mvcmd");
    let (code, d) = install(&[]);
    assert_eq!((code, &d["error"]["kind"]), (Some(2), &"Firmware".into()), "{d}");
    assert!(!installed.exists(), "a refused file must not be installed");
    let (code, d) = install(&["--any-firmware"]);
    assert_eq!((code, &d["known"], &d["size_bytes"]), (Some(0), &false.into(), &8.into()), "{d}");
    assert_eq!(fs::read(&installed).expect("installed"), b"an image");
}

#[test]
fn install_says_what_a_wheel_lacks() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("x.whl");
    let file = path.to_str().expect("UTF-8");
    fs::write(&path, "PK no archive").expect("written");
    fails(&["firmware", "install", file], "firmware", 2, "InvalidInput", &["x.whl", "damaged"]);
    // An empty archive is its end record alone.
    fs::write(&path, [b"PK\x05\x06".as_slice(), &[0; 18]].concat()).expect("written");
    fails(&["firmware", "install", file], "firmware", 2, "Firmware", &["x.whl", "usb-ma2x8x.mvcmd"]);
    fails(&["firmware", "install", "no-such.whl"], "firmware", 2, "NotFound", &["no-such.whl"]);
}

#[test]
fn what_people_read_is_as_reviewed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let image = folder.path().join("usb-ma2x8x.mvcmd");
    fs::write(&image, "an image").expect("written");
    let mut told = String::new();
    let image = image.to_str().expect("UTF-8");
    for args in [
        &["firmware", "list"][..],
        &["firmware", "verify", image],
        &["firmware", "verify", image, "--any-firmware"],
        &["firmware", "install", image],
        &["firmware", "install", image, "--any-firmware"],
        &["firmware", "list"],
    ] {
        let output = ncs2ctl()
            .args(args)
            .env("XDG_DATA_HOME", folder.path().join("data"))
            .env("HOME", folder.path())
            .output()
            .expect("it starts");
        let text =
            |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&*folder.path().to_string_lossy(), "DIR");
        // What an installed OpenVINO has is this machine's.
        let here = text(&output.stdout);
        let here = here.lines().filter(|line| !line.contains("/opt/")).map(|line| format!("{line}\n"));
        let command = args.join(" ").replace(&*folder.path().to_string_lossy(), "DIR");
        told.push_str(&format!("$ ncs2ctl {command}\n"));
        told.extend(here);
        told.push_str(&format!(
            "{}exit {:?}\n",
            text(&output.stderr),
            output.status.code().expect("an exit")
        ));
    }
    insta::assert_snapshot!("firmware", told);
}
