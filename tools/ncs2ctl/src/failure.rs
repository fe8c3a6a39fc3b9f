//! What went wrong, as the user reads it: what was expected, what was found, what to do.

use std::error::Error as _;
use std::io;

use ncs2::ErrorKind;

/// Exit codes of the contract.
pub mod exit {
    /// Done.
    pub const OK: u8 = 0;
    /// Negative result: nothing listed, a check failed, too slow.
    pub const NEGATIVE: u8 = 1;
    /// Failure.
    pub const FAILURE: u8 = 2;
    /// Wrong usage.
    pub const USAGE: u8 = 64;
}

/// How a command that ran to its end came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Exit 0.
    Ok,
    /// Exit 1.
    Negative,
    /// Exit 2; the document says why, for each stick.
    Failed,
}

/// Short for results of commands.
pub type Result<T = (), E = Failure> = std::result::Result<T, E>;

/// Ends a command.
#[derive(Debug)]
pub enum Failure {
    /// Whoever read our output has read enough: end quietly.
    BrokenPipe,
    /// To be shown.
    Report(Box<Report>),
}

/// The parts of a failure that are shown.
#[derive(Debug)]
pub struct Report {
    /// [`ErrorKind::as_str`], or `Usage`, or `Io`.
    pub kind: &'static str,
    /// One line: the file or stick, what was expected and what was found.
    pub message: String,
    /// One line: what to do.
    pub hint: String,
    /// Exit code.
    pub exit: u8,
}

/// A failure inside a document.
#[derive(Debug, serde::Serialize)]
pub struct Told<'a> {
    /// As in [`Report`].
    pub kind: &'a str,
    /// As in [`Report`].
    pub message: &'a str,
    /// As in [`Report`].
    pub hint: &'a str,
}

impl Failure {
    /// As documents show it; `None` where nobody reads any more.
    pub fn told(&self) -> Option<Told<'_>> {
        match self {
            Failure::BrokenPipe => None,
            Failure::Report(report) => {
                Some(Told { kind: report.kind, message: &report.message, hint: &report.hint })
            }
        }
    }

    /// A failure of `kind`, exit 2.
    pub fn new(kind: ErrorKind, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::report(kind.as_str(), message.into(), hint.into(), exit::FAILURE)
    }

    /// The user asked for something that cannot be asked for, exit 64.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::report("Usage", message.into(), hint.into(), exit::USAGE)
    }

    /// Ctrl-C came before anything was done, exit 1 as other interrupted work.
    pub fn interrupted(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::report(ErrorKind::Cancelled.as_str(), message.into(), hint.into(), exit::NEGATIVE)
    }

    /// The file could not be read or written.
    pub fn file(path: &std::path::Path, doing: &str, error: &io::Error) -> Self {
        let path = path.display();
        match error.kind() {
            io::ErrorKind::NotFound if doing == "write" => Self::new(
                ErrorKind::NotFound,
                format!("{path}: expected its folder, found none"),
                "make the folder first",
            ),
            io::ErrorKind::NotFound => Self::new(
                ErrorKind::NotFound,
                format!("{path}: expected a file to {doing}, found none"),
                "check the path",
            ),
            io::ErrorKind::PermissionDenied => Self::new(
                ErrorKind::Permission,
                format!("{path}: may not {doing} it"),
                "check the permissions of file and folder",
            ),
            io::ErrorKind::IsADirectory => Self::new(
                ErrorKind::InvalidInput,
                format!("{path}: expected a file to {doing}, found a folder"),
                "name a file",
            ),
            _ => Self::report(
                "Io",
                format!("{path}: could not {doing} it: {error}"),
                "check the disk and the path".into(),
                exit::FAILURE,
            ),
        }
    }

    /// With another word on what to do, where the caller knows better than the library.
    pub fn hint(self, hint: &str) -> Self {
        match self {
            Failure::BrokenPipe => Failure::BrokenPipe,
            Failure::Report(report) => Failure::Report(Box::new(Report { hint: one_line(hint), ..*report })),
        }
    }

    /// What is to be shown; `None` where nobody reads any more.
    pub fn into_report(self) -> Option<Report> {
        match self {
            Failure::BrokenPipe => None,
            Failure::Report(report) => Some(*report),
        }
    }

    fn report(kind: &'static str, message: String, hint: String, exit: u8) -> Self {
        // One line each, whatever a file or a stick put into a name.
        let message = one_line(&message);
        let hint = one_line(&hint);
        Failure::Report(Box::new(Report { kind, message, hint, exit }))
    }
}

