//! A fleet's counters for other processes of the same user: `ncs2ctl top` beside a program that owns the sticks.
//!
//! Each fleet listens at `PID-N.sock` in the user's runtime folder ([`folder`]). Whoever connects gets one JSON document
//! on a line of its own (`ncs2.stats/1`, see [`super::stats_document`]), and one more for every line that he sends. There
//! is nothing to command: the socket only tells. Folder 0700, sockets 0600; sockets of dead processes are removed by
//! whoever looks into the folder next.

use std::fs::{self, DirBuilder};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

/// Most readers at a time; further ones are turned away.
pub const MAX_CLIENTS: usize = 8;
/// A reader that does not take what it asked for within this time is not served any more.
const PATIENCE: Duration = Duration::from_millis(200);
/// Until the next try to let somebody in, after one that failed.
const FULL_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
/// Requests of one reader that are answered in one turn.
const MAX_BURST: usize = 16;
/// Largest document that a client takes: 256 sticks need a tenth of it.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// Where the sockets lie: `$XDG_RUNTIME_DIR/ncs2`, else `/run/user/UID/ncs2` where there is such a folder, else
/// `ncs2-UID` in the folder for temporary files.
pub fn folder() -> PathBuf {
    // The standard has paths that are not absolute ignored.
    let set = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let uid = rustix::process::getuid().as_raw();
    let run = || Some(PathBuf::from(format!("/run/user/{uid}"))).filter(|path| path.is_dir());
    match set.or_else(run) {
        Some(base) => base.join("ncs2"),
        None => std::env::temp_dir().join(format!("ncs2-{uid}")),
    }
}

