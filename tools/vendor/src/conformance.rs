//! What the vendor's client can do with a stick, it can do with our virtual one; and our driver does the same there, with the
//! same answers bit for bit. Where the vendor's client compiled the network, its own CPU plugin says what is right.

use serde_json::{Value, json};

use crate::client::{Client, Who};
use crate::guest::{Guest, STEP, Test, Verdict, ensure, model, wait};
use crate::host::Setup;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("conformance::lists_one_stick", |g| lists(g, 1)),
    ("conformance::lists_four_sticks", |g| lists(g, 4)),
    ("conformance::network_tiny", |g| network(g, "tiny.onnx", json!({}))),
    ("conformance::network_mlp", |g| network(g, "mlp.onnx", json!({}))),
    ("conformance::network_fire", |g| network(g, "fire", json!({}))),
    ("conformance::network_depthwise", |g| network(g, "depthwise", json!({}))),
    ("conformance::several_inputs_and_outputs", |g| network(g, "two-in-two-out", json!({}))),
    ("conformance::input_u8", |g| network(g, "tiny.onnx", json!({ "input": "U8" }))),
    ("conformance::input_fp32", |g| network(g, "tiny.onnx", json!({ "input": "FP32" }))),
    ("conformance::output_fp32", |g| network(g, "tiny.onnx", json!({ "output": "FP32" }))),
    ("conformance::batch_of_two", |g| network(g, "tiny.onnx", json!({ "batch": 2 }))),
    ("conformance::three_streams", |g| {
        network(g, "tiny.onnx", json!({ "config": { "MYRIAD_THROUGHPUT_STREAMS": "3" }, "executors": 3 }))
    }),
    ("conformance::blob_of_23_megabytes", |g| network(g, "large-blob", json!({}))),
    ("conformance::input_of_12_megabytes", |g| network(g, "large-input", json!({ "input": "FP32" }))),
    ("conformance::blob_squeezenet", |g| blob(g, "squeezenet1_1_u8_s1.blob")),
    ("conformance::blob_ssd_head", |g| blob(g, "ssd_head_u8_s1.blob")),
    ("conformance::blob_lstm", |g| blob(g, "lstm_fp16_s1.blob")),
    ("conformance::blob_swconv", |g| blob(g, "swconv_fp16_s1.blob")),
    ("conformance::one_request_in_flight", |g| in_flight(g, 1)),
    ("conformance::four_requests_in_flight", |g| in_flight(g, 4)),
    ("conformance::sixteen_requests_in_flight", |g| in_flight(g, 16)),
    ("conformance::two_networks_on_one_stick", two_networks_on_one_stick),
    ("conformance::two_sticks", two_sticks),
    ("conformance::multi_device", multi_device),
    ("conformance::thermal_metric", thermal_metric),
    ("conformance::performance_counters", performance_counters),
    ("conformance::export_and_import", export_and_import),
    ("conformance::without_watchdog", |g| {
        configured(g, "MYRIAD_WATCHDOG", "NO", json!({ "watchdog": false }))
    }),
    ("conformance::with_watchdog", |g| configured(g, "MYRIAD_WATCHDOG", "YES", json!({ "watchdog": true }))),
    ("conformance::power_infer", |g| {
        configured(g, "MYRIAD_POWER_MANAGEMENT", "MYRIAD_POWER_INFER", json!({}))
    }),
    ("conformance::power_stage_nces", |g| {
        configured(g, "MYRIAD_POWER_MANAGEMENT", "MYRIAD_POWER_STAGE_NCES", json!({}))
    }),
    ("conformance::reuse_of_an_open_stick", reuse_of_an_open_stick),
    ("conformance::force_reset_of_a_booted_stick", force_reset_of_a_booted_stick),
];

/// What the vendor's CPU plugin says may differ by so much of its largest value.
const TOLERANCE: f64 = 0.01;

fn lists(guest: &mut Guest, sticks: usize) -> Verdict {
    let steps = json!([{ "do": "devices" }]);
    let setup = Setup::hashing(sticks);
    let vendor = guest.steps(Who::Vendor, &setup, "devices", &steps)?[0]["devices"].clone();
    let ours = guest.steps(Who::Ours, &setup, "devices", &steps)?[0]["devices"].clone();
    guest.note(format!("{vendor} {ours}"));
    let count = |list: &Value, begins: &str| {
        list.as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .filter(|n| n.starts_with(begins))
            .count()
    };
    ensure!(count(&vendor, "MYRIAD") == sticks, "expected {sticks} of MYRIAD, found {vendor}");
    ensure!(count(&ours, "") == sticks, "expected {sticks} sticks, found {ours}");
    Ok(())
}

