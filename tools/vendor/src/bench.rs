//! The two clients on the same virtual stick in the same machine, one after the other, again and again: speed, cost, and how
//! they behave when sticks are many, a network is loaded, or a stick is pulled out. All of it is simulated, and the machine is
//! emulated: the ratios are what counts.

use serde_json::{Value, json};

use crate::client::{Client, Who};
use crate::figures::{head, median, row, short, time};
use crate::guest::{Guest, STEP, Test, Verdict, ensure, model};
use crate::host::Setup;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("bench::speed_and_cost", speed_and_cost),
    ("bench::ready", ready),
    ("bench::second_load_while_inferring", second_load),
    ("bench::unplug", unplug),
];

/// Runs of each client in turn.
const ROUNDS: usize = 2;
/// Seconds of each measurement.
const SECONDS: f64 = 2.5;
const NETWORKS: [&str; 3] = ["mlp_fp16_s1", "squeezenet1_1_u8_s1", "resnet18_u8_s1"];

/// A client with its order on the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    VendorPython,
    VendorCpp,
    OursVendorOrder,
    OursPipelined,
}

impl Entry {
    const ALL: [Entry; 4] =
        [Entry::VendorPython, Entry::VendorCpp, Entry::OursVendorOrder, Entry::OursPipelined];
    /// Those that can do everything.
    const WHOLE: [Entry; 3] = [Entry::VendorPython, Entry::OursVendorOrder, Entry::OursPipelined];

    fn who(self) -> Who {
        match self {
            Entry::VendorPython => Who::Vendor,
            Entry::VendorCpp => Who::VendorBench,
            Entry::OursVendorOrder | Entry::OursPipelined => Who::Ours,
        }
    }

    fn config(self) -> Value {
        let ordering = if self == Entry::OursPipelined { "pipelined" } else { "vendor" };
        json!({ "do": "config", "set": {}, "ordering": ordering })
    }
}

/// What one run measured, per inference where that makes sense.
#[derive(Clone, Copy, Default)]
struct Figures {
    rate: f64,
    p50_s: f64,
    p99_s: f64,
    cpu_s: f64,
    switches: f64,
    transfers: f64,
    threads: f64,
}

fn number(answer: &Value, key: &str) -> Result<f64, String> {
    answer[key].as_f64().ok_or_else(|| format!("no {key} in {answer}"))
}

/// One process: load, then each depth for a while.
fn measure(
    guest: &mut Guest,
    entry: Entry,
    setup: &Setup,
    blob: &Value,
    depths: &[u64],
) -> Result<Vec<Figures>, String> {
    let mut steps = vec![
        entry.config(),
        json!({ "do": "load", "graph": "a", "blob": blob, "requests": 4, "executors": 2, "depth": 4 }),
    ];
    // The first is not counted: it fills pools and caches.
    steps.push(json!({ "do": "bench", "graph": "a", "in_flight": 4, "seconds": 0.5 }));
    for depth in depths {
        steps.push(json!({ "do": "bench", "graph": "a", "in_flight": depth, "seconds": SECONDS }));
    }
    steps.push(json!({ "do": "close" }));
    guest.serve(setup)?;
    let mut client = Client::start(entry.who(), &json!(steps), "bench")?;
    let counted = |guest: &mut Guest| {
        let status = guest.ask(&json!({ "status": true }))?;
        let stick = &status["sticks"][0];
        Ok::<_, String>((number(stick, "inferences")?, number(stick, "transfers")?))
    };
    let mut all = Vec::new();
    for n in 0..3 {
        let answer = client.step(n, STEP)?;
        ensure!(answer["error"].is_null(), "{}: {}", entry.who().name(), answer["error"]);
    }
    for n in 3..3 + depths.len() {
        client.begins(n, STEP)?;
        let before = counted(guest)?;
        let answer = client.step(n, STEP)?;
        let after = counted(guest)?;
        ensure!(answer["error"].is_null() && answer["failed"].is_null(), "{}: {answer}", entry.who().name());
        let (count, seconds) = (number(&answer, "inferences")?, number(&answer, "seconds")?);
        ensure!(count > 0.0, "{}: no inference in {SECONDS} s", entry.who().name());
        all.push(Figures {
            rate: count / seconds,
            p50_s: number(&answer, "p50_s")?,
            p99_s: number(&answer, "p99_s")?,
            cpu_s: number(&answer, "cpu_s")? / count,
            switches: number(&answer, "switches")? / count,
            transfers: (after.1 - before.1) / (after.0 - before.0).max(1.0),
            threads: number(&answer, "threads")?,
        });
    }
    client.step(3 + depths.len(), STEP)?;
    client.done(STEP)?;
    Ok(all)
}

