//! ONNX models: what their graph says of inputs, nodes and shapes. Reads what we need of the format and no more.
//!
//! [`edit`] changes a model (fixed shapes, mean and scale in front), [`count`] counts its multiply-accumulates.

pub mod count;
pub mod edit;
pub mod fold;
pub mod quantized;
pub mod wire;

use std::collections::HashMap;

use wire::{Damaged, Message};

/// Field numbers of onnx.proto, by message.
pub(super) mod field {
    pub mod model {
        pub const GRAPH: u32 = 7;
        pub const OPSET: u32 = 8;
    }
    pub mod graph {
        pub const NODE: u32 = 1;
        pub const INITIALIZER: u32 = 5;
        pub const INPUT: u32 = 11;
        pub const OUTPUT: u32 = 12;
        pub const VALUE_INFO: u32 = 13;
    }
    pub mod node {
        pub const INPUT: u32 = 1;
        pub const OUTPUT: u32 = 2;
        pub const NAME: u32 = 3;
        pub const OP: u32 = 4;
        pub const ATTRIBUTE: u32 = 5;
        pub const DOMAIN: u32 = 7;
    }
    pub mod attribute {
        pub const NAME: u32 = 1;
        pub const INT: u32 = 3;
        pub const GRAPH: u32 = 6;
        pub const INTS: u32 = 8;
        pub const GRAPHS: u32 = 11;
    }
    pub mod tensor {
        pub const DIMS: u32 = 1;
        pub const TYPE: u32 = 2;
        pub const NAME: u32 = 8;
        pub const RAW: u32 = 9;
        pub const EXTERNAL: u32 = 13;
    }
    pub mod value {
        pub const NAME: u32 = 1;
        pub const TYPE: u32 = 2;
    }
    pub mod kind {
        pub const TENSOR: u32 = 1;
        pub const ELEMENT: u32 = 1;
        pub const SHAPE: u32 = 2;
        pub const DIM: u32 = 1;
        pub const DIM_VALUE: u32 = 1;
        pub const DIM_NAME: u32 = 2;
    }
}

/// `TensorProto.DataType.FLOAT`.
pub const FLOAT: i64 = 1;

/// A dimension as the model writes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Dim {
    /// Known.
    Fixed(u64),
    /// Left open, with the name that the model gives it, or none.
    Open(String),
}

/// A tensor that goes into or out of a graph, or one inside whose shape is written down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tensor {
    /// Name.
    pub name: String,
    /// `TensorProto.DataType`.
    pub element: i64,
    /// Major to minor; `None` where the model says nothing of the shape.
    pub dims: Option<Vec<Dim>>,
}

impl Tensor {
    /// All dimensions, where all are known.
    pub fn shape(&self) -> Option<Vec<u64>> {
        let fixed = |dim: &Dim| match dim {
            Dim::Fixed(n) => Some(*n),
            Dim::Open(_) => None,
        };
        self.dims.as_ref()?.iter().map(fixed).collect()
    }

    /// `Nx3x?x224`.
    pub fn text(&self) -> String {
        let Some(dims) = &self.dims else { return "a shape that the model does not give".into() };
        let text = |dim: &Dim| match dim {
            Dim::Fixed(n) => n.to_string(),
            Dim::Open(name) if name.is_empty() => "?".into(),
            Dim::Open(name) => name.clone(),
        };
        dims.iter().map(text).collect::<Vec<_>>().join("x")
    }
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// May be empty.
    pub name: String,
    /// `Conv`, `Relu`…
    pub op: String,
    /// Names of tensors; an empty one is an operand left out.
    pub inputs: Vec<String>,
    /// Names of tensors.
    pub outputs: Vec<String>,
    /// Attributes that are integers, as lists.
    pub integers: HashMap<String, Vec<i64>>,
    /// Holds graphs of its own (If, Loop, Scan).
    pub nested: bool,
}

impl Node {
    /// What to call the layer: its name, else its first output.
    pub fn label(&self) -> &str {
        if self.name.is_empty() { self.outputs.first().map_or("", String::as_str) } else { &self.name }
    }
}

/// What a model says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Model {
    /// What the caller feeds: initializers that are listed as inputs are left out.
    pub inputs: Vec<Tensor>,
    /// Results.
    pub outputs: Vec<Tensor>,
    /// In order of execution.
    pub nodes: Vec<Node>,
    /// Shapes of constants.
    pub constants: HashMap<String, Vec<u64>>,
    /// Shapes that the model notes for tensors inside.
    pub noted: Vec<Tensor>,
    /// Files beside the model that hold constants.
    pub external: Vec<String>,
    /// Version of the default operator set.
    pub opset: i64,
}

