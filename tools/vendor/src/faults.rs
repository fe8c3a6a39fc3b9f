//! Both clients on sticks that break: what the application sees, how long it takes, and what else it costs.

use std::time::{Duration, Instant};

use ncs2::runtime::FleetConfig;
use serde_json::{Value, json};

use crate::client::Who;
use crate::conformance::outputs;
use crate::figures::{head, row, time};
use crate::guest::{Guest, Test, Verdict, ensure, model};
use crate::host::Setup;

pub(crate) const TESTS: &[(&str, Test)] = &[("faults::both_on_sticks_that_break", compare)];

/// As long as a client may be silent before it is called stuck, beyond what a working stick takes.
const PATIENCE: Duration = Duration::from_secs(40);
/// Requests of a run, and how many at a time.
const REQUESTS: usize = 24;

/// A fleet gives a request to another stick, or waits for its own to come back. Without a second try it says at once what
/// happened, as the vendor's client does.
const ONE_TRY: &str = "unplugged at a request, ours told not to try again";

/// How a stick is broken.
enum Break {
    /// By a plan.
    Planned(&'static str),
    /// By hand, once it works.
    Command(&'static str),
}

/// Faults of single transfers (hold, complete, delay, fail, corrupt, short) are made in the host's own process: they cannot be
/// had for a client that is not ours.
const FAULTS: [(&str, Break); 17] = [
    ("none", Break::Planned("")),
    ("unplugged at a request", Break::Planned("kind = \"unplug\"\nnth = 5")),
    (ONE_TRY, Break::Planned("kind = \"unplug\"\nnth = 5")),
    ("unplugged, back after 1 s", Break::Planned("kind = \"unplug\"\nnth = 5\nms = 1000.0")),
    ("hangs", Break::Planned("kind = \"hang\"\nnth = 5")),
    ("says nothing any more", Break::Command("mute")),
    ("keeps its results", Break::Command("hold")),
    ("crashes", Break::Command("crash")),
    ("babbles", Break::Planned("kind = \"babble\"\nnth = 5")),
    ("a request is not answered", Break::Planned("kind = \"no-status\"\nnth = 5")),
    ("a result is missing", Break::Planned("kind = \"no-output\"\nnth = 24")),
    ("a result is half as long", Break::Planned("kind = \"short-output\"\nnth = 5")),
    ("an input is released 1 s late", Break::Planned("kind = \"late-release\"\nnth = 5\nms = 1000.0")),
    ("allocation refused", Break::Planned("kind = \"refuse-allocation\"\nnth = 1")),
    ("capabilities are nonsense", Break::Planned("kind = \"capabilities\"\nnth = 1")),
    ("firmware refused", Break::Planned("kind = \"boot-nack\"\nnth = 1")),
    ("does not return from its boot", Break::Planned("kind = \"vanish\"\nnth = 1")),
];

/// What a client made of it.
struct Story {
    /// The answers are all there and right, whatever happened on the way.
    right: bool,
    /// In words.
    text: String,
    stuck: bool,
}

fn compare(guest: &mut Guest) -> Verdict {
    let mut table = format!(
        "One stick, {REQUESTS} requests, 4 in flight; the fault strikes at the fifth where nothing else is said. \"stuck\": no \
         answer within {} s. Ours with a limit of 4 s for a job (30 s unless it is told); the vendor's client knows no limit.\n\n",
        PATIENCE.as_secs()
    );
    table += &head(["fault", "vendor's client", "ours"]);
    let mut right = None;
    let mut worse = Vec::new();
    for (name, fault) in FAULTS {
        let retries = if name == ONE_TRY { 0 } else { FleetConfig::default().retries };
        let vendor = tell(guest, Who::Vendor, &fault, retries, &mut right)?;
        let ours = tell(guest, Who::Ours, &fault, retries, &mut right)?;
        if ours.stuck {
            worse.push(format!("{name}: ours is stuck"));
        }
        if vendor.right && !ours.right {
            worse.push(format!("{name}: the vendor's client gets right answers, ours: {}", ours.text));
        }
        let line = row([name, &vendor.text, &ours.text]);
        print!("      {line}");
        table += &line;
    }
    guest.table("faults", table);
    ensure!(worse.is_empty(), "{}", worse.join("\n      "));
    Ok(())
}

fn tell(
    guest: &mut Guest,
    who: Who,
    fault: &Break,
    retries: u32,
    right: &mut Option<Vec<(String, Vec<u8>)>>,
) -> Result<Story, String> {
    let faults = match fault {
        Break::Planned("") | Break::Command(_) => String::new(),
        Break::Planned(text) => format!("[[fault]]\n{text}\n"),
    };
    let setup = Setup { faults, ..Setup::executing(1) };
    let steps = json!([
        { "do": "config", "set": {}, "open_timeout_s": 15.0, "job_timeout_s": 4.0, "retries": retries },
        { "do": "load", "graph": "a", "blob": model("tiny_fp16_s2.blob")?, "device": 0, "requests": 4, "executors": 2, "depth": 4 },
        { "do": "infer", "graph": "a", "count": 4, "in_flight": 1, "to": "/tmp/warm" },
        { "do": "wait", "seconds": 0.3 },
        { "do": "infer", "graph": "a", "count": REQUESTS, "in_flight": 4, "to": format!("/tmp/{}", who.name()) },
        { "do": "spin", "seconds": 1.5 },
        { "do": "close" },
    ]);
    guest.serve(&setup)?;
    let mut client = guest.client(who, &steps, "faults")?;
    let mut words = Vec::new();
    let (mut stuck, mut is_right) = (false, false);
    for n in 0..7 {
        let word = steps[n]["do"].as_str().unwrap_or_default();
        if let (3, Break::Command(command)) = (n, fault) {
            client.begins(3, PATIENCE)?;
            guest.command(command, 0)?;
        }
        let start = Instant::now();
        let answer = match client.step(n, PATIENCE) {
            Ok(answer) => answer,
            Err(why) => {
                let waited = start.elapsed() >= PATIENCE;
                let before = client.cpu_seconds();
                std::thread::sleep(Duration::from_secs(1));
                let busy = client.cpu_seconds().zip(before).map_or(0.0, |(after, before)| after - before);
                words.push(if waited {
                    format!("{word}: stuck{}", spinning(busy))
                } else {
                    format!("{word}: {why}")
                });
                stuck = waited;
                break;
            }
        };
        is_right |= n == 4 && answered(&answer, right, &mut words)?;
        match (word, answer["error"].as_str()) {
            ("spin", _) => {
                let said = spinning(answer["cpu_share"].as_f64().unwrap_or_default());
                if !said.is_empty() {
                    words.push(format!("afterwards{said}"));
                }
            }
            ("close", None) => {
                let seconds = answer["seconds"].as_f64().unwrap_or_default();
                if seconds > 2.5 {
                    words.push(format!("close takes {}", time(seconds)));
                }
            }
            (_, Some(why)) => {
                let after = answer["error_after_s"].as_f64().unwrap_or_default();
                words.push(format!("{word}: \"{why}\" after {}", time(after)));
                if word == "load" {
                    break;
                }
            }
            _ => {}
        }
    }
    // Whatever a fault left in a process is not the next one's.
    if is_right && words.len() == 1 {
        guest.done(client)?;
    }
    Ok(Story { right: is_right, text: words.join("; "), stuck })
}

/// True when all answers came and are those of a stick without faults, which is the first that is asked.
fn answered(
    answer: &Value,
    right: &mut Option<Vec<(String, Vec<u8>)>>,
    words: &mut Vec<String>,
) -> Result<bool, String> {
    if !answer["error"].is_null() {
        return Ok(false);
    }
    let found = outputs(std::slice::from_ref(answer))?;
    let is_right = *right.get_or_insert_with(|| found.clone()) == found;
    let verdict = if is_right { "right answers" } else { "WRONG ANSWERS, no error" };
    words.push(format!("{verdict} after {}", time(answer["seconds"].as_f64().unwrap_or_default())));
    Ok(is_right)
}

fn spinning(share: f64) -> String {
    if share > 0.5 { format!(" at {:.0} % CPU", share * 100.0) } else { String::new() }
}
