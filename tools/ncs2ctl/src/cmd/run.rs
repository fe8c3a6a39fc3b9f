//! `ncs2ctl run`

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use ncs2::blob::Blob;
use ncs2::runtime::{FleetConfig, LoadOptions};
use ncs2_device::Engine;
use serde::Serialize;

use super::layer_times::LayerTimes;
use super::stream;
use crate::answers::{self, Inference, Plan};
use crate::failure::{Failure, Outcome, Result};
use crate::fallback::FallbackArgs;
use crate::flags::{AnswerArgs, Global, ImageArgs, TimingArg, Tolerance, seed};
use crate::in_turn::in_turn;
use crate::interrupt::Interrupt;
use crate::open::{Simulation, Sticks};
use crate::output::Output;
use crate::tensor::input;

/// `run`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl run net.blob --input cat.jpg --top 5 --labels labels.txt
  ncs2ctl run net.blob --input data=a.npy --input state=b.npy --output answers/
  ncs2ctl --sim 1 run net.blob --random 7 --json
  ncs2ctl run net.blob --input x.npy --check prob=expected.npy --tolerance 1%
  ncs2ctl run net.blob --input photos/ --crop 256 --top 1
  ncs2ctl run net.blob --input cat.jpg --timing
  cat a.npy b.npy | ncs2ctl run net.blob - > answers.npy

Files: .npy (converted to the network's own type where no value is lost), .png and .jpg (resized),
.bin (the network's own type, values in the order of the shape that `blob info` prints).
A file that holds several elements, several files, and a folder of files are several inferences.
Outputs: DIR/TENSOR.npy, or DIR/N.TENSOR.npy for the N-th of several inferences, counted from 0.
Streams: .npy arrays one behind the other, or raw tensors, each behind its length in bytes (32 bits,
little-endian). For each inference all inputs in the order of `blob info`; answers in the same form,
all outputs in that order; with --json a document a line. See docs/scripts.md.")]
pub struct RunArgs {
    /// The compiled graph
    #[arg(value_name = "BLOB", value_hint = ValueHint::FilePath)]
    pub blob: PathBuf,
    /// `-`: a stream of tensors on standard input, answers on standard output as they come
    #[arg(value_name = "-", value_parser = ["-"], hide_possible_values = true, conflicts_with_all = ["input", "random"])]
    pub stdin: Option<String>,
    /// Input file, folder of files, or - as above; NAME=FILE where the network has several inputs
    #[arg(long, short, value_name = "[NAME=]FILE", num_args = 1..,
        required_unless_present_any = ["random", "stdin"])]
    pub input: Vec<OsString>,
    /// Random input instead, the same for the same seed
    #[arg(long, value_name = "SEED", conflicts_with = "input", value_parser = seed)]
    pub random: Option<u64>,
    /// Image preparation.
    #[command(flatten)]
    pub image: ImageArgs,
    /// What becomes of the answers.
    #[command(flatten)]
    pub answers: AnswerArgs,
    /// Names of the values, one a line
    #[arg(long, value_name = "FILE", requires = "top", value_hint = ValueHint::FilePath)]
    pub labels: Option<PathBuf>,
    /// Compare an output with this .npy; exit 1 when it is not within the tolerance; may be repeated
    #[arg(long, value_name = "[NAME=]REF", num_args = 1..)]
    pub check: Vec<OsString>,
    /// Allowed difference: 1% of the largest reference value, or an absolute number
    #[arg(long, value_name = "X[%]", default_value = "1%", requires = "check")]
    pub tolerance: Tolerance,
    /// Add a table of all stages with the times that the stick measured, of its latest inference
    #[arg(long)]
    pub layers: bool,
    /// What stands in for sticks.
    #[command(flatten)]
    pub fallback: FallbackArgs,
}

impl RunArgs {
    /// Tensors come on standard input.
    pub fn is_stream(&self) -> bool {
        self.stdin.is_some() || self.input.iter().any(|input| input == "-")
    }
}

#[derive(Serialize)]
struct Body {
    simulated: bool,
    profile: Option<String>,
    engine: Option<&'static str>,
    timing: Option<&'static str>,
    paced: Option<bool>,
    model: String,
    interrupted: bool,
    /// The first inference: `input`, `outputs`, `latency_ms`, `device`…
    #[serde(flatten)]
    first: Option<Inference>,
    /// All of them, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inferences: Vec<Inference>,
    /// Of the latest inference.
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<LayerTimes>,
}

