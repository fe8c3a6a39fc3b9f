//! `blob info` against the committed models and the figures that are known of them.

mod tool;

use serde_json::{Value, json};
use tool::{json, model, run};

/// Name, macs, work of the compute engine, stages, SHAVEs, CMX slices; from the models' own README, which counts from
/// the ONNX graph.
const KNOWN: [(&str, u64, u64, u64, u64, u64); 8] = [
    ("tiny_fp16_s1", 714_480, 1_069_296, 14, 16, 19),
    ("tiny_u8_s1", 714_480, 1_069_296, 15, 16, 19),
    ("tiny_fp16_s2", 714_480, 1_069_296, 14, 7, 9),
    ("mlp_fp16_s1", 234_752, 234_752, 8, 16, 19),
    ("lstm_fp16_s1", 201_728, 201_728, 10, 16, 19),
    ("swconv_fp16_s1", 5_433_600, 5_433_600, 14, 16, 19),
    ("ssd_head_u8_s1", 41_140_224, 41_803_776, 16, 16, 19),
    ("squeezenet1_1_u8_s1", 349_151_936, 356_248_832, 38, 16, 19),
];

fn info(name: &str, layers: bool) -> Value {
    let path = model(&format!("{name}.blob"));
    let path = path.to_str().expect("UTF-8");
    let mut args = vec!["blob", "info", path];
    args.extend(layers.then_some("--layers"));
    let (code, document) = json(&args, "blob-info");
    assert_eq!(code, 0);
    document
}

#[test]
fn figures_are_those_of_the_networks() {
    for (name, macs, nce, stages, shaves, slices) in KNOWN {
        let d = info(name, true);
        let found = ["macs", "macs_nce", "stages", "shaves", "cmx_slices", "batch"].map(|f| d[f].as_u64());
        assert_eq!(found, [macs, nce, stages, shaves, slices, 1].map(Some), "{name}");
        let layers = d["layers"].as_array().expect("asked for");
        assert_eq!(layers.len() as u64, stages, "{name}");
        let sum: u64 = layers.iter().map(|l| l["macs"].as_u64().expect("number")).sum();
        assert_eq!(sum, macs, "{name}: the layers add up");
        for (n, layer) in layers.iter().enumerate() {
            assert_eq!(layer["index"], n, "{name}");
            assert!(layer["output_shape"].as_array().is_some_and(|s| !s.is_empty()), "{name}: {layer}");
        }
        assert!(d["weights_bytes"].as_u64() < d["file_bytes"].as_u64(), "{name}");
    }
}

#[test]
fn tensors_are_as_users_write_them() {
    let d = info("ssd_head_u8_s1", false);
    assert_eq!(
        d["inputs"],
        json!([{"name": "images", "shape": [1, 3, 96, 96], "dtype": "u8", "layout": "NCHW", "bytes": 27_648}])
    );
    assert_eq!(d["outputs"][1]["shape"], json!([1, 720, 21]));
    assert!(d.get("layers").is_none());
    assert_eq!(d["version"], "6.0");
}

#[test]
fn text_says_the_same() {
    let path = model("tiny_u8_s1.blob");
    let ran = run(&["blob", "info", path.to_str().expect("UTF-8"), "--layers"]);
    assert_eq!(ran.code, 0);
    for words in ["714 480", "1 069 296", "1x3x32x32", "SoftMax", "16 SHAVEs, 19 CMX slices"] {
        assert!(ran.stdout.contains(words), "{words} in {}", ran.stdout);
    }
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_ncs2ctl"))
        .args(["blob", "info", "--layers"])
        .arg(model("squeezenet1_1_u8_s1.blob"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // Closed before a byte is read, as `| head` does after its last line.
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
