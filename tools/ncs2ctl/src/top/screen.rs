//! How the live view looks on a terminal.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::bar;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Row as TableRow, Sparkline, Table};

use super::report::{cells, counts, headings, speed, whose};
use super::view::View;
use crate::output::wrap;

/// Lines of a stick's plots with its heading.
const PLOT_LINES: u16 = 4;
/// °C that fill a plot's height at least: noise is no mountain.
const SPAN_C: f64 = 2.0;
/// Columns of each cell of a row, so that a figure that grows moves no other.
const CELLS: [u16; 14] = [10, 8, 6, 5, 8, 6, 5, 10, 6, 6, 9, 9, 7, 7];

/// What the terminal can show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Means {
    /// More than ASCII.
    pub utf8: bool,
    /// Colours.
    pub color: bool,
}

const ASCII_BARS: bar::Set = bar::Set {
    full: "#",
    seven_eighths: "#",
    three_quarters: "#",
    five_eighths: "+",
    half: "+",
    three_eighths: "-",
    one_quarter: "-",
    one_eighth: ".",
    empty: " ",
};

impl Means {
    fn style(self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }
}

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, view: &View, means: Means) {
    let area = frame.area();
    let header = header(view, usize::from(area.width), means);
    let head = header.len() as u16;
    let table = (view.rows.len() as u16).saturating_add(1);
    // The table may take what is left beside one stick's plots.
    let table = table.min(area.height.saturating_sub(head + PLOT_LINES + 3)).max(2);
    let [top, middle, _, plots, foot] = Layout::vertical([
        Constraint::Length(head),
        Constraint::Length(table),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(header), top);
    sticks(frame, middle, view, means);
    let fits = usize::from(plots.height / PLOT_LINES).max(1);
    for (n, row) in view.rows.iter().skip(view.offset).take(fits).enumerate() {
        let y = plots.y + PLOT_LINES * n as u16;
        let height = PLOT_LINES.min((plots.y + plots.height).saturating_sub(y));
        let place = Rect { y, height, ..plots };
        plot(frame, place, view, &row.id, means);
    }
    footer(frame, foot, view, means);
}

/// Lines of at most `width` columns.
fn header(view: &View, width: usize, means: Means) -> Vec<Line<'static>> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let speed = wrap(&speed(&view.totals), width, "");
    let mut first: Vec<Line<'_>> = speed.lines().map(|l| Line::styled(l.to_owned(), bold)).collect();
    let marks = [(view.simulated, "simulated", Color::Yellow), (view.paused, "paused", Color::Red)];
    for (_, mark, color) in marks.into_iter().filter(|(shown, ..)| *shown) {
        let mark = Span::styled(mark, means.style(color));
        match first.last_mut().filter(|line| line.width() + 2 + mark.width() <= width) {
            Some(line) => line.extend([Span::raw("  "), mark]),
            None => first.push(Line::from(mark)),
        }
    }
    let reason = view.totals.tops_reason.as_ref().map(|r| format!("; no TOPS: {r}")).unwrap_or_default();
    let rest = [counts(&view.totals) + &reason].into_iter().chain(whose(view));
    let rest: Vec<String> = rest.map(|line| wrap(&line, width, "")).collect();
    let rest = rest.iter().flat_map(|text| text.lines()).map(|line| Line::from(line.to_owned()));
    first.into_iter().chain(rest).collect()
}

/// How many cells of a row find room; the first ones say most.
fn fitting(width: u16) -> usize {
    let mut end = 0;
    let ends = CELLS.iter().map(|cell| {
        end += cell + 1;
        end - 1
    });
    ends.take_while(|&end| end <= width).count().max(1)
}

