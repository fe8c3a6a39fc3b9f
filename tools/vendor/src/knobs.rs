//! What nobody knows about the firmware, turned this way and that: what the vendor's client accepts, and that ours accepts all
//! of it. The knobs are those of the virtual stick's profile, section `[firmware]`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Who;
use crate::conformance::outputs;
use crate::figures::{head, row};
use crate::guest::{Guest, Test, Verdict, ensure, model};
use crate::host::Setup;

pub(crate) const TESTS: &[(&str, Test)] = &[("knobs::all_that_the_vendor_passes", matrix)];

/// As long as a client may be silent before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(40);

/// Each value that is not the default, alone; then all together, and pairs that could be in each other's way.
const COMBINATIONS: [&[&str]; 25] = [
    &[],
    &["input_release = \"start\""],
    &["status = \"after\""],
    &["output_piece_bytes = 7"],
    &["output_piece_bytes = 512"],
    &["creates_streams = true"],
    &["zero_length = \"full\""],
    &["zero_length = \"always\""],
    &["ack_delay_us = 300.0"],
    &["ack_delay_us = 5000.0"],
    &["answers_reset = false"],
    &["refused_input = \"keep\""],
    &["watchdog_s = 2.0"],
    &["watchdog_s = 60.0"],
    &["max_executors = 1"],
    &["max_executors = 2"],
    &["max_graphs = 2"],
    &["max_fifos = 4"],
    &["input_release = \"start\"", "status = \"after\""],
    &["status = \"after\"", "ack_delay_us = 5000.0"],
    &["creates_streams = true", "ack_delay_us = 5000.0"],
    &["creates_streams = true", "zero_length = \"always\""],
    &["output_piece_bytes = 7", "zero_length = \"always\""],
    &["answers_reset = false", "creates_streams = true"],
    &[
        "input_release = \"start\"",
        "status = \"after\"",
        "output_piece_bytes = 512",
        "creates_streams = true",
        "zero_length = \"always\"",
        "ack_delay_us = 300.0",
        "answers_reset = false",
        "watchdog_s = 2.0",
    ],
];

/// How a client fared.
#[derive(Clone, PartialEq, Debug)]
enum Outcome {
    /// What it computed.
    Answers(Vec<(String, Vec<u8>)>),
    /// What it said instead, and in which step.
    Failed(String),
}

fn matrix(guest: &mut Guest) -> Verdict {
    let mut table = String::from(
        "Load, two inferences one by one, eight with four in flight, unload, close. \"same\" is the answers of the default \
         stick, bit for bit.\n\n",
    );
    table += &head(["knobs", "vendor's client", "ours, `vendor`", "ours, `pipelined`"]);
    let mut right: Option<Vec<(String, Vec<u8>)>> = None;
    let mut worse = Vec::new();
    for knobs in COMBINATIONS {
        let profile = knobs.iter().fold("[firmware]\n".to_owned(), |text, line| format!("{text}{line}\n"));
        let setup = Setup { profile, ..Setup::executing(1) };
        let columns = [
            attempt(guest, Who::Vendor, &setup, "vendor")?,
            attempt(guest, Who::Ours, &setup, "vendor")?,
            attempt(guest, Who::Ours, &setup, "pipelined")?,
        ];
        if right.is_none() {
            let Outcome::Answers(answers) = &columns[0] else {
                return Err(format!("the vendor's client fails on the default stick: {:?}", columns[0]));
            };
            right = Some(answers.clone());
        }
        let passes = |outcome: &Outcome| matches!(outcome, Outcome::Answers(a) if Some(a) == right.as_ref());
        let name = if knobs.is_empty() { "defaults".to_owned() } else { format!("`{}`", knobs.join("`, `")) };
        for (ours, ordering) in columns[1..].iter().zip(["vendor", "pipelined"]) {
            if passes(&columns[0]) && !passes(ours) {
                worse.push(format!("{name}: the vendor's client passes, ours in {ordering} order does not"));
            }
        }
        let said = columns.iter().map(|outcome| match outcome {
            Outcome::Answers(_) if passes(outcome) => "same".to_owned(),
            Outcome::Answers(_) => "OTHER ANSWERS".to_owned(),
            Outcome::Failed(why) => why.clone(),
        });
        table += &row([name].into_iter().chain(said));
    }
    guest.table("knobs", table);
    ensure!(worse.is_empty(), "{}", worse.join("\n      "));
    Ok(())
}

fn attempt(guest: &mut Guest, who: Who, setup: &Setup, ordering: &str) -> Result<Outcome, String> {
    let to = |n: usize| format!("/tmp/{}.{n}", who.name());
    let steps = json!([
        { "do": "config", "set": {}, "ordering": ordering },
        { "do": "load", "graph": "a", "blob": model("tiny_fp16_s1.blob")?, "device": 0, "requests": 4 },
        { "do": "infer", "graph": "a", "count": 2, "to": to(0) },
        { "do": "wait", "seconds": if setup.profile.contains("watchdog_s = 2.0") { 3.0 } else { 0.0 } },
        { "do": "infer", "graph": "a", "count": 8, "in_flight": 4, "to": to(1) },
        { "do": "unload", "graph": "a" },
        { "do": "close" },
    ]);
    guest.serve(setup)?;
    let mut client = guest.client(who, &steps, "knobs")?;
    let mut answers = Vec::new();
    for (n, step) in steps.as_array().into_iter().flatten().enumerate() {
        let word = step["do"].as_str().unwrap_or_default();
        let start = Instant::now();
        let answer: Value = match client.step(n, PATIENCE) {
            Ok(answer) => answer,
            Err(why) if start.elapsed() >= PATIENCE => {
                return Ok(Outcome::Failed(format!("stuck in {word} ({why})")));
            }
            Err(why) => return Ok(Outcome::Failed(format!("{word}: {why}"))),
        };
        if let Some(why) = answer["error"].as_str() {
            return Ok(Outcome::Failed(format!("{word}: {why}")));
        }
        answers.push(answer);
    }
    if let Err(why) = guest.done(client) {
        return Ok(Outcome::Failed(why));
    }
    Ok(Outcome::Answers(outputs(&answers)?))
}
