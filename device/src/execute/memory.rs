//! Strided views of one executor's memory: reading, writing and moving elements.
//!
//! All areas of an executor (input slots, output slots, BSS, CMX) lie in one array of 16-bit words, since almost all of
//! it is FP16; constants are copied out of the blob when a program is prepared. Every view is checked against its area
//! before it becomes a [`Place`], so that the loops here cannot leave it.

use std::sync::Arc;

use ncs2::blob::{DataType, Graph, Location, MAX_DIMS, View};

use crate::gemm::halves::{from_f32, to_f32};

/// Most dimensions of a [`Place`].
pub(super) const RANK: usize = MAX_DIMS;

/// What a place's offset counts from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// The executor's memory.
    Arena,
    /// Constants of the blob, copied at prepare time.
    Const(Arc<[u16]>),
}

/// A checked view: dims and byte strides minor to major.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub dtype: DataType,
    pub rank: usize,
    /// What each dimension is: 1=W 2=H 3=C 4=N 5=D, more are unnamed.
    pub digits: [u8; RANK],
    pub dims: [usize; RANK],
    /// Bytes; may be 0 (broadcast) or negative (reversed) in derived places.
    pub strides: [isize; RANK],
    /// Bytes to the first element.
    pub offset: isize,
    pub source: Source,
}

/// Where the areas of an executor lie in its arena, in bytes.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// (begin, bytes) per input tensor, one element of the batch.
    pub inputs: Vec<(usize, usize)>,
    pub outputs: Vec<(usize, usize)>,
    pub bss: (usize, usize),
    pub cmx: (usize, usize),
    pub bytes: usize,
}

/// Most elements of a view: five 4K images of RGB. Stages unfold their views to f32.
const LARGEST_VIEW: usize = 1 << 27;

/// More memory than any stick has; larger wishes are refused before they are granted.
const LARGEST_ARENA: usize = 1 << 30;

impl Layout {
    pub fn new(graph: &Graph) -> Result<Self, String> {
        let mut bytes = 0usize;
        let mut take = |size: usize| -> Result<(usize, usize), String> {
            let begin = bytes;
            bytes = size
                .checked_next_multiple_of(64)
                .and_then(|s| s.checked_add(bytes))
                .filter(|&b| b <= LARGEST_ARENA)
                .ok_or_else(|| format!("memory areas exceed {LARGEST_ARENA} bytes"))?;
            Ok((begin, size))
        };
        let inputs = graph.inputs.iter().map(|t| take(t.bytes())).collect::<Result<_, _>>()?;
        let outputs = graph.outputs.iter().map(|t| take(t.bytes())).collect::<Result<_, _>>()?;
        let bss = take(graph.bss_bytes)?;
        let cmx = take((graph.cmx_slices as usize).saturating_mul(ncs2::blob::CMX_SLICE_BYTES))?;
        Ok(Layout { inputs, outputs, bss, cmx, bytes })
    }
}

