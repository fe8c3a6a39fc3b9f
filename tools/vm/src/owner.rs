//! Another process that owns a stick: the same program, started with `--own`, told what to do line by line.
//!
//! It says `opening`, then `opened` and how it waits, then `loaded`; or `error` and why. `run N` answers `ran N` when as many inferences were answered
//! rightly; `close`, or the end of its input, ends it with `closed`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ncs2::StickId;
use ncs2::runtime::LoadOptions;
use ncs2::transport::ReactorKind;
use rustix::process::{Pid, Signal, kill_process};

use crate::ensure;
use crate::{Verdict, fleet};

/// Longest wait for a line: a boot with resets in between, under emulation.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What the child does: `--own ID MODEL`.
pub(crate) fn main(args: &[String]) -> ExitCode {
    let [id, model] = args else {
        println!("error usage: --own ID MODEL");
        return ExitCode::from(64);
    };
    match own(id, model) {
        Ok(()) => {
            println!("closed");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("error {why}");
            ExitCode::from(1)
        }
    }
}

fn own(id: &str, model: &str) -> Verdict {
    println!("opening");
    let blob = fleet::blob(model)?;
    let fleet = fleet::open_ports(&[StickId::new(id)])?;
    let detected = ReactorKind::detect();
    match detected.why_not {
        None => println!("opened {}", detected.kind.as_str()),
        Some(why) => println!("opened {}, because {why}", detected.kind.as_str()),
    }
    let graph = fleet.load(&blob, LoadOptions::default()).map_err(|e| fleet::chain(&e))?;
    let expected = fleet::expected(&blob, 8)?;
    println!("loaded");
    for line in std::io::stdin().lines() {
        let line = line.map_err(|e| e.to_string())?;
        match line.split_once(' ').map(|(word, n)| (word, n.parse())) {
            Some(("run", Ok(count))) => {
                let answers = fleet::run_of(&graph, &blob, count, expected.len())?;
                fleet::compare(&answers, &expected)?;
                println!("ran {count}");
            }
            _ if line == "close" => break,
            _ => return Err(format!("usage: run N or close, not {line}")),
        }
    }
    drop(graph);
    fleet.close(Duration::from_secs(10)).map_err(|e| fleet::chain(&e))
}

/// The parent's hand on it. Killed when dropped.
pub(crate) struct Owner {
    child: Child,
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

/// This very program.
pub(crate) fn program() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|e| format!("where this program is: {e}"))
}

impl Owner {
    /// Takes the stick at this port and loads this model.
    pub(crate) fn start(id: &StickId, model: &str) -> Result<Self, String> {
        let mut command = Command::new(program()?);
        command.args(["--own", id.as_str(), model]);
        Self::spawn(command)
    }

    /// Whatever speaks the same lines.
    pub(crate) fn spawn(mut command: Command) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}", command.get_program().to_string_lossy()))?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or("no output of the other process")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Owner { child, input, lines })
    }

    /// Its next line.
    pub(crate) fn line(&mut self, patience: Duration) -> Result<String, String> {
        self.lines.recv_timeout(patience).map_err(|e| match e {
            mpsc::RecvTimeoutError::Timeout => format!("the other process said nothing for {patience:?}"),
            mpsc::RecvTimeoutError::Disconnected => "the other process ended without a word".into(),
        })
    }

    /// Its next line is this one.
    pub(crate) fn says(&mut self, wanted: &str) -> Verdict {
        let line = self.line(PATIENCE)?;
        ensure!(line == wanted, "the other process: expected `{wanted}`, found `{line}`");
        Ok(())
    }

    /// Until it holds the stick and has loaded its model; how it waits: `io_uring`, or `epoll` and why.
    pub(crate) fn owns(&mut self) -> Result<String, String> {
        self.says("opening")?;
        let line = self.line(PATIENCE)?;
        let kind = line.strip_prefix("opened ").ok_or_else(|| format!("the other process: {line}"))?;
        self.says("loaded")?;
        Ok(kind.to_owned())
    }

    pub(crate) fn tell(&mut self, line: &str) -> Verdict {
        let input = self.input.as_mut().ok_or("its input is closed")?;
        writeln!(input, "{line}").map_err(|e| format!("the other process, {line}: {e}"))
    }

    /// As many inferences, all right.
    pub(crate) fn runs(&mut self, count: usize) -> Verdict {
        self.tell(&format!("run {count}"))?;
        self.says(&format!("ran {count}"))
    }

    /// Closes the stick and ends.
    pub(crate) fn closes(mut self) -> Verdict {
        self.tell("close")?;
        self.says("closed")?;
        let status = self.wait(PATIENCE)?;
        ensure!(status.success(), "the other process: {status}");
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) -> Verdict {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).ok_or("no process id")?;
        kill_process(pid, signal).map_err(|e| format!("{signal:?}: {e}"))
    }

    /// kill -9; gone when this returns.
    pub(crate) fn kill(mut self) -> Verdict {
        self.signal(Signal::KILL)?;
        self.wait(PATIENCE).map(drop)
    }

    /// Until it has ended.
    pub(crate) fn wait(&mut self, patience: Duration) -> Result<ExitStatus, String> {
        let deadline = Instant::now() + patience;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() > deadline => {
                    return Err(format!("the other process did not end within {patience:?}"));
                }
                Ok(None) => crate::bench::pause(),
                Err(e) => return Err(format!("the other process: {e}")),
            }
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
