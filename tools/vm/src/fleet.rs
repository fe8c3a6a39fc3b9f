//! The driver as its users call it: `usb::boot::port` and `Fleet`, with answers compared to sticks inside the process.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ncs2::blob::Blob;
use ncs2::runtime::{FleetConfig, LoadOptions, SubmitOptions};
use ncs2::transport::usb::boot::{self, BootOptions};
use ncs2::transport::usb::discover::{Found, FoundState};
use ncs2::wire::{DdrType, FirmwarePatches};
use ncs2::{ErrorKind, Fleet, Graph, StickId};
use ncs2_device::{Engine, Rack, RackOptions, Timing};

use crate::bench::{Bench, image};
use crate::{Verdict, ensure};

/// A file that the driver can patch: with the call that the DRAM type goes before.
pub(crate) fn firmware() -> Result<PathBuf, String> {
    let path = PathBuf::from("/tmp/firmware.mvcmd");
    if !path.exists() {
        let mut file = image(2_298_632);
        file[124_804..124_809].copy_from_slice(&[0xba, 0xd0, 0xe9, 0x00, 0x70]);
        // Aside first: another process may be about to read it.
        let aside = path.with_extension(std::process::id().to_string());
        std::fs::write(&aside, file)
            .and_then(|()| std::fs::rename(&aside, &path))
            .map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(path)
}

pub(crate) fn options() -> Result<BootOptions, String> {
    Ok(BootOptions {
        firmware: Some(firmware()?),
        any_firmware: true,
        patches: FirmwarePatches { watchdog: true, ddr: DdrType::Auto },
        ..BootOptions::default()
    })
}

pub(crate) fn open(sticks: &[Found]) -> Result<Fleet, String> {
    open_ports(&sticks.iter().map(|found| found.id.clone()).collect::<Vec<_>>())
}

pub(crate) fn open_ports(ids: &[StickId]) -> Result<Fleet, String> {
    open_with(ids, FleetConfig { open_timeout: Duration::from_secs(30), ..FleetConfig::default() })
}

pub(crate) fn open_with(ids: &[StickId], config: FleetConfig) -> Result<Fleet, String> {
    let options = options()?;
    let ports = ids.iter().map(|id| boot::port(id.clone(), options.clone()));
    ports
        .fold(Fleet::builder(), |builder, port| builder.port(port))
        .config(config)
        .open()
        .map_err(|e| chain(&e))
}

pub(crate) fn close(fleet: Fleet, bench: &mut Bench) -> Verdict {
    let start = Instant::now();
    fleet.close(Duration::from_secs(10)).map_err(|e| chain(&e))?;
    bench.note(format!("closed in {} ms", start.elapsed().as_millis()));
    Ok(())
}

/// An error with all that is behind it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

pub(crate) fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/models")
}

pub(crate) fn blob(name: &str) -> Result<Blob, String> {
    Blob::open(models().join(format!("{name}.blob"))).map_err(|e| chain(&e))
}

/// Inputs that differ; after as many they begin again. More than are in flight at a time, so that answers which were
/// given to the wrong request cannot go unseen, and few, because the answers to compare with are computed under emulation.
const DISTINCT: usize = 64;
/// Requests in flight.
const IN_FLIGHT: usize = 48;

pub(crate) fn input(blob: &Blob, n: usize) -> Vec<u8> {
    let n = n % DISTINCT;
    (0..blob.graph().input_bytes).map(|at| (at * 31 + n * 7 + n / 251) as u8).collect()
}

/// What a stick inside this process answers to the first inputs; `count` at most [`DISTINCT`].
pub(crate) fn expected(blob: &Blob, count: usize) -> Result<Vec<Vec<u8>>, String> {
    let rack = Rack::start(RackOptions {
        sticks: 1,
        engine: Engine::Hash,
        timing: Timing::Zero,
        ..RackOptions::default()
    })
    .map_err(|e| chain(&e))?;
    let builder = rack.ports().into_iter().fold(Fleet::builder(), |builder, port| builder.port(port));
    let fleet = builder.open().map_err(|e| chain(&e))?;
    let graph = fleet.load(blob, LoadOptions::default()).map_err(|e| chain(&e))?;
    let answers = run(&graph, blob, count.min(DISTINCT))?;
    drop(graph);
    fleet.close(Duration::from_secs(10)).map_err(|e| chain(&e))?;
    Ok(answers.into_iter().map(|(bytes, _)| bytes).collect())
}

/// Answers in the order of the inputs, and who gave them. Several are in flight at a time.
pub(crate) fn run(graph: &Graph, blob: &Blob, count: usize) -> Result<Vec<(Vec<u8>, String)>, String> {
    run_of(graph, blob, count, DISTINCT)
}

/// The same with so many distinct inputs.
pub(crate) fn run_of(
    graph: &Graph,
    blob: &Blob,
    count: usize,
    distinct: usize,
) -> Result<Vec<(Vec<u8>, String)>, String> {
    let mut tickets = std::collections::VecDeque::new();
    let mut answers = Vec::with_capacity(count);
    let mut collect = |ticket: ncs2::runtime::Ticket| {
        let output = ticket.wait().map_err(|e| chain(&e))?;
        answers.push((output.bytes().to_vec(), output.stick().to_string()));
        Ok::<(), String>(())
    };
    for n in 0..count {
        let mut lease = graph.input().map_err(|e| chain(&e))?;
        lease.copy_from(&input(blob, n % distinct)).map_err(|e| chain(&e))?;
        tickets.push_back(graph.submit(lease, SubmitOptions::default()).map_err(|e| chain(&e))?);
        if tickets.len() >= IN_FLIGHT
            && let Some(ticket) = tickets.pop_front()
        {
            collect(ticket)?;
        }
    }
    for ticket in tickets {
        collect(ticket)?;
    }
    Ok(answers)
}

