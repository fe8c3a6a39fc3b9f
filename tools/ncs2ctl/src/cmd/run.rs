//! `ncs2ctl run`

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use ncs2::ErrorKind;
use ncs2::blob::{Blob, Graph};
use ncs2::runtime::{FleetConfig, LoadOptions, Output as Answer, SubmitOptions, Ticket};
use ncs2::stats::StageTimes;
use ncs2_device::Engine;
use serde::Serialize;

use crate::cli::{Global, RunArgs};
use crate::failure::{Failure, Outcome, Result};
use crate::interrupt::Interrupt;
use crate::open::{Simulation, Sticks};
use crate::output::{Output, Style, time};
use crate::tensor::compare::{Difference, compare};
use crate::tensor::{Array, input, npy, output as answers, shape_text};

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
}

#[derive(Clone, Serialize)]
struct Inference {
    input: String,
    outputs: Vec<Tensor>,
    latency_ms: f64,
    stage_us: serde_json::Map<String, serde_json::Value>,
    device: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checks: Vec<Check>,
}

#[derive(Clone, Serialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    dtype: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top: Option<Vec<Top>>,
    min: f64,
    max: f64,
    mean: f64,
    not_finite: usize,
}

#[derive(Clone, Serialize)]
struct Top {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    value: f64,
}

#[derive(Clone, Serialize)]
struct Check {
    name: String,
    reference: String,
    max_error: f64,
    max_reference: f64,
    allowed: f64,
    pass: bool,
}

/// What is done with every answer.
struct Plan<'a> {
    graph: &'a Graph,
    args: &'a RunArgs,
    inferences: usize,
    labels: Option<Vec<String>>,
    /// Per inference.
    references: Vec<Vec<Reference>>,
}

/// What an output should be.
#[derive(Clone)]
struct Reference {
    output: usize,
    file: String,
    values: Vec<f64>,
}

/// Runs the network on every input; exit 1 when a check fails.
pub fn run(global: &Global, output: &Output, args: &RunArgs) -> Result<Outcome> {
    let blob = Blob::open(&args.blob)?;
    let graph = blob.graph();
    // Everything that the user may have got wrong is looked at before a stick is opened.
    let inputs = match args.random {
        Some(seed) => input::random(graph, seed, 1),
        None => input::from_files(graph, &args.input, &args.image)?,
    };
    let plan = Plan {
        graph,
        args,
        inferences: inputs.len(),
        labels: args.labels.as_deref().map(|path| labels(path, graph)).transpose()?,
        references: references(graph, &args.check, inputs.len())?,
    };
    if let Some(folder) = &args.output {
        fs::create_dir_all(folder).map_err(|e| Failure::file(folder, "write to", &e))?;
    }

    let interrupt = Interrupt::install()?;
    let sticks = Sticks::find(global, Engine::Execute)?;
    let spinner = output.spinner(&format!("loading {}", blob.name()));
    let config = FleetConfig { ordering: args.ordering.to_library(), ..FleetConfig::default() };
    let opened = sticks.open(config)?;
    let loaded = opened.fleet.load(&blob, LoadOptions::default())?;
    let in_flight = opened.fleet.stats().sticks.len() * LoadOptions::default().depth as usize;

    let mut done = Vec::with_capacity(inputs.len());
    let mut flying: VecDeque<(usize, Ticket)> = VecDeque::new();
    let mut waiting = inputs.iter().enumerate();
    loop {
        while flying.len() < in_flight && !interrupt.is_pressed() {
            let Some((n, element)) = waiting.next() else { break };
            let mut lease = loaded.input()?;
            lease.as_mut_slice().copy_from_slice(&element.bytes);
            flying.push_back((n, loaded.submit(lease, SubmitOptions::default())?));
        }
        let Some((n, ticket)) = flying.pop_front() else { break };
        spinner.set_message(format!("inference {} of {}", n + 1, inputs.len()));
        let answer = ticket.wait()?;
        done.push(plan.finish(n, &inputs[n].source, &answer)?);
    }
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
    };
    if output.is_json() {
        output.document(&body)?;
    } else {
        output.text(&text(output, &body, simulation.as_ref()))?;
    }
    Ok(if pass { Outcome::Ok } else { Outcome::Negative })
}

