//! The tool as built without the feature `openvino`: what needs it says so with the way out, everything else works.
//! `cargo xtask test` checks that this builds; `cargo test -p ncs2ctl --no-default-features --test without_openvino` runs it.
#![cfg(not(feature = "openvino"))]

mod tool;

use tool::{fails, json, model};

const SAID: &str = "built without OpenVINO";
const WAY_OUT: &str = "build it with the feature `openvino`";

#[test]
fn what_needs_openvino_says_so_with_the_way_out() {
    let blob = model("tiny_fp16_s1.blob");
    let (blob, onnx) = (blob.to_str().expect("UTF-8"), model("../onnx/tiny.onnx"));
    let onnx = onnx.to_str().expect("UTF-8");
    let needs = |args: &[&str], schema: &str, words: &[&str]| {
        fails(args, schema, 2, "Unsupported", &[&[SAID, WAY_OUT], words].concat());
    };
    needs(&["setup", "openvino"], "setup", &[]);
    needs(&["--sim", "1", "check", onnx, blob], "check", &["--reference FILE.npy"]);
    needs(&["--sim", "1", "quantize", onnx, "--random", "1"], "quantize", &[]);
    let run = ["--sim", "1", "run", blob, "--random", "1", "--fallback", "openvino"];
    needs(&run, "run", &["--fallback execute"]);
}

#[test]
fn everything_else_works_as_with_it() {
    let file = |name: &str| model(name).to_str().expect("UTF-8").to_owned();
    let blob = file("tiny_fp16_s1.blob");
    let (input, answer) = (file("tiny_fp16_s1.in.data.npy"), file("tiny_fp16_s1.out.prob.npy"));
    let sim = ["--sim", "1", "--timing", "zero"];
    let (code, d) =
        json(&[&sim[..], &["run", &blob, "--input", &input, "--fallback", "execute"]].concat(), "run");
    assert_eq!((code, &d["fallback"]), (0, &false.into()));
    let args = [&sim[..], &["check", &blob, "--input", &input, "--reference", &answer]].concat();
    let (code, d) = json(&args, "check");
    assert_eq!((code, &d["pass"]), (0, &true.into()));
    // What it was compiled from is only looked at with OpenVINO.
    let args = [&args[..], &["--tolerance", "0"]].concat();
    assert_eq!(json(&args, "check").0, 1);
    assert_eq!(json(&[&sim[..], &["bench", &blob, "--duration", "100ms"]].concat(), "bench").0, 0);
}
