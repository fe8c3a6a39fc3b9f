//! From a plugged-in stick to a claimed, booted one.
//!
//! rusb talks to the boot ROM (synchronous, once per boot); the booted stick is opened through usbfs. Every end is a
//! connection or an error that names the step, the port and the mend. There is no global lock: a lock per port keeps
//! other processes from taking a stick between its two identities, the interface claim guards it from then on, and a
//! gate per external hub keeps at most [`BOOTS_PER_HUB`] sticks from drawing their start-up current at once.
#![allow(unsafe_code, reason = "libusb is lent the descriptor of the device file")]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use rusb::UsbContext as _;

use super::bulk::BulkTransport;
use super::discover::{self, Found, FoundState};
use super::firmware::Firmware;
pub use super::gate::BOOTS_PER_HUB;
use super::gate::HubGate;
use super::lock::PortLock;
use super::reset;
use super::usbfs::UsbfsPort;
use super::wait::Wait;
use crate::clock::{Clock, Instant, Monotonic};
use crate::error::{Error, ErrorKind, Result};
use crate::id::StickId;
use crate::transport::{Connection, GiveUp, Port, TransportInfo};
use crate::wire::{self, DdrType, FirmwarePatches, WireVersion};

/// Tries before a boot is given up, with a port reset between.
const ATTEMPTS: u32 = 3;
/// The vendor's limit for one chunk of the image.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(2);
/// A fresh device file may take udev a moment to hand over.
const UDEV_PATIENCE: Duration = Duration::from_secs(2);
/// Pause between two tries to open a device file.
const LOOK: Duration = Duration::from_millis(20);
/// How long a port may take to come back after a reset between two tries.
const RESET_PATIENCE: Duration = Duration::from_secs(2);
const OP: &str = "boot";

/// How to boot.
#[derive(Clone, Debug)]
pub struct BootOptions {
    /// The file that the user named.
    pub firmware: Option<PathBuf>,
    /// Accept a file that the manifest does not name.
    pub any_firmware: bool,
    /// Speak this variant, whatever the manifest says of the file. `None`: the manifest's, if it was proven.
    pub wire: Option<WireVersion>,
    /// What is patched into the image.
    pub patches: FirmwarePatches,
    /// Reset a stick that is booted, not ours and held by nobody, once it had time to come back by its own watchdog:
    /// by USB, then by the power of its port.
    pub reset_foreign: bool,
}

impl Default for BootOptions {
    /// The installed firmware, known to the manifest, with its watchdog armed: a stick whose owner dies comes back.
    fn default() -> Self {
        BootOptions {
            firmware: None,
            any_firmware: false,
            wire: None,
            patches: FirmwarePatches { watchdog: true, ddr: DdrType::Auto },
            reset_foreign: true,
        }
    }
}

/// A [`Port`] for the stick at this port path. A stick that it had connected to before is its own: when the link to it
/// is lost, it is reset at once, without waiting for its watchdog.
pub fn port(id: StickId, options: BootOptions) -> Port {
    let name = id.clone();
    let mut ours = false;
    let give_up = GiveUp::default();
    let watched = give_up.clone();
    let port = Port::new(id, move |timeout| {
        let connection = connect_to(&name, &options, timeout, ours, &watched)?;
        ours = true;
        Ok(connection)
    });
    port.ended_by(give_up)
}

/// Boots the stick where needed, then opens and claims it.
pub fn connect(id: &StickId, options: &BootOptions, timeout: Duration) -> Result<Connection> {
    connect_to(id, options, timeout, false, &GiveUp::default())
}

