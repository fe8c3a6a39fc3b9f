//! Flags of `compile`, `check` and `setup openvino` by what they do: each looks at the blob or the figures that it changes.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{Setup, committed, text};

const SIM: [&str; 4] = ["--sim", "1", "--timing", "zero"];

#[test]
fn every_flag_of_compile_changes_the_blob_and_no_answer() {
    let Some(setup) = Setup::find("every_flag_of_compile_changes_the_blob_and_no_answer") else { return };
    let (tiny, xml, open) = (committed("tiny.onnx"), committed("tiny.xml"), committed("open_batch.onnx"));
    let out = setup.path("x.blob");
    // What each says of itself: type and layout of the input, type of the output, batch, SHAVEs, CMX slices.
    let plain = json!(["f16", "NCHW", "f16", 1, 7, 9]);
    let with = |place: usize, value: Value| {
        let mut facts = plain.clone();
        facts[place] = value;
        facts
    };
    let cores = |shaves: u32, cmx: u32| json!(["f16", "NCHW", "f16", 1, shaves, cmx]);
    let cases: [(&Path, &str, Value); 16] = [
        (&tiny, "", plain.clone()),
        (&xml, "", plain.clone()),
        (&xml, "--input-type u8 --batch 2", json!(["u8", "NCHW", "f16", 2, 7, 9])),
        (&tiny, "--input-type fp16", plain.clone()),
        (&tiny, "--input-type u8", with(0, "u8".into())),
        (&tiny, "--input-type fp32", with(0, "f32".into())),
        (&tiny, "--output-type fp32", with(2, "f32".into())),
        (&tiny, "--layout nchw", plain.clone()),
        (&tiny, "--layout nhwc --input-type u8", json!(["u8", "NHWC", "f16", 1, 7, 9])),
        (&tiny, "--batch 4", with(3, 4.into())),
        (&open, "--shape 2x3x16x16", with(3, 2.into())),
        (&tiny, "--streams 1", cores(16, 19)),
        (&tiny, "--streams 2", plain.clone()),
        (&tiny, "--streams 3", cores(4, 6)),
        (&tiny, "--shaves 4 --cmx 5", cores(4, 5)),
        (&tiny, "--shaves 16 --cmx 19 --streams 1", cores(16, 19)),
    ];
    for (model, flags, expected) in cases {
        let flags: Vec<&str> = flags.split_whitespace().collect();
        setup.json(0, &[&["compile", text(model), "-o", &out], &flags[..]].concat());
        let info = setup.info(&out);
        let (input, output) = (&info["inputs"][0], &info["outputs"][0]);
        let found = json!([
            input["dtype"],
            input["layout"],
            output["dtype"],
            info["batch"],
            info["shaves"],
            info["cmx_slices"]
        ]);
        assert_eq!(found, expected, "{flags:?}");
        setup.json(0, &[&SIM[..], &["check", text(model), &out, "--random", "2"]].concat());
    }
    let software = ["compile", text(&tiny), "-o", &out, "--set", "MYRIAD_ENABLE_HW_ACCELERATION=NO"];
    let d = setup.json(0, &software);
    assert_eq!((&d["blobs"][0]["stages"]["nce"], &d["blobs"][0]["shaves"]), (&0.into(), &16.into()));
    assert!(d["blobs"][0]["warnings"][0].as_str().is_some_and(|w| w.contains("SHAVE")), "{d}");
    assert_eq!(setup.json(0, &software)["blobs"][0]["from_cache"], true);
    let d = setup.json(0, &[&software[..], &["--no-cache"]].concat());
    assert_eq!(d["blobs"][0]["from_cache"], false);
}

