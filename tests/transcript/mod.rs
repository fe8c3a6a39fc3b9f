//! One line of a transcript (`*.usb.log`) as a value.
//!
//! `  1.178845 [Scheduler00Thr ] dev=0 OUT ep=01 len=8       data stream=0(deviceMonitor) off=0/8 CAPABILITIES arg=0 | 0100000000000000`
//!
//! This file knows the text alone: what the line says. Whether the bytes mean that is for `ncs2::wire` to say, so that
//! the two can be compared.

use std::fmt;

/// Bytes of a transfer that a line is sure to show, if it has so many: whole headers and commands.
pub const SHOWN_BYTES: usize = 132;

/// A line that is not of the format, with the part that was not understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable(pub String);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot read {:?}", self.0)
    }
}

/// One line.
#[derive(Debug, PartialEq)]
pub struct Line<'a> {
    /// Microseconds since the start.
    pub time_us: u64,
    /// Thread of the vendor's client.
    pub thread: &'a str,
    /// Which stick; `None` for what concerns none.
    pub device: Option<u32>,
    pub body: Body<'a>,
}

#[derive(Debug, PartialEq)]
pub enum Body<'a> {
    Transfer(Transfer<'a>),
    /// `FIFO id=0 name=FIFO0 …`: what a BUFFER_ALLOCATE said. The fields in order.
    Fifo(Vec<(&'a str, &'a str)>),
    /// `BLOB id=0 bytes=3840 …`: what the blob that was just sent says of itself.
    Blob(Vec<(&'a str, &'a str)>),
    /// `XLINK header size=84 first type=6 -> request_last=8`
    Variant {
        header_len: usize,
        first_type: u32,
        sentinel: u32,
    },
    /// `BOOT image complete, N bytes received; …`
    Booted {
        bytes: usize,
    },
    /// A call or event of USB that moves no bytes: opening, claiming, leaving the bus.
    Bus(&'a str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Out,
    In,
}

#[derive(Debug, PartialEq)]
pub struct Transfer<'a> {
    pub direction: Direction,
    pub endpoint: u8,
    /// Bytes moved; [`Transfer::bytes`] holds the first of them.
    pub len: usize,
    pub what: What<'a>,
    pub bytes: Vec<u8>,
}

#[derive(Debug, PartialEq)]
pub enum What<'a> {
    Boot { offset: usize, timeout_ms: u32 },
    Header(HeaderText<'a>),
    Data { stream: StreamText<'a>, span: Option<Span>, meaning: &'a str },
}

/// `off=0/8`: place of this transfer in its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub offset: usize,
    pub total: usize,
}

/// `3(FIFO0)`, or `3` while the stream is not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamText<'a> {
    pub id: u32,
    pub name: Option<&'a str>,
}

#[derive(Debug, PartialEq)]
pub struct HeaderText<'a> {
    /// `WRITE_REQ`
    pub event: &'a str,
    pub event_type: u32,
    pub id: i32,
    pub stream: StreamText<'a>,
    pub size: u32,
    /// `ack`, joined by `+` or `,` where there are several.
    pub flags: &'a str,
    /// Of CREATE_STREAM.
    pub name: Option<&'a str>,
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, Unreadable> {
    text.parse().map_err(|_| Unreadable(text.into()))
}

fn cut<'a>(text: &'a str, separator: &str) -> Result<(&'a str, &'a str), Unreadable> {
    text.split_once(separator).ok_or_else(|| Unreadable(text.into()))
}

fn after<'a>(text: &'a str, prefix: &str) -> Result<&'a str, Unreadable> {
    text.strip_prefix(prefix).ok_or_else(|| Unreadable(text.into()))
}

/// Takes the next word, which must be `key=value`.
fn field<'a>(words: &mut impl Iterator<Item = &'a str>, key: &str) -> Result<&'a str, Unreadable> {
    let word = words.next().ok_or_else(|| Unreadable(format!("{key}=")))?;
    after(after(word, key)?, "=")
}

/// `key=value` to the end of the line, each word one.
fn fields(text: &str) -> Result<Vec<(&str, &str)>, Unreadable> {
    text.split(' ').map(|word| cut(word, "=")).collect()
}

impl<'a> StreamText<'a> {
    fn parse(text: &'a str) -> Result<Self, Unreadable> {
        match text.split_once('(') {
            None => Ok(StreamText { id: number(text)?, name: None }),
            Some((id, name)) => {
                let name = name.strip_suffix(')').ok_or_else(|| Unreadable(text.into()))?;
                Ok(StreamText { id: number(id)?, name: Some(name) })
            }
        }
    }
}

