//! Every bad input: the exit code, one line that says what was expected, found and to be done, and its document.

mod tool;

use std::fs;
use std::path::Path;

use tool::{fails, json, model, run};

#[test]
fn no_stick_is_a_failure_where_one_is_needed_and_a_negative_result_of_list() {
    // A machine with a stick plugged in has nothing to show here.
    let (code, list) = json(&["list"], "list");
    if code == 0 {
        println!("skipped: this machine has sticks: {list}");
        return;
    }
    assert_eq!(code, 1);
    assert_eq!(list["devices"], serde_json::json!([]));
    assert_eq!(run(&["list"]).stdout, "No Neural Compute Stick 2 found.\n");
    let blob = model("tiny_fp16_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    fails(&["info"], "info", 2, "NotFound", &["no Neural Compute Stick 2", "--sim"]);
    fails(&["run", blob, "--random", "1"], "run", 2, "NotFound", &["no Neural Compute Stick 2", "--sim"]);
    fails(&["bench", blob], "bench", 2, "NotFound", &["no Neural Compute Stick 2", "--sim"]);
}

#[test]
fn no_virtual_stick_is_usage() {
    fails(&["--sim", "0", "list"], "list", 64, "Usage", &["--sim", "found `0`", "--help"]);
    fails(&["info", "--sim", "0"], "info", 64, "Usage", &["--sim"]);
    fails(&["info", "--sim", "many"], "info", 64, "Usage", &["found `many`"]);
    fails(&["--sim", "2", "--device", "sim7", "list"], "list", 2, "NotFound", &["sim7", "sim0 to sim1"]);
}

#[test]
fn wrong_usage_is_64() {
    fails(&["frobnicate"], "error", 64, "Usage", &["frobnicate"]);
    fails(&["bench"], "bench", 64, "Usage", &["BLOB"]);
    fails(&["run", "x.blob"], "run", 64, "Usage", &["--input"]);
    fails(&["bench", "x.blob", "--duration", "10"], "bench", 64, "Usage", &["500ms", "found `10`"]);
    fails(&["bench", "x.blob", "--depth", "17"], "bench", 64, "Usage", &["1 to 16", "found `17`"]);
    fails(&["bench", "x.blob", "--graphs", "5"], "bench", 64, "Usage", &["--graphs"]);
    fails(&["list", "--engine", "hash"], "list", 64, "Usage", &["--engine", "--sim"]);
    fails(&["list", "--no-such-flag"], "list", 64, "Usage", &["--no-such-flag"]);
    let nothing = run(&[]);
    assert_eq!(nothing.code, 64);
    assert!(nothing.stderr.contains("Usage: ncs2ctl"));
}

#[test]
fn what_is_not_there_is_named() {
    fails(&["--sim", "1", "--fault", "no-such.toml", "info"], "info", 2, "NotFound", &["no-such.toml"]);
    fails(&["--sim", "unix:/x", "info"], "info", 2, "NotFound", &["/x", "no virtual sticks"]);
}

#[test]
fn files_that_are_no_blob_are_named() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let info = |file: &str, kind: &str, words: &[&str]| {
        fails(&["blob", "info", file], "blob-info", 2, kind, &[&[file], words].concat());
    };
    info(&path("missing.blob"), "NotFound", &["no such file", "check the name or path"]);
    info(folder.path().to_str().expect("UTF-8"), "InvalidInput", &["folder"]);
    fs::write(path("text.blob"), "hello, this is no blob at all").expect("written");
    info(&path("text.blob"), "InvalidBlob", &["OpenVINO"]);
    fs::write(path("empty.blob"), "").expect("written");
    info(&path("empty.blob"), "InvalidBlob", &["empty", "OpenVINO"]);

    let good = fs::read(model("tiny_fp16_s1.blob")).expect("committed");
    let mut old = good.clone();
    old[60..68].copy_from_slice(&[5, 0, 0, 0, 0, 0, 0, 0]);
    fs::write(path("old.blob"), &old).expect("written");
    info(&path("old.blob"), "InvalidBlob", &["6.0 expected", "5.0 found", "recompile"]);
    for cut in [1, 100, 200, good.len() / 2, good.len() - 1] {
        fs::write(path("cut.blob"), &good[..cut]).expect("written");
        info(&path("cut.blob"), "InvalidBlob", &["OpenVINO"]);
    }
}