impl Plan<'_> {
    /// Writes, ranks and checks one answer.
    fn finish(&self, n: usize, source: &str, answer: &Answer) -> Result<Inference> {
        let arrays: Vec<Array> =
            (0..self.graph.outputs.len()).map(|index| answers::array(self.graph, answer, index)).collect();
        let mut outputs = Vec::with_capacity(arrays.len());
        for (tensor, array) in self.graph.outputs.iter().zip(&arrays) {
            let file = match &self.args.output {
                Some(folder) => {
                    let path = self.file(folder, n, &tensor.name);
                    npy::write(&path, array)?;
                    Some(path.display().to_string())
                }
                None => None,
            };
            outputs.push(self.describe(&tensor.name, array, file));
        }
        let references = self.references.get(n).map_or(&[][..], Vec::as_slice);
        let checks = references.iter().map(|reference| {
            let found = arrays[reference.output].values.to_f64();
            let Difference { max_error, max_reference, allowed, pass } =
                compare(&found, &reference.values, self.args.tolerance);
            let name = self.graph.outputs[reference.output].name.clone();
            Check { name, reference: reference.file.clone(), max_error, max_reference, allowed, pass }
        });
        let checks = checks.collect();
        Ok(Inference {
            input: source.to_owned(),
            outputs,
            latency_ms: answer.latency().as_secs_f64() * 1e3,
            stage_us: stage_us(&answer.times()),
            device: answer.stick().to_string(),
            checks,
        })
    }

    /// `DIR/TENSOR.npy`, or `DIR/N.TENSOR.npy`. A tensor's name may hold slashes; a file's may not.
    fn file(&self, folder: &Path, n: usize, name: &str) -> PathBuf {
        let name: String =
            name.chars().map(|c| if c == '/' || c == '\\' || c.is_control() { '_' } else { c }).collect();
        folder.join(if self.inferences > 1 { format!("{n}.{name}.npy") } else { format!("{name}.npy") })
    }

    fn describe(&self, name: &str, array: &Array, file: Option<String>) -> Tensor {
        let values = array.values.to_f64();
        let finite = || values.iter().copied().filter(|v| v.is_finite());
        let count = finite().count();
        Tensor {
            name: name.to_owned(),
            shape: array.shape.clone(),
            dtype: array.values.type_name(),
            file,
            top: self.args.top.map(|k| self.top(&values, k as usize)),
            min: finite().reduce(f64::min).unwrap_or(f64::NAN),
            max: finite().reduce(f64::max).unwrap_or(f64::NAN),
            mean: finite().sum::<f64>() / count as f64,
            not_finite: values.len() - count,
        }
    }

    fn top(&self, values: &[f64], k: usize) -> Vec<Top> {
        // Labels name the values of one batch element of the outputs that have as many.
        let labels = self.labels.as_ref().filter(|labels| values.len().is_multiple_of(labels.len()));
        let label = |index: usize| labels.and_then(|l| l.get(index % l.len()).cloned());
        let mut order: Vec<usize> = (0..values.len()).filter(|&i| !values[i].is_nan()).collect();
        // Equal values keep their order, so that the answer does not depend on the sort.
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        order.truncate(k);
        order.into_iter().map(|index| Top { index, label: label(index), value: values[index] }).collect()
    }
}

fn stage_us(times: &StageTimes) -> serde_json::Map<String, serde_json::Value> {
    StageTimes::NAMES
        .iter()
        .zip(times.as_array())
        .map(|(name, ns)| ((*name).to_owned(), (ns as f64 / 1e3).into()))
        .collect()
}

/// One label a line; as many as some output has values, else they would name the wrong things.
fn labels(path: &Path, graph: &Graph) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).map_err(|e| Failure::file(path, "read", &e))?;
    let labels: Vec<String> = text.lines().map(|line| crate::failure::one_line(line.trim())).collect();
    let counts: Vec<usize> = graph.outputs.iter().map(crate::tensor::layout::elements).collect();
    if labels.is_empty() || !counts.contains(&labels.len()) {
        let counts: Vec<String> = counts.iter().map(ToString::to_string).collect();
        return Err(Failure::new(
            ErrorKind::InvalidInput,
            format!(
                "{}: expected {} lines, one for each value of an output, found {}",
                path.display(),
                counts.join(" or "),
                labels.len()
            ),
            "give the labels that the network was trained with",
        ));
    }
    Ok(labels)
}

