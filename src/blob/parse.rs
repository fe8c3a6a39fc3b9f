//! Bytes to [`Graph`]: header, sections, inputs and outputs, stages.
use std::collections::HashSet;
use std::ops::Range;

use super::nce;
use super::reader::{Parsed, Reader};
use super::tensor::{DataType, IoTensor, Location, MAX_DIMS, Order, View};
use super::{BlobError, CMX_SLICE_BYTES, Graph, MAX_NAME_BYTES, Stage, StageKind};

/// The version that the 2021.x and 2022.x compilers write.
const VERSION: (u32, u32) = (6, 0);
const ELF_IDENT: [u8; 4] = [0x7F, b'e', b'l', b'f'];
const BLOB_MAGIC: u32 = 9709;
const HEADER_OFFSET: usize = 52;
const HEADER_END: usize = 132;
/// Closes every stage record.
const STAGE_END_MARK: u32 = 0x7F83_FF19;
/// Length, type, SHAVEs, parameter length; type again and end mark.
const MIN_STAGE_BYTES: usize = 24;
/// Index, offset, name length, descriptor.
const MIN_IO_BYTES: usize = 40;

/// The stick's whole memory. What needs more can not run, and a damaged size must not make the host allocate.
const STICK_MEMORY_BYTES: usize = 512 << 20;
/// The chip's CMX is 2.5 MB; the compiler uses 19 slices at most.
const MAX_CMX_SLICES: u32 = 20;
/// The chip has 16 SHAVE cores.
const MAX_SHAVES: u32 = 16;
/// Two hundred times the largest graph seen. With [`MAX_VIEWS`] it bounds the memory of a parsed hostile file.
const MAX_STAGES: usize = 1 << 16;
const MAX_VIEWS: usize = 1 << 20;
/// The device's FIFO commands and the caller's arrays stay small; real networks have a dozen.
const MAX_IO: usize = 1 << 12;

const DYNAMIC_SHAPES: &str = "dynamic shapes unsupported (dimensions known at run time only): \
     recompile the network with fixed input shapes";

/// The compiler takes the major dim of the inputs for the batch of everything, also where an output has none.
const NO_BATCH: &str = "a tensor has no batch, the network was compiled for one: \
     recompile it with MYRIAD_DETECT_NETWORK_BATCH=NO";

pub(super) fn graph(bytes: &[u8]) -> Parsed<Graph> {
    let header = Header::read(bytes)?;
    let const_bytes = bytes.len() - header.const_offset;

    let mut areas = Areas {
        bytes,
        const_offset: header.const_offset,
        const_bytes,
        bss_bytes: header.bss_bytes,
        cmx_bytes: header.cmx_slices as usize * CMX_SLICE_BYTES,
        batch: header.batch,
        inputs: Vec::new(),
        outputs: Vec::new(),
        views: 0,
    };
    areas.inputs = areas.io_tensors(header.input_section, header.inputs, header.input_bytes, "input")?;
    areas.outputs = areas.io_tensors(header.output_section, header.outputs, header.output_bytes, "output")?;

    let section = header.stage_section;
    let mut reader = Reader::new(bytes, section.start, section.end);
    let mut stages = Vec::with_capacity(header.stages.min(section.len() / MIN_STAGE_BYTES));
    for index in 0..header.stages {
        let stage = areas.stage(&mut reader, 0).map_err(|e| e.within(format_args!("stage {index}")))?;
        stages.push(stage);
    }

    Ok(Graph {
        version: VERSION,
        file_bytes: bytes.len(),
        input_bytes: header.input_bytes,
        output_bytes: header.output_bytes,
        batch: header.batch,
        bss_bytes: header.bss_bytes,
        cmx_slices: header.cmx_slices,
        shaves: header.shaves,
        const_offset: header.const_offset,
        inputs: areas.inputs,
        outputs: areas.outputs,
        stages,
    })
}

struct Header {
    inputs: usize,
    outputs: usize,
    stages: usize,
    input_bytes: usize,
    output_bytes: usize,
    batch: u32,
    bss_bytes: usize,
    cmx_slices: u32,
    shaves: u32,
    input_section: Range<usize>,
    output_section: Range<usize>,
    stage_section: Range<usize>,
    const_offset: usize,
}

