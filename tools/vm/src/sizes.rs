//! Tensors of every awkward size, both ways, through the whole driver: around the packet size, around the piece size of
//! 1 MiB, with and without zero-length packets behind them.

use std::time::Instant;

use ncs2::blob::Blob;
use ncs2::runtime::LoadOptions;
use ncs2::transport::usb::discover::Found;

use crate::bench::Bench;
use crate::{Verdict, ensure, fleet};

/// Words of a blob's head: bytes that go in and come out, and where the list of inputs and that of outputs begin.
const INPUT: [usize; 2] = [80, 116];
const OUTPUT: [usize; 2] = [84, 120];
/// In an entry of those lists: where the tensor lies among the bytes.
const OFFSET: usize = 4;
/// Inputs of one size.
const INPUTS: usize = 3;
const MIB: usize = 1 << 20;

/// A small network whose one input and one output lie at the end of so many bytes; the hash engine of the virtual stick
/// reads and fills them all.
fn blob(input: usize, output: usize) -> Result<Blob, String> {
    let path = fleet::models().join("tiny_u8_s1.blob");
    let mut bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let word =
        |bytes: &[u8], at: usize| bytes[at..at + 4].iter().rev().fold(0, |n, b| n << 8 | usize::from(*b));
    for ([size_at, list_at], size) in [(INPUT, input), (OUTPUT, output)] {
        let offset_at = word(&bytes, list_at) + OFFSET;
        let offset = word(&bytes, offset_at) + size - word(&bytes, size_at);
        for (at, value) in [(size_at, size), (offset_at, offset)] {
            let value = u32::try_from(value).map_err(|e| e.to_string())?;
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    Blob::from_bytes("awkward", &bytes)
        .map_err(|e| format!("{input} to {output} bytes: {}", fleet::chain(&e)))
}

fn answers(found: Found, sizes: &[(usize, usize)], bench: &mut Bench) -> Verdict {
    let fleet = fleet::open(&[found])?;
    let start = Instant::now();
    for &(input, output) in sizes {
        let at = |e: String| format!("{input} bytes in, {output} out: {e}");
        let blob = blob(input, output)?;
        let expected = fleet::expected(&blob, INPUTS).map_err(at)?;
        ensure!(expected[0].len() == output, "expected {output} bytes, found {}", expected[0].len());
        let graph = fleet.load(&blob, LoadOptions::default()).map_err(|e| at(fleet::chain(&e)))?;
        let answers = fleet::run_of(&graph, &blob, INPUTS * 2, INPUTS).map_err(at)?;
        fleet::compare(&answers, &expected).map_err(at)?;
    }
    bench.note(format!("{} sizes in {} ms", sizes.len(), start.elapsed().as_millis()));
    fleet::close(fleet, bench)
}

const AROUND_A_PACKET: [(usize, usize); 7] =
    [(3072, 511), (3073, 512), (4095, 513), (4096, 1023), (4097, 1024), (5119, 1025), (5120, 4096)];

pub(crate) fn around_a_packet(bench: &mut Bench) -> Verdict {
    let found = bench.fresh(3)?;
    answers(found, &AROUND_A_PACKET, bench)
}

pub(crate) fn around_a_packet_with_zero_length_ones(bench: &mut Bench) -> Verdict {
    for profile in ["zero-length-full", "zero-length-always"] {
        let found = bench.fresh_of(3, profile)?;
        answers(found, &AROUND_A_PACKET, bench).map_err(|e| format!("{profile}: {e}"))?;
    }
    Ok(())
}

pub(crate) fn around_a_packet_at_high_speed(bench: &mut Bench) -> Verdict {
    let found = bench.fresh_of(3, "usb2")?;
    answers(found, &AROUND_A_PACKET, bench)?;
    bench.fresh(3).map(drop)
}

pub(crate) fn around_a_mebibyte(bench: &mut Bench) -> Verdict {
    let found = bench.fresh(3)?;
    let sizes = [(MIB - 1, 1023), (MIB, MIB - 1), (MIB + 1, MIB), (2 * MIB, MIB + 1), (4096, 2 * MIB + 1024)];
    answers(found, &sizes, bench)
}
