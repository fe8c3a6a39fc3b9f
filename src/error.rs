//! The one error of the library's border: what happened, where, and what the caller should do.

use std::error::Error as StdError;
use std::fmt;

use crate::id::StickId;

/// What the caller should do about an [`Error`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such stick, file, graph or tensor.
    NotFound,
    /// The user may not open the device: a udev rule is missing.
    Permission,
    /// Another process owns the stick.
    InUse,
    /// The queue is full; try later or wait.
    QueueFull,
    /// The firmware is missing, unknown or was refused.
    Firmware,
    /// The stick left the bus.
    Unplugged,
    /// The stick did not answer in its time.
    Timeout,
    /// The caller's own deadline passed.
    DeadlineExceeded,
    /// The caller, or a closing fleet, cancelled the request.
    Cancelled,
    /// The stick said something that the protocol does not allow, or refused a command.
    Protocol,
    /// The stick is too hot to work.
    Overheated,
    /// No memory left, on the stick or in a pool.
    OutOfMemory,
    /// The file is no compiled graph, or a damaged one.
    InvalidBlob,
    /// The tensor or argument given does not fit.
    InvalidInput,
    /// Known, but not supported by this software or this stick.
    Unsupported,
    /// The fleet, stick or graph is closed.
    Closed,
}

impl ErrorKind {
    /// True where the same request may succeed on another stick or a moment later.
    pub fn is_retriable(self) -> bool {
        matches!(
            self,
            ErrorKind::QueueFull
                | ErrorKind::Unplugged
                | ErrorKind::Timeout
                | ErrorKind::Protocol
                | ErrorKind::Overheated
                | ErrorKind::InUse
        )
    }

    /// The name that `--json` error documents carry.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "NotFound",
            ErrorKind::Permission => "Permission",
            ErrorKind::InUse => "InUse",
            ErrorKind::QueueFull => "QueueFull",
            ErrorKind::Firmware => "Firmware",
            ErrorKind::Unplugged => "Unplugged",
            ErrorKind::Timeout => "Timeout",
            ErrorKind::DeadlineExceeded => "DeadlineExceeded",
            ErrorKind::Cancelled => "Cancelled",
            ErrorKind::Protocol => "Protocol",
            ErrorKind::Overheated => "Overheated",
            ErrorKind::OutOfMemory => "OutOfMemory",
            ErrorKind::InvalidBlob => "InvalidBlob",
            ErrorKind::InvalidInput => "InvalidInput",
            ErrorKind::Unsupported => "Unsupported",
            ErrorKind::Closed => "Closed",
        }
    }
}

/// A failed operation. `Display` is one line without the source; walk [`StdError::source`] for the chain.
pub struct Error {
    kind: ErrorKind,
    op: &'static str,
    stick: Option<StickId>,
    detail: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Short for results of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` that happened while doing `op` (a verb phrase such as `"load graph"`).
    pub fn new(kind: ErrorKind, op: &'static str) -> Self {
        Error { kind, op, stick: None, detail: None, source: None }
    }

    /// Names the stick.
    #[must_use]
    pub fn on(mut self, stick: &StickId) -> Self {
        self.stick = Some(stick.clone());
        self
    }

    /// Says what was expected and what was found.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What was being done.
    pub fn op(&self) -> &'static str {
        self.op
    }

    /// The stick it happened on, where it was one stick's.
    pub fn stick(&self) -> Option<&StickId> {
        self.stick.as_ref()
    }

    /// True where trying again may help, see [`ErrorKind::is_retriable`].
    pub fn is_retriable(&self) -> bool {
        self.kind.is_retriable()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(stick) = &self.stick {
            write!(f, "{stick}: ")?;
        }
        write!(f, "{}: ", self.op)?;
        match &self.detail {
            Some(detail) => f.write_str(detail),
            None => f.write_str(self.kind.as_str()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self}", self.kind)?;
        if let Some(source) = &self.source {
            write!(f, "; {source}")?;
        }
        f.write_str(")")
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}
