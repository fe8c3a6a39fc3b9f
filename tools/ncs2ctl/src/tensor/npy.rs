//! NumPy's `.npy`.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use ncs2::ErrorKind;
use npyz::{DType, NpyFile, TypeChar, TypeStr, WriterBuilder};

use super::{Array, Values, shape_text};
use crate::failure::{Failure, Result};

/// Reads a file.
pub fn read(path: &Path) -> Result<Array> {
    let bytes = fs::read(path).map_err(|e| Failure::file(path, "read", &e))?;
    parse(&bytes).map_err(|(expected, found)| {
        Failure::new(
            ErrorKind::InvalidInput,
            format!("{}: expected {expected}, found {found}", path.display()),
            "write it with numpy.save",
        )
    })
}

/// `(expected, found)` when the bytes are no array of numbers.
pub fn parse(bytes: &[u8]) -> Result<Array, (String, String)> {
    let bad = |found: String| ("a .npy array of numbers".to_owned(), found);
    let file = NpyFile::new(bytes).map_err(|e| {
        if bytes.starts_with(b"\x93NUMPY") {
            bad(format!("a damaged header ({e})"))
        } else {
            bad("another kind of file".into())
        }
    })?;
    let DType::Plain(kind) = file.dtype() else { return Err(bad("records".into())) };
    let shape = file
        .shape()
        .iter()
        .map(|&d| usize::try_from(d).ok())
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| bad("a dimension beyond this machine".into()))?;
    let fortran = file.order() == npyz::Order::Fortran;
    // The header is the file's claim; check it against what is there before memory is set aside for it.
    let promised = shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .and_then(|n| n.checked_mul(kind.num_bytes()?));
    let header = header_bytes(bytes);
    let there = bytes.len().saturating_sub(header);
    match promised {
        Some(n) if n == there => {}
        Some(n) => {
            return Err((
                format!("{n} bytes of {kind} {} values", shape_text(&shape)),
                format!("{there} bytes"),
            ));
        }
        None => return Err(bad(format!("shape {}", shape_text(&shape)))),
    }
    let values = values(file, &kind).ok_or_else(|| bad(format!("type {kind}")))?;
    let values = values.map_err(|e| bad(format!("damaged data ({e})")))?;
    let array = Array { shape, values };
    Ok(if fortran { from_fortran(array) } else { array })
}

/// Bytes of data that a header promises; `(expected, found)` for one that is none.
pub fn data_bytes(header: &[u8]) -> Result<usize, (String, String)> {
    let bad = |found: String| ("a .npy array of numbers".to_owned(), found);
    let file = NpyFile::new(header).map_err(|e| bad(format!("a damaged header ({e})")))?;
    let DType::Plain(kind) = file.dtype() else { return Err(bad("records".into())) };
    file.shape()
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?))
        .and_then(|n| n.checked_mul(kind.num_bytes()?))
        .ok_or_else(|| bad("more values than fit memory".into()))
}

/// Bytes before the data: magic, version, length field, header.
pub fn header_bytes(bytes: &[u8]) -> usize {
    match (bytes.get(6), bytes.get(8..12)) {
        (Some(1), Some(n)) => 10 + usize::from(u16::from_le_bytes([n[0], n[1]])),
        (Some(_), Some(n)) => 12 + u32::from_le_bytes([n[0], n[1], n[2], n[3]]) as usize,
        _ => bytes.len(),
    }
}

/// `None` for a type that is no number we can use.
fn values(file: NpyFile<&[u8]>, kind: &TypeStr) -> Option<io::Result<Values>> {
    fn wide<T: npyz::Deserialize + Into<i64>>(file: NpyFile<&[u8]>) -> io::Result<Values> {
        file.into_vec::<T>().map(|v| Values::I64(v.into_iter().map(Into::into).collect()))
    }
    Some(match (kind.type_char(), kind.size_field()) {
        (TypeChar::Float, 2) => file.into_vec().map(Values::F16),
        (TypeChar::Float, 4) => file.into_vec().map(Values::F32),
        (TypeChar::Float, 8) => file.into_vec().map(Values::F64),
        (TypeChar::Uint, 1) => file.into_vec().map(Values::U8),
        (TypeChar::Int, 1) => file.into_vec().map(Values::I8),
        (TypeChar::Bool, 1) => {
            file.into_vec::<bool>().map(|v| Values::U8(v.into_iter().map(u8::from).collect()))
        }
        (TypeChar::Int, 4) => file.into_vec().map(Values::I32),
        (TypeChar::Int, 8) => file.into_vec().map(Values::I64),
        (TypeChar::Int, 2) => wide::<i16>(file),
        (TypeChar::Uint, 2) => wide::<u16>(file),
        (TypeChar::Uint, 4) => wide::<u32>(file),
        _ => return None,
    })
}

