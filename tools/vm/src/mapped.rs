//! Buffers mapped from usbfs: used while the kernel has memory, ordinary ones beyond, and alive as long as somebody has them.

use std::time::Duration;

use ncs2::runtime::{LoadOptions, SubmitOptions};
use ncs2::transport::usb::usbfs::UsbfsPort;
use ncs2::transport::{Direction, MemoryKind};

use crate::bench::Bench;
use crate::fleet::{blob, chain, close, compare, expected, input, open, run};
use crate::{Verdict, ensure};

const LIMIT: &str = "/sys/module/usbcore/parameters/usbfs_memory_mb";

/// The kernel's limit, set back when dropped.
struct Limit(String);

impl Limit {
    fn set(mb: u32) -> Result<Self, String> {
        let before = std::fs::read_to_string(LIMIT).map_err(|e| format!("{LIMIT}: {e}"))?;
        std::fs::write(LIMIT, mb.to_string()).map_err(|e| format!("{LIMIT}: {e}"))?;
        Ok(Limit(before))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = std::fs::write(LIMIT, self.0.trim());
    }
}

pub(crate) fn buffers_are_mapped_and_answers_right(bench: &mut Bench) -> Verdict {
    let fleet = open(&[bench.fresh(0)?])?;
    let blob = blob("tiny_u8_s1")?;
    let graph = fleet.load(&blob, LoadOptions::default()).map_err(|e| chain(&e))?;
    let lease = graph.input().map_err(|e| chain(&e))?;
    let stick = &fleet.stats().sticks[0];
    let report = stick.memory.clone().ok_or("no report of the memory")?;
    bench.note(format!("{report:?}"));
    ensure!(report.kind == MemoryKind::Mapped && report.mapped_bytes > 0, "nothing is mapped");
    ensure!(report.mapped_read_mb_s > 0 && report.ordinary_read_mb_s > 0, "reading was not measured");
    ensure!(stick.host_pool.mapped_bytes > 0, "an input is not mapped: {:?}", stick.host_pool);
    drop(lease);
    let count = bench.times(400);
    compare(&run(&graph, &blob, count)?, &expected(&blob, count)?)?;
    drop(graph);
    close(fleet, bench)
}

/// An answer in a mapping is read after its stick was pulled out and everything else is gone.
pub(crate) fn answers_outlive_their_stick(bench: &mut Bench) -> Verdict {
    let found = bench.fresh(1)?;
    let fleet = open(std::slice::from_ref(&found))?;
    let blob = blob("tiny_u8_s1")?;
    let graph = fleet.load(&blob, LoadOptions::default()).map_err(|e| chain(&e))?;
    let mut lease = graph.input().map_err(|e| chain(&e))?;
    lease.copy_from(&input(&blob, 0)).map_err(|e| chain(&e))?;
    let unsent = graph.input().map_err(|e| chain(&e))?;
    let ticket = graph.submit(lease, SubmitOptions::default()).map_err(|e| chain(&e))?;
    let answer = ticket.wait().map_err(|e| chain(&e))?;
    bench.command("unplug 1")?;
    bench.wait_gone(1)?;
    drop(graph);
    fleet.close(Duration::from_secs(10)).map_err(|e| chain(&e))?;
    let expected = expected(&blob, 1)?;
    ensure!(answer.bytes() == expected[0], "the answer changed after its stick was gone");
    drop((answer, unsent));
    // Nothing is left that holds the old device: it works from the start.
    let fleet = open(&[bench.fresh(1)?])?;
    close(fleet, bench)
}

pub(crate) fn exhausted_memory_falls_back_and_says_so(bench: &mut Bench) -> Verdict {
    let hog = bench.booted(7)?;
    let limit = Limit::set(1)?;
    let fleet = open(&[bench.fresh(0)?, bench.fresh(1)?])?;
    let blob = blob("squeezenet1_1_u8_s1")?;
    let graph = fleet.load(&blob, LoadOptions::default()).map_err(|e| chain(&e))?;
    let inputs: Vec<_> = std::iter::from_fn(|| graph.input().ok()).take(64).collect();
    // The report comes with the stick's own figures.
    fleet.refresh_telemetry(Duration::from_secs(5)).map_err(|e| chain(&e))?;
    let stats = fleet.stats();
    let told = |text: &Option<String>| text.as_ref().is_some_and(|t| t.contains("usbfs_memory_mb"));
    for stick in &stats.sticks {
        bench.note(format!("{}: {:?}", stick.id, stick.memory));
    }
    ensure!(
        stats.sticks.iter().any(|s| s.memory.as_ref().is_some_and(|m| told(&m.why_not))),
        "no stick says that the kernel's limit is reached"
    );
    drop(inputs);
    let count = 16;
    compare(&run(&graph, &blob, count)?, &expected(&blob, count)?)?;
    // Another program takes what is left: nothing more can be sent until it gives it back, and nothing is lost.
    let other = UsbfsPort::open(hog.bus, hog.address).map_err(|e| e.to_string())?;
    let _other_limit = Limit::set(64)?;
    let memory = other.map_memory().map_err(|e| e.to_string())?;
    let held: Vec<_> = std::iter::from_fn(|| memory.take(1 << 20, Direction::Out)).collect();
    ensure!(held.len() > 1, "expected more than 1 MiB of mappings, found {}", held.len());
    drop(_other_limit);
    bench.note(format!("another program holds {} MiB of 1", held.len()));
    let answers = std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&graph, &blob, count));
        std::thread::sleep(Duration::from_millis(500));
        drop((held, memory, other));
        running.join().unwrap_or_else(|_| Err("a thread died".into()))
    })?;
    compare(&answers, &expected(&blob, count)?)?;
    ensure!(fleet.stats().failed == 0, "{} requests failed", fleet.stats().failed);
    drop(graph);
    close(fleet, bench)?;
    drop(limit);
    Ok(())
}
