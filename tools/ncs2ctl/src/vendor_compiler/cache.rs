//! Blobs by what they were made of: the same model, options and compiler give the same bytes, so they are made once.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::Compiler;
use crate::failure::{Failure, Result};
use crate::folders;

/// What the folder may hold; the oldest go first.
const MOST_BYTES: u64 = 2_000_000_000;

/// Folder of the blobs, made if it was not there.
pub fn folder() -> Result<PathBuf> {
    let folder = folders::cache()?.join("blobs");
    folders::make(&folder)?;
    Ok(folder)
}

/// The name of what `parts` (model, and files that belong to it) become under `options`.
pub fn key(compiler: &Compiler, options: &[String], parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    // Lengths in front, so that no two lists run together into the same bytes.
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(compiler.id.as_bytes());
    add(&(options.len() as u64).to_le_bytes());
    options.iter().for_each(|word| add(word.as_bytes()));
    parts.iter().for_each(|part| add(part));
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Where the blob of a key lies, or will lie.
pub fn path(folder: &Path, key: &str) -> PathBuf {
    folder.join(format!("{key}.blob"))
}

/// Removes the oldest blobs until the rest is within bounds. The newest stays.
pub fn prune(folder: &Path) -> Result {
    prune_to(folder, MOST_BYTES)
}

fn prune_to(folder: &Path, most: u64) -> Result {
    let entries = fs::read_dir(folder).map_err(|e| Failure::file(folder, "read", &e))?;
    let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let meta = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            Some((meta.modified().ok()?, meta.len(), entry.path()))
        })
        .filter(|(.., path)| path.extension().is_some_and(|e| e == "blob"))
        .collect();
    files.sort();
    let mut sum: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
    files.pop();
    for (_, bytes, path) in files {
        if sum <= most {
            break;
        }
        // Another process may have been faster.
        let _ = fs::remove_file(&path);
        sum -= bytes;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_matters_changes_the_key() {
        let compiler = |id: &str| Compiler { folder: "/".into(), build: "b".into(), id: id.into(), bytes: 0 };
        let words = |w: &[&str]| w.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let base = key(&compiler("a"), &words(&["x=1"]), &[b"model"]);
        assert_eq!(base, key(&compiler("a"), &words(&["x=1"]), &[b"model"]));
        for other in [
            key(&compiler("b"), &words(&["x=1"]), &[b"model"]),
            key(&compiler("a"), &words(&["x=2"]), &[b"model"]),
            key(&compiler("a"), &words(&["x=1"]), &[b"modem"]),
            key(&compiler("a"), &words(&["x=1"]), &[b"mod", b"el"]),
            key(&compiler("a"), &words(&[]), &[b"x=1", b"model"]),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn oldest_blobs_go_first_and_the_newest_stays() {
        let folder = tempfile::tempdir().expect("temporary folder");
        for (n, name) in ["a", "b", "c"].iter().enumerate() {
            let path = path(folder.path(), name);
            fs::write(&path, [0; 10]).expect("written");
            let file = fs::File::options().write(true).open(&path).expect("there");
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(n as u64))
                .expect("set");
        }
        fs::write(folder.path().join("other"), [0; 100]).expect("written");
        let left = |most| {
            prune_to(folder.path(), most).expect("pruned");
            ["a", "b", "c"].map(|name| path(folder.path(), name).exists())
        };
        assert_eq!(left(30), [true, true, true]);
        assert_eq!(left(20), [false, true, true]);
        assert_eq!(left(1), [false, false, true]);
        assert!(folder.path().join("other").exists());
    }
}
