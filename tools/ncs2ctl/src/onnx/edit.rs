//! Changes to a model before it is compiled. Everything that is not named here stays byte for byte as it was.

use std::collections::HashSet;

use super::wire::{Damaged, Message};
use super::{Dim, FLOAT, Model, Tensor, field};

/// Gives inputs fixed shapes: `shape_of` says which, or `None` for an input that stays as it is.
pub fn fix_shapes(bytes: &[u8], shape_of: impl Fn(&str) -> Option<Vec<u64>>) -> Result<Vec<u8>, Damaged> {
    edit_graph(bytes, |graph| {
        graph.replace(field::graph::INPUT, |input| {
            let mut value = Message::parse(input)?;
            let Some(shape) = shape_of(&value.string(field::value::NAME)) else { return Ok(None) };
            value.replace(field::value::TYPE, |kind| {
                let mut kind = Message::parse(kind)?;
                kind.replace(field::kind::TENSOR, |tensor| {
                    let mut tensor = Message::parse(tensor)?;
                    let mut dims = Message::default();
                    for &size in &shape {
                        let mut dim = Message::default();
                        dim.push_integer(field::kind::DIM_VALUE, size.cast_signed());
                        dims.push(field::kind::DIM, &dim);
                    }
                    tensor.remove(field::kind::SHAPE);
                    tensor.push(field::kind::SHAPE, &dims);
                    Ok::<_, Damaged>(Some(tensor.encode()))
                })?;
                Ok::<_, Damaged>(Some(kind.encode()))
            })?;
            Ok(Some(value.encode()))
        })
    })
}

/// Puts `(x − mean) / scale` in front of the model's one picture input, which keeps its name and shape. One value, or
/// one for each channel; none means 0 and 1. `Err` says why this model cannot be changed so.
pub fn normalise(bytes: &[u8], mean: &[f32], scale: &[f32]) -> Result<Vec<u8>, String> {
    if mean.is_empty() && scale.is_empty() {
        return Ok(bytes.to_vec());
    }
    let model = Model::parse(bytes).map_err(|e| e.to_string())?;
    let [input] = &*model.inputs else {
        return Err(format!("expected one input, found {}", model.inputs.len()));
    };
    let channels = picture_channels(input)?;
    for (flag, values) in [("--mean", mean), ("--scale", scale)] {
        if !matches!(values.len(), 0 | 1) && values.len() != channels {
            return Err(format!("{flag}: expected 1 or {channels} values, found {}", values.len()));
        }
    }
    if scale.iter().any(|&s| s == 0.0 || !s.is_finite()) || mean.iter().any(|m| !m.is_finite()) {
        return Err("--mean, --scale: expected finite values, and no scale of 0".into());
    }
    if model.opset < 7 {
        return Err(format!(
            "expected operator set 7 or later, found {}: its Sub does not broadcast",
            model.opset
        ));
    }
    if let Some(node) = model.nodes.iter().find(|node| node.nested) {
        return Err(format!(
            "{} ({}): holds a graph of its own, which may use the input",
            node.label(),
            node.op
        ));
    }
    if model.outputs.iter().any(|o| o.name == input.name) {
        return Err(format!("{}: is an output too", input.name));
    }

    let mut names: HashSet<&str> = model.nodes.iter().flat_map(|n| &n.outputs).map(String::as_str).collect();
    names.extend(model.constants.keys().map(String::as_str));
    names.insert(&input.name);
    let fresh = |suffix: &str| {
        let mut name = format!("{}/{suffix}", input.name);
        while names.contains(name.as_str()) {
            name.push('_');
        }
        name
    };
    let steps: Vec<(&str, String, String, Vec<f32>)> = [
        ("Sub", "centred", "mean", mean.to_vec()),
        ("Mul", "scaled", "factor", scale.iter().map(|s| 1.0 / s).collect::<Vec<_>>()),
    ]
    .into_iter()
    .filter(|(.., values)| !values.is_empty())
    .map(|(op, result, operand, values)| (op, fresh(result), fresh(operand), values))
    .collect();
    let Some((_, last, ..)) = steps.last() else { return Ok(bytes.to_vec()) };

    let edited = edit_graph(bytes, |graph| {
        graph.replace(field::graph::NODE, |node| {
            let mut node = Message::parse(node)?;
            let mut changed = false;
            node.replace(field::node::INPUT, |name| {
                let ours = name == input.name.as_bytes();
                changed |= ours;
                Ok::<_, Damaged>(ours.then(|| last.clone().into_bytes()))
            })?;
            Ok::<_, Damaged>(changed.then(|| node.encode()))
        })?;
        // The last step goes in first, so that the first one ends up in front.
        for (index, (op, result, operand, values)) in steps.iter().enumerate().rev() {
            let from = if index == 0 { &input.name } else { &steps[index - 1].1 };
            let mut node = Message::default();
            node.push_bytes(field::node::INPUT, from.as_str());
            node.push_bytes(field::node::INPUT, operand.as_str());
            node.push_bytes(field::node::OUTPUT, result.as_str());
            node.push_bytes(field::node::NAME, result.as_str());
            node.push_bytes(field::node::OP, *op);
            graph.push_first(field::graph::NODE, &node);

            let mut tensor = Message::default();
            for size in [1, values.len(), 1, 1] {
                tensor.push_integer(field::tensor::DIMS, size as i64);
            }
            tensor.push_integer(field::tensor::TYPE, FLOAT);
            tensor.push_bytes(field::tensor::NAME, operand.as_str());
            let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            tensor.push_bytes(field::tensor::RAW, raw);
            graph.push(field::graph::INITIALIZER, &tensor);
        }
        Ok(())
    });
    edited.map_err(|e| e.to_string())
}

