//! `ncs2ctl batch FILE.jsonl`: one inference for each line of a file, a result line for each, in the same order.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::thread;

use clap::{Args, ValueHint};
use crossbeam_channel::{Receiver, TryRecvError, bounded, select};
use ncs2::blob::Blob;
use ncs2::runtime::{FleetConfig, LoadOptions, SubmitOptions, Ticket};
use ncs2::{ErrorKind, Fleet, Graph};
use ncs2_device::Engine;
use serde::{Deserialize, Serialize};

use crate::answers::{self, Inference, Plan};
use crate::failure::{Failure, Outcome, Result, one_line};
use crate::fallback::{Cpu, FallbackArgs};
use crate::flags::{AnswerArgs, Global, ImageArgs, Tolerance};
use crate::interrupt::Interrupt;
use crate::open::{Opened, Sticks};
use crate::output::Output;
use crate::tensor::input::{self, Element};

/// Longest line that is taken.
const MAX_LINE: u64 = 1 << 20;

/// `batch`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl batch work.jsonl --blob net.blob --json > results.jsonl
  ncs2ctl --sim 2 batch work.jsonl --top 1
  printf '{\"input\": \"cat.jpg\"}\\n' | ncs2ctl batch - --blob net.blob --output answers/

A line: {\"input\": \"cat.npy\"}, {\"input\": {\"data\": \"a.npy\", \"state\": \"b.npy\"}} or {\"random\": 7};
and if you like \"blob\": another network, \"id\": anything, which stands in the result. Lines that
fail have an error in their result, the others go on; exit 1 when any failed. Results: in the order
of the lines, as they come. Outputs: DIR/N.TENSOR.npy, N being the line, counted from 1.")]
pub struct BatchArgs {
    /// The lines; - for standard input
    #[arg(value_name = "FILE.jsonl", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The network of lines that name none
    #[arg(long, value_name = "BLOB", value_hint = ValueHint::FilePath)]
    pub blob: Option<PathBuf>,
    /// Image preparation.
    #[command(flatten)]
    pub image: ImageArgs,
    /// What becomes of the answers.
    #[command(flatten)]
    pub answers: AnswerArgs,
    /// What stands in for sticks.
    #[command(flatten)]
    pub fallback: FallbackArgs,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    #[serde(default)]
    id: Option<serde_json::Value>,
    #[serde(default)]
    blob: Option<PathBuf>,
    #[serde(default)]
    input: Option<Files>,
    #[serde(default)]
    random: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Files {
    One(String),
    Named(BTreeMap<String, String>),
}

/// A result line.
#[derive(Serialize)]
struct Line {
    simulated: bool,
    profile: Option<String>,
    line: usize,
    id: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(flatten)]
    inference: Option<Inference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Refusal>,
}

#[derive(Serialize)]
struct Refusal {
    kind: &'static str,
    message: String,
    hint: String,
}

/// A line under way.
struct Flying {
    line: usize,
    id: Option<serde_json::Value>,
    /// Its graph's blob, the name of its input and the answer to come; or why there is none.
    work: Result<(Blob, String, Ticket)>,
}

struct Batch<'a> {
    args: &'a BatchArgs,
    output: &'a Output,
    opened: &'a Opened,
    graphs: Graphs<'a>,
    failed: u64,
    done: u64,
    /// Of those, answered by the fallback.
    on_cpu: u64,
    /// Some line named one.
    pictures: bool,
}

/// The networks that lines named so far.
struct Graphs<'a> {
    fleet: &'a Fleet,
    cpu: &'a Cpu,
    loaded: BTreeMap<PathBuf, (Blob, Graph)>,
}

/// Runs every line; exit 1 when one failed, or Ctrl-C left some undone.
pub fn batch(global: &Global, output: &Output, args: &BatchArgs) -> Result<Outcome> {
    output.by_lines();
    let lines = open(&args.file)?;
    // A default that is no network is a mistake of the command, not of its lines.
    let blob = args.blob.as_deref().map(Blob::open).transpose()?;
    let cpu = args.fallback.open()?;
    if let (Some(path), Some(blob)) = (&args.blob, &blob) {
        cpu.add(path, blob)?;
    }
    if let Some(folder) = &args.answers.output {
        answers::make_folder(folder)?;
    }
    let interrupt = Interrupt::install()?;
    let sticks = Sticks::find(global, Engine::Execute)?;
    let spinner = output.spinner("opening");
    let config = FleetConfig {
        ordering: args.answers.ordering.to_library(),
        fallback: cpu.fleet(),
        ..FleetConfig::default()
    };
    let opened = sticks.open(config)?;
    spinner.finish_and_clear();
    let room = opened.fleet.sticks().count() * LoadOptions::default().depth as usize;
    let graphs = Graphs { fleet: &opened.fleet, cpu: &cpu, loaded: BTreeMap::new() };
    let mut batch =
        Batch { args, output, opened: &opened, graphs, failed: 0, done: 0, on_cpu: 0, pictures: false };
    if let (Some(path), Some(blob)) = (&args.blob, blob) {
        batch.graphs.load(path, blob)?;
    }
    let lines = read(args.file.clone(), lines, room);
    tracing::debug!("batch begins, {room} lines at a time");
    let ended = batch.run(&lines, room, &interrupt);
    let left = interrupt.is_pressed().then(|| left_undone(&args.file, &lines));
    let (done, failed, on_cpu) = (batch.done, batch.failed, batch.on_cpu);
    let idle = args.image.first().filter(|_| done > 0 && !batch.pictures);
    drop(batch);
    let simulated = opened.simulation.as_ref().map(|s| format!(", {}", s.describe())).unwrap_or_default();
    let closed = opened.close(output);
    ended?;
    closed?;
    if let Some(flag) = idle {
        output.warn(&format!("{flag} did nothing: no line named a picture"));
    }
    let on_cpu = if on_cpu > 0 { format!(", {on_cpu} by the fallback") } else { String::new() };
    output.remark(&format!("{done} lines, {failed} failed{on_cpu}{simulated}"));
    match left {
        Some(Some(0)) | None => {}
        Some(Some(left)) => {
            output.warn(&format!("interrupted: {left} lines not done"));
            return Ok(Outcome::Negative);
        }
        Some(None) => {
            output.warn("interrupted: what was not read yet is not done");
            return Ok(Outcome::Negative);
        }
    }
    Ok(if failed == 0 { Outcome::Ok } else { Outcome::Negative })
}

