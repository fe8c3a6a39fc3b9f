//! A real stick's USB descriptors, as the kernel keeps them: read from sysfs, without opening anything. They hold no serial
//! number, only the number of the string that does.

use std::fs;

use ncs2::StickId;
use ncs2::transport::usb::discover;

/// Device descriptor's length, USB 3.2 table 9-11.
const DEVICE_LEN: usize = 18;
/// String of a virtual stick's configuration, `ncs2_device::face`.
const VIRTUAL: &str = "simulated";
/// Descriptor type of an endpoint.
const ENDPOINT: u8 = 5;

/// Device descriptor and configurations of the stick with this id, in the state that it is in now; `None` where there is no
/// such stick or no sysfs.
pub fn of(id: &StickId) -> Option<Vec<u8>> {
    let stick = discover::list().ok()?.into_iter().find(|stick| stick.id == *id)?;
    let ports: Vec<String> = stick.ports.iter().map(ToString::to_string).collect();
    let path = format!("/sys/bus/usb/devices/{}-{}/descriptors", stick.bus, ports.join("."));
    fs::read(path).ok().filter(|bytes| bytes.len() >= DEVICE_LEN)
}

/// Whether the stick with this id says of itself that it is virtual: behind a kernel's USB it looks like any other, but for the
/// string of its configuration.
pub fn is_virtual(id: &StickId) -> bool {
    let Some(stick) = discover::find(id) else { return false };
    let ports: Vec<String> = stick.ports.iter().map(ToString::to_string).collect();
    let path = format!("/sys/bus/usb/devices/{}-{}/configuration", stick.bus, ports.join("."));
    fs::read_to_string(path).is_ok_and(|text| text.trim() == VIRTUAL)
}

/// `03e7:2485 usb 2.0 endpoints 01/512 81/512`.
pub fn summary(bytes: &[u8]) -> String {
    let word = |at: usize| bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
    let mut text = format!(
        "{:04x}:{:04x} usb {:x}.{:x} endpoints",
        word(8),
        word(10),
        word(2) >> 8,
        (word(2) >> 4) & 15
    );
    let mut at = DEVICE_LEN;
    while let (Some(&len), Some(&kind)) = (bytes.get(at), bytes.get(at + 1)) {
        if len < 2 {
            break;
        }
        if kind == ENDPOINT && at + 6 <= bytes.len() {
            text += &format!(" {:02x}/{}", bytes[at + 2], word(at + 4));
        }
        at += usize::from(len);
    }
    text
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_names_what_matters_and_damage_does_not_matter() {
        let mut bytes = vec![18, 1, 0x00, 0x02, 0, 0, 0, 64, 0xe7, 0x03, 0x85, 0x24, 1, 0, 1, 2, 3, 1];
        bytes.extend([9, 2, 32, 0, 1, 1, 0, 0x80, 250, 9, 4, 0, 0, 2, 0xff, 0x11, 0xff, 0]);
        bytes.extend([7, 5, 0x81, 2, 0, 2, 0, 7, 5, 0x01, 2, 0, 2, 0]);
        assert_eq!(summary(&bytes), "03e7:2485 usb 2.0 endpoints 81/512 01/512");
        for cut in 0..bytes.len() {
            assert!(!summary(&bytes[..cut]).is_empty());
        }
        bytes[18] = 0;
        assert_eq!(summary(&bytes), "03e7:2485 usb 2.0 endpoints");
        assert_eq!(hex(&[0, 255]), "00ff");
        assert_eq!(of(&StickId::sim(3)), None);
        assert!(!is_virtual(&StickId::sim(3)));
    }
}
