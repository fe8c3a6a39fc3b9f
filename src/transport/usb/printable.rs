//! Text that others chose, made fit to be shown.

/// Text of a device or the name of a process, fit for a terminal, a log and a metric: no control bytes, nothing that reorders what stands around
/// it, at most 126 characters (the longest string that a descriptor can hold).
pub(super) fn printable(text: &str) -> String {
    let disturbs = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.trim_end().chars().filter(|&c| !disturbs(c)).take(126).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_device_cannot_disturb_a_terminal() {
        assert_eq!(printable("a\x1b[31mb\u{202e}c\u{9b}d\r\n"), "a[31mbcd");
        assert_eq!(printable(&"x".repeat(500)).len(), 126);
    }
}
