//! INT8 models in QDQ form (QuantizeLinear and DequantizeLinear pairs), made plain: the chip computes in FP16 and the
//! vendor's compiler refuses the pairs.
//!
//! Weights become the floats that their integers stand for, so that what INT8 did to them stays. Pairs on activations
//! go; where their integers began at zero they also cut negative values off, and exporters leave out the Relu or Clip
//! before such a pair, so a `Clip` takes their place.

use std::collections::{HashMap, HashSet};

use super::wire::{Damaged, Message, Value};
use super::{FLOAT, Model, field};

/// `TensorProto.DataType`.
const UINT8: i64 = 2;
const INT8: i64 = 3;
const INT32: i64 = 6;
/// Fields of `TensorProto` that hold numbers without being raw bytes.
const FLOAT_DATA: u32 = 4;
const INT32_DATA: u32 = 5;
/// `AttributeProto.t`.
const ATTRIBUTE_TENSOR: u32 = 5;
/// `AttributeProto.f` and its type number.
const ATTRIBUTE_FLOAT: u32 = 2;
const ATTRIBUTE_TYPE: u32 = 20;

/// A plain model, and what was done for it.
#[derive(Clone, PartialEq, Debug)]
pub struct Plain {
    /// The model.
    pub bytes: Vec<u8>,
    /// Constants that were integers.
    pub constants: usize,
    /// Bytes that they take as integers.
    pub constant_bytes: usize,
    /// Pairs on activations that went.
    pub pairs: usize,
    /// Of those, such that a `Clip` stands for now.
    pub clips: usize,
}

/// A constant of the graph.
#[derive(Clone, Debug)]
pub(super) struct Constant {
    pub(super) dims: Vec<u64>,
    pub(super) values: Numbers,
}

#[derive(Clone, Debug)]
pub(super) enum Numbers {
    Float(Vec<f32>),
    Integer(Vec<i32>, i64),
}

/// How integers stand for floats: one scale and zero, or one for each index of an axis.
struct Scale {
    scale: Vec<f32>,
    zero: Vec<i32>,
    axis: usize,
    /// Smallest and largest integer.
    range: (i32, i32),
}

/// Makes the model plain. `Err` says what stands in the way.
pub fn plain(bytes: &[u8]) -> Result<Plain, String> {
    let model = Model::parse(bytes).map_err(|e| e.to_string())?;
    let label = |op: &str| model.nodes.iter().find(|n| n.op == op).map(|n| n.label().to_owned());
    for op in [
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
        "DynamicQuantizeLinear",
        "FakeQuantize",
    ] {
        if let Some(label) = label(op) {
            return Err(format!(
                "{label} ({op}): expected the QDQ form, pairs of QuantizeLinear and DequantizeLinear"
            ));
        }
    }
    if label("DequantizeLinear").is_none() {
        return Err("expected an INT8 model, found no DequantizeLinear in it".into());
    }
    if !model.external.is_empty() {
        return Err(format!("keeps constants in {}: export it as one file", model.external.join(", ")));
    }
    let mut message = Message::parse(bytes).map_err(|e| e.to_string())?;
    let mut done = None;
    message.replace(field::model::GRAPH, |graph| {
        let mut graph = Message::parse(graph).map_err(|e| e.to_string())?;
        done = Some(change(&model, &mut graph)?);
        Ok::<_, String>(Some(graph.encode()))
    })?;
    let done = done.ok_or("it has no graph")?;
    Ok(Plain { bytes: message.encode(), ..done })
}

