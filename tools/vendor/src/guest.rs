//! The guest's side: the tests, and a hand on the host's sticks.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ncs2::transport::usb::discover::{self, FoundState};
use serde_json::{Value, json};

use crate::client::{Client, Who};
use crate::figures::{head, row};
use crate::host::Setup;
use crate::{bench, conformance, faults, knobs, wires};

/// Longest wait for anything on the bus.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest wait for one step of a client. Loading takes seconds under emulation, and an unplugged client 10 s to close.
pub(crate) const STEP: Duration = Duration::from_secs(90);

/// Tries of a test that fails by the vendor's client.
const TRIES: usize = 3;

/// How a reason begins that is none to fail.
pub(crate) const SKIPPED: &str = "skipped: ";

/// Nothing, or what was expected and what was found.
pub(crate) type Verdict = Result<(), String>;
/// A test.
pub(crate) type Test = fn(&mut Guest) -> Verdict;

/// A check that fails with its own text.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err(format!($($text)+));
        }
    };
}
pub(crate) use ensure;

/// The host's sticks, and what the tests found out.
pub(crate) struct Guest {
    reader: BufReader<File>,
    writer: File,
    /// Lines that are printed behind a test's verdict.
    pub(crate) notes: Vec<String>,
    /// Tables that are printed at the end and kept in the shared folder.
    tables: Vec<(String, String)>,
    /// A client of the vendor's that takes more steps.
    idle: Option<Client>,
}

/// Runs the tests whose name contains one of the words; true when all passed.
pub(crate) fn run(wanted: &[&str]) -> Result<bool, String> {
    let mut guest = Guest::open()?;
    let tests = [conformance::TESTS, wires::TESTS, bench::TESTS, knobs::TESTS, faults::TESTS].concat();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, test) in tests {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word)) {
            continue;
        }
        guest.notes.clear();
        let start = Instant::now();
        let mut verdict = test(&mut guest);
        // The vendor's client has limits of its own, which a starved machine misses. Ours has one try.
        for _ in 1..TRIES {
            let Err(why) = &verdict else { break };
            if !why.starts_with(Who::Vendor.name()) {
                break;
            }
            println!("AGAIN {name}: {why}");
            (guest.idle, guest.notes) = (None, Vec::new());
            verdict = test(&mut guest);
        }
        let seconds = start.elapsed().as_secs_f64();
        match &verdict {
            Ok(()) => println!("PASS  {name}  {seconds:.1} s"),
            Err(why) if why.starts_with(SKIPPED) => println!("SKIP  {name}\n      {why}"),
            Err(why) => println!("FAIL  {name}  {seconds:.1} s\n      {why}"),
        }
        for note in &guest.notes {
            println!("      {note}");
        }
        guest.record(name, &verdict);
        match &verdict {
            Ok(()) => passed += 1,
            Err(why) if why.starts_with(SKIPPED) => skipped += 1,
            Err(_) => failed += 1,
        }
    }
    for (name, table) in &guest.tables {
        println!("\n{table}");
        let path = Path::new("/out").join(format!("{name}.md"));
        std::fs::write(&path, table).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    println!("vendor-test: {passed} passed, {failed} failed, {skipped} skipped");
    Ok(failed == 0 && passed > 0)
}

impl Guest {
    fn open() -> Result<Self, String> {
        let path = std::env::var("NCS2_VM_CONTROL").map_err(|_| "NCS2_VM_CONTROL is not set")?;
        let deadline = Instant::now() + PATIENCE;
        let writer = loop {
            match OpenOptions::new().read(true).write(true).open(&path) {
                Ok(file) => break file,
                Err(e) if Instant::now() > deadline => return Err(format!("{path}: {e}")),
                Err(_) => pause(),
            }
        };
        let reader = BufReader::new(writer.try_clone().map_err(|e| e.to_string())?);
        Ok(Guest { reader, writer, notes: Vec::new(), tables: Vec::new(), idle: None })
    }

    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// A table for the end of the run, in Markdown.
    pub(crate) fn table(&mut self, name: &str, text: String) {
        self.tables.push((name.to_owned(), text));
    }

    /// More rows of a table that several tests fill; its head where it has none yet.
    pub(crate) fn rows(&mut self, name: &str, head: impl FnOnce() -> String, rows: &str) {
        match self.tables.iter_mut().find(|(known, _)| known == name) {
            Some((_, table)) => table.push_str(rows),
            None => self.table(name, head() + rows),
        }
    }

    /// A test of what the vendor's client can do, or says, goes into a table by its name.
    fn record(&mut self, name: &str, verdict: &Verdict) {
        if !name.starts_with("conformance::") && !name.starts_with("wire::") {
            return;
        }
        let word = match verdict {
            Ok(()) => "passed",
            Err(why) if why.starts_with(SKIPPED) => "skipped",
            Err(_) => "FAILED",
        };
        let said = self.notes.iter().flat_map(|note| note.lines().next()).collect::<Vec<_>>().join("; ");
        let line = row([format!("`{name}`"), word.to_owned(), said]);
        let begin = || {
            "What both clients did on the same virtual stick, by test.\n\n".to_owned()
                + &head(["test", "", ""])
        };
        self.rows("tests", begin, &line);
    }

