//! Processes that own a stick and are killed, stopped, or in each other's way.

use std::time::{Duration, Instant};

use ncs2::transport::usb::boot::{self, BootOptions};
use ncs2::transport::usb::discover::FoundState;
use rustix::process::Signal;

use crate::bench::Bench;
use crate::owner::{Owner, PATIENCE};
use crate::{Verdict, ensure, fleet, long};

const SMALL: &str = "tiny_u8_s1";
/// Input of 150 528 bytes.
const LARGE: &str = "squeezenet1_1_u8_s1";
/// How long an owner stands still.
const STOPPED: Duration = Duration::from_secs(20);

/// Half an image is in the boot ROM, and its sender is gone.
pub(crate) fn killed_while_it_sends_the_firmware(bench: &mut Bench) -> Verdict {
    let found = bench.fresh_of(5, "strict")?;
    bench.command("hang 5 out 1200000")?;
    let mut owner = Owner::start(&found.id, SMALL)?;
    owner.says("opening")?;
    bench.until(5, "half an image", |stick| stick.received_bytes >= 1_200_000)?;
    owner.kill()?;
    bench.command("resume 5")?;
    let half = bench.status(5)?;
    ensure!(half.state() == "unbooted", "expected half an image in the boot ROM, found {half:?}");
    let start = Instant::now();
    let mut next = Owner::start(&found.id, SMALL)?;
    next.owns()?;
    bench.note(format!("the next process has it after {} ms", start.elapsed().as_millis()));
    next.runs(20)?;
    next.closes()
}

/// The firmware waits for the rest of a tensor: whatever were sent next, it would take for that.
pub(crate) fn killed_while_it_sends_a_tensor(bench: &mut Bench) -> Verdict {
    let found = bench.fresh_of(5, "strict")?;
    let mut owner = Owner::start(&found.id, LARGE)?;
    owner.owns()?;
    owner.runs(2)?;
    let before = bench.status(5)?.received_bytes;
    bench.command("hang 5 out 100000")?;
    owner.tell("run 1000")?;
    bench.until(5, "most of a tensor", |stick| stick.received_bytes >= before + 100_000)?;
    owner.kill()?;
    let heard = bench.status(5)?.received_bytes;
    let start = Instant::now();
    let mut next = Owner::start(&found.id, LARGE)?;
    next.says("opening")?;
    bench.command("resume 5")?;
    let mut last = bench.status(5)?;
    while last.state() == "booted" {
        ensure!(
            last.received_bytes == heard,
            "a stick in the middle of a tensor was spoken to: {} bytes",
            last.received_bytes - heard
        );
        ensure!(start.elapsed() < PATIENCE, "it did not come back: {last:?}");
        last = bench.status(5)?;
    }
    bench.note(format!("reset after {} ms, unspoken to", start.elapsed().as_millis()));
    let line = next.line(PATIENCE)?;
    ensure!(line.starts_with("opened"), "expected the next process to open it, found {line}");
    next.says("loaded")?;
    bench.note(format!("the next process has it after {} ms", start.elapsed().as_millis()));
    next.runs(20)?;
    next.closes()
}

/// A booted stick whose owner is dead and whose watchdog does not come: reset, or an error that says what to do.
pub(crate) fn left_booted_without_a_watchdog(bench: &mut Bench) -> Verdict {
    let found = bench.fresh_of(5, "patient")?;
    let mut owner = Owner::start(&found.id, SMALL)?;
    owner.owns()?;
    owner.kill()?;
    let heard = bench.wait_for(5, FoundState::Booted).and_then(|_| bench.status(5))?.received_bytes;
    let options = BootOptions { reset_foreign: true, ..fleet::options()? };
    let start = Instant::now();
    let result = boot::connect(&found.id, &options, Duration::from_secs(6));
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(10), "asked for 6 s at most, took {took:?}");
    match result {
        Ok(connection) => {
            bench.note(format!("reset and booted again after {} ms", took.as_millis()));
            drop(connection);
        }
        Err(error) => {
            let text = error.to_string();
            bench.note(format!("given up after {} ms: {text}", took.as_millis()));
            ensure!(text.contains("plug"), "expected what to do about it, found {text}");
            let after = bench.status(5)?;
            ensure!(
                after.received_bytes == heard,
                "it was spoken to: {} bytes",
                after.received_bytes - heard
            );
        }
    }
    bench.booted(5).map(drop)
}

/// The watchdog of a stopped owner's stick fires; sticks of others work on meanwhile; nothing hangs afterwards.
pub(crate) fn stopped_while_others_infer(bench: &mut Bench) -> Verdict {
    let found = bench.fresh(6)?;
    let mut owner = Owner::start(&found.id, SMALL)?;
    owner.owns()?;
    owner.tell("run 3000")?;
    bench.until(6, "inferences", |stick| stick.inferences >= 10)?;
    owner.signal(Signal::STOP)?;
    let start = Instant::now();
    let beside = long::many_inferences(bench);
    while start.elapsed() < STOPPED {
        crate::bench::pause();
    }
    let resets = bench.status(6)?.resets;
    owner.signal(Signal::CONT)?;
    beside?;
    ensure!(resets == 1, "expected the watchdog to have reset the stick once, found {resets} resets");
    let (start, stopped) = (Instant::now(), start.elapsed());
    let line = owner.line(PATIENCE)?;
    let after = start.elapsed();
    if line == "ran 3000" {
        owner.closes()?;
    } else {
        ensure!(line.starts_with("error "), "expected its answers or an error, found {line}");
        owner.wait(PATIENCE)?;
    }
    bench.note(format!("stopped for {:.1} s; {} ms later: {line}", stopped.as_secs_f64(), after.as_millis()));
    let mut next = Owner::start(&found.id, SMALL)?;
    next.owns()?;
    next.runs(20)?;
    next.closes()
}

/// Two processes want the same unbooted stick.
pub(crate) fn two_race_for_one_boot(bench: &mut Bench) -> Verdict {
    let mut refusals = Vec::new();
    for lead in [0, 100, 400] {
        let found = bench.fresh_of(4, "strict")?;
        let mut racers = vec![Owner::start(&found.id, SMALL)?];
        // The second comes while the first starts, sends the firmware, or waits for the booted stick.
        std::thread::sleep(Duration::from_millis(lead));
        racers.push(Owner::start(&found.id, SMALL)?);
        let (mut winners, mut losers) = (Vec::new(), 0);
        for mut racer in racers {
            racer.says("opening")?;
            let line = racer.line(PATIENCE)?;
            if line.starts_with("opened") {
                winners.push(racer);
            } else {
                ensure!(line.contains("process"), "expected who has the stick, found {line}");
                losers += 1;
                refusals.push(line);
            }
        }
        ensure!(
            winners.len() == 1 && losers == 1,
            "expected one of two to get the stick, found {} and {losers} refused",
            winners.len()
        );
        for mut winner in winners {
            winner.says("loaded")?;
            winner.runs(5)?;
            winner.closes()?;
        }
        let mut next = Owner::start(&found.id, SMALL)?;
        next.owns()?;
        next.runs(5)?;
        next.closes()?;
    }
    refusals.dedup();
    refusals.into_iter().for_each(|line| bench.note(line));
    Ok(())
}
