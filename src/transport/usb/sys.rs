//! usbfs ioctls: the one file that talks to the kernel's USB file system.
//!
//! Structures and numbers are those of `linux/usbdevice_fs.h`. Safe functions wherever the kernel copies; the two that
//! leave memory with the kernel ([`submit`], [`reap`]) are unsafe and say who owns what.
#![allow(unsafe_code, reason = "ioctls take raw pointers; each SAFETY comment names the owner of the memory")]

use std::ffi::{c_int, c_uchar, c_uint, c_void};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{self, Getter, Ioctl, IoctlOutput, NoArg, Opcode, Setter, opcode};

/// `USBDEVFS_URB_TYPE_BULK`
const URB_TYPE_BULK: c_uchar = 3;

/// `struct usbdevfs_urb` without its isochronous tail.
#[repr(C)]
#[derive(Debug)]
pub struct RawUrb {
    kind: c_uchar,
    endpoint: c_uchar,
    /// Result, a negative errno or 0; the kernel writes it at reap.
    pub status: c_int,
    flags: c_uint,
    buffer: *mut c_void,
    buffer_length: c_int,
    /// Bytes moved; the kernel writes it at reap.
    pub actual_length: c_int,
    start_frame: c_int,
    number_of_packets: c_int,
    error_count: c_int,
    signr: c_uint,
    usercontext: *mut c_void,
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<RawUrb>() == 56);
#[cfg(target_pointer_width = "32")]
const _: () = assert!(size_of::<RawUrb>() == 44);

// SAFETY: the pointers are addresses for the kernel; this process never dereferences them through a RawUrb.
unsafe impl Send for RawUrb {}

impl RawUrb {
    /// A bulk URB over `len` bytes at `buffer`.
    pub fn bulk(endpoint: u8, buffer: *mut u8, len: usize) -> Self {
        RawUrb {
            kind: URB_TYPE_BULK,
            endpoint,
            status: 0,
            flags: 0,
            buffer: buffer.cast(),
            // Callers cut transfers into pieces of at most a few MiB.
            buffer_length: c_int::try_from(len).unwrap_or(c_int::MAX),
            actual_length: 0,
            start_frame: 0,
            number_of_packets: 0,
            error_count: 0,
            signr: 0,
            usercontext: std::ptr::null_mut(),
        }
    }
}

bitflags::bitflags! {
    /// `USBDEVFS_CAP_*`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Caps: u32 {
        /// Zero-length packet flag is honoured.
        const ZERO_PACKET = 0x01;
        /// Not used: it loses packets on some controllers (measured).
        const BULK_CONTINUATION = 0x02;
        /// URBs of any size.
        const NO_PACKET_SIZE_LIM = 0x04;
        /// Scatter-gather.
        const BULK_SCATTER_GATHER = 0x08;
        /// Reaping works after the device is gone.
        const REAP_AFTER_DISCONNECT = 0x10;
        /// Buffers can be mapped from the descriptor.
        const MMAP = 0x20;
        const _ = !0;
    }
}

/// `struct usbdevfs_ctrltransfer`
#[repr(C)]
struct RawControl {
    request_type: u8,
    request: u8,
    value: u16,
    index: u16,
    length: u16,
    timeout_ms: u32,
    data: *mut c_void,
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<RawControl>() == 24);
#[cfg(target_pointer_width = "32")]
const _: () = assert!(size_of::<RawControl>() == 16);

/// A request to the device's own endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    /// `bmRequestType`
    pub request_type: u8,
    /// `bRequest`
    pub request: u8,
    /// `wValue`
    pub value: u16,
    /// `wIndex`
    pub index: u16,
}

/// How long a control request may take; hubs answer at once.
const CONTROL_TIMEOUT_MS: u32 = 1000;

const CONTROL: Opcode = opcode::read_write::<RawControl>(b'U', 0);
const SUBMIT: Opcode = opcode::read::<RawUrb>(b'U', 10);
const DISCARD: Opcode = opcode::none(b'U', 11);
const REAP_NO_DELAY: Opcode = opcode::write::<*mut c_void>(b'U', 13);
const CLAIM: Opcode = opcode::read::<c_uint>(b'U', 15);
const RELEASE: Opcode = opcode::read::<c_uint>(b'U', 16);
const RESET: Opcode = opcode::none(b'U', 20);
const CLEAR_HALT: Opcode = opcode::read::<c_uint>(b'U', 21);
const CAPABILITIES: Opcode = opcode::read::<u32>(b'U', 26);
const SPEED: Opcode = opcode::none(b'U', 31);