/// Runs the network on every input; exit 1 when a check fails, or Ctrl-C left an input without answer.
pub fn run(global: &Global, output: &Output, args: &RunArgs) -> Result<Outcome> {
    let blob = Blob::open(&args.blob)?;
    let graph = blob.graph();
    let with_layers = args.layers || global.timing == Some(TimingArg::Layers);
    if args.is_stream() {
        if with_layers {
            return Err(Failure::usage(
                "--layers: expected files, found a stream",
                "give --input FILE, or leave --layers out",
            ));
        }
        return stream::stream(global, output, args, &blob);
    }
    // Everything that the user may have got wrong is looked at before a stick is opened.
    let inputs = match args.random {
        Some(seed) => input::random(graph, seed, 1),
        None => input::from_files(graph, &args.input, &args.image)?,
    };
    input::refuse_idle_flags(graph, &args.input, &args.image)?;
    let plan = Plan {
        graph,
        folder: args.answers.output.as_deref(),
        numbered: inputs.len() > 1,
        top: args.answers.top,
        tolerance: args.tolerance,
        labels: args.labels.as_deref().map(|path| answers::labels(path, graph)).transpose()?,
        references: answers::references(graph, &args.check, inputs.len())?,
    };
    let cpu = args.fallback.open()?;
    cpu.add(&args.blob, &blob)?;
    if let Some(folder) = &args.answers.output {
        answers::make_folder(folder)?;
    }

    let interrupt = Interrupt::install()?;
    let sticks = Sticks::find(global, Engine::Execute)?;
    let spinner = output.spinner(&format!("loading {}", blob.name()));
    let config = FleetConfig {
        ordering: args.answers.ordering.to_library(),
        fallback: cpu.fleet(),
        ..FleetConfig::default()
    };
    let opened = sticks.open(config)?;
    let loaded = opened.fleet.load(&blob, LoadOptions::default())?;

    let mut done = Vec::with_capacity(inputs.len());
    let mut last = None;
    in_turn(&opened.fleet, &loaded, &inputs, &interrupt, &spinner, |n, ticket| {
        let answer = ticket.wait()?;
        done.push(plan.finish(n, &inputs[n].source, &answer)?);
        last = Some(answer.stick().clone());
        Ok(())
    })?;
    let layers = match last.filter(|_| with_layers) {
        Some(stick) => Some(LayerTimes::ask(&loaded, &stick)?),
        None => None,
    };
    spinner.finish_and_clear();
    drop(loaded);
    let simulation = opened.simulation.clone();
    let paced = opened.paced();

    // What an interrupted run did not get to has not passed.
    let complete = done.len() == inputs.len();
    let pass = done.iter().flat_map(|i| &i.checks).all(|c| c.pass);
    let body = Body {
        simulated: simulation.is_some(),
        profile: simulation.as_ref().map(|s| s.profile.clone()),
        engine: simulation.as_ref().map(Simulation::engine_str),
        timing: simulation.as_ref().map(Simulation::timing_str),
        paced,
        model: blob.name().to_owned(),
        interrupted: interrupt.is_pressed(),
        first: done.first().cloned(),
        inferences: if done.len() > 1 { done } else { Vec::new() },
        layers,
    };
    let written = if output.is_json() {
        output.document(&body)
    } else {
        output.prose(&text(output, &body, inputs.len(), simulation.as_ref()))
    };
    let closed = opened.close(output);
    written?;
    if let Err(failure) = closed {
        return Ok(output.failed_behind(&failure));
    }
    Ok(if pass && complete { Outcome::Ok } else { Outcome::Negative })
}

fn text(output: &Output, body: &Body, asked: usize, simulation: Option<&Simulation>) -> String {
    let mut text = String::new();
    let all: Vec<&Inference> = if body.inferences.is_empty() {
        body.first.iter().collect()
    } else {
        body.inferences.iter().collect()
    };
    for inference in &all {
        text.push_str(&answers::text(output, &body.model, inference));
    }
    text.extend(body.layers.iter().map(|layers| layers.text(output)));
    if body.interrupted {
        text.push_str(&format!("interrupted after {} of {asked} inferences\n", all.len()));
    }
    if let Some(simulation) = simulation {
        text.push_str(&answers::simulated(output, simulation));
    }
    text
}