impl Header {
    fn read(bytes: &[u8]) -> Parsed<Header> {
        if !bytes.starts_with(&ELF_IDENT) {
            let found = &bytes[..bytes.len().min(4)];
            let problem = format!("{ELF_IDENT:02x?} expected, {found:02x?} found: no compiled graph");
            return Err(BlobError::new(0, "file mark", problem));
        }
        if bytes.len() < HEADER_END {
            let problem = format!("at least {HEADER_END} bytes expected, {} found", bytes.len());
            return Err(BlobError::new(bytes.len(), "header", problem));
        }
        let mut r = Reader::new(bytes, HEADER_OFFSET, HEADER_END);
        let magic = r.u32("magic")?;
        if magic != BLOB_MAGIC {
            let problem = format!("{BLOB_MAGIC} expected, {magic} found: no compiled graph");
            return Err(BlobError::new(HEADER_OFFSET, "magic", problem));
        }
        let size_at = r.pos();
        let file_bytes = r.usize("file size")?;
        // Before the size: another version may have another header, and the user should hear of the version.
        let version_at = r.pos();
        let version = (r.u32("version")?, r.u32("version")?);
        if version != VERSION {
            let problem = format!("{}.{} expected, {}.{} found", VERSION.0, VERSION.1, version.0, version.1);
            return Err(BlobError::new(version_at, "version", problem));
        }
        if file_bytes != bytes.len() {
            let problem = format!("{file_bytes} bytes announced, the file has {}", bytes.len());
            return Err(BlobError::new(size_at, "file size", problem));
        }

        let counts_at = r.pos();
        let inputs = r.usize("number of inputs")?;
        let outputs = r.usize("number of outputs")?;
        let stages_at = r.pos();
        let stages = r.usize("number of stages")?;
        let memory = STICK_MEMORY_BYTES as u32;
        let input_bytes = r.at_most(memory, "input bytes")? as usize;
        let output_bytes = r.at_most(memory, "output bytes")? as usize;
        let batch = r.between(1, u32::MAX, "batch")?;
        let bss_bytes = r.at_most(memory, "scratch (BSS) bytes")? as usize;
        let needs = bytes.len() as u64 + bss_bytes as u64 + input_bytes as u64 + output_bytes as u64;
        if needs > u64::from(memory) {
            let problem =
                format!("file, inputs, outputs and scratch need {needs} bytes, a stick has {memory}");
            return Err(BlobError::new(r.pos() - 4, "scratch (BSS) bytes", problem));
        }
        let cmx_slices = r.at_most(MAX_CMX_SLICES, "CMX slices")?;
        let shaves = r.at_most(MAX_SHAVES, "SHAVE cores")?;
        for flag in ["has NCE stages", "has SHAVE stages", "has DMA stages"] {
            r.u32(flag)?;
        }

        let offsets_at = r.pos();
        let mut offsets = [0usize; 4];
        let mut least = HEADER_END;
        let sections = ["input section", "output section", "stage section", "constant section"];
        for (i, section) in sections.into_iter().enumerate() {
            let offset = r.usize(section)?;
            if offset < least || offset > bytes.len() {
                let problem = format!("offset {least} to {} expected, {offset} found", bytes.len());
                return Err(BlobError::new(offsets_at + 4 * i, section, problem));
            }
            offsets[i] = offset;
            least = offset;
        }

        let fits =
            |at: usize, count: usize, range: Range<usize>, unit: usize, most: usize, field: &'static str| {
                let room = (range.len() / unit).min(most);
                if count == 0 || count > room {
                    let problem = format!("1 to {room} expected (what the section can hold), {count} found");
                    return Err(BlobError::new(at, field, problem));
                }
                Ok(())
            };
        let [input_at, output_at, stage_at, const_offset] = offsets;
        fits(counts_at, inputs, input_at..output_at, MIN_IO_BYTES, MAX_IO, "number of inputs")?;
        fits(counts_at + 4, outputs, output_at..stage_at, MIN_IO_BYTES, MAX_IO, "number of outputs")?;
        fits(stages_at, stages, stage_at..const_offset, MIN_STAGE_BYTES, MAX_STAGES, "number of stages")?;

        Ok(Header {
            inputs,
            outputs,
            stages,
            input_bytes,
            output_bytes,
            batch,
            bss_bytes,
            cmx_slices,
            shaves,
            input_section: input_at..output_at,
            output_section: output_at..stage_at,
            stage_section: stage_at..const_offset,
            const_offset,
        })
    }
}

/// Dims and strides of a descriptor, checked among themselves but not yet against an area.
struct Shape {
    dtype: DataType,
    order: Order,
    dims: Vec<u32>,
    strides: Vec<u32>,
}

