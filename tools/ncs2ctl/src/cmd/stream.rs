//! `ncs2ctl run BLOB -`: tensors on standard input, answers on standard output as they come, in the same order.

use std::io::{self, BufReader, BufWriter, IsTerminal, Write};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use ncs2::Graph;
use ncs2::blob::Blob;
use ncs2::runtime::{FleetConfig, LoadOptions, SubmitOptions, Ticket};
use ncs2_device::Engine;
use serde::Serialize;

use super::run::RunArgs;
use crate::answers::{self, Inference, Plan};
use crate::failure::{Failure, Outcome, Result};
use crate::flags::Global;
use crate::interrupt::Interrupt;
use crate::open::Sticks;
use crate::output::Output;
use crate::tensor::input::Element;
use crate::tensor::output as arrays;
use crate::tensor::stream::{Framing, Inputs, write};

/// A line of `--json`.
#[derive(Serialize)]
struct Line {
    simulated: bool,
    profile: Option<String>,
    engine: Option<&'static str>,
    timing: Option<&'static str>,
    model: String,
    /// Counted from 0.
    n: usize,
    #[serde(flatten)]
    inference: Inference,
}

/// An element and the form of the stream.
type Read = Result<(Element, Framing)>;
/// What was sent, in order, or why no more is.
type Sent = Result<(String, Framing, Ticket)>;

/// Answers a stream until it ends or the user has enough.
pub fn stream(global: &Global, output: &Output, args: &RunArgs, blob: &Blob) -> Result<Outcome> {
    output.by_lines();
    refuse(output, args)?;
    let graph = blob.graph();
    let plan = Plan {
        graph,
        folder: None,
        numbered: false,
        top: args.answers.top,
        labels: args.labels.as_deref().map(|path| answers::labels(path, graph)).transpose()?,
        references: Vec::new(),
        tolerance: args.tolerance,
    };
    let cpu = args.fallback.open()?;
    cpu.add(&args.blob, blob)?;
    let interrupt = Interrupt::install()?;
    let sticks = Sticks::find(global, Engine::Execute)?;
    let spinner = output.spinner(&format!("loading {}", blob.name()));
    let config = FleetConfig {
        ordering: args.answers.ordering.to_library(),
        fallback: cpu.fleet(),
        ..FleetConfig::default()
    };
    let opened = sticks.open(config)?;
    let loaded = opened.fleet.load(blob, LoadOptions::default())?;
    spinner.finish_and_clear();
    let in_flight = opened.fleet.sticks().count() * LoadOptions::default().depth as usize;

    // Reading blocks for as long as nobody writes, so these threads are never waited for.
    let elements = read(blob.clone(), in_flight);
    let sent = send(loaded, elements, interrupt.channel().clone(), in_flight);
    let mut stdout = BufWriter::new(io::stdout().lock());
    let (mut count, mut on_cpu) = (0, 0);
    let mut ended = Ok(());
    for next in &sent {
        let done = next.and_then(|(source, framing, ticket)| {
            let answer = ticket.wait()?;
            on_cpu += u64::from(answer.is_fallback());
            if output.is_json() {
                let simulation = opened.simulation.as_ref();
                let line = Line {
                    simulated: simulation.is_some(),
                    profile: simulation.map(|s| s.profile.clone()),
                    engine: simulation.map(|s| s.engine_str()),
                    timing: simulation.map(|s| s.timing_str()),
                    model: blob.name().to_owned(),
                    n: count,
                    inference: plan.finish(count, &source, &answer)?,
                };
                stdout.write_all(output.line_text(&line).as_bytes())?;
            } else {
                for (index, tensor) in graph.outputs.iter().enumerate() {
                    write(&mut stdout, &arrays::array(graph, &answer, index), tensor, framing)?;
                }
            }
            // Several answers that are there already share a system call; none waits for a next one.
            if sent.is_empty() { Ok(stdout.flush()?) } else { Ok(()) }
        });
        if let Err(failure) = done {
            ended = Err(failure);
            break;
        }
        count += 1;
    }
    let flushed = stdout.flush();
    drop(sent);
    let simulated = opened.simulation.as_ref().map(|s| format!(", {}", s.describe())).unwrap_or_default();
    let closed = opened.close(output);
    ended?;
    flushed?;
    closed?;
    let on_cpu = if on_cpu > 0 { format!(", {on_cpu} by the fallback") } else { String::new() };
    output.remark(&format!("{count} inferences of {}{on_cpu}{simulated}", blob.name()));
    Ok(Outcome::Ok)
}

fn refuse(output: &Output, args: &RunArgs) -> Result {
    let with = |flag: &str| {
        Failure::usage(
            format!("{flag}: expected input from files beside it, found a stream"),
            "leave it out, or name files with --input",
        )
    };
    if args.input.len() > 1 {
        return Err(with("--input"));
    }
    if let Some(flag) = args.image.first() {
        return Err(with(flag));
    }
    if !args.check.is_empty() {
        return Err(with("--check"));
    }
    if args.answers.output.is_some() {
        return Err(with("--output"));
    }
    if args.answers.top.is_some() && !output.is_json() {
        return Err(Failure::usage(
            "--top: expected --json beside it, found none: a stream answers with tensors",
            "add --json",
        ));
    }
    if !output.is_json() && io::stdout().is_terminal() {
        return Err(Failure::usage(
            "run -: expected a file or a pipe for the answers, found a terminal",
            "add > FILE, or --json",
        ));
    }
    Ok(())
}

fn read(blob: Blob, room: usize) -> Receiver<Read> {
    let (to, elements) = bounded(room);
    thread::spawn(move || {
        let mut inputs = Inputs::new(BufReader::with_capacity(1 << 20, io::stdin()));
        loop {
            let next = match inputs.next(blob.graph()) {
                Ok(None) => return,
                Ok(Some(element)) => Ok((element, inputs.framing().unwrap_or(Framing::Npy))),
                Err(failure) => Err(failure),
            };
            let last = next.is_err();
            if to.send(next).is_err() || last {
                return;
            }
        }
    });
    elements
}

fn send(graph: Graph, elements: Receiver<Read>, stop: Receiver<()>, room: usize) -> Receiver<Sent> {
    let (to, sent) = bounded(room);
    thread::spawn(move || {
        loop {
            let next = select! {
                recv(elements) -> next => next,
                // What was sent is answered, no more is taken.
                recv(stop) -> _ => return,
            };
            let Ok(next) = next else { return };
            if !submit(&graph, next, &to) {
                return;
            }
        }
    });
    sent
}

/// False when no more is to be sent.
fn submit(graph: &Graph, next: Read, to: &Sender<Sent>) -> bool {
    let sent = next.and_then(|(element, framing)| {
        let mut lease = graph.input()?;
        lease.as_mut_slice().copy_from_slice(&element.bytes);
        Ok((element.source, framing, graph.submit(lease, SubmitOptions::default())?))
    });
    let last = sent.is_err();
    to.send(sent).is_ok() && !last
}