impl<'a> HeaderText<'a> {
    fn parse(text: &'a str) -> Result<Self, Unreadable> {
        let mut words = text.split(' ');
        let (event, event_type) = cut(words.next().unwrap_or_default(), "(")?;
        let event_type = number(event_type.strip_suffix(')').ok_or_else(|| Unreadable(text.into()))?)?;
        let id = number(field(&mut words, "id")?)?;
        let stream = StreamText::parse(field(&mut words, "stream")?)?;
        let size = number(field(&mut words, "size")?)?;
        let flags = field(&mut words, "flags")?;
        let name = match words.next() {
            None => None,
            Some(word) => {
                let name = after(word, "name=\"")?;
                Some(name.strip_suffix('"').ok_or_else(|| Unreadable(word.into()))?)
            }
        };
        match words.next() {
            None => Ok(HeaderText { event, event_type, id, stream, size, flags, name }),
            Some(rest) => Err(Unreadable(rest.into())),
        }
    }
}

impl<'a> Transfer<'a> {
    fn parse(direction: Direction, text: &'a str) -> Result<Self, Unreadable> {
        let (text, hex) = cut(text, " | ")?;
        let (endpoint, text) = cut(after(text.trim_start(), "ep=")?, " ")?;
        let (len, text) = cut(after(text, "len=")?, " ")?;
        let text = text.trim();
        let what = if let Some(text) = text.strip_prefix("hdr ") {
            What::Header(HeaderText::parse(text)?)
        } else if let Some(text) = text.strip_prefix("boot image ") {
            let mut words = text.split(' ');
            let offset = number(field(&mut words, "off")?)?;
            What::Boot { offset, timeout_ms: number(field(&mut words, "timeout")?)? }
        } else {
            let (stream, text) = {
                let text = after(text, "data stream=")?;
                text.split_once(' ').unwrap_or((text, ""))
            };
            let stream = StreamText::parse(stream)?;
            let (span, meaning) = match text.strip_prefix("off=") {
                None => (None, text),
                Some(text) => {
                    let (span, meaning) = text.split_once(' ').unwrap_or((text, ""));
                    let (offset, total) = cut(span, "/")?;
                    (Some(Span { offset: number(offset)?, total: number(total)? }), meaning)
                }
            };
            What::Data { stream, span, meaning }
        };
        let endpoint = u8::from_str_radix(endpoint, 16).map_err(|_| Unreadable(endpoint.into()))?;
        Ok(Transfer { direction, endpoint, len: number(len)?, what, bytes: parse_hex(hex)? })
    }
}

fn parse_hex(hex: &str) -> Result<Vec<u8>, Unreadable> {
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    let bytes = pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect::<Option<_>>();
    bytes.filter(|_| rest.is_empty()).ok_or_else(|| Unreadable(hex.into()))
}

impl<'a> Line<'a> {
    pub fn parse(line: &'a str) -> Result<Self, Unreadable> {
        let (time, text) = cut(line.trim_start(), " [")?;
        let (seconds, micros) = cut(time, ".")?;
        if micros.len() != 6 {
            return Err(Unreadable(time.into()));
        }
        let time_us = number::<u64>(seconds)? * 1_000_000 + number::<u64>(micros)?;
        let (thread, text) = cut(text, "] ")?;
        let (device, text) = match text.strip_prefix("dev=") {
            None => (None, text),
            Some(text) => {
                let (device, text) = cut(text, " ")?;
                (Some(number(device)?), text)
            }
        };
        Ok(Line { time_us, thread: thread.trim_end(), device, body: Body::parse(text)? })
    }
}

impl<'a> Body<'a> {
    /// First words of the lines about USB that carry no bytes.
    const BUS_WORDS: [&'static str; 9] = [
        "libusb_init",
        "libusb_exit",
        "OPEN",
        "CLOSE",
        "SET_CONFIGURATION",
        "CLAIM_INTERFACE",
        "RELEASE_INTERFACE",
        "DETACH_KERNEL_DRIVER",
        "BUS",
    ];

    fn parse(text: &'a str) -> Result<Self, Unreadable> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        Ok(match word {
            "OUT" => Body::Transfer(Transfer::parse(Direction::Out, rest)?),
            "IN" => Body::Transfer(Transfer::parse(Direction::In, rest)?),
            "FIFO" => Body::Fifo(fields(rest)?),
            "BLOB" => Body::Blob(fields(rest)?),
            "XLINK" => {
                let (len, rest) = cut(after(rest, "header size=")?, " first type=")?;
                let (first, sentinel) = cut(rest, " -> request_last=")?;
                Body::Variant {
                    header_len: number(len)?,
                    first_type: number(first)?,
                    sentinel: number(sentinel)?,
                }
            }
            "BOOT" => {
                let (bytes, _) = cut(after(rest, "image complete, ")?, " bytes received")?;
                Body::Booted { bytes: number(bytes)? }
            }
            _ if Self::BUS_WORDS.contains(&word) || text.starts_with("RESET acknowledged") => Body::Bus(text),
            _ => return Err(Unreadable(text.into())),
        })
    }
}
