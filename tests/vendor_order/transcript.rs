//! Reads the golden transcripts of the vendor's client: one line per USB call, header or payload in hex at its end.

use ncs2::wire::{HEADER_LEN, Header};

/// One event on the wire: a header and, after a WRITE request, its payload.
#[derive(Clone, Debug)]
pub struct Wire {
    pub from_host: bool,
    pub header: Header,
    /// The payload's first bytes, at most 132.
    pub payload: Vec<u8>,
    /// Line of the header in the file, from 1.
    pub line: usize,
}

/// Reads the events of one stick. Boot and bus lines are left out.
pub fn parse(text: &str) -> Vec<Wire> {
    let mut events: Vec<Wire> = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let from_host = match (line.contains(" OUT ep="), line.contains(" IN  ep=")) {
            (true, false) => true,
            (false, true) => false,
            _ => continue,
        };
        let Some((_, hex)) = line.rsplit_once(" | ") else { continue };
        let bytes = unhex(hex);
        if line.contains(" hdr ") {
            assert_eq!(bytes.len(), HEADER_LEN, "line {}", n + 1);
            let header = Header::parse(&bytes).expect("a header of the vendor's client");
            events.push(Wire { from_host, header, payload: Vec::new(), line: n + 1 });
        } else if line.contains(" data ") && (!from_host || line.contains(" off=0/")) {
            let last =
                events.iter_mut().rfind(|e| e.from_host == from_host).expect("a header before its data");
            if last.payload.is_empty() {
                last.payload = bytes;
            }
        }
    }
    events
}

fn unhex(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.trim().chars().map(|c| c.to_digit(16).expect("hex digit")).collect();
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}