fn middle(rounds: &[Figures], pick: fn(&Figures) -> f64) -> f64 {
    median(rounds.iter().map(pick).collect()).unwrap_or_default()
}

fn speed_and_cost(guest: &mut Guest) -> Verdict {
    let mut table = format!(
        "Medians of {ROUNDS} alternating runs of {SECONDS} s in one emulated machine, simulated stick. The vendor's libraries are \
         called from Python, which is what the wheel offers, and from C++, which costs least. `vendor` and `pipelined` are the \
         orders on the wire of ours. A ratio compares `pipelined` with the vendor's from C++.\n\n"
    );
    table += &head([
        "network, timing",
        "in flight",
        "figure",
        "vendor's, Python",
        "vendor's, C++",
        "ours, `vendor`",
        "ours, `pipelined`",
        "ratio",
    ]);
    let mut missed = Vec::new();
    for network in NETWORKS {
        let Ok(blob) = model(&format!("{network}.blob")) else {
            guest.note(format!("{network}: not in the folder of models; NCS2_MODELS names another"));
            continue;
        };
        for model_time in [false, true] {
            let setup = Setup { model_time, ..Setup::hashing(1) };
            let depths: &[u64] = if model_time { &[4] } else { &[0, 4] };
            let mut rounds = vec![vec![Vec::new(); Entry::ALL.len()]; depths.len()];
            for _ in 0..ROUNDS {
                for (at, entry) in Entry::ALL.into_iter().enumerate() {
                    let measured = measure(guest, entry, &setup, &json!(blob), depths)?;
                    for (of_depth, figures) in rounds.iter_mut().zip(measured) {
                        of_depth[at].push(figures);
                    }
                }
            }
            for (of_depth, depth) in rounds.iter().zip(depths) {
                let timing = if model_time { "model" } else { "zero" };
                let name = format!("{network}, {timing}");
                let depth_name = if *depth == 0 { "sync".to_owned() } else { depth.to_string() };
                table += &rows(&name, &depth_name, of_depth);
                if !model_time {
                    missed.extend(targets(&name, *depth, of_depth));
                }
            }
        }
    }
    guest.table("speed", table);
    for line in &missed {
        guest.note(line.clone());
    }
    Ok(())
}

/// All figures of one network, timing and depth.
fn rows(name: &str, depth: &str, entries: &[Vec<Figures>]) -> String {
    let mut text = String::new();
    let mut line = |figure: &str, pick: fn(&Figures) -> f64, write: fn(f64) -> String| {
        let values: Vec<f64> = entries.iter().map(|rounds| middle(rounds, pick)).collect();
        let cells: Vec<String> = values.iter().map(|v| write(*v)).collect();
        let ratio = values[3] / values[1];
        text += &row([name, depth, figure]
            .into_iter()
            .map(str::to_owned)
            .chain(cells)
            .chain([format!("{ratio:.2}")]));
    };
    line("inferences/s", |f| f.rate, short);
    line("p50", |f| f.p50_s, time);
    line("p99", |f| f.p99_s, time);
    line("CPU an inference", |f| f.cpu_s, time);
    line("context switches", |f| f.switches, short);
    line("USB transfers", |f| f.transfers, short);
    line("threads", |f| f.threads, short);
    text
}

/// The figures to reach, said whether they were.
fn targets(name: &str, depth: u64, entries: &[Vec<Figures>]) -> Vec<String> {
    let ratio = |pick: fn(&Figures) -> f64| middle(&entries[3], pick) / middle(&entries[1], pick);
    let mut said = Vec::new();
    let mut check = |what: &str, found: f64, wanted: f64, at_least: bool| {
        let reached = if at_least { found >= wanted } else { found <= wanted };
        let word = if reached { "reached" } else { "NOT reached" };
        said.push(format!("{name}: {what} {found:.2} of the vendor's, to reach {wanted:.2}: {word}"));
    };
    if depth == 0 {
        check("sync p50", ratio(|f| f.p50_s), 0.5, false);
    } else {
        check("throughput at depth 4", ratio(|f| f.rate), 3.0, true);
        check("CPU per inference", ratio(|f| f.cpu_s), 1.0 / 3.0, false);
    }
    said
}

