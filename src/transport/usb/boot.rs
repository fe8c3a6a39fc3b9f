//! From a plugged-in stick to a claimed, booted one.
//!
//! rusb talks to the boot ROM (synchronous, once per boot); the booted stick is opened through usbfs. Every end is a
//! connection or an error that names the step, the port and the mend. There is no global lock: a lock per port keeps
//! other processes from taking a stick between its two identities, the interface claim guards it from then on, and a
//! gate per external hub keeps at most [`BOOTS_PER_HUB`] sticks from drawing their start-up current at once.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rusb::UsbContext as _;
use rustix::fs::{FlockOperation, flock};

use super::bulk::BulkTransport;
use super::discover::{self, Found, FoundState};
use super::firmware::Firmware;
use super::usbfs::UsbfsPort;
use crate::clock::{Clock, Instant, Monotonic};
use crate::error::{Error, ErrorKind, Result};
use crate::id::StickId;
use crate::transport::{Connection, MemoryKind, Port, TransportInfo};
use crate::wire::{self, DdrType, FirmwarePatches};

/// Sticks of one external hub that may boot at the same time: each draws its peak current then.
pub const BOOTS_PER_HUB: usize = 4;
/// Tries before a boot is given up, with a port reset between.
const ATTEMPTS: u32 = 3;
/// The vendor's limit for one chunk of the image.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two looks at the bus.
const LOOK: Duration = Duration::from_millis(20);
const OP: &str = "boot";

/// How to boot.
#[derive(Clone, Debug)]
pub struct BootOptions {
    /// The file that the user named.
    pub firmware: Option<PathBuf>,
    /// Accept a file that the manifest does not name.
    pub any_firmware: bool,
    /// What is patched into the image.
    pub patches: FirmwarePatches,
    /// Reset a stick that is booted but not ours, once it had time to come back by its own watchdog.
    pub reset_foreign: bool,
}

impl Default for BootOptions {
    /// The installed firmware, known to the manifest, with its watchdog armed: a stick whose owner dies comes back.
    fn default() -> Self {
        BootOptions {
            firmware: None,
            any_firmware: false,
            patches: FirmwarePatches { watchdog: true, ddr: DdrType::Auto },
            reset_foreign: false,
        }
    }
}

/// A [`Port`] for the stick at this port path.
pub fn port(id: StickId, options: BootOptions) -> Port {
    let name = id.clone();
    Port::new(id, move |timeout| connect(&name, &options, timeout))
}

