//! Mean and scale into the weights of the first convolution, so that a stick takes bytes and computes nothing more.

use super::edit::edit_graph;
use super::quantized::{Constant, Numbers};
use super::wire::{Damaged, Message};
use super::{Model, edit, field};

/// A model that takes raw values, and what stayed in front.
#[derive(Clone, PartialEq, Debug)]
pub struct Folded {
    /// The model.
    pub bytes: Vec<u8>,
    /// The subtraction stayed in front: the convolution pads with zeros, and a zero before it is not one after it.
    pub mean_in_front: bool,
}

/// As `normalise`, with the numbers in the weights. `Err` says why this model has no such convolution.
pub fn fold(bytes: &[u8], mean: &[f32], scale: &[f32]) -> Result<Folded, String> {
    let model = Model::parse(bytes).map_err(|e| e.to_string())?;
    let [input] = &*model.inputs else {
        return Err(format!("expected one input, found {}", model.inputs.len()));
    };
    let users: Vec<_> = model.nodes.iter().filter(|n| n.inputs.contains(&input.name)).collect();
    let [conv] = &*users else { return Err(format!("{}: goes into {} layers", input.name, users.len())) };
    if conv.op != "Conv" || conv.integers.get("group").is_some_and(|g| g.first() != Some(&1)) {
        return Err(format!("{} ({}): expected a plain convolution first", conv.label(), conv.op));
    }
    let weights = conv.inputs.get(1).cloned().unwrap_or_default();
    let bias = conv.inputs.get(2).filter(|b| !b.is_empty()).cloned();
    let uses = |name: &str| model.nodes.iter().flat_map(|n| &n.inputs).filter(|i| *i == name).count();
    if uses(&weights) != 1 || bias.as_ref().is_some_and(|b| uses(b) != 1) {
        return Err(format!("{}: shares its weights", conv.label()));
    }
    let dims = model.constants.get(&weights).cloned().unwrap_or_default();
    let [filters, channels, ..] = *dims else {
        return Err(format!("{}: expected constant weights", conv.label()));
    };
    for (flag, values) in [("--mean", mean), ("--scale", scale)] {
        if !matches!(values.len(), 0 | 1) && values.len() as u64 != channels {
            return Err(format!("{flag}: expected 1 or {channels} values, found {}", values.len()));
        }
    }
    if scale.iter().any(|&s| s == 0.0 || !s.is_finite()) {
        return Err("--scale: expected finite values, and no 0".into());
    }
    // `auto_pad` is text, which is not read here: with it nobody knows.
    let pads = conv.integers.get("pads").is_some_and(|p| p.iter().any(|&n| n != 0))
        || has_auto_pad(bytes, conv.outputs.first());
    let mean_in_front = pads && !mean.is_empty();
    let of = |values: &[f32], channel: usize, none: f32| match values {
        [] => none,
        [one] => *one,
        many => many[channel],
    };
    let per_filter = dims.iter().skip(1).product::<u64>().max(1) as usize;
    let per_channel = dims.iter().skip(2).product::<u64>().max(1) as usize;
    let mut shift = vec![0f64; filters as usize];
    let mut found = false;
    let mut edited = edit_graph(bytes, |graph| {
        change(graph, &weights, |constant| {
            let Numbers::Float(values) = &mut constant.values else { return };
            found = true;
            for (at, w) in values.iter_mut().enumerate() {
                let (filter, channel) = (at / per_filter, at % per_filter / per_channel);
                *w /= of(scale, channel, 1.0);
                if !mean_in_front {
                    shift[filter] += f64::from(*w) * f64::from(of(mean, channel, 0.0));
                }
            }
        })
    })
    .map_err(|e| e.to_string())?;
    if !found {
        return Err(format!("{}: expected weights of floats in the model itself", conv.label()));
    }
    if !mean_in_front && !mean.is_empty() {
        edited = shift_bias(
            &edited,
            conv.outputs.first().map_or("", String::as_str),
            bias.as_deref(),
            &weights,
            &shift,
        )?;
    }
    if mean_in_front {
        edited = edit::normalise(&edited, mean, &[])?;
    }
    Ok(Folded { bytes: edited, mean_in_front })
}

