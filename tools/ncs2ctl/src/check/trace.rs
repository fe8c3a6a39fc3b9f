//! Where an answer goes wrong: the model's tensors, computed on the CPU, against what the blob's stages leave in memory,
//! executed here as a virtual stick does.
//!
//! Blobs carry no layer names, and the compiler fuses, splits and reorders layers. So a tensor counts as found when some
//! stage writes the same values, in whatever order: the last one that is found, and the next one, say where to look.

use std::path::Path;

use ncs2::blob::Blob;
use ncs2::reference::Source;
use ncs2_device::execute::Program;

use super::cpu::Feed;
use crate::failure::Result;
use crate::onnx::{Model, Node, edit};

/// How far model and blob go together.
#[derive(Clone, PartialEq, Debug)]
pub struct Trace {
    /// The last layer whose values some stage has: name, operator, stage.
    pub agrees: Option<(String, String, usize)>,
    /// The layer behind it: the first that may differ. Views (Reshape, Concat) have no stage of their own, so look from it on.
    pub differs: Option<(String, String)>,
    /// Of the largest value of a layer, how far its values may be apart.
    pub share: f64,
}

impl Trace {
    /// One line.
    pub fn text(&self) -> String {
        let percent = format!("{:.6}", 100.0 * self.share);
        let within = format!("within {} %", percent.trim_end_matches('0').trim_end_matches('.'));
        match (&self.agrees, &self.differs) {
            (Some((name, op, stage)), Some((next, next_op))) => format!(
                "agrees {within} up to layer {name} ({op}), which is stage {stage}; no layer from {next} ({next_op}) on was found"
            ),
            (Some((name, op, stage)), None) => {
                format!("agrees {within} in every layer, the last being {name} ({op}), stage {stage}")
            }
            (None, Some((next, op))) => {
                format!("agrees {within} in no layer; no layer from {next} ({op}) on was found")
            }
            (None, None) => "the model has no layer".to_owned(),
        }
    }
}

/// A list of values, sorted, with the largest size of them.
struct Sorted {
    values: Vec<f64>,
    largest: f64,
}

impl Sorted {
    fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let largest = values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        Sorted { values, largest }
    }

    /// As many values, none further apart than this share of the largest.
    fn is_near(&self, other: &Sorted, share: f64) -> bool {
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= share * self.largest;
        self.values.len() == other.values.len() && self.values.iter().zip(&other.values).all(near)
    }
}

/// Kind of stages that only move values.
const COPY: u32 = 19;

/// An output of a stage.
struct Made {
    stage: usize,
    copy: bool,
    values: Sorted,
}

/// Compares layer by layer for one input element. The inner error says why the blob or the model cannot be looked into.
pub fn trace(
    path: &Path,
    bytes: &[u8],
    model: &Model,
    blob: &Blob,
    element: &[u8],
    share: f64,
) -> Result<Result<Trace, &'static str>> {
    let graph = blob.graph();
    let Ok(program) = Program::prepare(blob.bytes(), graph) else {
        return Ok(Err("the blob has a stage that is not executed here"));
    };
    // Constants and shapes are computed, too, and have no stage.
    let layers: Vec<&Node> = model
        .nodes
        .iter()
        .filter(|n| {
            !n.inputs.is_empty() && !n.nested && n.op != "Shape" && !n.outputs.iter().all(String::is_empty)
        })
        .collect();
    let names: Vec<&str> = layers.iter().filter_map(|n| n.outputs.first()).map(String::as_str).collect();
    let Ok(exposed) = edit::expose(bytes, &names) else {
        return Ok(Err("the model's layers cannot be made its outputs"));
    };
    let mut feed = Feed::open(path, Source::Onnx(&exposed), graph)?;
    if feed.runs() != 1 || graph.batch > 1 {
        return Ok(Err("the blob has a batch; one of batch 1 can be looked into"));
    }
    let tensors = feed.infer(graph, element)?;
    let mut made: Vec<Made> = Vec::new();
    let mut answer = vec![0; graph.output_bytes];
    program.run_stages(&mut program.arena(), element, &mut answer, |stage| {
        let outputs = (0..stage.outputs()).filter_map(|index| stage.output(index));
        let outputs = outputs.map(|values| Sorted::new(values.into_iter().map(f64::from).collect()));
        made.extend(outputs.map(|values| Made { stage: stage.stage, copy: stage.kind.0 == COPY, values }));
    });
    let found = layers.iter().map(|node| {
        let name = node.outputs.first()?;
        let (_, values) = tensors.iter().find(|(tensor, _)| tensor == name)?;
        let tensor = Sorted::new(values.clone());
        // A single value proves nothing.
        (values.len() > 1).then(|| find(&tensor, &made, share)).flatten()
    });
    Ok(Ok(summarise(&layers, &found.collect::<Vec<_>>(), share)))
}

