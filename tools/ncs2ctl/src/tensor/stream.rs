//! Tensors one behind the other on a pipe: `.npy` arrays, or raw values behind their length. A reader finds out which by
//! the first bytes; answers are written in the same form.

use std::io::{self, BufRead, Write};
use std::path::Path;

use ncs2::ErrorKind;
use ncs2::blob::{Graph, IoTensor};

use super::input::{self, Element};
use super::{Array, layout, npy};
use crate::failure::{Failure, Result};

const MAGIC: &[u8] = b"\x93NUMPY";
/// Bytes of `.npy` before its header: magic, version, length.
const NPY_FRONT: usize = 10;
/// Longest header that is taken; numpy writes 118 bytes for ordinary arrays.
const MAX_HEADER: usize = 64 << 10;
/// Widest number of an array.
const WIDEST: usize = 8;

/// How tensors are told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// Each says its own type and shape.
    Npy,
    /// 32 bits of length in bytes, little-endian, then packed values of the network's own type.
    Length,
}

/// Reads inferences.
pub struct Inputs<R> {
    reader: R,
    framing: Option<Framing>,
    count: usize,
}

impl<R: BufRead> Inputs<R> {
    /// From the start of a stream.
    pub fn new(reader: R) -> Self {
        Inputs { reader, framing: None, count: 0 }
    }

    /// What the stream consists of; known from the first tensor on.
    pub fn framing(&self) -> Option<Framing> {
        self.framing
    }

    /// The next inference, all inputs of it; `None` at the end of the stream.
    pub fn next(&mut self, graph: &Graph) -> Result<Option<Element>> {
        let n = self.count;
        let mut packed = Vec::with_capacity(graph.inputs.len());
        for (at, tensor) in graph.inputs.iter().enumerate() {
            let name = format!("standard input, tensor {}", n * graph.inputs.len() + at);
            match self.tensor(graph, tensor, &name)? {
                Some(bytes) => packed.push(bytes),
                None if at == 0 => return Ok(None),
                None => return Err(bad(&name, format!("input {}", tensor.name), "the end".into())),
            }
        }
        self.count += 1;
        Ok(Some(input::from_packed(graph, &format!("stdin {n}"), &packed)))
    }

    /// Packed values, all batch elements; `None` at the end.
    fn tensor(&mut self, graph: &Graph, tensor: &IoTensor, name: &str) -> Result<Option<Vec<u8>>> {
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                bad(name, "a whole tensor".into(), "the end in the middle".into())
            }
            _ => Failure::file(Path::new(name), "read", &e),
        };
        if self.reader.fill_buf().map_err(failed)?.is_empty() {
            return Ok(None);
        }
        let mut front = vec![0; 4];
        self.reader.read_exact(&mut front).map_err(failed)?;
        let framing = if front == MAGIC[..4] { Framing::Npy } else { Framing::Length };
        if *self.framing.get_or_insert(framing) != framing {
            return Err(bad(name, "the form of the first tensor".into(), "another".into()));
        }
        let batch = graph.batch.max(1) as usize;
        let values = layout::elements(tensor) * batch;
        let size = values * tensor.dtype.bytes();
        if framing == Framing::Length {
            let length = u32::from_le_bytes([front[0], front[1], front[2], front[3]]) as usize;
            if length != size {
                let expected = format!("a length of {size} bytes for input {}, or a .npy array", tensor.name);
                return Err(bad(name, expected, format!("{length}")));
            }
            let mut bytes = vec![0; size];
            self.reader.read_exact(&mut bytes).map_err(failed)?;
            return Ok(Some(bytes));
        }
        front.resize(NPY_FRONT + 2, 0);
        self.reader.read_exact(&mut front[4..]).map_err(failed)?;
        let head = npy::header_bytes(&front);
        if !front.starts_with(MAGIC) || !(front.len()..=MAX_HEADER).contains(&head) {
            return Err(bad(name, "a .npy array".into(), "a damaged header".into()));
        }
        let mut bytes = front;
        let more = |bytes: &mut Vec<u8>, to: usize, reader: &mut R| {
            let from = bytes.len();
            bytes.resize(to, 0);
            reader.read_exact(&mut bytes[from..])
        };
        more(&mut bytes, head, &mut self.reader).map_err(failed)?;
        let data = npy::data_bytes(&bytes).map_err(|(expected, found)| bad(name, expected, found))?;
        // What a header says is checked before memory is set aside for it.
        if data > values * WIDEST {
            let expected = format!("{values} values for input {}", tensor.name);
            return Err(bad(name, expected, format!("{data} bytes of them")));
        }
        more(&mut bytes, head + data, &mut self.reader).map_err(failed)?;
        let array = npy::parse(&bytes).map_err(|(expected, found)| bad(name, expected, found))?;
        let packed = input::pack(Path::new(name), &array, tensor)?;
        if packed.len() != size {
            let expected = format!("{batch} elements for an inference");
            return Err(bad(name, expected, format!("{}", packed.len() * batch / size.max(1))));
        }
        Ok(Some(packed))
    }
}

