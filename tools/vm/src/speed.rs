//! The driver's data path against plain libusb, in one run: rate, CPU, URBs, system calls and wake-ups per inference.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ncs2::Graph;
use ncs2::blob::Blob;
use ncs2::runtime::{Fleet, FleetConfig, LoadOptions, SubmitOptions};
use ncs2::stick::Ordering;
use ncs2::transport::usb::boot;

use crate::bench::{Bench, open_libusb};
use crate::count::{Cost, Counters, cost, wakeups};
use crate::fleet::{blob, chain, options};
use crate::usb_peer::Peer;
use crate::{Verdict, ensure};

const EXECUTORS: u32 = 2;
const DEPTH: u32 = 4;
const WARM_UP: usize = 40;

/// One row of the table.
struct Row {
    name: &'static str,
    cost: Cost,
    count: usize,
    calls: f64,
    urbs: f64,
}

impl Row {
    fn rate(&self) -> f64 {
        self.count as f64 / self.cost.wall.as_secs_f64()
    }

    fn cpu_us(&self) -> f64 {
        self.cost.cpu.as_secs_f64() * 1e6 / self.count as f64
    }

    fn text(&self) -> String {
        let wakeups = self.cost.wakeups as f64 / self.count as f64;
        let Row { name, calls, urbs, .. } = self;
        let (rate, cpu) = (self.rate(), self.cpu_us());
        format!("{name:<18} {rate:>8.0} {cpu:>10.0} {urbs:>8.1} {calls:>8.1} {wakeups:>8.1}")
    }
}

/// Warms up, measures undisturbed, then counts with tracing on.
fn measure(
    name: &'static str,
    count: usize,
    mut run: impl FnMut(usize) -> Result<(), String>,
) -> Result<Row, String> {
    run(WARM_UP)?;
    let ((), cost) = cost(|| run(count))?;
    let counters = Counters::start()?;
    run(count / 4)?;
    let (calls, urbs) = counters.stop();
    let per = |n: u64| n as f64 / (count / 4) as f64;
    Ok(Row { name, cost, count, calls: per(calls), urbs: per(urbs) })
}

fn fill(n: u64, bytes: &mut [u8]) {
    bytes.fill(n as u8);
}

fn peer(bench: &mut Bench, blob: &Blob, count: usize) -> Result<Row, String> {
    let found = bench.booted(0)?;
    let handle = open_libusb(&found)?;
    handle.claim_interface(0).map_err(|e| format!("claim: {e}"))?;
    let mut peer = Peer::open(handle, 1024, blob, EXECUTORS, DEPTH)?;
    let row = measure("libusb, vendor", count, |count| peer.run(count, fill, |_, _| Ok(())))?;
    peer.close()?;
    Ok(row)
}

fn open(bench: &mut Bench, ordering: Ordering) -> Result<Fleet, String> {
    let found = bench.fresh(0)?;
    let config = FleetConfig { open_timeout: Duration::from_secs(30), ordering, ..FleetConfig::default() };
    let port = boot::port(found.id, options()?);
    Fleet::builder().port(port).config(config).open().map_err(|e| chain(&e))
}

/// As the peer: this thread keeps twice the depth in the fleet.
fn run(graph: &Graph, count: usize) -> Result<(), String> {
    let mut tickets = VecDeque::new();
    for n in 0..count {
        let mut input = graph.input().map_err(|e| chain(&e))?;
        fill(n as u64, input.as_mut_slice());
        tickets.push_back(graph.submit(input, SubmitOptions::default()).map_err(|e| chain(&e))?);
        if tickets.len() >= 2 * DEPTH as usize
            && let Some(ticket) = tickets.pop_front()
        {
            ticket.wait().map_err(|e| chain(&e))?;
        }
    }
    tickets.into_iter().try_for_each(|ticket| ticket.wait().map(drop).map_err(|e| chain(&e)))
}

fn driver(
    bench: &mut Bench,
    name: &'static str,
    ordering: Ordering,
    blob: &Blob,
    count: usize,
) -> Result<Row, String> {
    let fleet = open(bench, ordering)?;
    let load = LoadOptions { executors: EXECUTORS, depth: DEPTH, ..LoadOptions::default() };
    let graph = fleet.load(blob, load).map_err(|e| chain(&e))?;
    let row = measure(name, count, |count| run(&graph, count))?;
    drop(graph);
    fleet.close(Duration::from_secs(10)).map_err(|e| chain(&e))?;
    Ok(row)
}

pub(crate) fn driver_against_libusb(bench: &mut Bench) -> Verdict {
    for (name, count) in [("tiny_u8_s1", 800), ("squeezenet1_1_u8_s1", 200)] {
        let count = bench.times(count).max(40);
        let blob = blob(name)?;
        let graph = blob.graph();
        bench.note(format!(
            "{name}: {} bytes in, {} out; {count} inferences, depth {DEPTH}; simulated stick, emulated CPUs",
            graph.input_bytes, graph.output_bytes
        ));
        bench.note("                      inf/s     CPU us     URBs    calls  wake-ups  (per inference)");
        let peer = peer(bench, &blob, count)?;
        let vendor = driver(bench, "ncs2, vendor", Ordering::Vendor, &blob, count)?;
        let pipelined = driver(bench, "ncs2, pipelined", Ordering::Pipelined, &blob, count)?;
        for row in [&peer, &vendor, &pipelined] {
            bench.note(row.text());
        }
        for row in [&vendor, &pipelined] {
            bench.note(format!(
                "{}: {:.2} times the inferences/s of libusb, {:.2} of its CPU per inference",
                row.name,
                row.rate() / peer.rate(),
                row.cpu_us() / peer.cpu_us()
            ));
            ensure!(row.urbs > 0.0 && row.calls > row.urbs, "nothing was counted: {}", row.text());
        }
    }
    Ok(())
}

/// Of an opened stick with nothing to do: a ping and the temperature, once a second together.
pub(crate) fn idle_sticks_sleep(bench: &mut Bench) -> Verdict {
    const WINDOW: Duration = Duration::from_secs(5);
    let fleet = open(bench, Ordering::Vendor)?;
    std::thread::sleep(Duration::from_secs(1));
    let (before, start) = (wakeups("ncs2-"), Instant::now());
    std::thread::sleep(WINDOW);
    let woken = wakeups("ncs2-") - before;
    let per_second = woken as f64 / start.elapsed().as_secs_f64();
    bench.note(format!("{per_second:.1} wake-ups a second of an idle stick's thread"));
    fleet.close(Duration::from_secs(10)).map_err(|e| chain(&e))?;
    // A ping, its answer, telemetry and its answers; more is a thread that looks for work.
    ensure!(woken < 20 * WINDOW.as_secs(), "an idle stick's thread wakes {per_second:.1} times a second");
    Ok(())
}
