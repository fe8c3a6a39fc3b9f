//! Tensors of a graph: element types, dimension orders, and views into memory areas.

/// Element type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum DataType {
    /// IEEE half, 2 bytes. Activations and weights.
    F16,
    /// 1 byte.
    U8,
    /// 4 bytes.
    S32,
    /// 4 bytes.
    F32,
    /// 1 byte.
    I8,
}

impl DataType {
    /// From the descriptor's number.
    pub fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => DataType::F16,
            1 => DataType::U8,
            2 => DataType::S32,
            3 => DataType::F32,
            4 => DataType::I8,
            _ => return None,
        })
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            DataType::F16 => 2,
            DataType::U8 | DataType::I8 => 1,
            DataType::S32 | DataType::F32 => 4,
        }
    }

    /// `f16`, `u8`, `i32`, `f32`, `i8`: the names that `--json` and users see.
    pub fn as_str(self) -> &'static str {
        match self {
            DataType::F16 => "f16",
            DataType::U8 => "u8",
            DataType::S32 => "i32",
            DataType::F32 => "f32",
            DataType::I8 => "i8",
        }
    }
}

/// Most dimensions that a descriptor may have (the order code has 8 digits).
pub const MAX_DIMS: usize = 8;

/// Order code: hex digits, lowest = minor (fastest) dimension; 1=W 2=H 3=C 4=N 5=D. `0x4321` is NCHW.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Order(pub u32);

impl Order {
    /// Digits from minor to major, as many as there are dimensions.
    pub fn digits(self) -> impl Iterator<Item = u8> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let digit = (rest & 0xF) as u8;
            rest >>= 4;
            (digit != 0).then_some(digit)
        })
    }

    /// Position (minor = 0) of the dimension with this digit (1=W 2=H 3=C 4=N 5=D).
    pub fn position(self, digit: u8) -> Option<usize> {
        self.digits().position(|d| d == digit)
    }

    /// `NCHW`, `NHWC`, `NC`…: digits from major to minor; unnamed dimensions are `?`.
    pub fn layout(self) -> String {
        let mut name: Vec<char> =
            self.digits().map(|d| *b"?WHCND".get(usize::from(d)).unwrap_or(&b'?') as char).collect();
        name.reverse();
        name.into_iter().collect()
    }
}

/// Memory area that a view lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Location {
    /// Absent optional operand.
    None,
    /// The input element; the number is the input's index.
    Input(u32),
    /// The output element; the number is the output's index.
    Output(u32),
    /// The blob's constant section.
    Blob,
    /// DRAM scratch.
    Bss,
    /// The executor's on-chip memory.
    Cmx,
}

/// A strided view of a memory area. Checked: the last addressed byte lies inside the area.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// Element type.
    pub dtype: DataType,
    /// What each dimension is.
    pub order: Order,
    /// Minor to major, 1 to [`MAX_DIMS`] of them, each at least 1.
    pub dims: Vec<u32>,
    /// Bytes, minor to major; the first is the element size.
    pub strides: Vec<u32>,
    /// Which area.
    pub location: Location,
    /// Byte offset of the first element from the area's base: for `Input(i)`/`Output(i)` the start of that tensor in
    /// the element, for `Blob` [`super::Graph::const_offset`], for `Bss` and `Cmx` their beginning.
    pub offset: usize,
}

impl View {
    /// False for an absent optional operand.
    pub fn is_present(&self) -> bool {
        self.location != Location::None
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().map(|&d| d as usize).product()
    }

    /// Bytes from the first element to the end of the last, gaps included.
    pub fn span_bytes(&self) -> usize {
        let last: usize =
            self.dims.iter().zip(&self.strides).map(|(&d, &s)| (d as usize - 1) * s as usize).sum();
        last + self.dtype.bytes()
    }

    /// Size of the dimension with this order digit (1=W 2=H 3=C 4=N 5=D); 1 where there is none.
    pub fn dim(&self, digit: u8) -> usize {
        self.order.position(digit).and_then(|p| self.dims.get(p)).map_or(1, |&d| d as usize)
    }

    /// Stride in bytes of the dimension with this order digit; 0 where there is none.
    pub fn stride(&self, digit: u8) -> usize {
        self.order.position(digit).and_then(|p| self.strides.get(p)).map_or(0, |&s| s as usize)
    }
}

/// An input or output of the network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoTensor {
    /// Name in the network.
    pub name: String,
    /// Element type on the wire.
    pub dtype: DataType,
    /// What each dimension is.
    pub order: Order,
    /// Minor to major.
    pub dims: Vec<u32>,
    /// Bytes, minor to major.
    pub strides: Vec<u32>,
    /// Where the tensor begins in the FIFO element (multiple of 64); with a batch, element b of this tensor lies at
    /// `offset + b × bytes()`.
    pub offset: usize,
}

impl IoTensor {
    /// Bytes of one batch element of this tensor: major stride × major dim.
    pub fn bytes(&self) -> usize {
        match (self.strides.last(), self.dims.last()) {
            (Some(&s), Some(&d)) => s as usize * d as usize,
            _ => 0,
        }
    }

    /// Shape as users write it: N, C, D where there is one, H, W (from six dimensions on, major to minor).
    pub fn shape(&self) -> Vec<usize> {
        if self.dims.len() >= 6 {
            return self.dims.iter().rev().map(|&d| d as usize).collect();
        }
        [4, 3, 5, 2, 1]
            .into_iter()
            .filter_map(|digit| {
                self.order.position(digit).and_then(|p| self.dims.get(p)).map(|&d| d as usize)
            })
            .collect()
    }

    /// True where the elements follow each other without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = self.dtype.bytes();
        self.dims.iter().zip(&self.strides).all(|(&d, &s)| {
            let ok = s as usize == expected || d == 1;
            expected = s as usize * d as usize;
            ok
        })
    }
}
