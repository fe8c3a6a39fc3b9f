//! Numbers of every type that arrays and networks have, and the conversions that lose nothing by surprise.

use half::f16;
use ncs2::blob::DataType;

/// Numbers of one type.
#[derive(Clone, PartialEq, Debug)]
pub enum Values {
    /// Half.
    F16(Vec<f16>),
    /// Single.
    F32(Vec<f32>),
    /// Double; no network takes it, files hold it.
    F64(Vec<f64>),
    /// Bytes.
    U8(Vec<u8>),
    /// Signed bytes.
    I8(Vec<i8>),
    /// 32 bits.
    I32(Vec<i32>),
    /// All other integers.
    I64(Vec<i64>),
}

impl Values {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Values::F16(v) => v.len(),
            Values::F32(v) => v.len(),
            Values::F64(v) => v.len(),
            Values::U8(v) => v.len(),
            Values::I8(v) => v.len(),
            Values::I32(v) => v.len(),
            Values::I64(v) => v.len(),
        }
    }

    /// `f16`, `u8`…
    pub fn type_name(&self) -> &'static str {
        match self {
            Values::F16(_) => "f16",
            Values::F32(_) => "f32",
            Values::F64(_) => "f64",
            Values::U8(_) => "u8",
            Values::I8(_) => "i8",
            Values::I32(_) => "i32",
            Values::I64(_) => "i64",
        }
    }

    fn is_float(&self) -> bool {
        matches!(self, Values::F16(_) | Values::F32(_) | Values::F64(_))
    }

    /// As doubles, which hold every value of every network type exactly.
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Values::F16(v) => v.iter().map(|x| x.to_f64()).collect(),
            Values::F32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Values::F64(v) => v.clone(),
            Values::U8(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Values::I8(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Values::I32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Values::I64(v) => v.iter().map(|&x| x as f64).collect(),
        }
    }

    /// Little-endian bytes of the network's type, or `(expected, found)` where a value would be lost.
    ///
    /// Floats may be rounded to a narrower float, that is what compiling to FP16 means; they may not overflow it, and
    /// they never become integers. Integers go wherever they fit exactly.
    pub fn encode(&self, dtype: DataType) -> Result<Vec<u8>, (String, String)> {
        match (dtype, self) {
            // The common ways, without a detour.
            (DataType::U8, Values::U8(v)) => return Ok(v.clone()),
            (DataType::F16, Values::F16(v)) => return Ok(v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            (DataType::F32, Values::F32(v)) => return Ok(v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            _ => {}
        }
        let name = dtype.as_str();
        let integer = !matches!(dtype, DataType::F16 | DataType::F32);
        if integer && self.is_float() {
            return Err((format!("{name} values"), format!("{} values", self.type_name())));
        }
        let numbers = self.to_f64();
        let lost = |n: usize, x: f64| (format!("values that fit {name}"), format!("{x} at index {n}"));
        let mut out = Vec::with_capacity(numbers.len() * dtype.bytes());
        for (n, &x) in numbers.iter().enumerate() {
            let fits = match dtype {
                DataType::F16 => {
                    let y = f16::from_f64(x);
                    out.extend(y.to_le_bytes());
                    if self.is_float() { y.is_finite() || !x.is_finite() } else { y.to_f64() == x }
                }
                DataType::F32 => {
                    let y = x as f32;
                    out.extend(y.to_le_bytes());
                    if self.is_float() { y.is_finite() || !x.is_finite() } else { f64::from(y) == x }
                }
                DataType::U8 => {
                    out.push(x as u8);
                    f64::from(x as u8) == x
                }
                DataType::I8 => {
                    out.extend((x as i8).to_le_bytes());
                    f64::from(x as i8) == x
                }
                DataType::S32 => {
                    out.extend((x as i32).to_le_bytes());
                    f64::from(x as i32) == x
                }
            };
            if !fits {
                return Err(lost(n, x));
            }
        }
        Ok(out)
    }

    /// From little-endian bytes of a network's type; a rest shorter than an element is ignored.
    pub fn decode(dtype: DataType, bytes: &[u8]) -> Values {
        fn each<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
            bytes.as_chunks::<N>().0.iter().map(|&c| f(c)).collect()
        }
        match dtype {
            DataType::F16 => Values::F16(each(bytes, f16::from_le_bytes)),
            DataType::F32 => Values::F32(each(bytes, f32::from_le_bytes)),
            DataType::S32 => Values::I32(each(bytes, i32::from_le_bytes)),
            DataType::U8 => Values::U8(bytes.to_vec()),
            DataType::I8 => Values::I8(each(bytes, i8::from_le_bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_round_to_half_but_do_not_overflow_or_become_integers() {
        let values = Values::F32(vec![0.1, 65504.0]);
        let bytes = values.encode(DataType::F16).expect("both fit");
        assert_eq!(Values::decode(DataType::F16, &bytes).to_f64()[1], 65504.0);
        let (_, found) = Values::F32(vec![0.0, 1e6]).encode(DataType::F16).expect_err("overflow");
        assert_eq!(found, "1000000 at index 1");
        let (expected, found) = Values::F32(vec![1.0]).encode(DataType::U8).expect_err("wrong type");
        assert_eq!((expected.as_str(), found.as_str()), ("u8 values", "f32 values"));
        assert!(Values::F32(vec![f32::INFINITY]).encode(DataType::F16).is_ok(), "infinity is the user's own");
    }

    #[test]
    fn integers_go_where_they_fit_exactly() {
        assert_eq!(Values::I64(vec![0, 255]).encode(DataType::U8), Ok(vec![0, 255]));
        assert!(Values::I64(vec![256]).encode(DataType::U8).is_err());
        assert!(Values::I64(vec![-1]).encode(DataType::U8).is_err());
        assert!(Values::I32(vec![2049]).encode(DataType::F16).is_err(), "f16 has 11 bits");
        assert!(Values::U8(vec![255]).encode(DataType::F16).is_ok());
        assert_eq!(Values::I64(vec![-2]).encode(DataType::S32), Ok((-2i32).to_le_bytes().to_vec()));
    }
}
