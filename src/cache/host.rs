//! Which content a file had when it was last read, so that opening it again reads nothing.

use std::collections::HashMap;

use crate::blob::BlobHash;

/// A file as the caller's `stat` saw it. Any change of the four makes it another file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FileIdentity {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Time of last change, nanoseconds since the epoch.
    pub mtime_ns: i128,
}

/// File identity → content hash. Pure: the `stat` is the caller's. Forgets the oldest beyond its limit.
#[derive(Clone, Debug)]
pub struct HostKeys {
    known: HashMap<FileIdentity, (BlobHash, u64)>,
    limit: usize,
    tick: u64,
    hits: u64,
    misses: u64,
}

impl HostKeys {
    /// Remembers at most `limit` files.
    pub fn new(limit: usize) -> Self {
        HostKeys { known: HashMap::new(), limit: limit.max(1), tick: 0, hits: 0, misses: 0 }
    }

    /// The content, if this very file was read before.
    pub fn lookup(&mut self, file: &FileIdentity) -> Option<BlobHash> {
        self.tick += 1;
        match self.known.get_mut(file) {
            Some((hash, used)) => {
                *used = self.tick;
                self.hits += 1;
                Some(*hash)
            }
            None => {
                self.misses += 1;
                None
            }
        }
    }

    /// The file was read and has this content. An older state of the same inode is forgotten.
    ///
    /// A file changed within its clock's resolution after the `stat` keeps its identity: callers `stat` before and after
    /// reading and learn only when both agree and the change lies further back than that resolution.
    pub fn learn(&mut self, file: FileIdentity, hash: BlobHash) {
        self.tick += 1;
        self.known.retain(|k, _| (k.device, k.inode) != (file.device, file.inode));
        if self.known.len() >= self.limit {
            let oldest = self.known.iter().min_by_key(|(_, (_, used))| *used).map(|(k, _)| *k);
            if let Some(oldest) = oldest {
                self.known.remove(&oldest);
            }
        }
        self.known.insert(file, (hash, self.tick));
    }

    /// Hits and misses so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.hits, self.misses)
    }
}
