//! Bytes ⇄ kernel: one stick's two bulk pipes, seen the same whether they lead to usbfs, a socket or memory.
//!
//! Calling order of a [`Transport`]: [`submit`](Transport::submit) any number of transfers, [`poll`](Transport::poll)
//! until it has none, [`arm`](Transport::arm), and wait on [`wait_on`](Transport::wait_on) when `arm` said that
//! nothing is ready. Transfers of one direction complete in the order of submission. This room spawns nothing:
//! `Reactor::turn` waits, the runtime owns the thread.

mod buffer;
mod decode;
mod device_end;
mod fault;
mod frame;
mod lane;
mod memory;
mod pipe;
mod port;
mod reactor;
mod ring;
mod socket;
mod socket_device;
mod tracer;
pub mod usb;
mod wake;

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

pub use buffer::{BUFFER_ALIGN, Buffer, HostMemory, HostMemoryTally};
pub use decode::{Decoder, TRACE_BYTES, TraceEvent, TraceLine};
pub use device_end::{DeviceEnd, InWriter};
pub use fault::{Fault, FaultInjector, FaultRule, Fired, When};
pub use memory::{LARGEST_MAPPING, MappedMemory, MemoryReport};
pub use pipe::{PipeDevice, PipeHost, pipe, simulated_pipe};
pub use port::{Connection, GiveUp, Pace, Port};
pub use reactor::{Detected, Interest, Reactor, ReactorKind, Token, Waker};
pub use socket::SocketTransport;
pub use socket_device::SocketDevice;
pub use tracer::{CAPTURE_BYTES, TraceSink, Tracer};

/// Which pipe, as seen from the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Direction {
    /// Bulk OUT, endpoint 0x01.
    Out,
    /// Bulk IN, endpoint 0x81.
    In,
}

/// One transfer: a buffer lent to the transport until its [`Completion`] gives it back.
///
/// A transfer may be longer than the kernel or the bus takes at once; the transport cuts it, keeps the pieces in
/// order and completes it as one.
#[derive(Debug)]
pub struct Transfer {
    /// OUT sends `buffer[range]`; IN receives into `buffer[range]`.
    pub direction: Direction,
    /// The memory.
    pub buffer: Buffer,
    /// Which part of it.
    pub range: Range<usize>,
    /// The submitter's own number; comes back untouched.
    pub token: u64,
}

impl Transfer {
    /// Lends the whole of `buffer`.
    pub fn whole(direction: Direction, buffer: Buffer, token: u64) -> Self {
        let range = 0..buffer.len();
        Transfer { direction, buffer, range, token }
    }

    /// `buffer[range]`, empty where the range lies outside.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.as_slice().get(self.range.clone()).unwrap_or_default()
    }

    /// `buffer[range]` to write; empty where the range lies outside or the memory is shared.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut_slice().and_then(|b| b.get_mut(self.range.clone())).unwrap_or_default()
    }

    /// What every transport refuses, as the kernel would with EINVAL: a range outside the buffer, and receiving into
    /// shared memory.
    pub fn check(&self) -> Result<(), TransferError> {
        let fits = self.range.start <= self.range.end && self.range.end <= self.buffer.len();
        if !fits || (self.direction == Direction::In && self.buffer.is_shared()) {
            return Err(TransferError::Io(rustix::io::Errno::INVAL.raw_os_error()));
        }
        Ok(())
    }
}

impl Completion {
    /// The bytes that came, or went.
    pub fn bytes(&self) -> &[u8] {
        self.transfer.bytes().get(..self.actual).unwrap_or_default()
    }
}

/// A finished transfer; always gives the buffer back, on error and cancel too.
#[derive(Debug)]
pub struct Completion {
    /// As submitted.
    pub transfer: Transfer,
    /// Bytes sent or received. An IN transfer ends early at a short packet: that is no error.
    pub actual: usize,
    /// How it ended.
    pub result: Result<(), TransferError>,
}

/// Why a transfer failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// No memory for more transfers now (usbfs ENOMEM): back-pressure, submit again after a completion.
    #[error("no memory for another transfer now")]
    Busy,
    /// The stick left the bus, or the other end of the socket or pipe is gone.
    #[error("the stick left the bus")]
    Gone,
    /// The endpoint is halted (EPIPE).
    #[error("endpoint halted")]
    Stalled,
    /// A packet was longer than the buffer left for it.
    #[error("packet longer than its buffer")]
    Overflow,
    /// Cancelled by [`Transport::cancel_all`].
    #[error("cancelled")]
    Cancelled,
    /// Any other errno.
    #[error("transfer failed, errno {0}")]
    Io(i32),
}