/// Boots the stick where needed, then opens and claims it.
pub fn connect(id: &StickId, options: &BootOptions, timeout: Duration) -> Result<Connection> {
    let clock = Monotonic::new();
    let deadline = clock.now() + timeout;
    let _lock = PortLock::acquire(id)?;
    let firmware = Firmware::find(options.firmware.as_deref(), options.any_firmware).map_err(|e| e.on(id))?;
    let image = wire::patch_firmware(&firmware.image, options.patches).map_err(|e| {
        Error::new(ErrorKind::Firmware, OP)
            .on(id)
            .detail(format!(
                "{} cannot be patched: is it the USB firmware of this stick?",
                firmware.path.display()
            ))
            .caused_by(e)
    })?;
    let mut last = None;
    for attempt in 1..=ATTEMPTS {
        let found = match look(id)? {
            Some(found) => found,
            None => wait_for(id, &clock, deadline, "the stick is not on the bus", |_| true)?,
        };
        match found.state {
            FoundState::Busy => {
                return Err(Error::new(ErrorKind::InUse, "open device").on(id).detail(format!(
                    "claimed by {}: end it, then try again",
                    owner(&found).unwrap_or_else(|| "another process".into())
                )));
            }
            FoundState::Unsupported => {
                return Err(Error::new(ErrorKind::Unsupported, OP).on(id).detail(
                    "a first-generation stick (Myriad 2): this driver is for the Neural Compute Stick 2",
                ));
            }
            FoundState::Booted => {
                // Left by a crash, perhaps in the middle of a tensor: it is never spoken to first.
                reclaim(id, &found, options, &clock, deadline)?;
            }
            FoundState::Unbooted => {}
        }
        let outcome = boot_once(id, &image, &clock, deadline).and_then(|booted| open(id, &booted));
        match outcome {
            Ok(transport) => {
                return Ok(Connection { transport: Box::new(transport), version: firmware.version() });
            }
            Err(error) if error.kind() == ErrorKind::Permission || error.kind() == ErrorKind::InUse => {
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(stick = %id, attempt, %error, "boot failed");
                if clock.now() >= deadline {
                    return Err(error);
                }
                reset_port(id);
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| Error::new(ErrorKind::Timeout, OP).on(id)))
}

/// One pass: image out, new identity in.
fn boot_once(id: &StickId, image: &[u8], clock: &Monotonic, deadline: Instant) -> Result<Found> {
    let found = wait_for(id, clock, deadline, "the unbooted stick did not appear", |f| {
        f.state == FoundState::Unbooted
    })?;
    let _place = HubGate::enter(&found);
    send_image(id, &found, image)?;
    wait_for(
        id,
        clock,
        deadline,
        "the stick took the firmware but did not come back booted on its port: try another port or a powered hub, \
         a cable under 2 m",
        |f| matches!(f.state, FoundState::Booted | FoundState::Busy),
    )
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
                rusb::Error::Timeout => {
                    (ErrorKind::Timeout, "the boot ROM took no more bytes: plug the stick in again")
                }
                _ => (ErrorKind::Unplugged, "failed: plug the stick in again, or try another port"),
            };
            Error::new(kind, OP).on(id).detail(format!("{step}: {mend}")).caused_by(e)
        }
    };
    let context = rusb::Context::new().map_err(failed("libusb"))?;
    let device = context
        .devices()
        .map_err(failed("enumerate"))?
        .iter()
        .find(|d| d.bus_number() == found.bus && d.address() == found.address)
        .ok_or(rusb::Error::NoDevice)
        .map_err(failed("find"))?;
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
    let handle = device.open().map_err(failed("open"))?;
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
        match handle.write_bulk(endpoint, chunk, CHUNK_TIMEOUT) {
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

/// A booted stick that no process of ours holds. Its watchdog may bring it back; after that only a reset can.
fn reclaim(
    id: &StickId,
    found: &Found,
    options: &BootOptions,
    clock: &Monotonic,
    deadline: Instant,
) -> Result<()> {
    let replug = |detail: &str| {
        Err(Error::new(ErrorKind::InUse, OP)
            .on(id)
            .detail(format!("booted, but not by us, and {detail}: plug it out and in")))
    };
    // Half of the time goes to the firmware's own watchdog (how long that takes is unverified), the rest to the reset.
    let patience = clock.now() + deadline.saturating_since(clock.now()) / 2;
    if wait_for(id, clock, patience, "", |f| f.state == FoundState::Unbooted).is_ok() {
        return Ok(());
    }
    if !options.reset_foreign {
        return replug("it did not reset itself");
    }
    let reset = UsbfsPort::open(found.bus, found.address).map_err(|e| e.on(id))?.reset();
    if let Err(errno) = reset {
        tracing::warn!(stick = %id, %errno, "USB reset of a booted stick failed");
    }
    match wait_for(id, clock, deadline, "", |f| f.state == FoundState::Unbooted) {
        Ok(_) => Ok(()),
        Err(_) => replug("a USB reset did not bring its boot ROM back"),
    }
}

/// Opens the booted stick. The node of a fresh device may take udev a moment to hand over.
fn open(id: &StickId, found: &Found) -> Result<BulkTransport<UsbfsPort>> {
    let clock = Monotonic::new();
    let patience = clock.now() + Duration::from_secs(2);
    let port = loop {
        match UsbfsPort::open(found.bus, found.address) {
            Ok(port) => break port,
            Err(e) if e.kind() != ErrorKind::InUse && clock.now() < patience => std::thread::sleep(LOOK),
            Err(e) => return Err(e.on(id)),
        }
    };
    let speed_mbps = port.speed_mbps();
    let info = TransportInfo {
        max_packet_bytes: if speed_mbps >= 5000 { 1024 } else { 512 },
        speed_mbps,
        memory: MemoryKind::Copied,
        simulated: false,
    };
    Ok(BulkTransport::new(port, info))
}

fn look(id: &StickId) -> Result<Option<Found>> {
    Ok(discover::list()?.into_iter().find(|f| &f.id == id))
}

fn wait_for(
    id: &StickId,
    clock: &Monotonic,
    deadline: Instant,
    missing: &str,
    wanted: impl Fn(&Found) -> bool,
) -> Result<Found> {
    loop {
        if let Some(found) = look(id)?.filter(&wanted) {
            return Ok(found);
        }
        if clock.now() >= deadline {
            return Err(Error::new(ErrorKind::Timeout, OP).on(id).detail(missing));
        }
        std::thread::sleep(LOOK.min(deadline.saturating_since(clock.now())));
    }
}

fn reset_port(id: &StickId) {
    if let Ok(Some(found)) = look(id)
        && let Ok(port) = UsbfsPort::open(found.bus, found.address)
    {
        let _ = port.reset();
    }
}

/// Which process has the device file open, as far as we may look.
fn owner(found: &Found) -> Option<String> {
    let device = PathBuf::from(format!("/dev/bus/usb/{:03}/{:03}", found.bus, found.address));
    fs::read_dir("/proc").ok()?.filter_map(std::result::Result::ok).find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let holds = fs::read_dir(process.path().join("fd"))
            .ok()?
            .filter_map(std::result::Result::ok)
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == device));
        holds.then(|| {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            format!(
                "process {pid} ({})",
                name.trim_end().chars().filter(|c| !c.is_control()).collect::<String>()
            )
        })
    })
}