    /// One line to the host, and its answer.
    pub(crate) fn ask(&mut self, line: &Value) -> Result<Value, String> {
        let failed = |e: std::io::Error| format!("host, {line}: {e}");
        self.writer.write_all(format!("{line}\n").as_bytes()).map_err(failed)?;
        let mut answer = String::new();
        self.reader.read_line(&mut answer).map_err(failed)?;
        let answer: Value = serde_json::from_str(&answer).map_err(|e| format!("host: {answer}: {e}"))?;
        match answer["error"].as_str() {
            Some(why) => Err(format!("host: {why}")),
            None => Ok(answer),
        }
    }

    /// Fresh sticks: what was there is gone, and these are in their ports, unbooted.
    pub(crate) fn serve(&mut self, setup: &Setup) -> Verdict {
        self.stop()?;
        self.ask(&json!({ "serve": setup }))?;
        wait("unbooted sticks", || {
            let found = discover::list().unwrap_or_default();
            found.len() == setup.sticks
                && found.iter().all(|f| f.state == FoundState::Unbooted && is_settled(f))
        })
    }

    /// No stick is left, and a trace is whole.
    pub(crate) fn stop(&mut self) -> Verdict {
        self.ask(&json!({ "stop": true }))?;
        wait("an empty bus", || discover::list().is_ok_and(|found| found.is_empty()))
    }

    /// What a hand does to a stick.
    pub(crate) fn command(&mut self, word: &str, stick: usize) -> Verdict {
        self.ask(&json!({ "command": word, "stick": stick })).map(drop)
    }

    /// All steps, one after the other, on fresh sticks; the answers. An error of a step ends it.
    pub(crate) fn steps(
        &mut self,
        who: Who,
        setup: &Setup,
        name: &str,
        steps: &Value,
    ) -> Result<Vec<Value>, String> {
        let answers = self.answers(who, setup, name, steps)?;
        for (answer, step) in answers.iter().zip(steps.as_array().into_iter().flatten()) {
            if let Some(why) = answer["error"].as_str() {
                return Err(format!("{}: {}: {why}", who.name(), step["do"].as_str().unwrap_or_default()));
            }
        }
        Ok(answers)
    }

    /// As [`Self::steps`], but a step's error is an answer like another.
    pub(crate) fn answers(
        &mut self,
        who: Who,
        setup: &Setup,
        name: &str,
        steps: &Value,
    ) -> Result<Vec<Value>, String> {
        self.serve(setup)?;
        // What is recorded begins with the first id of a process.
        let mut client = if setup.trace.is_some() {
            Client::start(who, steps, name)?
        } else {
            self.client(who, steps, name)?
        };
        let count = steps.as_array().map_or(0, Vec::len);
        let answers = (0..count).map(|n| client.step(n, STEP)).collect::<Result<Vec<_>, _>>()?;
        self.done(client)?;
        if setup.trace.is_some() {
            self.stop()?;
        }
        Ok(answers)
    }

    /// A client on these steps: one that is idle, or a new one.
    pub(crate) fn client(&mut self, who: Who, steps: &Value, name: &str) -> Result<Client, String> {
        match self.idle.take() {
            Some(mut client) if who == Who::Vendor => client.give(steps).map(|()| client),
            idle => {
                self.idle = idle;
                Client::start(who, steps, name)
            }
        }
    }

    /// Waits until a client has done its steps, and keeps it where it can be used again.
    pub(crate) fn done(&mut self, client: Client) -> Verdict {
        self.idle = client.done(STEP)?.or(self.idle.take());
        Ok(())
    }
}

/// The kernel is done with it: its node can be opened and its configuration is set.
fn is_settled(found: &discover::Found) -> bool {
    let ports: Vec<String> = found.ports.iter().map(u8::to_string).collect();
    Path::new(&format!("/dev/bus/usb/{:03}/{:03}", found.bus, found.address)).exists()
        && Path::new(&format!("/sys/bus/usb/devices/{}-{}:1.0", found.bus, ports.join("."))).exists()
}

/// Between two looks at what tells nothing by itself.
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

/// Waits for a condition.
pub(crate) fn wait(what: &str, is_so: impl Fn() -> bool) -> Verdict {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        ensure!(Instant::now() < deadline, "expected {what} within {PATIENCE:?}");
        pause();
    }
    Ok(())
}

/// A file of the models: `models/NAME` or `onnx/NAME`, or `NAME` in a flat folder.
pub(crate) fn model(name: &str) -> Result<PathBuf, String> {
    let root = PathBuf::from(std::env::var("NCS2_MODELS").map_err(|_| "NCS2_MODELS is not set")?);
    ["", "models", "onnx"]
        .iter()
        .map(|folder| root.join(folder).join(name))
        .find(|path| path.exists())
        .ok_or_else(|| format!("no {name} under {}", root.display()))
}