pub(crate) fn compare(found: &[(Vec<u8>, String)], expected: &[Vec<u8>]) -> Verdict {
    for (n, ((bytes, stick), expected)) in found.iter().zip(expected.iter().cycle()).enumerate() {
        ensure!(bytes == expected, "answer {n} of stick {stick} is not that of the stick inside the process");
    }
    Ok(())
}

pub(crate) fn driver_boots_and_answers(bench: &mut Bench) -> Verdict {
    let found = bench.fresh(0)?;
    let blob = blob("tiny_u8_s1")?;
    let start = Instant::now();
    let fleet = open(&[found])?;
    bench.note(format!("boot and open {} ms", start.elapsed().as_millis()));
    let graph = fleet.load(&blob, LoadOptions::default()).map_err(|e| chain(&e))?;
    let start = Instant::now();
    let count = bench.times(400);
    let answers = run(&graph, &blob, count)?;
    bench.note(format!("{:.0} inferences/s", count as f64 / start.elapsed().as_secs_f64()));
    compare(&answers, &expected(&blob, count)?)?;
    drop(graph);
    close(fleet, bench)?;
    bench.wait_for(0, FoundState::Unbooted).map(drop)
}

/// Tensors of every size that the models have: short, of whole packets, longer than a piece.
pub(crate) fn every_model_answers(bench: &mut Bench) -> Verdict {
    let fleet = open(&[bench.fresh(1)?])?;
    let mut sizes = Vec::new();
    let entries = std::fs::read_dir(models()).map_err(|e| e.to_string())?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "blob"));
    files.sort();
    ensure!(!files.is_empty(), "no models in {}", models().display());
    for path in files {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let blob = Blob::open(&path).map_err(|e| format!("{name}: {}", chain(&e)))?;
        let at = |e: String| format!("{name}: {e}");
        let graph = fleet.load(&blob, LoadOptions::default()).map_err(|e| at(chain(&e)))?;
        let answers = run(&graph, &blob, 10).map_err(at)?;
        compare(&answers, &expected(&blob, 10).map_err(at)?).map_err(at)?;
        sizes.push(format!("{}/{}", blob.graph().input_bytes, blob.graph().output_bytes));
    }
    bench.note(format!("bytes in/out: {}", sizes.join(" ")));
    close(fleet, bench)
}

pub(crate) fn all_sticks_answer_alike(bench: &mut Bench) -> Verdict {
    let sticks = bench.all_fresh()?;
    let fleet = open(&sticks)?;
    let blob = blob("tiny_u8_s1")?;
    let graph = fleet.load(&blob, LoadOptions::default()).map_err(|e| chain(&e))?;
    let count = bench.times(1000);
    let start = Instant::now();
    let answers = run(&graph, &blob, count)?;
    let seconds = start.elapsed().as_secs_f64();
    bench.note(format!("{:.0} inferences/s", count as f64 / seconds));
    compare(&answers, &expected(&blob, count)?)?;
    for found in &sticks {
        let id = found.id.to_string();
        ensure!(answers.iter().any(|(_, stick)| *stick == id), "stick {id} answered nothing");
    }
    drop(graph);
    close(fleet, bench)
}

pub(crate) fn pulled_stick_costs_no_answer(bench: &mut Bench) -> Verdict {
    let sticks = [bench.fresh(2)?, bench.fresh(3)?];
    let fleet = open(&sticks)?;
    let blob = blob("tiny_u8_s1")?;
    let graph = fleet.load(&blob, LoadOptions::default()).map_err(|e| chain(&e))?;
    let count = bench.times(800);
    let start = Instant::now();
    let (answers, longest) = std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&graph, &blob, count));
        std::thread::sleep(Duration::from_millis(300));
        let busy = !running.is_finished();
        let pulled = bench.command("unplug 2");
        // The longest time without an answer.
        let (mut seen, mut since, mut longest) = (0, Instant::now(), Duration::ZERO);
        while !running.is_finished() {
            let completed = fleet.stats().completed;
            if completed != seen {
                longest = longest.max(since.elapsed());
                (seen, since) = (completed, Instant::now());
            }
            // A snapshot costs: looked at more often, it would take the machine from the sticks.
            std::thread::sleep(Duration::from_millis(25));
        }
        let answers = running.join().unwrap_or_else(|_| Err("a thread died".into()));
        if !busy {
            return Err("it was over before the stick was pulled".to_owned());
        }
        Ok((pulled.and(answers)?, longest))
    })?;
    compare(&answers, &expected(&blob, count)?)?;
    let stats = fleet.stats();
    bench.note(format!(
        "answered in {} ms, longest time without an answer {} ms",
        start.elapsed().as_millis(),
        longest.as_millis()
    ));
    bench.note(format!("{} of {} retried, {} failed", stats.retried, stats.submitted, stats.failed));
    ensure!(stats.failed == 0, "{} requests failed", stats.failed);
    drop(graph);
    bench.command("plug 2")?;
    close(fleet, bench)
}

pub(crate) fn stick_of_another_process_is_refused(bench: &mut Bench) -> Verdict {
    let found = bench.fresh(4)?;
    let first = open(std::slice::from_ref(&found))?;
    let start = Instant::now();
    let second = boot::connect(&found.id, &options()?, Duration::from_secs(5));
    let error = second.err().ok_or("two opened the same stick")?;
    ensure!(error.kind() == ErrorKind::InUse, "expected InUse, found {}", chain(&error));
    ensure!(error.to_string().contains("process"), "expected the process by name, found {error}");
    bench.note(format!("refused after {} ms: {error}", start.elapsed().as_millis()));
    close(first, bench)
}
