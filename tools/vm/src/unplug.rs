//! Sticks that go: pulled out, or their emulator killed, in the middle of things.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ncs2::runtime::{FleetConfig, LoadOptions, StickState, SubmitOptions};
use ncs2::transport::usb::discover::FoundState;
use ncs2::wire::{EventKind, StreamId};
use ncs2::{ErrorKind, Fleet, Graph, StickId};

use crate::bench::{Bench, image, open_libusb};
use crate::{Verdict, ensure, fleet};

/// All transfers of a stick that went must be back by then.
const AT_ONCE: Duration = Duration::from_millis(200);

/// Reads and a large write are pending when the stick goes.
fn goes(bench: &mut Bench, n: usize, command: &str) -> Verdict {
    let mut wire = bench.opened(n)?;
    wire.ping()?;
    wire.create_stream("graphBuffer0", 1, 64 << 20)?;
    // A stick that hangs takes nothing more, so that the write is in the middle for sure.
    bench.command(&format!("hang {n}"))?;
    let len = 4 << 20;
    let request = wire.request(EventKind::Write, StreamId(1), len as u32);
    wire.start_out(&request.encode())?;
    wire.start_out(&vec![7; len])?;
    wire.post(8)?;
    let start = Instant::now();
    bench.command(command)?;
    let took = wire.drain_gone(2, start)?;
    bench.note(format!("all transfers back after {:.1} ms", took.as_secs_f64() * 1e3));
    ensure!(took < AT_ONCE, "expected all transfers back within {AT_ONCE:?}, took {took:?}");
    Ok(())
}

pub(crate) fn killed_emulator_is_gone_at_once(bench: &mut Bench) -> Verdict {
    if bench.face == "serial" {
        bench.note("not done: QEMU 7.2 aborts when the emulator behind a virtio-serial port begins anew");
        return Ok(());
    }
    goes(bench, 6, "drop 6")?;
    bench.command("resume 6")?;
    // QEMU connects again within a second; behind vhci the stick has to be plugged in.
    bench.command("plug 6")?;
    bench.wait_for(6, FoundState::Unbooted).map(drop)
}

pub(crate) fn pulled_stick_is_gone_and_comes_back(bench: &mut Bench) -> Verdict {
    goes(bench, 7, "unplug 7")?;
    bench.wait_gone(7)?;
    // And again from the start.
    let mut wire = bench.opened(7)?;
    wire.ping()
}

pub(crate) fn pulled_in_the_middle_of_the_firmware(bench: &mut Bench) -> Verdict {
    let found = bench.fresh(7)?;
    bench.command("hang 7")?;
    let handle = open_libusb(&found)?;
    handle.claim_interface(0).map_err(|e| format!("claim: {e}"))?;
    let start = Instant::now();
    let result = std::thread::scope(|scope| {
        let upload = scope.spawn(|| {
            let sent = handle.write_bulk(0x01, &image(1 << 20), Duration::from_secs(10));
            (sent, start.elapsed())
        });
        let pulled = bench.command("unplug 7");
        pulled.map(|_| upload.join())
    })?;
    let Ok((sent, took)) = result else { return Err("the upload's thread died".into()) };
    ensure!(
        matches!(sent, Err(rusb::Error::NoDevice | rusb::Error::Io)),
        "expected the upload to fail with NoDevice, found {sent:?}"
    );
    ensure!(took < Duration::from_secs(2), "expected the upload to end at once, took {took:?}");
    drop(handle);
    bench.booted(7).map(drop)
}

/// Where in a job the stick is pulled out.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Upload,
    Execute,
    Download,
}

/// Tries of each stage: a machine that is busy elsewhere may be late once, a driver that waits for something is late always.
const TRIES: usize = 3;
/// Input of 150 528 bytes.
const LARGE_INPUT: &str = "squeezenet1_1_u8_s1";
/// Output of 75 404 bytes.
const LARGE_OUTPUT: &str = "swconv_fp16_s1";

/// Upload, execute, download: the caller's error is there at once, another stick does not notice, and the stick that
/// comes back is booted again by the same fleet.
pub(crate) fn pulled_in_each_stage_of_a_job(bench: &mut Bench) -> Verdict {
    let ids = [bench.fresh(2)?.id, bench.fresh(3)?.id];
    // Without retries the caller sees the error instead of another stick's answer.
    let config = FleetConfig { open_timeout: Duration::from_secs(30), retries: 0, ..FleetConfig::default() };
    let fleet = fleet::open_with(&ids, config)?;
    let load = |name: &str| {
        let blob = fleet::blob(name)?;
        fleet.load(&blob, LoadOptions::default()).map_err(|e| fleet::chain(&e))
    };
    let (upload, download) = (load(LARGE_INPUT)?, load(LARGE_OUTPUT)?);
    for (stage, graph) in
        [(Stage::Upload, &upload), (Stage::Execute, &download), (Stage::Download, &download)]
    {
        let mut times = Vec::new();
        while times.len() < TRIES && times.last().is_none_or(|took| *took >= AT_ONCE) {
            let took = pulled(bench, &fleet, graph, &ids, stage).map_err(|e| format!("{stage:?}: {e}"))?;
            times.push(took);
        }
        let text: Vec<String> =
            times.iter().map(|took| format!("{:.1} ms", took.as_secs_f64() * 1e3)).collect();
        bench.note(format!("{stage:?}: the error after at most {}", text.join(", ")));
        let best = times.into_iter().min().unwrap_or_default();
        ensure!(
            best < AT_ONCE,
            "{stage:?}: expected the error within {AT_ONCE:?}, best of {TRIES}: {best:?}"
        );
    }
    drop((upload, download));
    fleet::close(fleet, bench)
}

