//! Lines that fit the terminal, broken between words.

/// Breaks `text` at spaces so that no line is longer than `width`; lines after the first begin with `indent`, which is
/// not counted: the first line stands behind something as wide.
pub fn wrap(text: &str, width: usize, indent: &str) -> String {
    let mut out = String::new();
    let mut column = 0;
    let mut words = text.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let mut word = word.to_owned();
        // The groups of a number stay together.
        while word.ends_with(|c: char| c.is_ascii_digit())
            && let Some(group) = words.next_if(|next| is_group(next))
        {
            word = format!("{word} {group}");
        }
        let long = columns(&word);
        if column > 0 && column + 1 + long > width {
            out.push('\n');
            out.push_str(indent);
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(&word);
        column += long;
    }
    out
}

/// Folds each line of `text` that is wider than `width`; it goes on under its own beginning, or under what stands behind
/// its label.
pub(super) fn fold(text: &str, width: usize) -> String {
    let mut out = String::new();
    for line in text.lines() {
        if columns(line) <= width {
            out.push_str(line);
        } else {
            let (label, rest) = line.split_at(label_end(line, width));
            let indent = columns(label);
            out.push_str(label);
            out.push_str(&wrap(rest, width - indent, &" ".repeat(indent)));
        }
        out.push('\n');
    }
    if !text.ends_with('\n') {
        out.pop();
    }
    out
}

/// Bytes up to the last gap of two blanks in the first half of the line.
fn label_end(line: &str, width: usize) -> usize {
    let indent = line.len() - line.trim_start().len();
    let gaps = line.match_indices("  ").filter_map(|(at, _)| {
        let end = line.len() - line[at..].trim_start().len();
        (columns(&line[..end]) <= width / 2).then_some(end)
    });
    gaps.max().unwrap_or(indent).max(indent)
}

/// Three digits, with nothing or a mark behind them: a group of a number as [`super::grouped`] writes it.
fn is_group(word: &str) -> bool {
    let digits = word.trim_end_matches(|c: char| !c.is_ascii_digit());
    digits.len() == 3 && digits.chars().all(|c| c.is_ascii_digit())
}

/// Characters that show: without colour codes, which end with an `m`.
pub(super) fn columns(word: &str) -> usize {
    let mut hidden = false;
    word.chars()
        .filter(|&c| {
            let shows = !hidden && c != '\x1b';
            hidden = (hidden || c == '\x1b') && c != 'm';
            shows
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapping_keeps_words_and_width() {
        let text = wrap("aa bbb cccc dd", 6, "  ");
        assert_eq!(text, "aa bbb\n  cccc\n  dd");
        assert!(text.lines().all(|l| l.len() <= 6));
        assert_eq!(
            wrap("in 1 157 faults, 20 0123", 8, ""),
            "in 1 157\nfaults,\n20 0123",
            "a number is one word"
        );
        assert_eq!(wrap("a \x1b[31mbb\x1b[0m cc", 7, ""), "a \x1b[31mbb\x1b[0m cc", "colour takes no room");
    }

    #[test]
    fn folding_goes_on_behind_the_label() {
        let text = "short\n  scratch   301 kB of the stick's memory\nplain words to the end\n";
        let folded = "short\n  scratch   301 kB of\n            the stick's\n            memory\nplain words to the end\n";
        assert_eq!(fold(text, 24), folded);
        assert_eq!(fold("  a bb ccc", 6), "  a bb\n  ccc", "without a label under its beginning");
        assert_eq!(fold("", 6), "");
    }
}