#[test]
fn settings_that_do_not_go_together_are_told_with_the_way_out() {
    let Some(setup) = Setup::find("settings_that_do_not_go_together_are_told_with_the_way_out") else {
        return;
    };
    let (tiny, out) = (committed("tiny.onnx"), setup.path("x.blob"));
    let fails = |code: i32, flags: &str, words: &[&str]| {
        let flags: Vec<&str> = flags.split_whitespace().collect();
        setup.fails(code, &[&["compile", text(&tiny), "-o", &out], &flags[..]].concat(), words);
        assert!(!Path::new(&out).exists(), "{flags:?}: no blob");
    };
    fails(64, "--shaves 16 --cmx 19", &["at most 16 and 19", "for each of 2", "--streams 1"]);
    fails(64, "--shaves 5 --cmx 7 --streams 3", &["5 and 7 for each of 3"]);
    fails(64, "--batch 4,1,4", &["found 4 twice"]);
    fails(2, "--set NO_SUCH_KEY=1", &["NO_SUCH_KEY", "compare --set"]);
    fails(2, "--set MYRIAD_THROUGHPUT_STREAMS=9", &["[1, 3]", "compare --set"]);
    let xml = committed("tiny.xml");
    setup.fails(2, &["compile", text(&xml), "-o", &out, "--mean", "3"], &["only a .onnx can be changed"]);
}

#[test]
fn check_takes_its_inputs_from_where_it_is_told() {
    let Some(setup) = Setup::find("check_takes_its_inputs_from_where_it_is_told") else { return };
    let tiny = committed("tiny.onnx");
    let blob = setup.path("tiny.blob");
    setup.json(0, &["compile", text(&tiny), "-o", &blob, "--input-type", "u8"]);
    let check = |flags: &[&str]| {
        let d = setup.json(0, &[&SIM[..], &["check", text(&tiny), &blob], flags].concat());
        // What the model says to the input: as good as the input's own name.
        (d["inferences"].clone(), d["outputs"][0]["max_reference"].clone())
    };
    let first = check(&["--random", "1"]);
    assert_eq!(first, check(&["--random", "1", "--seed", "0", "--ordering", "pipelined"]));
    assert_eq!(first, check(&[]), "one where nothing is said");
    assert_ne!(first, check(&["--random", "1", "--seed", "1"]));
    assert_eq!(check(&["--random", "3"]).0, 3);

    let folder = setup.path("pictures");
    fs::create_dir(&folder).expect("made");
    let picture = Path::new(&folder).join("p.png");
    image::RgbImage::from_fn(40, 32, |x, y| image::Rgb([(6 * x) as u8, (8 * y) as u8, (x * y) as u8]))
        .save(&picture)
        .expect("written");
    let of_picture = check(&["--input", text(&picture)]);
    assert_eq!(of_picture, check(&["--dataset", &folder]));
    for flags in [&["--bgr"][..], &["--crop", "center"], &["--crop", "32x32+8+0"]] {
        assert_ne!(of_picture, check(&[&["--input", text(&picture)], flags].concat()), "{flags:?}");
    }
    // Floats may be prepared; bytes are the network's own affair.
    let floats = setup.path("floats.blob");
    setup.json(0, &["compile", text(&tiny), "-o", &floats]);
    let of_floats = |flags: &[&str]| {
        let args = [&SIM[..], &["check", text(&tiny), &floats, "--input", text(&picture)], flags].concat();
        setup.json(0, &args)["outputs"][0]["max_reference"].clone()
    };
    assert_eq!(of_floats(&[]), of_picture.1);
    assert_ne!(of_floats(&["--mean", "100,110,120"]), of_floats(&["--mean", "100,110,120", "--scale", "50"]));

    let at = |name: &str| committed("../models").join(name).to_str().expect("UTF-8").to_owned();
    let (input, answer) = (at("tiny_u8_s1.in.data.npy"), at("tiny_u8_s1.out.prob.npy"));
    let d = setup.json(
        0,
        &[&SIM[..], &["check", text(&tiny), &blob, "--input", &input, "--reference", &answer]].concat(),
    );
    assert_eq!((&d["reference"], &d["inferences"]), (&"files".into(), &1.into()));
    let (none, labels) = (setup.path("none"), setup.path("labels.txt"));
    fs::write(&labels, "one\ntwo\n").expect("written");
    let check = [&SIM[..], &["check", text(&tiny), &blob]].concat();
    setup.fails(2, &[&check[..], &["--labels", &labels]].concat(), &["expected 10 lines", "found 2"]);
    setup.fails(2, &[&check[..], &["--dataset", &none]].concat(), &["expected a folder"]);
}

