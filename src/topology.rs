//! Which cores there are, which are fast, which are near a USB controller; and pinning threads to them.
//!
//! Packages, cores and hardware threads come from hwloc. Speed classes and USB locality come from sysfs: hwloc's
//! binding panics in its PCI look-up. A machine without either still works: every allowed CPU is then a core.

use std::fs;
use std::path::Path;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::error::{Error, ErrorKind, Result};

/// One core with its hardware threads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Core {
    /// Kernel numbers of its hardware threads that this process may use.
    pub cpus: Vec<usize>,
    /// Package (socket) number.
    pub package: u32,
    /// Relative speed: the kernel's `cpu_capacity`, or the highest frequency in kHz; 0 where neither is known.
    pub speed: u64,
}

/// What this process may run on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topology {
    /// In order of their first CPU.
    pub cores: Vec<Core>,
    /// True when the cores come from hwloc, false when every allowed CPU is taken for a core.
    pub from_hwloc: bool,
}

/// Where threads should run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum PinPolicy {
    /// Reactor on a fast core near the controller, one core left free; nothing pinned on a machine of one or two cores.
    #[default]
    Auto,
    /// The kernel decides.
    None,
    /// All threads of the driver on these CPUs.
    Cpus(Vec<usize>),
}

impl std::str::FromStr for PinPolicy {
    type Err = Error;

    /// `auto`, `none`, or a list such as `0,2-3`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(PinPolicy::Auto),
            "none" => Ok(PinPolicy::None),
            list => {
                parse_cpu_list(list).filter(|cpus| !cpus.is_empty()).map(PinPolicy::Cpus).ok_or_else(|| {
                    Error::new(ErrorKind::InvalidInput, "pin threads")
                        .detail(format!("`{list}`: expected auto, none, or CPUs such as 0,2-3"))
                })
            }
        }
    }
}

/// CPUs for each kind of thread; an empty list pins nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Placement {
    /// The thread that talks to the kernel.
    pub reactor: Vec<usize>,
    /// The conversion workers.
    pub workers: Vec<usize>,
}

impl Topology {
    /// Looks at this machine; never fails.
    pub fn detect() -> Self {
        let allowed = allowed_cpus();
        let speed = |cpu| cpu_speed(Path::new("/sys/devices/system/cpu"), cpu);
        match hwloc_cores(&allowed, &speed) {
            Some(cores) => Topology { cores, from_hwloc: true },
            None => Topology {
                cores: allowed
                    .iter()
                    .map(|&cpu| Core { cpus: vec![cpu], package: 0, speed: speed(cpu) })
                    .collect(),
                from_hwloc: false,
            },
        }
    }

    /// Decides; `near` are the CPUs local to the sticks' USB controllers (empty when unknown).
    pub fn place(&self, policy: &PinPolicy, near: &[usize]) -> Placement {
        match policy {
            PinPolicy::None => Placement::default(),
            PinPolicy::Cpus(cpus) => Placement { reactor: cpus.clone(), workers: cpus.clone() },
            PinPolicy::Auto => self.place_automatically(near),
        }
    }

    fn place_automatically(&self, near: &[usize]) -> Placement {
        // With two cores or fewer the kernel balances better than any fixed choice.
        if self.cores.len() < 3 {
            return Placement::default();
        }
        let mut ranked: Vec<&Core> = self.cores.iter().collect();
        // Near beats fast; among equals the later core, because the first ones serve interrupts and other programs.
        ranked.sort_by_key(|core| {
            let is_near = core.cpus.iter().any(|cpu| near.contains(cpu));
            std::cmp::Reverse((is_near, core.speed, core.cpus.first().copied()))
        });
        let (reactor, rest) = match ranked.split_first() {
            Some((first, rest)) => (first.cpus.clone(), rest),
            None => return Placement::default(),
        };
        let fastest = rest.iter().map(|core| core.speed).max().unwrap_or(0);
        let mut workers: Vec<&&Core> = rest.iter().filter(|core| core.speed == fastest).collect();
        // One core stays free for the caller and everyone else.
        if workers.len() > 1 {
            workers.pop();
        }
        Placement { reactor, workers: workers.iter().flat_map(|core| core.cpus.iter().copied()).collect() }
    }
}

/// Pins the calling thread; an empty list leaves it alone.
pub fn pin_current_thread(cpus: &[usize]) -> Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let failed = |detail: String| Error::new(ErrorKind::InvalidInput, "pin threads").detail(detail);
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(failed(format!("CPU {cpu}: the kernel numbers them up to {}", CpuSet::MAX_CPU - 1)));
        }
        set.set(cpu);
    }
    sched_setaffinity(None, &set).map_err(|e| {
        failed(format!("CPUs {cpus:?} are not ours to use: name some of {:?}", allowed_cpus())).caused_by(e)
    })
}

/// CPUs that this process may run on.
pub fn allowed_cpus() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect(),
        Err(_) => (0..std::thread::available_parallelism().map_or(1, usize::from)).collect(),
    }
}

