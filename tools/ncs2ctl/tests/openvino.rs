//! The vendor's compiler and OpenVINO's CPU, really: compile → run → check. `cargo xtask openvino-test` sets both up and
//! names the folder in `NCS2_OPENVINO_TEST`; without it every test here says that it is skipped.
//!
//! `NCS2_ONNX` may name a folder with more models (`NAME.onnx`) and blobs made of them (`NAME_TYPE_sN.blob`).

#[path = "openvino/flags.rs"]
mod flags;
#[path = "openvino/readme.rs"]
mod readme;
#[path = "openvino/texts.rs"]
mod texts;
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

    /// What `blob info` says of a file.
    fn info(&self, blob: &str) -> Value {
        let (code, stdout, stderr) = self.run(&["--json", "blob", "info", blob]);
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str(&stdout).expect("a document")
    }

    /// Fails with one line that holds all words.
    fn fails(&self, code: i32, args: &[&str], words: &[&str]) {
        let (found, stdout, stderr) = self.run(args);
        assert_eq!((found, stdout.as_str(), stderr.lines().count()), (code, "", 1), "{args:?}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{args:?}: expected `{word}` in {stderr}");
        }
    }

    fn json(&self, code: i32, args: &[&str]) -> Value {
        let (found, stdout, stderr) = self.run(&[&["--json"], args].concat());
        assert_eq!(found, code, "{args:?}: {stdout}{stderr}");
        let document: Value = serde_json::from_str(&stdout).expect("a document");
        let commands = ["compile", "check", "quantize", "setup", "run"];
        let command = args.iter().find(|a| commands.contains(a)).expect("one of these");
        tool::conforms(command, &document);
        document
    }
}

