//! Writes down what crosses a transport: text lines as the vendor transcripts have them, and pcapng for Wireshark.

use std::collections::VecDeque;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::decode::{Decoder, TRACE_BYTES, TraceEvent, TraceLine};
use super::{
    Completion, Direction, MappedMemory, Rejected, Transfer, TransferError, Transport, TransportInfo, WaitOn,
};
use crate::clock::{Clock, Instant};
use crate::id::StickId;

/// Bytes of a transfer that a capture keeps; the true length is recorded beside them.
pub const CAPTURE_BYTES: usize = 64 << 10;

/// Where several sticks' transfers are written, in one order. Clones write to the same place.
#[derive(Clone)]
pub struct TraceSink(Arc<Mutex<Outputs>>);

struct Outputs {
    clock: Arc<dyn Clock>,
    text: Option<BufWriter<Box<dyn Write + Send>>>,
    pcapng: Option<BufWriter<Box<dyn Write + Send>>>,
    sticks: u8,
    failed: Option<io::ErrorKind>,
}

impl TraceSink {
    /// Writes nothing yet. Times are the clock's.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        TraceSink(Arc::new(Mutex::new(Outputs { clock, text: None, pcapng: None, sticks: 0, failed: None })))
    }

    /// Adds the text form.
    #[must_use]
    pub fn text(self, to: impl Write + Send + 'static) -> Self {
        self.0.lock().text = Some(BufWriter::with_capacity(1 << 18, Box::new(to)));
        self
    }

    /// Adds a capture with link type `LINKTYPE_USB_LINUX_MMAPPED`.
    #[must_use]
    pub fn pcapng(self, to: impl Write + Send + 'static) -> Self {
        {
            let mut outputs = self.0.lock();
            outputs.pcapng = Some(BufWriter::with_capacity(1 << 18, Box::new(to)));
            outputs.with_pcapng(|to| to.write_all(&pcapng::file_header()));
        }
        self
    }

    /// A line about something that is no transfer: a boot, a plug, a fault.
    pub fn note(&self, stick: &StickId, text: impl Into<String>) {
        let mut outputs = self.0.lock();
        let now = outputs.clock.now();
        outputs.line(now, stick.as_str(), TraceEvent::Note(text.into()));
    }

    /// A line about bytes that another observer saw whole, such as a virtual stick. `decoder` follows that stick alone.
    pub fn transfer(&self, stick: &StickId, decoder: &mut Decoder, direction: Direction, bytes: &[u8]) {
        let text = decoder.describe(direction, bytes.len(), bytes);
        let shown = bytes[..bytes.len().min(TRACE_BYTES)].to_vec();
        let mut outputs = self.0.lock();
        let now = outputs.clock.now();
        outputs.line(now, stick.as_str(), TraceEvent::Transfer { direction, len: bytes.len(), text, shown });
    }

    /// Writes out what is buffered. Also done when the last clone is dropped.
    pub fn flush(&self) {
        let mut outputs = self.0.lock();
        outputs.with_text(|to| to.flush());
        outputs.with_pcapng(|to| to.flush());
    }

    /// The first error of writing, after which that output is closed. Tracing never fails a transfer.
    pub fn failed(&self) -> Option<io::ErrorKind> {
        self.0.lock().failed
    }
}

impl Outputs {
    fn line(&mut self, now: Instant, stick: &str, event: TraceEvent) {
        if self.text.is_none() {
            return;
        }
        let thread = std::thread::current().name().unwrap_or("?").chars().take(15).collect();
        let line = TraceLine { seconds: now.as_nanos() as f64 / 1e9, thread, stick: stick.into(), event };
        self.with_text(|to| writeln!(to, "{line}"));
    }

    fn with_text(&mut self, write: impl FnOnce(&mut BufWriter<Box<dyn Write + Send>>) -> io::Result<()>) {
        if let Some(Err(error)) = self.text.as_mut().map(write) {
            report(&mut self.failed, &error);
            discard(self.text.take());
        }
    }

    fn with_pcapng(&mut self, write: impl FnOnce(&mut BufWriter<Box<dyn Write + Send>>) -> io::Result<()>) {
        if let Some(Err(error)) = self.pcapng.as_mut().map(write) {
            report(&mut self.failed, &error);
            discard(self.pcapng.take());
        }
    }
}

fn report(failed: &mut Option<io::ErrorKind>, error: &io::Error) {
    if failed.is_none() {
        tracing::warn!(%error, "the trace cannot be written and ends here");
    }
    failed.get_or_insert(error.kind());
}

// Without this the drop of the writer would try the failed write again.
fn discard(writer: Option<BufWriter<Box<dyn Write + Send>>>) {
    drop(writer.map(BufWriter::into_parts));
}

