//! Recipes: how a caller's tensors become an input element, and an output element numbers again.

use std::fmt;
use std::sync::Arc;

use half::f16;
use zerocopy::FromBytes;

use super::{Affine, f16_to_f32, f32_to_f16, f32_to_u8, layout, source_channel, u8_to_f16, u8_to_f32};
use crate::blob::{DataType, Graph, IoTensor};
use crate::error::{Error, ErrorKind, Result};

/// A caller's numbers, shared so that they can travel to another thread without a copy. All batch elements of one input,
/// one behind the other.
#[derive(Clone, Debug)]
pub enum Numbers {
    /// Bytes, such as pixels.
    U8(Arc<[u8]>),
    /// Halves.
    F16(Arc<[f16]>),
    /// Singles.
    F32(Arc<[f32]>),
}

/// How the caller's numbers follow each other within one batch element.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Layout {
    /// Channel after channel, NCHW: what networks take.
    #[default]
    Planar,
    /// Pixel after pixel, NHWC: what cameras and decoders give.
    Interleaved,
}

/// Makes numbers of the size that the network takes out of those that the caller gave.
pub type Resize = dyn Fn(&Numbers, &IoTensor) -> Result<Numbers> + Send + Sync;

/// One input of a network.
#[derive(Clone, Default)]
pub struct InputRecipe {
    /// Order of the caller's numbers.
    pub layout: Layout,
    /// Subtracted: none, one for all, or one for each channel of the network.
    pub mean: Vec<f32>,
    /// Divided by after that: none, one for all, or one for each channel of the network.
    pub scale: Vec<f32>,
    /// Exchanges the first and last channel: RGB pictures for a network that takes BGR.
    pub bgr: bool,
    /// Runs first.
    pub resize: Option<Arc<Resize>>,
}

/// Ways of all inputs and outputs.
#[derive(Clone, Debug, Default)]
pub struct Recipe {
    /// In the order of [`Graph::inputs`]; those that are missing take the numbers as they are.
    pub inputs: Vec<InputRecipe>,
    /// So many of the largest values of each output, with their places, largest first; 0 for none.
    pub top: usize,
}

impl Numbers {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Numbers::U8(v) => v.len(),
            Numbers::F16(v) => v.len(),
            Numbers::F32(v) => v.len(),
        }
    }

    /// True for none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn dtype(&self) -> DataType {
        match self {
            Numbers::U8(_) => DataType::U8,
            Numbers::F16(_) => DataType::F16,
            Numbers::F32(_) => DataType::F32,
        }
    }
}

impl fmt::Debug for InputRecipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let InputRecipe { layout, mean, scale, bgr, resize } = self;
        let resize = resize.is_some();
        write!(f, "InputRecipe({layout:?}, mean {mean:?}, scale {scale:?}, bgr {bgr}, resize {resize})")
    }
}

/// Memory that a thread keeps from one conversion to the next.
#[derive(Default)]
pub struct Scratch {
    u8: Vec<u8>,
    f16: Vec<f16>,
    f32: Vec<f32>,
    packed: Vec<u64>,
}

fn fits(tensor: &IoTensor, given: &Numbers, expected: usize) -> Result<()> {
    if given.len() == expected {
        return Ok(());
    }
    Err(invalid(format!("input {}: expected {expected} numbers, found {}", tensor.name, given.len())))
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidInput, "prepare input").detail(detail)
}

impl Recipe {
    /// Checks what can be known before any number is there.
    ///
    /// # Errors
    /// `InvalidInput` for means and scales that do not fit the channels, a scale of zero, more recipes than inputs;
    /// `Unsupported` for inputs of whole numbers beyond bytes.
    pub fn check(&self, graph: &Graph) -> Result<()> {
        if self.inputs.len() > graph.inputs.len() {
            return Err(invalid(format!(
                "{} inputs described, the network has {}",
                self.inputs.len(),
                graph.inputs.len()
            )));
        }
        for (tensor, recipe) in graph.inputs.iter().zip(&self.inputs) {
            recipe.check(tensor)?;
        }
        Ok(())
    }

