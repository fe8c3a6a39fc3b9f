//! What every test works with: the sticks on the bus, and a hand on them through the emulator's control channel.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ncs2::transport::usb::discover::{self, Found, FoundState};
use ncs2_device::face::StickStatus;
use rusb::UsbContext as _;

use crate::wire::Wire;

/// Longest wait for anything on the bus; a machine that emulates another takes its time.
const PATIENCE: Duration = Duration::from_secs(15);
const CHUNK: usize = 1 << 20;
/// Of the sticks that tests find unless they ask for others.
const PROFILE: &str = "stick";

/// The sticks and the hand on them.
pub(crate) struct Bench {
    /// `usbredir`, `serial` or `vhci`.
    pub(crate) face: String,
    /// How many sticks.
    pub(crate) sticks: usize,
    /// What a test wants to say beside its verdict.
    pub(crate) notes: Vec<String>,
    control: Control,
}

struct Control {
    reader: BufReader<File>,
    writer: File,
}

impl Bench {
    /// From the environment that the virtual machine's init sets.
    pub(crate) fn open() -> Result<Self, String> {
        let setting = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
        let face = setting("NCS2_VM_FACE")?;
        let sticks = setting("NCS2_VM_STICKS")?.parse().map_err(|e| format!("NCS2_VM_STICKS: {e}"))?;
        let control = Control::open(&setting("NCS2_VM_CONTROL")?)?;
        let mut bench = Bench { face, sticks, notes: Vec::new(), control };
        for n in 0..sticks {
            bench.wait_for(n, FoundState::Unbooted)?;
        }
        Ok(bench)
    }

    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// One command to the emulator, such as `unplug 3`; its answer's lines without the `ok`.
    pub(crate) fn command(&mut self, line: &str) -> Result<Vec<String>, String> {
        self.control.ask(line)
    }

    /// Stick `n` if it is on the bus: it is in root port n + 1, at either speed.
    pub(crate) fn find(&self, n: usize) -> Result<Option<Found>, String> {
        let all = discover::list().map_err(|e| e.to_string())?;
        Ok(all.into_iter().find(|found| found.ports.iter().map(|p| usize::from(*p)).eq([n + 1])))
    }

    pub(crate) fn wait_for(&mut self, n: usize, state: FoundState) -> Result<Found, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.find(n)?;
            match found {
                Some(found) if found.state == state && is_settled(&found) => return Ok(found),
                found if Instant::now() > deadline => {
                    let state = state.as_str();
                    return Err(format!("stick {n}: expected {state} within {PATIENCE:?}, found {found:?}"));
                }
                _ => pause(),
            }
        }
    }

    pub(crate) fn wait_gone(&mut self, n: usize) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while let Some(found) = self.find(n)? {
            if Instant::now() > deadline {
                return Err(format!("stick {n}: expected gone within {PATIENCE:?}, found {found:?}"));
            }
            pause();
        }
        Ok(())
    }

    /// Stick `n` as if it had just been plugged in.
    pub(crate) fn fresh(&mut self, n: usize) -> Result<Found, String> {
        self.fresh_of(n, PROFILE)
    }

    /// A stick of this profile of `tools/vm/profiles` in the place of stick `n`.
    pub(crate) fn fresh_of(&mut self, n: usize, profile: &str) -> Result<Found, String> {
        self.pull(n)?;
        self.wait_gone(n)?;
        self.plug(n, profile, "")?;
        self.wait_for(n, FoundState::Unbooted)
    }

    /// As [`Bench::fresh_of`], and the stick computes what its networks say.
    pub(crate) fn fresh_that_executes(&mut self, n: usize, profile: &str) -> Result<Found, String> {
        self.pull(n)?;
        self.wait_gone(n)?;
        self.plug(n, profile, "execute")?;
        self.wait_for(n, FoundState::Unbooted)
    }

    fn pull(&mut self, n: usize) -> Result<(), String> {
        self.command(&format!("resume {n}"))?;
        self.command(&format!("unplug {n}")).map(drop)
    }

    /// `engine`: the emulator's own where it is empty.
    fn plug(&mut self, n: usize, profile: &str, engine: &str) -> Result<(), String> {
        let file = format!("{}/profiles/{profile}.toml", env!("CARGO_MANIFEST_DIR"));
        self.command(format!("plug {n} {file} {engine}").trim_end()).map(drop)
    }

    /// What the emulator says of stick `n`.
    pub(crate) fn status(&mut self, n: usize) -> Result<StickStatus, String> {
        let lines = self.command("list")?;
        let line = lines.iter().find_map(|line| line.strip_prefix(&format!("{n} ")));
        line.ok_or_else(|| format!("the emulator lists no stick {n}"))?.parse()
    }

    /// Until the emulator's word of stick `n` is as wanted.
    pub(crate) fn until(
        &mut self,
        n: usize,
        what: &str,
        wanted: impl Fn(&StickStatus) -> bool,
    ) -> Result<StickStatus, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(n)?;
            if wanted(&status) {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(format!("stick {n}: expected {what} within {PATIENCE:?}, found {status:?}"));
            }
            pause();
        }
    }

    /// No stick is in its port.
    pub(crate) fn all_gone(&mut self) -> Result<(), String> {
        for n in 0..self.sticks {
            self.pull(n)?;
        }
        (0..self.sticks).try_for_each(|n| self.wait_gone(n))
    }

    /// Every stick as if it had just been plugged in, all at the same time.
    pub(crate) fn all_fresh(&mut self) -> Result<Vec<Found>, String> {
        self.all_gone()?;
        self.plug_first(self.sticks)
    }

    /// So many sticks into empty ports, all at the same time.
    pub(crate) fn plug_first(&mut self, count: usize) -> Result<Vec<Found>, String> {
        for n in 0..count {
            self.plug(n, PROFILE, "")?;
        }
        (0..count).map(|n| self.wait_for(n, FoundState::Unbooted)).collect()
    }

    /// How often to do what can be done `n` times: less where the emulator, the driver and the kernel share the
    /// emulated CPUs.
    pub(crate) fn times(&self, n: usize) -> usize {
        if self.face == "usbredir" { n } else { n / 8 }
    }

    /// Stick `n`, fresh and booted.
    pub(crate) fn booted(&mut self, n: usize) -> Result<Found, String> {
        let found = self.fresh(n)?;
        upload(&found, &image(1_500_000))?;
        self.wait_for(n, FoundState::Booted)
    }

    /// Stick `n`, fresh, booted and opened through the driver's own data path.
    pub(crate) fn opened(&mut self, n: usize) -> Result<Wire, String> {
        Wire::open(&self.booted(n)?)
    }
}

