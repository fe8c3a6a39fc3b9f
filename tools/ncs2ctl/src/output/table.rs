//! Tables that fit the terminal and break no word: columns that find no room follow below, in a table of their own.

use std::ops::Range;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Width};

/// Blanks between two columns.
const GAP: usize = 2;

/// Headings and rows; [`super::Output::lines`] writes it.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Clone, Debug)]
struct Column {
    heading: String,
    /// May be broken between words; else it is a number with its unit, which stays whole.
    text: bool,
}

impl Table {
    /// With these headings; columns named in `left` are text, the others numbers.
    pub(super) fn new(headings: &[&str], left: &[&str]) -> Self {
        let column = |heading: &&str| Column { heading: (*heading).to_owned(), text: left.contains(heading) };
        Table { columns: headings.iter().map(column).collect(), rows: Vec::new() }
    }

    /// One more row, a cell for each heading.
    pub fn add_row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Blocks of lines, none wider than `width` unless a single word is.
    pub(super) fn blocks(&self, width: usize) -> Vec<Vec<String>> {
        let keys = self.keys();
        let mut rest = self.fold(keys, width).into_iter();
        let first = rest.next().map_or(keys, |range| range.end);
        let mut blocks = vec![self.block(0..first, 0..0, width)];
        blocks.extend(rest.map(|range| self.block(0..keys, range, width)));
        blocks
    }

    /// How many columns say what a row is about, and stand in every block: all up to the first with text.
    fn keys(&self) -> usize {
        let first_text = self.columns.iter().position(|column| column.text).unwrap_or(0);
        (first_text + 1).min(self.columns.len())
    }

    /// The columns behind the keys, as many a block as find room.
    fn fold(&self, keys: usize, width: usize) -> Vec<Range<usize>> {
        let room = width.saturating_sub((0..keys).map(|n| self.least(n) + GAP).sum());
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut used = 0;
        for n in keys..self.columns.len() {
            let least = self.least(n);
            match ranges.last_mut() {
                Some(range) if used + least <= room => range.end = n + 1,
                _ => {
                    ranges.push(n..n + 1);
                    used = 0;
                }
            }
            used += least + GAP;
        }
        ranges
    }

    /// The narrowest that column `n` can be: numbers and names are not broken, other texts between words.
    fn least(&self, n: usize) -> usize {
        let Column { heading, text } = &self.columns[n];
        let cells = self.rows.iter().filter_map(|row| row.get(n));
        let broken = *text && n >= self.keys();
        let cells = cells.map(|cell| if broken { longest_word(cell) } else { super::wrap::columns(cell) });
        cells.chain([longest_word(heading)]).max().unwrap_or(0)
    }

    fn block(&self, keys: Range<usize>, more: Range<usize>, width: usize) -> Vec<String> {
        let chosen: Vec<usize> = keys.chain(more).collect();
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Dynamic);
        // The last column's gap shows nowhere.
        table.set_width(u16::try_from(width + GAP).unwrap_or(u16::MAX));
        table.set_header(chosen.iter().map(|&n| &self.columns[n].heading));
        for row in &self.rows {
            table.add_row(chosen.iter().map(|&n| row.get(n).map_or("", String::as_str)));
        }
        for (&n, column) in chosen.iter().zip(table.column_iter_mut()) {
            column.set_padding((0, GAP as u16));
            let least = u16::try_from(self.least(n) + GAP).unwrap_or(u16::MAX);
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(least)));
            if !self.columns[n].text {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.to_string().lines().map(|line| line.trim_end().to_owned()).collect()
    }
}

fn longest_word(text: &str) -> usize {
    text.split_whitespace().map(super::wrap::columns).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table =
            Table::new(&["stick", "state", "fps", "memory", "product"], &["stick", "state", "product"]);
        table.add_row(["sim0", "ready", "1 182.7", "3.40 MB", "virtual NCS2, profile ncs2"]);
        table.add_row(["1-2.3", "unbooted", "-", "0 B", "Neural Compute Stick 2"]);
        table
    }

    #[test]
    fn with_room_it_is_one_block() {
        let [block] = &*table().blocks(100) else { panic!("one block") };
        assert_eq!(block[0], "stick  state         fps   memory  product");
        assert_eq!(block[1], "sim0   ready     1 182.7  3.40 MB  virtual NCS2, profile ncs2");
        assert_eq!(block.len(), 3);
    }

    #[test]
    fn texts_break_between_words_and_numbers_never() {
        for width in 24..70 {
            let blocks = table().blocks(width);
            let lines: Vec<&String> = blocks.iter().flatten().collect();
            assert!(
                lines.iter().all(|line| super::super::wrap::columns(line) <= width),
                "{width}: {blocks:#?}"
            );
            let all = lines.iter().map(|line| line.as_str()).collect::<Vec<_>>().join("\n");
            for whole in ["1 182.7", "3.40 MB", "unbooted", "Compute", "profile", "memory", "product"] {
                assert!(all.contains(whole), "{width}: {whole} in\n{all}");
            }
        }
    }

    #[test]
    fn what_finds_no_room_follows_below_beside_the_names() {
        let blocks = table().blocks(24);
        assert!(blocks.len() > 1);
        for block in &blocks {
            assert!(block[0].starts_with("stick "), "{blocks:#?}");
            assert!(block.iter().any(|line| line.starts_with("1-2.3 ")), "{blocks:#?}");
        }
    }

    #[test]
    fn a_word_wider_than_the_terminal_stays_whole() {
        let mut table = Table::new(&["key", "value"], &["key", "value"]);
        let path = "/a/very/long/path/to/somewhere/that/no/terminal/of/this/width/shows";
        table.add_row(["firmware", path]);
        let blocks = table.blocks(40);
        assert!(blocks.iter().flatten().any(|line| line.contains(path)), "{blocks:#?}");
    }
}