/// Held from before the boot until the booted interface is claimed. The kernel drops it when the process dies.
struct PortLock(#[expect(dead_code, reason = "the open file is the lock")] File);

impl PortLock {
    fn acquire(id: &StickId) -> Result<Self> {
        let failed = |e: std::io::Error, path: &PathBuf| {
            Error::new(ErrorKind::Permission, OP)
                .on(id)
                .detail(format!("the lock file {} cannot be opened", path.display()))
                .caused_by(e)
        };
        // All users of the machine must meet at the same file, so it is world-writable and lies in the common folder.
        let path = std::env::temp_dir().join(format!("ncs2-port-{id}.lock"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .or_else(|_| File::open(&path))
            .map_err(|e| failed(e, &path))?;
        if let Ok(metadata) = file.metadata() {
            let mut permissions = metadata.permissions();
            std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o666);
            // Fails for a file of another user, who has done it already.
            let _ = file.set_permissions(permissions);
        }
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| {
            Error::new(ErrorKind::InUse, OP)
                .on(id)
                .detail("another process is booting this stick: wait for it, then try again")
                .caused_by(e)
        })?;
        Ok(PortLock(file))
    }
}

/// At most [`BOOTS_PER_HUB`] boots at a time behind one external hub; root hubs have power for all their ports.
struct HubGate(Option<String>);

static BOOTING: LazyLock<(Mutex<HashMap<String, usize>>, Condvar)> = LazyLock::new(Default::default);

impl HubGate {
    fn enter(found: &Found) -> Self {
        let Some((_, hubs)) = found.ports.split_last() else { return HubGate(None) };
        if hubs.is_empty() {
            return HubGate(None);
        }
        let hub = format!("{}-{hubs:?}", found.bus);
        let (booting, freed) = &*BOOTING;
        let mut booting = booting.lock();
        while booting.get(&hub).is_some_and(|&n| n >= BOOTS_PER_HUB) {
            // Bounded: each boot ends by its own deadline.
            freed.wait_for(&mut booting, CHUNK_TIMEOUT);
        }
        *booting.entry(hub.clone()).or_default() += 1;
        HubGate(Some(hub))
    }
}

impl Drop for HubGate {
    fn drop(&mut self) {
        if let Some(hub) = self.0.take() {
            let (booting, freed) = &*BOOTING;
            if let Some(n) = booting.lock().get_mut(&hub) {
                *n = n.saturating_sub(1);
            }
            freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_locked_once() {
        let id = StickId::new(format!("test-{}", std::process::id()));
        let first = PortLock::acquire(&id).expect("free");
        // flock belongs to the open file, so a second open of the same process meets it as another process would.
        let error = PortLock::acquire(&id).err().expect("taken");
        assert_eq!(error.kind(), ErrorKind::InUse);
        drop(first);
        PortLock::acquire(&id).expect("free again");
        let _ = fs::remove_file(std::env::temp_dir().join(format!("ncs2-port-{id}.lock")));
    }

    #[test]
    fn stick_that_is_not_there_fails_by_the_deadline_and_says_so() {
        let clock = Monotonic::new();
        let id = StickId::new("250-250");
        let error = wait_for(&id, &clock, clock.now(), "the stick is not on the bus", |_| true)
            .expect_err("no stick");
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert_eq!(error.to_string(), "250-250: boot: the stick is not on the bus");
    }
}
