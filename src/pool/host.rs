//! How much host memory a pool may take on this machine.

use std::fs;

/// Ceiling of a pool on a machine with memory to spare, bytes.
pub const DEFAULT_CEILING_BYTES: usize = 512 << 20;

/// Least that is useful: a few tensors.
const FLOOR_BYTES: usize = 4 << 20;

/// The ceiling for one of `pools` pools: `asked`, but all pools together take at most a quarter of the memory that
/// the machine and the control group have free.
pub fn ceiling_for_host(asked: usize, pools: usize) -> usize {
    match free_bytes() {
        Some(free) => limit(asked, pools, free),
        None => asked,
    }
}

fn limit(asked: usize, pools: usize, free: usize) -> usize {
    asked.min((free / 4 / pools.max(1)).max(FLOOR_BYTES))
}

fn free_bytes() -> Option<usize> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    [machine, group_free()].into_iter().flatten().min()
}

fn available(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Least memory that is free in this process's control group and those above it (version 2).
fn group_free() -> Option<usize> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = text.lines().find_map(|l| l.strip_prefix("0::"))?.trim_start_matches('/').to_owned();
    let root = std::path::Path::new("/sys/fs/cgroup");
    let mut folder = root.join(own);
    let mut least = None;
    while folder.starts_with(root) {
        let number =
            |name: &str| -> Option<usize> { fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok() };
        if let (Some(max), Some(current)) = (number("memory.max"), number("memory.current")) {
            let free = max.saturating_sub(current);
            least = Some(least.map_or(free, |l: usize| l.min(free)));
        }
        if !folder.pop() {
            break;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_what_is_free_is_shared_by_all_pools() {
        assert_eq!(limit(DEFAULT_CEILING_BYTES, 1, 64 << 30), DEFAULT_CEILING_BYTES);
        assert_eq!(limit(DEFAULT_CEILING_BYTES, 2, 1 << 30), 128 << 20);
        assert_eq!(limit(DEFAULT_CEILING_BYTES, 8, 1 << 20), FLOOR_BYTES);
        assert_eq!(limit(1 << 20, 1, 64 << 30), 1 << 20);
    }

    #[test]
    fn meminfo_is_read() {
        assert_eq!(available("MemTotal: 8 kB\nMemAvailable:   12 kB\n"), Some(12 * 1024));
        assert_eq!(available("MemTotal: 8 kB\n"), None);
    }
}
