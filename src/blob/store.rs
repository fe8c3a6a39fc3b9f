//! One sealed host copy of a blob, by hash.
#![allow(unsafe_code, reason = "maps the sealed memory file")]

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::fs::{MemfdFlags, SealFlags};
use sha2::{Digest, Sha256};

use super::{BlobError, Graph, Macs};
use crate::error::{Error, ErrorKind, Result};

/// What `Error::op` says.
const OP: &str = "open blob";
/// Largest file that is read: the stick's whole memory.
pub const MAX_FILE_BYTES: u64 = 512 << 20;
/// What the user can do about a file that is no good graph.
const REMEDY: &str = "recompile the network with OpenVINO 2021.4.2 for MYRIAD (blob version 6.0)";

/// SHA-256 of the file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobHash(pub [u8; 32]);

impl fmt::Display for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A compiled graph on the host: sealed bytes, checked structure, hash. Cheap to clone; all sticks share one copy.
#[derive(Clone, Debug)]
pub struct Blob(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    bytes: SharedBytes,
    graph: Graph,
    hash: BlobHash,
    macs: OnceLock<Macs>,
}

/// A clonable handle on the sealed bytes alone, for a transport that uploads from them without a copy.
#[derive(Clone)]
pub struct SharedBytes(Arc<Memory>);

enum Memory {
    /// Read-only map of a memory file that is sealed against writing and resizing.
    Sealed(memmap2::Mmap),
    /// Where the kernel refuses memory files.
    Heap(Box<[u8]>),
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        match &*self.0 {
            Memory::Sealed(map) => map,
            Memory::Heap(bytes) => bytes,
        }
    }
}

impl std::ops::Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.is_sealed() { "sealed" } else { "heap" };
        write!(f, "{} bytes ({how})", self.len())
    }
}

impl SharedBytes {
    /// True for a sealed memory file, false for the heap copy that stands in where the kernel refuses one.
    pub fn is_sealed(&self) -> bool {
        matches!(&*self.0, Memory::Sealed(_))
    }

    /// The one copy: what `source` gives, at most `limit` bytes and one more, so that the caller sees an excess.
    fn copy_of(source: &mut impl Read, limit: u64) -> io::Result<Self> {
        Self::copy_into(memory_file(), source, limit)
    }

    /// Into the memory file if there is one, else onto the heap.
    fn copy_into(file: io::Result<File>, source: &mut impl Read, limit: u64) -> io::Result<Self> {
        let mut source = source.take(limit.saturating_add(1));
        let memory = match file {
            Ok(mut file) => {
                let len = io::copy(&mut source, &mut file)?;
                // An empty file can not be mapped.
                let map = if len == 0 { Ok(Memory::Heap(Box::default())) } else { sealed(&file) };
                map.or_else(|error| {
                    file.rewind()?;
                    on_heap(&error, &mut file)
                })?
            }
            Err(error) => on_heap(&error, &mut source)?,
        };
        Ok(SharedBytes(Arc::new(memory)))
    }
}

fn on_heap(error: &io::Error, source: &mut impl Read) -> io::Result<Memory> {
    tracing::debug!(%error, "no sealed memory file, the blob is kept on the heap");
    let mut bytes = Vec::new();
    source.read_to_end(&mut bytes)?;
    Ok(Memory::Heap(bytes.into_boxed_slice()))
}

