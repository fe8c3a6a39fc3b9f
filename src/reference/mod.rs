//! The same network on the CPU, through OpenVINO: the reference that answers of sticks are checked against, and a way
//! to go on when no stick can. Feature `openvino`; OpenVINO itself is looked for when it is first used.
//!
//! ```text
//! Libraries::find() ─► reference::load(&libraries) ─► Network::read(model) ─► network.compile(shapes) ─► CpuModel::infer
//! ```
//! Values go in and come out as `f64`, major dimension first, packed: it holds every element type of a network exactly.
//! Arithmetic is FP32 (asked for: some CPUs would take BF16 by themselves).

mod libraries;
mod values;

use std::path::Path;

use openvino::{
    Core, DeviceType, ElementType, InferRequest, InferenceError, Node, PartialShape, RwPropertyKey, Shape,
    Tensor,
};

pub use libraries::{Libraries, MENDED_LINK, Mended};

use crate::error::{Error, ErrorKind, Result};

const LOAD: &str = "load OpenVINO";
const READ: &str = "read model for the CPU";
const COMPILE: &str = "compile model for the CPU";
const INFER: &str = "infer on the CPU";

/// Loads OpenVINO into this process, once; later calls keep the first. Gives its version, such as `2025.4.1-20426-…`.
///
/// # Errors
/// `Unsupported` when the libraries do not load or are older than 2025.1, which numbers element types in another way.
pub fn load(libraries: &Libraries) -> Result<String> {
    let failed = |why: String| {
        Error::new(ErrorKind::Unsupported, LOAD).detail(format!("{}: {why}", libraries.c_api.display()))
    };
    openvino_sys::library::load_from(&libraries.c_api).map_err(failed)?;
    Ok(openvino::version().build_number)
}

/// Where a model comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// `.onnx`, or `.xml` with its `.bin` beside it.
    File(&'a Path),
    /// The bytes of an ONNX model that has no files beside it.
    Onnx(&'a [u8]),
}

/// An input or output of a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Name in the model.
    pub name: String,
    /// Major to minor; `None` while a dimension is open.
    pub shape: Option<Vec<usize>>,
}

/// A model that was read, not compiled.
pub struct Network {
    core: Core,
    model: openvino::Model,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

/// A model that is ready to run on the CPU.
pub struct CpuModel {
    request: InferRequest,
    inputs: Vec<(Port, ElementType)>,
    outputs: Vec<Port>,
}

impl Network {
    /// Reads a model. [`load`] comes first.
    pub fn read(source: Source<'_>) -> Result<Self> {
        let failed = |error: InferenceError| explain(ErrorKind::InvalidInput, READ, &error);
        let mut core = Core::new()
            .map_err(|e| Error::new(ErrorKind::Unsupported, LOAD).detail("no core").caused_by(e))?;
        core.set_property(&DeviceType::CPU, &RwPropertyKey::HintInferencePrecision, "f32").map_err(failed)?;
        let model = match source {
            Source::File(path) => {
                let weights = path.with_extension("bin");
                let weights =
                    if path.extension().is_some_and(|e| e == "xml") { weights.to_str() } else { Some("") };
                let (Some(path), Some(weights)) = (path.to_str(), weights) else {
                    return Err(Error::new(ErrorKind::InvalidInput, READ)
                        .detail(format!("{}: the path is not UTF-8", path.display())));
                };
                core.read_model_from_file(path, weights)
            }
            Source::Onnx(bytes) => core.read_model_from_buffer(bytes, None),
        }
        .map_err(failed)?;
        let ports = |count: usize, get: &dyn Fn(usize) -> std::result::Result<Node, InferenceError>| {
            (0..count).map(|n| port(&get(n)?)).collect::<std::result::Result<Vec<Port>, InferenceError>>()
        };
        let inputs = model.get_inputs_len().and_then(|n| ports(n, &|n| model.get_input_by_index(n)));
        let outputs = model.get_outputs_len().and_then(|n| ports(n, &|n| model.get_output_by_index(n)));
        let (inputs, outputs) = (inputs.map_err(failed)?, outputs.map_err(failed)?);
        Ok(Network { core, model, inputs, outputs })
    }