/// Puts `Relu` in the place of a node that has one output, so that the compiler goes on and names the next layer that
/// it refuses. `None` where there is no such node. The result is for asking, never for use.
pub fn stand_in(bytes: &[u8], output: &str) -> Option<Vec<u8>> {
    let mut found = false;
    let edited = edit_graph(bytes, |graph| {
        graph.replace(field::graph::NODE, |bytes| {
            let node = Message::parse(bytes)?;
            let mut outputs = node.bytes(field::node::OUTPUT);
            let same = outputs.next() == Some(output.as_bytes()) && outputs.next().is_none();
            let Some(input) = node.bytes(field::node::INPUT).next().filter(|_| same) else {
                return Ok::<_, Damaged>(None);
            };
            found = true;
            let mut relu = Message::default();
            relu.push_bytes(field::node::INPUT, input);
            relu.push_bytes(field::node::OUTPUT, output);
            relu.push_bytes(field::node::NAME, node.string(field::node::NAME));
            relu.push_bytes(field::node::OP, "Relu");
            Ok(Some(relu.encode()))
        })
    });
    edited.ok().filter(|_| found)
}

/// Makes outputs of these tensors too, so that their values can be looked at.
#[cfg(feature = "openvino")]
pub fn expose(bytes: &[u8], names: &[&str]) -> Result<Vec<u8>, Damaged> {
    edit_graph(bytes, |graph| {
        let mut have = HashSet::new();
        for output in graph.messages(field::graph::OUTPUT) {
            have.insert(output?.string(field::value::NAME));
        }
        for name in names.iter().filter(|name| !have.contains(**name)) {
            let mut value = Message::default();
            value.push_bytes(field::value::NAME, *name);
            graph.push(field::graph::OUTPUT, &value);
        }
        Ok(())
    })
}

/// Channels of an input of N×C×H×W floats.
fn picture_channels(input: &Tensor) -> Result<usize, String> {
    let channels = match input.dims.as_deref() {
        Some([_, Dim::Fixed(channels), _, _]) => usize::try_from(*channels).ok(),
        _ => None,
    };
    match channels {
        Some(channels) if input.element == FLOAT => Ok(channels),
        Some(_) => Err(format!("input {}: expected floats, found another type", input.name)),
        None => Err(format!("input {}: expected a picture (NxCxHxW), found {}", input.name, input.text())),
    }
}

