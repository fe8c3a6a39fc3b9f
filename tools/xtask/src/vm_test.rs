//! `cargo xtask vm-test`: a stock Debian kernel in QEMU, virtual sticks behind its USB, the tests of `tools/vm` inside.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Stop;
use crate::machine::{self, Emulator, Machine, keep, make, quote};
use crate::run::{cargo, root, step};

const STICKS: usize = 8;
/// One face's run, from QEMU's start, on a machine that is busy with other things; on an idle one it is a sixth of it.
const LIMIT: Duration = Duration::from_secs(900);

/// How often a test may run. One that passes only later is reported as FLAKY.
const TRIES: u32 = 3;
/// So many tests that failed are tried again; more than that is no accident.
const MOST_AGAIN: usize = 4;

/// How the sticks reach the guest's kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Face {
    /// Emulator on the host, QEMU's usb-redir behind its xHCI.
    Usbredir,
    /// Emulator in the guest on virtio-serial ports that lead to QEMU's usb-redir. Only when it is asked for.
    Serial,
    /// Emulator in the guest, its kernel's vhci-hcd.
    Vhci,
}

impl Face {
    fn name(self) -> &'static str {
        match self {
            Face::Usbredir => "usbredir",
            Face::Serial => "serial",
            Face::Vhci => "vhci",
        }
    }
}

/// `[usbredir|serial|vhci] [TEST…]`: usbredir and vhci unless one is named; tests whose name contains one of the words.
pub fn run(args: &[&str]) -> Result<(), Stop> {
    let (faces, tests) = match args {
        ["usbredir", tests @ ..] => (vec![Face::Usbredir], tests),
        ["serial", tests @ ..] => (vec![Face::Serial], tests),
        ["vhci", tests @ ..] => (vec![Face::Vhci], tests),
        tests => (vec![Face::Usbredir, Face::Vhci], tests),
    };
    if let Some(flag) = tests.iter().find(|word| word.starts_with('-')) {
        return Err(Stop::Usage(format!(
            "vm-test: unknown option {flag}\n\nUsage: cargo xtask vm-test [usbredir|serial|vhci] [TEST…]"
        )));
    }
    machine::programs()?;
    // The whole workspace, as `cargo xtask test` builds it: with the same features nothing is built twice.
    step("build", cargo(&["build", "--quiet", "--workspace", "--bins", "--examples"]))?;
    let machine = Machine::prepare()?;
    // Side by side: a good part of each is waiting, for watchdogs and for sticks that come back.
    let verdicts: Vec<Result<(), Stop>> = std::thread::scope(|scope| {
        let machine = &machine;
        let runs: Vec<_> =
            faces.iter().map(|&face| scope.spawn(move || timed(machine, face, tests))).collect();
        let ended = |run: std::thread::ScopedJoinHandle<'_, _>| {
            run.join().unwrap_or_else(|_| Err(Stop::Failed("vm-test: a thread panicked".into())))
        };
        runs.into_iter().map(ended).collect()
    });
    let mut failed = Vec::new();
    for verdict in verdicts {
        match verdict {
            Ok(()) => {}
            Err(Stop::Failed(why)) => failed.push(why),
            Err(stop) => return Err(stop),
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Stop::Failed(failed.join("\n"))) }
}

fn timed(machine: &Machine, face: Face, tests: &[&str]) -> Result<(), Stop> {
    println!("=== vm-test: {STICKS} simulated sticks behind {}", face.name());
    let start = Instant::now();
    let mut verdict = test(machine, face, tests);
    // As nextest does with the others: on a machine that other work keeps busy, one may miss its time.
    for again in 2..=TRIES {
        let failed = failures(face);
        if !matches!(verdict, Err(Stop::Failed(_))) || !(1..=MOST_AGAIN).contains(&failed.len()) {
            break;
        }
        let names: Vec<&str> = failed.iter().map(String::as_str).collect();
        println!("=== vm-test: {}: try {again} of {TRIES}: {}", face.name(), names.join(" "));
        verdict = test(machine, face, &names);
        if verdict.is_ok() {
            println!("=== vm-test: {}: FLAKY, passed at try {again}: {}", face.name(), names.join(" "));
        }
    }
    println!("=== vm-test: {} took {:.1} s", face.name(), start.elapsed().as_secs_f64());
    verdict
}

