//! Handing a socket to `vhci-hcd`, and which of its ports is free.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use ncs2::error::{Error, ErrorKind, Result};
use rustix::io::Errno;

use crate::face::usb::BusSpeed;

const OP: &str = "attach virtual stick";

/// The kernel's folder of its first virtual host controller.
const FOLDER: &str = "/sys/devices/platform/vhci_hcd.0";
/// State word of a port that nothing is attached to (`VDEV_ST_NULL`).
const FREE: &str = "004";

/// The virtual host controller.
#[derive(Debug, Clone)]
pub(crate) struct Vhci {
    folder: PathBuf,
}

/// One line of the status file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Row {
    speed: BusSpeed,
    port: u32,
    free: bool,
}

impl Vhci {
    /// `Unsupported` where the kernel's module is not loaded.
    pub(crate) fn open() -> Result<Self> {
        Self::at(Path::new(FOLDER))
    }

    fn at(folder: &Path) -> Result<Self> {
        if !folder.join("attach").exists() {
            return Err(Error::new(ErrorKind::Unsupported, OP)
                .detail("the kernel has no virtual USB controller: run `modprobe vhci-hcd` as root"));
        }
        Ok(Vhci { folder: folder.to_path_buf() })
    }

    /// The lowest place that is free at both speeds, not among `taken`: a stick changes its speed at boot, and shall
    /// come back on the same port.
    pub(crate) fn free_place(&self, taken: &[u32]) -> Result<u32> {
        let rows = self.rows()?;
        let of = |speed| rows.iter().filter(move |row| row.speed == speed);
        of(BusSpeed::High)
            .zip(of(BusSpeed::Super))
            .enumerate()
            .find(|(place, (high, fast))| high.free && fast.free && !taken.contains(&(*place as u32)))
            .map(|(place, _)| place as u32)
            .ok_or_else(|| Error::new(ErrorKind::QueueFull, OP).detail("every port of vhci-hcd is taken"))
    }

    /// Gives `socket` to the kernel as a device of `speed` at `place`. `Ok(false)`: the port still lets go of the last
    /// device, try again soon.
    pub(crate) fn attach(&self, place: u32, speed: BusSpeed, socket: BorrowedFd<'_>) -> Result<bool> {
        let rows = self.rows()?;
        let row = rows.iter().filter(|row| row.speed == speed).nth(place as usize).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, OP).detail(format!("vhci-hcd has no port {place}"))
        })?;
        if !row.free {
            return Ok(false);
        }
        let code = match speed {
            BusSpeed::High => 3,
            BusSpeed::Super => 5,
        };
        // Every device needs a number of its own; the kernel compares nothing but itself with it.
        let line = format!("{} {} {} {code}", row.port, socket.as_raw_fd(), 0x0001_0000 + row.port + 1);
        match fs::write(self.folder.join("attach"), line) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => Ok(false),
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                Err(Error::new(ErrorKind::Permission, OP)
                    .detail("vhci-hcd's attach file: root only")
                    .caused_by(e))
            }
            Err(e) => {
                Err(Error::new(ErrorKind::Unsupported, OP).detail("vhci-hcd refused the device").caused_by(e))
            }
        }
    }

    fn rows(&self) -> Result<Vec<Row>> {
        let text = fs::read_to_string(self.folder.join("status")).map_err(|e| {
            Error::new(ErrorKind::Unsupported, OP).detail("vhci-hcd's status file").caused_by(e)
        })?;
        Ok(parse(&text))
    }
}

fn parse(status: &str) -> Vec<Row> {
    status
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let speed = match words.next()? {
                "hs" => BusSpeed::High,
                "ss" => BusSpeed::Super,
                _ => return None,
            };
            let port = words.next()?.parse().ok()?;
            Some(Row { speed, port, free: words.next()? == FREE })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    const STATUS: &str = "hub port sta spd dev      sockfd local_busid\n\
        hs  0000 006 003 00010001 000003 1-1\n\
        hs  0001 004 000 00000000 000000 0-0\n\
        hs  0002 004 000 00000000 000000 0-0\n\
        ss  0008 004 000 00000000 000000 0-0\n\
        ss  0009 005 000 00000000 000000 0-0\n\
        ss  0010 004 000 00000000 000000 0-0\n";

    #[test]
    fn a_place_is_free_at_both_speeds() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("status"), STATUS).expect("file");
        assert_eq!(Vhci::at(folder.path()).expect_err("no attach file").kind(), ErrorKind::Unsupported);
        fs::write(folder.path().join("attach"), "").expect("file");
        let vhci = Vhci::at(folder.path()).expect("both files are there");
        assert_eq!(vhci.free_place(&[]).expect("port 2"), 2);
        assert_eq!(vhci.free_place(&[2]).expect_err("all taken").kind(), ErrorKind::QueueFull);
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        assert!(!vhci.attach(1, BusSpeed::Super, ours.as_fd()).expect("busy, not an error"));
        assert!(vhci.attach(2, BusSpeed::Super, ours.as_fd()).expect("free"));
        let line = fs::read_to_string(folder.path().join("attach")).expect("file");
        assert_eq!(line, format!("10 {} {} 5", ours.as_raw_fd(), 0x1_0000 + 11));
    }
}
