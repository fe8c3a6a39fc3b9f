//! Many inferences leave nothing behind: no descriptor, no thread, no memory of this process, no URB.

use std::path::Path;
use std::time::{Duration, Instant};

use ncs2::runtime::LoadOptions;

use crate::bench::{Bench, open_libusb};
use crate::{Verdict, ensure, fleet};

/// Of one batch; its answers are compared and dropped.
const BATCH: usize = 500;
/// Memory that may come with the later inferences: the allocator's whims.
const SLACK_BYTES: u64 = 2 << 20;
/// How long what has ended may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);
const LIMIT: &str = "/sys/module/usbcore/parameters/usbfs_memory_mb";

/// What this process holds.
#[derive(Clone, Debug)]
struct Held {
    /// What each descriptor leads to, sorted.
    descriptors: Vec<String>,
    /// The name of each thread, sorted.
    threads: Vec<String>,
    resident_bytes: u64,
}

impl Held {
    fn now() -> Result<Self, String> {
        // Descriptors and threads of others of this process come and go while the folder is read: what is gone is not held.
        let entries = |folder: &str, what: &dyn Fn(&Path) -> std::io::Result<String>| {
            let found = std::fs::read_dir(folder).map_err(|e| format!("{folder}: {e}"))?;
            let mut names: Vec<_> = found.flatten().filter_map(|entry| what(&entry.path()).ok()).collect();
            names.sort();
            Ok::<_, String>(names)
        };
        let status = std::fs::read_to_string("/proc/self/status").map_err(|e| e.to_string())?;
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok())
            .ok_or("no VmRSS in /proc/self/status")?;
        Ok(Held {
            descriptors: entries("/proc/self/fd", &|fd| Ok(std::fs::read_link(fd)?.display().to_string()))?,
            threads: entries("/proc/self/task", &|task| {
                Ok(std::fs::read_to_string(task.join("comm"))?.trim().to_owned())
            })?,
            resident_bytes: resident << 10,
        })
    }

    /// Descriptors and threads beyond those of `before`.
    fn beyond(&self, before: &Held) -> Vec<String> {
        let mut left = more(&self.descriptors, &before.descriptors);
        left.extend(more(&self.threads, &before.threads).into_iter().map(|name| format!("thread {name}")));
        left
    }

    /// What is held now beyond `before` and does not go within [`PATIENCE`]: a thread that was joined may stand in the
    /// list for a moment, and a look at sysfs has a file open.
    fn left_since(before: &Held) -> Result<(Self, Vec<String>), String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let now = Held::now()?;
            let left = now.beyond(before);
            if left.is_empty() || Instant::now() >= until {
                return Ok((now, left));
            }
            crate::bench::pause();
        }
    }

    fn told(&self) -> String {
        format!(
            "{} descriptors, {} threads, {} KiB",
            self.descriptors.len(),
            self.threads.len(),
            self.resident_bytes >> 10
        )
    }
}

/// What is new in `now` where it is more than `before`: one that took the place of another is no more.
fn more(now: &[String], before: &[String]) -> Vec<String> {
    if now.len() <= before.len() {
        return Vec::new();
    }
    let mut rest = before.to_vec();
    now.iter()
        .filter(|name| match rest.iter().position(|old| old == *name) {
            Some(at) => {
                rest.swap_remove(at);
                false
            }
            None => true,
        })
        .cloned()
        .collect()
}

/// The largest URB that usbfs takes when it may hold 1 MiB for all devices: what others hold is missing from it.
fn usbfs_room(bench: &mut Bench) -> Result<usize, String> {
    let set = |mb: &str| std::fs::write(LIMIT, mb).map_err(|e| format!("{LIMIT}: {e}"));
    let found = bench.booted(1)?;
    let handle = open_libusb(&found)?;
    handle.claim_interface(0).map_err(|e| format!("claim: {e}"))?;
    let before = std::fs::read_to_string(LIMIT).map_err(|e| format!("{LIMIT}: {e}"))?;
    set("1")?;
    let mut buffer = vec![0; 1 << 20];
    let (mut fits, mut too_much) = (0, buffer.len() / 1024 + 1);
    let mut result = Ok(());
    while too_much - fits > 1 && result.is_ok() {
        let middle = usize::midpoint(fits, too_much);
        // The stick has nothing to say, so what is taken times out.
        match handle.read_bulk(0x81, &mut buffer[..middle * 1024], Duration::from_millis(1)) {
            Err(rusb::Error::Timeout) => fits = middle,
            Err(rusb::Error::NoMem) => too_much = middle,
            other => result = Err(format!("read of {middle} KiB: {other:?}")),
        }
    }
    set(before.trim())?;
    result.map(|()| fits * 1024)
}

/// 10 000 behind xHCI, 1 000 where emulator, driver and kernel share one emulated CPU.
pub(crate) fn many_inferences(bench: &mut Bench) -> Verdict {
    let count = if bench.face == "usbredir" { 10_000 } else { 1_000 };
    let room = usbfs_room(bench)?;
    // What the first boot of a process makes stays: libusb's thread and its descriptors.
    fleet::close(fleet::open(&[bench.fresh(0)?])?, bench)?;
    let outside = Held::now()?;
    let blob = fleet::blob("tiny_u8_s1")?;
    let expected = fleet::expected(&blob, 64)?;
    let fleet = fleet::open(&[bench.fresh_of(0, "quick")?])?;
    let graph = fleet.load(&blob, LoadOptions::default()).map_err(|e| fleet::chain(&e))?;
    let batch =
        |n: usize| fleet::run(&graph, &blob, n).and_then(|answers| fleet::compare(&answers, &expected));
    batch(BATCH)?;
    let warm = Held::now()?;
    let start = Instant::now();
    for _ in 0..count / BATCH {
        batch(BATCH)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let (end, left) = Held::left_since(&warm)?;
    bench.note(format!(
        "{count} inferences, {:.0}/s; before {}, after {}",
        count as f64 / seconds,
        warm.told(),
        end.told()
    ));
    ensure!(left.is_empty(), "descriptors or threads were left: {left:?}, beyond {warm:?}");
    ensure!(
        end.resident_bytes <= warm.resident_bytes + SLACK_BYTES,
        "memory grows: {} bytes in {count} inferences",
        end.resident_bytes - warm.resident_bytes
    );
    drop(graph);
    fleet::close(fleet, bench)?;
    let (_, left) = Held::left_since(&outside)?;
    ensure!(left.is_empty(), "a closed fleet left descriptors or threads: {left:?}, beyond {outside:?}");
    let room_after = usbfs_room(bench)?;
    bench.note(format!("room in usbfs of 1 MiB: {room} bytes before, {room_after} after"));
    ensure!(room_after == room, "usbfs still holds {} bytes", room.abs_diff(room_after));
    Ok(())
}
