//! What goes into inferences: files or random numbers, laid out as whole input elements of the blob.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ncs2::ErrorKind;
use ncs2::blob::{DataType, Graph, IoTensor};

use super::{Array, Values, image, layout, npy, shape_text};
use crate::failure::{Failure, Result};
use crate::flags::ImageArgs;

/// What pictures are read from.
const PICTURES: [&str; 3] = ["png", "jpg", "jpeg"];
/// What inputs are read from.
const EXTENSIONS: [&str; 6] = ["npy", "bin", "raw", "png", "jpg", "jpeg"];

/// The input of one inference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Element {
    /// Where it came from, for reports: file names or `random 7`.
    pub source: String,
    /// Exactly [`Graph::input_bytes`].
    pub bytes: Vec<u8>,
}

/// Inputs from `[NAME=]FILE` arguments. A file of several elements, and several files, are several inferences.
pub fn from_files(graph: &Graph, arguments: &[OsString], args: &ImageArgs) -> Result<Vec<Element>> {
    // Per input: the packed batch elements with their sources, in the order given.
    let mut given: Vec<Vec<(String, Vec<u8>)>> = vec![Vec::new(); graph.inputs.len()];
    for argument in arguments {
        let (index, file) = target(&graph.inputs, argument, "input")?;
        let tensor = &graph.inputs[index];
        let size = layout::elements(tensor) * tensor.dtype.bytes();
        for path in files(file)? {
            let packed = read(&path, tensor, args)?;
            let source = path.display().to_string();
            given[index].extend(packed.chunks_exact(size).map(|element| (source.clone(), element.to_vec())));
        }
    }
    let names = || graph.inputs.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(missing) = given.iter().position(Vec::is_empty) {
        return Err(Failure::new(
            ErrorKind::InvalidInput,
            format!("input {}: expected a file, found none", graph.inputs[missing].name),
            format!("give --input NAME=FILE for each of {}", names()),
        ));
    }
    let count = given.first().map_or(0, Vec::len);
    if given.iter().any(|elements| elements.len() != count) {
        let found: Vec<String> = given.iter().map(|elements| elements.len().to_string()).collect();
        return Err(Failure::new(
            ErrorKind::InvalidInput,
            format!("inputs {}: expected as many elements of each, found {}", names(), found.join(", ")),
            "give each input as often",
        ));
    }
    let batch = graph.batch.max(1) as usize;
    if !count.is_multiple_of(batch) {
        return Err(Failure::new(
            ErrorKind::InvalidInput,
            format!("inputs {}: expected a multiple of the batch size {batch}, found {count}", names()),
            format!("give {batch} elements for each inference"),
        ));
    }
    Ok((0..count / batch).map(|n| assemble(graph, &given, n * batch, batch)).collect())
}

/// The file itself, or all files of a folder that can be inputs, by name.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|e| Failure::file(path, "read", &e))?;
    let known = |path: &PathBuf| path.is_file() && EXTENSIONS.contains(&&*extension(path));
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(known).collect();
    files.sort();
    if files.is_empty() {
        return Err(Failure::new(
            ErrorKind::InvalidInput,
            format!("{}: expected .npy, .bin, .png or .jpg files in the folder, found none", path.display()),
            "folders below it are not searched",
        ));
    }
    Ok(files)
}

fn extension(path: &Path) -> String {
    path.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase).unwrap_or_default()
}

