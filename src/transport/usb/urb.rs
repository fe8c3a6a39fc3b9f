//! Who owns a transfer's memory while the kernel works on it.
//!
//! A [`Flight`] holds a [`Transfer`] and cuts it into [`Urb`]s, each a piece of the buffer lent out by address. The
//! transfer comes back only when every piece is home; a flight dropped before that keeps the memory for ever rather
//! than free what the kernel may still write to.
#![allow(unsafe_code, reason = "pieces of a buffer are lent to the kernel by address")]

use std::mem::ManuallyDrop;

use crate::transport::{Direction, Transfer};

/// Endpoint of bulk OUT.
pub const ENDPOINT_OUT: u8 = 0x01;
/// Endpoint of bulk IN.
pub const ENDPOINT_IN: u8 = 0x81;

/// A lent piece of a transfer's buffer. It has no access to the memory: only its [`Flight`] gives that back.
#[derive(Debug, PartialEq, Eq)]
pub struct Urb {
    /// Unique on its port.
    pub id: u64,
    /// [`ENDPOINT_OUT`] or [`ENDPOINT_IN`].
    pub endpoint: u8,
    address: *mut u8,
    len: usize,
    /// Offset of the piece in the transfer's range.
    offset: usize,
}

// SAFETY: the address is that of memory which the flight keeps alive and untouched while this piece is out; the piece
// may be handed to the kernel from any thread.
unsafe impl Send for Urb {}

impl Urb {
    /// First byte. For an OUT piece the memory must not be written through it.
    pub fn address(&self) -> *mut u8 {
        self.address
    }

    /// Bytes.
    #[allow(
        clippy::len_without_is_empty,
        reason = "a zero-length piece is a zero-length packet, not emptiness"
    )]
    pub fn len(&self) -> usize {
        self.len
    }
}

/// Most pieces of one transfer that are out at a time; enough to keep the controller busy.
pub const MAX_PIECES: usize = 8;

/// Ids of the pieces that are out, oldest first, without an allocation.
#[derive(Debug, Default)]
struct Outstanding {
    ids: [u64; MAX_PIECES],
    len: usize,
}

impl Outstanding {
    fn ids(&self) -> &[u64] {
        &self.ids[..self.len]
    }

    fn len(&self) -> usize {
        self.len
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn push(&mut self, id: u64) {
        self.ids[self.len] = id;
        self.len += 1;
    }

    fn remove(&mut self, id: u64) {
        if let Some(at) = self.ids().iter().position(|&out| out == id) {
            self.ids.copy_within(at + 1..self.len, at);
            self.len -= 1;
        }
    }
}

/// A transfer on its way, in pieces.
#[derive(Debug)]
pub struct Flight {
    transfer: ManuallyDrop<Transfer>,
    /// Pieces that are out.
    out: Outstanding,
    /// Bytes of the range that were given out.
    started: usize,
    /// Bytes of the range that came home complete, in order.
    moved: usize,
    /// No piece is to be started any more: short packet, error or cancel.
    ended: bool,
}

impl Flight {
    /// Takes the transfer in custody.
    pub fn new(transfer: Transfer) -> Self {
        Flight {
            transfer: ManuallyDrop::new(transfer),
            out: Outstanding::default(),
            started: 0,
            moved: 0,
            ended: false,
        }
    }

    /// Which pipe.
    pub fn direction(&self) -> Direction {
        self.transfer.direction
    }

    /// Bytes that came home so far.
    pub fn moved(&self) -> usize {
        self.moved
    }

    /// Ids of the pieces that are out, oldest first.
    pub fn outstanding(&self) -> &[u64] {
        self.out.ids()
    }

    /// The next piece, at most `max` bytes; `None` when all are out, the transfer has ended, or [`MAX_PIECES`] are out.
    /// IN transfers have one
    /// piece out at a time: a short packet ends the transfer, and what follows it belongs to the next one.
    pub fn next_urb(&mut self, id: u64, max: usize) -> Option<Urb> {
        let range = self.transfer.range.clone();
        let total = range.len();
        let first_of_empty = total == 0 && self.started == 0 && self.out.is_empty() && !self.ended;
        if self.ended || (self.started >= total && !first_of_empty) {
            return None;
        }
        if self.out.len() == MAX_PIECES || (self.direction() == Direction::In && !self.out.is_empty()) {
            return None;
        }
        let len = (total - self.started).min(max);
        let offset = self.started;
        let (endpoint, address) = match self.direction() {
            Direction::Out => {
                let bytes = &self.transfer.buffer.as_slice()[range][offset..offset + len];
                // The kernel only reads an OUT piece; nobody writes through this address.
                (ENDPOINT_OUT, bytes.as_ptr().cast_mut())
            }
            Direction::In => {
                let bytes = self.transfer.buffer.as_mut_slice()?.get_mut(range)?;
                (ENDPOINT_IN, bytes[offset..offset + len].as_mut_ptr())
            }
        };
        self.started += len;
        self.ended |= total == 0;
        self.out.push(id);
        Some(Urb { id, endpoint, address, len, offset })
    }

