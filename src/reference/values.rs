//! Values to tensor bytes and back.

use half::f16;
use openvino::ElementType;

/// Little-endian bytes of values in an element type; `None` for a type that is not known here. Integers are rounded and
/// held within their range.
pub(super) fn encode(element: ElementType, values: &[f64]) -> Option<Vec<u8>> {
    fn each<const N: usize>(values: &[f64], to: impl Fn(f64) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(|&v| to(v)).collect()
    }
    Some(match element {
        ElementType::F16 => each(values, |v| f16::from_f64(v).to_le_bytes()),
        ElementType::F32 => each(values, |v| (v as f32).to_le_bytes()),
        ElementType::F64 => each(values, f64::to_le_bytes),
        ElementType::U8 => each(values, |v| [v.round() as u8]),
        ElementType::I8 => each(values, |v| (v.round() as i8).to_le_bytes()),
        ElementType::I32 => each(values, |v| (v.round() as i32).to_le_bytes()),
        ElementType::I64 => each(values, |v| (v.round() as i64).to_le_bytes()),
        ElementType::Boolean => each(values, |v| [u8::from(v != 0.0)]),
        _ => return None,
    })
}

/// The values of a tensor; `None` for a type that is not known here.
pub(super) fn decode(element: ElementType, bytes: &[u8]) -> Option<Vec<f64>> {
    fn each<const N: usize>(bytes: &[u8], from: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.as_chunks::<N>().0.iter().map(|&b| from(b)).collect()
    }
    Some(match element {
        ElementType::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f64()),
        ElementType::F32 => each(bytes, |b| f32::from_le_bytes(b).into()),
        ElementType::F64 => each(bytes, f64::from_le_bytes),
        ElementType::U8 | ElementType::Boolean => each(bytes, |[b]| b.into()),
        ElementType::I8 => each(bytes, |b| i8::from_le_bytes(b).into()),
        ElementType::I32 => each(bytes, |b| i32::from_le_bytes(b).into()),
        ElementType::I64 => each(bytes, |b| i64::from_le_bytes(b) as f64),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_every_type_that_holds_them() {
        use ElementType as T;
        let values = [0.0, 1.0, 100.0];
        for element in [T::F16, T::F32, T::F64, T::U8, T::I8, T::I32, T::I64] {
            let bytes = encode(element, &values).expect("known");
            assert_eq!(decode(element, &bytes), Some(values.to_vec()), "{element}");
        }
        assert_eq!(encode(T::U8, &[-4.0, 300.0, 1.6]), Some(vec![0, 255, 2]));
        assert_eq!(encode(T::String, &values), None);
    }
}