impl Place {
    /// Checks a view against its area. `consts` is the blob's constant section.
    pub fn resolve(view: &View, layout: &Layout, consts: &[u8]) -> Result<Place, String> {
        let size = view.dtype.bytes();
        let (base, area) = match view.location {
            Location::None => return Err("an operand is missing".into()),
            Location::Input(i) => *layout.inputs.get(i as usize).ok_or("no such input")?,
            Location::Output(i) => *layout.outputs.get(i as usize).ok_or("no such output")?,
            Location::Bss => layout.bss,
            Location::Cmx => layout.cmx,
            Location::Blob => (0, consts.len()),
        };
        if view.dims.is_empty() || view.dims.len() > MAX_DIMS || view.strides.len() != view.dims.len() {
            return Err("a view has a bad number of dimensions".into());
        }
        let mut elements = 1usize;
        let mut span = size;
        for (&dim, &stride) in view.dims.iter().zip(&view.strides) {
            if dim == 0 {
                return Err("a view has an empty dimension".into());
            }
            elements = elements.saturating_mul(dim as usize);
            span = span.saturating_add((dim as usize - 1).saturating_mul(stride as usize));
            if size > 1 && stride % 2 != 0 {
                return Err("a view has an odd stride".into());
            }
        }
        if elements > LARGEST_VIEW {
            return Err(format!("a view has {elements} elements"));
        }
        // Also bounds the elements of views whose strides overlap: work per view is at most the area's size.
        if view.offset.saturating_add(span) > area || elements.saturating_mul(size) > area {
            return Err(format!("a view leaves its area: {} + {span} bytes of {area}", view.offset));
        }
        let mut digits = [0; RANK];
        for (slot, digit) in digits.iter_mut().zip(view.order.digits().take(view.dims.len())) {
            *slot = digit;
        }
        let mut dims = [1; RANK];
        let mut strides = [0; RANK];
        for (i, (&dim, &stride)) in view.dims.iter().zip(&view.strides).enumerate() {
            dims[i] = dim as usize;
            strides[i] = stride as isize;
        }
        let mut place = Place {
            dtype: view.dtype,
            rank: view.dims.len(),
            digits,
            dims,
            strides,
            offset: (base + view.offset) as isize,
            source: Source::Arena,
        };
        if view.location == Location::Blob {
            let bytes = &consts[view.offset..view.offset + span];
            let words = bytes.chunks(2).map(|c| u16::from_le_bytes([c[0], c.get(1).copied().unwrap_or(0)]));
            place.source = Source::Const(words.collect());
            place.offset = 0;
        } else if size > 1 && place.offset % 2 != 0 {
            return Err("a view begins at an odd byte".into());
        }
        Ok(place)
    }

    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }

    /// Position of the dimension with this digit.
    pub fn position(&self, digit: u8) -> Option<usize> {
        self.digits[..self.rank].iter().position(|&d| d == digit)
    }

    /// Size of the dimension with this digit; 1 where there is none.
    pub fn dim(&self, digit: u8) -> usize {
        self.position(digit).map_or(1, |p| self.dims[p])
    }

    /// Byte stride of the dimension with this digit; 0 where there is none.
    pub fn stride(&self, digit: u8) -> isize {
        self.position(digit).map_or(0, |p| self.strides[p])
    }

    /// Positions of the dimensions in the order in which networks name them: N, C, \[D\], H, W; major to minor where there
    /// are others.
    pub fn axes(&self) -> Vec<usize> {
        let axes: Vec<usize> = [4, 3, 5, 2, 1].into_iter().filter_map(|digit| self.position(digit)).collect();
        if axes.len() == self.rank { axes } else { (0..self.rank).rev().collect() }
    }

    /// The same elements with the dimensions in the order W, H, (others), C, N.
    pub fn planar(&self) -> Place {
        let rank = |digit: u8| match digit {
            1 => 0,
            2 => 1,
            3 => 8,
            4 => 9,
            _ => 2,
        };
        let mut order: Vec<usize> = (0..self.rank).collect();
        order.sort_by_key(|&d| rank(self.digits[d]));
        let mut seen = self.clone();
        for (to, from) in order.into_iter().enumerate() {
            (seen.dims[to], seen.strides[to], seen.digits[to]) =
                (self.dims[from], self.strides[from], self.digits[from]);
        }
        seen
    }

    pub fn is_const(&self) -> bool {
        matches!(self.source, Source::Const(_))
    }

    /// First and one past the last byte.
    pub fn span(&self) -> (usize, usize) {
        let (mut low, mut high) = (self.offset, self.offset + self.dtype.bytes() as isize);
        for i in 0..self.rank {
            let reach = (self.dims[i] as isize - 1) * self.strides[i];
            if reach < 0 { low += reach } else { high += reach }
        }
        (low as usize, high as usize)
    }

    /// Whether writing one may change the other (by their spans, so sometimes a false yes).
    pub fn overlaps(&self, other: &Place) -> bool {
        if self.is_const() || other.is_const() {
            return false;
        }
        let (a, b) = (self.span(), other.span());
        a.0 < b.1 && b.0 < a.1
    }

    /// The words that offsets count in.
    pub fn words<'a>(&'a self, arena: &'a [u16]) -> &'a [u16] {
        match &self.source {
            Source::Arena => arena,
            Source::Const(words) => words,
        }
    }

    /// This operand seen with the dims of `shape`, dims of 1 and absent ones repeated; matched by name.
    pub fn broadcast_to(&self, shape: &Place) -> Result<Place, String> {
        self.repeated(shape, |i| shape.position(self.digits[i])).ok_or_else(|| {
            format!("operand dims {:?} do not fit the output's {:?}", self.dims(), shape.dims())
        })
    }

    /// The same as networks broadcast: an operand of fewer dimensions has the output's last ones, whatever their names (the
    /// compiler calls the only dimension of a vector C, also where it goes along W). By name where that does not fit.
    pub fn broadcast_last_to(&self, shape: &Place) -> Result<Place, String> {
        let (from, to) = (self.axes(), shape.axes());
        let last = (self.rank < shape.rank).then(|| {
            self.repeated(shape, |i| {
                let axis = from.iter().position(|&d| d == i)?;
                to.get(axis + to.len() - from.len()).copied()
            })
        });
        last.flatten().map_or_else(|| self.broadcast_to(shape), Ok)
    }

    /// Dimension i lies along dimension `target(i)` of `shape`; `None` where one has no such or one of another size.
    fn repeated(&self, shape: &Place, target: impl Fn(usize) -> Option<usize>) -> Option<Place> {
        let mut seen = Place { rank: shape.rank, digits: shape.digits, dims: shape.dims, ..self.clone() };
        seen.strides = [0; RANK];
        for i in (0..self.rank).filter(|&i| self.dims[i] != 1) {
            let at = target(i).filter(|&at| shape.dims[at] == self.dims[i])?;
            seen.strides[at] = self.strides[i];
        }
        Some(seen)
    }

    /// All elements as f32, minor to major.
    pub fn read(&self, arena: &[u16], out: &mut [f32]) {
        let words = self.words(arena);
        let (rank, dims, [strides]) = collapse(self.rank, &self.dims, [&self.strides]);
        let n = dims[0];
        let mut rows = out[..self.elements()].chunks_exact_mut(n);
        each_row(rank, &dims, &[strides], [self.offset], |[at]| {
            if let Some(row) = rows.next() {
                read_row(words, at, strides[0], self.dtype, row);
            }
        });
    }

    /// All elements as i32: exact for integers; floats are cut off towards zero.
    pub fn read_i32(&self, arena: &[u16], out: &mut [i32]) {
        let words = self.words(arena);
        let mut values = out[..self.elements()].iter_mut();
        let mut value = [0.0];
        each_row(self.rank, &self.dims, &[self.strides], [self.offset], |[at]| {
            for (x, slot) in (0..self.dims[0] as isize).zip(&mut values) {
                let at = at + x * self.strides[0];
                *slot = if self.dtype == DataType::S32 {
                    load32(words, at) as i32
                } else {
                    read_row(words, at, 0, self.dtype, &mut value);
                    value[0] as i32
                };
            }
        });
    }

    /// Writes all elements, minor to major, rounding to nearest even (integers: cut off and saturated).
    pub fn write(&self, arena: &mut [u16], data: &[f32]) {
        let (rank, dims, [strides]) = collapse(self.rank, &self.dims, [&self.strides]);
        let mut rows = data[..self.elements()].chunks_exact(dims[0]);
        each_row(rank, &dims, &[strides], [self.offset], |[at]| {
            if let Some(row) = rows.next() {
                write_row(arena, at, strides[0], self.dtype, row);
            }
        });
    }

    /// Writes integers: exact into S32, through f32 into everything else.
    pub fn write_i32(&self, arena: &mut [u16], data: &[i32]) {
        let mut values = data[..self.elements()].iter();
        each_row(self.rank, &self.dims, &[self.strides], [self.offset], |[at]| {
            for (x, &value) in (0..self.dims[0] as isize).zip(&mut values) {
                let at = at + x * self.strides[0];
                if self.dtype == DataType::S32 {
                    store32(arena, at, value as u32);
                } else {
                    write_row(arena, at, 0, self.dtype, &[value as f32]);
                }
            }
        });
    }

    /// Constants as a vector; refuses operands that are not in the blob.
    pub fn constants(&self) -> Result<Vec<f32>, String> {
        if !self.is_const() {
            return Err("an operand that must be constant is not in the blob".into());
        }
        let mut values = vec![0.0; self.elements()];
        self.read(&[], &mut values);
        Ok(values)
    }

    /// The same for integers.
    pub fn constant_integers(&self) -> Result<Vec<i32>, String> {
        if !self.is_const() {
            return Err("an operand that must be constant is not in the blob".into());
        }
        let mut values = vec![0; self.elements()];
        self.read_i32(&[], &mut values);
        Ok(values)
    }
}

