//! Memory mapped from a device's file, lent out in pieces. A piece keeps its mapping, and the mapping keeps the kernel's
//! side of it, so both outlive the descriptor: a caller may hold an answer after its stick was pulled out.
#![allow(unsafe_code, reason = "a mapping is memory by address; its pieces are kept apart here")]

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::BUFFER_ALIGN;

/// One mapping. Unmapped when its owner and all its pieces are gone.
pub(in crate::transport) struct Region {
    start: NonNull<u8>,
    len: usize,
    free: Mutex<Free>,
}

// SAFETY: the mapping is plain memory that belongs to no thread; pieces of it never overlap, and `free` is locked.
unsafe impl Send for Region {}
// SAFETY: as above; a shared Region gives no access to the bytes.
unsafe impl Sync for Region {}

#[derive(Default)]
struct Free {
    /// Bytes from here on are not lent, and in no list.
    unused: usize,
    /// Bytes from here on were never lent: zero, as the kernel gave them.
    clean: usize,
    /// Offsets of pieces that came back, by size.
    back: Vec<(usize, Vec<usize>)>,
    /// Pieces out.
    out: usize,
}

impl Region {
    /// Maps `len` bytes of `fd`, readable and writable.
    ///
    /// # Safety
    /// While any piece lives, nobody but its holder may change or take away the memory behind `fd`. A usbfs file is such: the
    /// kernel makes new zeroed memory for each mapping, and the controller touches it for the URBs that this process submits.
    pub(in crate::transport) unsafe fn map(fd: BorrowedFd<'_>, len: usize) -> Result<Arc<Self>, Errno> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other; the caller vouches for the file.
        let start = unsafe { mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, fd, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(Errno::FAULT)?;
        Ok(Arc::new(Region { start, len, free: Mutex::default() }))
    }

    /// Ordinary memory in a mapping's place, for tests without a device.
    #[cfg(test)]
    pub(in crate::transport) fn anonymous(len: usize) -> Result<Arc<Self>, Errno> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new memory at an address of the kernel's choice.
        let start =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, access, MapFlags::PRIVATE) }?;
        let start = NonNull::new(start.cast()).ok_or(Errno::FAULT)?;
        Ok(Arc::new(Region { start, len, free: Mutex::default() }))
    }

    /// Bytes.
    pub(in crate::transport) fn len(&self) -> usize {
        self.len
    }

    /// Cuts a piece of `len` bytes; `None` when no room is left.
    pub(in crate::transport) fn take(self: &Arc<Self>, len: usize) -> Option<Piece> {
        let size = len.max(1).checked_next_multiple_of(BUFFER_ALIGN)?;
        let mut free = self.free.lock();
        let back = free.back.iter_mut().find(|(s, _)| *s == size).and_then(|(_, offsets)| offsets.pop());
        let offset = match back {
            Some(offset) => offset,
            None => {
                let offset = free.unused;
                free.unused = offset.checked_add(size).filter(|&end| end <= self.len)?;
                offset
            }
        };
        free.out += 1;
        let stale = offset < free.clean;
        free.clean = free.clean.max(offset + size);
        Some(Piece { region: self.clone(), offset, len, stale })
    }

    fn give_back(&self, offset: usize, len: usize) {
        let size = len.max(1).next_multiple_of(BUFFER_ALIGN);
        let mut free = self.free.lock();
        free.out -= 1;
        if free.out == 0 {
            // Whole again: other sizes may be cut from it.
            free.unused = 0;
            free.back.iter_mut().for_each(|(_, offsets)| offsets.clear());
            return;
        }
        match free.back.iter_mut().find(|(s, _)| *s == size) {
            Some((_, offsets)) => offsets.push(offset),
            None => free.back.push((size, vec![offset])),
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no piece is left that could reach it.
        if let Err(errno) = unsafe { munmap(self.start.as_ptr().cast(), self.len) } {
            tracing::error!(%errno, "a mapping could not be taken back");
        }
    }
}

/// A run of bytes of a [`Region`], its holder's alone.
pub(in crate::transport) struct Piece {
    region: Arc<Region>,
    offset: usize,
    len: usize,
    stale: bool,
}

impl Piece {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// False when nobody had these bytes before: they are zero.
    pub(in crate::transport) fn is_stale(&self) -> bool {
        self.stale
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: offset and length lie within the mapping, which the region keeps; the piece alone has these bytes, and
        // the kernel writes to them only while a flight holds the piece and gives nobody a slice.
        unsafe { std::slice::from_raw_parts(self.region.start.as_ptr().add(self.offset), self.len) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the piece is borrowed for as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.region.start.as_ptr().add(self.offset), self.len) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.region.give_back(self.offset, self.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_apart_aligned_and_used_again() {
        let region = Region::anonymous(4096).expect("memory");
        let mut first = region.take(1000).expect("room");
        let second = region.take(1000).expect("room");
        assert!(!first.is_stale() && !second.is_stale());
        first.as_mut_slice().fill(7);
        assert!(second.as_slice().iter().all(|&b| b == 0), "the other piece is untouched");
        assert_eq!(second.as_slice().as_ptr() as usize % BUFFER_ALIGN, 0);
        assert!(region.take(3000).is_none(), "no room");
        let at = first.as_slice().as_ptr();
        drop(first);
        let again = region.take(990).expect("the same class of size");
        assert_eq!(again.as_slice().as_ptr(), at);
        assert!(again.is_stale());
        drop((again, second));
        let whole = region.take(4096).expect("whole again");
        assert!(whole.is_stale());
        assert!(region.take(1).is_none());
    }

    #[test]
    fn a_piece_keeps_its_mapping() {
        let region = Region::anonymous(4096).expect("memory");
        let weak = Arc::downgrade(&region);
        let mut piece = region.take(64).expect("room");
        drop(region);
        piece.as_mut_slice().fill(1);
        assert_eq!(piece.as_slice(), [1; 64]);
        drop(piece);
        assert!(weak.upgrade().is_none(), "unmapped with its last piece");
    }

    #[test]
    fn pieces_may_be_dropped_by_any_thread() {
        let region = Region::anonymous(1 << 16).expect("memory");
        let pieces: Vec<Piece> = std::iter::from_fn(|| region.take(256)).collect();
        assert_eq!(pieces.len(), 256);
        std::thread::scope(|scope| {
            for piece in pieces {
                scope.spawn(move || drop(piece));
            }
        });
        assert_eq!(std::iter::from_fn(|| region.take(256)).map(std::mem::forget).count(), 256);
    }
}
