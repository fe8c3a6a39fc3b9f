//! `ncs2ctl run`

use std::fs;

use ncs2::blob::Blob;
use ncs2::runtime::{FleetConfig, LoadOptions};
use ncs2_device::Engine;
use serde::Serialize;

use super::layer_times::LayerTimes;
use super::stream;
use crate::answers::{self, Inference, Plan};
use crate::cli::{Global, RunArgs, TimingArg};
use crate::failure::{Failure, Outcome, Result};
use crate::in_turn::in_turn;
use crate::interrupt::Interrupt;
use crate::open::{Simulation, Sticks};
use crate::output::Output;
use crate::tensor::input;

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

/// Runs the network on every input; exit 1 when a check fails.
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
    let plan = Plan {
        graph,
        folder: args.output.as_deref(),
        numbered: inputs.len() > 1,
        top: args.top,
        tolerance: args.tolerance,
        labels: args.labels.as_deref().map(|path| answers::labels(path, graph)).transpose()?,
        references: answers::references(graph, &args.check, inputs.len())?,
    };
    let cpu = args.fallback.open()?;
    cpu.add(&args.blob, &blob)?;
    if let Some(folder) = &args.output {
        fs::create_dir_all(folder).map_err(|e| Failure::file(folder, "write to", &e))?;
    }

    let interrupt = Interrupt::install()?;
    let sticks = Sticks::find(global, Engine::Execute)?;
    let spinner = output.spinner(&format!("loading {}", blob.name()));
    let config =
        FleetConfig { ordering: args.ordering.to_library(), fallback: cpu.fleet(), ..FleetConfig::default() };
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
    opened.close()?;

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
    if output.is_json() {
        output.document(&body)?;
    } else {
        output.prose(&text(output, &body, simulation.as_ref()))?;
    }
    Ok(if pass { Outcome::Ok } else { Outcome::Negative })
}

fn text(output: &Output, body: &Body, simulation: Option<&Simulation>) -> String {
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
        text.push_str(&format!("interrupted after {} inferences\n", all.len()));
    }
    if let Some(simulation) = simulation {
        text.push_str(&answers::simulated(output, simulation));
    }
    text
}