/// From the start of opening until every stick has answered once.
fn ready(guest: &mut Guest) -> Verdict {
    let blob = model("tiny_u8_s1.blob")?;
    let mut table = String::from(
        "From the first call until every stick has booted, has the network and has answered once:\n\n",
    );
    table += &head(["sticks", "vendor's client", "ours", "ratio"]);
    let mut last = None;
    for sticks in [1, 2, 4, 8] {
        let mut found = Vec::new();
        for who in Who::BOTH {
            let mut steps = vec![];
            match who {
                Who::Vendor | Who::VendorBench => {
                    for n in 0..sticks {
                        // The first of those that are left: a stick that is open is still listed.
                        steps
                            .push(json!({ "do": "load", "graph": n.to_string(), "blob": blob, "device": n }));
                    }
                    for n in 0..sticks {
                        steps.push(json!({ "do": "infer", "graph": n.to_string(), "to": "/tmp/vendor" }));
                    }
                }
                Who::Ours => {
                    steps.push(json!({ "do": "load", "graph": "a", "blob": blob }));
                    for n in 0..sticks {
                        steps.push(json!({ "do": "infer", "graph": "a", "stick": n, "to": "/tmp/ours" }));
                    }
                }
            }
            steps.insert(0, json!({ "do": "config", "set": {}, "sticks": sticks }));
            let end = steps.len() - 1;
            steps.push(json!({ "do": "close" }));
            guest.serve(&Setup::hashing(sticks))?;
            let mut client = guest.client(who, &json!(steps), "ready")?;
            client.begins(1, STEP)?;
            let start = std::time::Instant::now();
            for n in 1..=end {
                let answer = client.step(n, STEP)?;
                ensure!(answer["error"].is_null(), "{}, step {n}: {}", who.name(), answer["error"]);
            }
            found.push(start.elapsed().as_secs_f64());
            client.step(end + 1, STEP)?;
            guest.done(client)?;
        }
        let ratio = found[1] / found[0];
        last = Some(ratio);
        table += &row([sticks.to_string(), time(found[0]), time(found[1]), format!("{ratio:.2}")]);
    }
    guest.table("ready", table);
    let ratio = last.unwrap_or(1.0);
    guest.note(format!("8 sticks: {ratio:.2} of the vendor's time, to reach 0.20"));
    ensure!(ratio < 1.0, "8 sticks are ready later than the vendor's");
    Ok(())
}

/// A second network is loaded while the first works with 4 in flight: the longest time that the first gave no answer.
fn second_load(guest: &mut Guest) -> Verdict {
    let (first, second) = (model("tiny_fp16_s2.blob")?, model("squeezenet1_1_u8_s1.blob")?);
    let mut table = String::from(
        "A second network of 2.5 MB is loaded on a stick that works, 4 in flight, zero timing:\n\n",
    );
    table += &head(["", "vendor's client", "ours, `vendor`", "ours, `pipelined`"]);
    let (mut gaps, mut loads, mut usual, mut beats) = (vec![], vec![], vec![], vec![]);
    for entry in Entry::WHOLE {
        let steps = json!([
            entry.config(),
            { "do": "load", "graph": "a", "blob": first, "device": 0, "requests": 4, "executors": 2, "depth": 4 },
            { "do": "bench", "graph": "a", "in_flight": 4, "seconds": 2.0 },
            { "do": "together", "steps": [
                { "do": "bench", "graph": "a", "in_flight": 4, "seconds": 5.0 },
                { "do": "load", "graph": "b", "blob": second, "device": 0, "after_s": 2.0 },
            ]},
            { "do": "close" },
        ]);
        let answers = guest.steps(entry.who(), &Setup::hashing(1), "second-load", &steps)?;
        let together = &answers[3]["answers"];
        for answer in [&together[0], &together[1]] {
            ensure!(
                answer["error"].is_null() && answer["failed"].is_null(),
                "{}: {answer}",
                entry.who().name()
            );
        }
        usual.push(number(&answers[2], "gap_s")?);
        gaps.push(number(&together[0], "gap_s")?);
        loads.push(number(&together[1], "seconds")?);
        beats.push(answers[3]["beat_gap_s"].as_f64());
    }
    let cells = |values: &[f64]| values.iter().map(|v| time(*v)).collect::<Vec<_>>();
    table += &row(["longest pause, nothing loaded".to_owned()].into_iter().chain(cells(&usual)));
    table += &row(["longest pause while it is loaded".to_owned()].into_iter().chain(cells(&gaps)));
    table += &row(["the load took".to_owned()].into_iter().chain(cells(&loads)));
    if let Some(beat) = beats[0] {
        table += &format!("\nOf the vendor's pause, Python itself stood still for at most {}.\n", time(beat));
    }
    guest.note(format!("longest pause {} (to reach 50 ms), the vendor's {}", time(gaps[2]), time(gaps[0])));
    guest.table("second-load", table);
    Ok(())
}