#[test]
fn wrong_inputs_are_refused_before_a_stick_is_opened() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let blob = |name: &str| model(name).to_str().expect("UTF-8").to_owned();
    // No --sim: an error about sticks instead would show that the input was looked at too late.
    let run_with = |blob: &str, input: &str, kind: &str, words: &[&str]| {
        fails(&["run", blob, "--input", input], "run", 2, kind, words);
    };
    let (tiny, tiny_u8, lstm) =
        (blob("tiny_fp16_s1.blob"), blob("tiny_u8_s1.blob"), blob("lstm_fp16_s1.blob"));
    run_with(&tiny, &path("no.npy"), "NotFound", &["no.npy", "found none"]);
    let wrong_shape = blob("mlp_fp16_s1.in.data.npy");
    run_with(&tiny, &wrong_shape, "InvalidInput", &["mlp_fp16_s1", "1x3x32x32", "1x784"]);
    let wrong_type = blob("tiny_fp16_s1.in.data.npy");
    run_with(&tiny_u8, &wrong_type, "InvalidInput", &["expected u8", "found f16", "convert it to u8"]);
    fs::write(path("short.bin"), [0; 100]).expect("written");
    run_with(&tiny, &path("short.bin"), "InvalidInput", &["short.bin", "6144 bytes", "found 100"]);
    fs::write(path("x.csv"), "1,2").expect("written");
    run_with(&tiny, &path("x.csv"), "InvalidInput", &["x.csv", ".npy", "found .csv"]);
    fs::write(path("x.png"), "no picture").expect("written");
    run_with(&tiny, &path("x.png"), "InvalidInput", &["x.png", "picture"]);
    run_with(&lstm, &path("x.png"), "InvalidInput", &["x.png", "seq", "8x1x32"]);
    fs::write(path("x.npy"), "no array").expect("written");
    run_with(&tiny, &path("x.npy"), "InvalidInput", &["x.npy", "array"]);
    run_with(&tiny, "nothing=x.npy", "InvalidInput", &["nothing", "data"]);

    let input = blob("tiny_fp16_s1.in.data.npy");
    let labels = path("labels.txt");
    fs::write(&labels, "cat\ndog\n").expect("written");
    let args = ["run", &tiny, "--input", &input, "--top", "3", "--labels", &labels];
    fails(&args, "run", 2, "InvalidInput", &["labels.txt", "10 lines", "found 2"]);
    let args = ["run", &tiny, "--input", &input, "--check", &wrong_shape];
    fails(&args, "run", 2, "InvalidInput", &["prob", "1x10", "1x784"]);
    let args = ["run", &tiny, "--random", "1", "--input", &input];
    fails(&args, "run", 64, "Usage", &["--random", "--input"]);
}

#[test]
fn blobs_that_bring_code_need_the_users_word() {
    let blob = ncs2::blob::Blob::open(model("tiny_fp16_s1.blob")).expect("a committed blob");
    let mut bytes = blob.bytes().to_vec();
    let stage = blob.graph().stages.iter().find(|s| s.nce.is_none()).expect("a stage of the SHAVEs");
    // Its kind stands behind its length and before its end mark.
    for at in [stage.record.start + 4, stage.record.end - 8] {
        bytes[at..at + 4].copy_from_slice(&115_u32.to_le_bytes());
    }
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("custom.blob");
    fs::write(&path, bytes).expect("written");
    let path = path.to_str().expect("UTF-8");
    let sim = ["--sim=1", "--engine=hash", "--timing=zero"];
    let refused = |words: &[&str], schema| {
        fails(&[&sim, words].concat(), schema, 2, "Unsupported", &["custom", "kind 115", "--allow-custom"]);
    };
    refused(&["run", path, "--random", "1"], "run");
    refused(&["bench", path, "--duration", "1s"], "bench");
    let allowed = run(&[&sim, ["run", path, "--random", "1", "--allow-custom"].as_slice()].concat());
    assert_eq!(allowed.code, 0, "{}", allowed.stderr);
}

#[test]
fn wire_variants_are_named() {
    fails(&["list", "--wire", "v0"], "list", 64, "Usage", &["v0", "v1"]);
    assert_eq!(run(&["--sim=1", "--wire=v1", "list"]).code, 0);
}