/// One of the files that the arguments name is a picture.
pub fn has_picture(graph: &Graph, arguments: &[OsString]) -> Result<bool> {
    for argument in arguments {
        let (_, file) = target(&graph.inputs, argument, "input")?;
        if files(file)?.iter().any(|path| PICTURES.contains(&&*extension(path))) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Flags that prepare pictures would do nothing to arrays and random numbers: whoever gives them expects something.
pub fn refuse_idle_flags(graph: &Graph, arguments: &[OsString], args: &ImageArgs) -> Result {
    match args.first() {
        Some(flag) if !has_picture(graph, arguments)? => Err(Failure::usage(
            format!("{flag}: expected a picture among the inputs, found none"),
            "leave it out, or give a .png or .jpg: arrays and random numbers go in as they are",
        )),
        _ => Ok(()),
    }
}

/// One inference from the packed values of every input, in their order, all batch elements of each one behind the other.
pub fn from_packed(graph: &Graph, source: &str, packed: &[Vec<u8>]) -> Element {
    let batch = graph.batch.max(1) as usize;
    let given: Vec<Vec<(String, Vec<u8>)>> = packed
        .iter()
        .map(|bytes| {
            let size = (bytes.len() / batch).max(1);
            bytes.chunks_exact(size).map(|element| (source.to_owned(), element.to_vec())).collect()
        })
        .collect();
    assemble(graph, &given, 0, batch)
}

/// Lays batch elements `first..first + batch` of every input into one element.
fn assemble(graph: &Graph, given: &[Vec<(String, Vec<u8>)>], first: usize, batch: usize) -> Element {
    let mut bytes = vec![0; graph.input_bytes];
    let mut sources: Vec<&str> = Vec::new();
    for (tensor, elements) in graph.inputs.iter().zip(given) {
        for (b, (source, packed)) in elements[first..first + batch].iter().enumerate() {
            layout::scatter(tensor, packed, &mut bytes[tensor.offset + b * tensor.bytes()..]);
            if !sources.contains(&source.as_str()) {
                sources.push(source);
            }
        }
    }
    Element { source: sources.join(", "), bytes }
}

/// Which tensor an argument `[NAME=]FILE` is for, and the file.
pub fn target<'a>(tensors: &[IoTensor], argument: &'a OsStr, what: &str) -> Result<(usize, &'a Path)> {
    let names = || tensors.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", ");
    // Paths are bytes: not every one is UTF-8.
    let bytes = argument.as_bytes();
    if let Some(at) = bytes.iter().position(|&b| b == b'=') {
        let (name, file) = (&bytes[..at], &bytes[at + 1..]);
        if let Some(index) = tensors.iter().position(|t| t.name.as_bytes() == name) {
            return Ok((index, Path::new(OsStr::from_bytes(file))));
        }
        // A path may hold an equals sign; only where it is no file is it a name that does not exist.
        if !Path::new(argument).exists() {
            let name = String::from_utf8_lossy(name);
            return Err(Failure::new(
                ErrorKind::InvalidInput,
                format!("{}: expected an {what} named {}, found {name}", argument.display(), names()),
                "see `ncs2ctl blob info`",
            ));
        }
    }
    match tensors {
        [_] => Ok((0, Path::new(argument))),
        _ => Err(Failure::new(
            ErrorKind::InvalidInput,
            format!(
                "{}: expected NAME=FILE for one of the {what}s {}, found no name",
                argument.display(),
                names()
            ),
            format!("put the {what}'s name before the file"),
        )),
    }
}

/// Reads a file as packed elements of the tensor's own type.
fn read(path: &Path, tensor: &IoTensor, args: &ImageArgs) -> Result<Vec<u8>> {
    let extension = extension(path);
    match extension.as_str() {
        "npy" => pack(path, &npy::read(path)?, tensor),
        "png" | "jpg" | "jpeg" => image::read(path, tensor, args),
        "bin" | "raw" => raw(path, tensor),
        _ => {
            // A file that is not there is the likelier mistake, and deserves its own words.
            std::fs::metadata(path).map_err(|e| Failure::file(path, "read", &e))?;
            let found = if path.is_dir() {
                "a folder".to_owned()
            } else if extension.is_empty() {
                "no extension".to_owned()
            } else {
                format!(".{extension}")
            };
            Err(Failure::new(
                ErrorKind::InvalidInput,
                format!("{}: expected a .npy, .bin, .png or .jpg file, found {found}", path.display()),
                "convert the input, .npy keeps shape and type",
            ))
        }
    }
}

fn raw(path: &Path, tensor: &IoTensor) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(|e| Failure::file(path, "read", &e))?;
    let size = layout::elements(tensor) * tensor.dtype.bytes();
    if bytes.is_empty() || !bytes.len().is_multiple_of(size) {
        return Err(Failure::new(
            ErrorKind::InvalidInput,
            format!(
                "{}: expected {size} bytes ({} {}) or a multiple for input {}, found {}",
                path.display(),
                tensor.dtype.as_str(),
                shape_text(&layout::shape(tensor)),
                tensor.name,
                bytes.len()
            ),
            "see `ncs2ctl blob info`",
        ));
    }
    Ok(bytes)
}

