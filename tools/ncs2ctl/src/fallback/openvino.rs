//! The model on the CPU through OpenVINO, in FP32, fed with what its blob is fed with and answering in the blob's layout.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use half::f16;
use ncs2::blob::{Blob, BlobHash, DataType, Graph};
use ncs2::runtime::Fallback;
use ncs2::{Error, ErrorKind};
use parking_lot::Mutex;

use crate::check::cpu::Reference;
use crate::failure::{Failure, Result};
use crate::tensor::layout;
use crate::vendor_compiler::Source;

const INFER: &str = "infer on the CPU";

/// OpenVINO, with the models of the blobs that it may have to stand in for.
pub struct OpenVino {
    model: Option<PathBuf>,
    models: Mutex<HashMap<BlobHash, Reference>>,
}

impl OpenVino {
    /// Loads the libraries. `model` is for every blob; without it each has its own beside it.
    pub fn find(model: Option<PathBuf>) -> Result<Self> {
        crate::reference_libraries::find()?;
        Ok(OpenVino { model, models: Mutex::default() })
    }

    /// Reads and compiles the model of a blob.
    pub fn add(&self, path: &Path, blob: &Blob) -> Result {
        if self.models.lock().contains_key(&blob.hash()) {
            return Ok(());
        }
        let model = match &self.model {
            Some(model) => model.clone(),
            None => beside(path)?,
        };
        // Read here first: a file that is not there or no model is then told as such.
        Source::read(&model)?;
        let reference = Reference::read(&model, ncs2::reference::Source::File(&model), blob.graph())?;
        self.models.lock().insert(blob.hash(), reference);
        Ok(())
    }
}

/// `net.onnx` or `net.xml` for `net.blob` and `net@4.blob`.
fn beside(path: &Path) -> Result<PathBuf> {
    let plain = crate::bench::network::plain(path);
    let names = ["onnx", "xml"].map(|extension| plain.with_extension(extension));
    let [onnx, xml] = &names;
    names.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Failure::new(
            ErrorKind::NotFound,
            format!("{}: expected {} or {} beside it, found neither", path.display(), name(onnx), name(xml)),
            "name the model with --fallback-model, or take --fallback execute",
        )
    })
}

/// Values as the blob stores them. What does not fit ends at the type's own limit, as on a stick.
fn encode(dtype: DataType, values: &[f64]) -> Vec<u8> {
    fn each<const N: usize>(values: &[f64], to: impl Fn(f64) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(|&v| to(v)).collect()
    }
    match dtype {
        DataType::F16 => each(values, |v| f16::from_f64(v).to_le_bytes()),
        DataType::F32 => each(values, |v| (v as f32).to_le_bytes()),
        DataType::S32 => each(values, |v| (v.round() as i32).to_le_bytes()),
        DataType::U8 => each(values, |v| [v.round() as u8]),
        DataType::I8 => each(values, |v| (v.round() as i8).to_le_bytes()),
    }
}

/// Puts the values of every output, whole batch, packed, into an output element.
fn write(graph: &Graph, answers: &[Vec<f64>], output: &mut [u8]) {
    output.fill(0);
    for (tensor, values) in graph.outputs.iter().zip(answers) {
        let elements = layout::elements(tensor).max(1);
        for (batch, values) in values.chunks_exact(elements).enumerate() {
            let from = tensor.offset + batch * tensor.bytes();
            layout::scatter(tensor, &encode(tensor.dtype, values), &mut output[from..]);
        }
    }
}

impl Fallback for OpenVino {
    fn name(&self) -> &str {
        "cpu-openvino"
    }

    fn run(&self, blob: &Blob, input: &[u8], output: &mut [u8]) -> ncs2::error::Result<()> {
        let mut models = self.models.lock();
        let model = models.get_mut(&blob.hash()).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, INFER).detail(format!("{}: its model was not read", blob.name()))
        })?;
        let answers = model.infer(blob.graph(), input).map_err(|failure| {
            let detail = match failure {
                Failure::Report(report) => report.message,
                Failure::BrokenPipe => "broken pipe".to_owned(),
            };
            Error::new(ErrorKind::InvalidInput, INFER).detail(detail)
        })?;
        write(blob.graph(), &answers, output);
        Ok(())
    }
}

impl fmt::Debug for OpenVino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenVino")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name)
    }

    #[test]
    fn models_are_found_beside_their_blobs() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let at = |name: &str| folder.path().join(name);
        let missing = beside(&at("net.blob")).expect_err("nothing is there");
        let Failure::Report(report) = missing else { panic!("a report") };
        assert!(report.message.contains("expected net.onnx or net.xml beside it"), "{}", report.message);
        assert!(report.hint.contains("--fallback-model"), "{}", report.hint);
        std::fs::write(at("net.xml"), "").expect("written");
        assert_eq!(beside(&at("net.blob")).ok(), Some(at("net.xml")));
        std::fs::write(at("net.onnx"), "").expect("written");
        assert_eq!(beside(&at("net@4.blob")).ok(), Some(at("net.onnx")));
    }

    #[test]
    fn answers_lie_where_the_blob_has_them() {
        let blob = Blob::open(committed("models/tiny_fp16_s1.blob")).expect("committed");
        let graph = blob.graph();
        let values: Vec<f64> = (0..10).map(f64::from).collect();
        let mut element = vec![0xff; graph.output_bytes];
        write(graph, std::slice::from_ref(&values), &mut element);
        let tensor = &graph.outputs[0];
        let packed = layout::gather(tensor, &element[tensor.offset..]);
        assert_eq!(crate::tensor::Values::decode(tensor.dtype, &packed).to_f64(), values);
        assert_eq!(encode(DataType::F16, &[1e6]), f16::INFINITY.to_le_bytes(), "as a stick's");
        assert_eq!(encode(DataType::U8, &[-3.0, 300.0]), [0, 255]);
    }
}