/// The bytes of each output by name, of every step that computed something.
pub(crate) fn outputs(answers: &[Value]) -> Result<Vec<(String, Vec<u8>)>, String> {
    let mut all = Vec::new();
    for answer in answers.iter().filter(|a| a["do"] == "infer") {
        for (name, path) in answer["outputs"].as_object().ok_or("an answer without outputs")? {
            let path = path.as_str().unwrap_or_default();
            all.push((name.clone(), std::fs::read(path).map_err(|e| format!("{path}: {e}"))?));
        }
    }
    Ok(all)
}

/// The vendor's steps, then ours, on sticks that are set up alike; all outputs must be equal.
fn alike(
    guest: &mut Guest,
    name: &str,
    setup: &Setup,
    vendor: &Value,
    ours: &Value,
) -> Result<[Vec<Value>; 2], String> {
    let vendor_answers = guest.steps(Who::Vendor, setup, name, vendor)?;
    let expected = outputs(&vendor_answers)?;
    let our_answers = guest.steps(Who::Ours, setup, name, ours)?;
    let found = outputs(&our_answers)?;
    ensure!(!expected.is_empty(), "the vendor's client computed nothing");
    ensure!(
        expected.len() == found.len(),
        "the vendor's client has {} outputs, ours {}",
        expected.len(),
        found.len()
    );
    for ((name, expected), (ours, found)) in expected.iter().zip(&found) {
        ensure!(name == ours, "the vendor's client has output {name}, ours {ours}");
        ensure!(!expected.is_empty(), "output {name} is empty");
        ensure!(
            expected == found,
            "output {name}: {} bytes of the vendor's client and {} of ours differ{}",
            expected.len(),
            found.len(),
            expected
                .iter()
                .zip(found)
                .position(|(a, b)| a != b)
                .map_or(String::new(), |at| format!(" from byte {at}"))
        );
    }
    Ok([vendor_answers, our_answers])
}

/// With what `more` says added to a step.
fn with(mut step: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        step[key] = value.clone();
    }
    step
}

/// Compiled by the vendor's client on the spot, run by both, and by the CPU.
fn network(guest: &mut Guest, name: &str, options: Value) -> Verdict {
    let file = if name.ends_with(".onnx") { model(name)?.display().to_string() } else { name.to_owned() };
    let vendor = json!([
        with(json!({ "do": "load", "graph": "a", "network": file }), &options),
        { "do": "export", "graph": "a", "to": "/tmp/exported.blob" },
        { "do": "infer", "graph": "a", "count": 3, "to": "/tmp/vendor" },
        { "do": "cpu", "graph": "a", "count": 3, "to": "/tmp/cpu" },
        { "do": "close" },
    ]);
    let ours = json!([
        with(json!({ "do": "load", "graph": "a", "blob": "/tmp/exported.blob" }), &options),
        { "do": "infer", "graph": "a", "count": 3, "to": "/tmp/ours" },
        { "do": "close" },
    ]);
    let [answers, _] = alike(guest, name, &Setup::executing(1), &vendor, &ours)?;
    let single = options["output"] == "FP32";
    let mut worst = 0f64;
    for (name, path) in answers[3]["outputs"].as_object().ok_or("the CPU has no outputs")? {
        let reference = floats(&read(path)?);
        let found = read(&answers[2]["outputs"][name])?;
        let found = if single { floats(&found) } else { halves(&found) };
        ensure!(
            found.len() == reference.len(),
            "{name}: {} elements, the CPU has {}",
            found.len(),
            reference.len()
        );
        let largest = reference.iter().fold(0f64, |m, v| m.max(v.abs()));
        let error = reference.iter().zip(&found).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
        ensure!(largest > 0.0, "{name}: the CPU says nothing but 0");
        ensure!(found.iter().all(|v| v.is_finite()), "{name}: not all are numbers");
        worst = worst.max(error / largest);
    }
    guest.note(format!(
        "blob of {} bytes; at most {:.2} % of the largest value from the CPU plugin",
        answers[1]["bytes"],
        worst * 100.0
    ));
    ensure!(
        worst <= TOLERANCE,
        "{:.2} % from the CPU plugin, more than {:.0} %",
        worst * 100.0,
        TOLERANCE * 100.0
    );
    Ok(())
}

