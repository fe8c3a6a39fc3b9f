//! Sticks on the bus: found, named by their port, booted, claimed.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use ncs2::ErrorKind;
use ncs2::transport::usb::discover::{self, Found, FoundState};
use ncs2::transport::usb::usbfs::UsbfsPort;

use crate::bench::{Bench, image, open_libusb, upload};
use crate::{Verdict, ensure};

pub(crate) fn unbooted_sticks_have_ports_of_their_own(bench: &mut Bench) -> Verdict {
    let all = discover::list().map_err(|e| e.to_string())?;
    ensure!(all.len() == bench.sticks, "expected {} sticks, found {all:?}", bench.sticks);
    let ids: BTreeSet<String> = all.iter().map(|found| found.id.to_string()).collect();
    ensure!(ids.len() == bench.sticks, "ids are not distinct: {ids:?}");
    for found in &all {
        ensure!(found.state == FoundState::Unbooted, "expected unbooted, found {found:?}");
        ensure!(found.speed_mbps == 480, "expected 480 Mb/s, found {found:?}");
        ensure!(found.serial.as_deref() == Some("03e72485"), "serial: {found:?}");
    }
    bench.note(format!("ids {}", ids.into_iter().collect::<Vec<_>>().join(" ")));
    Ok(())
}

/// What `lsusb -v` says of one device; `None` where the program is missing.
fn lsusb(found: &Found) -> Result<Option<String>, String> {
    let at = format!("{}:{}", found.bus, found.address);
    match Command::new("lsusb").args(["-v", "-s", &at]).output() {
        Ok(out) if out.status.success() => Ok(Some(String::from_utf8_lossy(&out.stdout).into_owned())),
        Ok(out) => Err(format!("lsusb -v -s {at}: {}", String::from_utf8_lossy(&out.stderr))),
        Err(_) => Ok(None),
    }
}

fn expect(text: &str, wanted: &[(&str, &str)]) -> Verdict {
    for (field, value) in wanted {
        let found = text.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(*field) && words.any(|word| word == *value)
                || line.trim().starts_with(field) && line.contains(value)
        });
        ensure!(found, "lsusb -v: expected {field} {value} in\n{text}");
    }
    Ok(())
}

pub(crate) fn lsusb_shows_a_stick(bench: &mut Bench) -> Verdict {
    let found = bench.fresh(0)?;
    let Some(text) = lsusb(&found)? else {
        bench.note("not looked at: lsusb (package usbutils) is missing");
        return Ok(());
    };
    expect(
        &text,
        &[
            ("bcdUSB", "2.00"),
            ("idVendor", "0x03e7"),
            ("idProduct", "0x2485"),
            ("iManufacturer", "Movidius Ltd."),
            ("iProduct", "Movidius MyriadX"),
            ("iSerial", "03e72485"),
            ("iConfiguration", "simulated"),
            ("bNumEndpoints", "2"),
            ("bEndpointAddress", "0x81"),
            ("bEndpointAddress", "0x01"),
            ("wMaxPacketSize", "0x0200"),
        ],
    )
}

pub(crate) fn lsusb_shows_a_booted_stick(bench: &mut Bench) -> Verdict {
    let found = bench.booted(0)?;
    let Some(text) = lsusb(&found)? else {
        bench.note("not looked at: lsusb (package usbutils) is missing");
        return Ok(());
    };
    expect(
        &text,
        &[
            ("bcdUSB", "3.00"),
            ("idProduct", "0xf63b"),
            ("iProduct", "VSC Loopback Device"),
            ("iConfiguration", "simulated"),
            ("bEndpointAddress", "0x81"),
            ("bEndpointAddress", "0x01"),
            ("wMaxPacketSize", "0x0400"),
            ("bMaxBurst", "15"),
            ("SuperSpeed USB Device Capability", ""),
        ],
    )
}

pub(crate) fn firmware_boots_on_the_same_port(bench: &mut Bench) -> Verdict {
    let before = bench.fresh(0)?;
    let start = Instant::now();
    upload(&before, &image(1_500_000))?;
    let sent = start.elapsed();
    let after = bench.wait_for(0, FoundState::Booted)?;
    ensure!(after.id == before.id, "expected the same port {}, found {}", before.id, after.id);
    ensure!(after.product_id == 0xf63b, "expected f63b, found {:04x}", after.product_id);
    ensure!(after.speed_mbps == 5000, "expected 5000 Mb/s, found {}", after.speed_mbps);
    bench.note(format!(
        "port {}: 1.5 MB sent in {} ms, booted after {} ms",
        after.id,
        sent.as_millis(),
        start.elapsed().as_millis()
    ));
    Ok(())
}

pub(crate) fn half_an_image_is_forgotten_at_reset(bench: &mut Bench) -> Verdict {
    let found = bench.fresh(1)?;
    {
        let handle = open_libusb(&found)?;
        handle.claim_interface(0).map_err(|e| format!("claim: {e}"))?;
        let half = &image(1_500_000)[..700_000];
        handle.write_bulk(0x01, half, Duration::from_secs(10)).map_err(|e| format!("half an image: {e}"))?;
    }
    let handle = open_libusb(&found)?;
    handle.reset().map_err(|e| format!("reset: {e}"))?;
    drop(handle);
    let found = bench.wait_for(1, FoundState::Unbooted)?;
    upload(&found, &image(1_500_000))?;
    bench.wait_for(1, FoundState::Booted).map(drop)
}

pub(crate) fn second_claim_is_refused(bench: &mut Bench) -> Verdict {
    let found = bench.booted(2)?;
    let first = UsbfsPort::open(found.bus, found.address).map_err(|e| e.to_string())?;
    let seen = bench.find(2)?.map(|found| found.state);
    ensure!(seen == Some(FoundState::Busy), "expected busy, found {seen:?}");
    let second = UsbfsPort::open(found.bus, found.address);
    ensure!(second.as_ref().is_err_and(|e| e.kind() == ErrorKind::InUse), "expected InUse, found {second:?}");
    drop(first);
    UsbfsPort::open(found.bus, found.address).map(drop).map_err(|e| format!("after the first let go: {e}"))
}
