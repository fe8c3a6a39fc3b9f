//! Which process has a device open, as far as this user may look.

use std::fs;
use std::path::Path;

use super::printable::printable;

/// `process 123 (name)`: the first process that has the device file open. Without root only the user's own processes can be
/// seen, so `None` does not mean that there is none. `own` descriptors of this process do not count: the caller's.
pub(super) fn of_node(node: &Path, own: usize) -> Option<String> {
    of_node_under(Path::new("/proc"), node, own)
}

fn of_node_under(proc: &Path, node: &Path, own: usize) -> Option<String> {
    fs::read_dir(proc).ok()?.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let open = fs::read_dir(process.path().join("fd")).ok()?;
        let holds = |fd: &fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|target| target == node);
        let held = open.flatten().filter(holds).count();
        if pid == std::process::id() {
            return (held > own).then(|| "this process".into());
        }
        if held == 0 {
            return None;
        }
        // Any process may choose its own name.
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        Some(format!("process {pid} ({})", printable(&name)))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn process_is_named_without_its_control_bytes() {
        let proc = tempfile::tempdir().expect("a temporary folder");
        let node = Path::new("/dev/bus/usb/001/007");
        fs::create_dir_all(proc.path().join("self/fd")).expect("folder");
        fs::create_dir_all(proc.path().join("12/fd")).expect("folder");
        symlink("/dev/null", proc.path().join("12/fd/0")).expect("link");
        assert_eq!(of_node_under(proc.path(), node, 0), None);
        fs::create_dir_all(proc.path().join("34/fd")).expect("folder");
        symlink(node, proc.path().join("34/fd/5")).expect("link");
        fs::write(proc.path().join("34/comm"), "vendor\x1b[2J\n").expect("file");
        assert_eq!(of_node_under(proc.path(), node, 0).as_deref(), Some("process 34 (vendor[2J)"));
    }

    #[test]
    fn a_file_of_this_process_is_found_where_proc_is_mounted() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let path = file.path().canonicalize().expect("its path");
        assert_eq!(of_node(&path, 0).as_deref(), Some("this process"));
        assert_eq!(of_node(&path, 1), None, "the caller's own does not count");
    }
}