fn has_auto_pad(bytes: &[u8], output: Option<&String>) -> bool {
    let found = || -> Result<bool, Damaged> {
        for graph in Message::parse(bytes)?.messages(field::model::GRAPH) {
            for node in graph?.messages(field::graph::NODE) {
                let node = node?;
                if node.bytes(field::node::OUTPUT).next() != output.map(String::as_bytes) {
                    continue;
                }
                for attribute in node.messages(field::node::ATTRIBUTE) {
                    let attribute = attribute?;
                    // `AttributeProto.s` is field 4.
                    let text = attribute.string(4);
                    if attribute.string(field::attribute::NAME) == "auto_pad"
                        && !matches!(text.as_str(), "NOTSET" | "VALID")
                    {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    };
    found().unwrap_or(true)
}

/// Takes `shift` from the bias, which the convolution is given where it has none.
fn shift_bias(
    bytes: &[u8],
    output: &str,
    bias: Option<&str>,
    weights: &str,
    shift: &[f64],
) -> Result<Vec<u8>, String> {
    let Some(bias) = bias else {
        let name = format!("{weights}/shift");
        let values = shift.iter().map(|s| -s as f32).collect();
        let constant = Constant { dims: vec![shift.len() as u64], values: Numbers::Float(values) };
        let edited = edit_graph(bytes, |graph| {
            graph.replace(field::graph::NODE, |node| {
                let mut node = Message::parse(node)?;
                let ours = node.bytes(field::node::OUTPUT).next() == Some(output.as_bytes());
                if ours {
                    node.push_bytes(field::node::INPUT, name.as_str());
                }
                Ok::<_, Damaged>(ours.then(|| node.encode()))
            })?;
            graph.push(field::graph::INITIALIZER, &constant.tensor(&name));
            Ok(())
        });
        return edited.map_err(|e| e.to_string());
    };
    let mut found = false;
    let edited = edit_graph(bytes, |graph| {
        change(graph, bias, |constant| {
            if let Numbers::Float(values) = &mut constant.values {
                found = true;
                values.iter_mut().zip(shift).for_each(|(b, s)| *b = (f64::from(*b) - s) as f32);
            }
        })
    });
    let edited = edited.map_err(|e| e.to_string())?;
    if found { Ok(edited) } else { Err(format!("{bias}: expected a bias of floats in the model itself")) }
}

/// Changes the numbers of one initializer.
fn change(graph: &mut Message<'_>, name: &str, mut with: impl FnMut(&mut Constant)) -> Result<(), Damaged> {
    graph.replace(field::graph::INITIALIZER, |tensor| {
        let tensor = Message::parse(tensor)?;
        if tensor.string(field::tensor::NAME) != name {
            return Ok(None);
        }
        let Some(mut constant) = Constant::read(&tensor) else { return Ok(None) };
        with(&mut constant);
        Ok(Some(constant.tensor(name).encode()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Vec<u8> {
        let path = format!("{}/../../tests/data/onnx/tiny.onnx", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(path).expect("committed")
    }

    fn numbers(bytes: &[u8], name: &str) -> Vec<f32> {
        let model = Message::parse(bytes).expect("a model");
        let graph = model.messages(field::model::GRAPH).next().expect("one").expect("a graph");
        for tensor in graph.messages(field::graph::INITIALIZER) {
            let tensor = tensor.expect("a tensor");
            if tensor.string(field::tensor::NAME) == name
                && let Some(Constant { values: Numbers::Float(values), .. }) = Constant::read(&tensor)
            {
                return values;
            }
        }
        panic!("no {name}");
    }

    #[test]
    fn scale_goes_into_the_weights_channel_by_channel() {
        let bytes = tiny();
        let model = Model::parse(&bytes).expect("a model");
        let (conv, input) = (&model.nodes[0], &model.inputs[0].name);
        assert_eq!((conv.op.as_str(), &conv.inputs[0]), ("Conv", input), "the model begins so");
        let folded = fold(&bytes, &[], &[2.0, 4.0, 8.0]).expect("a convolution first");
        let (before, after) = (numbers(&bytes, &conv.inputs[1]), numbers(&folded.bytes, &conv.inputs[1]));
        let per_channel = model.constants[&conv.inputs[1]].iter().skip(2).product::<u64>() as usize;
        for (at, (b, a)) in before.iter().zip(&after).enumerate() {
            assert_eq!(*a, b / [2.0, 4.0, 8.0][at / per_channel % 3], "{at}");
        }
        assert_eq!(Model::parse(&folded.bytes).expect("a model").nodes, model.nodes, "no layer more");
    }

    #[test]
    fn mean_goes_into_the_bias_or_stays_in_front() {
        let bytes = tiny();
        let model = Model::parse(&bytes).expect("a model");
        let conv = &model.nodes[0];
        let folded = fold(&bytes, &[1.0, 2.0, 3.0], &[2.0]).expect("a convolution first");
        let pads = conv.integers.get("pads").is_some_and(|p| p.iter().any(|&n| n != 0));
        assert_eq!(folded.mean_in_front, pads);
        let ops: Vec<String> =
            Model::parse(&folded.bytes).expect("a model").nodes.iter().map(|n| n.op.clone()).collect();
        assert_eq!(ops[0] == "Sub", pads, "{ops:?}");

        // The bias by hand: what the mean adds to each filter, taken away.
        let weights = [1.0, 2.0, 3.0, 4.0];
        let mut graph = Message::default();
        let mut node = Message::default();
        for name in ["x", "w"] {
            node.push_bytes(field::node::INPUT, name);
        }
        node.push_bytes(field::node::OUTPUT, "y");
        node.push_bytes(field::node::OP, "Conv");
        graph.push(field::graph::NODE, &node);
        let constant = Constant { dims: vec![2, 2, 1, 1], values: Numbers::Float(weights.to_vec()) };
        graph.push(field::graph::INITIALIZER, &constant.tensor("w"));
        for (number, name) in [(field::graph::INPUT, "x"), (field::graph::OUTPUT, "y")] {
            let mut value = Message::default();
            value.push_bytes(field::value::NAME, name);
            graph.push(number, &value);
        }
        let mut opset = Message::default();
        opset.push_integer(2, 13);
        let mut model = Message::default();
        model.push(field::model::GRAPH, &graph);
        model.push(field::model::OPSET, &opset);
        let folded = fold(&model.encode(), &[10.0, 20.0], &[2.0]).expect("a convolution first");
        assert!(!folded.mean_in_front);
        assert_eq!(numbers(&folded.bytes, "w"), [0.5, 1.0, 1.5, 2.0]);
        assert_eq!(
            numbers(&folded.bytes, "w/shift"),
            [-(0.5 * 10.0 + 1.0 * 20.0), -(1.5 * 10.0 + 2.0 * 20.0)]
        );
    }

    #[test]
    fn what_cannot_be_folded_is_refused() {
        let path = format!("{}/../../tests/data/onnx/mlp.onnx", env!("CARGO_MANIFEST_DIR"));
        let mlp = std::fs::read(path).expect("committed");
        assert!(fold(&mlp, &[1.0], &[]).expect_err("no convolution").contains("convolution"));
        assert!(fold(&tiny(), &[1.0, 2.0], &[]).expect_err("three channels").contains("1 or 3"));
    }
}