fn change(model: &Model, graph: &mut Message<'_>) -> Result<Plain, String> {
    let mut constants = constants(graph).map_err(|e| e.to_string())?;
    let mut done = Plain { bytes: Vec::new(), constants: 0, constant_bytes: 0, pairs: 0, clips: 0 };
    // What a tensor is called from now on, nodes that go, and such that come in the place of one that goes.
    let mut renamed: HashMap<String, String> = HashMap::new();
    let mut gone: HashSet<String> = HashSet::new();
    let mut clips: HashMap<String, (String, f32)> = HashMap::new();
    let mut floats: Vec<(String, Constant)> = Vec::new();
    for node in &model.nodes {
        let (Some(input), Some(output)) = (node.inputs.first(), node.outputs.first()) else { continue };
        let wrong = |why: &str| format!("{} ({}): {why}", node.label(), node.op);
        match node.op.as_str() {
            // A constant that the exporter left in floats: its integers first.
            "QuantizeLinear" if constants.contains_key(input) => {
                let scale = scale(node, &constants).map_err(|e| wrong(&e))?;
                let made = quantize(&constants[input], &scale).map_err(|e| wrong(&e))?;
                constants.insert(output.clone(), made);
                gone.insert(output.clone());
            }
            "DequantizeLinear" if constants.contains_key(input) => {
                let scale = scale(node, &constants).map_err(|e| wrong(&e))?;
                let made = dequantize(&constants[input], &scale).map_err(|e| wrong(&e))?;
                done.constants += 1;
                done.constant_bytes += constants[input].bytes();
                constants.insert(output.clone(), made.clone());
                floats.push((output.clone(), made));
                gone.insert(output.clone());
            }
            "DequantizeLinear" => {
                let maker = model.maker(input).filter(|maker| maker.op == "QuantizeLinear");
                let Some(maker) = maker else {
                    return Err(wrong("expected a constant or QuantizeLinear before it"));
                };
                let from = maker.inputs.first().cloned().unwrap_or_default();
                let from = renamed.get(&from).cloned().unwrap_or(from);
                let scale = scale(maker, &constants).map_err(|e| wrong(&e))?;
                gone.insert(input.clone());
                done.pairs += 1;
                match upper_end(model, &from, &scale) {
                    Some(upper) => {
                        clips.insert(output.clone(), (from, upper));
                        done.clips += 1;
                    }
                    None => {
                        renamed.insert(output.clone(), from);
                        gone.insert(output.clone());
                    }
                }
            }
            "QuantizeLinear" => {
                let only_pairs = model
                    .nodes
                    .iter()
                    .filter(|n| n.inputs.contains(output))
                    .all(|n| n.op == "DequantizeLinear");
                if !only_pairs || model.outputs.iter().any(|o| o.name == *output) {
                    return Err(wrong("expected DequantizeLinear after it and nothing else"));
                }
                gone.insert(output.clone());
            }
            _ => {}
        }
    }
    // An output keeps its name: what a pair made of a tensor, the tensor's maker makes from now on.
    let mut outputs: HashMap<String, String> = HashMap::new();
    for output in &model.outputs {
        let Some(from) = renamed.get(&output.name) else { continue };
        let taken = model.outputs.iter().any(|o| o.name == *from) || outputs.contains_key(from);
        if taken || model.maker(from).is_none() {
            return Err(format!(
                "output {}: a pair makes it of {from}, which is no layer's alone; export the model without that pair",
                output.name
            ));
        }
        outputs.insert(from.clone(), output.name.clone());
    }
    let names = Names { renamed, outputs };
    rewrite(model, graph, &names, &gone, &clips).map_err(|e| e.to_string())?;
    for (name, constant) in &floats {
        graph.push(field::graph::INITIALIZER, &constant.tensor(name));
    }
    drop_unused(graph).map_err(|e| e.to_string())?;
    Ok(done)
}

/// The largest value that a pair lets through, where it also cuts at zero and its maker does not do so itself.
fn upper_end(model: &Model, from: &str, scale: &Scale) -> Option<f32> {
    let (&step, &zero) = (scale.scale.first()?, scale.zero.first()?);
    let maker = model.maker(from)?;
    let cuts = matches!(
        maker.op.as_str(),
        "Conv" | "ConvTranspose" | "Gemm" | "MatMul" | "Add" | "Mul" | "Sub" | "BatchNormalization"
    );
    (cuts && scale.scale.len() == 1 && zero == scale.range.0).then(|| (scale.range.1 - zero) as f32 * step)
}

