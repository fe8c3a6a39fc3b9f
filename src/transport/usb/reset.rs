//! A stick brought back to its boot ROM: by a USB reset, or by cutting the power of its port.
//!
//! Whether the firmware of a real stick gives way to a USB reset is unverified, so success is not what the kernel says
//! of the reset but a boot ROM on the port afterwards.

use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use super::discover::{self, Found, FoundState};
use super::hub::{HubPort, NoPower};
use super::lock::PortLock;
use super::usbfs::UsbfsPort;
use super::wait::Wait;
use crate::clock::{Clock as _, Monotonic};
use crate::error::{Error, ErrorKind, Result};
use crate::id::StickId;
use crate::transport::GiveUp;

/// How long a port stays without power: capacitors have to run empty.
const POWER_OFF: Duration = Duration::from_secs(2);
const OP: &str = "reset";

/// Resets the stick on this port and waits, at most `timeout`, until its boot ROM is there. A stick that some process
/// holds is left alone. Blocks.
pub fn reset_port(id: &StickId, timeout: Duration) -> Result<Found> {
    let _lock = PortLock::acquire(id, OP)?;
    let found = discover::find(id)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, OP).on(id).detail("no stick on this port"))?;
    let (clock, give_up) = (Monotonic::new(), GiveUp::default());
    usb_reset(&Wait::new(id, OP, &clock, &give_up), &found, timeout)
}

/// Cuts the power of the stick's port for 2 s, gives it again and waits, at most `timeout`, until the boot ROM is
/// there. The port path is enough: the stick may be off the bus. Needs a hub that switches its ports one by one, and root
/// in most installations. Blocks.
pub fn power_cycle(id: &StickId, timeout: Duration) -> Result<Found> {
    let _lock = PortLock::acquire(id, OP)?;
    let (clock, give_up) = (Monotonic::new(), GiveUp::default());
    cut_power(&Wait::new(id, OP, &clock, &give_up), timeout)
}

/// [`reset_port`] for a caller that has the port's lock.
pub(super) fn usb_reset(wait: &Wait<'_>, found: &Found, timeout: Duration) -> Result<Found> {
    let id = wait.id;
    not_held(id, found)?;
    let port = UsbfsPort::open(found.bus, found.address).map_err(|e| e.on(id))?;
    match port.reset() {
        // The descriptors changed: it leaves and comes back as another.
        Ok(()) | Err(Errno::NODEV | Errno::PERM | Errno::INVAL) => {}
        Err(errno) => {
            return Err(Error::new(ErrorKind::Unplugged, OP)
                .on(id)
                .detail("the kernel could not reset the port: plug the stick out and in")
                .caused_by(errno));
        }
    }
    drop(port);
    boot_rom(
        wait,
        timeout,
        || "a USB reset did not bring the boot ROM back: try `reset --power`, else plug the stick out and in",
    )
}

/// [`power_cycle`] for a caller that has the port's lock.
pub(super) fn cut_power(wait: &Wait<'_>, timeout: Duration) -> Result<Found> {
    let id = wait.id;
    let failed = |kind, detail: &str| Error::new(kind, OP).on(id).detail(detail);
    if let Some(found) = discover::find(id) {
        not_held(id, &found)?;
    }
    let sides = HubPort::sides(Path::new(discover::SYSFS), id.as_str());
    if sides.is_empty() {
        return Err(failed(ErrorKind::NotFound, "no such port on any hub"));
    }
    let cut: Vec<Result<(), NoPower>> = sides.iter().map(|side| side.set_power(false)).collect();
    let refused = cut.iter().find_map(|side| side.err());
    if refused.is_none() {
        tracing::info!(stick = %id, "port power off");
        wait.pause(POWER_OFF);
    }
    // Also the side that was cut when the other refused.
    let mut given = Ok(());
    for (side, cut) in sides.iter().zip(&cut) {
        if cut.is_ok() {
            given = given.and(side.set_power(true));
        }
    }
    match refused.map_or(given, Err) {
        Ok(()) => {}
        Err(NoPower::Rights) => {
            return Err(failed(
                ErrorKind::Permission,
                "this user may not switch the hub's power: run it as root, else plug the stick out and in",
            ));
        }
        Err(NoPower::Hub) => {
            return Err(failed(
                ErrorKind::Unsupported,
                "its hub does not switch the power of single ports: plug the stick out and in",
            ));
        }
        Err(NoPower::Errno(errno)) => {
            return Err(
                failed(ErrorKind::Unsupported, "the hub refused: plug the stick out and in").caused_by(errno)
            );
        }
    }
    boot_rom(wait, timeout, || match discover::find(id) {
        None => "the stick did not come back after its port had no power: plug it out and in",
        Some(_) => "the hub did not cut the power, the firmware still runs: plug the stick out and in",
    })
}

fn not_held(id: &StickId, found: &Found) -> Result<()> {
    match found.state {
        FoundState::Busy => Err(in_use(id, found, OP)),
        FoundState::Unsupported => Err(Error::new(ErrorKind::Unsupported, OP)
            .on(id)
            .detail("a first-generation stick (Myriad 2): this driver is for the Neural Compute Stick 2")),
        FoundState::Unbooted | FoundState::Booted => Ok(()),
    }
}

/// The error for a stick that some process holds, with its name where that can be seen.
pub(super) fn in_use(id: &StickId, found: &Found, op: &'static str) -> Error {
    let owner = discover::owner(found).unwrap_or_else(|| "another process (run as root to see which)".into());
    Error::new(ErrorKind::InUse, op).on(id).detail(format!("claimed by {owner}: end it, then try again"))
}

/// The boot ROM on this port; `missing` is what to say without it.
fn boot_rom(wait: &Wait<'_>, timeout: Duration, missing: impl FnOnce() -> &'static str) -> Result<Found> {
    let deadline = wait.clock.now() + timeout;
    wait.until(deadline, "", |found| found.state == FoundState::Unbooted).map_err(|error| {
        match error.kind() {
            ErrorKind::Cancelled => error,
            _ => Error::new(ErrorKind::Unsupported, OP).on(wait.id).detail(missing()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_without_a_stick_is_named() {
        let id = StickId::new("250-250");
        for error in [reset_port(&id, Duration::ZERO), power_cycle(&id, Duration::ZERO)] {
            let error = error.expect_err("no such port");
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert!(error.to_string().starts_with("250-250: reset: no "), "{error}");
        }
    }

    #[test]
    fn a_stick_that_is_held_is_left_alone() {
        let found = Found {
            id: StickId::new("1-1"),
            state: FoundState::Busy,
            product_id: 0xf63b,
            bus: 250,
            address: 250,
            ports: vec![1],
            speed_mbps: 5000,
            serial: None,
        };
        let (clock, give_up) = (Monotonic::new(), GiveUp::default());
        let wait = Wait::new(&found.id, OP, &clock, &give_up);
        let error = usb_reset(&wait, &found, Duration::ZERO).expect_err("held");
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(error.to_string().contains("claimed by another process"), "{error}");
    }
}