/// Joins neighbouring dimensions that follow each other without gaps in all of the stride lists; drops dims of 1.
fn collapse<const N: usize>(
    rank: usize,
    dims: &[usize; RANK],
    strides: [&[isize; RANK]; N],
) -> (usize, [usize; RANK], [[isize; RANK]; N]) {
    let mut joined = ([1; RANK], [[0; RANK]; N]);
    let mut count = 0;
    for i in 0..rank {
        if dims[i] == 1 {
            continue;
        }
        let follows = count > 0
            && (0..N).all(|k| strides[k][i] == joined.1[k][count - 1] * joined.0[count - 1] as isize);
        if follows {
            joined.0[count - 1] *= dims[i];
        } else {
            joined.0[count] = dims[i];
            for (joined, strides) in joined.1.iter_mut().zip(strides) {
                joined[count] = strides[i];
            }
            count += 1;
        }
    }
    (count.max(1), joined.0, joined.1)
}

/// Calls `row` with the byte offsets of the beginning of each minor row, in order.
fn each_row<const N: usize>(
    rank: usize,
    dims: &[usize; RANK],
    strides: &[[isize; RANK]; N],
    mut at: [isize; N],
    mut row: impl FnMut([isize; N]),
) {
    let mut index = [0usize; RANK];
    loop {
        row(at);
        let mut d = 1;
        loop {
            if d >= rank {
                return;
            }
            index[d] += 1;
            for k in 0..N {
                at[k] += strides[k][d];
            }
            if index[d] < dims[d] {
                break;
            }
            for k in 0..N {
                at[k] -= strides[k][d] * dims[d] as isize;
            }
            index[d] = 0;
            d += 1;
        }
    }
}