/// No ONNX model.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unreadable {
    /// No protocol buffer.
    #[error("damaged or no ONNX model: {0}")]
    Damaged(#[from] Damaged),
    /// A protocol buffer of something else.
    #[error("no ONNX model: {0}")]
    Other(&'static str),
}

impl Model {
    /// Reads a model.
    pub fn parse(bytes: &[u8]) -> Result<Self, Unreadable> {
        if bytes.is_empty() {
            return Err(Unreadable::Other("the file is empty"));
        }
        let model = Message::parse(bytes)?;
        let graph =
            model.messages(field::model::GRAPH).last().ok_or(Unreadable::Other("it has no graph"))??;
        let opset = opset(&model)?.ok_or(Unreadable::Other("it names no operator set"))?;
        let mut constants = HashMap::new();
        let mut external = Vec::new();
        for tensor in graph.messages(field::graph::INITIALIZER) {
            let tensor = tensor?;
            let dims = tensor.integers(field::tensor::DIMS);
            constants.insert(
                tensor.string(field::tensor::NAME),
                dims.into_iter().map(|d| u64::try_from(d).unwrap_or(0)).collect(),
            );
            for entry in tensor.messages(field::tensor::EXTERNAL) {
                let entry = entry?;
                if entry.string(1) == "location" && !external.contains(&entry.string(2)) {
                    external.push(entry.string(2));
                }
            }
        }
        let tensors = |number| {
            graph.messages(number).map(|m| Ok(tensor(&m?)?)).collect::<Result<Vec<Tensor>, Unreadable>>()
        };
        let mut inputs = tensors(field::graph::INPUT)?;
        inputs.retain(|t| !constants.contains_key(&t.name));
        let nodes = graph
            .messages(field::graph::NODE)
            .map(|m| Ok(node(&m?)?))
            .collect::<Result<Vec<Node>, Unreadable>>()?;
        let outputs = tensors(field::graph::OUTPUT)?;
        if nodes.is_empty() || outputs.is_empty() {
            return Err(Unreadable::Other("its graph has no nodes or no outputs"));
        }
        let noted = tensors(field::graph::VALUE_INFO)?;
        Ok(Model { inputs, outputs, nodes, constants, noted, external, opset })
    }

    /// The node that makes a tensor.
    pub fn maker(&self, tensor: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.outputs.iter().any(|o| o == tensor))
    }
}

/// Version of the default operator set.
fn opset(model: &Message<'_>) -> Result<Option<i64>, Damaged> {
    let mut version = None;
    for set in model.messages(field::model::OPSET) {
        let set = set?;
        if matches!(set.string(1).as_str(), "" | "ai.onnx") {
            version = set.integer(2);
        }
    }
    Ok(version)
}

fn tensor(value: &Message<'_>) -> Result<Tensor, Damaged> {
    let mut out = Tensor { name: value.string(field::value::NAME), element: 0, dims: None };
    let Some(kind) = value.messages(field::value::TYPE).last() else { return Ok(out) };
    let kind = kind?;
    let Some(tensor) = kind.messages(field::kind::TENSOR).last() else { return Ok(out) };
    let tensor = tensor?;
    out.element = tensor.integer(field::kind::ELEMENT).unwrap_or(0);
    let Some(shape) = tensor.messages(field::kind::SHAPE).last() else { return Ok(out) };
    let shape = shape?;
    let mut dims = Vec::new();
    for dim in shape.messages(field::kind::DIM) {
        let dim = dim?;
        // Some exporters write -1 or 0 for a dimension that they leave open.
        let value =
            dim.integer(field::kind::DIM_VALUE).and_then(|n| u64::try_from(n).ok()).filter(|&n| n > 0);
        dims.push(match value {
            Some(n) => Dim::Fixed(n),
            None => Dim::Open(dim.string(field::kind::DIM_NAME)),
        });
    }
    out.dims = Some(dims);
    Ok(out)
}

fn node(message: &Message<'_>) -> Result<Node, Damaged> {
    let strings =
        |number| message.bytes(number).map(|b| String::from_utf8_lossy(b).into_owned()).collect::<Vec<_>>();
    let mut integers = HashMap::new();
    let mut nested = false;
    for attribute in message.messages(field::node::ATTRIBUTE) {
        let attribute = attribute?;
        nested |= attribute.bytes(field::attribute::GRAPH).next().is_some()
            || attribute.bytes(field::attribute::GRAPHS).next().is_some();
        let mut values = attribute.integers(field::attribute::INTS);
        values.extend(attribute.integer(field::attribute::INT));
        if !values.is_empty() {
            integers.insert(attribute.string(field::attribute::NAME), values);
        }
    }
    let domain = message.string(field::node::DOMAIN);
    let op = message.string(field::node::OP);
    Ok(Node {
        name: message.string(field::node::NAME),
        op: if matches!(domain.as_str(), "" | "ai.onnx") { op } else { format!("{domain}.{op}") },
        inputs: strings(field::node::INPUT),
        outputs: strings(field::node::OUTPUT),
        integers,
        nested,
    })
}