impl Shape {
    /// Bytes from the first element to the end of the last. Fits: `checked` made sure.
    fn span_bytes(&self) -> usize {
        let last: usize =
            self.dims.iter().zip(&self.strides).map(|(&d, &s)| (d as usize - 1) * s as usize).sum();
        last + self.dtype.bytes()
    }
}

/// The memory areas that views are checked against.
struct Areas<'a> {
    bytes: &'a [u8],
    const_offset: usize,
    const_bytes: usize,
    bss_bytes: usize,
    cmx_bytes: usize,
    batch: u32,
    inputs: Vec<IoTensor>,
    outputs: Vec<IoTensor>,
    views: usize,
}

impl<'a> Areas<'a> {
    fn io_tensors(
        &self,
        section: Range<usize>,
        count: usize,
        element_bytes: usize,
        direction: &'static str,
    ) -> Parsed<Vec<IoTensor>> {
        let mut reader = Reader::new(self.bytes, section.start, section.end);
        let mut tensors = Vec::with_capacity(count);
        let mut names = HashSet::with_capacity(count);
        for index in 0..count {
            let at = reader.pos();
            let tensor = self
                .io_tensor(&mut reader, index, element_bytes)
                .map_err(|e| e.within(format_args!("{direction} {index}")))?;
            if !names.insert(tensor.name.clone()) {
                let problem = format!("two of them are called {:?}", tensor.name);
                return Err(BlobError::new(at, format!("{direction} {index} / name"), problem));
            }
            tensors.push(tensor);
        }
        // Each has its own place, since what the device or the caller writes to one must not change another; together
        // they fill the element.
        let mut places: Vec<_> = tensors.iter().enumerate().map(|(i, t)| (t.offset, i, t.bytes())).collect();
        places.sort_unstable();
        let mut end = 0;
        for (offset, index, bytes) in places {
            if (offset as u64) < end {
                let problem =
                    format!("byte {end} or later expected, {offset} found: it overlaps another {direction}");
                return Err(BlobError::new(section.start, format!("{direction} {index} / offset"), problem));
            }
            end = offset as u64 + bytes as u64 * u64::from(self.batch);
        }
        if end != element_bytes as u64 {
            let problem = format!("{element_bytes} bytes announced, the {direction}s take {end}");
            return Err(BlobError::new(section.start, format!("{direction} bytes"), problem));
        }
        Ok(tensors)
    }

    fn io_tensor(&self, r: &mut Reader<'a>, index: usize, element_bytes: usize) -> Parsed<IoTensor> {
        let at = r.pos();
        let found = r.usize("index")?;
        if found != index {
            return Err(BlobError::new(at, "index", format!("{index} expected, {found} found")));
        }
        let offset_at = r.pos();
        let offset = r.i32("offset")?;
        let offset = usize::try_from(offset).map_err(|_| {
            BlobError::new(offset_at, "offset", format!("0 or more expected, {offset} found"))
        })?;
        let name_bytes = r.at_most(MAX_NAME_BYTES as u32, "name length")? as usize;
        let name_at = r.pos();
        let field = r.take(name_bytes, "name")?;
        let name = field.split(|&b| b == 0).next().unwrap_or_default();
        let name = std::str::from_utf8(name)
            .ok()
            .filter(|name| !name.is_empty())
            .ok_or_else(|| BlobError::new(name_at, "name", "text expected, none or no UTF-8 found"))?;

        let shape_at = r.pos();
        let shape = self.shape(r)?;
        let span = shape.span_bytes();
        let Shape { dtype, order, dims, strides } = shape;
        let tensor = IoTensor { name: name.to_owned(), dtype, order, dims, strides, offset };
        if tensor.bytes() < span {
            let problem =
                format!("major stride × major dim is {} bytes, the elements span {span}", tensor.bytes());
            return Err(BlobError::new(shape_at, "strides", problem));
        }
        // All elements of the batch of one tensor lie together.
        let end = (tensor.bytes() as u64 * u64::from(self.batch)).saturating_add(offset as u64);
        if end > element_bytes as u64 {
            let problem = format!(
                "{} bytes × batch {} at offset {offset} expected to end within {element_bytes}, ends at {end}",
                tensor.bytes(),
                self.batch
            );
            let error = BlobError::new(offset_at, "offset", problem);
            let without_batch = tensor.bytes().saturating_add(offset) <= element_bytes;
            return Err(if without_batch { error.with_remedy(NO_BATCH) } else { error });
        }
        Ok(tensor)
    }

