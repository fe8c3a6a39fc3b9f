//! The vendor's compiler and OpenVINO's CPU, really: compile → run → check. `cargo xtask openvino-test` sets both up and
//! names the folder in `NCS2_OPENVINO_TEST`; without it every test here says that it is skipped.
//!
//! `NCS2_ONNX` may name a folder with more models (`NAME.onnx`) and blobs made of them (`NAME_TYPE_sN.blob`).

mod tool;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tool::ncs2ctl;

/// What was set up, and a folder for this test's own files.
struct Setup {
    data: PathBuf,
    folder: tempfile::TempDir,
}

impl Setup {
    fn find(test: &str) -> Option<Self> {
        let Some(data) = std::env::var_os("NCS2_OPENVINO_TEST") else {
            println!("{test}: skipped: NCS2_OPENVINO_TEST is not set; run `cargo xtask openvino-test`");
            return None;
        };
        Some(Setup { data: data.into(), folder: tempfile::tempdir().expect("temporary folder") })
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = ncs2ctl();
        command.args(args).env("XDG_DATA_HOME", &self.data).env("XDG_CACHE_HOME", self.path("cache"));
        for name in ["OPENVINO_INSTALL_DIR", "INTEL_OPENVINO_DIR", "LD_LIBRARY_PATH"] {
            command.env_remove(name);
        }
        let output = command.output().expect("it starts");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    fn json(&self, code: i32, args: &[&str]) -> Value {
        let (found, stdout, stderr) = self.run(&[&["--json"], args].concat());
        assert_eq!(found, code, "{args:?}: {stdout}{stderr}");
        serde_json::from_str(&stdout).expect("a document")
    }
}

/// Folders of models: the committed ones, then the one that the environment names.
fn models() -> Vec<(String, PathBuf)> {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/onnx");
    let mut found: Vec<(String, PathBuf)> =
        ["tiny", "mlp"].map(|n| (n.to_owned(), committed.join(format!("{n}.onnx")))).to_vec();
    match std::env::var_os("NCS2_ONNX").map(PathBuf::from) {
        None => println!("NCS2_ONNX is not set: squeezenet1_1 and larger models are skipped"),
        Some(folder) => {
            for entry in fs::read_dir(&folder).expect("NCS2_ONNX is a folder") {
                let path = entry.expect("entry").path();
                let name = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
                if path.extension().is_some_and(|e| e == "onnx") && found.iter().all(|(n, _)| *n != name) {
                    found.push((name, path));
                }
            }
        }
    }
    found.sort();
    found
}

/// Blobs made of `name`: path, type of inputs, streams.
fn blobs(name: &str) -> Vec<(PathBuf, String, String)> {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/models");
    let more = std::env::var_os("NCS2_ONNX").map(PathBuf::from);
    let mut out = Vec::new();
    for kind in ["fp16", "u8"] {
        for streams in ["1", "2", "3"] {
            let file = format!("{name}_{kind}_s{streams}.blob");
            let paths = std::iter::once(&committed).chain(&more).map(|folder| folder.join(&file));
            out.extend(
                paths.filter(|p| p.exists()).take(1).map(|p| (p, kind.to_owned(), streams.to_owned())),
            );
        }
    }
    out
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn blobs_are_reproduced_byte_for_byte() {
    let Some(setup) = Setup::find("blobs_are_reproduced_byte_for_byte") else { return };
    let mut compared = 0;
    for (name, model) in models() {
        for (blob, kind, streams) in blobs(&name) {
            let out = setup.path("out.blob");
            let args = ["compile", text(&model), "-o", &out, "--input-type", &kind, "--streams", &streams];
            let d = setup.json(0, &args);
            assert_eq!(d["blobs"][0]["from_cache"], false, "{name}");
            let (ours, theirs) = (fs::read(&out).expect("made"), fs::read(&blob).expect("there"));
            assert!(ours == theirs, "{name} {kind} {streams}: {} and {} bytes", ours.len(), theirs.len());
            assert_eq!(setup.json(0, &args)["blobs"][0]["from_cache"], true, "{name}");
            println!("{name} {kind} streams {streams}: {} bytes, the same", ours.len());
            compared += 1;
        }
    }
    assert!(compared >= 4, "tiny three times, mlp once");
}

#[test]
fn model_and_blob_count_the_same_work() {
    let Some(setup) = Setup::find("model_and_blob_count_the_same_work") else { return };
    for (name, model) in models() {
        let out = setup.path("out.blob");
        let d = setup.json(0, &["compile", text(&model), "-o", &out]);
        let (blob, model) = (&d["blobs"][0]["macs"], &d["blobs"][0]["model_macs"]);
        assert!(model.is_u64(), "{name}: the model's shapes are noted");
        assert_eq!(blob, model, "{name}");
        println!("{name}: {blob} multiply-accumulates in both");
    }
}

#[test]
fn compiled_blobs_answer_as_the_model_does() {
    let Some(setup) = Setup::find("compiled_blobs_answer_as_the_model_does") else { return };
    for (name, model) in
        models().iter().filter(|(n, _)| matches!(n.as_str(), "tiny" | "mlp" | "squeezenet1_1"))
    {
        let out = setup.path(&format!("{name}.blob"));
        setup.json(0, &["compile", text(model), "-o", &out]);
        let sim = ["--sim", "1", "--timing", "zero"];
        let ran = setup.json(0, &[&sim[..], &["run", &out, "--random", "1"]].concat());
        assert_eq!(ran["simulated"], true);
        let d = setup.json(0, &[&sim[..], &["check", text(model), &out, "--random", "4"]].concat());
        assert_eq!(
            (&d["pass"], &d["inferences"], &d["outputs"][0]["top1"]),
            (&true.into(), &4.into(), &1.0.into())
        );
        println!(
            "{name}: max error {}, allowed {}",
            d["outputs"][0]["max_error"], d["outputs"][0]["allowed"]
        );
        // A tolerance that FP16 cannot keep is a negative result.
        setup.json(1, &[&sim[..], &["check", text(model), &out, "--tolerance", "1e-12"]].concat());
    }
}

#[test]
fn batches_and_normalisation_are_right() {
    let Some(setup) = Setup::find("batches_and_normalisation_are_right") else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/onnx");
    let (tiny, open) = (folder.join("tiny.onnx"), folder.join("open_batch.onnx"));
    let sim = ["--sim", "1", "--timing", "zero", "check"];
    for model in [&tiny, &open] {
        setup.json(0, &["compile", text(model), "-o", &setup.path("b.blob"), "--batch", "1,4"]);
        for batch in [1, 4] {
            let blob = setup.path(&format!("b@{batch}.blob"));
            let (code, info, _) = setup.run(&["--json", "blob", "info", &blob]);
            let info: Value = serde_json::from_str(&info).expect("a document");
            assert_eq!((code, &info["batch"]), (0, &batch.into()));
            setup.json(0, &[&sim[..], &[text(model), &blob, "--random", "2"]].concat());
        }
    }
    let blob = setup.path("n.blob");
    let (mean, scale) = ("123.7,116.3,103.5", "58.4,57.1,57.4");
    let flags = ["--input-type", "u8", "--mean", mean, "--scale", scale];
    setup.json(0, &[&["compile", text(&tiny), "-o", &blob][..], &flags].concat());
    let check = [&sim[..], &[text(&tiny), &blob, "--random", "4"]].concat();
    let with = ["--compiled-mean", mean, "--compiled-scale", scale];
    setup.json(0, &[&check[..], &with].concat());
    // The model without them is another network: the check notices, and that it differs from the first layer on.
    let d = setup.json(1, &check);
    let said = d["first_difference"].as_str().unwrap_or_default();
    assert!(said.contains("the first that differs is conv_3 (Conv)"), "{d}");
}

#[test]
fn every_layer_that_is_refused_is_named() {
    let Some(setup) = Setup::find("every_layer_that_is_refused_is_named") else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/onnx");
    for (file, words) in [
        ("refused.onnx", &["2 layers", "absolute (Abs", "sine (Sin"][..]),
        ("unknown.onnx", &["1 layer", "frobnicate (Frob)"]),
    ] {
        let out = setup.path("x.blob");
        let (code, stdout, stderr) = setup.run(&["compile", text(&folder.join(file)), "-o", &out]);
        assert_eq!((code, stdout.as_str(), stderr.lines().count()), (2, "", 1), "{stderr}");
        assert!(words.iter().all(|w| stderr.contains(w)), "{stderr}");
        assert!(!Path::new(&out).exists(), "no blob");
    }
}

#[test]
fn libraries_are_found_and_their_link_is_whole() {
    let Some(setup) = Setup::find("libraries_are_found_and_their_link_is_whole") else { return };
    let d = setup.json(0, &["setup", "openvino"]);
    assert!(d["version"].as_str().is_some_and(|v| v.starts_with("202")), "{d}");
    assert!(d["link"] == "there" || d["link"] == "made", "{d}");
}