/// CPUs local to the USB controller that this device (its name under `/sys/bus/usb/devices`) hangs on.
pub fn cpus_near_usb(device: &str) -> Vec<usize> {
    let start = Path::new("/sys/bus/usb/devices").join(device);
    let Ok(mut path) = start.canonicalize() else { return Vec::new() };
    // Upwards until a PCI device says which CPUs are local to it.
    while path.pop() && path.starts_with("/sys/devices") {
        if let Ok(list) = fs::read_to_string(path.join("local_cpulist")) {
            return parse_cpu_list(list.trim()).unwrap_or_default();
        }
    }
    Vec::new()
}

fn hwloc_cores(allowed: &[usize], speed: &dyn Fn(usize) -> u64) -> Option<Vec<Core>> {
    let topology = hwloc2::Topology::new()?;
    let mut cores = Vec::new();
    collect(topology.object_at_root(), 0, allowed, speed, &mut cores);
    cores.sort_by_key(|core: &Core| core.cpus.first().copied());
    (!cores.is_empty()).then_some(cores)
}

fn collect(
    object: &hwloc2::TopologyObject,
    package: u32,
    allowed: &[usize],
    speed: &dyn Fn(usize) -> u64,
    cores: &mut Vec<Core>,
) {
    let package = match object.object_type() {
        hwloc2::ObjectType::Package => object.os_index(),
        hwloc2::ObjectType::Core => {
            let mut cpus = Vec::new();
            threads(object, allowed, &mut cpus);
            if let Some(&first) = cpus.first() {
                cores.push(Core { cpus, package, speed: speed(first) });
            }
            return;
        }
        _ => package,
    };
    for child in object.children() {
        collect(child, package, allowed, speed, cores);
    }
}

fn threads(object: &hwloc2::TopologyObject, allowed: &[usize], cpus: &mut Vec<usize>) {
    if object.object_type() == hwloc2::ObjectType::PU {
        let cpu = object.os_index() as usize;
        if allowed.contains(&cpu) {
            cpus.push(cpu);
        }
    }
    for child in object.children() {
        threads(child, allowed, cpus);
    }
}

fn cpu_speed(sysfs: &Path, cpu: usize) -> u64 {
    ["cpu_capacity", "cpufreq/cpuinfo_max_freq"]
        .iter()
        .find_map(|file| {
            fs::read_to_string(sysfs.join(format!("cpu{cpu}")).join(file)).ok()?.trim().parse().ok()
        })
        .unwrap_or(0)
}

fn parse_cpu_list(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (first.trim().parse().ok()?, last.trim().parse().ok()?),
            None => {
                let cpu: usize = part.trim().parse().ok()?;
                (cpu, cpu)
            }
        };
        if first > last || last >= CpuSet::MAX_CPU {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(speeds: &[u64]) -> Topology {
        let core = |(n, &speed): (usize, &u64)| Core { cpus: vec![2 * n, 2 * n + 1], package: 0, speed };
        Topology { cores: speeds.iter().enumerate().map(core).collect(), from_hwloc: true }
    }

    #[test]
    fn this_machine_has_cores_that_we_may_use() {
        let topology = Topology::detect();
        let allowed = allowed_cpus();
        assert!(!topology.cores.is_empty());
        assert!(topology.cores.iter().flat_map(|c| &c.cpus).all(|cpu| allowed.contains(cpu)));
    }

    #[test]
    fn reactor_takes_a_fast_core_and_one_core_stays_free() {
        let placement = machine(&[900, 1000, 1000, 1000]).place(&PinPolicy::Auto, &[]);
        assert_eq!(placement.reactor, [6, 7]);
        assert_eq!(placement.workers, [4, 5], "cores 0 (slow) and 1 (free) are not taken");
    }

    #[test]
    fn reactor_goes_near_the_controller() {
        let placement = machine(&[1000, 1000, 1000, 1000]).place(&PinPolicy::Auto, &[0, 1]);
        assert_eq!(placement.reactor, [0, 1]);
    }

    #[test]
    fn small_machines_and_none_pin_nothing() {
        assert_eq!(machine(&[1, 1]).place(&PinPolicy::Auto, &[]), Placement::default());
        assert_eq!(machine(&[1; 8]).place(&PinPolicy::None, &[]), Placement::default());
    }

    #[test]
    fn cpu_lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_cpu_list("0,2-4"), Some(vec![0, 2, 3, 4]));
        for bad in ["", "x", "3-1", "0,", "999999999"] {
            assert_eq!(parse_cpu_list(bad), None, "{bad}");
        }
        assert!("0-1".parse::<PinPolicy>().is_ok());
        assert_eq!("all".parse::<PinPolicy>().expect_err("no policy").kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn pinning_to_a_cpu_that_is_not_there_names_those_that_are() {
        let error = pin_current_thread(&[CpuSet::MAX_CPU - 1]).expect_err("no such CPU");
        assert!(error.to_string().contains("name some of"), "{error}");
    }
}
