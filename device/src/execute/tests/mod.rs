//! Each family against small sums done by hand, on a bench that builds graphs of one stage.
mod convolution;
mod elements;
mod moves;
mod whole;

use ncs2::blob::{DataType, Graph, Location, Nce, Order, Stage, StageKind, View};

use super::memory::{Layout, Place};
use super::{Program, Unsupported};

/// Orders of the format.
const NCHW: u32 = 0x4321;
const NHWC: u32 = 0x4213;
const C: u32 = 0x3;

/// One stage with its operands, in the order in which they are added.
#[derive(Default)]
struct Bench {
    buffers: Vec<View>,
    /// Values of operands in BSS, by index of the operand.
    values: Vec<(usize, Vec<f32>)>,
    consts: Vec<u8>,
    bss: usize,
    nce: Option<Nce>,
}

fn dense(dtype: DataType, dims: &[u32]) -> Vec<u32> {
    let mut stride = dtype.bytes() as u32;
    let strides = dims.iter().map(|dim| {
        let this = stride;
        stride *= dim;
        this
    });
    strides.collect()
}

impl Bench {
    fn view(
        &mut self,
        dtype: DataType,
        order: u32,
        dims: &[u32],
        strides: Vec<u32>,
        location: Location,
    ) -> usize {
        let mut view =
            View { dtype, order: Order(order), dims: dims.to_vec(), strides, location, offset: self.bss };
        match location {
            Location::Blob => view.offset = self.consts.len(),
            Location::Bss => self.bss += view.span_bytes().next_multiple_of(64),
            _ => {}
        }
        self.buffers.push(view);
        self.buffers.len() - 1
    }

    /// FP16 in BSS without gaps, dims minor to major.
    fn input(&mut self, order: u32, dims: &[u32], values: &[f32]) -> usize {
        self.strided(order, dims, dense(DataType::F16, dims), values)
    }

    fn strided(&mut self, order: u32, dims: &[u32], strides: Vec<u32>, values: &[f32]) -> usize {
        let index = self.view(DataType::F16, order, dims, strides, Location::Bss);
        assert_eq!(values.len(), self.buffers[index].elements());
        self.values.push((index, values.to_vec()));
        index
    }

    fn output(&mut self, order: u32, dims: &[u32]) -> usize {
        self.view(DataType::F16, order, dims, dense(DataType::F16, dims), Location::Bss)
    }

    /// FP16 in the blob.
    fn halves(&mut self, order: u32, dims: &[u32], values: &[f32]) -> usize {
        let index = self.view(DataType::F16, order, dims, dense(DataType::F16, dims), Location::Blob);
        assert_eq!(values.len(), self.buffers[index].elements());
        self.consts.extend(values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()));
        index
    }

    /// S32 in the blob.
    fn integers(&mut self, values: &[i32]) -> usize {
        let dims = [values.len() as u32];
        let index = self.view(DataType::S32, C, &dims, dense(DataType::S32, &dims), Location::Blob);
        self.consts.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        index
    }

    /// An operand that is not there.
    fn fake(&mut self) -> usize {
        self.view(DataType::F16, C, &[1], vec![2], Location::None)
    }

    fn graph(&self, kind: u32, params: &[u32]) -> (Vec<u8>, Graph) {
        let mut blob: Vec<u8> = params.iter().flat_map(|p| p.to_le_bytes()).collect();
        let const_offset = blob.len();
        blob.extend(&self.consts);
        let stage = Stage {
            kind: StageKind(kind),
            shaves: 1,
            record: 0..const_offset,
            params: 0..const_offset,
            buffers: self.buffers.clone(),
            nce: self.nce.clone(),
            injected: None,
        };
        let graph = Graph {
            version: (6, 0),
            file_bytes: blob.len(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            input_bytes: 0,
            output_bytes: 0,
            batch: 1,
            bss_bytes: self.bss,
            cmx_slices: 0,
            shaves: 1,
            const_offset,
            stages: vec![stage],
        };
        (blob, graph)
    }

    fn prepare(&self, kind: u32, params: &[u32]) -> Result<Program, Unsupported> {
        let (blob, graph) = self.graph(kind, params);
        Program::prepare(&blob, &graph)
    }

    fn why(&self, kind: u32, params: &[u32]) -> String {
        self.prepare(kind, params).err().expect("must be refused").why
    }

    /// Runs the stage in memory full of NaN, twice, and reads an operand.
    fn read(&self, kind: u32, params: &[u32], output: usize) -> Vec<f32> {
        let program = self.prepare(kind, params).unwrap_or_else(|e| panic!("{e}"));
        let (_, graph) = self.graph(kind, params);
        let layout = Layout::new(&graph).expect("small");
        let place =
            |index: usize| Place::resolve(&self.buffers[index], &layout, &self.consts).expect("checked");
        let mut arena = program.arena();
        let mut results = [Vec::new(), Vec::new()];
        for result in &mut results {
            arena.fill(0x7E00);
            for (index, values) in &self.values {
                place(*index).write(&mut arena.words, values);
            }
            program.run(&mut arena, &[], &mut []);
            result.resize(place(output).elements(), 0.0);
            place(output).read(&arena.words, result);
        }
        let [first, second] = results;
        assert!(first.iter().zip(&second).all(|(a, b)| a.to_bits() == b.to_bits()), "runs differ");
        first
    }
}

fn f(value: f32) -> u32 {
    value.to_bits()
}

fn i(value: i32) -> u32 {
    value as u32
}

/// Within FP16 rounding.
#[track_caller]
fn near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= 1e-3 * b.abs().max(1.0),
            "element {at}: {a} instead of {b}\n{found:?}\n{expected:?}"
        );
    }
}

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

/// Repeatable noise in steps of 1/8 between −2 and 2, exact in FP16.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_769) | 1;
    let values = (0..n).map(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        ((state >> 8) % 33) as f32 / 8.0 - 2.0
    });
    values.collect()
}