/// `ours`: a booted stick on this port is one that this process had booted, and lost.
fn connect_to(
    id: &StickId,
    options: &BootOptions,
    timeout: Duration,
    ours: bool,
    give_up: &GiveUp,
) -> Result<Connection> {
    let clock = Monotonic::new();
    let deadline = clock.now() + timeout;
    let _lock = PortLock::acquire(id, OP)?;
    let firmware =
        Firmware::find_shared(options.firmware.as_deref(), options.any_firmware).map_err(|e| e.on(id))?;
    let version = firmware.wire(options.wire).map_err(|e| e.on(id))?;
    let image = wire::patch_firmware(&firmware.image, options.patches).map_err(|e| {
        Error::new(ErrorKind::Firmware, OP)
            .on(id)
            .detail(format!(
                "{} cannot be patched: is it the USB firmware of this stick?",
                firmware.path.display()
            ))
            .caused_by(e)
    })?;
    let wait = Wait::new(id, OP, &clock, give_up);
    let mut last = None;
    for attempt in 1..=ATTEMPTS {
        let found = wait.until(deadline, "the stick is not on the bus", |_| true)?;
        match found.state {
            FoundState::Busy => return Err(reset::in_use(id, &found, "open device")),
            FoundState::Unsupported => {
                return Err(Error::new(ErrorKind::Unsupported, OP).on(id).detail(
                    "a first-generation stick (Myriad 2): this driver is for the Neural Compute Stick 2",
                ));
            }
            FoundState::Booted => {
                // Perhaps left in the middle of a tensor: it is never spoken to first.
                reclaim(&wait, options.reset_foreign, ours || attempt > 1, deadline)?;
            }
            FoundState::Unbooted => {}
        }
        // Each try has its share of what is left: one that took the firmware and stays away must not take the others' time.
        let share = deadline.saturating_since(clock.now()) / (ATTEMPTS + 1 - attempt);
        let outcome = boot_once(&wait, &image, deadline, share).and_then(|booted| open(id, &booted));
        match outcome {
            Ok(transport) => return Ok(Connection { transport: Box::new(transport), version }),
            Err(error) if error.kind() == ErrorKind::Permission || error.kind() == ErrorKind::InUse => {
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(stick = %id, attempt, %error, "boot failed");
                if clock.now() >= deadline || give_up.is_asked() {
                    return Err(error);
                }
                if let Some(found) = discover::find(id)
                    && let Err(error) = reset::usb_reset(&wait, &found, RESET_PATIENCE)
                {
                    tracing::warn!(stick = %id, attempt, %error, "reset between two tries failed");
                }
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| Error::new(ErrorKind::Timeout, OP).on(id)))
}

/// One pass: image out, new identity in within `patience` of it.
fn boot_once(wait: &Wait<'_>, image: &[u8], deadline: Instant, patience: Duration) -> Result<Found> {
    let found =
        wait.until(deadline, "the unbooted stick did not appear", |f| f.state == FoundState::Unbooted)?;
    let left = deadline.saturating_since(wait.clock.now());
    let _place = HubGate::enter(found.bus, &found.ports, left).ok_or_else(|| {
        Error::new(ErrorKind::Timeout, OP)
            .on(wait.id)
            .detail(format!("{BOOTS_PER_HUB} others of its hub were booting all the time: try again"))
    })?;
    send_image(wait.id, &found, image)?;
    wait.to_the_end(
        deadline.min(wait.clock.now() + patience),
        "the stick took the firmware but did not come back booted on its port: try another port or a powered hub, \
         a cable under 2 m",
        |f| matches!(f.state, FoundState::Booted | FoundState::Busy),
    )
}

/// The image's way into the boot ROM. One for all sticks: making it scans all buses.
fn libusb() -> rusb::Result<&'static rusb::Context> {
    static CONTEXT: OnceLock<rusb::Context> = OnceLock::new();
    if let Some(context) = CONTEXT.get() {
        return Ok(context);
    }
    let context = rusb::Context::new()?;
    Ok(CONTEXT.get_or_init(|| context))
}

