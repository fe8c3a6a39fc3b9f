//! The line protocol of a server's control socket: one request per line, one answer per line, `ok …` or `error …`.
//!
//! `list` answers `ok N`, then N lines, one for each stick; `COMMAND N` is one of [`Command::WORDS`] for stick N. `unplug` and
//! `hang` may wait for their moment: `unplug N in BYTES` (or `out`) strikes as soon as so many more bytes have moved that
//! way. `plug N PROFILE [ENGINE]` puts another stick into the empty port. On the socket face, `connect N` makes the connection that
//! stick's pipes.

use super::{Command, StickStatus};
use crate::Engine;
use crate::fault_plan::{FaultKind, Way};

/// Longest line that is taken.
const MAX_LINE: usize = 256;

/// One request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    List,
    Stick(Command, usize),
    /// Breaks stick `n` so many bytes from now.
    After {
        n: usize,
        kind: FaultKind,
        way: Way,
        bytes: u64,
    },
    /// A stick of this profile into the port of stick `n`, with this engine or the server's.
    Plug(usize, String, Option<Engine>),
    Connect(usize),
}

/// Collects lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    buffer: Vec<u8>,
}

impl Lines {
    /// False when the other side sent a line that is too long, and is not worth listening to.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> bool {
        self.buffer.extend_from_slice(bytes);
        self.buffer.len() <= MAX_LINE || self.buffer.contains(&b'\n')
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    pub(crate) fn next(&mut self) -> Option<String> {
        let end = self.buffer.iter().position(|b| *b == b'\n')?;
        let line: Vec<u8> = self.buffer.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).trim().to_owned())
    }
}

/// Understands a line, or says what was expected.
pub(crate) fn parse(line: &str, sticks: usize) -> Result<Ask, String> {
    let mut words = line.split_whitespace();
    let word = words.next().unwrap_or_default();
    let ask = if word == "list" {
        Ask::List
    } else {
        let command = Command::WORDS.iter().find(|(name, _)| *name == word).map(|(_, command)| *command);
        if command.is_none() && word != "connect" {
            let known: Vec<&str> = Command::WORDS.iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "unknown request: expected list, or connect, {} and a stick",
                known.join(", ")
            ));
        }
        let n = words.next().and_then(|n| n.parse().ok()).filter(|n| *n < sticks);
        let Some(n) = n else {
            return Err(format!("{word}: expected a stick from 0 to {}", sticks.saturating_sub(1)));
        };
        match (command, words.clone().next()) {
            (None, _) => Ask::Connect(n),
            (Some(Command::Plug), Some(profile)) => {
                words.next();
                let engine = match words.next() {
                    None => None,
                    Some("execute") => Some(Engine::Execute),
                    Some("hash") => Some(Engine::Hash),
                    Some(other) => {
                        return Err(format!("plug {n} {profile}: expected execute or hash, found {other}"));
                    }
                };
                Ask::Plug(n, profile.to_owned(), engine)
            }
            (Some(command @ (Command::Unplug | Command::Hang)), Some(way)) => {
                words.next();
                let kind = if command == Command::Hang { FaultKind::Hang } else { FaultKind::Unplug };
                let way = match way {
                    "in" => Way::In,
                    "out" => Way::Out,
                    _ => return Err(format!("{word} {n}: expected in or out and bytes, found {way}")),
                };
                let bytes = words.next().and_then(|b| b.parse().ok()).filter(|bytes| *bytes > 0);
                let Some(bytes) = bytes else {
                    return Err(format!("{word} {n}: expected how many bytes from now, at least 1"));
                };
                Ask::After { n, kind, way, bytes }
            }
            (Some(command), _) => Ask::Stick(command, n),
        }
    };
    match words.next() {
        None => Ok(ask),
        Some(more) => Err(format!("{word}: too much: {more:?}")),
    }
}

/// The answer to `list`.
pub(crate) fn list(sticks: &[StickStatus]) -> String {
    let mut answer = format!("ok {}\n", sticks.len());
    for (n, stick) in sticks.iter().enumerate() {
        answer += &format!("{n} {stick}\n");
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_understood_and_nonsense_is_explained() {
        for (word, command) in Command::WORDS {
            assert_eq!(parse(&format!("{word} 1"), 2), Ok(Ask::Stick(command, 1)));
        }
        assert_eq!(parse(" list ", 2), Ok(Ask::List));
        assert_eq!(parse("connect 0", 2), Ok(Ask::Connect(0)));
        assert_eq!(parse("plug 1 usb2", 2), Ok(Ask::Plug(1, "usb2".into(), None)));
        for engine in [Engine::Execute, Engine::Hash] {
            let line = format!("plug 1 usb2 {}", engine.as_str());
            assert_eq!(parse(&line, 2), Ok(Ask::Plug(1, "usb2".into(), Some(engine))));
        }
        for (word, kind) in [("unplug", FaultKind::Unplug), ("hang", FaultKind::Hang)] {
            for (way_word, way) in [("in", Way::In), ("out", Way::Out)] {
                let line = format!("{word} 1 {way_word} 5000");
                assert_eq!(parse(&line, 2), Ok(Ask::After { n: 1, kind, way, bytes: 5000 }));
            }
        }
        for (line, part) in [
            ("", "unknown"),
            ("unplug", "0 to 1"),
            ("unplug 2", "0 to 1"),
            ("plug 0 usb2 1", "execute or hash"),
            ("plug 0 usb2 hash 1", "too much"),
            ("crash 0 in 5", "too much"),
            ("unplug 0 up 5", "in or out"),
            ("unplug 0 in", "bytes"),
            ("hang 0 out 0", "at least 1"),
            ("hang 0 out 7 7", "too much"),
            ("x 1", "unplug"),
        ] {
            let error = parse(line, 2).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn lines_come_in_any_pieces_but_not_without_end() {
        let mut lines = Lines::default();
        assert!(lines.push(b"unpl"));
        assert_eq!(lines.next(), None);
        assert!(lines.push(b"ug 0\r\nli"));
        assert_eq!(lines.next().as_deref(), Some("unplug 0"));
        assert_eq!(lines.next(), None);
        assert!(!lines.push(&[b'x'; MAX_LINE + 1]));
    }
}