/// Checks shape and type, converts.
pub fn pack(path: &Path, array: &Array, tensor: &IoTensor) -> Result<Vec<u8>> {
    let shape = layout::shape(tensor);
    if !is_stack_of(&array.shape, &shape) {
        return Err(Failure::new(
            ErrorKind::InvalidInput,
            format!(
                "{}: expected shape {} for input {}, found {}",
                path.display(),
                shape_text(&shape),
                tensor.name,
                shape_text(&array.shape)
            ),
            "reshape it; several elements go along the first dimension",
        ));
    }
    array.values.encode(tensor.dtype).map_err(|(expected, found)| {
        Failure::new(
            ErrorKind::InvalidInput,
            format!("{}: expected {expected} for input {}, found {found}", path.display(), tensor.name),
            format!("convert it to {}", tensor.dtype.as_str()),
        )
    })
}

/// True where `found` is `shape`, with or without its leading ones, once or stacked along leading dimensions.
fn is_stack_of(found: &[usize], shape: &[usize]) -> bool {
    let core = &shape[shape.iter().take_while(|&&d| d == 1).count()..];
    let ones = found.iter().take_while(|&&d| d == 1).count();
    // An array with fewer dimensions than the core cannot end with it.
    !found.contains(&0) && (found.ends_with(core) || found[ones..] == *core)
}

/// `count` different random inputs, the same for the same seed: floats in −1..1, integers over their whole range.
pub fn random(graph: &Graph, seed: u64, count: usize) -> Vec<Element> {
    let batch = graph.batch.max(1) as usize;
    (0..count)
        .map(|n| {
            let mut numbers = SplitMix(seed ^ (n as u64).wrapping_mul(0xd6e8_feb8_6659_fd93));
            let given: Vec<Vec<(String, Vec<u8>)>> = graph
                .inputs
                .iter()
                .map(|t| {
                    (0..batch).map(|_| (format!("random {seed}"), random_tensor(t, &mut numbers))).collect()
                })
                .collect();
            assemble(graph, &given, 0, batch)
        })
        .collect()
}

fn random_tensor(tensor: &IoTensor, numbers: &mut SplitMix) -> Vec<u8> {
    let count = layout::elements(tensor);
    let mut unit = || (numbers.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    let values = match tensor.dtype {
        DataType::F16 => Values::F16((0..count).map(|_| half::f16::from_f32(unit())).collect()),
        DataType::F32 => Values::F32((0..count).map(|_| unit()).collect()),
        DataType::U8 => Values::U8((0..count).map(|_| (numbers.next() >> 56) as u8).collect()),
        DataType::I8 => Values::I8((0..count).map(|_| (numbers.next() >> 56) as i8).collect()),
        DataType::S32 => Values::I32((0..count).map(|_| (numbers.next() >> 32) as i32).collect()),
    };
    values.encode(tensor.dtype).expect("values were made in the tensor's own type")
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and its sequence will never change under our feet.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_may_miss_ones_or_be_stacked() {
        let net = [1, 3, 4, 4];
        for good in [&[1, 3, 4, 4][..], &[3, 4, 4], &[5, 3, 4, 4], &[1, 1, 3, 4, 4], &[2, 5, 3, 4, 4]] {
            assert!(is_stack_of(good, &net), "{good:?}");
        }
        for bad in [&[4, 4][..], &[1, 4, 4, 3], &[48], &[0, 3, 4, 4], &[]] {
            assert!(!is_stack_of(bad, &net), "{bad:?}");
        }
        assert!(is_stack_of(&[784], &[1, 784]));
        assert!(is_stack_of(&[8, 1, 32], &[8, 1, 32]));
        assert!(!is_stack_of(&[16, 1, 32], &[8, 1, 32]), "8 is the sequence, not the batch");
        assert!(is_stack_of(&[1, 10], &[1, 1, 10]));
    }

    #[test]
    fn splitmix_is_the_published_sequence() {
        let mut numbers = SplitMix(1_234_567);
        assert_eq!(numbers.next(), 6_457_827_717_110_365_317);
        assert_eq!(numbers.next(), 3_203_168_211_198_807_973);
    }
}
