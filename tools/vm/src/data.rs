//! Bytes both ways through the driver's data path: sizes, pieces, cancels.

use std::time::Instant;

use ncs2::transport::usb::discover::FoundState;
use ncs2::wire::{CAPABILITIES_LEN, Capabilities, EventKind, StreamId, THERMAL_LEN};

use crate::bench::Bench;
use crate::wire::Wire;
use crate::{Verdict, ensure};

const MONITOR: u32 = 0;
const BUFFER: u32 = 1;
const THERMAL: [u8; 8] = [0; 8];
const CAPABILITIES: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];

fn monitor(bench: &mut Bench, n: usize) -> Result<Wire, String> {
    let mut wire = bench.opened(n)?;
    wire.ping()?;
    wire.create_stream("deviceMonitor", MONITOR, 2000)?;
    Ok(wire)
}

fn capabilities(wire: &mut Wire) -> Verdict {
    let meanwhile = wire.write(MONITOR, &CAPABILITIES)?;
    let data = wire.receive_write(MONITOR, meanwhile)?;
    ensure!(data.len() == CAPABILITIES_LEN, "expected {CAPABILITIES_LEN} bytes, found {}", data.len());
    let found = Capabilities::parse(&data).map_err(|e| e.to_string())?;
    ensure!(found.fw_version[1] == 0x2480, "expected a Myriad X, found {found:?}");
    Ok(())
}

pub(crate) fn ping_and_capabilities(bench: &mut Bench) -> Verdict {
    let mut wire = monitor(bench, 3)?;
    capabilities(&mut wire)?;
    let start = Instant::now();
    for _ in 0..100 {
        wire.ping()?;
    }
    let (us, kind) = (start.elapsed().as_micros() / 100, wire.reactor_kind());
    bench.note(format!("ping {us} us, {kind}"));
    Ok(())
}

pub(crate) fn answers_in_pieces_of_one_packet(bench: &mut Bench) -> Verdict {
    let mut wire = monitor(bench, 3)?;
    for packets in [1, 2, 64] {
        wire.read_in_pieces_of(wire.max_packet() * packets);
        for _ in 0..8 {
            let meanwhile = wire.write(MONITOR, &THERMAL)?;
            let data = wire.receive_write(MONITOR, meanwhile)?;
            ensure!(data.len() == THERMAL_LEN, "expected {THERMAL_LEN} bytes, found {}", data.len());
        }
    }
    Ok(())
}

/// To the stick; the other direction has no payload of these sizes before a graph is loaded.
pub(crate) fn payloads_around_the_packet_size(bench: &mut Bench) -> Verdict {
    let mut wire = monitor(bench, 3)?;
    wire.create_stream("graphBuffer0", BUFFER, 1 << 20)?;
    for len in [1, 511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096, 4097] {
        let payload = vec![0x5a; len];
        wire.write(BUFFER, &payload).map_err(|e| format!("{len} bytes: {e}"))?;
        // Were the stick one byte off, it would take the ping for data, or data for the ping.
        wire.ping().map_err(|e| format!("ping behind {len} bytes: {e}"))?;
    }
    capabilities(&mut wire)
}

pub(crate) fn large_payloads(bench: &mut Bench) -> Verdict {
    let mut wire = monitor(bench, 3)?;
    wire.create_stream("graphBuffer0", BUFFER, 64 << 20)?;
    for len in [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, 8 << 20, (8 << 20) + 1024] {
        let payload = vec![0xa5; len];
        let start = Instant::now();
        wire.write(BUFFER, &payload).map_err(|e| format!("{len} bytes: {e}"))?;
        let seconds = start.elapsed().as_secs_f64();
        bench.note(format!("{len} bytes: {:.0} MB/s", len as f64 / 1e6 / seconds));
        wire.ping().map_err(|e| format!("ping behind {len} bytes: {e}"))?;
    }
    Ok(())
}

pub(crate) fn zero_length_packet_means_nothing(bench: &mut Bench) -> Verdict {
    let mut wire = monitor(bench, 3)?;
    wire.create_stream("graphBuffer0", BUFFER, 1 << 20)?;
    for len in [1024, 4096] {
        let request = wire.request(EventKind::Write, StreamId(BUFFER), len as u32);
        wire.send(&request.encode())?;
        wire.send(&vec![1; len])?;
        wire.send(&[]).map_err(|e| format!("zero-length packet: {e}"))?;
        let (header, _) = wire.receive_event()?;
        ensure!(header.answers(&request), "expected the answer to the WRITE, found {header:?}");
        wire.ping()?;
    }
    Ok(())
}

pub(crate) fn cancelled_reads_lose_nothing(bench: &mut Bench) -> Verdict {
    let mut wire = monitor(bench, 4)?;
    let mut cancelled = 0;
    for round in 0..20 {
        wire.post(8)?;
        cancelled += wire.cancel()?.0;
        wire.ping().map_err(|e| format!("round {round}: {e}"))?;
    }
    ensure!(cancelled > 0, "nothing was cancelled");
    // An answer that the stick holds back while its readers are cancelled comes with the next reader.
    bench.command("mute 4")?;
    let ping = wire.request(EventKind::Ping, StreamId(0), 0);
    wire.send(&ping.encode())?;
    wire.post(8)?;
    wire.cancel()?;
    bench.command("resume 4")?;
    let (header, _) = wire.receive_event()?;
    ensure!(header.answers(&ping), "expected the ping's answer, found {header:?}");
    bench.note(format!("{cancelled} cancelled"));
    wire.ping()
}

pub(crate) fn reset_request_brings_the_boot_rom_back(bench: &mut Bench) -> Verdict {
    let mut wire = monitor(bench, 5)?;
    let reset = wire.request(EventKind::Reset, StreamId(0), 0);
    // The answer may or may not be seen before it leaves; it must leave.
    wire.send(&reset.encode())?;
    drop(wire);
    let found = bench.wait_for(5, FoundState::Unbooted)?;
    ensure!(found.speed_mbps == 480, "expected 480 Mb/s, found {found:?}");
    Ok(())
}
