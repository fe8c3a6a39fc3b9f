//! What went wrong on a stick, as the library's error: kind, stick, and what to do about it.

use crate::cache::Refusal;
use crate::error::{Error, ErrorKind};
use crate::id::StickId;
use crate::pipeline::Failure;
use crate::stick::StickError;
use crate::transport::TransferError;
use crate::wire::Status;

/// An error that can be told to several callers.
#[derive(Clone, Debug)]
pub(super) struct Cause {
    pub(super) kind: ErrorKind,
    /// What was expected and found, and what to do.
    pub(super) detail: String,
}

impl Cause {
    pub(super) fn error(&self, op: &'static str, stick: &StickId) -> Error {
        Error::new(self.kind, op).on(stick).detail(self.detail.clone())
    }

    fn new(kind: ErrorKind, what: impl std::fmt::Display) -> Self {
        Cause { kind, detail: format!("{what}; {}", advice(kind)) }
    }

    pub(super) fn of_error(error: &Error) -> Self {
        // The border error says the stick and the step itself; its text without the stick's name is wanted here.
        let text = error.to_string();
        let prefix = error.stick().map(|s| format!("{s}: ")).unwrap_or_default();
        Cause { kind: error.kind(), detail: text.strip_prefix(&prefix).unwrap_or(&text).to_owned() }
    }

    pub(super) fn of_stick(error: &StickError) -> Self {
        let kind = match error {
            StickError::Status { status, .. } => match status {
                Status::OutOfMemory | Status::OutOfResources => ErrorKind::OutOfMemory,
                Status::UnsupportedElement | Status::NotImplemented | Status::ShavesSlicesMismatch => {
                    ErrorKind::Unsupported
                }
                Status::Timeout => ErrorKind::Timeout,
                _ => ErrorKind::Protocol,
            },
            StickError::Timeout { .. } => ErrorKind::Timeout,
            StickError::OutOfMemory { .. } => ErrorKind::OutOfMemory,
            StickError::Gone => ErrorKind::Unplugged,
            StickError::Full => ErrorKind::QueueFull,
            StickError::Protocol { .. } | StickError::Invalid(_) => ErrorKind::Protocol,
        };
        Cause::new(kind, error)
    }

    /// The ledger says that it will not fit, before a byte was sent.
    pub(super) fn of_refusal(refusal: &Refusal) -> Self {
        let kind = match refusal {
            Refusal::Version { .. } | Refusal::Chip { .. } => ErrorKind::Unsupported,
            Refusal::TooLarge { .. } | Refusal::Busy { .. } => ErrorKind::OutOfMemory,
        };
        Cause { kind, detail: refusal.to_string() }
    }

    pub(super) fn of_failure(failure: &Failure) -> Self {
        match failure {
            Failure::Stick(error) => Cause::of_stick(error),
            Failure::Transfer { error: TransferError::Gone, .. } => {
                Cause::new(ErrorKind::Unplugged, TransferError::Gone)
            }
            // A halted endpoint, a packet too long, an errno: the link is unusable until the stick is reset.
            Failure::Transfer { .. } => Cause::new(ErrorKind::Protocol, failure),
        }
    }
}

fn advice(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Unplugged => {
            "check its port and cable, or plug it in again: the fleet reconnects by itself"
        }
        ErrorKind::Timeout => "the stick does not answer: if it stays lost, plug it in again",
        ErrorKind::OutOfMemory => {
            "unload a graph that is no longer needed, or load this one with fewer instances or less depth"
        }
        ErrorKind::Unsupported => {
            "the stick cannot run this graph: compile it for fewer SHAVEs, or without that layer"
        }
        ErrorKind::QueueFull => "try again after an answer",
        _ => "the stick is reset before it works again: if it happens again, report it with a trace",
    }
}
