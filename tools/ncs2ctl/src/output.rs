//! Text and JSON, colour, width, error documents, broken pipes. Everything that reaches stdout goes through here.

mod table;
mod wrap;

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::failure::{Failure, Outcome, Report, Result, Told, exit};
use crate::flags::{ColorArg, Global};

pub use table::Table;
pub use wrap::wrap;

/// No line is longer, on however wide a terminal.
const MAX_WIDTH: usize = 120;
/// Where there is no terminal to ask.
const DEFAULT_WIDTH: usize = 100;

/// How to write.
#[derive(Clone, Debug)]
pub struct Output {
    command: String,
    json: bool,
    quiet: bool,
    color: bool,
    utf8: bool,
    width: usize,
    /// Documents are lines.
    by_lines: Arc<AtomicBool>,
}

/// A way to stand out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// Headings, figures that matter.
    Bold,
    /// Beside the point.
    Dim,
    /// Take note.
    Warn,
    /// Wrong.
    Bad,
}

impl Output {
    /// For `command`, which names the schema of its documents: `blob-info` for `ncs2ctl blob info`.
    pub fn new(global: &Global, command: &'static str) -> Self {
        Output {
            command: command.to_owned(),
            json: global.json,
            quiet: global.quiet,
            color: colored(global.color, io::stdout().is_terminal()),
            utf8: utf8_locale(|name| std::env::var(name).ok()),
            width: terminal_width(),
            by_lines: Arc::default(),
        }
    }

    /// For failures before the flags are known.
    pub fn bare(json: bool, command: &str) -> Self {
        let (color, utf8, width) = (false, false, terminal_width());
        Output {
            command: command.to_owned(),
            json,
            quiet: false,
            color,
            utf8,
            width,
            by_lines: Arc::default(),
        }
    }

    /// True for `--json`.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// True where text may be coloured.
    pub fn is_colored(&self) -> bool {
        self.color
    }

    /// Somebody looks at it.
    pub fn is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// Columns to use.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `utf8` where the locale can show it, else `ascii`.
    pub fn glyph<'a>(&self, utf8: &'a str, ascii: &'a str) -> &'a str {
        if self.utf8 { utf8 } else { ascii }
    }

    /// `text`, standing out where colours are on.
    pub fn paint(&self, style: Style, text: impl AsRef<str>) -> String {
        let text = text.as_ref();
        if !self.color {
            return text.to_owned();
        }
        let code = match style {
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Warn => "33",
            Style::Bad => "31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Writes text to stdout as it is.
    pub fn text(&self, text: &str) -> Result {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }

    /// Writes text for people to stdout: a line that is wider than the terminal goes on below, broken between words.
    pub fn prose(&self, text: &str) -> Result {
        self.text(&wrap::fold(text, self.width))
    }

    /// Writes the command's one document to stdout; its first member is the schema.
    pub fn document(&self, body: &impl Serialize) -> Result {
        let mut text = self.render(body);
        text.push('\n');
        self.text(&text)
    }

    /// From now on every document is one of several, on a line of its own: that of a failure, too.
    pub fn by_lines(&self) {
        self.by_lines.store(true, Ordering::Relaxed);
    }

    /// Writes one of several documents, on a line of its own.
    pub fn line(&self, body: &impl Serialize) -> Result {
        self.text(&self.line_text(body))
    }

    /// One of several documents, with its line's end.
    pub fn line_text(&self, body: &impl Serialize) -> String {
        let value: serde_json::Value = serde_json::from_str(&self.render(body)).expect("just written");
        // Maps of serde_json are sorted; the schema must stay in front.
        let mut rest = value;
        let schema = rest.as_object_mut().and_then(|map| map.remove("schema")).unwrap_or_default();
        let rest = rest.to_string();
        format!("{{\"schema\":{schema},{}\n", rest.strip_prefix('{').unwrap_or(&rest))
    }

    /// The document as text.
    pub fn render(&self, body: &impl Serialize) -> String {
        #[derive(Serialize)]
        struct Document<'a, T> {
            schema: String,
            #[serde(flatten)]
            body: &'a T,
        }
        let document = Document { schema: format!("ncs2ctl.{}/1", self.command), body };
        serde_json::to_string_pretty(&document).expect("our documents have string keys only")
    }

    /// A remark to stderr, unless quiet or JSON.
    pub fn remark(&self, text: &str) {
        if !self.quiet && !self.json {
            // Where stderr is gone there is nobody to tell.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// What went wrong beside the result without spoiling it: to stderr unless quiet, in JSON mode, too.
    pub fn warn(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(io::stderr(), "{}", crate::failure::one_line(text));
        }
    }

    /// What failed after the result was written to stdout: there is one document, so this is a line on stderr in JSON mode, too.
    pub fn failed_behind(&self, failure: &Failure) -> Outcome {
        match failure {
            Failure::BrokenPipe => Outcome::Ok,
            Failure::Report(report) => {
                self.error_line(report);
                Outcome::Failed
            }
        }
    }

    fn error_line(&self, report: &Report) {
        let bad = if io::stderr().is_terminal() && self.color { "\x1b[31merror:\x1b[0m" } else { "error:" };
        let mut line = format!("{bad} {}; {}", report.message, report.hint);
        if io::stderr().is_terminal() {
            line = wrap(&line, self.width - 7, "       ");
        }
        let _ = writeln!(io::stderr(), "{line}");
    }

    /// Shows a failure and says how to exit.
    pub fn failure(&self, failure: &Failure) -> u8 {
        let report = match failure {
            Failure::BrokenPipe => return exit::OK,
            Failure::Report(report) => report,
        };
        if self.json {
            #[derive(Serialize)]
            struct ErrorBody<'a> {
                error: Option<Told<'a>>,
            }
            // The exit code still tells when even this cannot be written.
            let body = ErrorBody { error: failure.told() };
            let _ = match self.by_lines.load(Ordering::Relaxed) {
                true => self.line(&body),
                false => self.document(&body),
            };
        } else {
            self.error_line(report);
        }
        report.exit
    }

    /// A table with these headings; columns named in `left` are text, the others numbers.
    pub fn table(&self, headings: &[&str], left: &[&str]) -> Table {
        Table::new(headings, left)
    }

    /// The table's lines, indented by two; what finds no room follows below.
    pub fn lines(&self, table: &Table) -> String {
        let mut text = String::new();
        for (n, block) in table.blocks(self.width.saturating_sub(2)).iter().enumerate() {
            if n > 0 {
                text.push('\n');
            }
            for (n, line) in block.iter().enumerate() {
                let line = format!("  {line}");
                text.push_str(&if n == 0 { self.paint(Style::Dim, line) } else { line });
                text.push('\n');
            }
        }
        text
    }

    /// A bar over `total` time on stderr; nothing where nobody watches.
    pub fn bar(&self, total: Duration) -> ProgressBar {
        let bar = self.progress(ProgressBar::new(u64::try_from(total.as_millis()).unwrap_or(u64::MAX)));
        let style =
            ProgressStyle::with_template("{prefix:8} [{bar:30}] {msg}").expect("the template is constant");
        bar.set_style(style.progress_chars(self.glyph("█▉▊▋▌▍▎▏ ", "#>-")));
        bar
    }

    /// A sign of life on stderr while something takes its time; clear it when done.
    pub fn spinner(&self, message: &str) -> ProgressBar {
        let bar = self.progress(ProgressBar::new_spinner());
        let style =
            ProgressStyle::with_template("{spinner} {msg} ({elapsed})").expect("the template is constant");
        bar.set_style(style.tick_chars(self.glyph("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ", "|/-\\ ")));
        bar.set_message(message.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    fn progress(&self, bar: ProgressBar) -> ProgressBar {
        bar.set_draw_target(if self.quiet || self.json || !io::stderr().is_terminal() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        });
        bar
    }
}

/// Exit code of an outcome.
pub fn exit_code(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Ok => exit::OK,
        Outcome::Negative => exit::NEGATIVE,
        Outcome::Failed => exit::FAILURE,
    }
}

/// Whether to colour a stream.
pub fn colored(choice: ColorArg, terminal: bool) -> bool {
    match choice {
        ColorArg::Always => true,
        ColorArg::Never => false,
        ColorArg::Auto => {
            let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
            terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
        }
    }
}

/// The first of the three variables that is set decides, as in C.
fn utf8_locale(variable: impl Fn(&str) -> Option<String>) -> bool {
    ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| variable(name).filter(|v| !v.is_empty()))
        .is_some_and(|v| {
            let v = v.to_ascii_lowercase();
            v.contains("utf-8") || v.contains("utf8")
        })
}