/// Lines that were not begun; `None` where they come from elsewhere than a file, which may go on for ever.
fn left_undone(path: &Path, lines: &Receiver<Result<Vec<u8>>>) -> Option<usize> {
    let is_file = fs::metadata(path).is_ok_and(|m| m.is_file());
    let is_line = |line: &Result<Vec<u8>>| line.as_ref().is_ok_and(|text| !text.trim_ascii().is_empty());
    is_file.then(|| lines.iter().filter(is_line).count())
}

fn open(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let file = File::open(path).map_err(|e| Failure::file(path, "read", &e))?;
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        return Err(Failure::file(path, "read", &io::ErrorKind::IsADirectory.into()));
    }
    Ok(Box::new(BufReader::new(file)))
}

/// Reading may block for as long as nobody writes, so its thread is never waited for.
fn read(path: PathBuf, mut lines: Box<dyn BufRead + Send>, room: usize) -> Receiver<Result<Vec<u8>>> {
    let (to, from) = bounded(room);
    thread::spawn(move || {
        loop {
            let mut text = Vec::new();
            let read = io::Read::take(&mut *lines, MAX_LINE).read_until(b'\n', &mut text);
            let line = match read {
                Ok(0) => return,
                Ok(n) if n as u64 == MAX_LINE && text.last() != Some(&b'\n') => Err(Failure::new(
                    ErrorKind::InvalidInput,
                    format!("{}: a line of more than {MAX_LINE} bytes", path.display()),
                    "is it a file of lines?",
                )),
                Ok(_) => Ok(text),
                Err(e) => Err(Failure::file(&path, "read", &e)),
            };
            let last = line.is_err();
            if to.send(line).is_err() || last {
                return;
            }
        }
    });
    from
}