/// One job on the first stick, which is pulled out in this stage; the second works on. How long the error took at most.
fn pulled(
    bench: &mut Bench,
    fleet: &Fleet,
    graph: &Graph,
    ids: &[StickId; 2],
    stage: Stage,
) -> Result<Duration, String> {
    let infer = |id: &StickId| {
        let mut lease = graph.input().map_err(|e| (e.kind(), fleet::chain(&e)))?;
        lease.overwrite().fill(7);
        let options = SubmitOptions { stick: Some(id.clone()), ..SubmitOptions::default() };
        let ticket = graph.submit(lease, options).map_err(|e| (e.kind(), fleet::chain(&e)))?;
        ticket.wait().map(|output| output.bytes().to_vec()).map_err(|e| (e.kind(), fleet::chain(&e)))
    };
    let right = infer(&ids[1]).map_err(|(_, why)| why)?;
    let command = match stage {
        Stage::Upload => "unplug 2 out 75000",
        Stage::Execute => "hold 2",
        Stage::Download => "unplug 2 in 40000",
    };
    bench.command(command)?;
    let received = bench.status(2)?.received_bytes;
    let over = AtomicBool::new(false);
    let (ended, before, others) = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut answers = 0;
            while !over.load(Ordering::Relaxed) {
                let answer = infer(&ids[1]).map_err(|(_, why)| format!("the other stick: {why}"))?;
                if answer != right {
                    return Err("the other stick answers wrongly".to_owned());
                }
                answers += 1;
            }
            Ok(answers)
        });
        let job = scope.spawn(|| {
            let result = infer(&ids[0]);
            (result, Instant::now())
        });
        let pulled = (|| {
            if matches!(stage, Stage::Execute) {
                let sent = received + graph.blob().graph().input_bytes as u64;
                let mut last =
                    bench.until(2, "its input", |stick| stick.received_bytes > sent)?.received_bytes;
                // Nothing more is sent to it: it has the trigger, and holds what it computes.
                let mut quiet = Instant::now();
                while quiet.elapsed() < Duration::from_millis(150) {
                    let now = bench.status(2)?.received_bytes;
                    if now != last {
                        (last, quiet) = (now, Instant::now());
                    }
                    crate::bench::pause();
                }
                let before = Instant::now();
                return bench.command("unplug 2").map(|_| before);
            }
            // The last time that it was seen in its port.
            let deadline = Instant::now() + Duration::from_secs(10);
            let mut before = Instant::now();
            while Instant::now() < deadline {
                let asked = Instant::now();
                if bench.status(2)?.state() == "unplugged" {
                    return Ok(before);
                }
                before = asked;
            }
            Err("it was not pulled out: nothing moved".into())
        })();
        if pulled.is_err() {
            // Lets the job end.
            let _ = bench.command("unplug 2");
        }
        let job = job.join();
        // The other one is asked some more, with the first one gone.
        for _ in 0..5 {
            if let Err((_, why)) = infer(&ids[1]) {
                over.store(true, Ordering::Relaxed);
                return Err(format!("the other stick, afterwards: {why}"));
            }
        }
        over.store(true, Ordering::Relaxed);
        let others = other.join().unwrap_or_else(|_| Err("a thread died".into()));
        let ended = job.map_err(|_| "a thread died".to_owned())?;
        Ok((ended, pulled?, others?))
    })?;
    match ended.0 {
        Ok(_) => return Err("the job was answered by a stick that was gone".into()),
        Err((kind, why)) => {
            ensure!(kind == ErrorKind::Unplugged, "expected Unplugged, found {kind:?}: {why}");
        }
    }
    ensure!(others > 0, "the other stick answered nothing meanwhile");
    // The same fleet boots it again.
    bench.fresh(2)?;
    let deadline = Instant::now() + Duration::from_secs(30);
    let ready = || fleet.stats().sticks.iter().any(|s| s.id == ids[0] && s.state == StickState::Ready);
    while !ready() {
        ensure!(
            Instant::now() < deadline,
            "the stick that came back is not ready: {:?}",
            fleet.stats().sticks
        );
        crate::bench::pause();
    }
    let again = infer(&ids[0]).map_err(|(_, why)| format!("after it came back: {why}"))?;
    ensure!(again == right, "the stick that came back answers wrongly");
    Ok(ended.1.saturating_duration_since(before))
}