/// What tensors are called from now on.
struct Names {
    /// Of pairs that went: the tensor before each.
    renamed: HashMap<String, String>,
    /// Of tensors that became outputs of the graph.
    outputs: HashMap<String, String>,
}

impl Names {
    fn of<'a>(&'a self, name: &'a str) -> &'a str {
        let name = self.renamed.get(name).map_or(name, String::as_str);
        self.outputs.get(name).map_or(name, String::as_str)
    }
}

fn rewrite(
    model: &Model,
    graph: &mut Message<'_>,
    names: &Names,
    gone: &HashSet<String>,
    clips: &HashMap<String, (String, f32)>,
) -> Result<(), Damaged> {
    let nodes: Vec<Vec<u8>> = graph.bytes(field::graph::NODE).map(<[u8]>::to_vec).collect();
    graph.remove(field::graph::NODE);
    for bytes in &nodes {
        let mut node = Message::parse(bytes)?;
        let output = node.bytes(field::node::OUTPUT).next().map(|b| String::from_utf8_lossy(b).into_owned());
        let output = output.unwrap_or_default();
        if let Some((from, upper)) = clips.get(&output) {
            let made = names.of(&output);
            graph.push(field::graph::NODE, &clip(model.opset, names.of(from), made, *upper));
            if model.opset >= 11 {
                for (name, value) in [("lower", 0.0), ("upper", *upper)] {
                    let limit = Constant { dims: Vec::new(), values: Numbers::Float(vec![value]) };
                    graph.push(field::graph::INITIALIZER, &limit.tensor(&format!("{made}/{name}")));
                }
            }
            continue;
        }
        if gone.contains(&output) {
            continue;
        }
        for tensors in [field::node::INPUT, field::node::OUTPUT] {
            node.replace(tensors, |name| {
                let name = String::from_utf8_lossy(name);
                let new = names.of(&name);
                Ok::<_, Damaged>((new != name).then(|| new.as_bytes().to_vec()))
            })?;
        }
        graph.push(field::graph::NODE, &node);
    }
    Ok(())
}

/// Before operator set 11 the limits are attributes, from then on inputs.
fn clip(opset: i64, from: &str, output: &str, upper: f32) -> Message<'static> {
    let mut node = Message::default();
    node.push_bytes(field::node::INPUT, from);
    if opset >= 11 {
        node.push_bytes(field::node::INPUT, format!("{output}/lower"));
        node.push_bytes(field::node::INPUT, format!("{output}/upper"));
    }
    node.push_bytes(field::node::OUTPUT, output);
    node.push_bytes(field::node::NAME, format!("{output}/clip"));
    node.push_bytes(field::node::OP, "Clip");
    if opset < 11 {
        for (name, value) in [("min", 0.0), ("max", upper)] {
            let mut attribute = Message::default();
            attribute.push_bytes(field::attribute::NAME, name);
            attribute.push_float(ATTRIBUTE_FLOAT, value);
            attribute.push_integer(ATTRIBUTE_TYPE, 1);
            node.push(field::node::ATTRIBUTE, &attribute);
        }
    }
    node
}

/// Constants that nobody reads any more, such as scales, would be dead weight and confuse the compiler.
fn drop_unused(graph: &mut Message<'_>) -> Result<(), Damaged> {
    let mut used = HashSet::new();
    for node in graph.messages(field::graph::NODE) {
        used.extend(node?.bytes(field::node::INPUT).map(|b| String::from_utf8_lossy(b).into_owned()));
    }
    let kept = graph
        .messages(field::graph::INITIALIZER)
        .filter_map(|tensor| match tensor {
            Ok(tensor) => used.contains(&tensor.string(field::tensor::NAME)).then(|| Ok(tensor.encode())),
            Err(e) => Some(Err(e)),
        })
        .collect::<Result<Vec<Vec<u8>>, Damaged>>()?;
    graph.remove(field::graph::INITIALIZER);
    for tensor in kept {
        graph.push_bytes(field::graph::INITIALIZER, tensor);
    }
    Ok(())
}

