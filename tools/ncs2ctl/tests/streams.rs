//! `run -`, `batch`, folders and crops; and the scripts of examples/scripts.

mod tool;

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tool::{fails, json, lines, model, ncs2ctl, run};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn piped(args: &[&str], stdin: Vec<u8>) -> (i32, Vec<u8>, String) {
    let output = ncs2ctl().args(args).write_stdin(stdin).output().expect("it starts");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    (output.status.code().expect("it exits by itself"), output.stdout, stderr)
}

#[test]
fn a_stream_of_arrays_is_answered_in_order_with_the_bytes_that_files_get() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (blob, input) = (model("tiny_u8_s1.blob"), model("tiny_u8_s1.in.data.npy"));
    let answer = |name: &str, args: &[&str]| {
        let out = folder.path().join(name);
        let args = [&["--sim", "1", "run", text(&blob), "--output", text(&out)], args].concat();
        assert_eq!(run(&args).code, 0);
        fs::read(out.join("prob.npy")).expect("written")
    };
    let zeros = folder.path().join("zeros.bin");
    fs::write(&zeros, vec![0; 3 * 32 * 32]).expect("written");
    let (a, b) = (answer("a", &["--input", text(&input)]), answer("b", &["--input", text(&zeros)]));
    assert_ne!(a, b);

    let array = fs::read(&input).expect("committed");
    let raw = [&3072u32.to_le_bytes()[..], &[0; 3072]].concat();
    let (code, stdout, stderr) =
        piped(&["--sim", "2", "run", text(&blob), "-"], [&array[..], &array, &array].concat());
    assert_eq!((code, stdout), (0, [&a[..], &a, &a].concat()), "{stderr}");
    assert!(stderr.contains("3 inferences") && stderr.contains("simulated"), "{stderr}");
    // Raw answers are the values behind the array's header.
    let (code, stdout, _) = piped(&["--sim", "2", "run", text(&blob), "--input", "-"], raw.repeat(5));
    let values = &b[b.len() - 20..];
    assert_eq!((code, stdout), (0, [&20u32.to_le_bytes()[..], values].concat().repeat(5)));
    assert_eq!(
        piped(&["--sim", "1", "run", text(&blob), "-"], Vec::new()).0,
        0,
        "nothing asked, nothing answered"
    );
}

#[test]
fn a_stream_in_json_is_a_document_a_line() {
    let (blob, input) = (model("tiny_u8_s1.blob"), model("tiny_u8_s1.in.data.npy"));
    let array = fs::read(&input).expect("committed");
    let args = ["--sim", "1", "--json", "run", text(&blob), "-", "--top", "2"];
    let (code, stdout, _) = piped(&args, array.repeat(3));
    let documents = lines(&stdout, "run");
    assert_eq!((code, documents.len()), (0, 3));
    for (n, document) in documents.iter().enumerate() {
        assert_eq!((&document["n"], &document["simulated"]), (&n.into(), &true.into()));
        assert_eq!(document["outputs"][0]["top"].as_array().map(Vec::len), Some(2));
    }
}

