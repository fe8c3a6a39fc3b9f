//! Arrays, tensors and files that the tests of the `execute` engine share.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use half::f16;
use ncs2::blob::{DataType, Graph, IoTensor};
use npyz::{DType, NpyFile};

/// Largest accepted difference, of the largest reference value: FP16 storage explains 0.4 %.
pub const TOLERANCE: f32 = 0.01;

/// A folder of the committed test data.
pub fn data(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(folder)
}

/// All compiled graphs of a folder, in order of their names.
pub fn blobs(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("folder can be listed").path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "blob"));
    paths.sort();
    paths
}

/// Shape and values of an array file; `None` when there is no such file.
pub fn array(path: &Path) -> Option<(Vec<u64>, Vec<f32>)> {
    let file = NpyFile::new(BufReader::new(File::open(path).ok()?)).expect("an array file");
    let shape = file.shape().to_vec();
    let DType::Plain(dtype) = file.dtype() else { panic!("{}: structured array", path.display()) };
    let values = match dtype.to_string().trim_start_matches(['<', '|', '>']) {
        "f2" => file.into_vec::<f16>().expect("f16 array").into_iter().map(f16::to_f32).collect(),
        "f4" => file.into_vec::<f32>().expect("f32 array"),
        "u1" => file.into_vec::<u8>().expect("u8 array").into_iter().map(f32::from).collect(),
        "b1" => {
            file.into_vec::<bool>().expect("bool array").into_iter().map(|v| f32::from(u8::from(v))).collect()
        }
        "i4" => file.into_vec::<i32>().expect("i32 array").into_iter().map(|v| v as f32).collect(),
        other => panic!("{}: element type {other}", path.display()),
    };
    Some((shape, values))
}

/// The array file of a tensor.
pub fn beside(blob: &Path, way: &str, tensor: &str) -> PathBuf {
    PathBuf::from(format!("{}.{way}.{tensor}.npy", blob.with_extension("").display()))
}

/// Byte offsets of a tensor's elements in the order of its shape (row-major), batch first.
pub fn positions(tensor: &IoTensor, batch: usize) -> Vec<usize> {
    let order: Vec<usize> = if tensor.dims.len() >= 6 {
        (0..tensor.dims.len()).rev().collect()
    } else {
        [4, 3, 5, 2, 1].into_iter().filter_map(|digit| tensor.order.position(digit)).collect()
    };
    let mut at: Vec<usize> = (0..batch).map(|b| tensor.offset + b * tensor.bytes()).collect();
    for d in order {
        let (dim, stride) = (tensor.dims[d] as usize, tensor.strides[d] as usize);
        at = at.into_iter().flat_map(|base| (0..dim).map(move |i| base + i * stride)).collect();
    }
    at
}

/// Writes values to a tensor of an element.
pub fn pack(tensor: &IoTensor, batch: usize, values: &[f32], element: &mut [u8]) {
    let at = positions(tensor, batch);
    assert_eq!(at.len(), values.len(), "elements of input {}", tensor.name);
    for (&at, &value) in at.iter().zip(values) {
        match tensor.dtype {
            DataType::F16 => element[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            DataType::F32 => element[at..at + 4].copy_from_slice(&value.to_le_bytes()),
            DataType::S32 => element[at..at + 4].copy_from_slice(&(value as i32).to_le_bytes()),
            DataType::U8 => element[at] = value as u8,
            DataType::I8 => element[at] = value as i8 as u8,
        }
    }
}

/// Values of a tensor of an element.
pub fn unpack(tensor: &IoTensor, batch: usize, element: &[u8]) -> Vec<f32> {
    let word = |at: usize| [element[at], element[at + 1], element[at + 2], element[at + 3]];
    let value = |at: usize| match tensor.dtype {
        DataType::F16 => f16::from_le_bytes([element[at], element[at + 1]]).to_f32(),
        DataType::F32 => f32::from_le_bytes(word(at)),
        DataType::S32 => i32::from_le_bytes(word(at)) as f32,
        DataType::U8 => f32::from(element[at]),
        DataType::I8 => f32::from(element[at] as i8),
    };
    positions(tensor, batch).into_iter().map(value).collect()
}

/// Index of the largest value.
pub fn top(values: &[f32]) -> usize {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap_or(0)
}

/// The input element of a blob from the arrays beside it.
pub fn input_of(path: &Path, graph: &Graph) -> Option<Vec<u8>> {
    let mut element = vec![0; graph.input_bytes];
    for tensor in &graph.inputs {
        let file = beside(path, "in", &tensor.name);
        let (_, values) = array(&file)?;
        if tensor.dtype == DataType::S32 {
            let at = positions(tensor, graph.batch as usize);
            for (at, value) in at.into_iter().zip(exact(&file)) {
                element[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            continue;
        }
        pack(tensor, graph.batch as usize, &values, &mut element);
    }
    Some(element)
}

/// Largest difference in parts of the largest reference value; infinite where a number is none.
pub fn error(values: &[f32], reference: &[f32]) -> f32 {
    let largest = reference.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    values.iter().zip(reference).fold(0f32, |m, (a, b)| {
        let error = (a - b).abs() / largest;
        if error.is_nan() { f32::INFINITY } else { m.max(error) }
    })
}

/// The integers of an S32 tensor of an element.
pub fn integers(tensor: &IoTensor, batch: usize, element: &[u8]) -> Vec<i32> {
    let word =
        |at: usize| i32::from_le_bytes([element[at], element[at + 1], element[at + 2], element[at + 3]]);
    positions(tensor, batch).into_iter().map(word).collect()
}

/// An array of 32-bit integers, or of booleans, bit by bit.
pub fn exact(path: &Path) -> Vec<i32> {
    let file = NpyFile::new(BufReader::new(File::open(path).expect("an array file"))).expect("an array file");
    match file.dtype() {
        DType::Plain(dtype) if dtype.to_string().ends_with("i4") => file.into_vec().expect("i32 array"),
        _ => array(path).expect("an array file").1.into_iter().map(|v| v as i32).collect(),
    }
}
