//! What a piece of work costs this process: CPU, wake-ups, and with the kernel's tracing, system calls and URBs.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

const TRACING: &str = "/sys/kernel/tracing";
/// `USBDEVFS_SUBMITURB` of a 64-bit process.
const SUBMIT_URB: &str = "cmd == 0x8038550a";

/// Sums over a window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    /// Times that a thread slept and was woken.
    pub(crate) wakeups: u64,
}

/// Does `work` and says what it cost.
pub(crate) fn cost<T>(work: impl FnOnce() -> Result<T, String>) -> Result<(T, Cost), String> {
    let (cpu, wakeups, start) = (process_cpu(), wakeups(""), Instant::now());
    let value = work()?;
    let cost = Cost {
        wall: start.elapsed(),
        cpu: process_cpu() - cpu,
        wakeups: self::wakeups("").saturating_sub(wakeups),
    };
    Ok((value, cost))
}

fn process_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn threads() -> Vec<PathBuf> {
    fs::read_dir("/proc/self/task").into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Voluntary context switches so far of the threads whose name begins so.
pub(crate) fn wakeups(name: &str) -> u64 {
    let of = |thread: PathBuf| {
        let status = fs::read_to_string(thread.join("status")).ok()?;
        let field = |key: &str| status.lines().find_map(|l| l.strip_prefix(key)).map(str::trim);
        if !field("Name:")?.starts_with(name) {
            return None;
        }
        field("voluntary_ctxt_switches:")?.parse::<u64>().ok()
    };
    threads().into_iter().filter_map(of).sum()
}

/// Counts system calls and submitted URBs of the threads that this process has now.
pub(crate) struct Counters(Vec<PathBuf>);

impl Counters {
    /// Begins to count.
    pub(crate) fn start() -> Result<Self, String> {
        if !PathBuf::from(TRACING).join("instances").is_dir() {
            let mounted =
                std::process::Command::new("mount").args(["-t", "tracefs", "none", TRACING]).status();
            if !mounted.is_ok_and(|status| status.success()) {
                return Err(format!("{TRACING} cannot be mounted"));
            }
        }
        let tids: Vec<String> =
            threads().iter().filter_map(|t| Some(t.file_name()?.to_string_lossy().into_owned())).collect();
        let mut counters = Counters(Vec::new());
        for (name, event, filter) in [
            ("calls", "raw_syscalls/sys_enter", None),
            ("urbs", "syscalls/sys_enter_ioctl", Some(SUBMIT_URB)),
        ] {
            let instance = PathBuf::from(TRACING).join("instances").join(format!("ncs2-{name}"));
            let failed = |e: std::io::Error| format!("{}: {e}", instance.display());
            fs::create_dir_all(&instance).map_err(failed)?;
            counters.0.push(instance.clone());
            fs::write(instance.join("set_event_pid"), tids.join(" ")).map_err(failed)?;
            let event = instance.join("events").join(event);
            if let Some(filter) = filter {
                fs::write(event.join("filter"), filter).map_err(failed)?;
            }
            fs::write(event.join("enable"), "1").map_err(failed)?;
        }
        Ok(counters)
    }

    /// Ends counting: system calls, URBs.
    pub(crate) fn stop(self) -> (u64, u64) {
        for instance in &self.0 {
            let _ = fs::write(instance.join("events/enable"), "0");
        }
        let counted = self.0.iter().map(|instance| {
            let cpus = fs::read_dir(instance.join("per_cpu")).into_iter().flatten().flatten();
            let numbers = cpus.flat_map(|cpu| {
                let stats = fs::read_to_string(cpu.path().join("stats")).unwrap_or_default();
                let field = |key: &str| {
                    let line = stats.lines().find_map(|l| l.strip_prefix(key))?;
                    line.trim().parse::<u64>().ok()
                };
                // Those that the ring still has, and those that it forgot.
                [field("entries:"), field("overrun:")]
            });
            numbers.flatten().sum()
        });
        let counted: Vec<u64> = counted.collect();
        (counted.first().copied().unwrap_or(0), counted.get(1).copied().unwrap_or(0))
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        for instance in &self.0 {
            let _ = fs::write(instance.join("events/enable"), "0");
            let _ = fs::remove_dir(instance);
        }
    }
}
