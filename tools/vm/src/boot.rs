//! One stick and all sticks, from the boot ROM to a stick that answers: what the driver takes, and what the kernel takes without it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ncs2::transport::usb::boot::{self, BootOptions};
use ncs2::transport::usb::discover::{Found, FoundState};
use ncs2::transport::usb::firmware::Firmware;
use ncs2::wire::patch_firmware;

use crate::bench::{Bench, image, upload};
use crate::count::{Cost, cost};
use crate::{Verdict, ensure, fleet};

const TRIES: usize = 3;
/// What the driver may take beyond plain libusb for all sticks: it also opens them, and the host is late now and then.
const BESIDE_LIBUSB: f64 = 1.5;

/// All at once: one stick after the other would take as many times as long. Tried again where it was late, as a busy host is now
/// and then; the shortest counts. The goal is twice the time of one stick. What stands against it is measured beside it: a kernel
/// lists the ports of a hub one after the other, and plain libusb, a thread per stick, only uploads.
pub(crate) fn all_boot_side_by_side(bench: &mut Bench) -> Verdict {
    note_file(bench)?;
    let (mut alone, mut together, mut plain) = (Duration::MAX, Duration::MAX, Duration::MAX);
    let mut in_time = false;
    for _ in 0..TRIES {
        let (one, one_listed) = listed(bench, 1)?;
        let one = opened(&one)?;
        let (all, all_listed) = listed(bench, bench.sticks)?;
        let all = opened(&all)?;
        let (one_plain, all_plain) = (uploaded(bench, 1)?, uploaded(bench, bench.sticks)?);
        (alone, together, plain) = (alone.min(one.wall), together.min(all.wall), plain.min(all_plain));
        let both = |one: Duration, all: Duration| {
            let ratio = all.as_secs_f64() / one.as_secs_f64();
            format!("{} and {} ms, {ratio:.1} times as long", one.as_millis(), all.as_millis())
        };
        bench.note(format!(
            "1 and {} sticks: driver {} ({} and {} ms CPU of this process); plain libusb, upload only {}; kernel alone, to list what is plugged in {}",
            bench.sticks,
            both(one.wall, all.wall),
            one.cpu.as_millis(),
            all.cpu.as_millis(),
            both(one_plain, all_plain),
            both(one_listed, all_listed),
        ));
        in_time = together < (alone * 2).max(plain.mul_f64(BESIDE_LIBUSB));
        if in_time {
            break;
        }
    }
    bench.note(format!(
        "{:.2} times as long as one, to reach 2",
        together.as_secs_f64() / alone.as_secs_f64()
    ));
    ensure!(
        in_time,
        "{} sticks boot in {together:?}, one in {alone:?}, and plain libusb uploads in {plain:?}",
        bench.sticks
    );
    Ok(())
}

/// A boot ROM that took an image and did not start it is reset and sent it again, within the time of one boot; the error
/// then says what is missing and what to try.
pub(crate) fn firmware_that_does_not_start_is_sent_again(bench: &mut Bench) -> Verdict {
    const SHORT: usize = 1_000_000;
    let file = PathBuf::from("/tmp/short.mvcmd");
    // With the places of both patches.
    let whole = fleet::firmware()?;
    let whole = std::fs::read(&whole).map_err(|e| format!("{}: {e}", whole.display()))?;
    let short = [&whole[..SHORT], &whole[whole.len() - 8..]].concat();
    std::fs::write(&file, short).map_err(|e| format!("{}: {e}", file.display()))?;
    let options = BootOptions { firmware: Some(file), ..fleet::options()? };
    // It starts the vendor's image alone.
    let found = bench.fresh_of(3, "strict")?;
    let start = Instant::now();
    let error = match boot::port(found.id, options).connect(Duration::from_secs(9)) {
        Ok(_) => return Err("a stick started an image that it does not know".into()),
        Err(error) => fleet::chain(&error),
    };
    bench.note(format!("after {} ms: {error}", start.elapsed().as_millis()));
    ensure!(error.contains("did not come back booted"), "expected what is missing, found {error}");
    let received = bench.status(3)?.received_bytes;
    ensure!(received >= 2 * SHORT as u64, "expected the image more than once, found {received} bytes");
    ensure!(start.elapsed() < Duration::from_secs(15), "expected an end at the deadline");
    Ok(())
}

/// What the driver computes once for all sticks.
fn note_file(bench: &mut Bench) -> Verdict {
    let image = fleet::firmware()?;
    let (found, hash) = cost(|| Firmware::find(Some(&image), true).map_err(|e| fleet::chain(&e)))?;
    let patches = fleet::options()?.patches;
    let ((), patch) = cost(|| patch_firmware(&found.image, patches).map(drop).map_err(|e| fleet::chain(&e)))?;
    bench.note(format!(
        "CPU for the firmware file: {} ms to read and hash, {} ms to patch",
        hash.cpu.as_millis(),
        patch.cpu.as_millis()
    ));
    Ok(())
}

/// The first sticks as if they had just been plugged in, and how long the kernel took to list them.
fn listed(bench: &mut Bench, count: usize) -> Result<(Vec<Found>, Duration), String> {
    bench.all_gone()?;
    let start = Instant::now();
    let found = bench.plug_first(count)?;
    Ok((found, start.elapsed()))
}

/// Booted, opened by the driver, and closed again.
fn opened(sticks: &[Found]) -> Result<Cost, String> {
    let (fleet, cost) = cost(|| fleet::open(sticks))?;
    fleet.close(Duration::from_secs(10)).map_err(|e| fleet::chain(&e))?;
    Ok(cost)
}

/// Until each of the first sticks is on the bus again, on the same port, as a booted one: a thread each, plain libusb.
fn uploaded(bench: &mut Bench, count: usize) -> Result<Duration, String> {
    let (sticks, _) = listed(bench, count)?;
    let image = image(2_298_644);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = sticks.iter().map(|found| scope.spawn(|| upload(found, &image))).collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| Err("a thread died".into())))
    })?;
    for (n, before) in sticks.iter().enumerate() {
        let after = bench.wait_for(n, FoundState::Booted)?;
        ensure!(after.id == before.id, "expected the same port {}, found {}", before.id, after.id);
    }
    Ok(start.elapsed())
}
