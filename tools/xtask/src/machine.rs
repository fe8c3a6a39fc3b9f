//! A virtual machine with a stock Debian kernel and this machine's files, and virtual sticks behind its USB.
//!
//! Nothing is installed: the kernel and udev come as packages that are unpacked under `target/vm`. The machine sees
//! this machine's root read-only, so the programs that run in it are those that were just built. What is behind each choice
//! is in `docs/usb-testbed.md`.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::run::{root, step, succeeds};
use crate::{Stop, native};

/// What is read of the machine after its status is there, and how long an emulator may take to start.
const GRACE: Duration = Duration::from_secs(10);

/// Modules that lead to the host's files, each after what it needs.
const BOOT_MODULES: [&str; 11] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "net/9p/9pnet",
    "net/9p/9pnet_virtio",
    "fs/netfs/netfs",
    "fs/fscache/fscache",
    "fs/9p/9p",
    "fs/overlayfs/overlay",
];
/// Modules that the tests need.
const USB_MODULES: [&str; 7] = [
    "drivers/usb/common/usb-common",
    "drivers/usb/core/usbcore",
    "drivers/usb/host/xhci-hcd",
    "drivers/usb/host/xhci-pci",
    "drivers/usb/usbip/usbip-core",
    "drivers/usb/usbip/vhci-hcd",
    "drivers/char/virtio_console",
];

/// Everything that is run, and the package that has it.
const PROGRAMS: [(&str, &str, &str); 8] = [
    ("qemu-system-x86_64", "--version", "qemu-system-x86"),
    ("busybox", "true", "busybox-static"),
    ("cpio", "--version", "cpio"),
    ("lsusb", "--version", "usbutils"),
    ("apt-get", "--version", "apt"),
    ("dpkg", "--version", "dpkg"),
    ("tar", "--version", "tar"),
    ("timeout", "--version", "coreutils"),
];

/// Makes sure that they are there: installs them as root, else says how.
pub fn programs() -> Result<(), Stop> {
    let missing = || -> Vec<&str> {
        let absent = PROGRAMS.iter().filter(|(program, probe, _)| !succeeds(program, &[probe]));
        absent.map(|(_, _, package)| *package).collect()
    };
    let packages = missing();
    if packages.is_empty() || (native::install_debian(&packages) && missing().is_empty()) {
        return Ok(());
    }
    Err(Stop::Missing(format!(
        "the virtual machine needs programs that are not there. On Debian or Ubuntu, run this, then try again:\n\n    \
         sudo apt-get install {}\n",
        packages.join(" ")
    )))
}

/// Kernel, first program and unpacked packages, ready to run.
pub struct Machine {
    kernel: PathBuf,
    initrd: PathBuf,
    extra: PathBuf,
}

impl Machine {
    /// Fetches and unpacks what is not there yet, under `target/vm`.
    pub fn prepare() -> Result<Self, Stop> {
        let place = root().join("target/vm");
        make(&place)?;
        // Two runs side by side must not unpack and pack under each other's hands.
        let lock = place.join("lock");
        let _held =
            fs::File::create(&lock).and_then(|f| f.lock().map(|()| f)).map_err(|e| io_failed(&lock, e))?;
        let (packages, unpacked, extra) = (place.join("packages"), place.join("kernel"), place.join("extra"));
        // Written last, so that an interrupted run is not taken for a whole one.
        let whole = place.join("unpacked");
        if !whole.exists() {
            for folder in [&packages, &unpacked, &extra] {
                make(folder)?;
            }
            fetch(&packages)?;
            unpack(&packages, &unpacked, &extra)?;
            fs::write(&whole, "").map_err(|e| io_failed(&whole, e))?;
        }
        let kernel = find(&unpacked.join("boot"), "vmlinuz")?;
        let initrd = place.join("initrd.gz");
        build_initrd(&unpacked, &initrd)?;
        Ok(Machine { kernel, initrd, extra })
    }

