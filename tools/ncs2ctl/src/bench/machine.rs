//! What the whole computer did while a run was measured: slow-downs by heat, interrupts of its USB controllers, cache
//! misses of our own threads. What this computer does not tell has a reason in its place.

use std::fs;
use std::path::Path;

use perf_event::events::Hardware;
use perf_event::{Builder, Counter};

/// A count, or why there is none.
pub type Told = Result<u64, String>;

/// Counters of the processor for this process's threads. They count threads that start after [`Counters::open`].
pub struct Counters {
    misses: Result<parking_lot::Mutex<Counter>, String>,
}

impl Counters {
    /// Starts counting for the calling thread and those that it starts from now on.
    pub fn open() -> Self {
        let open = || {
            let mut counter = Builder::new(Hardware::CACHE_MISSES).inherit(true).build()?;
            counter.enable()?;
            Ok::<_, std::io::Error>(counter)
        };
        let misses = open().map(parking_lot::Mutex::new).map_err(|e| {
            format!("no cache misses, as this computer gives no processor counters: {}", e.kind())
        });
        Counters { misses }
    }

    fn read(&self) -> Told {
        let counter = self.misses.as_ref().map_err(Clone::clone)?;
        counter.lock().read().map_err(|e| format!("the processor counter could not be read: {e}"))
    }
}

/// Counts at one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    throttles: Told,
    usb_interrupts: Told,
    cache_misses: Told,
}

/// Counts between two moments.
#[derive(Clone, PartialEq, Debug)]
pub struct Machine {
    /// Times that a core or the package slowed down because it was hot.
    pub throttles: Told,
    /// Interrupts of all USB host controllers.
    pub usb_interrupts: Told,
    /// Last-level cache misses of this process.
    pub cache_misses: Told,
}

impl Default for Machine {
    fn default() -> Self {
        let none = || Err("not measured".to_owned());
        Machine { throttles: none(), usb_interrupts: none(), cache_misses: none() }
    }
}

impl Sample {
    /// Now.
    pub fn take(counters: &Counters) -> Self {
        let interrupts = fs::read_to_string("/proc/interrupts")
            .map_err(|e| format!("/proc/interrupts cannot be read: {e}"));
        Sample {
            throttles: throttles(Path::new("/sys/devices/system/cpu")),
            usb_interrupts: interrupts.and_then(|text| usb_interrupts(&text)),
            cache_misses: counters.read(),
        }
    }

    /// What happened since `earlier`.
    pub fn since(&self, earlier: &Sample) -> Machine {
        let since = |now: &Told, before: &Told| match (now, before) {
            (Ok(now), Ok(before)) => Ok(now.saturating_sub(*before)),
            (Err(reason), _) | (_, Err(reason)) => Err(reason.clone()),
        };
        Machine {
            throttles: since(&self.throttles, &earlier.throttles),
            usb_interrupts: since(&self.usb_interrupts, &earlier.usb_interrupts),
            cache_misses: since(&self.cache_misses, &earlier.cache_misses),
        }
    }
}

/// Sum of the kernel's counters of all CPUs.
fn throttles(cpus: &Path) -> Told {
    let mut sum = None;
    for entry in fs::read_dir(cpus).into_iter().flatten().flatten() {
        for file in ["core_throttle_count", "package_throttle_count"] {
            let path = entry.path().join("thermal_throttle").join(file);
            let count = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
            if let Some(count) = count {
                sum = Some(sum.unwrap_or(0) + count);
            }
        }
    }
    sum.ok_or_else(|| {
        "no slowing by heat, as the kernel has no thermal_throttle counters for these CPUs".to_owned()
    })
}

/// Sum over the lines of USB host controllers and all CPUs.
fn usb_interrupts(text: &str) -> Told {
    let cpus = text.lines().next().map_or(0, |line| line.split_whitespace().count());
    let controllers = ["xhci", "ehci", "ohci", "uhci", "dwc2", "dwc3", "vhci"];
    let mut sum = None;
    for line in text.lines().skip(1) {
        let Some((_, rest)) = line.split_once(':') else { continue };
        let words: Vec<&str> = rest.split_whitespace().collect();
        let name = words.get(cpus..).unwrap_or_default().join(" ");
        if controllers.iter().any(|c| name.contains(c)) {
            let counts = words.iter().take(cpus).filter_map(|n| n.parse::<u64>().ok());
            sum = Some(sum.unwrap_or(0) + counts.sum::<u64>());
        }
    }
    sum.ok_or_else(|| "no interrupts of USB, as no host controller has a line in /proc/interrupts".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usb_lines_are_summed_over_cpus() {
        let text = "           CPU0       CPU1\n\
                     16:         10         20   PCI-MSI 512-edge      xhci_hcd\n\
                     17:          1          2   PCI-MSI 513-edge      ahci[0000:00:1f.2]\n\
                     18:        100        200   IO-APIC  18-fasteoi   ehci_hcd:usb1\n\
                    NMI:          5          6   Non-maskable interrupts\n";
        assert_eq!(usb_interrupts(text), Ok(330));
        let none = usb_interrupts("           CPU0\n 17:  1  PCI-MSI  ahci\n");
        assert!(none.expect_err("no controller").contains("/proc/interrupts"));
    }

    #[test]
    fn throttle_counters_are_summed_over_cpus() {
        let folder = tempfile::tempdir().expect("temporary folder");
        assert!(throttles(folder.path()).is_err());
        for (cpu, count) in [("cpu0", "3\n"), ("cpu1", "4\n")] {
            let path = folder.path().join(cpu).join("thermal_throttle");
            fs::create_dir_all(&path).expect("made");
            fs::write(path.join("core_throttle_count"), count).expect("written");
        }
        assert_eq!(throttles(folder.path()), Ok(7));
    }

    #[test]
    fn differences_keep_the_reason() {
        let sample =
            |n| Sample { throttles: Ok(n), usb_interrupts: Err("none".into()), cache_misses: Ok(2 * n) };
        let machine = sample(10).since(&sample(4));
        let expected = Machine { throttles: Ok(6), usb_interrupts: Err("none".into()), cache_misses: Ok(12) };
        assert_eq!(machine, expected);
    }

    #[test]
    fn cache_misses_are_counted_or_explained() {
        let counters = Counters::open();
        match counters.read() {
            Ok(_) => println!("this computer counts cache misses"),
            Err(reason) => assert!(reason.contains("counter"), "{reason}"),
        }
    }
}
