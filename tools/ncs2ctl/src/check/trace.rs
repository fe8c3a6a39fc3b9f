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
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trace {
    /// The last layer whose values some stage has: name, operator, stage.
    pub agrees: Option<(String, String, usize)>,
    /// The layer behind it: the first that differs.
    pub differs: Option<(String, String)>,
}

impl Trace {
    /// One line.
    pub fn text(&self) -> String {
        let after = match &self.agrees {
            Some((name, op, stage)) => format!("agrees up to layer {name} ({op}), which is stage {stage}"),
            None => "no layer's values were found in the blob".to_owned(),
        };
        match &self.differs {
            Some((name, op)) => format!("{after}; the first that differs is {name} ({op})"),
            None => after,
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

/// Compares layer by layer for one input element. `None` where the blob or the model cannot be looked into: a batch, a
/// stage that is not executed here.
pub fn trace(
    path: &Path,
    bytes: &[u8],
    model: &Model,
    blob: &Blob,
    element: &[u8],
    share: f64,
) -> Result<Option<Trace>> {
    let graph = blob.graph();
    let Ok(program) = Program::prepare(blob.bytes(), graph) else { return Ok(None) };
    // Constants and shapes are computed, too, and have no stage.
    let layers: Vec<&Node> = model
        .nodes
        .iter()
        .filter(|n| {
            !n.inputs.is_empty() && !n.nested && n.op != "Shape" && !n.outputs.iter().all(String::is_empty)
        })
        .collect();
    let names: Vec<&str> = layers.iter().filter_map(|n| n.outputs.first()).map(String::as_str).collect();
    let Ok(exposed) = edit::expose(bytes, &names) else { return Ok(None) };
    let mut feed = Feed::open(path, Source::Onnx(&exposed), graph)?;
    if feed.runs() != 1 || graph.batch > 1 {
        return Ok(None);
    }
    let tensors = feed.infer(graph, element)?;
    let mut stages: Vec<(usize, Sorted)> = Vec::new();
    let mut answer = vec![0; graph.output_bytes];
    program.run_stages(&mut program.arena(), element, &mut answer, |stage| {
        let outputs = (0..stage.outputs()).filter_map(|index| stage.output(index));
        let outputs = outputs.map(|values| Sorted::new(values.into_iter().map(f64::from).collect()));
        stages.extend(outputs.map(|sorted| (stage.stage, sorted)));
    });
    let found = layers.iter().map(|node| {
        let name = node.outputs.first()?;
        let (_, values) = tensors.iter().find(|(tensor, _)| tensor == name)?;
        let tensor = Sorted::new(values.clone());
        // A single value proves nothing.
        let near = |(_, stage): &&(usize, Sorted)| values.len() > 1 && tensor.is_near(stage, share);
        stages.iter().find(near).map(|(stage, _)| *stage)
    });
    Ok(Some(summarise(&layers, &found.collect::<Vec<_>>())))
}

fn summarise(layers: &[&Node], found: &[Option<usize>]) -> Trace {
    let last = found.iter().rposition(Option::is_some);
    let agrees = last.and_then(|n| Some((layers[n].label().to_owned(), layers[n].op.clone(), found[n]?)));
    let next = layers.get(last.map_or(0, |n| n + 1));
    Trace { agrees, differs: next.map(|n| (n.label().to_owned(), n.op.clone())) }
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
        let trace = summarise(&layers, &[None, Some(3), None]);
        assert_eq!(
            trace.text(),
            "agrees up to layer r (Relu), which is stage 3; the first that differs is a (Add)"
        );
        let trace = summarise(&layers, &[None, None, None]);
        assert_eq!(
            trace.text(),
            "no layer's values were found in the blob; the first that differs is c (Conv)"
        );
        assert_eq!(summarise(&layers, &[None, None, Some(7)]).differs, None);
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
