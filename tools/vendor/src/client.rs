//! A client in a process of its own, given a list of steps; what it answers, line by line.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Of the figures in `/proc/PID/stat`, everywhere on x86-64.
const TICKS_PER_SECOND: f64 = 100.0;

/// Whose client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Who {
    /// OpenVINO 2021.4.2, unmodified.
    Vendor,
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
            Who::Ours => "ours",
        }
    }
}

/// A running client. Ended with all it does when it is dropped.
pub(crate) struct Client {
    who: Who,
    child: Child,
    lines: Receiver<String>,
    log: PathBuf,
}

impl Client {
    /// Starts `who` on these steps; its own chatter goes to `LOG.WHO` in the shared folder.
    pub(crate) fn start(who: Who, steps: &Value, log: &str) -> Result<Self, String> {
        let file = PathBuf::from(format!("/tmp/steps.{}.json", who.name()));
        std::fs::write(&file, steps.to_string()).map_err(|e| format!("{}: {e}", file.display()))?;
        let mut command = match who {
            Who::Vendor => python()?,
            Who::Ours => {
                let mut own = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
                own.arg("ours");
                own
            }
        };
        let log = Path::new("/out").join(format!("{log}.{}", who.name()));
        let errors = std::fs::File::create(&log).map_err(|e| format!("{}: {e}", log.display()))?;
        let mut child = command
            .arg(&file)
            .stdin(Stdio::null())
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
        Ok(Client { who, child, lines, log })
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

    /// Waits until the process ends by itself.
    pub(crate) fn ends(mut self, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return if status.success() {
                    Ok(())
                } else {
                    Err(format!("{} ended with {status}", self.who.name()))
                };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(format!("{} did not end within {patience:?}", self.who.name()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The unpacked CPython with the unpacked wheels, on its own libraries.
fn python() -> Result<Command, String> {
    let setting = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
    let (root, site) = (setting("NCS2_VENDOR_PYTHON")?, setting("NCS2_VENDOR_SITE")?);
    let mut python = Command::new(format!("{root}/usr/bin/python3.9"));
    python.env("PYTHONHOME", format!("{root}/usr"));
    python.env("PYTHONPATH", format!("{site}:{root}/usr/lib/python3/dist-packages"));
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    let libraries = [
        format!("{site}/openvino/libs"),
        format!("{root}/usr/lib/x86_64-linux-gnu"),
        format!("{root}/lib/x86_64-linux-gnu"),
    ];
    python.env("LD_LIBRARY_PATH", libraries.join(":"));
    python.arg(setting("NCS2_VENDOR_CLIENT")?);
    Ok(python)
}

/// The firmware that comes with the wheel, for our own client.
pub(crate) fn firmware() -> Result<PathBuf, String> {
    let site = std::env::var("NCS2_VENDOR_SITE").map_err(|_| "NCS2_VENDOR_SITE is not set")?;
    Ok(Path::new(&site).join("openvino/libs/usb-ma2x8x.mvcmd"))
}