    /// Fills a whole input element ([`Graph::input_bytes`]) from the numbers of every input. Gaps between rows are left alone.
    ///
    /// # Errors
    /// As [`Recipe::check`]; `InvalidInput` for too few or too many numbers; what a resize hook says.
    pub fn prepare(
        &self,
        graph: &Graph,
        numbers: &[Numbers],
        element: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.check(graph)?;
        if numbers.len() != graph.inputs.len() {
            let (found, of) = (numbers.len(), graph.inputs.len());
            return Err(invalid(format!("numbers for {found} inputs were given, the network has {of}")));
        }
        let plain = InputRecipe::default();
        let batch = graph.batch.max(1) as usize;
        for (at, (tensor, given)) in graph.inputs.iter().zip(numbers).enumerate() {
            let recipe = self.inputs.get(at).unwrap_or(&plain);
            let resized = recipe.resized(tensor, given)?;
            let given = resized.as_ref().unwrap_or(given);
            let count = layout::elements(tensor);
            fits(tensor, given, count * batch)?;
            for b in 0..batch {
                let from = tensor.offset + b * tensor.bytes();
                let to = &mut element[from..from + tensor.bytes()];
                recipe.lay(tensor, given, b * count..(b + 1) * count, to, scratch);
            }
        }
        Ok(())
    }

    /// The outputs as singles, packed in the order that users write (N, C, H, W), and the largest of each.
    pub fn finish(&self, graph: &Graph, tensors: &[&[u8]]) -> Vec<Finished> {
        let batch = graph.batch.max(1) as usize;
        graph
            .outputs
            .iter()
            .zip(tensors)
            .map(|(tensor, bytes)| {
                let mut values = Vec::with_capacity(layout::elements(tensor) * batch);
                for b in 0..batch {
                    let packed = layout::gather(tensor, &bytes[b * tensor.bytes()..]);
                    append(tensor.dtype, &packed, &mut values);
                }
                Finished { top: largest(&values, self.top), values }
            })
            .collect()
    }
}

/// An output as numbers.
#[derive(Clone, PartialEq, Debug)]
pub struct Finished {
    /// All batch elements.
    pub values: Vec<f32>,
    /// Places and values of the largest, largest first; NaN never is.
    pub top: Vec<(usize, f32)>,
}

/// Size of the dimension that means and scales belong to: C of NC, CHW, NCHW, NCDHW. 1 where others lie outside of it.
fn channels(tensor: &IoTensor) -> usize {
    let shape = layout::shape(tensor);
    let at = if matches!(shape.len(), 1 | 3) { 0 } else { 1 };
    let outside: usize = shape.iter().take(at).product();
    if outside == 1 { shape.get(at).copied().unwrap_or(1) } else { 1 }
}

impl InputRecipe {
    /// Checks what can be known before any number is there.
    ///
    /// # Errors
    /// As [`Recipe::check`].
    pub fn check(&self, tensor: &IoTensor) -> Result<()> {
        let channels = channels(tensor);
        for (what, values) in [("means", &self.mean), ("scales", &self.scale)] {
            if !matches!(values.len(), 0 | 1) && values.len() != channels {
                let found = values.len();
                return Err(invalid(format!(
                    "input {}: expected 1 or {channels} {what}, found {found}",
                    tensor.name
                )));
            }
        }
        if self.scale.iter().any(|s| !s.is_normal()) || self.mean.iter().any(|m| !m.is_finite()) {
            return Err(invalid(format!(
                "input {}: expected scales other than 0, and finite means",
                tensor.name
            )));
        }
        if matches!(tensor.dtype, DataType::I8 | DataType::S32) {
            let detail =
                format!("input {} takes {}; lay out its bytes yourself", tensor.name, tensor.dtype.as_str());
            return Err(Error::new(ErrorKind::Unsupported, "prepare input").detail(detail));
        }
        Ok(())
    }