/// One line for each slip of each command: what was expected, what was found, what to do. Those of the model's commands (`compile`,
/// `check`, `quantize`, `setup`) have their own tests.
#[test]
fn what_is_said_is_as_reviewed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().to_str().expect("UTF-8");
    let tiny = model("tiny_u8_s1.blob").canonicalize().expect("committed");
    let tiny = tiny.to_str().expect("UTF-8");
    fs::write(folder.path().join("text"), "no such thing\n").expect("written");
    fs::write(folder.path().join("bad.jsonl"), "{\"inptu\": \"x.npy\"}\n").expect("written");
    let slips = "\
        list --sim 0|list --device sim0 --engine hash|list --trace x.log|--sim 1 list --timing|list nothing|
        --sim 1 --device sim1 info|--sim 1,no-such info|--sim unix:DIR/none info|--sim unix:DIR/text info|
        --sim 1 --fault DIR/text info|--sim 1 boot --device sim3|--sim 1 reset --device sim3|reset --powr|
        doctor --sim many|selftest --replay DIR/none|selftest --replay DIR/text|
        firmware verify DIR/none|firmware verify DIR/text|firmware install DIR/none|firmware install DIR/text|
        firmware|udev|udev install --root DIR/text|
        blob info|blob info DIR/none|blob info DIR|blob info DIR/text|
        --sim 1 run TINY|--sim 1 run TINY --input DIR/none|--sim 1 run DIR/text --random 1|
        --sim 1 run TINY --random x|--sim 1 run TINY --random 1 --top 0|--sim 1 run TINY --random 1 --labels DIR/none|
        --sim 1 run TINY --random 1 --check DIR/text|--sim 1 run TINY --random 1 --output DIR/text|
        --sim 1 batch DIR/none --blob TINY|--sim 1 batch|
        bench|--sim 1 bench DIR/none|--sim 1 bench TINY --depth 0|--sim 1 bench TINY --graphs 9|
        --sim 1 bench TINY --policy best|--sim 1 bench TINY --rate 0|--sim 1 bench TINY --duration 1|
        --sim 1 bench TINY --compare DIR/none|--sim 1 bench TINY --targets DIR/text|--sim 1 bench TINY --shares 1,2|
        --sim 1 bench TINY --metrics-listen 9|--sim 1 bench TINY --metrics-listen 0.0.0.0:0|
        --sim 1 bench TINY --soak --levels|--sim 1 bench TINY --pin x|
        --sim 1 thermal --alert x|--sim 1 thermal --csv --json|--sim 1 thermal --attach 1|thermal watch --interval 0s|
        --sim 1 top|top --once --sort speed|--sim 1 top --once --attach 1|--sim 1 top --once DIR/text|
        --config DIR/none config|--config DIR/text config|
        sim|sim serve|sim serve --socket DIR|sim serve --socket DIR/s --profile no-such|sim status DIR/none|
        sim status DIR/none --detach x|sim calibrate --profile no-such|sim calibrate --from DIR/text|--sim 1 sim calibrate|
        decode|decode DIR/none|decode DIR/text|trace DIR/none|trace DIR/text|trace DIR/text --from x|
        completions|completions tcsh|man --output DIR/text|nothing|--nothing";
    let mut told = String::new();
    for slip in slips.split('|').map(str::trim) {
        let args: Vec<String> =
            slip.split(' ').map(|word| word.replace("DIR", dir).replace("TINY", tiny)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let ran = run(&args);
        assert!(ran.code == 2 || ran.code == 64, "{slip}: {} {}{}", ran.code, ran.stdout, ran.stderr);
        let said = format!("{}{}", ran.stdout, ran.stderr).replace(tiny, "TINY").replace(dir, "DIR");
        // Without a command it is the help, which has snapshots of its own; in JSON a document.
        let help = said.lines().find(|line| line.starts_with("Usage:")).map(|usage| format!("{usage}\n"));
        told.push_str(&format!("$ ncs2ctl {slip}\n{}exit {}\n", help.unwrap_or(said), ran.code));
    }
    insta::assert_snapshot!("said", told);
}

