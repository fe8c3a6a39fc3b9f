//! `compile` and `setup openvino` with stand-ins for pip, wheel, C++ compiler and vendor's compiler: every way in which
//! they fail, and that nothing half-written stays. The real ones: tests/openvino.rs.

mod tool;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use tool::redact::figures;
use tool::{model, ncs2ctl};
use zip::write::SimpleFileOptions;

const X86_64: u8 = 62;
const AARCH64: u8 = 183;
const COMPILER: [&str; 13] = [
    "libinference_engine.so",
    "libinference_engine_ir_reader.so",
    "libinference_engine_legacy.so",
    "libinference_engine_onnx_reader.so",
    "libinference_engine_transformations.so",
    "libmyriadPlugin.so",
    "libngraph.so",
    "libonnx_importer.so",
    "libonnx_proto.so",
    "libprotobuf.so.3.7.1.0",
    "libtbb.so.2",
    "libtbbmalloc.so.2",
    "plugins.xml",
];

/// A user's home, with stand-ins in it.
struct Home {
    folder: TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut home = Home { folder, variables: Vec::new() };
        // Whatever the test machine has of Python and OpenVINO stays out.
        home.set("NCS2_PYTHON", "/nonexistent/python3");
        home
    }

    fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.variables.retain(|(n, _)| *n != name);
        self.variables.push((name, value.into()));
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    fn script(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
        path
    }

    fn command(&self, args: &[&str]) -> assert_cmd::Command {
        let mut command = ncs2ctl();
        command.args(args).current_dir(self.folder.path());
        command.env("HOME", self.folder.path()).env("XDG_DATA_HOME", self.path("data"));
        command.env("XDG_CACHE_HOME", self.path("cache"));
        for name in ["CXX", "OPENVINO_INSTALL_DIR", "INTEL_OPENVINO_DIR", "LD_LIBRARY_PATH"] {
            command.env_remove(name);
        }
        command.envs(self.variables.iter().map(|(n, v)| (n, v)));
        command
    }

    /// Fails with one line that holds all words; gives the line.
    fn fails(&self, args: &[&str], words: &[&str]) -> String {
        let output = self.command(args).output().expect("it starts");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(
            (output.status.code(), output.stdout.as_slice()),
            (Some(2), &b""[..]),
            "{args:?}: {stderr}"
        );
        assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{args:?}: {stderr}");
        assert!(stderr.contains("; "), "{args:?}: no way out in {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{args:?}: expected `{word}` in {stderr}");
        }
        stderr
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.command(&[&["--json"], args].concat()).output().expect("it starts");
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        let document: Value = serde_json::from_slice(&output.stdout).expect("a document");
        let command =
            args.iter().find(|a| matches!(**a, "compile" | "check" | "setup")).expect("one of these");
        tool::conforms(command, &document);
        document
    }

    /// A wheel with shared libraries that are nothing but a head of 1 MB.
    fn wheel(&self, file: &str, name: &str, version: &str, machine: u8, files: &[&str]) -> String {
        let path = self.path(file);
        let mut zip = zip::ZipWriter::new(fs::File::create(&path).expect("made"));
        let options = SimpleFileOptions::default();
        let mut library = vec![0u8; 1 << 20];
        library[..4].copy_from_slice(b"\x7fELF");
        library[18] = machine;
        for file in files {
            zip.start_file(format!("openvino/libs/{file}"), options).expect("started");
            zip.write_all(if file.ends_with(".xml") { b"<ie/>" } else { &library }).expect("written");
        }
        zip.start_file(format!("{name}-{version}.dist-info/METADATA"), options).expect("started");
        write!(zip, "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nVersion: 9\n")
            .expect("written");
        zip.finish().expect("finished");
        path
    }

    fn good_wheel(&self) -> String {
        self.wheel("good.whl", "openvino", "2021.4.2", X86_64, &COMPILER)
    }

    /// A C++ compiler that "builds" a script: `FAKE` says what the vendor's compiler does.
    fn with_fake_compiler() -> Self {
        let mut home = Home::new();
        let blob = model("tiny_fp16_s1.blob");
        home.script(
            "vendor",
            &format!(
                r#"[ "$2" = version ] && {{ printf 'ncs2\tversion\t2021.4.2-fake\n'; exit 0; }}
echo "[Warning] chatter"
echo run >> {runs}
case "$FAKE" in
  abs) printf 'ncs2\terror\tcompile\t/x/frontend.cpp:1 Failed to compile layer "a": unsupported layer type "Abs"\n'; exit 1;;
  half) head -c 9000 {blob} > "$4"; printf 'ncs2\tdone\n'; exit 0;;
  crash) kill -SEGV $$;;
