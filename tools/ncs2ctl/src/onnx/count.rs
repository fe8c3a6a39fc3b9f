//! Multiply-accumulates of a model, exact: out elements × what each one sums, zero padding counted.

use super::{Model, Node};

/// The count, or the node that stands in the way and why.
pub fn macs(model: &Model) -> Result<u64, String> {
    model.nodes.iter().try_fold(0u64, |sum, node| {
        let count = node_macs(model, node)
            .ok_or_else(|| format!("{} ({}): the model does not note its shapes", node.label(), node.op))?;
        match count {
            Count::Known(n) => Ok(sum.saturating_add(n)),
            Count::Unknown => Err(format!("{} ({}): not counted", node.label(), node.op)),
        }
    })
}

enum Count {
    Known(u64),
    /// It multiplies, and how much is not known here.
    Unknown,
}

/// `None` where a shape is missing.
fn node_macs(model: &Model, node: &Node) -> Option<Count> {
    let shape = |names: &[String], index: usize| {
        names.get(index).filter(|n| !n.is_empty()).and_then(|n| shape_of(model, n))
    };
    let input = |index| shape(&node.inputs, index);
    let output = || shape(&node.outputs, 0);
    let attribute =
        |name: &str, default: u64| node.integers.get(name).map_or(default, |v| v[0].max(0).cast_unsigned());
    let product = |dims: &[u64]| dims.iter().fold(1u64, |p, &d| p.saturating_mul(d));
    let known = |factors: &[u64]| Some(Count::Known(product(factors)));
    match node.op.as_str() {
        // Weights: out channels, in channels / group, kernel.
        "Conv" => known(&[product(&output()?), product(input(1)?.get(1..)?)]),
        // Weights: in channels, out channels / group, kernel; each input element goes into that many products.
        "ConvTranspose" => known(&[product(&input(0)?), product(input(1)?.get(1..)?)]),
        "Gemm" => {
            let a = input(0)?;
            known(&[product(&output()?), *a.get(if attribute("transA", 0) == 0 { 1 } else { 0 })?])
        }
        "MatMul" => known(&[product(&output()?), *input(0)?.last()?]),
        // X: steps, batch, in. W: directions, 4·hidden, in. R: directions, 4·hidden, hidden.
        "LSTM" => {
            let x = input(0)?;
            let weights = product(&input(1)?).saturating_add(product(&input(2)?));
            known(&[*x.first()?, *x.get(1)?, weights])
        }
        "GRU" | "RNN" | "Einsum" | "QLinearConv" | "ConvInteger" | "QLinearMatMul" | "MatMulInteger"
        | "If" | "Loop" | "Scan" => Some(Count::Unknown),
        _ => known(&[0]),
    }
}

fn shape_of(model: &Model, name: &str) -> Option<Vec<u64>> {
    if let Some(dims) = model.constants.get(name) {
        return Some(dims.clone());
    }
    let mut tensors = model.inputs.iter().chain(&model.outputs).chain(&model.noted);
    tensors.find(|t| t.name == name)?.shape()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the two models, as their generator counts them (tests/data/models/table.json has the same for the blobs).
    #[test]
    fn committed_models_count_as_known() {
        for (name, macs_known) in [("tiny", 714_480), ("mlp", 234_752)] {
            let path = format!("{}/../../tests/data/onnx/{name}.onnx", env!("CARGO_MANIFEST_DIR"));
            let model = Model::parse(&std::fs::read(path).expect("committed")).expect("a model");
            assert_eq!(macs(&model), Ok(macs_known), "{name}");
        }
    }
}