fn load32(words: &[u16], at: isize) -> u32 {
    let at = at as usize / 2;
    u32::from(words[at]) | u32::from(words[at + 1]) << 16
}

fn store32(words: &mut [u16], at: isize, value: u32) {
    let at = at as usize / 2;
    words[at] = value as u16;
    words[at + 1] = (value >> 16) as u16;
}

fn load8(words: &[u16], at: isize) -> u8 {
    (words[at as usize / 2] >> (8 * (at & 1))) as u8
}

fn store8(words: &mut [u16], at: isize, value: u8) {
    let word = &mut words[at as usize / 2];
    let shift = 8 * (at & 1);
    *word = (*word & !(0xFF << shift)) | (u16::from(value) << shift);
}

/// One row of elements, `step` bytes apart, to f32.
fn read_row(words: &[u16], at: isize, step: isize, dtype: DataType, out: &mut [f32]) {
    let n = out.len();
    let first = at as usize / 2;
    if step == 0 && n > 1 {
        read_row(words, at, 0, dtype, &mut out[..1]);
        let value = out[0];
        out.fill(value);
        return;
    }
    let positions = (0..n as isize).map(|i| at + i * step);
    match dtype {
        DataType::F16 if step == 2 || n == 1 => to_f32(&words[first..first + n], out),
        DataType::F16 => {
            for (slot, at) in out.iter_mut().zip(positions) {
                *slot = half::f16::from_bits(words[at as usize / 2]).to_f32();
            }
        }
        DataType::U8 if step == 1 && at % 2 == 0 => {
            let pairs = out.chunks_mut(2).zip(&words[first..first + n.div_ceil(2)]);
            for (pair, &word) in pairs {
                pair[0] = f32::from(word as u8);
                if let Some(second) = pair.get_mut(1) {
                    *second = f32::from((word >> 8) as u8);
                }
            }
        }
        DataType::U8 => out.iter_mut().zip(positions).for_each(|(o, at)| *o = f32::from(load8(words, at))),
        DataType::I8 => {
            out.iter_mut().zip(positions).for_each(|(o, at)| *o = f32::from(load8(words, at) as i8));
        }
        DataType::F32 => {
            out.iter_mut().zip(positions).for_each(|(o, at)| *o = f32::from_bits(load32(words, at)));
        }
        DataType::S32 => {
            out.iter_mut().zip(positions).for_each(|(o, at)| *o = load32(words, at) as i32 as f32);
        }
    }
}