fn terminal_width() -> usize {
    let columns = || std::env::var("COLUMNS").ok().and_then(|c| c.parse::<usize>().ok()).filter(|&c| c > 0);
    let width = if io::stdout().is_terminal() {
        ratatui::crossterm::terminal::size()
            .ok()
            .map(|(w, _)| usize::from(w))
            .filter(|&w| w > 0)
            .or_else(columns)
    } else {
        columns()
    };
    width.unwrap_or(DEFAULT_WIDTH).clamp(40, MAX_WIDTH)
}

/// `1 234 567`, with the space that every locale reads.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

/// `0.0014`, `0.698`, `3.63`: three digits that count.
pub fn three_digits(x: f64) -> String {
    if x <= 0.0 || !x.is_finite() {
        return x.to_string();
    }
    let decimals = (2.0 - x.log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{x:.decimals$}")
}

/// `4.2 MB`, in powers of ten as the vendor's papers count.
pub fn bytes(n: u64) -> String {
    match n {
        0..10_000 => format!("{} B", grouped(n)),
        10_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// `12.3 ms` or `45 µs`; `us` where the locale has no µ.
pub fn time(output: &Output, t: Duration) -> String {
    let us = t.as_secs_f64() * 1e6;
    match us {
        _ if us < 9.95 => format!("{us:.1} {}", output.glyph("µs", "us")),
        _ if us < 999.5 => format!("{us:.0} {}", output.glyph("µs", "us")),
        _ if us < 99_950.0 => format!("{:.2} ms", us / 1e3),
        _ if us < 9_995_000.0 => format!("{:.0} ms", us / 1e3),
        _ => format!("{:.1} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locale_follows_the_order_of_c() {
        let with = |set: &'static [(&str, &str)]| {
            utf8_locale(move |name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        assert!(with(&[("LANG", "en_US.UTF-8")]));
        assert!(!with(&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]));
        assert!(with(&[("LC_ALL", ""), ("LC_CTYPE", "C.utf8")]));
        assert!(!with(&[]));
    }

    #[test]
    fn figures_are_readable() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1 000");
        assert_eq!(grouped(349_151_936), "349 151 936");
        assert_eq!(three_digits(0.001_429), "0.00143");
        assert_eq!(three_digits(0.698_3), "0.698");
        assert_eq!(three_digits(1234.5), "1234");
        assert_eq!(three_digits(0.0), "0");
        assert_eq!(bytes(64), "64 B");
        assert_eq!(bytes(2_500_000), "2.50 MB");
        let ascii = Output::bare(false, "x");
        assert_eq!(time(&ascii, Duration::from_micros(45)), "45 us");
        assert_eq!(time(&ascii, Duration::from_micros(12_340)), "12.34 ms");
    }
}
