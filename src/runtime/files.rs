//! Blobs by path: a file that has not changed since it was loaded is not read again.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::core::Shared;
use crate::blob::{Blob, BlobHash};
use crate::cache::FileIdentity;
use crate::error::Result;

/// A file that changed so recently may change again without another time of change: file systems count in seconds at worst
/// (FAT in two).
const RESOLUTION: Duration = Duration::from_secs(2);

/// The blob of a graph that is loaded, or the file.
pub(super) fn open(shared: &Shared, path: &Path) -> Result<Blob> {
    let before = identity(path);
    if let Some(file) = before {
        let known = shared.files.lock().lookup(&file);
        if let Some(blob) = known.and_then(|hash| loaded(shared, hash)) {
            return Ok(blob);
        }
    }
    let blob = Blob::open(path)?;
    if let Some(file) = before
        && identity(path) == before
        && is_settled(&file)
    {
        shared.files.lock().learn(file, blob.hash());
    }
    Ok(blob)
}

fn identity(path: &Path) -> Option<FileIdentity> {
    let meta = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(FileIdentity {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.size(),
        mtime_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
    })
}

fn is_settled(file: &FileIdentity) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(RESOLUTION).as_nanos() as i128 > file.mtime_ns
}

/// Of a graph in the books, its host copy.
fn loaded(shared: &Shared, hash: BlobHash) -> Option<Blob> {
    let core = shared.core.lock();
    let mut blobs = core.graphs.iter().flatten().flat_map(|g| g.variants.iter().map(|v| &v.blob));
    blobs.find(|blob| blob.hash() == hash).cloned()
}
