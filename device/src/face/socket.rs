//! A stick for another process over a Unix socket (`--sim unix:PATH`): a line to say which stick, then the frames of
//! [`ncs2::transport::SocketDevice`]. And the client's half of that line, [`ports`].
//!
//! The line protocol is that of the control socket (`list`, `crash N`, …) and, on this face, `connect N`: the stick is
//! booted afresh, then comes `ok`, and from there on the connection is the stick's two pipes.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ncs2::StickId;
use ncs2::clock::Instant;
use ncs2::error::{Error, ErrorKind, Result};
use ncs2::transport::{
    Connection, DeviceEnd, InWriter, MemoryKind, Port, Reactor, SocketDevice, SocketTransport, Token,
    Transfer, TransferError, TransportInfo,
};
use ncs2::wire::WireVersion;

use super::Command;
use crate::{Engine, LinkSpeed, Timing, VirtualStick};

/// Longest line that a client takes from a server.
const MAX_LINE: usize = 4096;

/// An OUT transfer that crosses the wire, or that the stick does not take yet.
struct Sent {
    transfer: Transfer,
    taken: usize,
    due: Instant,
}

/// The stick's end of one connection.
pub(crate) struct Wire {
    end: DeviceEnd,
    writer: InWriter,
    out: VecDeque<Sent>,
    token: Token,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("out", &self.out.len()).finish_non_exhaustive()
    }
}

impl Wire {
    pub(crate) fn new(socket: OwnedFd, link: &LinkSpeed, reactor: &mut Reactor) -> std::io::Result<Self> {
        let end = DeviceEnd::from(SocketDevice::new(socket)?);
        let wait = end.wait_on().ok_or(std::io::ErrorKind::Unsupported)?;
        let token = reactor.register(wait.fd, wait.interest())?;
        Ok(Wire { end, writer: InWriter::new(link.max_packet_bytes), out: VecDeque::new(), token })
    }

    /// The stick left the bus: what the host posted ends.
    pub(crate) fn close(mut self, reactor: &mut Reactor) {
        self.end.disconnect();
        self.give_back(TransferError::Gone);
        reactor.deregister(self.token);
    }

    /// Ends it without a word.
    pub(crate) fn cut(self, reactor: &mut Reactor) {
        reactor.deregister(self.token);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.end.is_closed()
    }

    /// Does all that can be done now, and says to the reactor what it waits for.
    pub(crate) fn serve(&mut self, stick: &mut VirtualStick, reactor: &mut Reactor, now: Instant) -> bool {
        if self.end.take_recall() {
            self.give_back(TransferError::Cancelled);
        }
        let mut progress = self.pull(stick, now);
        progress |= self.push(stick, now);
        if progress || self.end.arm(stick.poll_in(now).is_some()) {
            return true;
        }
        if let Some(wait) = self.end.wait_on()
            && let Err(error) = reactor.set_interest(self.token, wait.interest())
        {
            tracing::error!(%error, "a connection cannot be watched any more");
        }
        false
    }

    /// When [`Self::serve`] is due for what crosses the wire.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        self.out.front().map(|sent| sent.due).filter(|due| *due > now)
    }

    fn give_back(&mut self, reason: TransferError) {
        for sent in self.out.drain(..) {
            self.end.complete_out(sent.transfer, Err(reason));
        }
        self.writer.release(&mut self.end, reason);
    }

    fn pull(&mut self, stick: &mut VirtualStick, now: Instant) -> bool {
        let identity = stick.identity();
        while let Some(transfer) = self.end.next_out() {
            let due = stick.out_arrival(transfer.range.len(), now);
            self.out.push_back(Sent { transfer, taken: 0, due });
        }
        let mut progress = false;
        while let Some(sent) = self.out.front_mut().filter(|sent| sent.due <= now) {
            if stick.identity() != identity {
                break;
            }
            let taken = stick.handle_out(&sent.transfer.bytes()[sent.taken..], now);
            sent.taken += taken;
            progress |= taken > 0;
            if sent.taken < sent.transfer.range.len() || stick.faults().hung {
                break;
            }
            if let Some(sent) = self.out.pop_front() {
                self.end.complete_out(sent.transfer, Ok(()));
                progress = true;
            }
        }
        progress
    }

    fn push(&mut self, stick: &mut VirtualStick, now: Instant) -> bool {
        let mut progress = false;
        while let Some(message) = stick.poll_in(now) {
            let empty = message.is_empty();
            let taken = self.writer.write(&mut self.end, message, empty);
            if taken == 0 && !empty {
                break;
            }
            stick.consume_in(taken);
            progress = true;
        }
        progress
    }
}

/// What the server says when a stick is ready, the rest of the `ok` line.
pub(crate) fn ready_line(link: &LinkSpeed) -> String {
    format!("ok {} {}\n", link.max_packet_bytes, link.speed_mbps)
}

/// What a server says of one of its sticks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Served {
    /// Name of its profile.
    pub profile: String,
    /// What its outputs are made of.
    pub engine: Engine,
    /// How long things take.
    pub timing: Timing,
    /// False when the server's CPU was slower than the model.
    pub paced: bool,
    /// It was on the bus, booted.
    pub booted: bool,
    /// A host is connected.
    pub connected: bool,
}

