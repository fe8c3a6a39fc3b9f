//! Documents against the schema files of `schemas/`.

use serde_json::Value;

/// The schema file of a command.
pub fn read(name: &str) -> Value {
    let path = format!("{}/schemas/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Fails with every place where `document` is not as `schemas/NAME.json` has it.
pub fn holds(name: &str, document: &Value) {
    let validator = jsonschema::validator_for(&read(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let errors: Vec<String> =
        validator.iter_errors(document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{name}: {errors:#?}\nin {document:#}");
}