/// Reads the `--check` files: the k-th file of an output is for the k-th inference.
fn references(graph: &Graph, arguments: &[String], inferences: usize) -> Result<Vec<Vec<Reference>>> {
    let batch = graph.batch.max(1) as usize;
    let mut references = vec![Vec::new(); inferences];
    let mut seen = vec![0usize; graph.outputs.len()];
    for argument in arguments {
        let (index, file) = input::target(&graph.outputs, argument, "output")?;
        let tensor = &graph.outputs[index];
        let array = npy::read(Path::new(file))?;
        let expected = crate::tensor::layout::elements(tensor) * batch;
        if array.values.len() != expected {
            return Err(Failure::new(
                ErrorKind::InvalidInput,
                format!(
                    "{file}: expected {expected} values for output {} of shape {}, found shape {}",
                    tensor.name,
                    shape_text(&crate::tensor::layout::shape(tensor)),
                    shape_text(&array.shape)
                ),
                "see `ncs2ctl blob info`",
            ));
        }
        let Some(checks) = references.get_mut(seen[index]) else {
            return Err(Failure::usage(
                format!(
                    "{file}: expected at most {inferences} references for output {}, one for each inference",
                    tensor.name
                ),
                "give as many references as inputs",
            ));
        };
        seen[index] += 1;
        checks.push(Reference { output: index, file: file.to_owned(), values: array.values.to_f64() });
    }
    Ok(references)
}

fn text(output: &Output, body: &Body, simulation: Option<&Simulation>) -> String {
    let mut text = String::new();
    let all: Vec<&Inference> = if body.inferences.is_empty() {
        body.first.iter().collect()
    } else {
        body.inferences.iter().collect()
    };
    for inference in &all {
        let latency = time(output, std::time::Duration::from_secs_f64(inference.latency_ms / 1e3));
        text.push_str(&format!(
            "{} on {}, {latency}\n",
            output.paint(Style::Bold, &body.model),
            inference.device
        ));
        // Paths end their line and are never broken: they are there to be copied.
        text.push_str(&format!("  {:<10} {}\n", "input", crate::failure::one_line(&inference.input)));
        for tensor in &inference.outputs {
            describe(output, tensor, &mut text);
        }
        for check in &inference.checks {
            let verdict =
                if check.pass { "within".to_owned() } else { output.paint(Style::Bad, "NOT within") };
            text.push_str(&format!(
                "  {:<10} {verdict} {:.3e}: largest difference {:.3e}, largest reference {:.3e}\n",
                crate::failure::one_line(&check.name),
                check.allowed,
                check.max_error,
                check.max_reference
            ));
            text.push_str(&format!("{:13}of {}\n", "", check.reference));
        }
    }
    if body.interrupted {
        text.push_str(&format!("interrupted after {} inferences\n", all.len()));
    }
    if let Some(simulation) = simulation {
        text.push_str(&format!(
            "{}{}\n",
            output.paint(Style::Warn, "simulated"),
            &simulation.describe()[9..]
        ));
        if simulation.engine == Engine::Hash {
            text.push_str(
                "engine hash: these values are a function of graph and input, not the network's answer\n",
            );
        }
    }
    text
}

fn describe(output: &Output, tensor: &Tensor, text: &mut String) {
    text.push_str(&format!(
        "  {:<10} {} {}, {:.4} to {:.4}, mean {:.4}",
        crate::failure::one_line(&tensor.name),
        tensor.dtype,
        shape_text(&tensor.shape),
        tensor.min,
        tensor.max,
        tensor.mean
    ));
    if tensor.not_finite > 0 {
        text.push_str(&output.paint(Style::Bad, format!(", {} not finite", tensor.not_finite)));
    }
    text.push('\n');
    for top in tensor.top.iter().flatten() {
        let label = top.label.as_deref().unwrap_or_default();
        text.push_str(format!("    {:>6}  {:<9.5} {label}", top.index, top.value).trim_end());
        text.push('\n');
    }
    if let Some(file) = &tensor.file {
        text.push_str(&format!("    written to {file}\n"));
    }
}
