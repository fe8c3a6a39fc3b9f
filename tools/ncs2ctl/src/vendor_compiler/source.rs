//! The model as the compiler gets it: read, checked for what the compiler would choke on, changed as the user asks.

use std::fs;
use std::path::{Path, PathBuf};

use ncs2::ErrorKind;

use crate::failure::{Failure, Result};
use crate::onnx::{Dim, Model, Tensor, edit};
use crate::tensor::shape_text;

/// What the user wants changed before compiling.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Changes<'a> {
    /// First dimension of every input that leaves it open.
    pub batch: Option<u32>,
    /// `(input, shape)`; an empty name is the only input.
    pub shapes: &'a [(String, Vec<u64>)],
    /// Subtracted from every value, one or one for each channel.
    pub mean: &'a [f32],
    /// Then divided by.
    pub scale: &'a [f32],
}

/// A model.
#[derive(Clone, PartialEq, Debug)]
pub struct Source {
    /// The user's file.
    pub path: PathBuf,
    bytes: Vec<u8>,
    /// What it says; `None` for `.xml`.
    pub onnx: Option<Model>,
    /// Contents of the files that belong to it.
    beside: Vec<Vec<u8>>,
}

/// A model that the compiler can take.
#[derive(Clone, PartialEq, Debug)]
pub struct Ready {
    /// Set where it differs from the file.
    pub changed: Option<Vec<u8>>,
    /// What it says; `None` for `.xml`.
    pub onnx: Option<Model>,
    /// Batch that the compiler has to set: the model has another one.
    pub batch: Option<u32>,
}

impl Source {
    /// Reads `.onnx`, or `.xml` with its `.bin`.
    pub fn read(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        let read = |path: &Path| fs::read(path).map_err(|e| Failure::file(path, "read", &e));
        match extension.as_deref() {
            Some("onnx") => {
                let bytes = read(path)?;
                let model = Model::parse(&bytes).map_err(|e| {
                    let message = format!("{}: {e}", path.display());
                    Failure::new(ErrorKind::InvalidInput, message, "export the model to ONNX again")
                })?;
                let folder = path.parent().unwrap_or(Path::new(""));
                let beside =
                    model.external.iter().map(|name| read(&folder.join(name))).collect::<Result<_>>()?;
                Ok(Source { path: path.to_path_buf(), bytes, onnx: Some(model), beside })
            }
            Some("xml") => {
                let bytes = read(path)?;
                let beside = vec![read(&path.with_extension("bin"))?];
                Ok(Source { path: path.to_path_buf(), bytes, onnx: None, beside })
            }
            found => {
                // A file that is not there is the likelier mistake.
                read(path)?;
                let found = found.map_or("none".into(), |e| format!(".{e}"));
                let message = format!("{}: expected a .onnx or .xml file, found {found}", path.display());
                Err(Failure::new(ErrorKind::InvalidInput, message, "export the model to ONNX"))
            }
        }
    }