/// What a blob holds is no help with a profile or a plan.
#[test]
fn bad_profiles_and_plans_are_told_from_bad_inputs() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (profile, other, plan) = (path("slow.toml"), path("other.toml"), path("plan.toml"));
    let refused = |args: &[&str], schema, kind, words: &[&str]| {
        fails(args, schema, 2, kind, words);
        let said = run(args).stderr;
        assert!(!said.contains("blob info"), "{args:?}: {said}");
    };
    let sim = format!("1,{profile}");
    fs::write(&profile, "base = \"ncs2\"\n[timing]\nshaves = 0\n").expect("written");
    let words = ["slow.toml", "line 3", "timing.shaves", "ncs2-fan", "base = \"ncs2\"", "virtual-stick.md"];
    refused(&["--sim", &sim, "info"], "info", "InvalidInput", &words);
    refused(&["sim", "calibrate", "--profile", &profile], "sim", "InvalidInput", &words);
    let socket = path("s");
    refused(&["sim", "serve", "--socket", &socket, "--profile", &profile], "sim", "InvalidInput", &words);
    fs::write(&other, "base = \"ncs3\"\n").expect("written");
    let sim = format!("1,{other}");
    refused(&["--sim", &sim, "list"], "list", "InvalidInput", &["base", "ncs3", "ncs2-closed-case"]);
    let missing = format!("1,{}", path("none.toml"));
    refused(&["--sim", &missing, "list"], "list", "NotFound", &["none.toml", "ncs2-fan", "virtual-stick.md"]);
    refused(&["--sim", "1,ncs3", "list"], "list", "NotFound", &["ncs3", "usb2", "virtual-stick.md"]);

    let fault = ["--sim", "1", "--fault", &plan, "info"];
    fs::write(&plan, "[[fault]]\nkind = \"hang\"\nnth = 1\nstick = \"sim7\"\n").expect("written");
    refused(&fault, "info", "InvalidInput", &["sim7", "virtual-stick.md", "plan"]);
    let served = ["sim", "serve", "--socket", &socket, "--fault", &plan];
    refused(&served, "sim", "InvalidInput", &["sim7", "virtual-stick.md", "plan"]);
    fs::write(&plan, "[[fault]]\nkind = \"delay\"\nnth = 1\n").expect("written");
    refused(&fault, "info", "InvalidInput", &["plan.toml", "fault 1", "ms", "virtual-stick.md"]);
    refused(&served, "sim", "InvalidInput", &["plan.toml", "fault 1", "ms", "virtual-stick.md"]);
}

#[test]
fn places_that_cannot_be_written_are_named_before_a_stick_is_opened() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let tiny = model("tiny_u8_s1.blob").to_str().expect("UTF-8").to_owned();
    fs::write(path("file"), "").expect("written");
    // No --sim: an error about sticks instead would show that the place was looked at too late.
    let run_to = |to: &str, code, kind: &str, words: &[&str]| {
        fails(&["run", &tiny, "--random", "1", "--output", to], "run", code, kind, words);
    };
    run_to(&path("file"), 2, "InvalidInput", &["file: expected a folder, found a file"]);
    run_to(&path("file/below"), 2, "InvalidInput", &["expected a folder at", "found a file"]);
    run_to(&path("none/out.npy"), 64, "Usage", &["out.npy: expected a folder", "DIR/TENSOR.npy"]);
    assert!(!folder.path().join("none").exists(), "nothing is made of a refused name");
    fails(
        &["batch", "-", "--blob", &tiny, "--output", &path("file")],
        "batch",
        2,
        "InvalidInput",
        &["expected a folder, found a file"],
    );
    let (folder_there, missing) = (path("folder.log"), path("none/x.log"));
    fs::create_dir(&folder_there).expect("made");
    let sim = ["--sim=1", "--timing=zero", "--engine=hash"];
    let trace_to = |to: &str, kind: &str, words: &[&str]| {
        fails(&[&sim[..], &["--trace", to, "info"]].concat(), "info", 2, kind, words);
    };
    trace_to(&folder_there, "InvalidInput", &["folder.log", "found a folder", "name a file"]);
    trace_to(&missing, "NotFound", &["x.log: expected its folder, found none", "make the folder first"]);
    let (folder_there, missing) = (path("."), path("none/x.json"));
    for flag in ["--save", "--trace-out"] {
        let bench = |to: &str| [&sim[..], &["bench", &tiny, flag, to]].concat().join(" ");
        let words = bench(&folder_there);
        fails(&words.split(' ').collect::<Vec<_>>(), "bench", 2, "InvalidInput", &["found a folder"]);
        let words = bench(&missing);
        fails(&words.split(' ').collect::<Vec<_>>(), "bench", 2, "NotFound", &["expected its folder"]);
    }
}

#[test]
fn a_kernel_without_virtual_usb_is_told_what_else_there_is() {
    if fs::exists("/sys/devices/platform/vhci_hcd.0").unwrap_or(false) {
        println!("skipped: this kernel has the module vhci-hcd");
        return;
    }
    for args in [&["sim", "serve", "--vhci"][..], &["sim", "attach"], &["sim", "attach", "--sticks", "2"]] {
        fails(args, "sim", 2, "Unsupported", &["modprobe vhci-hcd", "--socket", "--usbredir"]);
    }
    // What is wrong beside it is said first.
    fails(&["sim", "attach", "--profile", "no-such"], "sim", 2, "NotFound", &["no-such", "ncs2-fan"]);
    fails(&["sim", "attach", "--sticks", "0"], "sim", 64, "Usage", &["--sticks"]);
    fails(&["sim", "attach", "--sticks", "9"], "sim", 64, "Usage", &["--sticks"]);
    fails(&["--sim", "1", "sim", "attach"], "sim", 64, "Usage", &["--sim"]);
}