    /// One batch element in the network's own type, packed in the order that users write (N, C, H, W): what
    /// [`layout::scatter`] takes.
    ///
    /// # Errors
    /// As [`Recipe::prepare`].
    pub fn packed(&self, tensor: &IoTensor, given: &Numbers) -> Result<Vec<u8>> {
        self.check(tensor)?;
        let resized = self.resized(tensor, given)?;
        let given = resized.as_ref().unwrap_or(given);
        let count = layout::elements(tensor);
        fits(tensor, given, count)?;
        let bytes = count * tensor.dtype.bytes();
        // Words, so that numbers of every type lie aligned in them.
        let mut words = vec![0u64; bytes.div_ceil(8)];
        let to = &mut zerocopy::IntoBytes::as_mut_bytes(words.as_mut_slice())[..bytes];
        self.pack(tensor, given, 0..count, to, &mut Scratch::default());
        Ok(to.to_vec())
    }

    fn resized(&self, tensor: &IoTensor, given: &Numbers) -> Result<Option<Numbers>> {
        self.resize.as_ref().map(|resize| resize(given, tensor)).transpose()
    }

    /// `(x − mean) / scale` for one channel of the network.
    fn affine(&self, channel: usize) -> Affine {
        let of = |values: &[f32], none: f32| match values {
            [] => none,
            [one] => *one,
            all => all[channel],
        };
        Affine::mean_scale(of(&self.mean, 0.0), 1.0 / of(&self.scale, 1.0))
    }

    fn changes_nothing(&self, tensor: &IoTensor, given: &Numbers) -> bool {
        let in_order = self.layout == Layout::Planar && !self.bgr;
        self.mean.is_empty() && self.scale.is_empty() && in_order && given.dtype() == tensor.dtype
    }

    /// One batch element: into its place, written once where the tensor is packed.
    fn lay(
        &self,
        tensor: &IoTensor,
        given: &Numbers,
        range: std::ops::Range<usize>,
        to: &mut [u8],
        scratch: &mut Scratch,
    ) {
        let bytes = range.len() * tensor.dtype.bytes();
        let aligned = (to.as_ptr() as usize).is_multiple_of(tensor.dtype.bytes());
        if aligned && layout::is_packed(tensor) {
            return self.pack(tensor, given, range, &mut to[..bytes], scratch);
        }
        // Words, so that numbers of every type lie aligned in it.
        let mut packed = std::mem::take(&mut scratch.packed);
        packed.resize(bytes.div_ceil(8), 0);
        let whole = zerocopy::IntoBytes::as_mut_bytes(packed.as_mut_slice());
        self.pack(tensor, given, range, &mut whole[..bytes], scratch);
        layout::scatter(tensor, &whole[..bytes], to);
        scratch.packed = packed;
    }

    fn pack(
        &self,
        tensor: &IoTensor,
        given: &Numbers,
        range: std::ops::Range<usize>,
        to: &mut [u8],
        scratch: &mut Scratch,
    ) {
        if self.changes_nothing(tensor, given) {
            let bytes = match given {
                Numbers::U8(v) => &v[range],
                Numbers::F16(v) => zerocopy::IntoBytes::as_bytes(&v[range]),
                Numbers::F32(v) => zerocopy::IntoBytes::as_bytes(&v[range]),
            };
            return to.copy_from_slice(bytes);
        }
        let channels = channels(tensor);
        let plane = to.len() / channels.max(1);
        let pixels = range.len() / channels.max(1);
        for (channel, to) in to.chunks_exact_mut(plane.max(1)).enumerate() {
            let from = source_channel(channel, channels, self.bgr);
            let affine = self.affine(channel);
            let picked = Picked { layout: self.layout, channel: from, channels, pixels };
            match given {
                Numbers::U8(v) => {
                    from_u8(picked.of(&v[range.clone()], &mut scratch.u8), to, tensor.dtype, affine)
                }
                Numbers::F16(v) => {
                    let halves = picked.of(&v[range.clone()], &mut scratch.f16);
                    scratch.f32.resize(halves.len(), 0.0);
                    f16_to_f32(halves, &mut scratch.f32);
                    from_f32(&scratch.f32, to, tensor.dtype, affine);
                }
                Numbers::F32(v) => {
                    from_f32(picked.of(&v[range.clone()], &mut scratch.f32), to, tensor.dtype, affine)
                }
            }
        }
    }
}