fn sticks(frame: &mut Frame<'_>, area: Rect, view: &View, means: Means) {
    let fits = fitting(area.width);
    let widths = CELLS.into_iter().take(fits).map(Constraint::Length);
    let head = headings(if means.utf8 { "°C" } else { "C" });
    let right = |n: usize, text: String| {
        let line = Line::from(text);
        if n < 2 { line } else { line.right_aligned() }
    };
    let heading = TableRow::new(head.into_iter().take(fits).enumerate().map(|(n, h)| right(n, h.to_owned())))
        .style(Style::new().add_modifier(Modifier::BOLD));
    let rows = view.rows.iter().skip(view.offset).map(|row| {
        let style = match (row.state.as_str(), row.throttle_level.unwrap_or(0)) {
            ("lost", _) => means.style(Color::Red),
            (_, 0) => Style::new(),
            _ => means.style(Color::Yellow),
        };
        let cells = cells(row).into_iter().take(fits).enumerate();
        TableRow::new(cells.map(|(n, c)| right(n, c))).style(style)
    });
    frame.render_widget(Table::new(rows, widths).header(heading).column_spacing(1), area);
}

/// Temperature on the left, speed on the right.
fn plot(frame: &mut Frame<'_>, area: Rect, view: &View, id: &str, means: Means) {
    let Some(history) = view.histories.get(id) else { return };
    let [left, right] =
        Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)]).spacing(2).areas(area);
    let degree = if means.utf8 { "°C" } else { "C" };
    let sides = [
        (left, &history.temperature_c, degree, SPAN_C, Color::Red),
        (right, &history.fps, "fps", 1.0, Color::Green),
    ];
    for (area, values, unit, span, color) in sides {
        let width = usize::from(area.width);
        let known = || latest(values, width).filter_map(|v| *v);
        let low = if unit == "fps" { 0.0 } else { known().fold(f64::INFINITY, f64::min) };
        let high = known().fold(f64::NEG_INFINITY, f64::max);
        let mut title = match values.back().copied().flatten() {
            Some(now) => format!("{id}  {now:.1} {unit}, {:.1} to {high:.1}", known().fold(high, f64::min)),
            None => format!("{id}  {unit} not known"),
        };
        // Without the range, then without any figure.
        for end in [", ", "  "] {
            if title.chars().count() > width {
                title.truncate(title.find(end).unwrap_or(title.len()));
            }
        }
        // One part of eight shows that there is a value; what is not known stays empty.
        let range = (high - low).max(span);
        let bars: Vec<Option<u64>> =
            latest(values, width).map(|v| v.map(|v| 1 + (1000.0 * (v - low) / range) as u64)).collect();
        let bars = Sparkline::default()
            .block(Block::new().title(title))
            .data(bars)
            .max(1001)
            .bar_set(if means.utf8 { bar::NINE_LEVELS } else { ASCII_BARS })
            .absent_value_symbol(" ")
            .style(means.style(color));
        frame.render_widget(bars, area);
    }
}

fn latest(values: &VecDeque<Option<f64>>, width: usize) -> impl Iterator<Item = &Option<f64>> {
    values.iter().skip(values.len().saturating_sub(width))
}

fn footer(frame: &mut Frame<'_>, area: Rect, view: &View, means: Means) {
    let line = match &view.remark {
        Some(remark) => Line::styled(remark.clone(), means.style(Color::Yellow)),
        None => Line::styled(keys(view, usize::from(area.width)), Style::new().add_modifier(Modifier::DIM)),
    };
    frame.render_widget(Paragraph::new(line), area);
}

/// What keys do, as much as finds room.
fn keys(view: &View, width: usize) -> String {
    let order = if view.reverse { ", reversed" } else { "" };
    let sort = format!("s sort ({}{order})", view.sort.as_str());
    let mut text = "q quit".to_owned();
    for key in [&*sort, "r reverse", "p pause", "o policy", "up/down scroll"] {
        if text.len() + 2 + key.len() > width {
            break;
        }
        text.push_str("  ");
        text.push_str(key);
    }
    text
}

#[cfg(test)]
mod tests;
