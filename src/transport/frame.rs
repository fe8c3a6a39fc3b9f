//! Frames of the socket transport, and the byte stream that carries them.
//!
//! One Unix stream socket carries both pipes of one stick. Each frame is a 16-byte header, little-endian, and for OUT and
//! IN_DONE `len` bytes of data:
//!
//! | off | size | field |
//! |---|---|---|
//! | 0 | 1 | kind |
//! | 1 | 1 | status of a DONE frame: 0 ok, 1 stalled, 2 overflow, 3 cancelled, 4 gone, 5 I/O error |
//! | 2 | 2 | 0 |
//! | 4 | 4 | len, at most 1 MiB |
//! | 8 | 8 | id, counted from 0 by the host for each direction; repeated by DONE |
//!
//! | kind | from | means |
//! |---|---|---|
//! | 0x01 OUT | host | data for the OUT pipe; a byte stream, boundaries mean nothing |
//! | 0x02 IN | host | one posted buffer of `len` bytes |
//! | 0x03 CANCEL | host | end all that is posted; each still gets its DONE |
//! | 0x10..=0x1f | host | reserved: identity, boot |
//! | 0x81 OUT_DONE | stick | the stick took `len` bytes of the OUT of that id |
//! | 0x82 IN_DONE | stick | data of the IN of that id; shorter than posted: the stick ended its transfer here |
//! | 0x83 GONE | stick | surprise unplug; nothing follows |
//! | 0x90..=0x9f | stick | reserved: identity, boot |
//!
//! DONE frames come in the order of their ids in each direction. An undone OUT or IN is a credit spent: at most
//! [`MAX_POSTED`] frames and [`WINDOW_BYTES`] bytes in each direction, so neither side can flood the other. Anything else
//! that is received breaks the link: the host sees the stick as gone, the stick sees the host as closed.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};

use super::TransferError;

/// Most data in one frame; longer transfers travel in pieces. A multiple of every packet size.
pub(super) const PIECE_BYTES: usize = 1 << 20;
/// Most frames of one direction that are not done.
pub(super) const MAX_POSTED: usize = 1024;
/// Most bytes of one direction that are not done.
pub(super) const WINDOW_BYTES: usize = 8 << 20;
pub(super) const FRAME_HEADER: usize = 16;

const READ_AHEAD: usize = 64 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Out,
    In,
    Cancel,
    OutDone,
    InDone,
    Gone,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) result: Result<(), TransferError>,
    pub(super) len: usize,
    pub(super) id: u64,
}

/// The other side is gone, or said something that no frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Broken;

impl Frame {
    pub(super) fn new(kind: Kind, len: usize, id: u64) -> Self {
        Frame { kind, result: Ok(()), len, id }
    }

    pub(super) fn encode(&self) -> [u8; FRAME_HEADER] {
        let mut bytes = [0; FRAME_HEADER];
        bytes[0] = match self.kind {
            Kind::Out => 0x01,
            Kind::In => 0x02,
            Kind::Cancel => 0x03,
            Kind::OutDone => 0x81,
            Kind::InDone => 0x82,
            Kind::Gone => 0x83,
        };
        bytes[1] = match self.result {
            Ok(()) => 0,
            Err(TransferError::Stalled) => 1,
            Err(TransferError::Overflow) => 2,
            Err(TransferError::Cancelled) => 3,
            Err(TransferError::Gone) => 4,
            Err(TransferError::Busy | TransferError::Io(_)) => 5,
        };
        bytes[4..8].copy_from_slice(&(self.len as u32).to_le_bytes());
        bytes[8..].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }

    fn parse(bytes: [u8; FRAME_HEADER]) -> Result<Self, Broken> {
        let kind = match bytes[0] {
            0x01 => Kind::Out,
            0x02 => Kind::In,
            0x03 => Kind::Cancel,
            0x81 => Kind::OutDone,
            0x82 => Kind::InDone,
            0x83 => Kind::Gone,
            _ => return Err(Broken),
        };
        let result = match bytes[1] {
            0 => Ok(()),
            1 => Err(TransferError::Stalled),
            2 => Err(TransferError::Overflow),
            3 => Err(TransferError::Cancelled),
            4 => Err(TransferError::Gone),
            5 => Err(TransferError::Io(Errno::IO.raw_os_error())),
            _ => return Err(Broken),
        };
        let [_, _, z0, z1, l0, l1, l2, l3, id @ ..] = bytes;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if z0 != 0 || z1 != 0 || len > PIECE_BYTES {
            return Err(Broken);
        }
        Ok(Frame { kind, result, len, id: u64::from_le_bytes(id) })
    }
}

