//! Racks, blobs, inputs and expected answers for the tests of the fleet.

use std::path::{Path, PathBuf};
use std::time::Duration;

use half::f16;
use ncs2::Fleet;
use ncs2::blob::{Blob, DataType, IoTensor};
use ncs2::runtime::FleetConfig;
use ncs2_device::{Engine, Rack, RackOptions, Timing, hash};
use npyz::{DType, NpyFile};

/// Far longer than anything here takes; only a hang reaches it.
pub const LONG: Duration = Duration::from_secs(60);

pub fn rack(sticks: usize, engine: Engine) -> Rack {
    let options = RackOptions { sticks, engine, timing: Timing::Zero, ..RackOptions::default() };
    Rack::start(options).expect("virtual sticks start")
}

pub fn fleet_with(rack: &Rack, config: FleetConfig) -> Fleet {
    let builder = rack.ports().into_iter().fold(Fleet::builder().config(config), |b, port| b.port(port));
    builder.open().expect("the fleet opens")
}

pub fn fleet(rack: &Rack) -> Fleet {
    fleet_with(rack, FleetConfig::default())
}

pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name)
}

pub fn blob(name: &str) -> Blob {
    Blob::open(path(&format!("{name}.blob"))).expect("a committed blob")
}

/// A generator whose seed is printed by whoever draws from it.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// An input element that no other number gives.
pub fn unique_input(blob: &Blob, number: u64) -> Vec<u8> {
    let mut rng = Rng(number);
    let mut input = vec![0; blob.graph().input_bytes];
    for chunk in input.chunks_mut(8) {
        let word = rng.next().to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    input
}

/// What a stick with the hash engine answers.
pub fn hash_of(blob: &Blob, input: &[u8]) -> Vec<u8> {
    let mut out = vec![0; blob.graph().output_bytes];
    hash::output(&blob.hash(), input, &mut out);
    out
}

/// Values of an array file in the order of its shape.
pub fn array(path: &Path) -> Vec<f32> {
    let file = NpyFile::new(std::io::BufReader::new(std::fs::File::open(path).expect("a committed array")));
    let file = file.expect("an array file");
    let DType::Plain(dtype) = file.dtype() else { panic!("{}: structured array", path.display()) };
    match dtype.to_string().trim_start_matches(['<', '|', '>']) {
        "f2" => file.into_vec::<f16>().expect("f16").into_iter().map(f16::to_f32).collect(),
        "f4" => file.into_vec::<f32>().expect("f32"),
        "u1" => file.into_vec::<u8>().expect("u8").into_iter().map(f32::from).collect(),
        other => panic!("{}: element type {other}", path.display()),
    }
}

/// Byte offsets of a tensor's elements in the order of its shape (row-major), counted from the tensor's first byte.
fn positions(tensor: &IoTensor, batch: usize) -> Vec<usize> {
    let order: Vec<usize> = if tensor.dims.len() >= 6 {
        (0..tensor.dims.len()).rev().collect()
    } else {
        [4, 3, 5, 2, 1].into_iter().filter_map(|digit| tensor.order.position(digit)).collect()
    };
    let mut at: Vec<usize> = (0..batch).map(|b| b * tensor.bytes()).collect();
    for d in order {
        let (dim, stride) = (tensor.dims[d] as usize, tensor.strides[d] as usize);
        at = at.into_iter().flat_map(|base| (0..dim).map(move |i| base + i * stride)).collect();
    }
    at
}

/// The committed input of a model, as one element.
pub fn reference_input(name: &str, blob: &Blob) -> Vec<u8> {
    let graph = blob.graph();
    let mut element = vec![0; graph.input_bytes];
    for tensor in &graph.inputs {
        let values = array(&path(&format!("{name}.in.{}.npy", tensor.name)));
        let at = positions(tensor, graph.batch as usize);
        assert_eq!(at.len(), values.len(), "{name}: elements of input {}", tensor.name);
        for (at, value) in at.into_iter().map(|a| a + tensor.offset).zip(values) {
            match tensor.dtype {
                DataType::F16 => element[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                DataType::U8 => element[at] = value as u8,
                other => panic!("{name}: input type {}", other.as_str()),
            }
        }
    }
    element
}

/// The largest difference of an answer from the committed reference, as a share of the largest reference value.
pub fn difference(name: &str, blob: &Blob, tensor: impl Fn(usize) -> Vec<u8>) -> f32 {
    let graph = blob.graph();
    let mut worst = 0f32;
    for (index, output) in graph.outputs.iter().enumerate() {
        let expected = array(&path(&format!("{name}.out.{}.npy", output.name)));
        let bytes = tensor(index);
        let found: Vec<f32> = positions(output, graph.batch as usize)
            .into_iter()
            .map(|at| match output.dtype {
                DataType::F16 => f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
                DataType::F32 => f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]),
                other => panic!("{name}: output type {}", other.as_str()),
            })
            .collect();
        assert_eq!(found.len(), expected.len(), "{name}: elements of output {}", output.name);
        let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
        let off = found.iter().zip(&expected).map(|(f, e)| (f - e).abs()).fold(0f32, |m, d| {
            // NaN must not pass for small.
            if d.is_nan() { f32::INFINITY } else { m.max(d) }
        });
        worst = worst.max(off / largest);
    }
    worst
}
