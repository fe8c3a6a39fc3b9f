//! One process at a time from boot to claim: between its two identities a stick belongs to nobody on the bus.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::error::{Error, ErrorKind, Result};
use crate::id::StickId;

/// Held from before the boot until the booted interface is claimed. The kernel drops it when the process dies, so a
/// file that is left behind locks nothing.
#[derive(Debug)]
pub struct PortLock(#[expect(dead_code, reason = "the open file is the lock")] File);

impl PortLock {
    /// Takes the lock of the stick's port, or says that another process has it. It is the user's own: between two
    /// users the interface claim decides.
    pub fn acquire(id: &StickId, op: &'static str) -> Result<Self> {
        Self::acquire_in(&folder(), id, op)
    }

    fn acquire_in(folder: &Path, id: &StickId, op: &'static str) -> Result<Self> {
        let failed = |path: &Path, e: std::io::Error| {
            Error::new(ErrorKind::Permission, op)
                .on(id)
                .detail(format!(
                    "the lock {} cannot be made: set XDG_RUNTIME_DIR to a folder of this user",
                    path.display()
                ))
                .caused_by(e)
        };
        make(folder).map_err(|e| failed(folder, e))?;
        // A port path has no slash; another name shall not lead elsewhere.
        let path = folder.join(format!("port-{}.lock", id.as_str().replace('/', "_")));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(|e| failed(&path, e))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| {
            Error::new(ErrorKind::InUse, op)
                .on(id)
                .detail("another process is booting or resetting this stick: wait for it, then try again")
                .caused_by(e)
        })?;
        Ok(PortLock(file))
    }
}

/// The runtime folder: `$XDG_RUNTIME_DIR/ncs2`, where there is none `ncs2-UID` among the temporary files.
fn folder() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    match runtime {
        Some(runtime) if runtime.is_dir() => runtime.join("ncs2"),
        _ => std::env::temp_dir().join(format!("ncs2-{}", rustix::process::getuid().as_raw())),
    }
}

/// Makes the folder for this user alone; one that another user has put there is refused.
fn make(folder: &Path) -> std::io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let found = std::fs::symlink_metadata(folder)?;
    let own = rustix::process::getuid().as_raw();
    if !found.is_dir() || (found.uid() != own && own != 0) {
        return Err(std::io::Error::new(
            std::io::ErrorKind::PermissionDenied,
            format!("expected a folder of user {own}, found one of user {}", found.uid()),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_port_is_locked_once_and_for_its_user_alone() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let folder = root.path().join("ncs2");
        let id = StickId::new("1-2.3");
        let first = PortLock::acquire_in(&folder, &id, "boot").expect("free");
        // flock belongs to the open file, so a second open of the same process meets it as another process would.
        let error = PortLock::acquire_in(&folder, &id, "boot").expect_err("taken");
        assert_eq!(error.kind(), ErrorKind::InUse);
        PortLock::acquire_in(&folder, &StickId::new("1-2.4"), "boot").expect("another port");
        drop(first);
        PortLock::acquire_in(&folder, &id, "boot").expect("free again");
        let mode = |path: &Path| std::fs::metadata(path).expect("made").permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join("port-1-2.3.lock")), 0o600);
    }

    #[test]
    fn a_link_in_the_locks_place_is_not_followed() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let folder = root.path().join("ncs2");
        make(&folder).expect("made");
        let elsewhere = root.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, folder.join("port-1-1.lock")).expect("link");
        let error = PortLock::acquire_in(&folder, &StickId::new("1-1"), "boot").expect_err("a link");
        assert_eq!(error.kind(), ErrorKind::Permission);
        assert!(!elsewhere.exists(), "nothing was made behind the link");
    }
}