fn bad(name: &str, expected: String, found: String) -> Failure {
    Failure::new(
        ErrorKind::InvalidInput,
        format!("{name}: expected {expected}, found {found}"),
        "see docs/scripts.md and `ncs2ctl blob info`",
    )
}

/// Writes one output.
pub fn write(to: &mut impl Write, array: &Array, tensor: &IoTensor, framing: Framing) -> io::Result<()> {
    let mut bytes = Vec::new();
    match framing {
        Framing::Npy => npy::encode(array, &mut bytes)?,
        Framing::Length => {
            let packed = array.values.encode(tensor.dtype).map_err(|_| io::ErrorKind::InvalidData)?;
            let length = u32::try_from(packed.len()).map_err(|_| io::ErrorKind::InvalidData)?;
            bytes.extend(length.to_le_bytes());
            bytes.extend(packed);
        }
    }
    to.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use ncs2::blob::Blob;

    use super::super::Values;
    use super::*;

    fn tiny() -> Blob {
        let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/models");
        Blob::open(models.join("tiny_u8_s1.blob")).expect("committed")
    }

    fn npy_of(values: Values, shape: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        npy::encode(&Array { shape: shape.to_vec(), values }, &mut bytes).expect("memory takes it");
        bytes
    }

    #[test]
    fn both_forms_give_the_same_elements() {
        let blob = tiny();
        let pixels: Vec<u8> = (0..3 * 32 * 32).map(|n| n as u8).collect();
        let array = npy_of(Values::U8(pixels.clone()), &[1, 3, 32, 32]);
        let raw = [&(pixels.len() as u32).to_le_bytes()[..], &pixels].concat();
        let read = |stream: Vec<u8>| {
            let mut inputs = Inputs::new(&*stream);
            let first = inputs.next(blob.graph()).expect("good").expect("one");
            let second = inputs.next(blob.graph()).expect("good").expect("two");
            assert!(inputs.next(blob.graph()).expect("good").is_none());
            assert_eq!(first.bytes, second.bytes);
            (inputs.framing(), first.bytes)
        };
        let (npy_form, a) = read([&array[..], &array].concat());
        let (raw_form, b) = read([&raw[..], &raw].concat());
        assert_eq!((npy_form, raw_form), (Some(Framing::Npy), Some(Framing::Length)));
        assert_eq!(a, b);
    }

    #[test]
    fn every_cut_and_every_lie_is_an_error_that_costs_no_memory() {
        let blob = tiny();
        let array = npy_of(Values::U8(vec![7; 3 * 32 * 32]), &[3, 32, 32]);
        for cut in 1..array.len() {
            assert!(Inputs::new(&array[..cut]).next(blob.graph()).is_err(), "{cut}");
        }
        let huge = npy_of(Values::U8(Vec::new()), &[0]);
        let huge = String::from_utf8_lossy(&huge[10..]).replace("(0,)", "(99999999999,)");
        let mut lie = b"\x93NUMPY\x01\x00".to_vec();
        lie.extend((huge.len() as u16).to_le_bytes());
        lie.extend(huge.as_bytes());
        assert!(Inputs::new(&*lie).next(blob.graph()).is_err());
        assert!(Inputs::new(&[0xff, 0xff, 0xff, 0xff, 0][..]).next(blob.graph()).is_err());
        let two = npy_of(Values::U8(vec![7; 2 * 3 * 32 * 32]), &[2, 3, 32, 32]);
        assert!(Inputs::new(&*two).next(blob.graph()).is_err(), "an inference is one element");
        let mixed = [&array[..], &3072u32.to_le_bytes(), &[0; 3072]].concat();
        let mut inputs = Inputs::new(&*mixed);
        assert!(inputs.next(blob.graph()).is_ok());
        assert!(inputs.next(blob.graph()).is_err(), "one form a stream");
    }
}
