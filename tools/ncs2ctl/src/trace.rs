//! `--trace FILE`: every transfer of every stick, written down as it crosses its transport.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ncs2::clock::Monotonic;
use ncs2::transport::{Connection, TraceSink, Tracer};
use ncs2::{ErrorKind, Port};

use crate::failure::{Failure, Result};

/// An open trace. Clones of its sink live in the ports.
pub struct Trace {
    path: PathBuf,
    sink: TraceSink,
}

impl Trace {
    /// Starts a file: text for `.log` and `.txt`, a capture for `.pcapng`.
    pub fn create(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let sink = TraceSink::new(Arc::new(Monotonic::new()));
        let create = || File::create(path).map_err(|e| Failure::file(path, "write", &e));
        let sink = match extension {
            "log" | "txt" => sink.text(create()?),
            "pcapng" => sink.pcapng(create()?),
            _ => {
                return Err(Failure::usage(
                    format!("--trace {}: expected a name that ends with .log or .pcapng", path.display()),
                    ".log is text, .pcapng is for Wireshark and `ncs2ctl decode`",
                ));
            }
        };
        Ok(Trace { path: path.to_owned(), sink })
    }

    /// The same port with everything that crosses it written down.
    pub fn port(&self, port: Port) -> Port {
        let (sink, id) = (self.sink.clone(), port.id().clone());
        if let Some(profile) = port.profile() {
            sink.note(&id, format!("simulated, profile {profile}"));
        }
        port.through(move |Connection { transport, version }| {
            let tracer = Tracer::new(transport, sink.clone(), id.clone());
            Connection { transport: Box::new(tracer), version }
        })
    }

    /// Writes out what is buffered; an error when the file is not whole.
    pub fn finish(self) -> Result<()> {
        self.sink.flush();
        match self.sink.failed() {
            None => Ok(()),
            Some(kind) => Err(Failure::new(
                ErrorKind::Unsupported,
                format!("{}: the trace is not whole: {kind}", self.path.display()),
                "make room on the disk, or trace to another one",
            )),
        }
    }
}