impl Batch<'_> {
    fn run(&mut self, lines: &Receiver<Result<Vec<u8>>>, room: usize, interrupt: &Interrupt) -> Result {
        let mut flying: VecDeque<Flying> = VecDeque::new();
        let mut number = 0;
        let mut more = true;
        loop {
            more &= !interrupt.is_pressed();
            let next = match (more && flying.len() < room, flying.is_empty()) {
                (false, true) => return Ok(()),
                (false, false) => Err(TryRecvError::Empty),
                // What is under way is answered while the next line is not there yet.
                (true, false) => lines.try_recv(),
                (true, true) => select! {
                    recv(lines) -> line => line.map_err(|_| TryRecvError::Disconnected),
                    recv(interrupt.channel()) -> _ => Err(TryRecvError::Disconnected),
                },
            };
            match next {
                Ok(text) => {
                    number += 1;
                    let text = text?;
                    if !text.trim_ascii().is_empty() {
                        flying.push_back(self.begin(number, &text));
                    }
                }
                Err(TryRecvError::Disconnected) => more = false,
                Err(TryRecvError::Empty) => {
                    if let Some(first) = flying.pop_front() {
                        self.finish(first)?;
                    }
                }
            }
        }
    }

    fn begin(&mut self, line: usize, text: &[u8]) -> Flying {
        let request: Request = match serde_json::from_slice(text) {
            Ok(request) => request,
            Err(error) => {
                // The parser counts lines of what it was given, which is one.
                let found = error.to_string().replace(" at line 1 column ", ", at column ");
                let found = found.trim_end_matches(", at column 0");
                let message = format!("line {line}: expected a request, found: {found}");
                let work = Err(Failure::new(ErrorKind::InvalidInput, message, "see `ncs2ctl batch --help`"));
                // Whoever sent it knows it by its name, even where the rest is of no use.
                let document = serde_json::from_slice::<serde_json::Value>(text).ok();
                let id = document.and_then(|document| document.get("id").cloned());
                return Flying { line, id, work };
            }
        };
        let work = self.submit(line, &request);
        Flying { line, id: request.id, work }
    }

    fn submit(&mut self, line: usize, request: &Request) -> Result<(Blob, String, Ticket)> {
        let lacks = |what: &str, hint: &str| {
            Failure::new(ErrorKind::InvalidInput, format!("line {line}: expected {what}, found none"), hint)
        };
        let path = request.blob.as_ref().or(self.args.blob.as_ref());
        let path = path.ok_or_else(|| lacks("a network", "give --blob, or \"blob\" in the line"))?.clone();
        let (blob, graph) = self.graphs.get(&path)?;
        let files: Vec<OsString> = match &request.input {
            Some(Files::One(file)) => vec![file.into()],
            Some(Files::Named(files)) => {
                files.iter().map(|(name, file)| format!("{name}={file}").into()).collect()
            }
            None => Vec::new(),
        };
        let elements = match (&request.input, request.random) {
            (Some(_), None) => {
                let elements = input::from_files(blob.graph(), &files, &self.args.image)?;
                self.pictures |= input::has_picture(blob.graph(), &files)?;
                elements
            }
            (None, Some(seed)) => input::random(blob.graph(), seed, 1),
            (None, None) => return Err(lacks("an input", "give \"input\" or \"random\"")),
            (Some(_), Some(_)) => {
                return Err(Failure::new(
                    ErrorKind::InvalidInput,
                    format!("line {line}: expected one of input and random, found both"),
                    "leave one out",
                ));
            }
        };
        let [Element { source, bytes }] = &*elements else {
            return Err(Failure::new(
                ErrorKind::InvalidInput,
                format!("line {line}: expected the input of one inference, found {}", elements.len()),
                "give them a line each",
            ));
        };
        let mut lease = graph.input()?;
        lease.as_mut_slice().copy_from_slice(bytes);
        let ticket = graph.submit(lease, SubmitOptions::default())?;
        Ok((blob.clone(), source.clone(), ticket))
    }

    fn finish(&mut self, flying: Flying) -> Result {
        let Flying { line, id, work } = flying;
        let done = work.and_then(|(blob, source, ticket)| {
            let answer = ticket.wait()?;
            let plan = Plan {
                graph: blob.graph(),
                folder: self.args.answers.output.as_deref(),
                numbered: true,
                top: self.args.answers.top,
                labels: None,
                references: Vec::new(),
                tolerance: Tolerance::Absolute(0.0),
            };
            Ok((blob.name().to_owned(), plan.finish(line, &source, &answer)?))
        });
        let profile = self.opened.simulation.as_ref().map(|s| s.profile.clone());
        let simulated = profile.is_some();
        self.done += 1;
        self.on_cpu += u64::from(done.as_ref().is_ok_and(|(_, inference)| inference.fallback));
        let result = match done {
            Ok((model, inference)) => Line {
                simulated,
                profile,
                line,
                id,
                model: Some(model),
                inference: Some(inference),
                error: None,
            },
            Err(Failure::BrokenPipe) => return Err(Failure::BrokenPipe),
            Err(Failure::Report(report)) => {
                self.failed += 1;
                let (kind, message, hint) = (report.kind, report.message, report.hint);
                let error = Some(Refusal { kind, message, hint });
                Line { simulated, profile, line, id, model: None, inference: None, error }
            }
        };
        if self.output.is_json() {
            return self.output.line(&result);
        }
        self.output.prose(&text(&result))
    }
}

impl Graphs<'_> {
    fn get(&mut self, path: &Path) -> Result<&(Blob, Graph)> {
        if !self.loaded.contains_key(path) {
            self.load(path, Blob::open(path)?)?;
        }
        Ok(&self.loaded[path])
    }

    fn load(&mut self, path: &Path, blob: Blob) -> Result {
        self.cpu.add(path, &blob)?;
        let graph = self.fleet.load(&blob, LoadOptions::default())?;
        self.loaded.insert(path.to_owned(), (blob, graph));
        Ok(())
    }
}

/// One line: number, input, stick, time, the largest value of every output.
fn text(result: &Line) -> String {
    let line = result.line;
    if let Some(error) = &result.error {
        return format!("{line}  error: {}; {}\n", error.message, error.hint);
    }
    let Some(inference) = &result.inference else { return String::new() };
    let mut text = format!("{line}  {}  {:.2} ms", inference.device, inference.latency_ms);
    for tensor in &inference.outputs {
        text.push_str(&format!("  {}", one_line(&tensor.name)));
        match &tensor.top {
            Some(top) => {
                let values: Vec<String> = top.iter().map(|t| format!("{}:{:.5}", t.index, t.value)).collect();
                text.push_str(&format!(" {}", values.join(" ")));
            }
            None => text.push_str(&format!(" {:.4} to {:.4}", tensor.min, tensor.max)),
        }
    }
    let simulated = if result.simulated { "  simulated" } else { "" };
    let fallback = if inference.fallback { "  fallback" } else { "" };
    format!("{text}  {}{simulated}{fallback}\n", one_line(&inference.input))
}