fn read(path: &Value) -> Result<Vec<u8>, String> {
    let path = path.as_str().ok_or("no such output")?;
    std::fs::read(path).map_err(|e| format!("{path}: {e}"))
}

fn floats(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
}

fn halves(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f64()).collect()
}

/// A committed blob through `import_network`.
fn blob(guest: &mut Guest, name: &str) -> Verdict {
    let blob = model(name)?;
    let steps = |who: Who| {
        json!([
            { "do": "load", "graph": "a", "blob": blob },
            { "do": "infer", "graph": "a", "count": 2, "to": format!("/tmp/{}", who.name()) },
            { "do": "close" },
        ])
    };
    alike(guest, name, &Setup::executing(1), &steps(Who::Vendor), &steps(Who::Ours)).map(drop)
}

/// Many different inputs, so many at a time: none gets another's answer.
fn in_flight(guest: &mut Guest, count: usize) -> Verdict {
    let blob = model("tiny_fp16_s2.blob")?;
    let steps = |who: Who| {
        json!([
            { "do": "load", "graph": "a", "blob": blob, "requests": count },
            { "do": "infer", "graph": "a", "count": 48, "in_flight": count, "to": format!("/tmp/{}", who.name()) },
            { "do": "close" },
        ])
    };
    let setup = Setup::executing(1);
    let answers = alike(guest, "in-flight", &setup, &steps(Who::Vendor), &steps(Who::Ours))?;
    let distinct: std::collections::HashSet<_> =
        outputs(&answers[0])?[0].1.chunks(20).map(<[u8]>::to_vec).collect();
    ensure!(distinct.len() > 40, "only {} of 48 answers differ: a mix-up could not be seen", distinct.len());
    Ok(())
}

fn two_networks_on_one_stick(guest: &mut Guest) -> Verdict {
    let (first, second) = (model("tiny_fp16_s1.blob")?, model("mlp_fp16_s1.blob")?);
    let steps = |who: Who| {
        let to = |n: usize| format!("/tmp/{}.{n}", who.name());
        json!([
            { "do": "load", "graph": "a", "blob": first, "device": 0 },
            { "do": "load", "graph": "b", "blob": second, "device": 0 },
            { "do": "infer", "graph": "a", "count": 4, "in_flight": 1, "to": to(0) },
            { "do": "infer", "graph": "b", "count": 4, "in_flight": 1, "to": to(1) },
            { "do": "infer", "graph": "a", "count": 4, "to": to(2) },
            { "do": "unload", "graph": "a" },
            { "do": "infer", "graph": "b", "count": 4, "to": to(3) },
            { "do": "close" },
        ])
    };
    alike(guest, "two-networks", &Setup::executing(1), &steps(Who::Vendor), &steps(Who::Ours)).map(drop)
}

fn two_sticks(guest: &mut Guest) -> Verdict {
    let blob = model("tiny_fp16_s1.blob")?;
    let vendor = json!([
        { "do": "load", "graph": "a", "blob": blob, "device": 0 },
        { "do": "load", "graph": "b", "blob": blob, "device": 1 },
        { "do": "infer", "graph": "a", "count": 4, "to": "/tmp/vendor.0" },
        { "do": "infer", "graph": "b", "count": 4, "to": "/tmp/vendor.1" },
        { "do": "close" },
    ]);
    let ours = json!([
        { "do": "config", "sticks": 2 },
        { "do": "load", "graph": "a", "blob": blob },
        { "do": "infer", "graph": "a", "count": 4, "stick": 0, "to": "/tmp/ours.0" },
        { "do": "infer", "graph": "a", "count": 4, "stick": 1, "to": "/tmp/ours.1" },
        { "do": "close" },
    ]);
    alike(guest, "two-sticks", &Setup::executing(2), &vendor, &ours).map(drop)
}