/// A stick is pulled out while two of them work.
fn unplug(guest: &mut Guest) -> Verdict {
    let blob = model("tiny_fp16_s2.blob")?;
    let setup = Setup { model_time: true, ..Setup::hashing(2) };
    let bench = |graph: &str| json!({ "do": "bench", "graph": graph, "in_flight": 4, "seconds": 6.0 });
    let vendor = json!([
        { "do": "load", "graph": "a", "blob": blob, "device": 0, "requests": 4 },
        { "do": "load", "graph": "b", "blob": blob, "device": 1, "requests": 4 },
        { "do": "together", "steps": [bench("a"), bench("b")] },
        { "do": "spin", "seconds": 2.0 },
        { "do": "close" },
    ]);
    let ours = json!([
        { "do": "config", "sticks": 2, "ordering": "pipelined" },
        { "do": "load", "graph": "a", "blob": blob },
        { "do": "together", "steps": [{ "do": "bench", "graph": "a", "in_flight": 8, "seconds": 6.0 }] },
        { "do": "spin", "seconds": 2.0 },
        { "do": "close" },
    ]);
    let mut table = String::from("Two sticks work; one is pulled out after 2 s of 6:\n\n");
    table += &head(["", "vendor's client, a network on each stick", "ours, a fleet of both"]);
    let mut columns = Vec::new();
    for (who, steps) in [(Who::Vendor, &vendor), (Who::Ours, &ours)] {
        guest.serve(&setup)?;
        let mut client = Client::start(who, steps, "unplug")?;
        for n in 0..2 {
            let answer = client.step(n, STEP)?;
            ensure!(answer["error"].is_null(), "{}: {}", who.name(), answer["error"]);
        }
        client.begins(2, STEP)?;
        std::thread::sleep(std::time::Duration::from_secs(2));
        guest.command("unplug", 0)?;
        let answers: Vec<Value> =
            (2..5).map(|n| client.step(n, STEP)).collect::<Result<_, _>>().or_else(|why| {
                guest.note(format!("{}: {why}", who.name()));
                Ok::<_, String>(vec![])
            })?;
        drop(client);
        columns.push(answers);
    }
    let told = |answers: &[Value], at: usize| -> String {
        let Some(answer) = answers.first().map(|a| &a["answers"][at]) else {
            return "no answer within 90 s".into();
        };
        match answer["failed"].as_str() {
            Some(why) => format!(
                "{} answers, then \"{why}\" {} after the last",
                answer["inferences"],
                time(answer["failed_after_s"].as_f64().unwrap_or_default())
            ),
            None => format!(
                "{} answers, longest time without one {}, no error",
                answer["inferences"],
                time(answer["gap_s"].as_f64().unwrap_or_default())
            ),
        }
    };
    table += &row([
        "on the stick that was pulled out".into(),
        told(&columns[0], 0),
        "its requests were answered by the other".into(),
    ]);
    table += &row(["on the other, or on both".to_owned(), told(&columns[0], 1), told(&columns[1], 0)]);
    let spin = |answers: &[Value]| {
        answers
            .get(1)
            .and_then(|a| a["cpu_share"].as_f64())
            .map_or("-".into(), |s| format!("{:.0} %", s * 100.0))
    };
    table += &row(["CPU afterwards, with nothing to do".to_owned(), spin(&columns[0]), spin(&columns[1])]);
    let close =
        |answers: &[Value]| answers.get(2).and_then(|a| a["seconds"].as_f64()).map_or("-".into(), time);
    table += &row(["close".to_owned(), close(&columns[0]), close(&columns[1])]);
    guest.table("unplug", table);
    let ours = columns[1].first().ok_or("ours gave no answer")?;
    let bench = &ours["answers"][0];
    ensure!(bench["failed"].is_null(), "ours told its caller: {}", bench["failed"]);
    let gap = number(bench, "gap_s")?;
    guest.note(format!("ours: longest time without an answer {} (to reach 0.2 s)", time(gap)));
    ensure!(gap < 1.0, "ours gave no answer for {}", time(gap));
    Ok(())
}