    /// QEMU, to be given the sticks' devices. `out` is the guest's `/out`: the command that it runs, with this
    /// environment, is put there.
    pub fn boot(&self, cpus: u32, out: &Path, environment: &str, command: &str) -> Result<Command, Stop> {
        let guest = root().join("tools/vm/guest/init");
        for (name, text) in [("environment", environment), ("command", command)] {
            fs::write(out.join(name), text).map_err(|e| io_failed(&out.join(name), e))?;
        }
        copy(&guest, &out.join("init"))?;
        Ok(self.qemu(cpus, out))
    }

    fn qemu(&self, cpus: u32, out: &Path) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-m", "2048", "-smp", &cpus.to_string()]);
        qemu.args(["-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio", "-monitor", "none"]);
        qemu.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
        qemu.args(["-append", "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off"]);
        let mut share = |tag: &str, path: &Path, options: &str| {
            qemu.arg("-fsdev")
                .arg(format!("local,id={tag},path={},security_model=none{options}", path.display()));
            qemu.arg("-device").arg(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
        };
        share("host", Path::new("/"), ",readonly=on,multidevs=remap");
        share("extra", &self.extra, ",readonly=on");
        share("out", out, "");
        qemu
    }
}

/// Sticks behind QEMU's xHCI by usb-redir: stick n's emulator listens at `STICK.n` and is in port n + 1, so that tests know
/// which stick is where; connected again when the emulator went. `control` is the guest's port `ncs2-control`.
pub fn add_usbredir(qemu: &mut Command, sticks: usize, stick: &Path, control: &Path) {
    qemu.args(["-device", "qemu-xhci,id=x,p2=15,p3=15"]);
    for n in 0..sticks {
        qemu.arg("-chardev").arg(format!("socket,id=r{n},path={}.{n},reconnect=1", stick.display()));
        qemu.arg("-device").arg(format!("usb-redir,chardev=r{n},bus=x.0,port={}", n + 1));
    }
    qemu.args(["-device", "virtio-serial-pci"]);
    qemu.arg("-chardev").arg(format!("socket,id=control,path={},reconnect=1", control.display()));
    qemu.args(["-device", "virtserialport,chardev=control,name=ncs2-control"]);
}

/// Runs the machine to its end, shows what it prints and keeps it in `OUT/log`; its verdict is the status that the guest
/// wrote. `name` is for messages.
pub fn run(name: &str, qemu: Command, out: &Path, limit: Duration) -> Result<(), Stop> {
    let log = out.join("log");
    let watched = watch(name, qemu, &log, &out.join("status"), limit)?;
    let status = fs::read_to_string(out.join("status")).unwrap_or_default();
    let log = log.display();
    match (status.trim(), watched) {
        ("0", _) => Ok(()),
        ("1", _) => Err(Stop::Failed(format!("{name}: tests failed; the log is {log}"))),
        ("", Ended::TimedOut) => {
            Err(Stop::Failed(format!("{name}: no result within {limit:?}; the log is {log}")))
        }
        ("", Ended::Itself) => {
            Err(Stop::Failed(format!("{name}: the machine ended without a result; the log is {log}")))
        }
        (other, _) => Err(Stop::Failed(format!("{name}: exit status {other}; the log is {log}"))),
    }
}

/// The emulator on the host; it ends when its standard input does.
pub struct Emulator(Child);