/// Wraps a transport and writes each transfer to a [`TraceSink`]: OUT when it is submitted, IN when it completes.
/// Transfers are shown as we submit them, whole; the vendor cuts payloads at 1 MiB.
pub struct Tracer<T> {
    inner: T,
    sink: TraceSink,
    stick: StickId,
    number: u8,
    decoder: Decoder,
    urbs: u64,
    /// Ids of the transfers in flight, OUT and IN; they complete in order.
    in_flight: [VecDeque<u64>; 2],
    scratch: Vec<u8>,
}

impl<T: Transport> Tracer<T> {
    /// Traces `inner` as `stick`.
    pub fn new(inner: T, sink: TraceSink, stick: StickId) -> Self {
        let number = {
            let mut outputs = sink.0.lock();
            outputs.sticks = outputs.sticks.wrapping_add(1);
            outputs.sticks
        };
        Tracer {
            inner,
            sink,
            stick,
            number,
            decoder: Decoder::new(),
            urbs: 0,
            in_flight: [VecDeque::new(), VecDeque::new()],
            scratch: Vec::new(),
        }
    }

    /// The traced transport.
    pub fn into_inner(self) -> T {
        self.inner
    }

    fn text(
        &mut self,
        now: Instant,
        direction: Direction,
        len: usize,
        captured: &[u8],
        outputs: &mut Outputs,
    ) {
        if outputs.text.is_none() {
            return;
        }
        let text = self.decoder.describe(direction, len, captured);
        let shown = captured[..captured.len().min(TRACE_BYTES)].to_vec();
        outputs.line(now, self.stick.as_str(), TraceEvent::Transfer { direction, len, text, shown });
    }
}

impl<T: Transport> Transport for Tracer<T> {
    fn info(&self) -> &TransportInfo {
        self.inner.info()
    }

    fn submit(&mut self, transfer: Transfer) -> Result<(), Rejected> {
        let (direction, len) = (transfer.direction, transfer.range.len());
        // Kept aside: once accepted, the bytes belong to the transport, and a refused transfer leaves no trace.
        let mut captured = std::mem::take(&mut self.scratch);
        captured.clear();
        if direction == Direction::Out {
            let bytes = transfer.bytes();
            captured.extend_from_slice(&bytes[..bytes.len().min(CAPTURE_BYTES)]);
        }
        let result = self.inner.submit(transfer);
        if result.is_ok() {
            self.urbs += 1;
            let urb = u64::from(self.number) << 48 | self.urbs;
            self.in_flight[direction as usize].push_back(urb);
            let sink = self.sink.clone();
            let mut outputs = sink.0.lock();
            let now = outputs.clock.now();
            if direction == Direction::Out {
                self.text(now, direction, len, &captured, &mut outputs);
            }
            let packet =
                pcapng::Urb { id: urb, stick: self.number, direction, len, data: &captured, ended: None };
            outputs.with_pcapng(|to| packet.write(now, to));
        }
        self.scratch = captured;
        result
    }

    fn poll(&mut self) -> Option<Completion> {
        let completion = self.inner.poll()?;
        let direction = completion.transfer.direction;
        let bytes = completion.bytes();
        let data = match direction {
            Direction::In => &bytes[..bytes.len().min(CAPTURE_BYTES)],
            Direction::Out => &[],
        };
        let sink = self.sink.clone();
        let mut outputs = sink.0.lock();
        let now = outputs.clock.now();
        if direction == Direction::In && (completion.result.is_ok() || completion.actual > 0) {
            self.text(now, direction, completion.actual, data, &mut outputs);
        }
        if let Err(error) = completion.result {
            let pipe = if direction == Direction::Out { "OUT" } else { "IN" };
            let note = format!("{pipe} of {} bytes failed: {error}", completion.transfer.range.len());
            outputs.line(now, self.stick.as_str(), TraceEvent::Note(note));
        }
        let id = self.in_flight[direction as usize].pop_front().unwrap_or_default();
        let ended = Some(completion.result);
        let packet = pcapng::Urb { id, stick: self.number, direction, len: completion.actual, data, ended };
        outputs.with_pcapng(|to| packet.write(now, to));
        Some(completion)
    }

    fn arm(&mut self) -> bool {
        self.inner.arm()
    }

    fn wait_on(&self) -> Option<WaitOn<'_>> {
        self.inner.wait_on()
    }

    fn retry_after(&self) -> Option<Duration> {
        self.inner.retry_after()
    }

    fn memory(&self) -> Option<&Arc<MappedMemory>> {
        self.inner.memory()
    }

    fn cancel_all(&mut self) {
        self.inner.cancel_all();
    }
}

/// The capture format: blocks of pcapng, packets with the 64-byte header of Linux' usbmon.
mod pcapng {
    use rustix::io::Errno;

    use super::*;

