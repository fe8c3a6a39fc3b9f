//! What the process has used.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Counters of the whole process at one moment.
pub struct Meter {
    pub at: Instant,
    cpu: Duration,
    system_ticks: u64,
    sleeps: u64,
    preempted: u64,
}

/// What each of a number of inferences used.
pub struct Used {
    pub per_second: f64,
    /// User and system.
    pub cpu_us: f64,
    pub system_us: f64,
    /// Voluntary context switches: as often did a thread go to sleep and had to be woken.
    pub sleeps: f64,
    /// Involuntary context switches.
    pub preempted: f64,
}

impl Meter {
    pub fn now() -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let mut meter = Meter {
            at: Instant::now(),
            cpu: Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32),
            system_ticks: 0,
            sleeps: 0,
            preempted: 0,
        };
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // Fields are counted behind the name, which may hold blanks: the 13th there is `stime`, in hundredths.
        let after = stat.rsplit(')').next().unwrap_or_default();
        meter.system_ticks = after.split_whitespace().nth(12).and_then(|v| v.parse().ok()).unwrap_or(0);
        // The counters are of one thread each; threads that ended meanwhile are not in the list, but here none does.
        for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let field = |name: &str| -> u64 {
                let line = status.lines().find_map(|l| l.strip_prefix(name));
                line.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
            };
            meter.sleeps += field("voluntary_ctxt_switches:");
            meter.preempted += field("nonvoluntary_ctxt_switches:");
        }
        meter
    }

    pub fn since(&self, before: &Meter, count: u64) -> Used {
        let each = |n: u64| n as f64 / count as f64;
        Used {
            per_second: count as f64 / (self.at - before.at).as_secs_f64(),
            cpu_us: (self.cpu - before.cpu).as_secs_f64() * 1e6 / count as f64,
            system_us: each((self.system_ticks - before.system_ticks) * 10_000),
            sleeps: each(self.sleeps - before.sleeps),
            preempted: each(self.preempted - before.preempted),
        }
    }
}

/// One line on the machine.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown CPU");
    let cpus = info.lines().filter(|l| l.starts_with("processor")).count();
    let load = read("/proc/loadavg");
    let profile = if cfg!(debug_assertions) { "with debug assertions" } else { "release" };
    format!(
        "{} ({cpus} CPUs), Linux {}, {profile}; load {} at the start",
        model.trim_start_matches([' ', '\t', ':']),
        read("/proc/sys/kernel/osrelease").trim(),
        load.split_whitespace().next().unwrap_or("?"),
    )
}