/// The model with other weights in one layer, so that a blob of it goes with the model up to there.
fn with_other_weights(model: &Path, name: &str) -> Vec<u8> {
    let mut bytes = fs::read(model).expect("committed");
    // The name of a constant (field 8 of a TensorProto), then its data (field 9) with a length of two bytes.
    let mark = [&[0x42, name.len() as u8], name.as_bytes(), &[0x4a]].concat();
    let at = bytes.windows(mark.len()).position(|w| w == mark).expect("its constant") + mark.len();
    let length = usize::from(bytes[at] & 0x7f) | usize::from(bytes[at + 1]) << 7;
    for value in bytes[at + 2..at + 2 + length].chunks_exact_mut(4) {
        // The sign of a little-endian single.
        value[3] ^= 0x80;
    }
    bytes
}

#[test]
fn the_first_layer_that_differs_is_named_or_the_reason_why_not() {
    let Some(setup) = Setup::find("the_first_layer_that_differs_is_named_or_the_reason_why_not") else {
        return;
    };
    let tiny = committed("tiny.onnx");
    let (other, blob) = (setup.path("other.onnx"), setup.path("x.blob"));
    // The weights of conv_18, the network's fourth.
    fs::write(&other, with_other_weights(&tiny, "w_16")).expect("written");
    setup.json(0, &["compile", &other, "-o", &blob]);
    setup.json(0, &[&SIM[..], &["check", &other, &blob, "--random", "2"]].concat());
    let d = setup.json(1, &[&SIM[..], &["check", text(&tiny), &blob, "--random", "2"]].concat());
    let said = d["first_difference"].as_str().expect("found out");
    assert!(said.contains("up to layer clip_15 (Clip)") && said.contains("from conv_18 (Conv) on"), "{said}");
    // A stick that gives something else than the graph: not a layer's fault.
    let hash = ["--sim", "1", "--engine", "hash", "check"];
    let d = setup.json(1, &[&hash[..], &[&other, &blob]].concat());
    assert!(d["first_difference"].as_str().is_some_and(|s| s.contains("in every layer")), "{d}");
    let batch = setup.path("batch.blob");
    setup.json(0, &["compile", text(&tiny), "-o", &batch, "--batch", "2"]);
    let xml = committed("tiny.xml");
    for (model, blob, why) in [(&tiny, &batch, "a batch"), (&xml, &blob, "an .onnx")] {
        let d = setup.json(1, &[&SIM[..], &["check", text(model), blob, "--tolerance", "0"]].concat());
        assert_eq!(d["first_difference"], Value::Null, "{d}");
        assert!(d["no_first_difference"].as_str().is_some_and(|s| s.contains(why)), "{d}");
    }
}

#[test]
fn libraries_are_found_where_the_user_says_and_their_link_is_mended() {
    let Some(setup) = Setup::find("libraries_are_found_where_the_user_says_and_their_link_is_mended") else {
        return;
    };
    // An installation as Intel's archives lay it, its link missing as in a wheel.
    let home = setup.path("installed");
    let libraries = Path::new(&home).join("runtime/lib/intel64");
    fs::create_dir_all(&libraries).expect("made");
    for entry in fs::read_dir(setup.data.join("ncs2/openvino")).expect("set up") {
        let entry = entry.expect("entry");
        if entry.file_name() != "libopenvino_c.so" {
            std::os::unix::fs::symlink(entry.path(), libraries.join(entry.file_name())).expect("made");
        }
    }
    let link = libraries.join("libopenvino_c.so");
    let d = setup.json(0, &["setup", "openvino", &home]);
    assert_eq!((&d["link"], &d["unpacked"]), (&"made".into(), &false.into()));
    assert_eq!((&d["folder"], &d["found_by_itself"]), (&text(&libraries).into(), &false.into()));
    assert!(link.is_symlink());
    let d = setup.json(0, &["setup", "openvino", &home]);
    assert_eq!(d["link"], "there");
    let d = setup.json(0, &["setup", "openvino"]);
    assert_eq!(d["found_by_itself"], true, "what was set up before");

    fs::remove_file(&link).expect("made before");
    let mut command = super::tool::ncs2ctl();
    let tiny = committed("tiny.onnx");
    let blob = committed("../models/tiny_fp16_s1.blob");
    command.args([&SIM[..], &["--json", "check", text(&tiny), text(&blob)]].concat());
    let output = command
        .env("XDG_DATA_HOME", setup.path("nothing"))
        .env("OPENVINO_INSTALL_DIR", &home)
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(link.is_symlink(), "check mends it, too");
}
