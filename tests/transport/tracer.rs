use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ncs2::StickId;
use ncs2::clock::Manual;
use ncs2::transport::{
    Decoder, Direction, TraceEvent, TraceLine, TraceSink, Tracer, Transport, simulated_pipe,
};
use ncs2::wire::{DeviceCommand, EventKind, Header, StreamId};
use parking_lot::Mutex;

use crate::{drain, info, out, read};

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }
}

/// Every transfer of the vendor's transcripts is described in the words that stand there, and every line is written
/// as it was read.
#[test]
fn the_decoder_says_what_the_transcripts_say() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut compared = 0;
    for entry in std::fs::read_dir(golden).expect("golden folder") {
        let path = entry.expect("entry").path();
        if path.extension().is_none_or(|e| e != "log") {
            continue;
        }
        let mut decoders = std::collections::HashMap::<String, Decoder>::new();
        for line in std::fs::read_to_string(&path).expect("transcript").lines() {
            let parsed = TraceLine::parse(line).unwrap_or_else(|| panic!("{}: {line}", path.display()));
            if parsed.to_string().trim_end() != line.trim_end() {
                panic!("{}: written {parsed}\n read {line}", path.display());
            }
            let TraceEvent::Transfer { direction, len, text, shown } = parsed.event else {
                if let TraceEvent::Note(note) = &parsed.event
                    && note.starts_with("OPEN")
                {
                    decoders.remove(&parsed.stick);
                }
                continue;
            };
            if text.starts_with("boot image") {
                continue;
            }
            let said = decoders.entry(parsed.stick).or_default().describe(direction, len, &shown);
            assert_eq!(said, text, "{}: {line}", path.display());
            compared += 1;
        }
    }
    assert!(compared > 3000, "only {compared} lines");
}

#[test]
fn a_trace_reads_back_as_what_happened() {
    let clock = Arc::new(Manual::new());
    let (text, capture) = (Memory::default(), Memory::default());
    let sink = TraceSink::new(clock.clone()).text(text.clone()).pcapng(capture.clone());
    let (host, mut device) = simulated_pipe(info());
    let mut host = Tracer::new(host, sink.clone(), StickId::sim(3));
    let header = Header::request(12, EventKind::Write, StreamId(0), 8).encode();
    host.submit(out(&header, 1)).expect("accepted");
    clock.advance(Duration::from_millis(2));
    host.submit(out(&DeviceCommand::WatchdogPing.encode(), 2)).expect("accepted");
    host.submit(read(1024, 3)).expect("accepted");
    for _ in 0..2 {
        let transfer = device.next_out().expect("sent");
        device.complete_out(transfer, Ok(()));
    }
    let mut reply = device.next_in().expect("posted");
    let response = Header::request(12, EventKind::Ping, StreamId(0), 0).encode();
    reply.bytes_mut()[..84].copy_from_slice(&response);
    device.complete_in(reply, 84, Ok(()));
    assert_eq!(drain(&mut host).len(), 3);
    host.submit(read(512, 4)).expect("accepted");
    device.disconnect();
    assert_eq!(drain(&mut host).len(), 1);
    sink.note(&StickId::sim(3), "left the bus");
    sink.flush();

    let text = String::from_utf8(text.0.lock().clone()).expect("text");
    let lines: Vec<_> = text.lines().map(|l| TraceLine::parse(l).expect(l)).collect();
    assert!(lines.iter().all(|l| l.stick == "sim3"));
    let transfers: Vec<_> = lines
        .iter()
        .filter_map(|l| match &l.event {
            TraceEvent::Transfer { direction, len, text, shown } => {
                Some((*direction, *len, text.as_str(), shown.as_slice()))
            }
            TraceEvent::Note(_) => None,
        })
        .collect();
    let expected = [
        (Direction::Out, 84, "hdr WRITE_REQ(0) id=12 stream=0 size=8 flags=ack", &header[..]),
        (Direction::Out, 8, "data stream=0 off=0/8", &[4, 0, 0, 0, 0, 0, 0, 0][..]),
        (Direction::In, 84, "hdr PING_REQ(6) id=12 stream=0 size=0 flags=ack", &response[..]),
    ];
    assert_eq!(transfers, expected);
    assert_eq!(lines[1].seconds, 0.002);
    let notes: Vec<_> = lines.iter().filter(|l| matches!(l.event, TraceEvent::Note(_))).collect();
    assert_eq!(notes.len(), 2, "the failure and the note");

    // The capture: blocks chain by their two lengths, 4 submissions and 4 completions.
    let bytes = capture.0.lock().clone();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let (mut at, mut events) = (0, Vec::new());
    while at < bytes.len() {
        let len = word(at + 4) as usize;
        assert_eq!(word(at + len - 4) as usize, len, "block at {at}");
        match word(at) {
            0x0a0d_0d0a => assert_eq!((at, word(8)), (0, 0x1a2b_3c4d)),
            1 => assert_eq!(bytes[at + 8], 220, "LINKTYPE_USB_LINUX_MMAPPED"),
            6 => {
                let packet = &bytes[at + 28..];
                let captured = word(at + 20) as usize;
                assert_eq!(captured, 64 + word(at + 28 + 36) as usize, "header and data");
                events.push((packet[8], packet[10], word(at + 28 + 32) as usize));
            }
            kind => panic!("block {kind}"),
        }
        at += len;
    }
    let out_events = events.iter().filter(|e| e.1 == 0x01).copied().collect::<Vec<_>>();
    let in_events = events.iter().filter(|e| e.1 == 0x81).copied().collect::<Vec<_>>();
    assert_eq!(out_events, [(b'S', 1, 84), (b'S', 1, 8), (b'C', 1, 84), (b'C', 1, 8)]);
    assert_eq!(in_events, [(b'S', 0x81, 1024), (b'C', 0x81, 84), (b'S', 0x81, 512), (b'C', 0x81, 0)]);
}

#[test]
fn a_full_disk_ends_the_trace_and_no_transfer() {
    let sink = TraceSink::new(Arc::new(Manual::new())).text(Full);
    let (host, mut device) = simulated_pipe(info());
    let mut host = Tracer::new(host, sink.clone(), StickId::sim(0));
    for token in 0..4000 {
        host.submit(out(&[0; 200], token)).expect("accepted");
        let transfer = device.next_out().expect("sent");
        device.complete_out(transfer, Ok(()));
        assert_eq!(host.poll().expect("done").result, Ok(()));
    }
    sink.flush();
    assert_eq!(sink.failed(), Some(io::ErrorKind::StorageFull));
}

#[test]
fn any_bytes_are_described() {
    let mut rng = crate::Rng(7);
    for seed in 0..2000 {
        let mut decoder = Decoder::new();
        for _ in 0..8 {
            let mut bytes: Vec<u8> = (0..rng.below(300)).map(|_| rng.next() as u8).collect();
            if bytes.len() > 84 && rng.below(2) == 0 {
                bytes[4..8].copy_from_slice(&(rng.below(17) as u32).to_le_bytes());
            }
            let shown = rng.below(bytes.len() + 1);
            let text = decoder.describe(Direction::In, bytes.len(), &bytes[..shown]);
            assert!(!text.is_empty() && !text.contains(|c: char| c.is_control()), "seed {seed}: {text:?}");
        }
    }
}
