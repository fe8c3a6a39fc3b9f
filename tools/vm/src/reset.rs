//! Sticks brought back to their boot ROM from outside, and the bus followed while that happens.

use std::time::{Duration, Instant};

use ncs2::ErrorKind;
use ncs2::transport::usb::boot;
use ncs2::transport::usb::discover::{Found, FoundState};
use ncs2::transport::usb::reset;
use ncs2::transport::usb::watch::{Change, Watch};

use crate::bench::Bench;
use crate::fleet::{chain, options};
use crate::{Verdict, ensure};

pub(crate) fn usb_reset_and_power(bench: &mut Bench) -> Verdict {
    let unbooted = bench.fresh(0)?;
    let start = Instant::now();
    let after = reset::reset_port(&unbooted.id, Duration::from_secs(5)).map_err(|e| e.to_string())?;
    ensure!(after.state == FoundState::Unbooted, "expected its boot ROM, found {after:?}");
    bench.note(format!("USB reset of an unbooted stick: {} ms", start.elapsed().as_millis()));
    let booted = bench.booted(0)?;
    // A virtual stick's firmware runs on through a USB reset, and what QEMU's ports do without power is QEMU's matter: it is
    // either the boot ROM or the word that only a hand helps.
    let start = Instant::now();
    let answer = reset::reset_port(&booted.id, Duration::from_secs(2));
    bench.note(format!("USB reset of a booted stick, {} ms: {answer:?}", start.elapsed().as_millis()));
    check(answer)?;
    let start = Instant::now();
    let answer = reset::power_cycle(&booted.id, Duration::from_secs(5));
    bench.note(format!("power cycle, {} ms: {answer:?}", start.elapsed().as_millis()));
    check(answer)?;
    bench.fresh(0).map(drop)
}

fn check(answer: ncs2::Result<Found>) -> Verdict {
    match answer {
        Ok(found) => ensure!(found.state == FoundState::Unbooted, "expected its boot ROM, found {found:?}"),
        Err(error) => ensure!(
            error.kind() == ErrorKind::Unsupported && error.to_string().contains("out and in"),
            "expected to be told to plug it out and in, found {error}"
        ),
    }
    Ok(())
}

pub(crate) fn watch_tells_arrivals_by_port(bench: &mut Bench) -> Verdict {
    let found = bench.fresh(5)?;
    let mut watch = Watch::new().map_err(|e| e.to_string())?;
    ensure!(watch.is_told(), "the kernel's messages do not come");
    let mut next = |wanted: &dyn Fn(&Change) -> bool| loop {
        match watch.next(Duration::from_secs(10)) {
            Ok(Some(change)) if wanted(&change) => return Ok(change),
            Ok(Some(_)) => {}
            Ok(None) => return Err("nothing was told".to_owned()),
            Err(e) => return Err(e.to_string()),
        }
    };
    next(&|c| matches!(c, Change::Arrived(f) if f.id == found.id))?;
    let start = Instant::now();
    bench.command("unplug 5")?;
    next(&|c| *c == Change::Left(found.id.clone()))?;
    let left = start.elapsed();
    let start = Instant::now();
    bench.command("plug 5")?;
    next(&|c| matches!(c, Change::Arrived(f) if f.id == found.id))?;
    bench.note(format!(
        "told {} ms after the pull, {} ms after the plug",
        left.as_millis(),
        start.elapsed().as_millis()
    ));
    bench.wait_for(5, FoundState::Unbooted).map(drop)
}

/// Left by somebody who is gone, perhaps in the middle of a tensor: its watchdog's time, a reset, its port's power; then either
/// it was booted anew or the user is told.
pub(crate) fn stick_of_nobody_is_reset_first(bench: &mut Bench) -> Verdict {
    let booted = bench.booted(4)?;
    let start = Instant::now();
    let answer = boot::connect(&booted.id, &options()?, Duration::from_secs(16));
    let took = start.elapsed();
    match answer {
        Ok(_) => bench.note(format!("opened anew after {} ms", took.as_millis())),
        Err(error) => {
            bench.note(format!("after {} ms: {}", took.as_millis(), chain(&error)));
            ensure!(
                error.kind() == ErrorKind::InUse && error.to_string().contains("plug it out and in"),
                "expected to be told to plug it out and in, found {error}"
            );
        }
    }
    ensure!(took > Duration::from_secs(1), "it was given no time for its watchdog");
    bench.fresh(4).map(drop)
}