impl Emulator {
    /// Starts it and waits until it listens at `control`, the socket that it makes last. What it says goes to `log`.
    pub fn start(mut program: Command, control: &Path, log: &Path) -> Result<Self, Stop> {
        let file = fs::File::create(log).map_err(|e| io_failed(log, e))?;
        let errors = file.try_clone().map_err(|e| io_failed(log, e))?;
        let child = program
            .stdin(Stdio::piped())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .map_err(|e| Stop::Failed(format!("{}: {e}", program.get_program().display())))?;
        let mut emulator = Emulator(child);
        let deadline = Instant::now() + GRACE;
        while !control.exists() {
            let ended = emulator.0.try_wait().ok().flatten().is_some();
            if ended || Instant::now() > deadline {
                let said = fs::read_to_string(log).unwrap_or_default();
                return Err(Stop::Failed(format!("virtual machine: the emulator did not start: {said}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(emulator)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    Itself,
    TimedOut,
}

/// Runs QEMU, shows what the machine prints with its name before each line (two may run side by side), keeps it, ends it when
/// its time is over.
fn watch(name: &str, mut qemu: Command, log: &Path, status: &Path, limit: Duration) -> Result<Ended, Stop> {
    let mut file = fs::File::create(log).map_err(|e| io_failed(log, e))?;
    let errors = file.try_clone().map_err(|e| io_failed(log, e))?;
    let mut child = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(|e| Stop::Missing(format!("virtual machine: qemu-system-x86_64: {e}")))?;
    let Some(output) = child.stdout.take() else {
        return Err(Stop::Failed("virtual machine: no output of QEMU".into()));
    };
    let (lines, inbox) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            // The firmware clears the screen first.
            let text = String::from_utf8_lossy(&line);
            let text = text.rsplit('\u{1b}').next().unwrap_or_default().trim_end().to_owned();
            if lines.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    let mut deadline = Instant::now() + limit;
    let mut told = false;
    let ended = loop {
        if !told && fs::metadata(status).is_ok_and(|m| m.len() > 0) {
            told = true;
            deadline = deadline.min(Instant::now() + GRACE);
        }
        match inbox.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => {
                println!("{name:9} {line}");
                let _ = writeln!(file, "{line}");
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break Ended::Itself,
            Err(mpsc::RecvTimeoutError::Timeout) if Instant::now() > deadline => break Ended::TimedOut,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
    };
    if ended == Ended::TimedOut {
        let _ = child.kill();
    }
    let _ = child.wait();
    let _ = reader.join();
    Ok(ended)
}

/// The packages, as plain files. Where apt's lists are missing or old and we may refresh them, that is tried once.
fn fetch(packages: &Path) -> Result<(), Stop> {
    download(packages).or_else(|why| if native::install_debian(&[]) { download(packages) } else { Err(why) })
}

fn download(packages: &Path) -> Result<(), Stop> {
    let out = Command::new("apt-cache").args(["depends", "linux-image-amd64"]).output();
    let text = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let Some(kernel) = text.lines().find_map(|l| l.trim().strip_prefix("Depends: linux-image")) else {
        return Err(Stop::Missing(
            "virtual machine: apt knows no package linux-image-amd64; on Debian, run `apt-get update` and try again"
                .into(),
        ));
    };
    let kernel = format!("linux-image{}", kernel.trim());
    let mut download = Command::new("apt-get");
    download.args(["-qq", "download", &kernel, "udev", "kmod"]).current_dir(packages);
    step("fetch", download)
        .map_err(|_| Stop::Missing(format!("virtual machine: the package {kernel} could not be downloaded")))
}

fn unpack(packages: &Path, kernel: &Path, extra: &Path) -> Result<(), Stop> {
    let listing = fs::read_dir(packages).map_err(|e| io_failed(packages, e))?;
    for file in listing.flatten().map(|entry| entry.path()) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_kernel = name.starts_with("linux-image");
        let mut dpkg = Command::new("dpkg")
            .arg("--fsys-tarfile")
            .arg(&file)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| Stop::Missing(format!("virtual machine: dpkg: {e}")))?;
        let mut tar = Command::new("tar");
        tar.arg("-x").arg("-C").arg(if is_kernel { kernel } else { extra });
        if is_kernel {
            tar.args(["--wildcards", "./boot/vmlinuz*"]);
            for module in BOOT_MODULES.iter().chain(&USB_MODULES) {
                tar.arg(format!("*/kernel/{module}.ko*"));
            }
        }
        if let Some(stdout) = dpkg.stdout.take() {
            tar.stdin(stdout);
        }
        let unpacked = step(&format!("unpack {name}"), tar);
        let _ = dpkg.wait();
        unpacked?;
    }
    // As on a merged system, or the overlay would hide the host's links /bin, /sbin and /lib behind folders.
    for folder in ["bin", "sbin", "lib"] {
        let (from, to) = (extra.join(folder), extra.join("usr").join(folder));
        if from.is_dir() {
            make(&to)?;
            let mut copy = Command::new("cp");
            copy.arg("-a").arg(from.join(".")).arg(&to);
            step("merge", copy)?;
            fs::remove_dir_all(&from).map_err(|e| io_failed(&from, e))?;
        }
    }
    Ok(())
}

/// busybox, the modules and the first program.
fn build_initrd(unpacked: &Path, initrd: &Path) -> Result<(), Stop> {
    let tree = initrd.with_extension("tree");
    let _ = fs::remove_dir_all(&tree);
    for folder in ["bin", "proc", "sys", "dev", "modules", "host", "extra", "rw", "new"] {
        make(&tree.join(folder))?;
    }
    let modules = find(&unpacked.join("lib/modules"), "")?.join("kernel");
    let mut order = String::new();
    for (at, module) in BOOT_MODULES.iter().chain(&USB_MODULES).enumerate() {
        let from = modules.join(format!("{module}.ko"));
        let name = Path::new(module).file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !from.exists() {
            return Err(Stop::Missing(format!(
                "virtual machine: the kernel package has no {} (or it is compressed); written for Debian 12's 6.1",
                from.display()
            )));
        }
        copy(&from, &tree.join("modules").join(format!("{name}.ko")))?;
        if at < BOOT_MODULES.len() {
            order += &format!("{name}\n");
        }
    }
    let file = tree.join("modules/order");
    fs::write(&file, order).map_err(|e| io_failed(&file, e))?;
    copy(&root().join("tools/vm/guest/initrd-init"), &tree.join("init"))?;
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].iter().map(Path::new).find(|p| p.exists());
    let Some(busybox) = busybox else {
        return Err(Stop::Missing("virtual machine: no /usr/bin/busybox; install busybox-static".into()));
    };
    copy(busybox, &tree.join("bin/busybox"))?;
    // Aside first: a machine that starts now reads the last one to its end.
    let aside = initrd.with_extension("new");
    let mut pack = Command::new("sh");
    pack.arg("-c").arg("find . | cpio -o -H newc --quiet | gzip -1 > \"$0\"").arg(&aside).current_dir(&tree);
    step("initrd", pack)?;
    fs::rename(&aside, initrd).map_err(|e| io_failed(&aside, e))?;
    fs::remove_dir_all(&tree).map_err(|e| io_failed(&tree, e))
}

/// Makes a folder and those above it.
pub fn make(folder: &Path) -> Result<(), Stop> {
    fs::create_dir_all(folder).map_err(|e| io_failed(folder, e))
}

/// A copy in `out`, for the guest to run: a build meanwhile would pull the program away under it.
pub fn keep(program: &Path, out: &Path) -> Result<PathBuf, Stop> {
    let kept = out.join(program.file_name().unwrap_or_default());
    copy(program, &kept)?;
    Ok(kept)
}

fn copy(from: &Path, to: &Path) -> Result<(), Stop> {
    fs::copy(from, to).map(drop).map_err(|e| io_failed(from, e))
}

/// The first entry of a folder whose name begins so.
fn find(folder: &Path, begins: &str) -> Result<PathBuf, Stop> {
    fs::read_dir(folder)
        .map_err(|e| io_failed(folder, e))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begins)))
        .ok_or_else(|| {
            Stop::Failed(format!("virtual machine: nothing like {begins}* in {}", folder.display()))
        })
}

/// The error of a file, as one line.
pub fn io_failed(path: &Path, error: std::io::Error) -> Stop {
    Stop::Failed(format!("virtual machine: {}: {error}", path.display()))
}

/// For a shell.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn words_reach_the_shell_unharmed() {
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), "'it'\\''s'");
    }
}
