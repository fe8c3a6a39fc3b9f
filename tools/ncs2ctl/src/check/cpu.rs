//! The reference of a blob's answers: the model on the CPU, fed with what the blob is fed with.

use std::path::Path;

use ncs2::ErrorKind;
use ncs2::blob::{Graph, IoTensor};
use ncs2::reference::{CpuModel, Network, Port, Source};

use crate::failure::{Failure, Result};
use crate::tensor::{Values, layout, shape_text};

/// A model that takes what a blob takes.
pub struct Feed {
    model: CpuModel,
    /// For each input of the model: the blob's.
    inputs: Vec<usize>,
    /// Runs of the model for one call of the blob.
    runs: usize,
}

/// A model that answers for a blob.
pub struct Reference {
    feed: Feed,
    /// For each output of the blob: the model's.
    outputs: Vec<usize>,
}

/// The dimensions of a whole call: the batch in place of a leading one, else before it.
fn whole_shape(tensor: &IoTensor, batch: usize) -> Vec<usize> {
    let mut shape = tensor.shape();
    match shape.first_mut() {
        _ if batch == 1 => {}
        Some(first @ 1) => *first = batch,
        _ => shape.insert(0, batch),
    }
    shape
}

impl Feed {
    /// Reads the model, which OpenVINO does, and finds out which of its inputs is which of the blob's.
    pub fn open(path: &Path, source: Source<'_>, graph: &Graph) -> Result<Self> {
        let network = Network::read(source)?;
        let batch = graph.batch.max(1) as usize;
        let inputs = network
            .inputs()
            .iter()
            .map(|port| partner(path, "input", port, network.inputs().len(), &graph.inputs))
            .collect::<Result<Vec<usize>>>()?;
        let shapes: Vec<(String, Vec<usize>)> = network
            .inputs()
            .iter()
            .zip(&inputs)
            .filter(|(port, _)| port.shape.is_none())
            .map(|(port, &index)| (port.name.clone(), whole_shape(&graph.inputs[index], batch)))
            .collect();
        let shapes: Vec<(&str, &[usize])> = shapes.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
        let model = network.compile(&shapes)?;
        let mut runs = None;
        for (port, &index) in model.inputs().zip(&inputs) {
            let takes: usize = port.shape.iter().flatten().product();
            let gives = layout::elements(&graph.inputs[index]) * batch;
            let fits =
                takes > 0 && gives.is_multiple_of(takes) && runs.is_none_or(|runs| runs == gives / takes);
            if !fits {
                return Err(wrong(
                    path,
                    format!(
                        "input {}: the model takes {}, the blob {}",
                        port.name,
                        shape_text(port.shape.as_deref().unwrap_or_default()),
                        shape_text(&whole_shape(&graph.inputs[index], batch))
                    ),
                ));
            }
            runs = Some(gives / takes);
        }
        Ok(Feed { model, inputs, runs: runs.unwrap_or(1) })
    }

    /// Runs of the model for one call of the blob: a model of batch 1 runs for each element of the blob's batch.
    pub fn runs(&self) -> usize {
        self.runs
    }

    /// Every output of the model, by name, for one input element of the blob.
    pub fn infer(&mut self, graph: &Graph, element: &[u8]) -> Result<Vec<(String, Vec<f64>)>> {
        let batch = graph.batch.max(1) as usize;
        let fed: Vec<Vec<f64>> = graph
            .inputs
            .iter()
            .map(|t| {
                let packed = (0..batch).flat_map(|b| layout::gather(t, &element[t.offset + b * t.bytes()..]));
                Values::decode(t.dtype, &packed.collect::<Vec<u8>>()).to_f64()
            })
            .collect();
        let mut answers: Vec<(String, Vec<f64>)> =
            self.model.outputs().iter().map(|port| (port.name.clone(), Vec::new())).collect();
        for run in 0..self.runs {
            let part = |index: &usize| {
                let values = &fed[*index];
                let size = values.len() / self.runs;
                &values[run * size..(run + 1) * size]
            };
            let inputs: Vec<&[f64]> = self.inputs.iter().map(part).collect();
            for ((_, answer), mut given) in answers.iter_mut().zip(self.model.infer(&inputs)?) {
                answer.append(&mut given);
            }
        }
        Ok(answers)
    }
}

impl Reference {
    /// A model whose outputs are the blob's.
    pub fn read(path: &Path, source: Source<'_>, graph: &Graph) -> Result<Self> {
        let feed = Feed::open(path, source, graph)?;
        let ports = feed.model.outputs();
        let outputs = graph
            .outputs
            .iter()
            .map(|tensor| {
                let by_name = ports.iter().position(|port| port.name == tensor.name);
                let only = (ports.len() == 1 && graph.outputs.len() == 1).then_some(0);
                by_name.or(only).ok_or_else(|| {
                    let names: Vec<&str> = ports.iter().map(|p| p.name.as_str()).collect();
                    wrong(path, format!("expected an output {}, found {}", tensor.name, names.join(", ")))
                })
            })
            .collect::<Result<Vec<usize>>>()?;
        Ok(Reference { feed, outputs })
    }

    /// Computes the last inference once more, as often as the blob's batch asks for.
    pub fn repeat(&mut self) -> Result {
        Ok((0..self.feed.runs).try_for_each(|_| self.feed.model.repeat())?)
    }

    /// What the model answers to one input element of the blob: the values of each of the blob's outputs.
    pub fn infer(&mut self, graph: &Graph, element: &[u8]) -> Result<Vec<Vec<f64>>> {
        let batch = graph.batch.max(1) as usize;
        let given = self.feed.infer(graph, element)?;
        let pairs = graph.outputs.iter().zip(&self.outputs);
        pairs
            .map(|(tensor, &index)| {
                let answer = given[index].1.clone();
                let expected = layout::elements(tensor) * batch;
                if answer.len() == expected {
                    return Ok(answer);
                }
                Err(Failure::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "output {}: the blob gives {expected} values, the model {}",
                        tensor.name,
                        answer.len()
                    ),
                    "check that the blob was compiled from this model",
                ))
            })
            .collect()
    }
}

/// The blob's tensor for a port of the model.
fn partner(path: &Path, what: &str, port: &Port, ports: usize, tensors: &[IoTensor]) -> Result<usize> {
    let by_name = tensors.iter().position(|tensor| tensor.name == port.name);
    let only = (ports == 1 && tensors.len() == 1).then_some(0);
    by_name.or(only).ok_or_else(|| {
        let names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
        wrong(path, format!("its {what} {} is none of the blob's ({})", port.name, names.join(", ")))
    })
}

fn wrong(path: &Path, message: String) -> Failure {
    let message = format!("{}: {message}", path.display());
    Failure::new(ErrorKind::InvalidInput, message, "check that the blob was compiled from this model")
}
