//! Every command has a schema file, each is a good schema, and what documents promise is written down there.
//!
//! That the documents are as their schemas say is checked wherever a test reads one: see `tool::json`.

mod tool;

use std::fs;

use serde_json::Value;
use tool::{json, model, schema, schema_folder};

#[test]
fn every_schema_is_good_and_names_its_documents() {
    let mut names = Vec::new();
    for entry in fs::read_dir(schema_folder()).expect("committed") {
        let path = entry.expect("entry").path();
        let name = path.file_stem().expect("a name").to_str().expect("UTF-8").to_owned();
        let schema: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("a JSON document");
        jsonschema::meta::validate(&schema).unwrap_or_else(|e| panic!("{name}: {e}"));
        let id = match name.as_str() {
            "stats" => "ncs2.stats/1".to_owned(),
            name => format!("ncs2ctl.{name}/1"),
        };
        // That of failures is for those of every command.
        let said = name == "error" || schema.to_string().contains(&format!("\"const\":\"{id}\""));
        assert!(said, "{name}");
        names.push(name);
    }
    names.sort();
    let commands = [
        "batch",
        "bench",
        "blob-info",
        "boot",
        "check",
        "compile",
        "completions",
        "config",
        "decode",
        "doctor",
        "error",
        "firmware",
        "info",
        "list",
        "man",
        "quantize",
        "reset",
        "run",
        "selftest",
        "setup",
        "sim",
        "stats",
        "thermal",
        "top",
        "trace",
        "udev",
    ];
    for command in commands {
        assert!(names.iter().any(|n| n == command), "no schema of {command}: {names:?}");
    }
}

#[test]
fn a_document_that_breaks_its_schema_is_found() {
    let blob = model("tiny_u8_s1.blob");
    let (_, good) = json(&["blob", "info", blob.to_str().expect("UTF-8")], "blob-info");
    let validator = jsonschema::validator_for(&schema::read("blob-info")).expect("a schema");
    assert!(validator.is_valid(&good));
    let mut renamed = good.clone();
    let map = renamed.as_object_mut().expect("an object");
    let macs = map.remove("macs").expect("promised");
    map.insert("multiply_accumulates".into(), macs);
    assert!(!validator.is_valid(&renamed), "a field was renamed");
    let mut text = good;
    text["stages"] = "many".into();
    assert!(!validator.is_valid(&text), "a number became text");
}