fn send_image(id: &StickId, found: &Found, image: &[u8]) -> Result<()> {
    let failed = |step: &'static str| {
        move |e: rusb::Error| {
            let (kind, mend) = match e {
                rusb::Error::Access => (
                    ErrorKind::Permission,
                    "not allowed: install the udev rule (udev/70-ncs2.rules) and plug the stick in again",
                ),
                rusb::Error::Busy => {
                    (ErrorKind::InUse, "another process is booting it: wait for that, then try again")
                }
                rusb::Error::NoDevice => (ErrorKind::Unplugged, "the stick left the bus"),
                rusb::Error::NoMem => (
                    ErrorKind::OutOfMemory,
                    "the kernel has no memory left for USB: raise usbcore.usbfs_memory_mb, or end what uses other sticks",
                ),
                rusb::Error::Timeout => {
                    (ErrorKind::Timeout, "the boot ROM took no more bytes: plug the stick in again")
                }
                _ => (ErrorKind::Unplugged, "failed: plug the stick in again, or try another port"),
            };
            Error::new(kind, OP).on(id).detail(format!("{step}: {mend}")).caused_by(e)
        }
    };
    let file = open_node(id, found)?;
    let context = libusb().map_err(failed("libusb"))?;
    // SAFETY: the descriptor is of a usbfs file and `file` keeps it open beyond `handle`, which is dropped first.
    let handle = unsafe { context.open_device_with_fd(file.as_raw_fd()) }.map_err(failed("open"))?;
    let device = handle.device();
    let descriptor = device.device_descriptor().map_err(failed("read descriptor"))?;
    let endpoint = device
        .config_descriptor(0)
        .map_err(failed("read configuration"))?
        .interfaces()
        .flat_map(|interface| interface.descriptors().collect::<Vec<_>>())
        .flat_map(|setting| {
            setting
                .endpoint_descriptors()
                .map(|e| (e.transfer_type(), e.direction(), e.address()))
                .collect::<Vec<_>>()
        })
        .find(|&(kind, direction, _)| kind == rusb::TransferType::Bulk && direction == rusb::Direction::Out)
        .map(|(_, _, address)| address)
        .ok_or(rusb::Error::NotFound)
        .map_err(failed("find the bulk OUT endpoint"))?;
    // Setting the configuration that is set already resets endpoints on some controllers; the vendor does it, so the
    // boot ROM is known to suit it.
    match handle.set_active_configuration(1) {
        Ok(()) | Err(rusb::Error::Busy) => {}
        Err(e) => return Err(failed("set configuration")(e)),
    }
    handle.claim_interface(0).map_err(failed("claim interface"))?;
    let usb = descriptor.usb_version();
    let bcd_usb = u16::from(usb.major()) << 8 | u16::from(usb.minor()) << 4 | u16::from(usb.sub_minor());
    let mut sent = 0;
    for chunk in wire::boot_chunks(image, bcd_usb) {
        match write_chunk(|piece| handle.write_bulk(endpoint, piece, CHUNK_TIMEOUT), chunk) {
            Ok(n) if n == chunk.len() => sent += n,
            Ok(n) => {
                return Err(Error::new(ErrorKind::Firmware, OP).on(id).detail(format!(
                    "send firmware: the boot ROM took {} of {} bytes: plug the stick in again",
                    sent + n,
                    image.len()
                )));
            }
            // The ROM jumps as soon as it has what it needs; the last transfer may see the stick leave.
            Err(rusb::Error::NoDevice | rusb::Error::Io | rusb::Error::Pipe)
                if sent + chunk.len() == image.len() =>
            {
                return Ok(());
            }
            Err(e) => return Err(failed("send firmware")(e)),
        }
    }
    let _ = handle.release_interface(0);
    Ok(())
}

/// Writes one chunk of the image; in smaller pieces, whole packets each, when the kernel has no memory for it at once.
fn write_chunk(write: impl Fn(&[u8]) -> rusb::Result<usize>, chunk: &[u8]) -> rusb::Result<usize> {
    const SMALLEST: usize = 16 << 10;
    let clock = Monotonic::new();
    let patience = clock.now() + CHUNK_TIMEOUT;
    let (mut sent, mut piece) = (0, chunk.len());
    loop {
        let end = chunk.len().min(sent + piece);
        match write(&chunk[sent..end]) {
            Ok(n) => {
                let all = n == end - sent;
                sent += n;
                if !all || sent == chunk.len() {
                    return Ok(sent);
                }
            }
            Err(rusb::Error::NoMem) if piece > SMALLEST => {
                piece = (piece / 2).next_multiple_of(SMALLEST);
            }
            // Others have it all; they give it back when their transfers end.
            Err(rusb::Error::NoMem) if clock.now() < patience => std::thread::sleep(LOOK),
            Err(e) => return Err(e),
        }
    }
}

