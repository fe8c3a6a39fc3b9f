//! The client's half of the line protocol: the sticks of a server in another process, and what they do.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ncs2::StickId;
use ncs2::error::{Error, ErrorKind, Result};
use ncs2::transport::{Connection, MemoryKind, Port, SocketTransport, TransportInfo};
use ncs2::wire::WireVersion;

use super::{Command, StickStatus};

/// Longest line that a client takes from a server.
const MAX_LINE: usize = 4096;
/// Most sticks that a client believes.
const MAX_STICKS: usize = 1024;
/// How long a server may take for a line.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the sticks of the server at `path` are doing; `path` is its control socket or that of the socket face. `NotFound`
/// where nobody listens.
pub fn status(path: &Path) -> Result<Vec<StickStatus>> {
    list(path, "ask for the state of virtual sticks")
}

/// Does something to stick `n` of the server at `path`. `InvalidInput` where it has no such stick.
pub fn command(path: &Path, n: usize, command: Command) -> Result<()> {
    const OP: &str = "command virtual stick";
    let mut socket = reach(path, OP, PATIENCE)?;
    match ask(&mut socket, &format!("{} {n}", command.word())) {
        Ok(_) => Ok(()),
        Err(why) => Err(Error::new(ErrorKind::InvalidInput, OP).detail(format!("{}: {why}", path.display()))),
    }
}

fn list(path: &Path, op: &'static str) -> Result<Vec<StickStatus>> {
    let mut socket = reach(path, op, PATIENCE)?;
    let answer = ask(&mut socket, "list").map_err(|e| bad_server(path, op, &e))?;
    let count = answer.parse().ok().filter(|&n: &usize| n <= MAX_STICKS);
    let count = count.ok_or_else(|| bad_server(path, op, &format!("expected a number, found {answer:?}")))?;
    (0..count)
        .map(|_| {
            let line = read_line(&mut socket).map_err(|e| bad_server(path, op, &e.to_string()))?;
            let words = line.split_once(' ').map_or("", |(_, words)| words);
            words.parse().map_err(|why: String| bad_server(path, op, &why))
        })
        .collect()
}

/// One port per stick of the server at `path`, for [`ncs2::Fleet`]; named `sim0` and so on. `NotFound` where nobody
/// listens.
pub fn ports(path: &Path) -> Result<Vec<Port>> {
    let sticks = list(path, "list virtual sticks")?;
    Ok(sticks
        .into_iter()
        .enumerate()
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
        Error::new(kind, op)
            .detail(format!(
                "{}: no virtual sticks are served there, as `ncs2ctl sim serve --socket` does",
                path.display()
            ))
            .caused_by(e)
    };
    let socket = UnixStream::connect(path).map_err(failed)?;
    socket.set_read_timeout(Some(timeout.max(Duration::from_millis(1)))).map_err(failed)?;
    Ok(socket)
}

/// What follows `ok`, or why not.
fn ask(socket: &mut UnixStream, line: &str) -> std::result::Result<String, String> {
    // A server that was just ended may still hold its socket: whoever comes then is turned away in the middle.
    let said = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe => {
            format!("no virtual sticks are served there any more: {e}")
        }
        _ => e.to_string(),
    };
    socket.write_all(format!("{line}\n").as_bytes()).map_err(said)?;
    let answer = read_line(socket).map_err(said)?;
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
    let (kind, why) = match why.strip_prefix("busy: ") {
        Some(why) => (ErrorKind::InUse, why),
        None => (ErrorKind::Unplugged, why),
    };
    Error::new(kind, op).detail(format!("{}: {why}", path.display()))
}
