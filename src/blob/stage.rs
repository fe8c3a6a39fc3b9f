//! Stages: what the compiler tells the chip to do, one after another.

use std::ops::Range;

use super::tensor::View;

/// Stage type id. All ids parse; which ones a virtual stick executes is its own matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct StageKind(pub u32);

impl StageKind {
    /// Runs a kernel that the blob carries, instead of one that the firmware has.
    pub const CUSTOM: StageKind = StageKind(115);
}

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

    /// Left and top padding of pooling: half the kernel, with zeros on all sides, else where the repeat bit of that side is
    /// set.
    pub fn pool_padding(&self) -> (usize, usize) {
        let side = |bit: u32, kernel: u32| match self.pad {
            Some(bits) if bits == 0 || bits & bit != 0 => kernel as usize / 2,
            _ => 0,
        };
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
        Some(match self.0 {
            0 => "Conv",
            1 => "MaxPool",
            2 => "AvgPool",
            3 => "SoftMax",
            4 => "FC",
            5 => "None",
            6 => "Relu",
            8 => "DepthConv",
            9 => "Bias",
            10 => "PRelu",
            11 => "LRN",
            12 => "Sum",
            13 => "Prod",
            14 => "Max",
            15 => "Scale",
            18 => "InnerLRN",
            19 => "Copy",
            20 => "Sigmoid",
            21 => "Tanh",
            22 => "Deconvolution",
            23 => "Elu",
            26 => "Power",
            28 => "Tile",
            29 => "RegionYolo",
            30 => "ReorgYolo",
            34 => "Permute",
            35 => "Normalize",
            37 => "DetectionOutput",
            38 => "MyriadXHwOp",
            43 => "CTCDecoder",
            44 => "LeakyRelu",
            45 => "BiasRelu",
            46 => "BiasLeakyRelu",
            47 => "ScaleShift",
            49 => "Im2ColConvolution",
            56 => "HwFcRelayout",
            57 => "Clamp",
            58 => "RefConvolution",
            60 => "GlobalMaxPool",
            61 => "GRN",
            62 => "MVN",
            63 => "DepthDeconv",
            64 => "Proposal",
            65 => "ROIPooling",
            66 => "PSROIPooling",
            67 => "Interp",
            69 => "MTCNN",
            70 => "LSTMCell",
            71 => "Pad",
            72 => "Resample",
            73 => "Upsampling",
            75 => "Div",
            76 => "Min",
            77 => "Squared_diff",
            78 => "Equal",
            79 => "Not_equal",
            80 => "Greater",
            81 => "Greater_equal",
            82 => "Less",
            83 => "Less_equal",
            84 => "Logical_NOT",
            85 => "Logical_AND",
            86 => "Logical_OR",
            87 => "Logical_XOR",
            88 => "Pow",
            89 => "Floor_mod",
            90 => "Select",
            91 => "GEMM",
            92 => "Log",
            93 => "ReduceAnd",
            94 => "ReverseSequence",
            100 => "Gather",
            101 => "Exp",
            102 => "Floor",
            103 => "ScatterUpdate",
            104 => "TopK",
            105 => "ReduceMin",
            106 => "ExpDetectionOutput",
            108 => "ROIFeatureExtractor",
            109 => "SCRelu",
            110 => "Erf",
            111 => "Convert",
            112 => "ReduceMax",
            113 => "ReduceSum",
            114 => "ReduceMean",
            115 => "Custom",
            116 => "ConvND",
            117 => "OneHot",
            118 => "PoolND",
            119 => "LoopStart",
            120 => "LoopEnd",
            121 => "ExpPriorGridGenerator",
            122 => "NonZero",
            123 => "ROIAlign",
            124 => "ExpGenerateProposals",
            125 => "ExpTopKROIs",
            126 => "ScatterElementsUpdate",
            127 => "OutShapeOfReshape",
            128 => "Concat",
            129 => "Broadcast",
            130 => "StaticShapeNMS",
            131 => "Mish",
            132 => "Gelu",
            133 => "StridedSlice",
            134 => "SoftPlus",
            135 => "Swish",
            136 => "GatherND",
            137 => "HSwish",
            138 => "Ceiling",
            139 => "GatherElements",
            140 => "Round",
            141 => "CTCGreedyDecoderSeqLen",
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_compilers_names() {
        assert_eq!(StageKind::NCE.name(), Some("MyriadXHwOp"));
        assert_eq!(StageKind::COPY.name(), Some("Copy"));
        assert_eq!(StageKind(141).name(), Some("CTCGreedyDecoderSeqLen"));
        assert_eq!([7, 16, 99, 107, 142, u32::MAX].map(|id| StageKind(id).name()), [None; 6]);
    }
}