/// Reorders from column-major.
fn from_fortran(array: Array) -> Array {
    let Array { shape, values } = array;
    let mut source = Vec::with_capacity(values.len());
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = 1;
    for &d in &shape {
        strides.push(stride);
        stride *= d;
    }
    for n in 0..values.len() {
        let (mut rest, mut at) = (n, 0);
        for (&d, &s) in shape.iter().zip(&strides).rev() {
            at += rest % d * s;
            rest /= d;
        }
        source.push(at);
    }
    fn pick<T: Copy>(v: &[T], source: &[usize]) -> Vec<T> {
        source.iter().map(|&at| v[at]).collect()
    }
    let values = match &values {
        Values::F16(v) => Values::F16(pick(v, &source)),
        Values::F32(v) => Values::F32(pick(v, &source)),
        Values::F64(v) => Values::F64(pick(v, &source)),
        Values::U8(v) => Values::U8(pick(v, &source)),
        Values::I8(v) => Values::I8(pick(v, &source)),
        Values::I32(v) => Values::I32(pick(v, &source)),
        Values::I64(v) => Values::I64(pick(v, &source)),
    };
    Array { shape, values }
}

/// Writes a file in the values' own type.
pub fn write(path: &Path, array: &Array) -> Result {
    let mut bytes = Vec::new();
    encode(array, &mut bytes).map_err(|e| Failure::file(path, "write", &e))?;
    let mut file = fs::File::create(path).map_err(|e| Failure::file(path, "write", &e))?;
    file.write_all(&bytes).map_err(|e| Failure::file(path, "write", &e))
}

pub fn encode(array: &Array, to: &mut Vec<u8>) -> io::Result<()> {
    fn put<T: npyz::AutoSerialize + Copy>(values: &[T], shape: &[u64], to: &mut Vec<u8>) -> io::Result<()> {
        let mut writer = npyz::WriteOptions::new().default_dtype().shape(shape).writer(to).begin_nd()?;
        writer.extend(values.iter().copied())?;
        writer.finish()
    }
    let shape: Vec<u64> = array.shape.iter().map(|&d| d as u64).collect();
    match &array.values {
        Values::F16(v) => put(v, &shape, to),
        Values::F32(v) => put(v, &shape, to),
        Values::F64(v) => put(v, &shape, to),
        Values::U8(v) => put(v, &shape, to),
        Values::I8(v) => put(v, &shape, to),
        Values::I32(v) => put(v, &shape, to),
        Values::I64(v) => put(v, &shape, to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn array_survives_the_file() {
        let array =
            Array { shape: vec![1, 2], values: Values::F16(vec![half::f16::ONE, half::f16::NEG_INFINITY]) };
        let mut bytes = Vec::new();
        encode(&array, &mut bytes).expect("memory takes it");
        assert_eq!(parse(&bytes).expect("just written"), array);
    }

    #[test]
    fn column_major_is_reordered() {
        let array = Array { shape: vec![2, 3], values: Values::U8(vec![1, 4, 2, 5, 3, 6]) };
        assert_eq!(from_fortran(array).values, Values::U8(vec![1, 2, 3, 4, 5, 6]));
    }

    #[test]
    fn damaged_files_are_refused() {
        let array = Array { shape: vec![4], values: Values::F32(vec![0.0; 4]) };
        let mut bytes = Vec::new();
        encode(&array, &mut bytes).expect("memory takes it");
        for cut in 0..bytes.len() {
            assert!(parse(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(parse(b"not an array").is_err());
        // A header that promises far more than is there must not cost memory.
        let mut huge = b"\x93NUMPY\x01\x00".to_vec();
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }\n";
        huge.extend((header.len() as u16).to_le_bytes());
        huge.extend(header.as_bytes());
        let (expected, found) = parse(&huge).expect_err("no data");
        assert_eq!(
            (expected.as_str(), found.as_str()),
            ("399999999996 bytes of <f4 99999999999 values", "0 bytes")
        );
    }
}
