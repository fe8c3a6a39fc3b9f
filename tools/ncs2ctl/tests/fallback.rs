//! `--fallback`: what stands in for sticks, and that every answer says so.

mod tool;

use std::fs;

use tool::{conforms, json, model, ncs2ctl, run};

/// Every stick leaves at its second inference and stays away.
const UNPLUG: &str = "[[fault]]\nkind = \"unplug\"\nnth = 2\n";

#[test]
fn with_all_sticks_unplugged_answers_come_from_the_cpu_and_say_so() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    fs::write(at("plan.toml"), UNPLUG).expect("written");
    fs::write(at("work.jsonl"), "{\"random\": 1}\n{\"random\": 2}\n{\"random\": 3}\n").expect("written");
    let blob = model("tiny_fp16_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    let sim = ["--sim", "1", "--timing", "zero", "--fault"];
    let batch = |more: &[&str]| {
        let args = [
            &sim[..],
            &[&at("plan.toml"), "--json", "batch", &at("work.jsonl"), "--blob", blob, "--top", "1"],
        ];
        let output = ncs2ctl().args(args.concat()).args(more).output().expect("it starts");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        (output.status.code(), tool::lines(&output.stdout, "batch"), stderr)
    };
    // Who is to answer has no matter: the numbers are the same, since both execute the graph.
    let (code, expected) = json(&["--sim", "1", "run", blob, "--random", "3", "--top", "1"], "run");
    assert_eq!((code, &expected["fallback"], &expected["device"]), (0, &false.into(), &"sim0".into()));
    let (code, lines, stderr) = batch(&["--fallback", "execute"]);
    assert_eq!((code, lines.len()), (Some(0), 3), "{stderr}");
    assert_eq!(
        (&lines[2]["fallback"], &lines[2]["device"], &lines[2]["simulated"]),
        (&true.into(), &"cpu-execute".into(), &true.into())
    );
    assert_eq!(lines[2]["outputs"], expected["outputs"]);
    // Without one, as ever.
    let (code, lines, _) = batch(&["--fallback", "none"]);
    assert_eq!((code, lines.len()), (Some(1), 3));
    conforms("batch", &lines[2]);
    assert_eq!(lines[2]["error"]["kind"], "Unplugged");
}

#[test]
fn a_fallback_that_cannot_be_is_told_before_a_stick_is_opened() {
    let blob = model("tiny_fp16_s1.blob");
    let base = ["--sim", "1", "run", blob.to_str().expect("UTF-8"), "--random", "1"];
    let ran = run(&[&base[..], &["--fallback-model", "net.onnx"]].concat());
    assert_eq!(ran.code, 64, "{}", ran.stderr);
    assert!(ran.stderr.contains("expected --fallback openvino beside it"), "{}", ran.stderr);
    let ran = run(&[&base[..], &["--fallback", "gpu"]].concat());
    assert_eq!((ran.code, ran.stderr.lines().count()), (64, 1), "{}", ran.stderr);
    // No stick at all is no reason to compute elsewhere.
    let output = ncs2ctl().args(&base[2..]).args(["--fallback", "execute"]).output().expect("it starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && stderr.contains("--sim"), "{stderr}");
}

#[test]
fn bench_takes_the_same_flags_and_says_what_the_cpu_answered() {
    let blob = model("tiny_fp16_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    let base = ["--sim", "1", "bench", blob, "--duration", "200ms", "--warmup", "0s"];
    let ran = run(&[&base[..], &["--fallback-model", "net.onnx"]].concat());
    assert_eq!(ran.code, 64, "{}", ran.stderr);
    assert!(ran.stderr.contains("expected --fallback openvino beside it"), "{}", ran.stderr);
    let (code, document) = json(&[&base[..], &["--fallback", "execute"]].concat(), "bench");
    assert_eq!(code, 0, "{document}");
    // A stick that is there answers everything itself.
    assert!(document["completed"].as_u64().is_some_and(|n| n > 0), "{document}");
    assert!(document["fallback"].is_null(), "{document}");
}