    /// Data descriptor: seven words, with dims and strides in the constant section.
    fn shape(&self, r: &mut Reader<'a>) -> Parsed<Shape> {
        let at = r.pos();
        let code = r.u32("element type")?;
        let dtype = DataType::from_code(code)
            .ok_or_else(|| BlobError::new(at, "element type", format!("0 to 4 expected, {code} found")))?;
        let order_at = r.pos();
        let order = Order(r.u32("order")?);
        let ndims = r.between(1, MAX_DIMS as u32, "number of dimensions")? as usize;
        if !is_order_of(order, ndims) {
            let problem = format!("{ndims} different hex digits other than 0 expected, {:#x} found", order.0);
            return Err(BlobError::new(order_at, "order", problem));
        }
        let (dims_at, dims) = self.words(r, ndims, "dims")?;
        let (strides_at, strides) = self.words(r, ndims, "strides")?;

        let mut data_bytes = dtype.bytes() as u64;
        let mut span = dtype.bytes() as u64;
        for (i, (&dim, &stride)) in dims.iter().zip(&strides).enumerate() {
            if dim == 0 {
                return Err(BlobError::new(dims_at + 4 * i, "dims", "1 or more expected, 0 found"));
            }
            // Each factor is below 2^32 and the sums stop at the bound, so that nothing can overflow.
            data_bytes = data_bytes.saturating_mul(u64::from(dim));
            span = span.saturating_add(u64::from(dim - 1) * u64::from(stride));
        }
        if strides[0] as usize != dtype.bytes() {
            let problem = format!("minor stride of {} bytes expected, {} found", dtype.bytes(), strides[0]);
            return Err(BlobError::new(strides_at, "strides", problem));
        }
        let bound = STICK_MEMORY_BYTES as u64;
        if data_bytes > bound || span > bound {
            let problem = format!("dims {dims:?} with strides {strides:?} exceed the stick's memory");
            return Err(BlobError::new(dims_at, "dims", problem));
        }
        Ok(Shape { dtype, order, dims, strides })
    }

    /// An array of `count` words that the descriptor points to.
    fn words(&self, r: &mut Reader<'a>, count: usize, field: &'static str) -> Parsed<(usize, Vec<u32>)> {
        let at = r.pos();
        let location = r.u32("location")?;
        let offset = r.usize("offset")?;
        match location {
            3 => {}
            1 | 2 | 4 | 5 => return Err(BlobError::new(at, field, DYNAMIC_SHAPES)),
            other => {
                let problem = format!("location 3 (in the file) expected, {other} found");
                return Err(BlobError::new(at, field, problem));
            }
        }
        let start = self.const_offset + offset;
        let room = self.bytes.get(start..).and_then(|rest| rest.get(..4 * count));
        let Some(array) = room else {
            let problem =
                format!("{count} words at {offset} expected within the {} constant bytes", self.const_bytes);
            return Err(BlobError::new(at + 4, field, problem));
        };
        let words = array.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        Ok((start, words))
    }

    /// Descriptor, location, offset: checked against the area.
    fn view(&mut self, r: &mut Reader<'a>) -> Parsed<View> {
        let at = r.pos();
        self.views += 1;
        if self.views > MAX_VIEWS {
            return Err(BlobError::new(at, "buffers", format!("at most {MAX_VIEWS} in a file expected")));
        }
        let shape = self.shape(r)?;
        let location_at = r.pos();
        let location = match r.u32("location")? {
            0 => Location::None,
            1 => Location::Input(self.io_index(r, Direction::Input)?),
            2 => Location::Output(self.io_index(r, Direction::Output)?),
            3 => Location::Blob,
            4 => Location::Bss,
            5 => Location::Cmx,
            other => {
                return Err(BlobError::new(
                    location_at,
                    "location",
                    format!("0 to 5 expected, {other} found"),
                ));
            }
        };
        let offset_at = r.pos();
        let offset = r.usize("offset")?;
        let span = shape.span_bytes();
        let area = match location {
            Location::None => None,
            Location::Input(i) => Some(self.inputs[i as usize].bytes()),
            Location::Output(i) => Some(self.outputs[i as usize].bytes()),
            Location::Blob => Some(self.const_bytes),
            Location::Bss => Some(self.bss_bytes),
            Location::Cmx => Some(self.cmx_bytes),
        };
        if let Some(area) = area
            && (offset > area || span > area - offset)
        {
            let problem =
                format!("{span} bytes at {offset} expected within the {area} bytes of {location:?}");
            return Err(BlobError::new(offset_at, "offset", problem));
        }
        let Shape { dtype, order, dims, strides } = shape;
        Ok(View { dtype, order, dims, strides, location, offset })
    }

