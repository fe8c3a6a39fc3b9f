//! `ncs2ctl decode`

use std::fs;
use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};
use ncs2::ErrorKind;
use ncs2::transport::{Direction, TraceEvent, TraceLine};
use serde::Serialize;

use crate::capture::{self, stream};
use crate::failure::{Failure, Outcome, Result, one_line};
use crate::output::{Output, wrap};

/// `decode`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl --sim 1 --trace run.log run net.blob --random 1
  ncs2ctl decode run.log --stream graphMonitor
  ncs2ctl decode run.pcapng --direction in --json | jq '.lines[].text'")]
pub struct DecodeArgs {
    /// The capture: .log text, or .pcapng
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Only transfers of this stream, by name or number
    #[arg(long, value_name = "NAME|N")]
    pub stream: Option<String>,
    /// Only transfers in this direction, seen from the host
    #[arg(long, value_enum)]
    pub direction: Option<DirectionArg>,
    /// Only this stick, as the capture names it
    #[arg(long, value_name = "ID")]
    pub stick: Option<String>,
}

/// `--direction`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum DirectionArg {
    /// From the stick
    In,
    /// To the stick
    Out,
}

#[derive(Serialize)]
struct Body<'a> {
    /// Null where the capture does not say.
    simulated: Option<bool>,
    file: String,
    format: &'static str,
    skipped: usize,
    lines: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    time_s: f64,
    stick: &'a str,
    direction: Option<&'static str>,
    bytes: Option<usize>,
    stream: Option<u32>,
    stream_name: Option<&'a str>,
    text: &'a str,
}

/// Prints the lines of a capture that pass the filters; exit 1 when none does.
pub fn decode(output: &Output, args: &DecodeArgs) -> Result<Outcome> {
    let bytes = fs::read(&args.file).map_err(|e| Failure::file(&args.file, "read", &e))?;
    let capture = capture::read(&bytes).map_err(|(expected, found)| {
        Failure::new(
            ErrorKind::InvalidInput,
            format!("{}: expected {expected}, found {found}", args.file.display()),
            "write one with --trace FILE",
        )
    })?;
    // The tool's own text captures say so for each stick; pcapng has no place for it.
    let simulated = capture
        .lines
        .iter()
        .any(|line| matches!(&line.event, TraceEvent::Note(text) if text.starts_with("simulated, profile")));
    let chosen: Vec<&TraceLine> = capture.lines.iter().filter(|line| args.passes(line)).collect();
    let outcome = if chosen.is_empty() { Outcome::Negative } else { Outcome::Ok };
    if output.is_json() {
        output.document(&Body {
            simulated: simulated.then_some(true),
            file: args.file.display().to_string(),
            format: capture.format,
            skipped: capture.skipped,
            lines: chosen.into_iter().map(describe).collect(),
        })?;
    } else {
        let mut text = String::new();
        for line in chosen {
            let line = one_line(&line.to_string());
            // Into a file it goes as it is, so that it can be decoded again.
            text.push_str(&if output.is_terminal() { folded(&line, output.width()) } else { line });
            text.push('\n');
        }
        output.text(&text)?;
        if capture.skipped > 0 {
            output.remark(&format!("{} of the capture's lines are no transfers of a stick", capture.skipped));
        }
    }
    Ok(outcome)
}

/// A line of the trace in lines of at most `width`: words, then the bytes behind the bar.
fn folded(line: &str, width: usize) -> String {
    const INDENT: &str = "             ";
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let (words, bytes) = line.split_once(" | ").unwrap_or((line, ""));
    let room = width.saturating_sub(INDENT.len() + 2).max(2);
    // The first line stands in its own place; `wrap` counts none of the indent.
    let start = words.len() - words.trim_start().len();
    let mut text = words[..start].to_owned() + &wrap(words, width - INDENT.len(), INDENT);
    // Two digits a byte, none of them torn apart.
    for piece in bytes.as_bytes().chunks(room / 2 * 2) {
        text.push_str(&format!("\n{INDENT}| {}", String::from_utf8_lossy(piece)));
    }
    text
}

impl DecodeArgs {
    fn passes(&self, line: &TraceLine) -> bool {
        if self.stick.as_ref().is_some_and(|wanted| *wanted != line.stick) {
            return false;
        }
        match &line.event {
            TraceEvent::Transfer { direction, text, .. } => {
                let direction_fits = match self.direction {
                    None => true,
                    Some(DirectionArg::In) => *direction == Direction::In,
                    Some(DirectionArg::Out) => *direction == Direction::Out,
                };
                // One transfer may carry several events: any of them may be meant.
                let stream_fits = self.stream.as_ref().is_none_or(|wanted| {
                    text.split("; ")
                        .filter_map(stream)
                        .any(|(number, name)| name == Some(wanted.as_str()) || wanted.parse() == Ok(number))
                });
                direction_fits && stream_fits
            }
            TraceEvent::Note(_) => self.direction.is_none() && self.stream.is_none(),
        }
    }
}

fn describe(line: &TraceLine) -> Line<'_> {
    let (direction, bytes, text) = match &line.event {
        TraceEvent::Transfer { direction, len, text, .. } => {
            (Some(if *direction == Direction::In { "in" } else { "out" }), Some(*len), text)
        }
        TraceEvent::Note(text) => (None, None, text),
    };
    let (stream, stream_name) = match direction.and_then(|_| stream(text)) {
        Some((number, name)) => (Some(number), name),
        None => (None, None),
    };
    Line { time_s: line.seconds, stick: &line.stick, direction, bytes, stream, stream_name, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_folded_and_lose_nothing() {
        let line = format!("  0.015566 [ncs2-sim0      ] dev=sim0 OUT len=84 hdr | {}", "17ab".repeat(60));
        for width in [40, 60, 100, 120] {
            let text = folded(&line, width);
            assert!(text.lines().all(|l| l.chars().count() <= width), "{text}");
            let digits: String = text.lines().filter_map(|l| Some(l.split_once("| ")?.1)).collect();
            assert_eq!(digits, "17ab".repeat(60));
            assert!(text.starts_with("  0.015566") && text.contains("hdr\n"), "{text}");
        }
        assert_eq!(folded("  short | 00", 40), "  short | 00");
    }
}