/// A non-blocking stream socket with read-ahead, so that small frames share a system call.
pub(super) struct ByteStream {
    pub(super) fd: OwnedFd,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl ByteStream {
    pub(super) fn new(fd: OwnedFd) -> rustix::io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(ByteStream { fd, buffer: vec![0; READ_AHEAD].into_boxed_slice(), start: 0, end: 0 })
    }

    /// The next header; `None` when it has not come yet.
    pub(super) fn header(&mut self) -> Result<Option<Frame>, Broken> {
        while self.end - self.start < FRAME_HEADER {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            match receive(&self.fd, &mut self.buffer[self.end..])? {
                0 => return Ok(None),
                n => self.end += n,
            }
        }
        let mut raw = [0; FRAME_HEADER];
        raw.copy_from_slice(&self.buffer[self.start..self.start + FRAME_HEADER]);
        self.start += FRAME_HEADER;
        Frame::parse(raw).map(Some)
    }

    /// Reads data into `into`; returns how much came, 0 when there is none now.
    pub(super) fn data(&mut self, into: &mut [u8]) -> Result<usize, Broken> {
        if self.start == self.end && into.len() < self.buffer.len() {
            (self.start, self.end) = (0, receive(&self.fd, &mut self.buffer)?);
        }
        let ahead = (self.end - self.start).min(into.len());
        if ahead > 0 || into.is_empty() {
            into[..ahead].copy_from_slice(&self.buffer[self.start..self.start + ahead]);
            self.start += ahead;
            return Ok(ahead);
        }
        if into.len() < self.buffer.len() {
            return Ok(0);
        }
        receive(&self.fd, into) // Large: straight to its place.
    }

    /// Writes a header's and data's rest, starting `sent` bytes into the first item; returns the bytes that went, 0
    /// when the socket is full.
    fn send<'a>(
        &self,
        items: impl Iterator<Item = (&'a [u8; FRAME_HEADER], &'a [u8])>,
        sent: usize,
    ) -> Result<usize, Broken> {
        let mut slices = [IoSlice::new(&[]); 32];
        let mut used = 0;
        let mut skip = sent;
        'items: for (header, data) in items {
            for part in [&header[..], data] {
                let part_skip = skip.min(part.len());
                skip -= part_skip;
                if part_skip < part.len() {
                    slices[used] = IoSlice::new(&part[part_skip..]);
                    used += 1;
                    if used == slices.len() {
                        break 'items;
                    }
                }
            }
        }
        loop {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.fd, &slices[..used], &mut SendAncillaryBuffer::default(), flags) {
                Ok(n) => return Ok(n),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(0),
                Err(_) => return Err(Broken),
            }
        }
    }
}

/// 0 means that there is nothing now; the end of the stream is `Broken`.
fn receive(fd: &OwnedFd, into: &mut [u8]) -> Result<usize, Broken> {
    loop {
        match recv(fd, &mut *into, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(Broken),
            Ok((n, _)) => return Ok(n),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(0),
            Err(_) => return Err(Broken),
        }
    }
}

/// Frames on their way into the socket. `P` says where the data of a frame is.
pub(super) struct Sender<P> {
    queue: VecDeque<([u8; FRAME_HEADER], usize, P)>,
    /// Bytes of the first frame that went already.
    sent: usize,
    /// What belonged to the frames that went whole, for the owner to take.
    pub(super) went: VecDeque<P>,
}

impl<P> Sender<P> {
    pub(super) fn new() -> Self {
        Sender { queue: VecDeque::new(), sent: 0, went: VecDeque::new() }
    }

    /// `len` is that of the data which follows the header, 0 for none.
    pub(super) fn push(&mut self, frame: Frame, len: usize, data: P) {
        self.queue.push_back((frame.encode(), len, data));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.sent = 0;
    }

    /// Writes until the socket is full or the queue empty. `data` finds the bytes in `source` and must find as many as were
    /// announced.
    pub(super) fn flush<S: ?Sized>(
        &mut self,
        stream: &ByteStream,
        source: &S,
        data: impl for<'s> Fn(&'s S, &'s P) -> &'s [u8],
    ) -> Result<(), Broken> {
        while !self.queue.is_empty() {
            let items = self
                .queue
                .iter()
                .map(|(header, len, p)| (header, if *len == 0 { &[][..] } else { data(source, p) }));
            let mut n = stream.send(items, self.sent)?;
            if n == 0 {
                return Ok(());
            }
            n += self.sent;
            while let Some((_, len, _)) = self.queue.front() {
                let whole = FRAME_HEADER + len;
                if n < whole {
                    break;
                }
                n -= whole;
                self.went.extend(self.queue.pop_front().map(|(_, _, p)| p));
            }
            self.sent = n;
        }
        Ok(())
    }
}
