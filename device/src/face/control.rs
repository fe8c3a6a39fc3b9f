//! The line protocol of a server's control socket: one request per line, one answer per line, `ok …` or `error …`.
//!
//! `list` answers `ok N`, then N lines, one for each stick; `COMMAND N` is one of [`Command::WORDS`] for stick N. On the
//! socket face, `connect N` makes the connection that stick's pipes.

use super::{Command, StickStatus};

/// Longest line that is taken.
const MAX_LINE: usize = 256;

/// One request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    List,
    Stick(Command, usize),
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
        command.map_or(Ask::Connect(n), |command| Ask::Stick(command, n))
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
        for (line, part) in [
            ("", "unknown"),
            ("unplug", "0 to 1"),
            ("unplug 2", "0 to 1"),
            ("plug 0 1", "too much"),
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
