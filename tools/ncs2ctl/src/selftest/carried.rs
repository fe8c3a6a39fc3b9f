//! The graphs that the tool carries for selftests, and what they must answer: the `execute` engine of the virtual stick
//! computes any input on the CPU; its own answers are tested against the OpenVINO CPU plugin.

use half::f16;
use ncs2::blob::{DataType, Graph, IoTensor};
use ncs2_device::execute::Program;

/// Largest error, as a share of the largest value of an output.
pub const TOLERANCE: f64 = 0.01;

/// A carried graph, ready.
pub struct Carried {
    /// Its name.
    pub name: &'static str,
    /// The file.
    pub blob: Vec<u8>,
    /// What it says.
    pub graph: Graph,
    program: Program,
}

/// How close an output is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Closeness {
    /// Largest difference over the largest expected value.
    pub error: f64,
    /// Within [`TOLERANCE`].
    pub good: bool,
}

macro_rules! file {
    ($path:literal) => {
        include_bytes!(concat!("../../../../tests/data/", $path)).to_vec()
    };
}

/// Few weights, one kilobyte or so in, 20 bytes out.
pub fn tiny() -> Carried {
    Carried::new("tiny", file!("models/tiny_fp16_s1.blob"))
}

/// Fully connected layers.
pub fn mlp() -> Carried {
    Carried::new("mlp", file!("models/mlp_fp16_s1.blob"))
}

/// A classifier of 2.5 MB.
pub fn squeezenet() -> Carried {
    Carried::new("squeezenet1_1", file!("models/squeezenet1_1_u8_s1.blob"))
}

/// Convolutions whose output is made to fill its last packet at every speed: a batch of 4.
pub fn full_packets() -> Carried {
    const BATCH: u32 = 4;
    let mut blob = file!("stages/conv_groups.blob");
    // Sizes of input and output element, and the batch: what the compiler writes for one, BLOB_FORMAT 1.2 and 1.5.
    for at in [80, 84, 88] {
        let word = u32::from_le_bytes([blob[at], blob[at + 1], blob[at + 2], blob[at + 3]]);
        blob[at..at + 4].copy_from_slice(&(word * BATCH).to_le_bytes());
    }
    Carried::new("conv_groups_b4", blob)
}

/// One ReLU each: 64 B, 4 KiB, 256 KiB and 4 MiB of FP16 in, and as much out.
pub fn sizes() -> [Carried; 4] {
    [
        Carried::new("relu_64", file!("selftest/relu_64.blob")),
        Carried::new("relu_4k", file!("selftest/relu_4k.blob")),
        Carried::new("relu_256k", file!("selftest/relu_256k.blob")),
        Carried::new("relu_4m", file!("selftest/relu_4m.blob")),
    ]
}

impl Carried {
    fn new(name: &'static str, blob: Vec<u8>) -> Self {
        let graph = Graph::parse(&blob).expect("a committed graph");
        let program = Program::prepare(&blob, &graph).expect("a committed graph");
        Carried { name, blob, graph, program }
    }

    /// Input number `n`: no two are alike. Floats lie between −1 and 1, bytes between 0 and 3, for which random weights
    /// do not overflow.
    pub fn input(&self, n: u64) -> Vec<u8> {
        self.fill(n, |state, dtype| match dtype {
            DataType::U8 | DataType::I8 => f64::from((state >> 33) as u8 % 4),
            _ => (state >> 40) as f64 / f64::from(1 << 23) - 1.0,
        })
    }

    /// An input whose every value is `value`.
    pub fn input_of(&self, value: f64) -> Vec<u8> {
        self.fill(0, |_, _| value)
    }

    fn fill(&self, n: u64, value: impl Fn(u64, DataType) -> f64) -> Vec<u8> {
        let mut bytes = vec![0; self.graph.input_bytes];
        let mut state = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678;
        for tensor in &self.graph.inputs {
            let size = tensor.dtype.bytes();
            let whole = tensor.bytes() * self.graph.batch as usize;
            let end = (tensor.offset + whole).min(bytes.len());
            for slot in bytes[tensor.offset..end].chunks_exact_mut(size) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let value = value(state, tensor.dtype);
                match tensor.dtype {
                    DataType::F16 => slot.copy_from_slice(&f16::from_f64(value).to_le_bytes()),
                    DataType::F32 => slot.copy_from_slice(&(value as f32).to_le_bytes()),
                    DataType::S32 => slot.copy_from_slice(&(value as i32).to_le_bytes()),
                    DataType::U8 | DataType::I8 => slot[0] = value as u8,
                }
            }
        }
        bytes
    }

    /// What an input must give.
    pub fn expected(&self, input: &[u8]) -> Vec<u8> {
        let mut output = vec![0; self.graph.output_bytes];
        self.program.run(&mut self.program.arena(), input, &mut output);
        output
    }

    /// An output's values.
    pub fn values(&self, output: &[u8]) -> Vec<f64> {
        let batch = self.graph.batch as usize;
        self.graph.outputs.iter().flat_map(|tensor| values(tensor, batch, output)).collect()
    }

    /// Compares an output with what was expected.
    pub fn compare(&self, output: &[u8], expected: &[u8]) -> Closeness {
        if output.len() != expected.len() {
            return Closeness { error: f64::INFINITY, good: false };
        }
        let (found, wanted) = (self.values(output), self.values(expected));
        let largest = wanted.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
        let worst = found.iter().zip(&wanted).map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() });
        // A NaN is as wrong as can be.
        let error = worst.fold(0.0, |m: f64, e| if e.is_nan() { f64::INFINITY } else { m.max(e) }) / largest;
        Closeness { error, good: error <= TOLERANCE }
    }
}

fn values(tensor: &IoTensor, batch: usize, output: &[u8]) -> Vec<f64> {
    let size = tensor.dtype.bytes();
    let end = (tensor.offset + tensor.bytes() * batch).min(output.len());
    let bytes = output.get(tensor.offset..end).unwrap_or_default();
    let number = |b: &[u8]| match tensor.dtype {
        DataType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f64(),
        DataType::F32 => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        DataType::S32 => f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        DataType::U8 => f64::from(b[0]),
        DataType::I8 => f64::from(b[0] as i8),
    };
    bytes.chunks_exact(size).map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carried_graphs_run_and_tell_inputs_apart() {
        let sizes = sizes();
        let bytes = sizes.each_ref().map(|carried| (carried.graph.input_bytes, carried.graph.output_bytes));
        assert_eq!(bytes, [64, 4 << 10, 256 << 10, 4 << 20].map(|n| (n, n)));
        for carried in [tiny(), mlp(), full_packets()].into_iter().chain(sizes) {
            let (a, b) = (carried.input(1), carried.input(2));
            let (x, y) = (carried.expected(&a), carried.expected(&b));
            assert_ne!(x, y, "{}", carried.name);
            assert!(carried.compare(&x, &x).good, "{}", carried.name);
            assert!(carried.values(&x).iter().all(|v| v.is_finite()), "{}", carried.name);
            let mut nan = x.clone();
            nan[..2].copy_from_slice(&0x7E00_u16.to_le_bytes());
            assert!(
                !carried.compare(&nan, &x).good && !carried.compare(&x[1..], &x).good,
                "{}",
                carried.name
            );
        }
        assert_eq!(full_packets().graph.output_bytes % 1024, 0);
    }
}