/// Initializers and `Constant` nodes whose numbers matter here.
fn constants(graph: &Message<'_>) -> Result<HashMap<String, Constant>, Damaged> {
    let mut constants = HashMap::new();
    for tensor in graph.messages(field::graph::INITIALIZER) {
        let tensor = tensor?;
        if let Some(constant) = Constant::read(&tensor) {
            constants.insert(tensor.string(field::tensor::NAME), constant);
        }
    }
    for node in graph.messages(field::graph::NODE) {
        let node = node?;
        if node.string(field::node::OP) != "Constant" {
            continue;
        }
        for attribute in node.messages(field::node::ATTRIBUTE) {
            let attribute = attribute?;
            for tensor in attribute.messages(ATTRIBUTE_TENSOR) {
                if let Some(constant) = Constant::read(&tensor?) {
                    constants.insert(node.string(field::node::OUTPUT), constant);
                }
            }
        }
    }
    Ok(constants)
}

impl Constant {
    /// `None` for other types and for damaged contents.
    pub(super) fn read(tensor: &Message<'_>) -> Option<Self> {
        let dims: Vec<u64> = tensor
            .integers(field::tensor::DIMS)
            .into_iter()
            .map(u64::try_from)
            .collect::<Result<_, _>>()
            .ok()?;
        let count = usize::try_from(dims.iter().try_fold(1u64, |p, &d| p.checked_mul(d))?).ok()?;
        let kind = tensor.integer(field::tensor::TYPE)?;
        let raw = tensor.bytes(field::tensor::RAW).last();
        let words = |raw: &[u8]| -> Vec<[u8; 4]> { raw.as_chunks::<4>().0.to_vec() };
        let values = match (kind, raw) {
            (FLOAT, Some(raw)) => Numbers::Float(words(raw).into_iter().map(f32::from_le_bytes).collect()),
            (FLOAT, None) => Numbers::Float(floats(tensor)),
            (INT8, Some(raw)) => {
                Numbers::Integer(raw.iter().map(|&b| i32::from(b.cast_signed())).collect(), kind)
            }
            (UINT8, Some(raw)) => Numbers::Integer(raw.iter().map(|&b| i32::from(b)).collect(), kind),
            (INT32, Some(raw)) => {
                Numbers::Integer(words(raw).into_iter().map(i32::from_le_bytes).collect(), kind)
            }
            (INT8 | UINT8 | INT32, None) => {
                Numbers::Integer(tensor.integers(INT32_DATA).into_iter().map(|n| n as i32).collect(), kind)
            }
            _ => return None,
        };
        let constant = Constant { dims, values };
        (constant.len() == count).then_some(constant)
    }

    fn len(&self) -> usize {
        match &self.values {
            Numbers::Float(v) => v.len(),
            Numbers::Integer(v, _) => v.len(),
        }
    }

    fn bytes(&self) -> usize {
        match &self.values {
            Numbers::Integer(v, INT8 | UINT8) => v.len(),
            _ => 4 * self.len(),
        }
    }

    /// As an initializer of floats.
    pub(super) fn tensor(&self, name: &str) -> Message<'static> {
        let mut tensor = Message::default();
        for &dim in &self.dims {
            tensor.push_integer(field::tensor::DIMS, dim.cast_signed());
        }
        tensor.push_integer(field::tensor::TYPE, FLOAT);
        tensor.push_bytes(field::tensor::NAME, name);
        let raw: Vec<u8> = match &self.values {
            Numbers::Float(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Numbers::Integer(v, _) => v.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
        };
        tensor.push_bytes(field::tensor::RAW, raw);
        tensor
    }

