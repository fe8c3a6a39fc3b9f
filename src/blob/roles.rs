//! Which operands a stage writes, and which kinds work element by element. The order of operands depends on the kind.
use super::stage::{Stage, StageKind};
use super::tensor::{DataType, Location, View};

const COPY: u32 = 19;
const PERMUTE: u32 = 34;

/// True where the stage writes operand `index`; scratch buffers count as written.
pub(super) fn is_output(stage: &Stage, index: usize) -> bool {
    let count = stage.buffers.len();
    if let Some(nce) = &stage.nce {
        return index == nce.output;
    }
    if is_scratch(&stage.buffers, index) {
        return true;
    }
    // Scratch comes last, so that "the last operand" means the last one before it.
    let last = (0..count).rev().find(|&i| !is_scratch(&stage.buffers, i)).unwrap_or(0);
    match stage.kind.0 {
        // CTCDecoder, GEMM, ReverseSequence, Concat, Broadcast, StridedSlice: inputs…, output.
        43 | 91 | 94 | 128 | 129 | 133 => index == last,
        // DetectionOutput: 3 or 5 inputs, output, scratch.
        37 => index == if count > 5 { 5 } else { 3 },
        // TopK: values, k, outputs.
        104 => index >= 2,
        // LSTMCell: x, h0, c0, weights, bias, outputs.
        70 => index >= 5,
        // Proposal: in, out, out, in, in, scratch.
        64 => matches!(index, 1 | 2 | 5),
        // StaticShapeNMS: 5 inputs, 2 outputs.
        130 => index >= 5,
        // LoopStart: (in, out) pairs. LoopEnd: [batch], (out, in) pairs.
        119 => index % 2 == 1,
        120 => index >= count % 2 && (index - count % 2).is_multiple_of(2),
        // The convolution family: in, out, weights, scratch.
        0 | 8 | 22 | 49 | 58 | 63 => index == 1 || index == 3,
        _ => index == 1,
    }
}

/// Scratch of a software stage: bytes with one dimension in memory that is not the caller's.
fn is_scratch(buffers: &[View], index: usize) -> bool {
    let view = &buffers[index];
    index >= 2
        && view.dtype == DataType::U8
        && view.dims.len() == 1
        && matches!(view.location, Location::Bss | Location::Cmx)
        && buffers[index + 1..].iter().all(|v| v.dtype == DataType::U8 && v.dims.len() == 1)
}

/// Operands that the stage writes.
pub(super) fn outputs(stage: &Stage) -> impl Iterator<Item = &View> {
    stage.buffers.iter().enumerate().filter(|(i, v)| v.is_present() && is_output(stage, *i)).map(|(_, v)| v)
}

/// Operands that the stage reads.
pub(super) fn inputs(stage: &Stage) -> impl Iterator<Item = (usize, &View)> {
    stage.buffers.iter().enumerate().filter(|(i, v)| v.is_present() && !is_output(stage, *i))
}

/// True where output element i depends on element i of each input of the same shape, and on nothing else of it.
pub(super) fn is_elementwise(kind: StageKind) -> bool {
    matches!(
        kind.0,
        // Activations; bias, scale and slope per channel; copy and conversion.
        6 | 9 | 10 | 15 | COPY | 20 | 21 | 23 | 26 | 44 | 45 | 46 | 47 | 57 | 92 | 101 | 102 | 110 | 111 | 131 | 132
            | 134 | 135 | 137 | 138 | 140
        // Two or three operands.
            | 12 | 13 | 14 | 75..=90
    )
}

/// Strides of the source of a Copy or Permute in the order of the output's dimensions: output element (i0, i1, …) is
/// a copy of the input element at Σ i·stride. `None` for other stages, and for shapes that do not match.
pub(super) fn moved_strides(stage: &Stage, bytes: &[u8]) -> Option<Vec<u32>> {
    let (source, target) = (stage.buffers.first()?, stage.buffers.get(1)?);
    if source.dtype != target.dtype || !source.is_present() || !target.is_present() {
        return None;
    }
    match stage.kind.0 {
        COPY if source.dims == target.dims => Some(source.strides.clone()),
        PERMUTE if source.dims.len() == target.dims.len() => {
            let mut taken = 0u32;
            (0..target.dims.len())
                .map(|k| {
                    let from = usize::try_from(param(stage, bytes, k)? as i32).ok()?;
                    // Each once: only then does the walk stay inside the source.
                    let fits = *source.dims.get(from)? == target.dims[k] && taken & (1 << from) == 0;
                    taken |= 1 << from;
                    fits.then(|| source.strides[from])
                })
                .collect()
        }
        _ => None,
    }
}

/// Word `index` of the stage's parameters.
pub(super) fn param(stage: &Stage, bytes: &[u8], index: usize) -> Option<u32> {
    let words = bytes.get(stage.params.clone())?.as_chunks::<4>().0;
    words.get(index).map(|word| u32::from_le_bytes(*word))
}