/// The stage that has made a tensor: alone, or the last of several in a row that made a part each, as the compiler splits
/// layers.
fn find(tensor: &Sorted, made: &[Made], share: f64) -> Option<usize> {
    if let Some(one) = made.iter().find(|made| tensor.is_near(&made.values, share)) {
        return Some(one.stage);
    }
    let parts: Vec<&Made> = made.iter().filter(|made| !made.copy).collect();
    (0..parts.len()).find_map(|first| {
        let mut length = 0;
        let count = parts[first..].iter().position(|part| {
            length += part.values.values.len();
            length >= tensor.values.len()
        })? + 1;
        if length != tensor.values.len() || count < 2 {
            return None;
        }
        let parts = &parts[first..first + count];
        let whole = Sorted::new(parts.iter().flat_map(|part| part.values.values.iter().copied()).collect());
        tensor.is_near(&whole, share).then(|| parts[count - 1].stage)
    })
}

fn summarise(layers: &[&Node], found: &[Option<usize>], share: f64) -> Trace {
    let last = found.iter().rposition(Option::is_some);
    let agrees = last.and_then(|n| Some((layers[n].label().to_owned(), layers[n].op.clone(), found[n]?)));
    let next = layers.get(last.map_or(0, |n| n + 1));
    Trace { agrees, differs: next.map(|n| (n.label().to_owned(), n.op.clone())), share }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, op: &str) -> Node {
        Node {
            name: name.into(),
            op: op.into(),
            inputs: vec!["x".into()],
            outputs: vec![name.into()],
            integers: Default::default(),
            nested: false,
        }
    }

    #[test]
    fn fused_layers_do_not_count_as_different() {
        let (conv, relu, add) = (node("c", "Conv"), node("r", "Relu"), node("a", "Add"));
        let layers = [&conv, &relu, &add];
        let trace = summarise(&layers, &[None, Some(3), None], 0.01);
        assert_eq!(
            trace.text(),
            "agrees within 1 % up to layer r (Relu), which is stage 3; no layer from a (Add) on was found"
        );
        let trace = summarise(&layers, &[None, None, None], 0.005);
        assert_eq!(trace.text(), "agrees within 0.5 % in no layer; no layer from c (Conv) on was found");
        let trace = summarise(&layers, &[None, None, Some(7)], 0.01);
        assert_eq!(trace.text(), "agrees within 1 % in every layer, the last being a (Add), stage 7");
    }

    #[test]
    fn layers_that_were_split_are_found_by_their_parts() {
        let made = |stage: usize, copy: bool, values: &[f64]| Made {
            stage,
            copy,
            values: Sorted::new(values.to_vec()),
        };
        let stages = [
            made(1, false, &[9.0, 9.0, 9.0]),
            made(2, false, &[4.0, 2.0]),
            made(3, true, &[0.0, 0.0]),
            made(3, false, &[1.0, 3.0]),
        ];
        let of = |values: &[f64]| find(&Sorted::new(values.to_vec()), &stages, 0.01);
        assert_eq!(of(&[1.0, 2.0, 3.0, 4.0]), Some(3));
        assert_eq!(of(&[2.0, 4.0]), Some(2));
        assert_eq!(of(&[2.0, 4.0, 0.0, 0.0]), None, "a copy is nobody's part");
        assert_eq!(of(&[1.0, 2.0, 3.0, 5.0]), None);
    }

    #[test]
    fn values_are_near_in_any_order() {
        let a = Sorted::new(vec![3.0, -4.0, 1.0]);
        assert!(a.is_near(&Sorted::new(vec![1.0, 3.0, -4.01]), 0.01));
        assert!(!a.is_near(&Sorted::new(vec![1.0, 3.0, -4.1]), 0.01));
        assert!(!a.is_near(&Sorted::new(vec![1.0, 3.0]), 1.0));
        assert!(!a.is_near(&Sorted::new(vec![1.0, 3.0, f64::NAN]), 1.0));
    }
}