    /// Makes the changes, and refuses what would still have an open shape.
    pub fn prepare(&self, changes: &Changes<'_>) -> Result<Ready> {
        let at = self.path.display();
        let wrong = |message: String, hint: &str| {
            Failure::new(ErrorKind::InvalidInput, format!("{at}: {message}"), hint)
        };
        let Some(model) = &self.onnx else {
            if !changes.mean.is_empty() || !changes.scale.is_empty() || !changes.shapes.is_empty() {
                let message =
                    "--mean, --scale and --shape change the model, and only a .onnx can be changed here";
                return Err(wrong(message.into(), "give the .onnx that the .xml was made from"));
            }
            return Ok(Ready { changed: None, onnx: None, batch: changes.batch });
        };
        let mut shapes: Vec<(&str, Vec<u64>)> = Vec::new();
        for input in &model.inputs {
            if let Some(shape) = self.new_shape(model, input, changes)? {
                shapes.push((&input.name, shape));
            }
        }
        for (name, _) in changes.shapes {
            if !name.is_empty() && model.inputs.iter().all(|i| i.name != *name) {
                let names: Vec<&str> = model.inputs.iter().map(|i| i.name.as_str()).collect();
                let message = format!("--shape: expected an input named {}, found {name}", names.join(", "));
                return Err(wrong(message, "name one of the inputs"));
            }
        }
        let mut bytes = self.bytes.clone();
        if !shapes.is_empty() {
            let shape_of = |name: &str| shapes.iter().find(|(n, _)| *n == name).map(|(_, s)| s.clone());
            bytes = edit::fix_shapes(&bytes, shape_of)
                .map_err(|e| wrong(e.to_string(), "export the model again"))?;
        }
        bytes = edit::normalise(&bytes, changes.mean, changes.scale).map_err(|e| {
            wrong(format!("--mean, --scale: {e}"), "leave them out and prepare the inputs when running")
        })?;
        let changed = (bytes != self.bytes).then_some(bytes);
        if changed.is_some() && !model.external.is_empty() {
            let message = format!("keeps constants in {}, and is to be changed", model.external.join(", "));
            return Err(wrong(message, "export the model as one file"));
        }
        let onnx = match &changed {
            Some(bytes) => Model::parse(bytes).map_err(|e| wrong(e.to_string(), "export the model again"))?,
            None => model.clone(),
        };
        let same =
            |n: u32| onnx.inputs.iter().all(|i| i.shape().and_then(|s| s.first().copied()) == Some(n.into()));
        Ok(Ready { changed, batch: changes.batch.filter(|&n| !same(n)), onnx: Some(onnx) })
    }

    /// The shape that an input has to be given; `None` where its own is fixed.
    fn new_shape(&self, model: &Model, input: &Tensor, changes: &Changes<'_>) -> Result<Option<Vec<u64>>> {
        let at = self.path.display();
        let wrong = |message: String, hint: String| {
            Failure::new(ErrorKind::InvalidInput, format!("{at}: {message}"), hint)
        };
        let asked = changes
            .shapes
            .iter()
            .find(|(name, _)| *name == input.name || (name.is_empty() && model.inputs.len() == 1));
        if let Some((_, shape)) = asked {
            let fits = input.dims.as_ref().is_none_or(|dims| {
                dims.len() == shape.len()
                    && dims
                        .iter()
                        .zip(shape)
                        .all(|(dim, &n)| matches!(dim, Dim::Open(_)) || *dim == Dim::Fixed(n))
            });
            if !fits {
                let asked: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
                return Err(wrong(
                    format!(
                        "--shape: expected {} for input {}, found {}",
                        input.text(),
                        input.name,
                        shape_text(&asked)
                    ),
                    "only open dimensions can be set; use --batch for the first".into(),
                ));
            }
            return Ok(Some(shape.clone()));
        }
        if input.shape().is_some() {
            return Ok(None);
        }
        let example = |dims: &[Dim]| {
            let size = |dim: &Dim| match dim {
                Dim::Fixed(n) => n.to_string(),
                Dim::Open(_) => "1".into(),
            };
            dims.iter().map(size).collect::<Vec<_>>().join("x")
        };
        let Some(dims) = &input.dims else {
            let message = format!("input {}: expected a fixed shape, found none", input.name);
            return Err(wrong(
                message,
                format!("give --shape {}=1x3x224x224 as the model needs it", input.name),
            ));
        };
        let mut dims = dims.clone();
        if let (Some(n), Some(first @ Dim::Open(_))) = (changes.batch, dims.first_mut()) {
            *first = Dim::Fixed(n.into());
        }
        let only_batch = matches!(dims.first(), Some(Dim::Open(_)))
            && dims[1..].iter().all(|d| matches!(d, Dim::Fixed(_)));
        let hint = if only_batch {
            "give --batch 1".to_owned()
        } else {
            format!("give --shape {}={} with the sizes that you need", input.name, example(&dims))
        };
        let fixed = Tensor { dims: Some(dims), ..input.clone() };
        let message = format!("input {}: expected a fixed shape, found {}", input.name, input.text());
        fixed.shape().map(Some).ok_or_else(|| wrong(message, hint))
    }