    /// A piece that the kernel did not take: as if it had never been cut.
    pub fn take_back(&mut self, urb: &Urb) {
        self.out.remove(urb.id);
        self.started = self.started.min(urb.offset);
        self.ended &= !self.transfer.range.is_empty();
    }

    /// A piece is home, `actual` bytes of it moved. `failed`: no further piece is to be started.
    pub fn home(&mut self, urb: &Urb, actual: usize, failed: bool) {
        self.out.remove(urb.id);
        let actual = actual.min(urb.len);
        // Pieces come home in order on one endpoint; a gap (after a cancel) ends what counts as moved.
        if self.moved == urb.offset {
            self.moved += actual;
        }
        if failed || actual < urb.len {
            self.ended = true;
        }
    }

    /// No further piece is to be started.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// True when no further piece will be started: all bytes are out or home, or the transfer has ended.
    pub fn is_covered(&self) -> bool {
        self.ended || self.started >= self.transfer.range.len()
    }

    /// True when no piece is out and none is to come.
    pub fn is_finished(&self) -> bool {
        self.out.is_empty() && self.is_covered()
    }

    /// The transfer, once every piece is home.
    #[allow(
        clippy::result_large_err,
        reason = "the flight travels by value: boxing would allocate per transfer"
    )]
    pub fn into_transfer(mut self) -> Result<Transfer, Self> {
        if !self.out.is_empty() {
            return Err(self);
        }
        // SAFETY: no piece is out, so nobody but us knows the memory; the flight is forgotten right after, so that
        // the transfer is taken once.
        let transfer = unsafe { ManuallyDrop::take(&mut self.transfer) };
        std::mem::forget(self);
        Ok(transfer)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.out.is_empty() {
            // SAFETY: no piece is out, and into_transfer forgets the flight, so the transfer is still ours.
            unsafe { ManuallyDrop::drop(&mut self.transfer) };
        } else {
            // The kernel may still write here: memory lost is better than memory reused under its hands.
            tracing::error!(
                pieces = self.out.len,
                "a transfer was dropped while the kernel had its memory; leaking it"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Buffer;

    fn flight(direction: Direction, len: usize) -> Flight {
        Flight::new(Transfer { direction, buffer: Buffer::zeroed(len), range: 0..len, token: 7 })
    }

    #[test]
    fn out_transfer_is_cut_in_order_and_comes_back_when_every_piece_is_home() {
        let mut flight = flight(Direction::Out, 10);
        let first = flight.next_urb(1, 4).expect("piece");
        let second = flight.next_urb(2, 4).expect("piece");
        let third = flight.next_urb(3, 4).expect("piece");
        assert_eq!((first.len(), second.len(), third.len()), (4, 4, 2));
        assert_eq!(flight.next_urb(4, 4), None);
        flight.home(&first, 4, false);
        let mut flight = flight.into_transfer().expect_err("two pieces are out");
        flight.home(&second, 4, false);
        flight.home(&third, 2, false);
        assert!(flight.is_finished());
        assert_eq!(flight.moved(), 10);
        assert_eq!(flight.into_transfer().expect("all home").token, 7);
    }

    #[test]
    fn in_transfer_has_one_piece_out_and_ends_at_a_short_packet() {
        let mut flight = flight(Direction::In, 4096);
        let first = flight.next_urb(1, 2048).expect("piece");
        assert_eq!(flight.next_urb(2, 2048), None, "the next piece waits for the first");
        flight.home(&first, 2048, false);
        let second = flight.next_urb(2, 2048).expect("piece");
        flight.home(&second, 100, false);
        assert!(flight.is_finished());
        assert_eq!(flight.moved(), 2148);
        assert_eq!(flight.next_urb(3, 2048), None);
    }

    #[test]
    fn refused_piece_is_cut_again() {
        let mut flight = flight(Direction::Out, 8);
        let first = flight.next_urb(1, 8).expect("piece");
        flight.take_back(&first);
        let again = flight.next_urb(2, 4).expect("a smaller piece of the same bytes");
        assert_eq!((again.len(), again.address()), (4, first.address()));
        flight.home(&again, 4, true);
        assert!(flight.is_finished());
        assert_eq!(flight.moved(), 4);
    }

    #[test]
    fn empty_transfer_is_one_zero_length_packet() {
        let mut flight = flight(Direction::Out, 0);
        let packet = flight.next_urb(1, 4).expect("a zero-length packet");
        assert_eq!(packet.len(), 0);
        assert_eq!(flight.next_urb(2, 4), None);
        flight.home(&packet, 0, false);
        assert!(flight.is_finished());
    }
}