    /// Index of an input or output and the byte size of that tensor, which the compiler repeats.
    fn io_index(&self, r: &mut Reader<'a>, direction: Direction) -> Parsed<u32> {
        let at = r.pos();
        let index = r.u32("tensor index")?;
        let size_at = r.pos();
        let size = r.usize("tensor size")?;
        let tensors = match direction {
            Direction::Input => &self.inputs,
            Direction::Output => &self.outputs,
        };
        let Some(tensor) = tensors.get(index as usize) else {
            let problem = format!("below {} expected, {index} found", tensors.len());
            return Err(BlobError::new(at, "tensor index", problem));
        };
        // Of one element of the batch; the whole batch is let pass too, since views are checked against one element.
        if size != tensor.bytes() && size as u64 != tensor.bytes() as u64 * u64::from(self.batch) {
            let problem = format!("{} bytes expected for {:?}, {size} found", tensor.bytes(), tensor.name);
            return Err(BlobError::new(size_at, "tensor size", problem));
        }
        Ok(index)
    }

    /// One stage record; `depth` is 1 inside another stage.
    fn stage(&mut self, r: &mut Reader<'a>, depth: usize) -> Parsed<Stage> {
        let start = r.pos();
        let length = { *r }.u32("length")? as usize;
        if length < MIN_STAGE_BYTES || length > r.rest() {
            let problem = format!("{MIN_STAGE_BYTES} to {} bytes expected, {length} found", r.rest());
            return Err(BlobError::new(start, "length", problem));
        }
        let mut record = r.sub(length, "record")?;
        record.u32("length")?;
        let kind = StageKind(record.u32("type")?);
        let shaves = record.u32("SHAVEs")?;

        let params_at = record.pos();
        let params_len = record.usize("parameter length")?;
        let room = record.rest() + 4 - 8;
        if params_len < 4 || params_len > room {
            let problem = format!("4 to {room} bytes expected, {params_len} found");
            return Err(BlobError::new(params_at, "parameter length", problem));
        }
        let mut params = record.sub(params_len - 4, "parameters")?;
        let params_range = params.pos()..params.pos() + params.rest();

        let mut operands = record.sub(record.rest() - 8, "buffers")?;
        let mut announced = None;
        if kind == StageKind::NCE {
            announced = Some((operands.pos(), operands.usize("number of buffers")?));
        }
        let mut buffers = Vec::new();
        while !operands.is_at_end() {
            let index = buffers.len();
            buffers.push(self.view(&mut operands).map_err(|e| e.within(format_args!("buffer {index}")))?);
        }
        buffers.shrink_to_fit();
        if let Some((at, count)) = announced
            && count != buffers.len()
        {
            let problem = format!("{count} announced, {} found", buffers.len());
            return Err(BlobError::new(at, "number of buffers", problem));
        }

        let tail_at = record.pos();
        let tail = (record.u32("type")?, record.u32("end mark")?);
        if tail != (kind.0, STAGE_END_MARK) {
            let problem = format!(
                "type {} and {STAGE_END_MARK:#x} expected, {} and {:#x} found",
                kind.0, tail.0, tail.1
            );
            return Err(BlobError::new(tail_at, "end mark", problem));
        }

        let mut nce = None;
        let mut injected = None;
        if kind == StageKind::NCE {
            nce = Some(nce::read(&mut params, &buffers)?);
            let flag_at = params.pos();
            if params.flag("injected flag")? {
                if depth > 0 {
                    let problem = "a stage inside an injected stage, one level expected";
                    return Err(BlobError::new(flag_at, "injected stage", problem));
                }
                injected = Some(Box::new(
                    self.stage(&mut params, depth + 1).map_err(|e| e.within("injected stage"))?,
                ));
            }
            if !params.is_at_end() {
                let problem = format!("{} bytes too many", params.rest());
                return Err(BlobError::new(params.pos(), "parameters", problem));
            }
        }
        Ok(Stage {
            kind,
            shaves,
            record: start..start + length,
            params: params_range,
            buffers,
            nce,
            injected,
        })
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Input,
    Output,
}

/// True where the code has exactly `ndims` digits, all different, none 0.
fn is_order_of(order: Order, ndims: usize) -> bool {
    let mut seen = 0u32;
    let mut rest = order.0;
    for _ in 0..ndims {
        let bit = 1 << (rest & 0xF);
        if bit == 1 || seen & bit != 0 {
            return false;
        }
        seen |= bit;
        rest >>= 4;
    }
    rest == 0
}