    /// What it takes.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// What it gives.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// Compiles it, with these shapes for the inputs named.
    ///
    /// # Errors
    /// `InvalidInput` when a dimension stays open or the model does not take a shape.
    pub fn compile(mut self, shapes: &[(&str, &[usize])]) -> Result<CpuModel> {
        let failed = |error: InferenceError| explain(ErrorKind::InvalidInput, COMPILE, &error);
        if !shapes.is_empty() {
            let shapes = shapes
                .iter()
                .map(|&(name, dims)| {
                    let dims: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
                    Ok((name, PartialShape::new_static(dims.len() as i64, &dims)?))
                })
                .collect::<std::result::Result<Vec<_>, InferenceError>>()
                .map_err(failed)?;
            let shapes: Vec<(&str, &PartialShape)> =
                shapes.iter().map(|(name, shape)| (*name, shape)).collect();
            self.model.reshape(&shapes).map_err(failed)?;
        }
        let mut compiled = self.core.compile_model(&self.model, DeviceType::CPU).map_err(failed)?;
        let nodes = |count: usize, get: &dyn Fn(usize) -> std::result::Result<Node, InferenceError>| {
            (0..count)
                .map(|n| {
                    let node = get(n)?;
                    Ok((port(&node)?, node.get_element_type()?))
                })
                .collect::<std::result::Result<Vec<(Port, ElementType)>, InferenceError>>()
        };
        let inputs = compiled.get_input_size().and_then(|n| nodes(n, &|n| compiled.get_input_by_index(n)));
        let outputs = compiled.get_output_size().and_then(|n| nodes(n, &|n| compiled.get_output_by_index(n)));
        let (inputs, outputs) = (inputs.map_err(failed)?, outputs.map_err(failed)?);
        if let Some((open, _)) = inputs.iter().find(|(port, _)| port.shape.is_none()) {
            return Err(Error::new(ErrorKind::InvalidInput, COMPILE)
                .detail(format!("input {}: its shape is still open; give it a fixed shape", open.name)));
        }
        let request = compiled.create_infer_request().map_err(failed)?;
        Ok(CpuModel { request, inputs, outputs: outputs.into_iter().map(|(port, _)| port).collect() })
    }
}

impl CpuModel {
    /// What it takes, in the order of [`CpuModel::infer`].
    pub fn inputs(&self) -> impl Iterator<Item = &Port> {
        self.inputs.iter().map(|(port, _)| port)
    }

    /// What it gives.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// One inference: the values of every input to the values of every output, packed, major dimension first.
    pub fn infer(&mut self, inputs: &[&[f64]]) -> Result<Vec<Vec<f64>>> {
        let failed = |error: InferenceError| explain(ErrorKind::InvalidInput, INFER, &error);
        let wrong = |detail: String| Error::new(ErrorKind::InvalidInput, INFER).detail(detail);
        if inputs.len() != self.inputs.len() {
            return Err(wrong(format!("expected {} inputs, found {}", self.inputs.len(), inputs.len())));
        }
        for (index, ((port, element), values)) in self.inputs.iter().zip(inputs).enumerate() {
            let shape = port.shape.as_deref().unwrap_or_default();
            let count: usize = shape.iter().product();
            if values.len() != count {
                return Err(wrong(format!(
                    "input {}: expected {count} values, found {}",
                    port.name,
                    values.len()
                )));
            }
            let dims: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
            let shape = Shape::new(&dims).map_err(failed)?;
            let mut tensor = Tensor::new(*element, &shape).map_err(failed)?;
            let bytes = values::encode(*element, values).ok_or_else(|| {
                wrong(format!("input {}: takes {element}, which is not known here", port.name))
            })?;
            tensor.get_raw_data_mut().map_err(failed)?.copy_from_slice(&bytes);
            self.request.set_input_tensor_by_index(index, &tensor).map_err(failed)?;
        }
        self.repeat()?;
        (0..self.outputs.len())
            .map(|index| {
                let tensor = self.request.get_output_tensor_by_index(index).map_err(failed)?;
                let element = tensor.get_element_type().map_err(failed)?;
                values::decode(element, tensor.get_raw_data().map_err(failed)?).ok_or_else(|| {
                    let name = &self.outputs[index].name;
                    wrong(format!("output {name}: gives {element}, which is not known here"))
                })
            })
            .collect()
    }

    /// Computes once more what the last [`CpuModel::infer`] was given, and nothing beside it: what a measurement times.
    pub fn repeat(&mut self) -> Result<()> {
        self.request.infer().map_err(|error| explain(ErrorKind::InvalidInput, INFER, &error))
    }
}

fn port(node: &Node) -> std::result::Result<Port, InferenceError> {
    let name = node.get_name()?;
    let partial = node.get_partial_shape()?;
    let shape = if partial.is_dynamic() {
        None
    } else {
        let size = |d: &i64| usize::try_from(*d).unwrap_or(0);
        Some(node.get_shape()?.get_dimensions().iter().map(size).collect())
    };
    Ok(Port { name, shape })
}

/// OpenVINO's texts are long and begin with source files of its own; the last line says what is wrong.
fn explain(kind: ErrorKind, op: &'static str, error: &InferenceError) -> Error {
    let text = error.message.clone().unwrap_or_else(|| error.kind.to_string());
    let said: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("Exception from src/"))
        .collect();
    Error::new(kind, op).detail(said.join(" "))
}
