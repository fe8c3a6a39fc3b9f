//! What the vendor's client can do on a stick, on our virtual one; the same by ours, with the same answers bit for bit.

use serde_json::{Value, json};

use crate::client::Who;
use crate::guest::{Guest, Test, Verdict, ensure, model};
use crate::host::Setup;

pub(crate) const TESTS: &[(&str, Test)] =
    &[("conformance::lists_one_stick", lists_one_stick), ("conformance::blob_tiny", blob_tiny)];

fn lists_one_stick(guest: &mut Guest) -> Verdict {
    let found = guest.steps(Who::Vendor, &Setup::hashing(1), "devices", &json!([{ "do": "devices" }]))?;
    ensure!(
        found[0]["devices"] == json!(["CPU", "MYRIAD"]),
        "expected CPU and MYRIAD, found {}",
        found[0]["devices"]
    );
    Ok(())
}

/// The bytes of each output, by name.
fn outputs(answer: &Value) -> Result<Vec<(String, Vec<u8>)>, String> {
    let files = answer["outputs"].as_object().ok_or("no outputs")?;
    files
        .iter()
        .map(|(name, path)| {
            let path = path.as_str().unwrap_or_default();
            Ok((name.clone(), std::fs::read(path).map_err(|e| format!("{path}: {e}"))?))
        })
        .collect()
}

fn blob_tiny(guest: &mut Guest) -> Verdict {
    let blob = model("tiny_u8_s1.blob")?;
    let mut all = Vec::new();
    for who in Who::BOTH {
        let steps = json!([
            { "do": "load", "graph": "a", "blob": blob },
            { "do": "infer", "graph": "a", "count": 3, "to": format!("/tmp/{}", who.name()) },
            { "do": "close" },
        ]);
        let setup = Setup { trace: Some(format!("tiny.{}.log", who.name())), ..Setup::executing(1) };
        let answers = guest.steps(who, &setup, "tiny", &steps)?;
        guest.note(format!("{}: {} {} {}", who.name(), answers[0], answers[1], answers[2]));
        all.push(outputs(&answers[1])?);
    }
    ensure!(all[0] == all[1], "outputs differ");
    Ok(())
}
