//! Texts without what differs from run to run, so that they can be snapshots.

/// Units that follow a figure and change with its size.
const UNITS: [&str; 9] = ["µs", "ms", "s", "B", "kB", "MB", "GB", "fps,", "fps"];

/// Figures become `#` (with their unit `#u`), runs of blanks one blank, continued lines one line.
pub fn figures(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let continues = line.starts_with("              ") && !line.trim().is_empty();
        match lines.last_mut() {
            // Where a line breaks depends on how long its figures are.
            Some(last) if continues && !last.is_empty() => {
                last.push(' ');
                last.push_str(line.trim_start());
            }
            _ => lines.push(line.to_owned()),
        }
    }
    lines.iter().map(|line| redact(line)).map(|line| line + "\n").collect()
}

fn redact(line: &str) -> String {
    let indent = line.len() - line.trim_start().len();
    let mut words: Vec<String> = Vec::new();
    for word in line.split_whitespace() {
        let figure = hide(word);
        let after_figure = words.last().is_some_and(|last| last.ends_with('#'));
        let bare = word.trim_end_matches([',', ';', ')']);
        if after_figure && UNITS.contains(&bare) {
            words.push(format!("u{}", &word[bare.len()..]));
        } else if after_figure && figure == "#" {
            // `1 234 567` is one figure.
        } else {
            words.push(figure);
        }
    }
    " ".repeat(indent.min(2)) + &words.join(" ")
}

/// Digits and what belongs to them as `#`. Names such as `sim0`, `p99`, `u8`, `f16` stay.
fn hide(word: &str) -> String {
    let starts = word.trim_start_matches(['(', '+', '-']);
    // A shape is no figure; `12.87x` is one.
    let shape = word.trim_end_matches('x').contains('x') && word.len() > 5;
    if shape || !starts.starts_with(|c: char| c.is_ascii_digit()) {
        return word.to_owned();
    }
    let mut out = String::new();
    let mut inside = false;
    for c in word.chars() {
        let part = c.is_ascii_digit() || (inside && c == '.');
        if part && !inside {
            out.push('#');
        }
        if !part {
            out.push(c);
        }
        inside = part;
    }
    out
}