/// What the server at `path` says of its sticks, in their order. `NotFound` where nobody listens.
pub fn served(path: &Path) -> Result<Vec<Served>> {
    const OP: &str = "list virtual sticks";
    let mut socket = reach(path, OP, Duration::from_secs(5))?;
    let answer = ask(&mut socket, "list").map_err(|e| bad_server(path, OP, &e))?;
    let count: usize =
        answer.parse().map_err(|_| bad_server(path, OP, &format!("expected a number, found {answer:?}")))?;
    (0..count)
        .map(|_| {
            let line = read_line(&mut socket).map_err(|e| bad_server(path, OP, &e.to_string()))?;
            parse(&line).ok_or_else(|| bad_server(path, OP, &format!("expected a stick, found {line:?}")))
        })
        .collect()
}

fn parse(line: &str) -> Option<Served> {
    let value = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key));
    let has = |word: &str| line.split_whitespace().any(|w| w == word);
    Some(Served {
        profile: value("profile=")?.to_owned(),
        engine: [Engine::Execute, Engine::Hash].into_iter().find(|e| value("engine=") == Some(e.as_str()))?,
        timing: [Timing::Model, Timing::Zero].into_iter().find(|t| value("timing=") == Some(t.as_str()))?,
        paced: value("paced=")? == "true",
        booted: has("booted"),
        connected: has("connected"),
    })
}

/// Has the server at `path` do `command` to its stick `n`.
pub fn command(path: &Path, command: Command, n: usize) -> Result<()> {
    const OP: &str = "command virtual stick";
    let mut socket = reach(path, OP, Duration::from_secs(5))?;
    let word = Command::WORDS.iter().find(|(_, c)| *c == command).map_or("", |(word, _)| *word);
    ask(&mut socket, &format!("{word} {n}")).map(drop).map_err(|e| bad_server(path, OP, &e))
}

/// One port per stick of the server at `path`, for [`ncs2::Fleet`]; named `sim0` and so on. `NotFound` where nobody
/// listens.
pub fn ports(path: &Path) -> Result<Vec<Port>> {
    let sticks = served(path)?.into_iter().enumerate();
    Ok(sticks
        .map(|(n, stick)| {
            let path: PathBuf = path.to_path_buf();
            Port::new(StickId::sim(n), move |timeout| connect(&path, n, timeout)).simulated(stick.profile)
        })
        .collect())
}

fn connect(path: &Path, n: usize, timeout: Duration) -> Result<Connection> {
    const OP: &str = "open virtual stick";
    let id = StickId::sim(n);
    let mut socket = reach(path, OP, timeout).map_err(|e| e.on(&id))?;
    let failed = |why: String| bad_server(path, OP, &why).on(&id);
    let answer = ask(&mut socket, &format!("connect {n}")).map_err(failed)?;
    let mut words = answer.split_whitespace().map(str::parse::<u32>);
    let (Some(Ok(max_packet)), Some(Ok(speed_mbps))) = (words.next(), words.next()) else {
        return Err(failed(format!("expected packet size and speed, found {answer:?}")));
    };
    let info = TransportInfo {
        max_packet_bytes: max_packet as usize,
        speed_mbps,
        memory: MemoryKind::Copied,
        simulated: true,
    };
    // The transport waits by itself from here on.
    let transport = socket
        .set_read_timeout(None)
        .and_then(|()| SocketTransport::new(socket, info))
        .map_err(|e| Error::new(ErrorKind::Unsupported, OP).on(&id).caused_by(e))?;
    Ok(Connection { transport: Box::new(transport), version: WireVersion::V1 })
}

fn reach(path: &Path, op: &'static str, timeout: Duration) -> Result<UnixStream> {
    let failed = |e: std::io::Error| {
        let kind = match e.kind() {
            std::io::ErrorKind::PermissionDenied => ErrorKind::Permission,
            _ => ErrorKind::NotFound,
        };
        let mend = "start them with `ncs2ctl sim serve --socket PATH`";
        Error::new(kind, op)
            .detail(format!("{}: no virtual sticks are served there; {mend}", path.display()))
            .caused_by(e)
    };
    let socket = UnixStream::connect(path).map_err(failed)?;
    socket.set_read_timeout(Some(timeout.max(Duration::from_millis(1)))).map_err(failed)?;
    Ok(socket)
}

/// What follows `ok`, or why not.
fn ask(socket: &mut UnixStream, line: &str) -> std::result::Result<String, String> {
    socket.write_all(format!("{line}\n").as_bytes()).map_err(|e| e.to_string())?;
    let answer = read_line(socket).map_err(|e| e.to_string())?;
    match answer.strip_prefix("ok") {
        Some(rest) => Ok(rest.trim().to_owned()),
        None => Err(answer.strip_prefix("error ").unwrap_or(&answer).to_owned()),
    }
}

/// Byte by byte: what is behind the line belongs to the transport.
fn read_line(socket: &mut UnixStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0u8];
    loop {
        match socket.read(&mut byte) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if byte[0] == b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
            Ok(_) if line.len() >= MAX_LINE => return Err(std::io::ErrorKind::InvalidData.into()),
            Ok(_) => line.push(byte[0]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn bad_server(path: &Path, op: &'static str, why: &str) -> Error {
    Error::new(ErrorKind::Unplugged, op).detail(format!("{}: {why}", path.display()))
}