/// One channel of a batch element.
struct Picked {
    layout: Layout,
    channel: usize,
    channels: usize,
    pixels: usize,
}

impl Picked {
    /// Its numbers: in their place where they lie together, else collected.
    fn of<'a, T: Copy>(&self, element: &'a [T], scratch: &'a mut Vec<T>) -> &'a [T] {
        match self.layout {
            Layout::Planar => &element[self.channel * self.pixels..][..self.pixels],
            Layout::Interleaved => {
                scratch.clear();
                scratch.extend(element.iter().skip(self.channel).step_by(self.channels));
                scratch
            }
        }
    }
}

/// A tensor's memory as its numbers; `lay` sees to it that it is aligned.
fn typed<T: FromBytes + zerocopy::IntoBytes>(bytes: &mut [u8]) -> &mut [T] {
    <[T]>::mut_from_bytes(bytes).expect("whole numbers, aligned")
}

fn from_u8(numbers: &[u8], to: &mut [u8], dtype: DataType, affine: Affine) {
    match dtype {
        DataType::F16 => u8_to_f16(numbers, typed(to), affine),
        DataType::F32 => u8_to_f32(numbers, typed(to), affine),
        // Bytes for bytes: rounded, as the network would have them.
        _ if affine == Affine::IDENTITY => to.copy_from_slice(numbers),
        _ => numbers.iter().zip(to).for_each(|(&x, y)| {
            let value = f32::from(x) * affine.mul + affine.add;
            *y = value.round_ties_even().clamp(0.0, 255.0) as u8;
        }),
    }
}

fn from_f32(numbers: &[f32], to: &mut [u8], dtype: DataType, affine: Affine) {
    match dtype {
        DataType::F16 => f32_to_f16(numbers, typed(to), affine),
        DataType::F32 => {
            numbers.iter().zip(typed::<f32>(to)).for_each(|(&x, y)| *y = x * affine.mul + affine.add);
        }
        _ => f32_to_u8(numbers, to, affine),
    }
}

fn append(dtype: DataType, packed: &[u8], values: &mut Vec<f32>) {
    let at = values.len();
    match dtype {
        DataType::F16 => {
            // Packed bytes are a vector's and may lie anywhere: halves are read one by one where they do.
            let count = packed.len() / 2;
            values.resize(at + count, 0.0);
            match <[f16]>::ref_from_bytes(packed) {
                Ok(halves) => f16_to_f32(halves, &mut values[at..]),
                Err(_) => {
                    let halves = packed.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b).to_f32());
                    values[at..].iter_mut().zip(halves).for_each(|(to, x)| *to = x);
                }
            }
        }
        DataType::F32 => values.extend(packed.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b))),
        DataType::S32 => {
            values.extend(packed.as_chunks::<4>().0.iter().map(|&b| i32::from_le_bytes(b) as f32))
        }
        DataType::U8 => values.extend(packed.iter().map(|&b| f32::from(b))),
        DataType::I8 => values.extend(packed.iter().map(|&b| f32::from(b.cast_signed()))),
    }
}

/// The `count` largest with their places. Equal ones keep their order.
fn largest(values: &[f32], count: usize) -> Vec<(usize, f32)> {
    let mut top: Vec<(usize, f32)> = Vec::with_capacity(count.min(values.len()));
    for (place, &value) in values.iter().enumerate().filter(|(_, v)| !v.is_nan()) {
        if top.len() == count && top.last().is_none_or(|&(_, least)| value <= least) {
            continue;
        }
        let at = top.partition_point(|&(_, v)| v >= value);
        top.insert(at, (place, value));
        top.truncate(count);
    }
    top
}

#[cfg(test)]
mod tests;
