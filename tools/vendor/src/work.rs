//! What both clients are given to compute.

use half::f16;
use ncs2::blob::{Blob, DataType};

/// `count` elements of type `kind` by a rule of `seed`: the same that `client.py` makes. Bytes, or small numbers around 0.
fn numbers(kind: DataType, count: usize, seed: u64) -> Vec<u8> {
    let raw = (0..count as u64).map(|at| ((at * 31 + seed * 7 + seed / 251) % 256) as u8);
    let real = |byte: u8| (f32::from(byte) - 128.0) / 256.0;
    match kind {
        DataType::F16 => raw.flat_map(|b| f16::from_f32(real(b)).to_le_bytes()).collect(),
        DataType::F32 => raw.flat_map(|b| real(b).to_le_bytes()).collect(),
        _ => raw.collect(),
    }
}

/// The whole input element of inference `n`: every tensor has a rule of its own, by the order of their names.
pub(crate) fn input(blob: &Blob, n: u64) -> Vec<u8> {
    let graph = blob.graph();
    let mut element = vec![0; graph.input_bytes];
    let mut tensors: Vec<_> = graph.inputs.iter().collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    for (tensor, seed) in tensors.into_iter().zip((0..).map(|at| n + at * 100)) {
        let bytes = tensor.bytes() * graph.batch.max(1) as usize;
        let data = numbers(tensor.dtype, bytes / tensor.dtype.bytes(), seed);
        if let Some(place) = element.get_mut(tensor.offset..tensor.offset + bytes) {
            place.copy_from_slice(&data);
        }
    }
    element
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_rule() {
        assert_eq!(numbers(DataType::U8, 3, 1), [7, 38, 69]);
        assert_eq!(numbers(DataType::F32, 1, 0), (-0.5f32).to_le_bytes());
        assert_eq!(numbers(DataType::F16, 1, 0), f16::from_f32(-0.5).to_le_bytes());
    }
}