/// `USBDEVFS_CONTROL`, synchronous: sends `data`, or fills it when `request_type` says that the device answers. Returns
/// how many bytes went.
pub fn control(fd: BorrowedFd<'_>, setup: Setup, data: &mut [u8]) -> Result<usize, Errno> {
    struct Control(RawControl);
    // SAFETY: the opcode and the argument's type are those of the kernel's header; it answers with a byte count.
    unsafe impl Ioctl for Control {
        type Output = usize;
        const IS_MUTATING: bool = true;

        fn opcode(&self) -> Opcode {
            CONTROL
        }

        fn as_ptr(&mut self) -> *mut c_void {
            (&raw mut self.0).cast()
        }

        unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<usize> {
            Ok(usize::try_from(out).unwrap_or(0))
        }
    }
    let length = u16::try_from(data.len()).map_err(|_| Errno::INVAL)?;
    let Setup { request_type, request, value, index } = setup;
    let data = data.as_mut_ptr().cast();
    let raw =
        RawControl { request_type, request, value, index, length, timeout_ms: CONTROL_TIMEOUT_MS, data };
    // SAFETY: the kernel is done with `data`, which is borrowed for this call and `length` bytes long, when it returns.
    unsafe { ioctl::ioctl(fd, Control(raw)) }
}

/// An ioctl whose argument is an address that the kernel remembers as it is.
struct ByAddress<const OPCODE: Opcode>(*mut RawUrb);

// SAFETY: the opcode and the argument's type are those of the kernel's header for SUBMITURB and DISCARDURB.
unsafe impl<const OPCODE: Opcode> Ioctl for ByAddress<OPCODE> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.0.cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// `USBDEVFS_SUBMITURB`.
///
/// # Safety
/// From success until [`reap`] returns this address, `*urb` and the bytes that it describes belong to the kernel: they
/// must stay where they are and must not be read, written or freed by anyone else.
pub unsafe fn submit(fd: BorrowedFd<'_>, urb: *mut RawUrb) -> Result<(), Errno> {
    // SAFETY: the caller lends the kernel `*urb` and its bytes until reaped.
    unsafe { ioctl::ioctl(fd, ByAddress::<SUBMIT>(urb)) }
}

/// `USBDEVFS_DISCARDURB`: the URB still has to be reaped. `EINVAL` when it has completed already.
pub fn discard(fd: BorrowedFd<'_>, urb: *mut RawUrb) -> Result<(), Errno> {
    // SAFETY: the kernel compares the address with those that it holds and does not follow it.
    unsafe { ioctl::ioctl(fd, ByAddress::<DISCARD>(urb)) }
}

/// `USBDEVFS_REAPURBNDELAY`: the address of a finished URB, which is its owner's again. `EAGAIN` when there is none,
/// `ENODEV` when the device is gone and nothing is left.
pub fn reap(fd: BorrowedFd<'_>) -> Result<*mut RawUrb, Errno> {
    // SAFETY: the kernel writes one pointer into the getter's own memory; it is an address that was submitted.
    let address = unsafe { ioctl::ioctl(fd, Getter::<REAP_NO_DELAY, *mut c_void>::new()) }?;
    Ok(address.cast())
}

/// `USBDEVFS_CLAIMINTERFACE`. `EBUSY` when another process or driver holds it.
pub fn claim(fd: BorrowedFd<'_>, interface: u32) -> Result<(), Errno> {
    // SAFETY: the kernel reads one integer from the setter's own memory.
    unsafe { ioctl::ioctl(fd, Setter::<CLAIM, c_uint>::new(interface)) }
}

/// `USBDEVFS_RELEASEINTERFACE`.
pub fn release(fd: BorrowedFd<'_>, interface: u32) -> Result<(), Errno> {
    // SAFETY: the kernel reads one integer from the setter's own memory.
    unsafe { ioctl::ioctl(fd, Setter::<RELEASE, c_uint>::new(interface)) }
}

/// `USBDEVFS_RESET`: resets the port.
pub fn reset(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: takes no argument.
    unsafe { ioctl::ioctl(fd, NoArg::<RESET>::new()) }
}

/// `USBDEVFS_CLEAR_HALT`.
pub fn clear_halt(fd: BorrowedFd<'_>, endpoint: u8) -> Result<(), Errno> {
    // SAFETY: the kernel reads one integer from the setter's own memory.
    unsafe { ioctl::ioctl(fd, Setter::<CLEAR_HALT, c_uint>::new(c_uint::from(endpoint))) }
}

/// `USBDEVFS_GET_CAPABILITIES`.
pub fn capabilities(fd: BorrowedFd<'_>) -> Result<Caps, Errno> {
    // SAFETY: the kernel writes one u32 into the getter's own memory.
    unsafe { ioctl::ioctl(fd, Getter::<CAPABILITIES, u32>::new()) }.map(Caps::from_bits_retain)
}

/// Mb/s of the link; `USBDEVFS_GET_SPEED` answers with `enum usb_device_speed` as the return value.
pub fn speed_mbps(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    struct Speed;
    // SAFETY: GET_SPEED takes no argument and answers in its return value.
    unsafe impl Ioctl for Speed {
        type Output = IoctlOutput;
        const IS_MUTATING: bool = false;

        fn opcode(&self) -> Opcode {
            SPEED
        }

        fn as_ptr(&mut self) -> *mut c_void {
            std::ptr::null_mut()
        }

        unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<IoctlOutput> {
            Ok(out)
        }
    }
    // SAFETY: as above.
    let speed = unsafe { ioctl::ioctl(fd, Speed) }?;
    Ok(match speed {
        1 => 1,
        2 => 12,
        3 | 4 => 480,
        5 => 5000,
        6 => 10_000,
        _ => 0,
    })
}