/// Makes the folder, ours alone, where it is not there. What belongs to somebody else is refused: he could put his own
/// sockets there.
pub fn prepare(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    check(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

/// `PermissionDenied` for what is no folder of this user.
fn check(folder: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(folder)?;
    if found.is_dir() && found.uid() == rustix::process::getuid().as_raw() {
        return Ok(());
    }
    let what = format!("{} is not a folder of this user", folder.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
}

/// A listening socket and its thread. Both end when it is dropped.
pub(super) struct StatsSocket {
    path: PathBuf,
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl StatsSocket {
    /// Listens in `folder`, which is made; every document that is asked for comes from `snapshot`.
    pub(super) fn serve(
        folder: &Path,
        snapshot: impl Fn() -> Value + Send + 'static,
    ) -> io::Result<StatsSocket> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        prepare(folder)?;
        clean(folder);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{}-{n}.sock", std::process::id()));
        // Left by a process that had our number.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        let (stop, stopped) = UnixStream::pair()?;
        let begin = || {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            std::thread::Builder::new()
                .name("ncs2-stats".into())
                .spawn(move || serve(&listener, &stopped, &snapshot))
        };
        match begin() {
            Ok(thread) => Ok(StatsSocket { path, stop, thread: Some(thread) }),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }
}

impl Drop for StatsSocket {
    fn drop(&mut self) {
        let _ = self.stop.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // A panic was told when it happened.
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

fn serve(listener: &UnixListener, stopped: &UnixStream, snapshot: &dyn Fn() -> Value) {
    let mut clients: Vec<UnixStream> = Vec::new();
    // Without a descriptor left, who knocks cannot be let in and knocks on: not to be looked at for a while.
    let mut full = false;
    loop {
        let knocks = if full { PollFlags::empty() } else { PollFlags::IN };
        let mut fds = vec![PollFd::new(stopped, PollFlags::IN), PollFd::new(listener, knocks)];
        fds.extend(clients.iter().map(|client| PollFd::new(client, PollFlags::IN)));
        match poll(&mut fds, full.then_some(&FULL_PAUSE)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return tracing::warn!(%error, "statistics are not served any more"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            return;
        }
        let mut ask = ready[2..].iter();
        clients.retain_mut(|client| !ask.next().is_some_and(|ready| *ready) || answer(client, snapshot));
        full = loop {
            match listener.accept() {
                // Turned away by closing: a reader sees the end at once instead of waiting.
                Ok((client, _)) if clients.len() < MAX_CLIENTS && welcome(&client, snapshot) => {
                    clients.push(client);
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => break error.kind() != std::io::ErrorKind::WouldBlock,
            }
        };
    }
}

fn welcome(client: &UnixStream, snapshot: &dyn Fn() -> Value) -> bool {
    client.set_nonblocking(false).is_ok()
        && client.set_write_timeout(Some(PATIENCE)).is_ok()
        && tell(client, snapshot)
}

/// A line for every line that came; false when the reader is gone or takes nothing.
fn answer(client: &mut UnixStream, snapshot: &dyn Fn() -> Value) -> bool {
    let mut bytes = [0; 256];
    match client.read(&mut bytes) {
        Ok(0) | Err(_) => false,
        Ok(n) => {
            let lines = bytes[..n].iter().filter(|byte| **byte == b'\n').count();
            (0..lines.min(MAX_BURST)).all(|_| tell(client, snapshot))
        }
    }
}

fn tell(mut client: &UnixStream, snapshot: &dyn Fn() -> Value) -> bool {
    let mut line = snapshot().to_string();
    line.push('\n');
    client.write_all(line.as_bytes()).is_ok()
}

/// Removes sockets that nobody listens at because their process is dead.
fn clean(folder: &Path) {
    for (path, pid) in sockets(folder) {
        let alive = rustix::process::Pid::from_raw(pid)
            .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok());
        // Both: a process that just starts has bound its socket and does not listen yet; one of another PID
        // namespace listens and is not seen.
        if !alive && UnixStream::connect(&path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Sockets of fleets and the processes in their names.
fn sockets(folder: &Path) -> Vec<(PathBuf, i32)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<(PathBuf, i32)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let pid = path.file_name()?.to_str()?.strip_suffix(".sock")?.split_once('-')?.0.parse().ok()?;
            Some((path, pid))
        })
        .collect();
    found.sort();
    found
}

/// A connection to another process's fleet.
#[derive(Debug)]
pub struct StatsReader {
    lines: BufReader<UnixStream>,
    /// The first document comes unasked.
    fresh: bool,
}

/// Connections to all fleets of this user that are open now, but for those of this process.
pub fn readers() -> Vec<StatsReader> {
    readers_in(&folder())
}

fn readers_in(folder: &Path) -> Vec<StatsReader> {
    if check(folder).is_err() {
        return Vec::new();
    }
    clean(folder);
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let others = sockets(folder).into_iter().filter(|(_, pid)| *pid != own);
    others.filter_map(|(path, _)| StatsReader::connect(&path).ok()).collect()
}

impl StatsReader {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(10 * PATIENCE))?;
        stream.set_write_timeout(Some(10 * PATIENCE))?;
        Ok(StatsReader { lines: BufReader::new(stream), fresh: true })
    }

    /// The counters now. `UnexpectedEof` when that fleet was closed or turned us away, `InvalidData` for what is no
    /// document of ours.
    #[allow(
        clippy::should_implement_trait,
        reason = "it fails; an iterator that yields errors for ever helps nobody"
    )]
    pub fn next(&mut self) -> io::Result<Value> {
        if !std::mem::take(&mut self.fresh) {
            self.lines.get_mut().write_all(b"\n")?;
        }
        let mut line = String::new();
        if (&mut self.lines).take(MAX_DOCUMENT_BYTES).read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let document: Value = serde_json::from_str(&line)?;
        match document["schema"] == super::stats_document::SCHEMA {
            true => Ok(document),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn serve(folder: &Path) -> StatsSocket {
        let count = AtomicUsize::new(0);
        StatsSocket::serve(folder, move || {
            json!({ "schema": super::super::stats_document::SCHEMA, "n": count.fetch_add(1, Ordering::SeqCst) })
        })
        .expect("a folder of ours")
    }

    #[test]
    fn a_document_at_once_and_one_for_each_line() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path().join("ncs2");
        let socket = serve(&folder);
        let mode = |path: &Path| fs::metadata(path).expect("made").permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&socket.path)), (0o700, 0o600));
        let mut reader = StatsReader::connect(&socket.path).expect("it listens");
        for n in 0..3 {
            assert_eq!(reader.next().expect("a document")["n"], n);
        }
        let mut raw = UnixStream::connect(&socket.path).expect("it listens");
        raw.write_all(b"anything\nmore\n").expect("sent");
        let mut lines = BufReader::new(raw).lines();
        for n in 3..6 {
            let line = lines.next().expect("a line").expect("text");
            assert_eq!(serde_json::from_str::<Value>(&line).expect("a document")["n"], n);
        }
        let path = socket.path.clone();
        drop(socket);
        assert!(!path.exists(), "removed with its fleet");
        assert!(reader.next().is_err(), "the end is seen");
    }

    #[test]
    fn readers_are_bounded_and_make_room_when_they_leave() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = serve(folder.path());
        let mut readers: Vec<StatsReader> =
            (0..MAX_CLIENTS).map(|_| StatsReader::connect(&socket.path).expect("it listens")).collect();
        readers.iter_mut().for_each(|reader| assert!(reader.next().is_ok()));
        let mut late = StatsReader::connect(&socket.path).expect("it listens");
        assert!(late.next().is_err(), "turned away");
        readers.pop();
        // The server sees the end of one before it takes the next, or turns one more away: either way soon.
        let mut tries = (0..1000).map(|_| StatsReader::connect(&socket.path).expect("it listens").next());
        assert!(tries.any(|document| document.is_ok()), "room again");
    }

    #[test]
    fn sockets_of_the_dead_are_removed_and_folders_of_others_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // No process has this number: it is above the kernel's largest.
        let dead = folder.path().join("2147483647-0.sock");
        drop(UnixListener::bind(&dead).expect("bound"));
        assert!(dead.exists());
        let other = folder.path().join("notes.txt");
        fs::write(&other, "mine").expect("written");
        assert!(readers_in(folder.path()).is_empty());
        assert!(!dead.exists() && other.exists());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).expect("made");
        assert!(prepare(&link).is_err(), "a link may lead anywhere");
    }
}