#[test]
fn answers_come_before_the_stream_ends() {
    let blob = model("tiny_u8_s1.blob");
    let mut child = Command::new(env!("CARGO_BIN_EXE_ncs2ctl"))
        .args(["--sim", "1", "--stats-socket", "false", "run", text(&blob), "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let (mut stdin, mut stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    for _ in 0..3 {
        stdin.write_all(&[&3072u32.to_le_bytes()[..], &[9; 3072]].concat()).expect("sent");
        let mut answer = [0; 24];
        // The next tensor is only sent after this answer: waiting for one would be for ever.
        stdout.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer[..4], 20u32.to_le_bytes());
    }
    drop(stdin);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn a_reader_that_has_enough_ends_it_quietly() {
    let blob = model("tiny_u8_s1.blob");
    let mut child = Command::new(env!("CARGO_BIN_EXE_ncs2ctl"))
        .args(["--sim", "1", "--stats-socket", "false", "run", text(&blob), "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().expect("piped");
    // It may end while we write.
    let raw = [&3072u32.to_le_bytes()[..], &[9; 3072]].concat();
    while stdin.write_all(&raw).is_ok() {}
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(!said.contains("panic"), "{said}");
}

#[test]
fn a_broken_stream_names_the_tensor_after_the_answers_before_it() {
    let (blob, input) = (model("tiny_u8_s1.blob"), model("tiny_u8_s1.in.data.npy"));
    let array = fs::read(&input).expect("committed");
    let (code, stdout, stderr) =
        piped(&["--sim", "1", "run", text(&blob), "-"], [&array[..], &array[..100]].concat());
    assert_eq!(code, 2);
    assert!(stdout.starts_with(b"\x93NUMPY"), "the first was answered");
    assert!(stderr.contains("tensor 1") && stderr.contains("end in the middle"), "{stderr}");
    let (code, stdout, stderr) = piped(&["--sim", "1", "run", text(&blob), "-"], b"hello world".to_vec());
    assert_eq!((code, stdout.len()), (2, 0));
    assert!(stderr.contains("length of 3072 bytes") && stderr.contains("docs/scripts.md"), "{stderr}");
    fails(&["run", text(&blob), "-", "--check", "x.npy"], "run", 64, "Usage", &["--check", "stream"]);
    fails(&["run", text(&blob), "-", "--output", "x"], "run", 64, "Usage", &["--output", "stream"]);
    let top = run(&["run", text(&blob), "-", "--top", "1"]);
    assert!(top.code == 64 && top.stderr.contains("--json"), "{}", top.stderr);
}

#[test]
fn folders_are_their_files_by_name_and_pictures_are_cut() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let blob = model("tiny_u8_s1.blob");
    for (name, byte) in [("b.bin", 2), ("a.bin", 1)] {
        fs::write(folder.path().join(name), vec![byte; 3072]).expect("written");
    }
    fs::write(folder.path().join("notes.txt"), "none of it").expect("written");
    let (code, d) = json(&["--sim", "1", "run", text(&blob), "--input", text(folder.path())], "run");
    let sources: Vec<&str> =
        d["inferences"].as_array().expect("two").iter().filter_map(|i| i["input"].as_str()).collect();
    assert_eq!(code, 0);
    assert!(
        sources[0].ends_with("a.bin") && sources[1].ends_with("b.bin") && sources.len() == 2,
        "{sources:?}"
    );
    let empty = tempfile::tempdir().expect("temporary folder");
    fails(&["run", text(&blob), "--input", text(empty.path())], "run", 2, "InvalidInput", &["found none"]);
    let picture = folder.path().join("p.bmp");
    fails(
        &["run", text(&blob), "--input", text(&picture), "--crop", "middle"],
        "run",
        64,
        "Usage",
        &["--crop"],
    );
}

#[test]
fn a_batch_answers_every_line_and_goes_on_after_bad_ones() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (blob, input) = (model("tiny_u8_s1.blob"), model("tiny_u8_s1.in.data.npy"));
    let other = model("mlp_fp16_s1.blob");
    let work = folder.path().join("work.jsonl");
    let requests = [
        serde_json::json!({ "id": "cat", "input": input }).to_string(),
        String::new(),
        serde_json::json!({ "random": 7, "blob": other }).to_string(),
        "{\"input\": ".to_owned(),
        serde_json::json!({ "input": "no-such.npy", "id": [1, 2] }).to_string(),
        serde_json::json!({ "input": { "data": input } }).to_string(),
        serde_json::json!({ "inptu": "x" }).to_string(),
    ];
    fs::write(&work, requests.join("\n")).expect("written");
    let out = folder.path().join("out");
    let output = ncs2ctl()
        .args(["--sim", "2", "--json", "batch", text(&work), "--blob", text(&blob), "--top", "1"])
        .args(["--output", text(&out)])
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(1), "some lines failed");
    let results = lines(&output.stdout, "batch");
    let line = |n: usize| results.iter().find(|r| r["line"] == n).unwrap_or_else(|| panic!("no line {n}"));
    assert!(results.iter().map(|r| r["line"].as_u64()).is_sorted());
    assert_eq!(results.len(), 6, "an empty line asks for nothing");
    assert_eq!((&line(1)["id"], &line(1)["model"]), (&"cat".into(), &"tiny_u8_s1".into()));
    assert_eq!(line(3)["model"], "mlp_fp16_s1");
    assert_eq!(line(1)["outputs"][0]["top"][0], line(6)["outputs"][0]["top"][0], "the same input");
    for (n, word) in [(4, "line 4"), (5, "no-such.npy"), (7, "inptu")] {
        let error = line(n)["error"]["message"].as_str().unwrap_or_else(|| panic!("{}", line(n)));
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(line(5)["id"], serde_json::json!([1, 2]));
    assert!(out.join("1.prob.npy").is_file() && out.join("6.prob.npy").is_file());

    fs::write(&work, &requests[0]).expect("written");
    let good = run(&["--sim", "1", "batch", text(&work), "--blob", text(&blob), "--top", "1"]);
    assert_eq!(good.code, 0);
    assert!(good.stdout.starts_with("1  sim0") && good.stdout.contains("simulated"), "{}", good.stdout);
    fails(&["batch", "no-such.jsonl"], "batch", 2, "NotFound", &["no-such.jsonl"]);
    fails(
        &["--sim", "1", "batch", text(&work), "--blob", "no-such.blob"],
        "batch",
        2,
        "NotFound",
        &["no-such.blob"],
    );
    fails(&["batch"], "batch", 64, "Usage", &["FILE.jsonl"]);
}

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/scripts").join(name)
}

#[test]
fn the_shell_example_works() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let inputs = folder.path().join("in");
    fs::create_dir(&inputs).expect("made");
    for name in ["a.npy", "b.npy"] {
        fs::copy(model("tiny_u8_s1.in.data.npy"), inputs.join(name)).expect("copied");
    }
    let answers = folder.path().join("answers.npy");
    let output = Command::new("sh")
        .arg(script("classify.sh"))
        .args([text(&model("tiny_u8_s1.blob")), text(&inputs), text(&answers), "--sim", "2"])
        .env("NCS2CTL", env!("CARGO_BIN_EXE_ncs2ctl"))
        .env("NCS2_STATS_SOCKET", "false")
        .output()
        .expect("a shell");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let bytes = fs::read(&answers).expect("written");
    assert_eq!(bytes.len() % 2, 0);
    assert_eq!(bytes[..bytes.len() / 2], bytes[bytes.len() / 2..], "two answers to the same input");
    let results = lines(&output.stdout, "batch");
    assert_eq!((results.len(), &results[1]["id"]), (2, &"b.npy".into()));
}

#[test]
fn the_python_example_works() {
    let output = Command::new("python3")
        .arg(script("stream.py"))
        .args([text(&model("tiny_u8_s1.blob")), "3072", "20", "--sim", "2", "--timing", "zero"])
        .env("NCS2CTL", env!("CARGO_BIN_EXE_ncs2ctl"))
        .env("NCS2_STATS_SOCKET", "false")
        .output();
    let output = match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: no python3 on this machine");
            return;
        }
        output => output.expect("it starts"),
    };
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let answers = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(answers.lines().count(), 20, "{answers}");
    assert!(answers.lines().all(|n| n.parse::<u32>().is_ok_and(|n| n < 10)), "{answers}");
}