/// One row of elements, `step` bytes apart, from f32.
fn write_row(words: &mut [u16], at: isize, step: isize, dtype: DataType, data: &[f32]) {
    let n = data.len();
    let first = at as usize / 2;
    let positions = (0..n as isize).map(|i| at + i * step);
    match dtype {
        DataType::F16 if step == 2 || n == 1 => from_f32(data, &mut words[first..first + n]),
        DataType::F16 => {
            for (&value, at) in data.iter().zip(positions) {
                words[at as usize / 2] = half::f16::from_f32(value).to_bits();
            }
        }
        // `as` saturates and cuts off towards zero, and makes 0 of NaN.
        DataType::U8 => data.iter().zip(positions).for_each(|(&v, at)| store8(words, at, v as u8)),
        DataType::I8 => data.iter().zip(positions).for_each(|(&v, at)| store8(words, at, v as i8 as u8)),
        DataType::F32 => data.iter().zip(positions).for_each(|(&v, at)| store32(words, at, v.to_bits())),
        DataType::S32 => data.iter().zip(positions).for_each(|(&v, at)| store32(words, at, v as i32 as u32)),
    }
}

/// A move of elements, bit by bit, between two places of equal dims and element size.
#[derive(Debug)]
pub(super) struct Transfer {
    from: Place,
    to: Place,
    rank: usize,
    dims: [usize; RANK],
    strides: [[isize; RANK]; 2],
    /// The source is moved aside first, because writing may change what is still to be read.
    staged: bool,
}

impl Transfer {
    pub fn new(from: Place, to: Place) -> Result<Self, String> {
        if from.dims() != to.dims() {
            return Err(format!("input dims {:?} are not the output's {:?}", from.dims(), to.dims()));
        }
        if from.dtype.bytes() != to.dtype.bytes() {
            return Err("input and output have different element sizes".into());
        }
        let (rank, dims, strides) = collapse(from.rank, &from.dims, [&from.strides, &to.strides]);
        let staged = from.overlaps(&to);
        Ok(Transfer { from, to, rank, dims, strides, staged })
    }

    pub fn elements(&self) -> usize {
        self.to.elements()
    }

    pub fn run(&self, arena: &mut [u16], spare: &mut Vec<u16>) {
        let size = self.to.dtype.bytes();
        let n = self.dims[0];
        let whole = n == 1 || self.strides[0][0] == size as isize && self.strides[1][0] == size as isize;
        match &self.from.source {
            Source::Const(words) => self.run_from(words, 0, arena),
            Source::Arena if !self.staged && whole && size > 1 => {
                let words = n * size / 2;
                self.rows(|a, b| arena.copy_within(a as usize / 2..a as usize / 2 + words, b as usize / 2));
            }
            Source::Arena if !self.staged && size == 2 => {
                let [from, to] = [self.strides[0][0], self.strides[1][0]];
                self.rows(|a, b| {
                    for i in 0..n as isize {
                        arena[(b + i * to) as usize / 2] = arena[(a + i * from) as usize / 2];
                    }
                });
            }
            Source::Arena => {
                let (begin, end) = self.from.span();
                spare.clear();
                spare.extend_from_slice(&arena[begin / 2..end.div_ceil(2)]);
                self.run_from(spare, (begin / 2 * 2) as isize, arena);
            }
        }
    }

    /// The same, reading words of which the first lies at byte `begin` of the source.
    fn run_from(&self, words: &[u16], begin: isize, arena: &mut [u16]) {
        let [from, to] = [self.strides[0][0], self.strides[1][0]];
        let size = self.to.dtype.bytes();
        self.rows(|a, b| {
            for i in 0..self.dims[0] as isize {
                let (a, b) = (a - begin + i * from, b + i * to);
                match size {
                    1 => store8(arena, b, load8(words, a)),
                    2 => arena[b as usize / 2] = words[a as usize / 2],
                    _ => store32(arena, b, load32(words, a)),
                }
            }
        });
    }

    fn rows(&self, mut row: impl FnMut(isize, isize)) {
        let begin = [self.from.offset, self.to.offset];
        each_row(self.rank, &self.dims, &self.strides, begin, |[a, b]| row(a, b));
    }
}