    /// `LINKTYPE_USB_LINUX_MMAPPED`
    const LINK_TYPE: u16 = 220;
    const USBMON_HEADER: usize = 64;

    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let padded = body.len().next_multiple_of(4);
        let total = (12 + padded) as u32;
        let mut out = Vec::with_capacity(total as usize);
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&total.to_le_bytes());
        out.extend_from_slice(body);
        out.resize(8 + padded, 0);
        out.extend_from_slice(&total.to_le_bytes());
        out
    }

    /// Section header and the one interface: little-endian, times in nanoseconds.
    pub(super) fn file_header() -> Vec<u8> {
        let mut section = 0x1a2b_3c4d_u32.to_le_bytes().to_vec();
        section.extend_from_slice(&[1, 0, 0, 0]); // version 1.0
        section.extend_from_slice(&u64::MAX.to_le_bytes()); // length unknown
        let mut interface = LINK_TYPE.to_le_bytes().to_vec();
        interface.extend_from_slice(&[0, 0]);
        interface.extend_from_slice(&((CAPTURE_BYTES + USBMON_HEADER) as u32).to_le_bytes());
        interface.extend_from_slice(&[9, 0, 1, 0, 9, 0, 0, 0]); // if_tsresol: 10^-9
        interface.extend_from_slice(&[0; 4]); // end of options
        [block(0x0a0d_0d0a, &section), block(1, &interface)].concat()
    }

    /// A submission (`ended` is `None`) or a completion.
    pub(super) struct Urb<'a> {
        pub(super) id: u64,
        pub(super) stick: u8,
        pub(super) direction: Direction,
        pub(super) len: usize,
        pub(super) data: &'a [u8],
        pub(super) ended: Option<Result<(), TransferError>>,
    }

    impl Urb<'_> {
        pub(super) fn write(&self, now: Instant, to: &mut impl Write) -> io::Result<()> {
            let ns = now.as_nanos();
            let captured = (USBMON_HEADER + self.data.len()) as u32;
            let original = match self.data.is_empty() {
                true => USBMON_HEADER as u32,
                false => u32::try_from(USBMON_HEADER + self.len).unwrap_or(u32::MAX),
            };
            let mut body = Vec::with_capacity(20 + captured as usize);
            body.extend_from_slice(&0u32.to_le_bytes());
            body.extend_from_slice(&((ns >> 32) as u32).to_le_bytes());
            body.extend_from_slice(&(ns as u32).to_le_bytes());
            body.extend_from_slice(&captured.to_le_bytes());
            body.extend_from_slice(&original.to_le_bytes());
            body.extend_from_slice(&self.usbmon(ns));
            body.extend_from_slice(self.data);
            to.write_all(&block(6, &body))
        }

        fn usbmon(&self, ns: u64) -> [u8; USBMON_HEADER] {
            let mut h = [0; USBMON_HEADER];
            let endpoint = if self.direction == Direction::Out { 0x01 } else { 0x81 };
            // '<' and '>' say why there is no data, as usbmon does; 0 says that there is.
            let no_data = if self.direction == Direction::Out { b'>' } else { b'<' };
            h[..8].copy_from_slice(&self.id.to_le_bytes());
            h[8] = if self.ended.is_none() { b'S' } else { b'C' };
            h[9] = 3; // bulk
            h[10] = endpoint;
            h[11] = self.stick;
            h[12..14].copy_from_slice(&1u16.to_le_bytes()); // bus
            h[14] = b'-'; // no setup packet
            h[15] = if self.data.is_empty() { no_data } else { 0 };
            h[16..24].copy_from_slice(&(ns / 1_000_000_000).to_le_bytes());
            h[24..28].copy_from_slice(&((ns % 1_000_000_000 / 1000) as u32).to_le_bytes());
            h[28..32].copy_from_slice(&self.status().to_le_bytes());
            h[32..36].copy_from_slice(&u32::try_from(self.len).unwrap_or(u32::MAX).to_le_bytes());
            h[36..40].copy_from_slice(&(self.data.len() as u32).to_le_bytes());
            h
        }

        /// What the kernel would say.
        fn status(&self) -> i32 {
            let errno = match self.ended {
                None => Errno::INPROGRESS,
                Some(Ok(())) => return 0,
                Some(Err(TransferError::Busy)) => Errno::NOMEM,
                Some(Err(TransferError::Gone)) => Errno::SHUTDOWN,
                Some(Err(TransferError::Stalled)) => Errno::PIPE,
                Some(Err(TransferError::Overflow)) => Errno::OVERFLOW,
                Some(Err(TransferError::Cancelled)) => Errno::NOENT,
                Some(Err(TransferError::Io(code))) => return -code.saturating_abs(),
            };
            -errno.raw_os_error()
        }
    }
}