    /// Which scale an element has: index along the axis.
    fn index_along(&self, axis: usize) -> impl Fn(usize) -> usize {
        let inner: u64 = self.dims.iter().skip(axis + 1).product();
        let size = self.dims.get(axis).copied().unwrap_or(1);
        let (inner, size) = (inner.max(1) as usize, size.max(1) as usize);
        move |at| at / inner % size
    }
}

/// Packed or not.
fn floats(tensor: &Message<'_>) -> Vec<f32> {
    let mut values = Vec::new();
    for value in tensor.all(FLOAT_DATA) {
        match value {
            Value::Fixed32(bytes) => values.push(f32::from_le_bytes(*bytes)),
            Value::Bytes(packed) => {
                values.extend(packed.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
            }
            _ => {}
        }
    }
    values
}

/// Scale and zero of a node of either kind.
fn scale(node: &super::Node, constants: &HashMap<String, Constant>) -> Result<Scale, String> {
    let operand = |at: usize| node.inputs.get(at).filter(|n| !n.is_empty()).and_then(|n| constants.get(n));
    let Some(Constant { values: Numbers::Float(scale), .. }) = operand(1) else {
        return Err("expected a constant scale".into());
    };
    if scale.is_empty() || scale.iter().any(|s| !s.is_finite() || *s <= 0.0) {
        return Err("expected scales above 0".into());
    }
    // Without a zero point QuantizeLinear gives uint8 from 0, as the operator's definition has it.
    let (zero, kind) = match operand(2) {
        Some(Constant { values: Numbers::Integer(zero, kind), .. }) => (zero.clone(), *kind),
        Some(_) => return Err("expected a zero point of integers".into()),
        None => (vec![0; scale.len()], UINT8),
    };
    if zero.len() != scale.len() {
        return Err(format!(
            "expected as many zero points as scales, found {} and {}",
            zero.len(),
            scale.len()
        ));
    }
    let range = match kind {
        INT8 => (-128, 127),
        UINT8 => (0, 255),
        _ => (i32::MIN, i32::MAX),
    };
    let axis = node.integers.get("axis").and_then(|v| v.first()).copied().unwrap_or(1);
    let axis = usize::try_from(axis).map_err(|_| format!("axis {axis}: expected 0 or more"))?;
    if node.integers.get("block_size").is_some_and(|v| v.first().is_some_and(|&n| n > 0)) {
        return Err("blocks of scales are not supported".into());
    }
    Ok(Scale { scale: scale.clone(), zero, axis, range })
}

impl Scale {
    /// Scale and zero for the element at an index of `constant`.
    fn of<'a>(&'a self, constant: &'a Constant) -> Result<impl Fn(usize) -> (f32, i32) + 'a, String> {
        let along = constant.index_along(self.axis);
        let size = constant.dims.get(self.axis).copied().unwrap_or(1);
        if self.scale.len() != 1 && self.scale.len() as u64 != size {
            return Err(format!("expected 1 or {size} scales, found {}", self.scale.len()));
        }
        Ok(move |at: usize| {
            let index = if self.scale.len() == 1 { 0 } else { along(at) };
            (self.scale[index], self.zero[index])
        })
    }
}

fn dequantize(constant: &Constant, scale: &Scale) -> Result<Constant, String> {
    let Numbers::Integer(values, _) = &constant.values else { return Err("expected integers".into()) };
    let of = scale.of(constant)?;
    let float = |(at, &q): (usize, &i32)| {
        let (step, zero) = of(at);
        (q - zero) as f32 * step
    };
    let values = values.iter().enumerate().map(float).collect();
    Ok(Constant { dims: constant.dims.clone(), values: Numbers::Float(values) })
}

fn quantize(constant: &Constant, scale: &Scale) -> Result<Constant, String> {
    let Numbers::Float(values) = &constant.values else { return Err("expected floats".into()) };
    let of = scale.of(constant)?;
    let kind = if scale.range.0 < 0 { INT8 } else { UINT8 };
    let integer = |(at, &x): (usize, &f32)| {
        let (step, zero) = of(at);
        // Halves go to even, as the operator's definition has it.
        let q = (x / step).round_ties_even() as i64 + i64::from(zero);
        q.clamp(i64::from(scale.range.0), i64::from(scale.range.1)) as i32
    };
    let values = values.iter().enumerate().map(integer).collect();
    Ok(Constant { dims: constant.dims.clone(), values: Numbers::Integer(values, kind) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, dims: &[i64], kind: i64, raw: Vec<u8>) -> Message<'static> {
        let mut tensor = Message::default();
        dims.iter().for_each(|&d| tensor.push_integer(field::tensor::DIMS, d));
        tensor.push_integer(field::tensor::TYPE, kind);
        tensor.push_bytes(field::tensor::NAME, name);
        tensor.push_bytes(field::tensor::RAW, raw);
        tensor
    }

    fn node(op: &str, inputs: &[&str], output: &str, axis: Option<i64>) -> Message<'static> {
        let mut node = Message::default();
        inputs.iter().for_each(|i| node.push_bytes(field::node::INPUT, *i));
        node.push_bytes(field::node::OUTPUT, output);
        node.push_bytes(field::node::OP, op);
        if let Some(axis) = axis {
            let mut attribute = Message::default();
            attribute.push_bytes(field::attribute::NAME, "axis");
            attribute.push_integer(field::attribute::INT, axis);
            attribute.push_integer(ATTRIBUTE_TYPE, 2);
            node.push(field::node::ATTRIBUTE, &attribute);
        }
        node
    }

    fn value(name: &str) -> Message<'static> {
        let mut value = Message::default();
        value.push_bytes(field::value::NAME, name);
        value
    }

    fn raw(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// x → pair (signed) → Conv with int8 weights, a scale for each channel → pair from zero on → y → MaxPool → out.
    fn model(pool: &str) -> Vec<u8> {
        let mut graph = Message::default();
        for n in [
            node("QuantizeLinear", &["x", "xs", "xz"], "xq", None),
            node("DequantizeLinear", &["xq", "xs", "xz"], "xd", None),
            node("DequantizeLinear", &["w", "ws", "wz"], "wd", Some(0)),
            node("Conv", &["xd", "wd"], "c", None),
            node("QuantizeLinear", &["c", "cs", "cz"], "cq", None),
            node("DequantizeLinear", &["cq", "cs", "cz"], "cd", None),
            node(pool, &["cd"], "out", None),
        ] {
            graph.push(field::graph::NODE, &n);
        }
        for t in [
            tensor("xs", &[], FLOAT, raw(&[0.5])),
            tensor("xz", &[], INT8, vec![0]),
            tensor("w", &[2, 1, 1, 2], INT8, vec![1, 0xff, 127, 0x80]),
            tensor("ws", &[2], FLOAT, raw(&[0.5, 0.25])),
            tensor("wz", &[2], INT8, vec![0, 1]),
            tensor("cs", &[], FLOAT, raw(&[0.1])),
            tensor("cz", &[], INT8, vec![0x80]),
        ] {
            graph.push(field::graph::INITIALIZER, &t);
        }
        graph.push(field::graph::INPUT, &value("x"));
        graph.push(field::graph::OUTPUT, &value("out"));
        let mut opset = Message::default();
        opset.push_integer(2, 13);
        let mut model = Message::default();
        model.push(field::model::GRAPH, &graph);
        model.push(field::model::OPSET, &opset);
        model.encode()
    }

    #[test]
    fn weights_become_the_floats_that_they_stand_for() {
        let plain = plain(&model("MaxPool")).expect("QDQ");
        assert_eq!((plain.constants, plain.constant_bytes, plain.pairs, plain.clips), (1, 4, 2, 1));
        let read = Model::parse(&plain.bytes).expect("a model");
        let ops: Vec<&str> = read.nodes.iter().map(|n| n.op.as_str()).collect();
        assert_eq!(ops, ["Conv", "Clip", "MaxPool"]);
        assert_eq!(read.nodes[0].inputs, ["x", "wd"], "the signed pair cuts nothing off");
        assert_eq!(read.nodes[1].inputs, ["c", "cd/lower", "cd/upper"]);
        assert_eq!(read.nodes[2].inputs, ["cd"]);
        let message = Message::parse(&plain.bytes).expect("a message");
        let graph = message.messages(field::model::GRAPH).next().expect("one").expect("a graph");
        let known = constants(&graph).expect("tensors");
        let floats = |name: &str| match &known[name].values {
            Numbers::Float(v) => v.clone(),
            Numbers::Integer(..) => panic!("{name} is no float"),
        };
        // (1, -1) × 0.5; (127 - 1, -128 - 1) × 0.25.
        assert_eq!(floats("wd"), [0.5, -0.5, 31.5, -32.25]);
        assert_eq!((floats("cd/lower"), floats("cd/upper")), (vec![0.0], vec![255.0 * 0.1]));
        let mut names: Vec<&str> = known.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["cd/lower", "cd/upper", "wd"], "scales and integers are gone");
    }

    #[test]
    fn what_onnxruntime_writes_becomes_the_network_that_it_was() {
        let read = |name: &str| {
            let path = format!("{}/../../tests/data/onnx/{name}", env!("CARGO_MANIFEST_DIR"));
            std::fs::read(path).expect("committed")
        };
        let made = plain(&read("tiny_qdq.onnx")).expect("QDQ");
        let (made_of, model) =
            (Model::parse(&read("tiny.onnx")).expect("good"), Model::parse(&made.bytes).expect("good"));
        let ops = |model: &Model| model.nodes.iter().map(|n| n.op.clone()).collect::<Vec<_>>();
        // Clips stand where a Relu or a Clip stood, and behind layers whose results were never negative.
        let as_clip = |op: String| if op == "Relu" { "Clip".to_owned() } else { op };
        let expected: Vec<String> = ops(&made_of).into_iter().map(as_clip).collect();
        assert_eq!(ops(&model), expected);
        assert_eq!((made.constants, made.pairs), (10, 11), "five layers' weights and biases");
        assert_eq!(
            (&model.outputs[0].name, &model.nodes.last().expect("some").outputs[0]),
            (&"prob".into(), &"prob".into())
        );
        let dims = |model: &Model, at: usize| {
            let conv = model.nodes.iter().filter(|n| n.op == "Conv").nth(at).expect("four");
            model.constants[&conv.inputs[1]].clone()
        };
        assert!((0..4).all(|at| dims(&model, at) == dims(&made_of, at)));
    }

    #[test]
    fn constants_in_floats_are_rounded_as_the_pair_does() {
        let scale = Scale { scale: vec![0.5], zero: vec![0], axis: 1, range: (-128, 127) };
        let constant = Constant { dims: vec![4], values: Numbers::Float(vec![0.25, 0.75, -1.3, 1000.0]) };
        let quantized = quantize(&constant, &scale).expect("floats");
        let Numbers::Float(back) = dequantize(&quantized, &scale).expect("integers").values else { panic!() };
        assert_eq!(back, [0.0, 1.0, -1.5, 63.5], "halves to even, beyond the range to its end");
    }

    #[test]
    fn other_forms_are_refused_by_name() {
        let refused = |bytes: &[u8]| plain(bytes).expect_err("refused");
        let linear = model("QLinearConv");
        assert!(refused(&linear).contains("QDQ form"), "{}", refused(&linear));
        let path = format!("{}/../../tests/data/onnx/tiny.onnx", env!("CARGO_MANIFEST_DIR"));
        let float = std::fs::read(path).expect("committed");
        assert!(refused(&float).contains("no DequantizeLinear"));
        assert!(plain(b"not a model").is_err());
    }
}
