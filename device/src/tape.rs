//! What a virtual stick said and was told, event by event, as lines of the trace's own form: the device's end of the wire,
//! where every client looks alike.

use std::fmt;

use ncs2::StickId;
use ncs2::transport::{Decoder, Direction, TRACE_BYTES, TraceSink};
use ncs2::wire::{HEADER_LEN, Header};
use sha2::{Digest, Sha256};

/// Records one stick. A header is a line, a payload is one line however it was cut; behind a payload that the line does not
/// show whole stands a note with its hash.
pub struct Tape {
    sink: TraceSink,
    stick: StickId,
    decoder: Decoder,
    lanes: [Lane; 2],
}

/// One direction: bytes of the event that is not complete yet.
#[derive(Default)]
struct Lane {
    bytes: Vec<u8>,
    /// A payload of so many bytes is next; 0: a header.
    payload: usize,
    /// What came was no header: the rest is not looked at.
    lost: bool,
}

impl Tape {
    /// Writes to `sink` under the name `stick`.
    pub fn new(sink: TraceSink, stick: StickId) -> Self {
        Tape { sink, stick, decoder: Decoder::new(), lanes: Default::default() }
    }

    /// The stick is something else on the bus now: a new link.
    pub(crate) fn note(&mut self, text: &str) {
        self.sink.note(&self.stick, text);
        self.decoder = Decoder::new();
        self.lanes = Default::default();
    }

    /// Bytes crossed the wire.
    pub(crate) fn moved(&mut self, direction: Direction, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let lane = &mut self.lanes[direction as usize];
            if lane.lost {
                return;
            }
            let wanted = if lane.payload > 0 { lane.payload } else { HEADER_LEN } - lane.bytes.len();
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            lane.bytes.extend_from_slice(now);
            bytes = later;
            if now.len() == wanted {
                self.event(direction);
            }
        }
    }

    fn event(&mut self, direction: Direction) {
        let lane = &mut self.lanes[direction as usize];
        let bytes = std::mem::take(&mut lane.bytes);
        self.sink.transfer(&self.stick, &mut self.decoder, direction, &bytes);
        if lane.payload > 0 {
            lane.payload = 0;
            if bytes.len() > TRACE_BYTES {
                let hash: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
                self.sink.note(&self.stick, format!("payload sha256={hash}"));
            }
            return;
        }
        match Header::parse(&bytes) {
            Ok(header) if header.has_payload() => lane.payload = header.size as usize,
            Ok(_) => {}
            Err(_) => lane.lost = true,
        }
    }
}

impl fmt::Debug for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tape").field("stick", &self.stick).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use ncs2::clock::Manual;
    use ncs2::wire::{EventKind, StreamId};
    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_payload_in_pieces_is_one_line_with_its_hash() {
        let page = Page::default();
        let sink = TraceSink::new(Arc::new(Manual::new())).text(page.clone());
        let mut tape = Tape::new(sink.clone(), StickId::sim(3));
        let write = Header::request(7, EventKind::Write, StreamId(2), 300).encode();
        tape.moved(Direction::Out, &write[..10]);
        tape.moved(Direction::Out, &write[10..]);
        tape.moved(Direction::Out, &[5; 299]);
        tape.moved(Direction::In, &Header::request(8, EventKind::Ping, StreamId(0), 0).encode());
        tape.moved(Direction::Out, &[5; 1]);
        sink.flush();
        let text = String::from_utf8(page.0.lock().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].contains("dev=sim3 OUT ep=01 len=84") && lines[0].contains("WRITE_REQ(0) id=7"));
        assert!(lines[1].contains("IN  ep=81") && lines[1].contains("PING_REQ"));
        assert!(lines[2].contains("OUT ep=01 len=300") && lines[2].contains("off=0/300"));
        let hash: String = Sha256::digest([5; 300]).iter().map(|b| format!("{b:02x}")).collect();
        assert!(lines[3].ends_with(&format!("payload sha256={hash}")));
    }
}
