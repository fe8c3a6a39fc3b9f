//! Reads captures of transfers: the text form, and pcapng as the tracer and Wireshark's usbmon write it.

use std::collections::BTreeMap;

use ncs2::transport::{Decoder, Direction, TRACE_BYTES, TraceEvent, TraceLine};

/// `LINKTYPE_USB_LINUX_MMAPPED`
const LINK_TYPE: u16 = 220;
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const USBMON_HEADER: usize = 64;
const BULK: u8 = 3;

/// A capture, read.
#[derive(Debug, PartialEq)]
pub struct Capture {
    /// `text` or `pcapng`.
    pub format: &'static str,
    /// In the order of the file.
    pub lines: Vec<TraceLine>,
    /// Lines or packets that are no transfer of a stick.
    pub skipped: usize,
}

/// Reads a capture; `(expected, found)` when it is none.
pub fn read(bytes: &[u8]) -> Result<Capture, (String, String)> {
    if bytes.is_empty() {
        return Err(("a trace as text or pcapng".into(), "an empty file".into()));
    }
    if bytes.starts_with(&SECTION.to_le_bytes()) {
        return pcapng(bytes);
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|_| ("a trace as text or pcapng".to_owned(), "another kind of file".to_owned()))?;
    let (mut lines, mut skipped) = (Vec::new(), 0);
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        match TraceLine::parse(line) {
            Some(line) => lines.push(line),
            None => skipped += 1,
        }
    }
    if lines.is_empty() && skipped > 0 {
        return Err(("lines of a trace".into(), format!("{skipped} lines of something else")));
    }
    Ok(Capture { format: "text", lines, skipped })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn pcapng(bytes: &[u8]) -> Result<Capture, (String, String)> {
    let mut at = 0;
    let mut ticks_per_s = 1e6;
    let mut capture = Capture { format: "pcapng", lines: Vec::new(), skipped: 0 };
    let mut sticks: BTreeMap<(u16, u8), Decoder> = BTreeMap::new();
    while at < bytes.len() {
        let damaged = |what: &str| ("a whole capture".to_owned(), format!("{what} at byte {at}"));
        let rest = &bytes[at..];
        let (kind, total) =
            u32_at(rest, 0).zip(u32_at(rest, 4)).ok_or_else(|| damaged("half a block header"))?;
        let total = total as usize;
        if total < 12 || total > rest.len() || !total.is_multiple_of(4) {
            return Err(damaged("a block that is cut off"));
        }
        let body = &rest[8..total - 4];
        match kind {
            SECTION if u32_at(body, 0) != Some(0x1a2b_3c4d) => {
                return Err(("a little-endian capture".into(), "a big-endian one".into()));
            }
            INTERFACE => {
                match u16_at(body, 0) {
                    Some(LINK_TYPE) => {}
                    other => {
                        return Err((
                            format!("link type {LINK_TYPE} (USB with Linux header)"),
                            other.map_or_else(|| "none".into(), |t| t.to_string()),
                        ));
                    }
                }
                ticks_per_s = resolution(body.get(8..).unwrap_or_default());
            }
            ENHANCED_PACKET => match packet(body, ticks_per_s, &mut sticks) {
                Some(line) => capture.lines.extend(line),
                None => capture.skipped += 1,
            },
            _ => {}
        }
        at += total;
    }
    Ok(capture)
}

/// Option `if_tsresol`: a power of ten, or of two where the highest bit is set.
fn resolution(mut options: &[u8]) -> f64 {
    while let (Some(code), Some(len)) = (u16_at(options, 0), u16_at(options, 2)) {
        if code == 9 && len == 1 {
            let exponent = options.get(4).copied().unwrap_or(6);
            let base: f64 = if exponent & 0x80 == 0 { 10.0 } else { 2.0 };
            return base.powi(i32::from(exponent & 0x7f));
        }
        let next = 4 + usize::from(len).next_multiple_of(4);
        if code == 0 || next > options.len() {
            break;
        }
        options = &options[next..];
    }
    1e6
}

/// A line of one packet: `None` for another device's, `Some(None)` for half of a transfer that says nothing.
fn packet(
    body: &[u8],
    ticks_per_s: f64,
    sticks: &mut BTreeMap<(u16, u8), Decoder>,
) -> Option<Option<TraceLine>> {
    let ticks = u64::from(u32_at(body, 4)?) << 32 | u64::from(u32_at(body, 8)?);
    let captured = u32_at(body, 12)? as usize;
    let data = body.get(20..20usize.checked_add(captured)?)?;
    let header = data.get(..USBMON_HEADER)?;
    let payload = &data[USBMON_HEADER..];
    let direction = match (header[9], header[10]) {
        (BULK, 0x01) => Direction::Out,
        (BULK, 0x81) => Direction::In,
        _ => return None,
    };
    let device = (u16_at(header, 12)?, header[11]);
    let status = u32_at(header, 28)?.cast_signed();
    let len = u32_at(header, 32)? as usize;
    let line = |event| TraceLine {
        seconds: ticks as f64 / ticks_per_s,
        thread: "capture".into(),
        stick: format!("{}.{}", device.0, device.1),
        event,
    };
    let submitted = match header[8] {
        b'S' => true,
        b'C' => false,
        _ => return None,
    };
    // Bytes go with the submission of an OUT and with the completion of an IN.
    let moved = submitted == (direction == Direction::Out);
    if !submitted && status != 0 {
        let pipe = if direction == Direction::Out { "OUT" } else { "IN" };
        return Some(Some(line(TraceEvent::Note(format!("{pipe} failed, errno {}", status.unsigned_abs())))));
    }
    if !moved {
        return Some(None);
    }
    let text = sticks.entry(device).or_default().describe(direction, len, payload);
    let shown = payload[..payload.len().min(TRACE_BYTES)].to_vec();
    Some(Some(line(TraceEvent::Transfer { direction, len, text, shown })))
}

/// The first stream that a transfer's words name: its number, and its name where it is known.
pub fn stream(text: &str) -> Option<(u32, Option<&str>)> {
    let rest = text.split("stream=").nth(1)?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let number = rest[..digits].parse().ok()?;
    let name = rest[digits..].strip_prefix('(').and_then(|r| r.split_once(')')).map(|(name, _)| name);
    Some((number, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_found_in_words() {
        assert_eq!(
            stream("hdr WRITE_REQ(0) id=3 stream=2(graphMonitor) size=8"),
            Some((2, Some("graphMonitor")))
        );
        assert_eq!(stream("data stream=12 off=0/4"), Some((12, None)));
        assert_eq!(stream("empty"), None);
    }

    #[test]
    fn damaged_captures_are_refused() {
        let mut bytes = SECTION.to_le_bytes().to_vec();
        bytes.extend(28u32.to_le_bytes());
        bytes.extend([0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0]);
        bytes.extend(u64::MAX.to_le_bytes());
        bytes.extend(28u32.to_le_bytes());
        assert_eq!(read(&bytes).expect("whole").lines, []);
        for cut in 4..bytes.len() {
            assert!(read(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(read(&[0xff, 0xfe]).is_err());
        assert_eq!(read(&[]).expect_err("nothing in it").1, "an empty file");
        assert!(read(b"hello\n").is_err());
    }

    #[test]
    fn resolution_is_read_from_its_option() {
        assert_eq!(resolution(&[]), 1e6);
        assert_eq!(resolution(&[9, 0, 1, 0, 9, 0, 0, 0]), 1e9);
        assert_eq!(resolution(&[2, 0, 2, 0, b'x', b'y', 0, 0, 9, 0, 1, 0, 0x8a, 0, 0, 0]), 1024.0);
    }
}
