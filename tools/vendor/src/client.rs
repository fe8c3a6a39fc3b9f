//! A client in a process of its own, given lists of steps; what it answers, line by line.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Of the figures in `/proc/PID/stat`, everywhere on x86-64.
const TICKS_PER_SECOND: f64 = 100.0;

/// Whose client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Who {
    /// OpenVINO 2021.4.2, unmodified, called from Python.
    Vendor,
    /// The same libraries, called from C++: only `config`, one `load` of a blob, `bench`es, `close`.
    VendorBench,
    /// This driver.
    Ours,
}

impl Who {
    /// Both, the vendor's first.
    pub(crate) const BOTH: [Who; 2] = [Who::Vendor, Who::Ours];

    /// For tables and files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Who::Vendor => "vendor",
            Who::VendorBench => "vendor-bench",
            Who::Ours => "ours",
        }
    }
}

/// Longest wait for the vendor's client to begin: some hundred megabytes of libraries, read under emulation.
const START: Duration = Duration::from_secs(240);

/// A running client. Ended with all it does when it is dropped.
pub(crate) struct Client {
    who: Who,
    child: Child,
    /// The vendor's, from Python: takes another list when it is done. Its start takes longer than most lists.
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    log: PathBuf,
}

impl Client {
    /// Starts `who` on these steps; its own chatter goes to `LOG.WHO` in the shared folder.
    pub(crate) fn start(who: Who, steps: &Value, log: &str) -> Result<Self, String> {
        let mut command = match who {
            Who::Vendor => python()?,
            Who::VendorBench => vendor_bench(steps)?,
            Who::Ours => {
                let mut own = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
                own.arg("ours").arg(write_steps(who, steps)?);
                own
            }
        };
        let log = Path::new("/out").join(format!("{log}.{}", who.name()));
        let errors = std::fs::File::create(&log).map_err(|e| format!("{}: {e}", log.display()))?;
        let mut child = command
            .stdin(if who == Who::Vendor { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(|e| format!("{}: {e}", command.get_program().display()))?;
        let output = child.stdout.take().ok_or("no output of the client")?;
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        let mut client = Client { who, child, input, lines, log };
        if who == Who::Vendor {
            client.give(steps)?;
            // How long Python takes to begin on a busy host is not what a step's limit is about.
            client.begins(0, START)?;
        }
        Ok(client)
    }

    /// Another list of steps, for one that is done with the last and takes more.
    pub(crate) fn give(&mut self, steps: &Value) -> Result<(), String> {
        let file = write_steps(self.who, steps)?;
        let input = self.input.as_mut().ok_or("this client takes one list")?;
        writeln!(input, "{}", file.display()).map_err(|e| format!("{}: {e}", self.who.name()))
    }

    /// The next answer that `wanted` is true for.
    pub(crate) fn wait(
        &mut self,
        patience: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, String> {
        let deadline = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    // Else the vendor's own chatter.
                    if let Ok(answer) = serde_json::from_str::<Value>(&line)
                        && answer.is_object()
                        && wanted(&answer)
                    {
                        return Ok(answer);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("{}: no answer within {patience:?}", self.who.name()));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
                    let said = std::fs::read_to_string(&self.log).unwrap_or_default();
                    let last = said.lines().last().unwrap_or("");
                    return Err(format!("{} ended early ({status}): {last}", self.who.name()));
                }
            }
        }
    }

    /// Waits for the answer to step `n`.
    pub(crate) fn step(&mut self, n: usize, patience: Duration) -> Result<Value, String> {
        self.wait(patience, |a| a["step"] == n && a["at"] == "end")
    }

    /// Waits until step `n` begins.
    pub(crate) fn begins(&mut self, n: usize, patience: Duration) -> Result<(), String> {
        self.wait(patience, |a| a["step"] == n && a["at"] == "begin").map(drop)
    }

    /// CPU seconds that it used so far, of all its threads; `None` once it is gone.
    pub(crate) fn cpu_seconds(&self) -> Option<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
        let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
        Some(ticks / TICKS_PER_SECOND)
    }

    /// Waits until it is done with its steps: everything that it opened is closed. What remains of a client that takes more.
    pub(crate) fn done(mut self, patience: Duration) -> Result<Option<Client>, String> {
        self.wait(patience, |a| a["done"] == true)?;
        Ok(self.input.is_some().then_some(self))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_steps(who: Who, steps: &Value) -> Result<PathBuf, String> {
    let file = PathBuf::from(format!("/tmp/steps.{}.json", who.name()));
    std::fs::write(&file, steps.to_string()).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(file)
}

fn setting(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|_| format!("{name} is not set"))
}

/// A program on the libraries of the wheel and of the unpacked packages.
fn on_vendor_libraries(program: &str) -> Result<Command, String> {
    let (root, site) = (setting("NCS2_VENDOR_PYTHON")?, setting("NCS2_VENDOR_SITE")?);
    let libraries = [
        format!("{site}/openvino/libs"),
        format!("{root}/usr/lib/x86_64-linux-gnu"),
        format!("{root}/lib/x86_64-linux-gnu"),
    ];
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", libraries.join(":"));
    Ok(command)
}

/// `client.py` in the unpacked CPython with the unpacked wheels.
fn python() -> Result<Command, String> {
    let (root, site) = (setting("NCS2_VENDOR_PYTHON")?, setting("NCS2_VENDOR_SITE")?);
    let mut python = on_vendor_libraries(&format!("{root}/usr/bin/python3.9"))?;
    python.env("PYTHONHOME", format!("{root}/usr"));
    python.env("PYTHONPATH", format!("{site}:{root}/usr/lib/python3/dist-packages"));
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    python.arg(setting("NCS2_VENDOR_CLIENT")?);
    Ok(python)
}

/// `bench.cpp`, which takes its steps as arguments.
fn vendor_bench(steps: &Value) -> Result<Command, String> {
    let load = &steps[1];
    let blob = load["blob"].as_str().ok_or("the second step loads no blob")?;
    let mut program = on_vendor_libraries(&setting("NCS2_VENDOR_BENCH")?)?;
    program.arg(format!("{}/openvino/libs", setting("NCS2_VENDOR_SITE")?)).args(["MYRIAD", blob]);
    program.arg(load["requests"].as_u64().unwrap_or(1).to_string());
    for step in steps.as_array().into_iter().flatten().filter(|s| s["do"] == "bench") {
        program.arg(format!(
            "{}:{}",
            step["in_flight"].as_u64().unwrap_or(0),
            step["seconds"].as_f64().unwrap_or(1.0)
        ));
    }
    Ok(program)
}

/// The firmware that comes with the wheel, for our own client.
pub(crate) fn firmware() -> Result<PathBuf, String> {
    Ok(Path::new(&setting("NCS2_VENDOR_SITE")?).join("openvino/libs/usb-ma2x8x.mvcmd"))
}