/// A transfer that was not accepted, handed back.
#[derive(Debug)]
pub struct Rejected {
    /// As given.
    pub transfer: Transfer,
    /// Why.
    pub reason: TransferError,
}

/// What a transport can do. Fixed for its lifetime.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TransportInfo {
    /// Largest packet of the bulk pipes: 1024 SuperSpeed, 512 high speed. An IN transfer's length must be a multiple
    /// of it, or a packet could overflow it.
    pub max_packet_bytes: usize,
    /// Link speed in Mb/s (5000, 480); 0 where there is no bus.
    pub speed_mbps: u32,
    /// How tensor memory reaches the stick, for reports.
    pub memory: MemoryKind,
    /// True when the other end is a virtual stick.
    pub simulated: bool,
}

/// Where the transport's buffers live.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum MemoryKind {
    /// Mapped from the usbfs descriptor: the controller reads and writes it directly.
    Mapped,
    /// Ordinary memory that the kernel copies.
    Copied,
    /// Handed over inside the process.
    InProcess,
}

impl MemoryKind {
    /// `mapped`, `copied` or `in-process`, as reports and JSON print it.
    pub fn as_str(self) -> &'static str {
        match self {
            MemoryKind::Mapped => "mapped",
            MemoryKind::Copied => "copied",
            MemoryKind::InProcess => "in-process",
        }
    }
}

/// What to wait for before the next [`Transport::poll`] can have something.
#[derive(Debug)]
pub struct WaitOn<'a> {
    /// The descriptor.
    pub fd: BorrowedFd<'a>,
    /// Wait until it is readable.
    pub readable: bool,
    /// Wait until it is writable (usbfs signals reapable URBs so).
    pub writable: bool,
}

impl WaitOn<'_> {
    /// The same for [`Reactor::register`] and [`Reactor::set_interest`].
    pub fn interest(&self) -> Interest {
        Interest { readable: self.readable, writable: self.writable }
    }
}

/// One stick's pair of bulk pipes.
pub trait Transport: Send {
    /// What it can do.
    fn info(&self) -> &TransportInfo;

    /// Lends a transfer to the kernel, or hands it back with the reason.
    // The rejected transfer travels by value: boxing it would put an allocation on the back-pressure path.
    #[allow(clippy::result_large_err)]
    fn submit(&mut self, transfer: Transfer) -> Result<(), Rejected>;

    /// The next finished transfer, if any. Never blocks.
    fn poll(&mut self) -> Option<Completion>;

    /// About to wait: true when `poll` would yield something at once, so waiting would be wrong.
    fn arm(&mut self) -> bool;

    /// What to wait on; `None` for a transport that is driven by its other end on the same thread (simulation).
    fn wait_on(&self) -> Option<WaitOn<'_>>;

    /// Set while transfers wait for memory that no event of this transport will announce: poll again after so long.
    fn retry_after(&self) -> Option<Duration> {
        None
    }

    /// Memory that the other end reads and writes without a copy, where there is any; it lives as long as its buffers.
    fn memory(&self) -> Option<&Arc<MappedMemory>> {
        None
    }

    /// Cancels all transfers; each still completes, with [`TransferError::Cancelled`] or as it ended before.
    fn cancel_all(&mut self);
}

/// What a connection holds, so that a tracer or a fault injector can stand around it.
impl Transport for Box<dyn Transport> {
    fn info(&self) -> &TransportInfo {
        (**self).info()
    }

    fn submit(&mut self, transfer: Transfer) -> Result<(), Rejected> {
        (**self).submit(transfer)
    }

    fn poll(&mut self) -> Option<Completion> {
        (**self).poll()
    }

    fn arm(&mut self) -> bool {
        (**self).arm()
    }

    fn wait_on(&self) -> Option<WaitOn<'_>> {
        (**self).wait_on()
    }

    fn retry_after(&self) -> Option<Duration> {
        (**self).retry_after()
    }

    fn memory(&self) -> Option<&Arc<MappedMemory>> {
        (**self).memory()
    }

    fn cancel_all(&mut self) {
        (**self).cancel_all();
    }
}