/// The committed models, the one that `cargo xtask openvino-test` makes, and those of the folder that the environment names.
fn models(setup: &Setup) -> Vec<(String, PathBuf)> {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/onnx");
    let mut found: Vec<(String, PathBuf)> =
        ["tiny", "mlp"].map(|n| (n.to_owned(), committed.join(format!("{n}.onnx")))).to_vec();
    // Its weights are not those of the committed blob: by another name nobody compares them.
    let made = setup.data.join("models/squeezenet1_1.onnx");
    match made.exists() {
        true => found.push(("squeezenet1_1 as made".to_owned(), made)),
        false => println!("{} is not there: skipped", made.display()),
    }
    match std::env::var_os("NCS2_ONNX").map(PathBuf::from) {
        None => println!("NCS2_ONNX is not set: other models are skipped"),
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

/// A model that lies with the tests.
fn committed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/onnx").join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn blobs_are_reproduced_byte_for_byte() {
    let Some(setup) = Setup::find("blobs_are_reproduced_byte_for_byte") else { return };
    let mut compared = 0;
    for (name, model) in models(&setup) {
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
    for (name, model) in models(&setup) {
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
    for (name, model) in models(&setup)
        .iter()
        .filter(|(n, _)| ["tiny", "mlp", "squeezenet1_1"].iter().any(|w| n.starts_with(w)))
    {
        let out = setup.path("net.blob");
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
            assert_eq!(setup.info(&blob)["batch"], batch);
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
    assert!(said.contains("no layer from conv_3 (Conv) on"), "{d}");
}

#[test]
fn every_layer_that_is_refused_is_named() {
    let Some(setup) = Setup::find("every_layer_that_is_refused_is_named") else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/onnx");
    for (file, words) in [
        ("refused.onnx", &["2 layers", "absolute (Abs", "sine (Sin"][..]),
        ("unknown.onnx", &["1 layer", "frobnicate (Frob)"]),
        ("tiny_qdq.onnx", &["DequantizeLinear", "ncs2ctl quantize MODEL --int8"]),
        ("dynamic.onnx", &["shapes inside that depend on its data", "fixed shapes"]),
    ] {
        let out = setup.path("x.blob");
        setup.fails(2, &["compile", text(&folder.join(file)), "-o", &out], words);
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

#[test]
fn what_int8_costs_and_gains_is_told() {
    let Some(setup) = Setup::find("what_int8_costs_and_gains_is_told") else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/onnx");
    let (tiny, int8) = (folder.join("tiny.onnx"), folder.join("tiny_qdq.onnx"));
    let out = setup.path("int8.blob");
    let base = ["--sim", "1", "quantize", text(&tiny), "--int8", text(&int8), "--random", "4"];
    let short = ["--duration", "300ms"];
    let d = setup.json(0, &[&base[..], &short, &["-o", &out]].concat());
    assert_eq!(d["simulated"], true);
    let names = |d: &Value, list: &str| {
        let rows = d[list].as_array().expect("a list").clone();
        rows.iter().map(|row| row["name"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&d, "rows"), ["as it is", "INT8 made plain"]);
    assert_eq!(names(&d, "cpu"), ["the model", "the INT8 model"]);
    let number = |row: &Value, field: &str| row[field].as_f64().unwrap_or(f64::NAN);
    let (plain, quantized) = (&d["rows"][0], &d["rows"][1]);
    // The chip holds FP16 either way; what INT8 did to the weights shows in the answers.
    let bytes = fs::metadata(&out).expect("written").len() as f64;
    assert_eq!(number(quantized, "blob_bytes"), bytes);
    assert!((bytes / number(plain, "blob_bytes") - 1.0).abs() < 0.1, "{d}");
    assert!(number(plain, "max_error") < number(quantized, "max_error"), "{d}");
    assert!(number(quantized, "cosine") > 0.99 && number(plain, "fps") > 0.0, "{d}");
    let (fp32, int8_row) = (&d["cpu"][0], &d["cpu"][1]);
    assert_eq!(number(fp32, "max_error"), 0.0, "it is the reference");
    assert!(number(int8_row, "max_error") > 0.0 && number(int8_row, "cosine") > 0.99, "{d}");
    assert!(
        [fp32, int8_row].iter().all(|row| number(row, "fps") > 0.0 && number(row, "p50_ms") > 0.0),
        "{d}"
    );
    println!("on this CPU: FP32 {} ms, INT8 {} ms", fp32["p50_ms"], int8_row["p50_ms"]);

    // Bytes in: mean and scale in front, and in the first convolution.
    let mean = ["--mean", "123.7,116.3,103.5", "--scale", "58.4,57.1,57.4"];
    let args = [&["--sim", "1", "quantize", text(&tiny), "--random", "4"][..], &short, &mean].concat();
    let d = setup.json(0, &args);
    assert_eq!(names(&d, "rows"), ["as it is", "bytes in", "bytes in, scale folded"]);
    let rows = d["rows"].as_array().expect("a list");
    assert!(rows.iter().all(|row| number(row, "cosine") > 0.9999), "{d}");
    let (fp16, bytes) = (number(&rows[0], "input_bytes"), number(&rows[2], "input_bytes"));
    assert!(bytes < 0.6 * fp16, "{bytes} against {fp16}");

    // In text, and what is no INT8 model in one line.
    let (code, stdout, stderr) = setup.run(&[&base[..], &short].concat());
    assert_eq!(code, 0, "{stderr}");
    for words in ["INT8 made plain", "the INT8 model", "measured on this computer", "simulated"] {
        assert!(stdout.contains(words), "{words}: {stdout}");
    }
    let wrong = ["--sim", "1", "quantize", text(&tiny), "--int8", text(&tiny), "--random", "1"];
    let (code, stdout, stderr) = setup.run(&wrong);
    assert_eq!((code, stdout.as_str(), stderr.lines().count()), (2, "", 1), "{stderr}");
    assert!(stderr.contains("no DequantizeLinear"), "{stderr}");
}

#[test]
fn a_dataset_and_labels_name_what_is_wrong() {
    let Some(setup) = Setup::find("a_dataset_and_labels_name_what_is_wrong") else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
    let tiny = folder.join("onnx/tiny.onnx");
    let input = folder.join("models/tiny_fp16_s1.in.data.npy");
    let data = setup.path("data");
    fs::create_dir(&data).expect("made");
    for name in ["a.npy", "b.npy"] {
        fs::copy(&input, Path::new(&data).join(name)).expect("copied");
    }
    fs::write(Path::new(&data).join("notes.txt"), "no input").expect("written");
    let labels = setup.path("labels.txt");
    let words: Vec<String> = (0..10).map(|n| format!("thing {n}")).collect();
    fs::write(&labels, words.join("\n")).expect("written");
    let (good, bad) = (setup.path("good.blob"), setup.path("bad.blob"));
    setup.json(0, &["compile", text(&tiny), "-o", &good]);
    // The same network behind a normalisation that the check is not told of.
    setup.json(0, &["compile", text(&tiny), "-o", &bad, "--mean", "300", "--scale", "0.01"]);
    let check = |blob: &str, code: i32| {
        let args = [
            "--sim",
            "1",
            "--timing",
            "zero",
            "check",
            text(&tiny),
            blob,
            "--dataset",
            &data,
            "--labels",
            &labels,
        ];
        setup.json(code, &args)
    };
    let d = check(&good, 0);
    assert_eq!(
        (&d["inferences"], &d["pass"], &d["outputs"][0]["top1"]),
        (&2.into(), &true.into(), &1.0.into())
    );
    let d = check(&bad, 1);
    assert_eq!((&d["inferences"], &d["pass"]), (&2.into(), &false.into()));
    assert!(d["first_difference"].as_str().is_some_and(|s| s.contains("no layer from")), "{d}");
    for miss in d["outputs"][0]["misses"].as_array().expect("a list") {
        assert!(miss["found"].as_str().is_some_and(|s| s.contains("thing ")), "{d}");
        assert!(miss["input"].as_str().is_some_and(|s| s.ends_with(".npy")), "{d}");
    }
}

#[test]
fn openvino_stands_in_for_sticks_that_are_gone() {
    let Some(setup) = Setup::find("openvino_stands_in_for_sticks_that_are_gone") else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
    let tiny = folder.join("onnx/tiny.onnx");
    let blob = setup.path("tiny.blob");
    setup.json(0, &["compile", text(&tiny), "-o", &blob]);
    let plan = setup.path("plan.toml");
    fs::write(&plan, "[[fault]]\nkind = \"unplug\"\nnth = 1\n").expect("written");
    let file = |name: &str| folder.join("models").join(name).to_str().expect("UTF-8").to_owned();
    let (input, expected) = (file("tiny_fp16_s1.in.data.npy"), file("tiny_fp16_s1.out.prob.npy"));
    let args = [
        "--sim",
        "1",
        "--timing",
        "zero",
        "--fault",
        &plan,
        "run",
        &blob,
        "--input",
        &input,
        "--check",
        &expected,
        "--fallback",
        "openvino",
    ];
    // No model beside the blob: told before anything is opened.
    let (code, _, stderr) = setup.run(&args);
    assert_eq!((code, stderr.lines().count()), (2, 1), "{stderr}");
    assert!(stderr.contains("expected tiny.onnx or tiny.xml beside it"), "{stderr}");
    fs::copy(&tiny, setup.path("tiny.onnx")).expect("copied");
    let d = setup.json(0, &args);
    assert_eq!((&d["fallback"], &d["device"]), (&true.into(), &"cpu-openvino".into()));
    assert_eq!(d["checks"][0]["pass"], true, "{d}");
    // Its INT8 form stands in as well: the same best class as a stick's, not quite the same number.
    let int8 = committed("tiny_qdq.onnx");
    let best = |flags: &[&str]| {
        let start = ["--sim", "1", "--timing", "zero", "run", &blob, "--random", "1", "--top", "1"];
        let d = setup.json(0, &[&start[..], flags].concat());
        let top = &d["outputs"][0]["top"][0];
        (d["device"].clone(), top["index"].clone(), top["value"].as_f64().expect("a number"))
    };
    let (stick, class, value) = best(&[]);
    let flags = ["--fault", &plan, "--fallback", "openvino", "--fallback-model", text(&int8)];
    let (cpu, same, near) = best(&flags);
    assert_eq!((stick, cpu), ("sim0".into(), "cpu-openvino".into()));
    assert_eq!(class, same);
    assert!(value != near && (value - near).abs() < 0.01, "{value} and {near}");
}
