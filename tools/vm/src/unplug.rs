//! Sticks that go: pulled out, or their emulator killed, in the middle of things.

use std::time::{Duration, Instant};

use ncs2::transport::usb::discover::FoundState;
use ncs2::wire::{EventKind, StreamId};

use crate::bench::{Bench, image, open_libusb};
use crate::{Verdict, ensure};

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
