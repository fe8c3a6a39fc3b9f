//! What the run costs the host, from /proc. Virtual sticks live in this process; their threads are counted apart,
//! because their work is the stick's and not the host's.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Names of threads that belong to virtual sticks begin so.
const VIRTUAL_THREADS: &str = "sim-";

/// Counters of this process at one moment.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// CPU time of the whole process.
    cpu: Duration,
    /// Per live thread.
    threads: BTreeMap<u32, Thread>,
    minor_faults: u64,
    major_faults: u64,
    rss_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Thread {
    is_virtual: bool,
    cpu: Duration,
    voluntary: u64,
    involuntary: u64,
}

/// Cost between two samples. `None` where the kernel does not tell.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Cost {
    /// CPU time without that of virtual sticks.
    pub cpu: Duration,
    /// CPU time of virtual sticks.
    pub virtual_cpu: Duration,
    /// Threads without those of virtual sticks.
    pub threads: u64,
    /// Voluntary and involuntary, without virtual sticks.
    pub switches: u64,
    /// Involuntary alone.
    pub involuntary: u64,
    /// Minor and major, whole process.
    pub faults: u64,
    /// Resident memory at the end, whole process.
    pub rss_bytes: u64,
}

impl Sample {
    /// Now.
    pub fn take() -> Self {
        let clock = clock_gettime(ClockId::ProcessCPUTime);
        let mut sample = Sample {
            cpu: Duration::new(
                u64::try_from(clock.tv_sec).unwrap_or(0),
                u32::try_from(clock.tv_nsec).unwrap_or(0),
            ),
            ..Sample::default()
        };
        for entry in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            let (status, sched) = (read("status"), read("schedstat"));
            sample.threads.insert(
                id,
                Thread {
                    is_virtual: read("comm").starts_with(VIRTUAL_THREADS),
                    cpu: Duration::from_nanos(
                        sched.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0),
                    ),
                    voluntary: field(&status, "voluntary_ctxt_switches:"),
                    involuntary: field(&status, "nonvoluntary_ctxt_switches:"),
                },
            );
        }
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name in parentheses may hold anything; the numbers follow the last one. minflt is field 10, majflt 12.
        let numbers: Vec<u64> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().map(|n| n.parse().unwrap_or(0)).collect())
            .unwrap_or_default();
        sample.minor_faults = numbers.get(7).copied().unwrap_or(0);
        sample.major_faults = numbers.get(9).copied().unwrap_or(0);
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        sample.rss_bytes = field(&status, "VmRSS:") * 1024;
        sample
    }

    /// What happened since `earlier`. Threads that ended in between take their counts along.
    pub fn since(&self, earlier: &Sample) -> Cost {
        let mut cost = Cost {
            faults: (self.minor_faults + self.major_faults)
                .saturating_sub(earlier.minor_faults + earlier.major_faults),
            rss_bytes: self.rss_bytes,
            ..Cost::default()
        };
        for (id, now) in &self.threads {
            let before = earlier.threads.get(id).copied().unwrap_or_default();
            if now.is_virtual {
                cost.virtual_cpu += now.cpu.saturating_sub(before.cpu);
                continue;
            }
            cost.threads += 1;
            cost.involuntary += now.involuntary.saturating_sub(before.involuntary);
            cost.switches += now.voluntary.saturating_sub(before.voluntary)
                + now.involuntary.saturating_sub(before.involuntary);
        }
        cost.cpu = self.cpu.saturating_sub(earlier.cpu).saturating_sub(cost.virtual_cpu);
        cost
    }
}

fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_as_cpu_time() {
        let before = Sample::take();
        let mut x = 1u64;
        while Sample::take().since(&before).cpu < Duration::from_millis(1) {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        let cost = Sample::take().since(&before);
        assert!(cost.cpu >= Duration::from_millis(1));
        assert!(cost.threads >= 1 && cost.rss_bytes > 0, "{cost:?}");
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "voluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t9\nVmRSS:\t  12 kB\n";
        assert_eq!(field(text, "voluntary_ctxt_switches:"), 7);
        assert_eq!(field(text, "nonvoluntary_ctxt_switches:"), 9);
        assert_eq!(field(text, "VmRSS:"), 12);
        assert_eq!(field(text, "nothing:"), 0);
    }
}
