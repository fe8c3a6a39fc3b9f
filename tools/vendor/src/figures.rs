//! Figures of several runs, and how they are written.

/// The middle one; `None` of none.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Three digits.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A time in the unit that suits it.
pub(crate) fn time(seconds: f64) -> String {
    if seconds >= 1.0 {
        format!("{} s", short(seconds))
    } else if seconds >= 1e-3 {
        format!("{} ms", short(seconds * 1e3))
    } else {
        format!("{} µs", short(seconds * 1e6))
    }
}

/// A row of a Markdown table.
pub(crate) fn row<S: AsRef<str>>(cells: impl IntoIterator<Item = S>) -> String {
    let cells: Vec<String> =
        cells.into_iter().map(|c| c.as_ref().replace('|', "/").replace('\n', " ")).collect();
    format!("| {} |\n", cells.join(" | "))
}

/// The head of a Markdown table.
pub(crate) fn head<const N: usize>(cells: [&str; N]) -> String {
    format!("{}{}", row(cells), row(["---"; N]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![]), None);
        assert_eq!(
            (short(1234.5), short(12.34), short(1.234)),
            ("1234".into(), "12.3".into(), "1.23".into())
        );
        assert_eq!(
            (time(2.0), time(0.0125), time(25e-6)),
            ("2.00 s".into(), "12.5 ms".into(), "25.0 µs".into())
        );
        assert_eq!(head(["a", "b"]), "| a | b |\n| --- | --- |\n");
        assert_eq!(row(["x|y"]), "| x/y |\n");
    }
}