/// Control characters would let a file name or a device string write to the terminal.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl From<ncs2::Error> for Failure {
    fn from(error: ncs2::Error) -> Self {
        let text = error.to_string();
        // Where the library knows the remedy, it stands behind the last semicolon.
        let (text, remedy) = match text.rsplit_once("; ") {
            Some((text, remedy)) => (text.to_owned(), Some(remedy.to_owned())),
            None => (text, None),
        };
        let mut message = text;
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Some errors show their cause in their own line; saying it twice helps nobody.
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            source = cause.source();
        }
        let remedy = remedy.unwrap_or_else(|| match error.kind() {
            // The rule of udev helps with sticks alone; files and sockets are named by their paths.
            ErrorKind::Permission if names_a_file(&message) => OTHER_USER.to_owned(),
            kind => hint(kind).to_owned(),
        });
        Failure::new(error.kind(), message, remedy)
    }
}

/// About a file or a socket that this user may not open.
const OTHER_USER: &str = "let this user read it, or run this as the user whom the file or socket belongs to";

/// The text names a path that is no USB device.
fn names_a_file(text: &str) -> bool {
    let path = |word: &str| word.contains('/') && !word.contains("/dev/bus/usb") && !word.contains("udev");
    text.split_whitespace().any(path)
}

/// What to do about an error of the library.
fn hint(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "check the name or path",
        ErrorKind::Permission => "install udev/70-ncs2.rules, then plug the stick in again",
        ErrorKind::InUse => "close the other program that uses the stick",
        ErrorKind::QueueFull => "wait for answers before sending more",
        ErrorKind::Firmware => "check the firmware file against firmware/manifest.toml",
        ErrorKind::Unplugged => "check cable, hub and power, and plug the stick in again",
        ErrorKind::Timeout => "plug the stick in again; check cable, hub and power if it comes back",
        ErrorKind::DeadlineExceeded => "allow more time or send less",
        ErrorKind::Cancelled => "run it again",
        ErrorKind::Protocol => "try again; if it comes back, report it with the output of -vv",
        ErrorKind::Overheated => "let the stick cool down",
        ErrorKind::OutOfMemory => "use a smaller network, fewer graphs or less depth",
        ErrorKind::InvalidBlob => "give a .blob made by OpenVINO's compiler for MYRIAD (2021.4 to 2022.3)",
        ErrorKind::InvalidInput => "compare with `ncs2ctl blob info`",
        ErrorKind::Unsupported => "use a network or a setting that is supported",
        ErrorKind::Closed => "open the sticks again",
        _ => "report it with the output of -vv",
    }
}

impl From<io::Error> for Failure {
    /// Only for our own standard output: files go through [`Failure::file`].
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::BrokenPipe;
        }
        Self::report(
            "Io",
            format!("standard output: could not write: {error}"),
            "check where it leads".into(),
            exit::FAILURE,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_is_one_line_without_repeats() {
        let cause = io::Error::other("disk on fire");
        let error =
            ncs2::Error::new(ErrorKind::NotFound, "open blob").detail("a\nb.blob: none").caused_by(cause);
        let Failure::Report(report) = Failure::from(error) else { panic!("not a report") };
        assert_eq!(report.message, "open blob: a b.blob: none: disk on fire");
        assert_eq!(
            (report.kind, report.hint.as_str(), report.exit),
            ("NotFound", "check the name or path", 2)
        );
    }

    #[test]
    fn remedy_of_the_library_is_the_hint() {
        let error =
            ncs2::Error::new(ErrorKind::InvalidBlob, "open blob").detail("x: 6.0 expected; recompile it");
        let Failure::Report(report) = Failure::from(error) else { panic!("not a report") };
        assert_eq!(report.message, "open blob: x: 6.0 expected");
        assert_eq!(report.hint, "recompile it");
    }

    #[test]
    fn a_file_of_another_user_needs_no_udev_rule() {
        let hint_of = |detail: &str| {
            let error = ncs2::Error::new(ErrorKind::Permission, "open").detail(detail);
            let Failure::Report(report) = Failure::from(error) else { panic!("not a report") };
            report.hint
        };
        assert_eq!(hint_of("/home/x/net.blob: permission denied"), OTHER_USER);
        assert!(hint_of("1-2: /dev/bus/usb/001/004: permission denied").contains("udev"));
        assert!(hint_of("1-2: permission denied").contains("udev"));
    }

    #[test]
    fn broken_pipe_is_silent() {
        assert!(matches!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)), Failure::BrokenPipe));
    }
}