esac
cp {blob} "$4"; printf 'ncs2\tdone\n'"#,
                runs = home.path("runs"),
                blob = blob.display()
            ),
        );
        let cxx = home.script(
            "cxx",
            &format!(
                r#"[ "$1" = --version ] && exit 0
while [ "$1" != -o ]; do shift; done
cp {} "$2""#,
                home.path("vendor")
            ),
        );
        home.set("CXX", cxx);
        home.json(&["compile", "--setup", &home.good_wheel()]);
        home
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.path("runs")).map_or(0, |text| text.lines().count())
    }
}

fn onnx(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/onnx").join(name);
    path.to_str().expect("UTF-8").to_owned()
}

/// Names of all files under a folder, hidden ones too.
fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names = Vec::new();
    for entry in entries.map(|e| e.expect("entry")) {
        if entry.path().is_dir() {
            names.extend(files(&entry.path()));
        } else {
            names.push(entry.file_name().into_string().expect("UTF-8"));
        }
    }
    names
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the vendor's compiler is for x86-64")]
fn setup_says_what_is_missing() {
    let mut home = Home::new();
    home.fails(
        &["compile", &onnx("tiny.onnx"), "-o", "x.blob"],
        &["compiler, found none", "compile --setup"],
    );
    let way_out = "compile --setup WHEEL";
    home.fails(&["compile", "--setup"], &["expected /nonexistent/python3", "found none", way_out]);
    let python = home.script("python-without-pip", "echo \"$0: No module named pip\" >&2; exit 1");
    home.set("NCS2_PYTHON", python);
    home.fails(&["compile", "--setup"], &["expected pip in", way_out]);
    let python = home.script(
        "python-offline",
        "echo 'WARNING: x' >&2; echo 'ERROR: No matching distribution' >&2; exit 1",
    );
    home.set("NCS2_PYTHON", python);
    home.fails(
        &["compile", "--setup"],
        &["pip could not fetch openvino==2021.4.2: No matching distribution", way_out],
    );
    home.set("CXX", "/nonexistent/g++");
    home.fails(
        &["compile", "--setup", &home.good_wheel()],
        &["C++ compiler", "/nonexistent/g++", "install g++"],
    );
    let broken = home.script(
        "broken-cxx",
        "[ \"$1\" = --version ] && exit 0; echo 'x.cpp:1: error: no headers' >&2; exit 1",
    );
    home.set("CXX", broken);
    home.fails(&["compile", "--setup", &home.good_wheel()], &["could not build compile.cpp", "no headers"]);
    assert_eq!(files(Path::new(&home.path("data"))), Vec::<String>::new(), "nothing half set up stays");
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the vendor's compiler is for x86-64")]
fn wheels_that_are_not_the_one_are_refused() {
    let home = Home::new();
    let setup = |wheel: &str, words: &[&str]| home.fails(&["compile", "--setup", wheel], words);
    setup("missing.whl", &["missing.whl", "found none"]);
    fs::write(home.path("text.whl"), "no archive").expect("written");
    setup("text.whl", &["expected a wheel of openvino 2021.4.2", "no wheel"]);
    let other = home.wheel("other.whl", "openvino", "2022.1.0", X86_64, &COMPILER);
    setup(&other, &["expected a wheel of openvino 2021.4.2, found openvino 2022.1.0", "pip then fetches it"]);
    let other = home.wheel("numpy.whl", "numpy", "2021.4.2", X86_64, &[]);
    setup(&other, &["found numpy 2021.4.2"]);
    let arm = home.wheel("arm.whl", "openvino", "2021.4.2", AARCH64, &COMPILER);
    setup(&arm, &["libinference_engine.so: expected x86-64, found aarch64"]);
    let few = home.wheel("few.whl", "openvino", "2021.4.2", X86_64, &COMPILER[..6]);
    setup(&few, &["libngraph.so: expected in the wheel, found none"]);
    let mut bytes = fs::read(home.good_wheel()).expect("made");
    // Inside the first library, behind its local header.
    bytes[200..260].fill(0xa5);
    fs::write(home.path("damaged.whl"), bytes).expect("written");
    setup("damaged.whl", &["damaged"]);
    assert_eq!(files(Path::new(&home.path("data"))), Vec::<String>::new(), "nothing half set up stays");
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the vendor's compiler is for x86-64")]
fn full_disk_is_told_and_leaves_nothing() {
    let home = Home::new();
    let wheel = home.good_wheel();
    let tool = assert_cmd::cargo::cargo_bin("ncs2ctl");
    // A limit on the size of files fails a write as a full disk does, without one.
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$0\" compile --setup \"$1\""])
        .arg(&tool)
        .arg(&wheel)
        .env("XDG_DATA_HOME", home.path("data"))
        .output()
        .expect("it starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("could not write it") && stderr.contains("check the disk"), "{stderr}");
    assert_eq!(files(Path::new(&home.path("data"))), Vec::<String>::new());
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the vendor's compiler is for x86-64")]
fn second_time_comes_from_the_cache() {
    let home = Home::with_fake_compiler();
    let tiny = onnx("tiny.onnx");
    let first = home.json(&["compile", &tiny, "-o", "a.blob"]);
    let second = home.json(&["compile", &tiny, "-o", "b.blob"]);
    assert_eq!(first["compiler"], "2021.4.2-fake");
    let flag = |d: &Value| d["blobs"][0]["from_cache"].clone();
    assert_eq!((flag(&first), flag(&second), home.runs()), (false.into(), true.into(), 1));
    assert_eq!(first["blobs"][0]["macs"], 714_480);
    assert_eq!(first["blobs"][0]["model_macs"], 714_480);
    let bytes = fs::read(model("tiny_fp16_s1.blob")).expect("committed");
    assert!(["a.blob", "b.blob"].iter().all(|f| fs::read(home.path(f)).expect("made") == bytes));
    // Another option, a batch, another model, and insisting are work again.
    home.json(&["compile", &tiny, "-o", "c.blob", "--input-type", "u8"]);
    home.json(&["compile", &onnx("mlp.onnx"), "-o", "c.blob"]);
    home.json(&["compile", &tiny, "-o", "c.blob", "--no-cache"]);
    assert_eq!(home.runs(), 4);
    let many = home.json(&["compile", &tiny, "-o", "n.blob", "--batch", "1,4"]);
    assert_eq!(
        (many["blobs"].as_array().map(Vec::len), home.runs()),
        (Some(2), 5),
        "batch 1 is the model's own"
    );
    assert!(["n@1.blob", "n@4.blob"].iter().all(|f| Path::new(&home.path(f)).exists()));
    // A blob that the disk has eaten is made again.
    for name in files(Path::new(&home.path("cache"))) {
        fs::write(Path::new(&home.path("cache/ncs2/blobs")).join(name), "eaten").expect("written");
    }
    assert_eq!(flag(&home.json(&["compile", &tiny, "-o", "a.blob"])), false);
    assert_eq!(fs::read(home.path("a.blob")).expect("made"), bytes);
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the vendor's compiler is for x86-64")]
fn refusals_and_breakdowns_leave_no_blob() {
    let mut home = Home::with_fake_compiler();
    fs::write(home.path("kept.blob"), "the user's").expect("written");
    let tiny = onnx("tiny.onnx");
    home.set("FAKE", "abs");
    let refused = onnx("refused.onnx");
    home.fails(
        &["compile", &refused, "-o", "kept.blob"],
        &["no operator", "absolute (Abs, makes a)", "replace"],
    );
    home.set("FAKE", "half");
    home.fails(&["compile", &tiny, "-o", "kept.blob"], &["damaged blob", "has room"]);
    home.set("FAKE", "crash");
    home.fails(&["compile", &tiny, "-o", "kept.blob"], &["broke down", "signal: 11"]);
    assert_eq!(fs::read_to_string(home.path("kept.blob")).expect("there"), "the user's");
    assert_eq!(files(Path::new(&home.path("cache"))), Vec::<String>::new(), "no half blob stays");
    // What is missing of the compiler is told by name.
    fs::remove_file(home.path("data/ncs2/compiler/2021.4.2/libngraph.so")).expect("there");
    home.fails(&["compile", &tiny, "-o", "x.blob"], &["libngraph.so is missing", "compile --setup"]);
}

#[test]
fn models_that_cannot_be_compiled_are_refused_first() {
    // No compiler is set up: an error about that would show that the model was looked at too late.
    let home = Home::new();
    let compile = |args: &[&str], words: &[&str]| {
        home.fails(&[&["compile", "-o", "x.blob"], args].concat(), words);
    };
    let (tiny, mlp, open) = (onnx("tiny.onnx"), onnx("mlp.onnx"), onnx("open_batch.onnx"));
    compile(&["no.onnx"], &["no.onnx", "found none"]);
    fs::write(home.path("x.onnx"), "no model").expect("written");
    compile(&["x.onnx"], &["x.onnx", "no ONNX model", "export"]);
    fs::write(home.path("empty.onnx"), "").expect("written");
    compile(&["empty.onnx"], &["empty"]);
    fs::write(home.path("x.pb"), "no model").expect("written");
    compile(&["x.pb"], &["expected a .onnx or .xml file, found .pb"]);
    fs::write(home.path("x.xml"), "<net/>").expect("written");
    compile(&["x.xml"], &["x.bin", "found none"]);
    compile(&[&open], &["input x", "expected a fixed shape, found Nx3x16x16", "--batch 1"]);
    compile(&[&tiny, "--shape", "1x3x40x40"], &["expected 1x3x32x32 for input data, found 1x3x40x40"]);
    compile(&[&tiny, "--mean", "1,2"], &["expected 1 or 3 values, found 2"]);
    compile(&[&mlp, "--scale", "255"], &["expected a picture", "1x784"]);
    home.fails(&["compile", &tiny, "-o", "no/such/x.blob"], &["expected its folder"]);
    home.fails(&["compile", &tiny, "-o", "."], &["expected a file to write, found a folder"]);
}

#[test]
#[cfg(feature = "openvino")]
fn reference_that_is_not_there_is_told() {
    let mut home = Home::new();
    let blob = model("tiny_fp16_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    let other = home.wheel("old.whl", "openvino", "2024.1.0", X86_64, &["libopenvino_c.so.2410"]);
    home.fails(
        &["setup", "openvino", &other],
        &["expected a wheel of openvino 2025.4.1, found openvino 2024.1.0"],
    );
    home.fails(&["setup", "openvino", "no.whl"], &["no.whl", "found none"]);
    let run = ["--sim", "1", "run", blob, "--random", "1", "--fallback", "openvino"];
    // Where this machine has OpenVINO of its own, what is missing is the model beside the blob.
    let said = home.fails(&run, &["expected"]);
    assert!(said.contains("OpenVINO's libraries") || said.contains("tiny_fp16_s1.onnx"), "{said}");
    fs::create_dir(home.path("empty")).expect("made");
    home.fails(&["setup", "openvino", "empty"], &["expected libopenvino_c.so in it, found none"]);
    // A library that does not load.
    fs::create_dir(home.path("bad")).expect("made");
    fs::write(home.path("bad/libopenvino_c.so"), "no library").expect("written");
    home.fails(&["setup", "openvino", "bad"], &["load OpenVINO", "libopenvino_c.so"]);
    home.set("OPENVINO_INSTALL_DIR", home.path("bad"));
    home.fails(&["--sim", "1", "check", &onnx("tiny.onnx"), blob], &["load OpenVINO"]);
}

#[test]
fn references_from_files_need_no_openvino() {
    let home = Home::new();
    let file = |name: &str| model(name).to_str().expect("UTF-8").to_owned();
    let (blob, input, expected) =
        (file("tiny_fp16_s1.blob"), file("tiny_fp16_s1.in.data.npy"), file("tiny_fp16_s1.out.prob.npy"));
    let base = ["--sim", "1", "--timing", "zero", "check", &blob, "--input", &input];
    let d = home.json(&[&base[..], &["--reference", &expected]].concat());
    assert_eq!(
        (&d["schema"], &d["simulated"], &d["pass"]),
        (&"ncs2ctl.check/1".into(), &true.into(), &true.into())
    );
    assert_eq!(d["outputs"][0]["top1"], 1.0);
    let strict = [&base[..], &["--reference", &expected, "--tolerance", "0"]].concat();
    assert_eq!(home.command(&strict).output().expect("it starts").status.code(), Some(1));
    let wrong = file("mlp_fp16_s1.in.data.npy");
    home.fails(&[&base[..], &["--reference", &wrong]].concat(), &["expected 10 values for output prob"]);
    let output = home.command(&base).output().expect("it starts");
    assert_eq!(output.status.code(), Some(64), "one file and no reference");
}

/// With a stand-in for the vendor's compiler; texts of the real one have snapshots with `tests/openvino.rs`.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the vendor's compiler is for x86-64")]
fn texts_are_as_reviewed() {
    let home = Home::with_fake_compiler();
    let file = |name: &str| model(name).to_str().expect("UTF-8").to_owned();
    let (tiny, blob) = (onnx("tiny.onnx"), file("tiny_fp16_s1.blob"));
    let (input, expected) = (file("tiny_fp16_s1.in.data.npy"), file("tiny_fp16_s1.out.prob.npy"));
    let check =
        ["--sim", "1", "--timing", "zero", "check", &blob, "--input", &input, "--reference", &expected];
    for (name, code, args) in [
        ("compile", 0, vec!["compile", &tiny, "-o", "net.blob"]),
        ("compile-cached", 0, vec!["compile", &tiny, "-o", "net.blob"]),
        ("check", 0, check.to_vec()),
        ("check-beyond", 1, [&check[..], &["--tolerance", "0"]].concat()),
    ] {
        let output = home.command(&args).output().expect("it starts");
        let stdout = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(code), &b""[..]), "{name}");
        assert!(stdout.lines().all(|line| tool::columns(line) <= 120), "{name}: {stdout}");
        let settled = stdout.replace(&tiny, "tiny.onnx").replace(&blob, "tiny.blob");
        insta::assert_snapshot!(name, figures(&settled));
    }
}