impl Control {
    /// A virtio-serial port, or a Unix socket.
    fn open(path: &str) -> Result<Self, String> {
        let deadline = Instant::now() + PATIENCE;
        let writer = loop {
            let opened = match UnixStream::connect(path) {
                Ok(stream) => Ok(File::from(OwnedFd::from(stream))),
                Err(_) => OpenOptions::new().read(true).write(true).open(path),
            };
            match opened {
                Ok(file) => break file,
                Err(e) if Instant::now() > deadline => return Err(format!("{path}: {e}")),
                Err(_) => pause(),
            }
        };
        let reader = BufReader::new(writer.try_clone().map_err(|e| e.to_string())?);
        Ok(Control { reader, writer })
    }

    fn ask(&mut self, line: &str) -> Result<Vec<String>, String> {
        let failed = |e: std::io::Error| format!("emulator, {line}: {e}");
        self.writer.write_all(format!("{line}\n").as_bytes()).map_err(failed)?;
        let answer = self.line().map_err(failed)?;
        let mut words = answer.split_whitespace();
        if words.next() != Some("ok") {
            return Err(format!("emulator, {line}: {answer}"));
        }
        let more = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
        (0..more).map(|_: usize| self.line().map_err(failed)).collect()
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// Between two looks at a bus that tells nothing by itself.
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

/// The kernel is done with it: the node can be opened, the configuration is set. QEMU forgets a control request whose device
/// is pulled out, and the guest's kernel then waits five seconds for its answer.
fn is_settled(found: &Found) -> bool {
    let node = format!("/dev/bus/usb/{:03}/{:03}", found.bus, found.address);
    let ports: Vec<String> = found.ports.iter().map(u8::to_string).collect();
    let interface = format!("/sys/bus/usb/devices/{}-{}:1.0", found.bus, ports.join("."));
    std::path::Path::new(&node).exists() && std::path::Path::new(&interface).exists()
}

/// An image that the boot ROM starts when it takes any: noise, then the jump.
pub(crate) fn image(len: usize) -> Vec<u8> {
    const JUMP: [u8; 8] = [0xa4, 0x00, 0x00, 0xd0, 0x80, 0x00, 0x00, 0x00];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut image: Vec<u8> = (0..len - JUMP.len())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    image.extend(JUMP);
    image
}

/// The device as libusb knows it.
pub(crate) fn open_libusb(found: &Found) -> Result<rusb::DeviceHandle<rusb::Context>, String> {
    let context = rusb::Context::new().map_err(|e| format!("libusb: {e}"))?;
    let devices = context.devices().map_err(|e| format!("libusb: {e}"))?;
    let device = devices
        .iter()
        .find(|d| d.bus_number() == found.bus && d.address() == found.address)
        .ok_or_else(|| format!("libusb does not see {found:?}"))?;
    device.open().map_err(|e| format!("libusb, open: {e}"))
}

/// Sends firmware as the vendor's client does: chunks of 1 MiB, no zero-length packet, no answer.
pub(crate) fn upload(found: &Found, image: &[u8]) -> Result<(), String> {
    let handle = open_libusb(found)?;
    handle.set_active_configuration(1).map_err(|e| format!("set configuration: {e}"))?;
    handle.claim_interface(0).map_err(|e| format!("claim: {e}"))?;
    let count = image.len().div_ceil(CHUNK);
    for (n, chunk) in image.chunks(CHUNK).enumerate() {
        match handle.write_bulk(0x01, chunk, Duration::from_secs(10)) {
            Ok(sent) if sent == chunk.len() => {}
            // It may leave before the last chunk is acknowledged.
            Err(rusb::Error::NoDevice | rusb::Error::Io) if n + 1 == count => {}
            Ok(sent) => return Err(format!("chunk {n}: sent {sent} of {}", chunk.len())),
            Err(e) => return Err(format!("chunk {n}: {e}")),
        }
    }
    Ok(())
}