/// Opens the device file of a stick in its boot ROM.
fn open_node(id: &StickId, found: &Found) -> Result<File> {
    let clock = Monotonic::new();
    let patience = clock.now() + UDEV_PATIENCE;
    loop {
        let error = match OpenOptions::new().read(true).write(true).open(found.node()) {
            Ok(file) => return Ok(file),
            Err(error) => error,
        };
        let unready =
            matches!(error.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::NotFound);
        if !unready || clock.now() >= patience {
            return Err(UsbfsPort::open_error(&found.node(), error).on(id));
        }
        std::thread::sleep(LOOK);
    }
}

/// A booted stick that nobody holds. One that this process lost is reset at once; any other has half of the time for
/// its own watchdog first (how long that takes is unverified). Then a USB reset, then the power of its port.
fn reclaim(wait: &Wait<'_>, reset_foreign: bool, ours: bool, deadline: Instant) -> Result<()> {
    let id = wait.id;
    let half = || deadline.saturating_since(wait.clock.now()) / 2;
    let replug = |detail: &str| {
        Error::new(ErrorKind::InUse, OP).on(id).detail(format!(
            "booted, but {}{detail}: plug it out and in",
            if ours { "it does not answer" } else { "not by us" }
        ))
    };
    let is_back = |found: &Found| found.state == FoundState::Unbooted;
    if !ours {
        match wait.until(wait.clock.now() + half(), "", is_back) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(_) => {}
        }
        if !reset_foreign {
            return Err(replug(", and it did not reset itself"));
        }
    }
    // The time to come back serves the watchdog of one of ours too.
    let Some(found) = discover::find(id) else { return Ok(()) };
    match reset::usb_reset(wait, &found, half()) {
        Ok(_) => return Ok(()),
        Err(error)
            if matches!(error.kind(), ErrorKind::InUse | ErrorKind::Permission | ErrorKind::Cancelled) =>
        {
            return Err(error);
        }
        Err(error) => tracing::warn!(stick = %id, %error, "USB reset of a booted stick"),
    }
    reset::cut_power(wait, half()).map(drop).map_err(|error| {
        if error.kind() == ErrorKind::Cancelled {
            return error;
        }
        replug(" and neither its watchdog, a USB reset nor its port's power brought its boot ROM back")
            .caused_by(error)
    })
}

/// Opens the booted stick.
fn open(id: &StickId, found: &Found) -> Result<BulkTransport<UsbfsPort>> {
    let clock = Monotonic::new();
    let patience = clock.now() + UDEV_PATIENCE;
    let port = loop {
        match UsbfsPort::open(found.bus, found.address) {
            Ok(port) => break port,
            Err(e) if e.kind() != ErrorKind::InUse && clock.now() < patience => std::thread::sleep(LOOK),
            Err(e) => return Err(e.on(id)),
        }
    };
    let memory = port.map_memory().map_err(|e| e.on(id))?;
    tracing::debug!(stick = %id, memory = ?memory, "opened");
    let speed_mbps = port.speed_mbps();
    let info = TransportInfo {
        max_packet_bytes: if speed_mbps >= 5000 { 1024 } else { 512 },
        speed_mbps,
        memory: memory.report().kind,
        simulated: false,
    };
    Ok(BulkTransport::new(port, info).with_memory(memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_goes_in_pieces_when_the_kernel_is_short_of_memory() {
        let chunk: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
        let taken = std::cell::RefCell::new(Vec::new());
        let sent = write_chunk(
            |piece| {
                if piece.len() > 100_000 {
                    return Err(rusb::Error::NoMem);
                }
                taken.borrow_mut().extend_from_slice(piece);
                Ok(piece.len())
            },
            &chunk,
        );
        assert_eq!(sent, Ok(chunk.len()));
        assert_eq!(*taken.borrow(), chunk);
        assert_eq!(write_chunk(|_| Err(rusb::Error::Pipe), &chunk), Err(rusb::Error::Pipe));
        assert_eq!(
            write_chunk(|piece| Ok(piece.len() - 1), &chunk),
            Ok(chunk.len() - 1),
            "a short write ends it"
        );
    }
}