#[test]
fn an_empty_capture_is_no_capture() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("empty.log");
    fs::write(&path, "").expect("written");
    let path = path.to_str().expect("UTF-8");
    fails(&["decode", path], "decode", 2, "InvalidInput", &["empty.log", "found an empty file", "--trace"]);
}

#[test]
fn flags_for_pictures_are_refused_where_there_is_none() {
    let file = |name: &str| model(name).to_str().expect("UTF-8").to_owned();
    let (tiny, input) = (file("tiny_fp16_s1.blob"), file("tiny_fp16_s1.in.data.npy"));
    let reference = file("tiny_fp16_s1.out.prob.npy");
    for flags in [&["--scale", "2"][..], &["--mean", "1,2,3"], &["--bgr"], &["--crop", "center"]] {
        let words = [flags[0], "expected a picture", ".png"];
        let refused = |args: &[&str], schema| {
            fails(&[args, flags].concat(), schema, 64, "Usage", &words);
        };
        refused(&["run", &tiny, "--input", &input], "run");
        refused(&["run", &tiny, "--random", "1"], "run");
        refused(&["bench", &tiny, "--input", &input], "bench");
        refused(&["bench", &tiny], "bench");
        refused(&["check", &tiny, "--reference", &reference, "--input", &input], "check");
        let stream = [&["run", &tiny, "-"], flags].concat();
        fails(&stream, "run", 64, "Usage", &[flags[0], "found a stream"]);
    }
    // A batch's lines come while it runs.
    let folder = tempfile::tempdir().expect("temporary folder");
    let lines = folder.path().join("lines.jsonl");
    fs::write(&lines, format!("{{\"input\": \"{input}\"}}\n")).expect("written");
    let lines = lines.to_str().expect("UTF-8");
    let ran = run(&["--sim=1", "--timing=zero", "batch", lines, "--blob", &tiny, "--scale", "2"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("--scale did nothing"), "{}", ran.stderr);
}

/// Linux has paths that are no text.
#[test]
fn paths_that_are_not_utf8_are_paths() {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::OsStrExt as _;

    let folder = tempfile::tempdir().expect("temporary folder");
    let at = |bytes: &[u8]| folder.path().join(OsStr::from_bytes(bytes));
    let (input, blob, plan) = (at(b"in\xff.npy"), at(b"net\xfe.blob"), at(b"plan\xfd.toml"));
    fs::copy(model("tiny_fp16_s1.in.data.npy"), &input).expect("copied");
    fs::copy(model("tiny_fp16_s1.blob"), &blob).expect("copied");
    fs::write(&plan, "").expect("written");
    let named = |name: &str| {
        let mut argument = OsString::from(name);
        argument.push("=");
        argument.push(&input);
        argument
    };
    let ran = |words: &[&OsStr]| {
        let output = tool::ncs2ctl()
            .args(["--sim=1", "--timing=zero", "--engine=hash", "--json", "--fault"])
            .arg(&plan)
            .args(words)
            .output()
            .expect("it starts");
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one document");
        assert_eq!(output.status.code(), Some(0), "{words:?}: {document}");
        document
    };
    let word = OsStr::new;
    let out = at(b"out\xfc");
    let d = ran(&[word("run"), blob.as_os_str(), word("-i"), input.as_os_str(), word("-o"), out.as_os_str()]);
    assert_eq!(d["input"], input.to_string_lossy().as_ref(), "{d}");
    let answer = out.join("prob.npy");
    assert!(answer.is_file());
    let mut check = OsString::from("prob=");
    check.push(&answer);
    let data = named("data");
    ran(&[word("run"), blob.as_os_str(), word("-i"), &data, word("--check"), &check]);
    ran(&[word("check"), blob.as_os_str(), word("-i"), &data, word("--reference"), &check]);
    let short = [word("--duration=50ms"), word("--warmup=0s")];
    ran(&[&[word("bench"), blob.as_os_str(), word("--input"), &data], &short[..]].concat());
    // A name that no input has is still told from a path.
    let wrong =
        tool::ncs2ctl().arg("run").args([&blob, Path::new("-i")]).arg(named("x")).output().expect("starts");
    assert_eq!(wrong.status.code(), Some(2));
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(said.contains("expected an input named data, found x"), "{said}");
}
