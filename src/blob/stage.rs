//! Stages: what the compiler tells the chip to do, one after another.

use std::ops::Range;

use super::tensor::View;

/// Stage type id. All ids parse; which ones a virtual stick executes is its own matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct StageKind(pub u32);

/// One stage record.
#[derive(Clone, PartialEq, Debug)]
pub struct Stage {
    /// What it does.
    pub kind: StageKind,
    /// SHAVEs it runs on; 0 for NCE and DMA stages.
    pub shaves: u32,
    /// Byte range of the whole record in the file.
    pub record: Range<usize>,
    /// Byte range of the parameters in the file, the length word not included. Meaning depends on `kind`.
    pub params: Range<usize>,
    /// Operands, in the order that the kind defines. Absent optional ones are there, with `Location::None`.
    pub buffers: Vec<View>,
    /// Decoded parameters of a neural-compute-engine stage (kind 38).
    pub nce: Option<Nce>,
    /// A stage that runs concurrently with this NCE stage; independent of it, either order is right.
    pub injected: Option<Box<Stage>>,
}

/// What an NCE descriptor computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum NceOp {
    /// Convolution.
    Conv,
    /// Convolution followed by 2×2 stride-2 max pooling.
    ConvPool,
    /// Fully connected; known from sources, never seen in a blob.
    FullyConnected,
    /// Pooling.
    Pool(PoolKind),
}

/// Kind of pooling.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum PoolKind {
    /// Maximum; outside elements are ignored.
    Max,
    /// Sum over kernel area.
    Average,
}

/// After bias and scale: `r > 0 ? a1·r : a0·r`, then `min(max(r, 0), clamp)`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Activation {
    /// Threshold word, 0 in every blob seen, and the two slopes.
    pub relu: Option<(u32, i32, i32)>,
    /// Upper bound; the lower is 0.
    pub clamp: Option<f32>,
}

/// One NCE descriptor: computes a range of output channels.
#[derive(Clone, PartialEq, Debug)]
pub struct NceDescriptor {
    /// First output channel.
    pub first_channel: u32,
    /// Number of output channels.
    pub channels: u32,
}

/// A neural-compute-engine stage. All descriptors of a stage agree in everything but their channel range (checked).
#[derive(Clone, PartialEq, Debug)]
pub struct Nce {
    /// What it computes.
    pub op: NceOp,
    /// 2^mode RAM blocks: input channels go in groups of 2^mode.
    pub mode: u32,
    /// `Some(bits)` with padding: 1 repeat right, 2 repeat bottom, 4 repeat top, 8 repeat left; 0 zeros.
    pub pad: Option<u32>,
    /// Kernel width and height.
    pub kernel: (u32, u32),
    /// Stride of both axes.
    pub stride: u32,
    /// Activation.
    pub activation: Activation,
    /// Index into [`Stage::buffers`].
    pub input: usize,
    /// Index into [`Stage::buffers`].
    pub output: usize,
    /// Index into [`Stage::buffers`]; `None` for pooling.
    pub weights: Option<usize>,
    /// Index into [`Stage::buffers`].
    pub bias: Option<usize>,
    /// Index into [`Stage::buffers`].
    pub scale: Option<usize>,
    /// Channel ranges, in file order.
    pub descriptors: Vec<NceDescriptor>,
}

impl Nce {
    /// Left and top padding of a convolution: half the kernel, rounded down, when padding is on.
    pub fn conv_padding(&self) -> (usize, usize) {
        match self.pad {
            Some(_) => (self.kernel.0 as usize / 2, self.kernel.1 as usize / 2),
            None => (0, 0),
        }
    }

    /// Left and top padding of pooling: half the kernel where the repeat bit of that side is set.
    pub fn pool_padding(&self) -> (usize, usize) {
        let bits = self.pad.unwrap_or(0);
        let side = |bit: u32, kernel: u32| if bits & bit != 0 { kernel as usize / 2 } else { 0 };
        (side(8, self.kernel.0), side(4, self.kernel.1))
    }
}

impl StageKind {
    /// Neural compute engine.
    pub const NCE: StageKind = StageKind(38);
    /// DMA copy.
    pub const COPY: StageKind = StageKind(19);

    /// `MyriadXHwOp`, `SoftMax`…: the compiler's names; `None` for an id that no release has.
    pub fn name(self) -> Option<&'static str> {
        None // table: written by the blob author
    }
}