/// The model with its graph changed.
pub(super) fn edit_graph(
    bytes: &[u8],
    mut change: impl FnMut(&mut Message<'_>) -> Result<(), Damaged>,
) -> Result<Vec<u8>, Damaged> {
    let mut model = Message::parse(bytes)?;
    model.replace(field::model::GRAPH, |graph| {
        let mut graph = Message::parse(graph)?;
        change(&mut graph)?;
        Ok::<_, Damaged>(Some(graph.encode()))
    })?;
    Ok(model.encode())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Vec<u8> {
        let path = format!("{}/../../tests/data/onnx/tiny.onnx", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(path).expect("committed")
    }

    #[test]
    fn shapes_are_set_and_the_rest_is_kept() {
        let bytes = tiny();
        let same = fix_shapes(&bytes, |_| None).expect("a model");
        assert_eq!(same, bytes);
        let edited =
            fix_shapes(&bytes, |name| (name == "data").then(|| vec![2, 3, 48, 48])).expect("a model");
        let model = Model::parse(&edited).expect("a model");
        assert_eq!(model.inputs[0].shape(), Some(vec![2, 3, 48, 48]));
        assert_eq!(model.nodes, Model::parse(&bytes).expect("a model").nodes);
    }

    #[test]
    fn normalisation_stands_in_front() {
        let bytes = tiny();
        let before = Model::parse(&bytes).expect("a model");
        let edited = normalise(&bytes, &[123.0, 117.0, 104.0], &[58.0]).expect("a picture");
        let after = Model::parse(&edited).expect("a model");
        assert_eq!(after.inputs, before.inputs);
        assert_eq!(after.outputs, before.outputs);
        let [sub, mul, first, ..] = &*after.nodes else { panic!("too few nodes") };
        assert_eq!((sub.op.as_str(), mul.op.as_str()), ("Sub", "Mul"));
        assert_eq!(sub.inputs[0], "data");
        assert_eq!(mul.inputs[0], sub.outputs[0]);
        assert_eq!(first.inputs[0], mul.outputs[0]);
        assert_eq!(after.constants[&sub.inputs[1]], [1, 3, 1, 1]);
        assert_eq!(after.constants[&mul.inputs[1]], [1, 1, 1, 1]);
        assert!(after.nodes[2..].iter().all(|n| !n.inputs.contains(&"data".to_owned())));
        assert_eq!(normalise(&bytes, &[], &[]), Ok(bytes));
    }

    #[test]
    fn what_cannot_be_normalised_is_refused() {
        let bytes = tiny();
        assert!(normalise(&bytes, &[1.0, 2.0], &[]).is_err_and(|e| e.contains("1 or 3 values")));
        assert!(normalise(&bytes, &[], &[0.0]).is_err_and(|e| e.contains("scale of 0")));
        let path = format!("{}/../../tests/data/onnx/mlp.onnx", env!("CARGO_MANIFEST_DIR"));
        let mlp = std::fs::read(path).expect("committed");
        assert!(normalise(&mlp, &[1.0], &[]).is_err_and(|e| e.contains("1x784")));
        assert_eq!(normalise(&mlp, &[], &[]), Ok(mlp), "nothing asked for, nothing refused");
    }

    #[cfg(feature = "openvino")]
    #[test]
    fn exposed_tensors_are_outputs_once() {
        let bytes = tiny();
        let model = Model::parse(&bytes).expect("a model");
        let names: Vec<&str> = model.nodes.iter().map(|n| n.outputs[0].as_str()).collect();
        let exposed = Model::parse(&expose(&bytes, &names).expect("a model")).expect("a model");
        assert_eq!(exposed.outputs.len(), names.len(), "the model's own output is one of them");
        assert_eq!(exposed.nodes, model.nodes);
    }

    #[test]
    fn stand_in_takes_the_place_of_one_node() {
        let bytes = tiny();
        let softmax = Model::parse(&bytes).expect("a model").nodes.pop().expect("nodes");
        let edited = Model::parse(&stand_in(&bytes, "prob").expect("one output")).expect("a model");
        let relu = edited.nodes.last().expect("nodes");
        assert_eq!((softmax.op.as_str(), relu.op.as_str()), ("Softmax", "Relu"));
        assert_eq!((&relu.inputs, &relu.outputs), (&softmax.inputs, &softmax.outputs));
        assert_eq!(stand_in(&bytes, "nothing"), None);
    }
}