/// The vendor's MULTI device over two sticks; ours is a fleet of two.
fn multi_device(guest: &mut Guest) -> Verdict {
    let vendor = json!([
        { "do": "load", "graph": "one", "network": model("tiny.onnx")?, "device": 0 },
        { "do": "export", "graph": "one", "to": "/tmp/exported.blob" },
        { "do": "unload", "graph": "one" },
        { "do": "load", "graph": "a", "network": model("tiny.onnx")?, "device": "MULTI", "requests": 8 },
        { "do": "infer", "graph": "a", "count": 32, "in_flight": 8, "to": "/tmp/vendor" },
        { "do": "close" },
    ]);
    let ours = json!([
        { "do": "config", "sticks": 2 },
        { "do": "load", "graph": "a", "blob": "/tmp/exported.blob" },
        { "do": "infer", "graph": "a", "count": 32, "in_flight": 8, "to": "/tmp/ours" },
        { "do": "close" },
    ]);
    alike(guest, "multi", &Setup::executing(2), &vendor, &ours).map(drop)
}

fn thermal_metric(guest: &mut Guest) -> Verdict {
    let blob = model("tiny_u8_s1.blob")?;
    let steps = json!([{ "do": "load", "graph": "a", "blob": blob, "device": 0 }, { "do": "thermal", "device": 0 }, { "do": "close" }]);
    let mut found = Vec::new();
    for who in Who::BOTH {
        let answers = guest.steps(who, &Setup::hashing(1), "thermal", &steps)?;
        found.push(answers[1]["celsius"].as_f64().ok_or("no temperature")?);
    }
    guest.note(format!("{:.1} and {:.1} °C, simulated", found[0], found[1]));
    ensure!(
        found.iter().all(|c| (20.0..40.0).contains(c)),
        "expected a stick at room temperature, found {found:?}"
    );
    Ok(())
}

/// Only the vendor's client has an interface for them; the stick is what is tested.
fn performance_counters(guest: &mut Guest) -> Verdict {
    let steps = json!([
        { "do": "load", "graph": "a", "network": model("tiny.onnx")?, "config": { "PERF_COUNT": "YES" } },
        { "do": "infer", "graph": "a", "to": "/tmp/vendor" },
        { "do": "counters", "graph": "a" },
        { "do": "close" },
    ]);
    let answers =
        guest.steps(Who::Vendor, &Setup { model_time: true, ..Setup::executing(1) }, "counters", &steps)?;
    let (stages, micros) = (&answers[2]["stages"], &answers[2]["micros"]);
    guest.note(format!("{stages} stages, {micros} µs, simulated"));
    ensure!(stages.as_u64() > Some(3) && micros.as_f64() > Some(0.0), "found {}", answers[2]);
    Ok(())
}

/// Exported by a client that compiled it, imported by another, run by ours.
fn export_and_import(guest: &mut Guest) -> Verdict {
    let export = json!([
        { "do": "load", "graph": "a", "network": model("tiny.onnx")?, "input": "U8" },
        { "do": "export", "graph": "a", "to": "/tmp/exported.blob" },
        { "do": "infer", "graph": "a", "count": 2, "to": "/tmp/compiled" },
        { "do": "close" },
    ]);
    let setup = Setup::executing(1);
    let compiled = outputs(&guest.steps(Who::Vendor, &setup, "export", &export)?)?;
    let steps = |who: Who| {
        json!([
            { "do": "load", "graph": "a", "blob": "/tmp/exported.blob" },
            { "do": "infer", "graph": "a", "count": 2, "to": format!("/tmp/{}", who.name()) },
            { "do": "close" },
        ])
    };
    let answers = alike(guest, "import", &setup, &steps(Who::Vendor), &steps(Who::Ours))?;
    ensure!(outputs(&answers[0])? == compiled, "imported, it answers otherwise");
    Ok(())
}

/// With an option of the vendor's, and what is the same for ours.
fn configured(guest: &mut Guest, key: &str, value: &str, ours: Value) -> Verdict {
    let blob = model("tiny_u8_s1.blob")?;
    let steps = |who: Who| {
        json!([
            with(json!({ "do": "config", "set": { key: value } }), &ours),
            { "do": "load", "graph": "a", "blob": blob },
            { "do": "wait", "seconds": 8.0 },
            { "do": "infer", "graph": "a", "count": 2, "to": format!("/tmp/{}", who.name()) },
            { "do": "close" },
        ])
    };
    // A watchdog that bites within the wait, so that pings, and the byte in the firmware that makes them needless, count; and
    // not before the vendor's client sends its first, which takes it over 2 s on a busy host.
    let setup = Setup { profile: "[firmware]\nwatchdog_s = 6.0\n".into(), ..Setup::executing(1) };
    alike(guest, "configured", &setup, &steps(Who::Vendor), &steps(Who::Ours)).map(drop)
}