    /// The model with mean and scale in front, for a reference; `None` where nothing is asked for. Shapes stay open.
    #[cfg(feature = "openvino")]
    pub fn normalised(&self, changes: &Changes<'_>) -> Result<Option<Vec<u8>>> {
        if changes.mean.is_empty() && changes.scale.is_empty() {
            return Ok(None);
        }
        let wrong = |message: &str| {
            let message = format!("{}: {message}", self.path.display());
            Failure::new(ErrorKind::InvalidInput, message, "give the .onnx that the blob was compiled from")
        };
        match &self.onnx {
            Some(model) if model.external.is_empty() => {
                edit::normalise(&self.bytes, changes.mean, changes.scale).map(Some).map_err(|e| wrong(&e))
            }
            Some(_) => Err(wrong("keeps constants in other files, and is to be changed")),
            None => Err(wrong("only a .onnx can be changed")),
        }
    }

    /// The file's own bytes, where the model is ONNX and keeps everything in itself.
    #[cfg(feature = "openvino")]
    pub fn alone(&self) -> Option<(&[u8], &Model)> {
        self.onnx
            .as_ref()
            .filter(|model| model.external.is_empty())
            .map(|model| (self.bytes.as_slice(), model))
    }

    /// Everything that the blob depends on, for the cache.
    pub fn parts<'a>(&'a self, ready: &'a Ready) -> Vec<&'a [u8]> {
        let model = ready.changed.as_deref().unwrap_or(&self.bytes);
        std::iter::once(model).chain(self.beside.iter().map(Vec::as_slice)).collect()
    }

    /// The model's bytes as the compiler gets them.
    pub fn bytes<'a>(&'a self, ready: &'a Ready) -> &'a [u8] {
        ready.changed.as_deref().unwrap_or(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::edit::fix_shapes;

    fn source(open: bool) -> Source {
        let path = format!("{}/../../tests/data/onnx/tiny.onnx", env!("CARGO_MANIFEST_DIR"));
        let mut bytes = fs::read(&path).expect("committed");
        if open {
            // A size of 0 is how some exporters leave a dimension open.
            bytes = fix_shapes(&bytes, |_| Some(vec![0, 3, 32, 32])).expect("a model");
        }
        let onnx = Some(Model::parse(&bytes).expect("a model"));
        Source { path: path.into(), bytes, onnx, beside: Vec::new() }
    }

    fn refusal(result: Result<Ready>) -> String {
        match result {
            Err(Failure::Report(report)) => format!("{}; {}", report.message, report.hint),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn open_batch_is_refused_or_set() {
        let source = source(true);
        let text = refusal(source.prepare(&Changes::default()));
        assert!(text.contains("?x3x32x32") && text.contains("--batch 1"), "{text}");
        let ready = source.prepare(&Changes { batch: Some(4), ..Changes::default() }).expect("set");
        assert_eq!(ready.batch, None, "the model has it now");
        assert_eq!(ready.onnx.expect("onnx").inputs[0].shape(), Some(vec![4, 3, 32, 32]));
        assert!(ready.changed.is_some());
        let shapes = [(String::new(), vec![2, 3, 32, 32])];
        assert!(source.prepare(&Changes { shapes: &shapes, ..Changes::default() }).is_ok());
        let shapes = [("data".to_owned(), vec![2, 3, 32, 33])];
        let text = refusal(source.prepare(&Changes { shapes: &shapes, ..Changes::default() }));
        assert!(text.contains("2x3x32x33"), "{text}");
        let shapes = [("date".to_owned(), vec![2, 3, 32, 32])];
        let text =
            refusal(source.prepare(&Changes { shapes: &shapes, batch: Some(1), ..Changes::default() }));
        assert!(text.contains("named data, found date"), "{text}");
    }

    #[test]
    fn fixed_models_are_left_alone() {
        let source = source(false);
        let ready = source.prepare(&Changes { batch: Some(1), ..Changes::default() }).expect("fixed");
        assert_eq!((&ready.changed, ready.batch), (&None, None));
        let ready = source.prepare(&Changes { batch: Some(8), ..Changes::default() }).expect("fixed");
        assert_eq!((&ready.changed, ready.batch), (&None, Some(8)), "the compiler sets it");
        let text = refusal(source.prepare(&Changes { mean: &[1.0, 2.0], ..Changes::default() }));
        assert!(text.contains("1 or 3 values"), "{text}");
    }
}