fn memory_file() -> io::Result<File> {
    let fd = rustix::fs::memfd_create("ncs2-blob", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    Ok(File::from(fd))
}

fn sealed(file: &File) -> io::Result<Memory> {
    rustix::fs::fcntl_add_seals(
        file,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL,
    )?;
    // SAFETY: the map owns its pages through the memory file. The seals just set forbid every process, this one too,
    // to write, shrink, grow or unseal the file, so that the bytes can not change or vanish while the map lives.
    let map = unsafe { memmap2::Mmap::map(file) }?;
    Ok(Memory::Sealed(map))
}

impl Blob {
    /// Copies the file into sealed memory and parses it.
    ///
    /// # Errors
    /// All name the path. `NotFound`, `Permission`; `InvalidInput` for a folder or another thing that is no file;
    /// `InvalidBlob` for an empty, too large, damaged or foreign file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let shown = path.display().to_string();
        let failed = |error: io::Error| {
            let (kind, what) = match error.kind() {
                io::ErrorKind::NotFound => (ErrorKind::NotFound, "no such file"),
                io::ErrorKind::PermissionDenied => (ErrorKind::Permission, "this user may not read it"),
                io::ErrorKind::OutOfMemory | io::ErrorKind::StorageFull => {
                    (ErrorKind::OutOfMemory, "no memory for a copy of it")
                }
                _ => (ErrorKind::InvalidInput, "can not be read"),
            };
            Error::new(kind, OP).detail(format!("{shown}: {what}")).caused_by(error)
        };
        // Before opening: to open a pipe would wait for its writer.
        let about = std::fs::metadata(path).map_err(failed)?;
        if !about.is_file() {
            let what = if about.is_dir() { "a folder" } else { "a device, pipe or socket" };
            let detail = format!("{shown}: a .blob file expected, {what} found; give the path of the file");
            return Err(Error::new(ErrorKind::InvalidInput, OP).detail(detail));
        }
        if about.len() > MAX_FILE_BYTES {
            return Err(too_large(&shown, about.len()));
        }
        let bytes = File::open(path)
            .and_then(|mut file| SharedBytes::copy_of(&mut file, MAX_FILE_BYTES))
            .map_err(failed)?;
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Self::from_shared(name, &shown, bytes)
    }

    /// The same from bytes that are already in memory; `name` is for messages, and without folder and extension for
    /// display.
    ///
    /// # Errors
    /// `InvalidBlob`, as [`Blob::open`]; `OutOfMemory` where no copy can be made.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(too_large(name, bytes.len() as u64));
        }
        let shared = SharedBytes::copy_of(&mut &bytes[..], MAX_FILE_BYTES).map_err(|error| {
            Error::new(ErrorKind::OutOfMemory, OP)
                .detail(format!("{name}: no memory for a copy"))
                .caused_by(error)
        })?;
        let stem =
            Path::new(name).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Self::from_shared(stem, name, shared)
    }

    fn from_shared(name: String, shown: &str, bytes: SharedBytes) -> Result<Self> {
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(too_large(shown, bytes.len() as u64));
        }
        if bytes.is_empty() {
            let detail = format!("{shown}: a compiled graph expected, an empty file found; {REMEDY}");
            return Err(Error::new(ErrorKind::InvalidBlob, OP).detail(detail));
        }
        let graph = Graph::parse(&bytes).map_err(|error| invalid(shown, &error))?;
        let hash = BlobHash(Sha256::digest(&*bytes).into());
        Ok(Blob(Arc::new(Inner { name, bytes, graph, hash, macs: OnceLock::new() })))
    }

    /// File name without folder and extension, for display.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The sealed bytes, exactly the file.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// A handle on the sealed bytes that outlives this `Blob`, for uploads without a copy.
    pub fn shared_bytes(&self) -> SharedBytes {
        self.0.bytes.clone()
    }

    /// What the file says.
    pub fn graph(&self) -> &Graph {
        &self.0.graph
    }

    /// SHA-256 of the file.
    pub fn hash(&self) -> BlobHash {
        self.0.hash
    }

    /// Operation counts, computed at the first call and kept.
    pub fn macs(&self) -> &Macs {
        self.0.macs.get_or_init(|| self.0.graph.macs(&self.0.bytes))
    }
}

impl AsRef<[u8]> for Blob {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

fn too_large(shown: &str, found: u64) -> Error {
    let detail = format!(
        "{shown}: at most {MAX_FILE_BYTES} bytes (the stick's memory) expected, {found} found; \
         this is no compiled graph that a stick could hold"
    );
    Error::new(ErrorKind::InvalidBlob, OP).detail(detail)
}

fn invalid(shown: &str, error: &BlobError) -> Error {
    Error::new(ErrorKind::InvalidBlob, OP)
        .detail(format!("{shown}: {error}; {}", error.remedy.unwrap_or(REMEDY)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_sealed_file_can_not_be_changed() {
        let mut file = match memory_file() {
            Ok(file) => file,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "skipped: this kernel refuses memory files: {error}");
                return;
            }
        };
        file.write_all(b"graph").expect("not sealed yet");
        let map = SharedBytes(Arc::new(sealed(&file).expect("seals and map")));
        let seals = rustix::fs::fcntl_get_seals(&file).expect("its seals");
        assert!(seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL));
        file.rewind().expect("to the start");
        file.write(b"other").expect_err("sealed against writing");
        file.set_len(1).expect_err("sealed against shrinking");
        assert_eq!(map.as_ref(), b"graph");
        assert!(map.is_sealed());
    }

    #[test]
    fn without_memory_files_the_heap_stands_in() {
        let refused = || Err(io::Error::from(io::ErrorKind::PermissionDenied));
        let bytes = SharedBytes::copy_into(refused(), &mut &b"graph"[..], 100).expect("a heap copy");
        assert_eq!((bytes.as_ref(), bytes.is_sealed()), (&b"graph"[..], false));
    }

    #[test]
    fn an_excess_is_seen_but_not_read() {
        let bytes = SharedBytes::copy_of(&mut io::repeat(7), 1000).expect("a copy");
        assert_eq!(bytes.len(), 1001);
    }
}
