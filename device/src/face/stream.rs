//! A byte stream that never blocks, watched by a reactor: Unix socket, TCP, or a character device (virtio-serial).

use std::fs::{self, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use ncs2::error::{Error, ErrorKind, Result};
use ncs2::transport::{Interest, Reactor, Token};
use rustix::io::Errno;

use super::Address;

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Stream {
    fd: OwnedFd,
    token: Token,
    /// The reactor reports changes only, so what it said is remembered until the kernel says EAGAIN.
    readable: bool,
    writable: bool,
}

/// What a read or a write came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Moved {
    Bytes(usize),
    /// Later.
    Nothing,
    /// The other side is gone.
    Closed,
}

impl Stream {
    pub(crate) fn new(fd: OwnedFd, reactor: &mut Reactor) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let token = reactor.register(fd.as_fd(), Interest::READ)?;
        Ok(Stream { fd, token, readable: true, writable: true })
    }

    /// The reactor reported something.
    pub(crate) fn notice(&mut self, tokens: &[Token]) {
        if tokens.contains(&self.token) {
            self.readable = true;
            self.writable = true;
        }
    }

    pub(crate) fn read(&mut self, into: &mut [u8]) -> Moved {
        if !self.readable {
            return Moved::Nothing;
        }
        match rustix::io::read(&self.fd, into) {
            Ok(0) => Moved::Closed,
            Ok(n) => Moved::Bytes(n),
            Err(Errno::AGAIN) => {
                self.readable = false;
                Moved::Nothing
            }
            Err(Errno::INTR) => Moved::Bytes(0),
            Err(_) => Moved::Closed,
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8], reactor: &mut Reactor) -> Moved {
        if bytes.is_empty() || !self.writable {
            return Moved::Nothing;
        }
        let result = rustix::io::write(&self.fd, bytes);
        // Watched for room only while there is none: a reader that keeps up would wake us for each of its reads.
        let interest = Interest { readable: true, writable: result == Err(Errno::AGAIN) };
        if reactor.set_interest(self.token, interest).is_err() {
            return Moved::Closed;
        }
        match result {
            Ok(n) => Moved::Bytes(n),
            Err(Errno::AGAIN) => {
                self.writable = false;
                Moved::Nothing
            }
            Err(Errno::INTR) => Moved::Bytes(0),
            Err(_) => Moved::Closed,
        }
    }

    /// Ends it.
    pub(crate) fn close(self, reactor: &mut Reactor) {
        reactor.deregister(self.token);
    }

    /// Hands the descriptor on, no longer watched.
    pub(crate) fn into_fd(self, reactor: &mut Reactor) -> OwnedFd {
        reactor.deregister(self.token);
        self.fd
    }
}

/// Where connections come from.
#[derive(Debug)]
pub(crate) struct Door {
    kind: Kind,
    token: Option<Token>,
    waiting: bool,
}

#[derive(Debug)]
enum Kind {
    Unix {
        listener: UnixListener,
        path: PathBuf,
        /// Device and inode of what was bound: somebody else's file may lie there later.
        node: (u64, u64),
    },
    Tcp(TcpListener),
    /// Opened, not accepted; one connection at a time.
    Device(PathBuf),
}

impl Door {
    /// Listens. A socket is for its owner alone (mode 0600); TCP is what the address says.
    pub(crate) fn open(address: &Address, reactor: &mut Reactor) -> Result<Self> {
        const OP: &str = "serve virtual sticks";
        let failed = |e: io::Error| {
            let kind = match e.kind() {
                io::ErrorKind::AddrInUse => ErrorKind::InUse,
                io::ErrorKind::PermissionDenied => ErrorKind::Permission,
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Unsupported,
            };
            let error = Error::new(kind, OP);
            if e.kind() == io::ErrorKind::AlreadyExists {
                return error
                    .detail(format!("{address}: cannot listen: something that is no socket lies there"));
            }
            error.detail(format!("{address}: cannot listen")).caused_by(e)
        };
        let kind = match address {
            Address::Unix(path) => {
                let listener = bind(path).map_err(failed)?;
                let node = node(path).map_err(failed)?;
                Kind::Unix { listener, path: path.clone(), node }
            }
            Address::Tcp(at) => {
                let listener = TcpListener::bind(at).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Kind::Tcp(listener)
            }
            Address::Device(path) => {
                fs::metadata(path).map_err(failed)?;
                Kind::Device(path.clone())
            }
        };
        let fd: Option<BorrowedFd<'_>> = match &kind {
            Kind::Unix { listener, .. } => Some(listener.as_fd()),
            Kind::Tcp(listener) => Some(listener.as_fd()),
            Kind::Device(_) => None,
        };
        let token = fd.map(|fd| reactor.register(fd, Interest::READ)).transpose().map_err(failed)?;
        Ok(Door { kind, token, waiting: true })
    }

    pub(crate) fn notice(&mut self, tokens: &[Token]) {
        self.waiting |= self.token.is_some_and(|token| tokens.contains(&token));
    }

    /// The next connection. A device is opened again each time, and fails with `WouldBlock` while another holds it.
    pub(crate) fn accept(&mut self) -> Option<OwnedFd> {
        if !self.waiting {
            return None;
        }
        let accepted: io::Result<OwnedFd> = match &self.kind {
            Kind::Unix { listener, .. } => listener.accept().map(|(stream, _)| stream.into()),
            Kind::Tcp(listener) => listener.accept().and_then(|(stream, _)| {
                stream.set_nodelay(true)?;
                Ok(stream.into())
            }),
            Kind::Device(path) => {
                let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
                let flags = i32::try_from(flags.bits()).unwrap_or(0);
                OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).map(OwnedFd::from)
            }
        };
        match accepted {
            Ok(fd) => Some(fd),
            Err(e) => {
                self.waiting = e.kind() == io::ErrorKind::Interrupted;
                None
            }
        }
    }

    /// True for a device: nobody tells when it can be opened again, so it is tried from time to time.
    pub(crate) fn is_device(&self) -> bool {
        matches!(self.kind, Kind::Device(_))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Kind::Unix { path, node: ours, .. } = &self.kind
            && node(path).is_ok_and(|found| found == *ours)
        {
            // Gone already is as good.
            let _ = fs::remove_file(path);
        }
    }
}

fn node(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Binds, in the place of a socket that nobody listens on any more. Anything else that lies there is somebody's.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            if !fs::symlink_metadata(path)?.file_type().is_socket() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            match UnixStream::connect(path) {
                Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {}
                _ => return Err(e),
            }
            fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