fn reuse_of_an_open_stick(guest: &mut Guest) -> Verdict {
    let (first, second) = (model("tiny_fp16_s1.blob")?, model("mlp_fp16_s1.blob")?);
    let steps = |who: Who| {
        let to = |n: usize| format!("/tmp/{}.{n}", who.name());
        json!([
            { "do": "load", "graph": "a", "blob": first },
            { "do": "infer", "graph": "a", "count": 2, "to": to(0) },
            { "do": "unload", "graph": "a" },
            { "do": "load", "graph": "a", "blob": second },
            { "do": "infer", "graph": "a", "count": 2, "to": to(1) },
            { "do": "close" },
        ])
    };
    let answers = alike(guest, "reuse", &Setup::executing(1), &steps(Who::Vendor), &steps(Who::Ours))?;
    let seconds = |a: &[Value]| a[3]["seconds"].as_f64().unwrap_or_default();
    guest.note(format!(
        "second load: vendor {:.2} s, ours {:.2} s",
        seconds(&answers[0]),
        seconds(&answers[1])
    ));
    Ok(())
}

/// A client is killed and leaves its stick booted; the next one takes it all the same. The vendor's client does so when it is told
/// to, by RESET over XLink. Ours never speaks to a stick that it did not boot: it waits for the watchdog, which it always arms unless
/// told otherwise; without one it resets the USB device, and where that does not help, as here, it says what does.
fn force_reset_of_a_booted_stick(guest: &mut Guest) -> Verdict {
    for (who, watchdog) in [(Who::Vendor, false), (Who::Ours, true), (Who::Ours, false)] {
        let setup = Setup { profile: "[firmware]\nwatchdog_s = 4.0\n".into(), ..Setup::executing(1) };
        guest.serve(&setup)?;
        let armed = if watchdog { "YES" } else { "NO" };
        let leave = json!([
            { "do": "config", "set": { "MYRIAD_WATCHDOG": armed }, "watchdog": watchdog },
            { "do": "load", "graph": "a", "blob": model("tiny_u8_s1.blob")? },
            { "do": "wait", "seconds": 60 },
        ]);
        let mut killed = Client::start(who, &leave, "killed")?;
        killed.begins(2, STEP)?;
        drop(killed);
        wait("a booted stick that nobody holds", || {
            use ncs2::transport::usb::discover::{FoundState, list};
            list().is_ok_and(|all| all.len() == 1 && all[0].state == FoundState::Booted)
        })?;
        let steps = json!([
            { "do": "config", "set": { "MYRIAD_ENABLE_FORCE_RESET": "YES" }, "reset_foreign": true, "open_timeout_s": 16.0 },
            { "do": "load", "graph": "a", "blob": model("tiny_u8_s1.blob")? },
            { "do": "infer", "graph": "a", "to": format!("/tmp/{}", who.name()) },
            { "do": "close" },
        ]);
        let mut client = guest.client(who, &steps, "force-reset")?;
        let answers = (0..4).map(|n| client.step(n, STEP)).collect::<Result<Vec<_>, _>>()?;
        guest.done(client)?;
        match answers[1]["error"].as_str() {
            Some(why) => {
                ensure!(who == Who::Ours && !watchdog, "{}, watchdog {armed}: {why}", who.name());
                ensure!(why.contains("plug it out and in"), "ours says only: {why}");
                guest.note(format!("{}, watchdog {armed}: {why}", who.name()));
            }
            None => {
                ensure!(answers[2]["error"].is_null(), "{}: {}", who.name(), answers[2]["error"]);
                let seconds = answers[1]["seconds"].as_f64().unwrap_or_default();
                guest.note(format!("{}, watchdog {armed}: taken after {seconds:.1} s", who.name()));
            }
        }
    }
    Ok(())
}
