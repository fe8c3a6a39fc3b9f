//! What is done with an answer: written to files, ranked, checked, described. For `run`, `batch`
//! and `check`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ncs2::ErrorKind;
use ncs2::blob::Graph;
use ncs2::runtime::Output as Answer;
use ncs2::stats::StageTimes;
use ncs2_device::Engine;
use serde::Serialize;

use crate::failure::{Failure, Result, one_line};
use crate::flags::Tolerance;
use crate::folders;
use crate::open::Simulation;
use crate::output::{Output, Style, time};
use crate::tensor::compare::{Difference, compare};
use crate::tensor::{Array, input, npy, output as answers, shape_text};

/// One inference, as documents have it.
#[derive(Clone, Serialize)]
#[allow(missing_docs, reason = "the names are those of the document")]
pub struct Inference {
    pub input: String,
    pub outputs: Vec<Tensor>,
    pub latency_ms: f64,
    pub stage_us: serde_json::Map<String, serde_json::Value>,
    pub device: String,
    /// No stick took it: `device` is what stood in for one.
    pub fallback: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
}

/// One output.
#[derive(Clone, Serialize)]
#[allow(missing_docs, reason = "the names are those of the document")]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top: Option<Vec<Top>>,
    pub min: f64,
    pub max: f64,
    pub mean: f64,
    pub not_finite: usize,
}

/// A value of `--top`.
#[derive(Clone, Serialize)]
#[allow(missing_docs, reason = "the names are those of the document")]
pub struct Top {
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    pub value: f64,
}

/// A comparison of `--check`.
#[derive(Clone, Serialize)]
#[allow(missing_docs, reason = "the names are those of the document")]
pub struct Check {
    pub name: String,
    pub reference: String,
    pub max_error: f64,
    pub max_reference: f64,
    pub allowed: f64,
    pub pass: bool,
}

/// What is done with every answer.
#[derive(Clone)]
pub struct Plan<'a> {
    /// Of the network.
    pub graph: &'a Graph,
    /// Where outputs are written.
    pub folder: Option<&'a Path>,
    /// Files have the number of their inference in their names.
    pub numbered: bool,
    /// How many of the largest values are named.
    pub top: Option<u32>,
    /// Names of the values.
    pub labels: Option<Vec<String>>,
    /// What outputs should be, per inference.
    pub references: Vec<Vec<Reference>>,
    /// How far they may be off.
    pub tolerance: Tolerance,
}

/// What an output should be.
#[derive(Clone)]
pub struct Reference {
    /// Which.
    pub output: usize,
    /// Where it came from.
    pub file: String,
    /// All batch elements.
    pub values: Vec<f64>,
}

impl Plan<'_> {
    /// Writes, ranks and checks one answer.
    pub fn finish(&self, n: usize, source: &str, answer: &Answer) -> Result<Inference> {
        let arrays: Vec<Array> =
            (0..self.graph.outputs.len()).map(|index| answers::array(self.graph, answer, index)).collect();
        let mut outputs = Vec::with_capacity(arrays.len());
        for (tensor, array) in self.graph.outputs.iter().zip(&arrays) {
            let file = match &self.folder {
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
                compare(&found, &reference.values, self.tolerance);
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
            fallback: answer.is_fallback(),
            checks,
        })
    }

    /// `DIR/TENSOR.npy`, or `DIR/N.TENSOR.npy`. A tensor's name may hold slashes; a file's may not.
    fn file(&self, folder: &Path, n: usize, name: &str) -> PathBuf {
        let name: String =
            name.chars().map(|c| if c == '/' || c == '\\' || c.is_control() { '_' } else { c }).collect();
        folder.join(if self.numbered { format!("{n}.{name}.npy") } else { format!("{name}.npy") })
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
            top: self.top.map(|k| self.top(&values, k as usize)),
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

/// Makes the folder of `--output`.
pub fn make_folder(path: &Path) -> Result {
    // Who names a file expects one, and would get a folder of that name.
    if path.extension().is_some_and(|e| e == "npy") && !path.is_dir() {
        return Err(Failure::usage(
            format!("--output {}: expected a folder, found the name of a file", path.display()),
            "name the folder: outputs are written as DIR/TENSOR.npy",
        ));
    }
    folders::make(path)
}

/// One label a line; as many as some output has values, else they would name the wrong things.
pub fn labels(path: &Path, graph: &Graph) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).map_err(|e| Failure::file(path, "read", &e))?;
    let labels: Vec<String> = text.lines().map(|line| one_line(line.trim())).collect();
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

/// Reads the files of `run --check` and `check --reference`: the k-th file of an output is for the k-th inference.
pub fn references(graph: &Graph, arguments: &[OsString], inferences: usize) -> Result<Vec<Vec<Reference>>> {
    let batch = graph.batch.max(1) as usize;
    let mut references = vec![Vec::new(); inferences];
    let mut seen = vec![0usize; graph.outputs.len()];
    for argument in arguments {
        let (index, file) = input::target(&graph.outputs, argument, "output")?;
        let tensor = &graph.outputs[index];
        let array = npy::read(file)?;
        let file = file.display();
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
        checks.push(Reference { output: index, file: file.to_string(), values: array.values.to_f64() });
    }
    Ok(references)
}

/// An inference in text.
pub fn text(output: &Output, model: &str, inference: &Inference) -> String {
    let latency = time(output, Duration::from_secs_f64(inference.latency_ms / 1e3));
    let mut text = format!("{} on {}, {latency}\n", output.paint(Style::Bold, model), inference.device);
    if inference.fallback {
        let mark = output.paint(Style::Warn, "fallback");
        text.push_str(&format!("  {mark}   no stick took it: this computer's CPU gave the answer\n"));
    }
    // Paths end their line and are never broken: they are there to be copied.
    text.push_str(&format!("  {:<10} {}\n", "input", one_line(&inference.input)));
    for tensor in &inference.outputs {
        describe(output, tensor, &mut text);
    }
    for check in &inference.checks {
        let verdict = if check.pass { "within".to_owned() } else { output.paint(Style::Bad, "NOT within") };
        text.push_str(&format!(
            "  {:<10} {verdict} {:.3e}: largest difference {:.3e}, largest reference {:.3e}\n",
            one_line(&check.name),
            check.allowed,
            check.max_error,
            check.max_reference
        ));
        text.push_str(&format!("{:13}of {}\n", "", check.reference));
    }
    text
}

/// The last line of answers that no stick gave.
pub fn simulated(output: &Output, simulation: &Simulation) -> String {
    let mark = output.paint(Style::Warn, "simulated");
    let mut text = format!("{mark}{}\n", simulation.describe().trim_start_matches("simulated"));
    if simulation.engine == Engine::Hash {
        text.push_str(
            "engine hash: these values are a function of graph and input, not the network's answer\n",
        );
    }
    text
}

fn describe(output: &Output, tensor: &Tensor, text: &mut String) {
    text.push_str(&format!(
        "  {:<10} {} {}, {:.4} to {:.4}, mean {:.4}",
        one_line(&tensor.name),
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