/// Names of the tests that failed in a face's last run.
fn failures(face: Face) -> Vec<String> {
    let log = fs::read_to_string(root().join("target/vm").join(face.name()).join("log")).unwrap_or_default();
    let name = |line: &str| Some(line.strip_prefix("FAIL ")?.split_whitespace().next()?.to_owned());
    log.lines().filter_map(name).collect()
}

fn test(machine: &Machine, face: Face, tests: &[&str]) -> Result<(), Stop> {
    let out = root().join("target/vm").join(face.name());
    let _ = fs::remove_dir_all(&out);
    make(&out)?;
    // Sockets need short paths, and the workspace may lie deep.
    let sockets = std::env::temp_dir().join(format!("ncs2-{}-{}", face.name(), std::process::id()));
    make(&sockets)?;
    let result = test_with(machine, face, tests, &out, &sockets);
    let _ = fs::remove_dir_all(&sockets);
    result
}

fn test_with(machine: &Machine, face: Face, tests: &[&str], out: &Path, sockets: &Path) -> Result<(), Stop> {
    let target = root().join("target/debug");
    let emulator = keep(&target.join("examples/sim_serve"), out)?;
    let program = keep(&target.join("ncs2-vm-tests"), out)?;
    // Beside it, where it looks for it.
    keep(&target.join("ncs2ctl"), out)?;
    let quoted: Vec<String> = tests.iter().map(|word| quote(word)).collect();
    let tester = format!("{} {}", quote(&program.to_string_lossy()), quoted.join(" "));
    let inside = |options: &str| {
        // The emulator lives as long as its standard input.
        format!(
            "mkfifo /run/hold\n{} {options} --sticks {STICKS} --any-firmware --control /run/ncs2-control \
                 </run/hold >/out/emulator 2>&1 &\nexec 9>/run/hold\n{tester}\nstatus=$?\nexec 9>&-\nwait\nexit $status\n",
            quote(&emulator.to_string_lossy())
        )
    };
    let (control, command) = match face {
        Face::Usbredir => ("/dev/virtio-ports/ncs2-control".to_owned(), format!("{tester}\n")),
        Face::Serial => (
            "/run/ncs2-control".to_owned(),
            format!("udevadm settle\n{}", inside("--usbredir /dev/virtio-ports/stick")),
        ),
        Face::Vhci => ("/run/ncs2-control".to_owned(), inside("--vhci")),
    };
    let environment =
        format!("export NCS2_VM_FACE={} NCS2_VM_STICKS={STICKS} NCS2_VM_CONTROL={control}\n", face.name());
    // vhci's threads bounce between two virtual CPUs that share two busy cores: 16 ms a message instead of 0.5.
    let cpus = if face == Face::Vhci { 1 } else { 2 };
    let mut qemu = machine.boot(cpus, out, &environment, &command)?;
    let mut host_emulator = None;
    if face == Face::Usbredir {
        let (stick, control) = (sockets.join("stick"), sockets.join("control"));
        let mut program = Command::new(&emulator);
        program.arg("--usbredir").arg(&stick).arg("--control").arg(&control);
        program.args(["--any-firmware", "--sticks", &STICKS.to_string()]);
        host_emulator = Some(Emulator::start(program, &control, &out.join("emulator"))?);
        machine::add_usbredir(&mut qemu, STICKS, &stick, &control);
    }
    if face == Face::Serial {
        qemu.args(["-device", "virtio-serial-pci,max_ports=16", "-device", "qemu-xhci,id=x,p2=15,p3=15"]);
        for n in 0..STICKS {
            // A port of the guest, joined to a stick of the guest by a socket that only QEMU uses.
            let socket = sockets.join(format!("serial.{n}"));
            qemu.arg("-chardev").arg(format!("socket,id=g{n},path={},server=on,wait=off", socket.display()));
            qemu.arg("-device").arg(format!("virtserialport,chardev=g{n},name=stick{n}"));
            qemu.arg("-chardev").arg(format!("socket,id=r{n},path={},reconnect=1", socket.display()));
            qemu.arg("-device").arg(format!("usb-redir,chardev=r{n},bus=x.0,port={}", n + 1));
        }
    }
    let verdict = machine::run(face.name(), qemu, out, LIMIT);
    drop(host_emulator);
    verdict
}
