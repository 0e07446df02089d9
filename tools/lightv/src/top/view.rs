//! Draws what is to be shown.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row as TableRow, Sparkline, Table, Wrap};

use super::app::{App, Mode};
use super::columns::{Column, Shown, fitting, printable, whole};
use super::history::History;
use super::sampler::Row;
use crate::text;

/// The least that something can be shown on, in characters.
const LEAST: (u16, u16) = (24, 4);
/// What a graph's height stands for at least, so that next to nothing looks like it: tenths of a percent of a core, and bytes a
/// second. Those in the table can be compared: a core.
const CORE: u64 = 1000;
const CPU_FLOOR: u64 = 100;
const TRANSFER_FLOOR: u64 = 64 << 10;

/// Draws a frame.
pub(super) fn draw(frame: &mut Frame<'_>, app: &mut App) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let text = format!("{} × {} is too small", area.width, area.height);
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        return;
    }
    let [top, main, bottom] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(summary(app)), top);
    let shows_details = match &app.mode {
        Mode::Details => true,
        Mode::Ask(question) => question.is_in_details(),
        Mode::Table | Mode::Filter => false,
    };
    if shows_details {
        draw_details(frame, app, main);
    } else {
        draw_table(frame, app, main);
    }
    frame.render_widget(Paragraph::new(footer(app)), bottom);
}

/// The first line: sums over all.
fn summary(app: &App) -> Line<'static> {
    let totals = app.totals();
    let mut parts = vec![Span::styled("lightv top", app.theme.title())];
    if app.has_looked() {
        let count = match totals.count {
            1 => "1 microVM".to_owned(),
            count => format!("{count} microVMs"),
        };
        let part = |count, what| (count > 0).then(|| format!("{count} {what}"));
        let states = [
            part(totals.paused, "paused"),
            part(totals.silent, "not answering"),
        ];
        let states: Vec<String> = states.into_iter().flatten().collect();
        let states = match &states[..] {
            [] => String::new(),
            states => format!(" ({})", states.join(", ")),
        };
        parts.push(Span::raw(format!(
            "  {count}{states}  CPU {:.1} %  memory {}  I/O {}/s",
            totals.cpu_percent,
            text::bytes(totals.resident_kib.saturating_mul(1024)),
            text::bytes(whole(totals.transfer)),
        )));
    }
    Line::from(parts)
}

/// The last line: what keys do, what is asked, or what there is to say.
fn footer(app: &App) -> Line<'static> {
    let theme = app.theme;
    let keys = |keys: &[(&'static str, &'static str)]| {
        let spans = keys.iter().flat_map(|(key, what)| {
            [
                Span::styled(*key, theme.key()),
                Span::raw(format!(" {what}  ")),
            ]
        });
        Line::from(spans.collect::<Vec<_>>())
    };
    match (&app.mode, &app.message) {
        (Mode::Ask(question), _) => Line::from(vec![
            Span::styled(question.text(), theme.question()),
            Span::raw("  "),
            Span::styled("y", theme.key()),
            Span::raw(" yes  "),
            Span::styled("n", theme.key()),
            Span::raw(" no"),
        ]),
        (_, Some(message)) => Line::from(printable(message)),
        (Mode::Filter, _) => Line::from(vec![
            Span::styled("/", theme.key()),
            Span::raw(printable(&app.filter)),
            Span::styled(" ", theme.selected()),
            Span::raw("  "),
            Span::styled("enter", theme.key()),
            Span::raw(" keep  "),
            Span::styled("esc", theme.key()),
            Span::raw(" all"),
        ]),
        (Mode::Table, _) => keys(&[
            ("↑↓", "select"),
            ("←→", "sort"),
            ("r", "reverse"),
            ("/", "filter"),
            ("enter", "details"),
            ("s", "stop"),
            ("k", "kill"),
            ("q", "quit"),
        ]),
        (Mode::Details, _) => keys(&[
            ("↑↓", "next"),
            ("esc", "back"),
            ("s", "stop"),
            ("k", "kill"),
            ("q", "quit"),
        ]),
    }
}

fn draw_table(frame: &mut Frame<'_>, app: &mut App, area: Rect) {
    let place = app.place();
    app.table.select(place);
    app.page = usize::from(area.height.saturating_sub(1)).max(1);
    let rows = app.rows();
    if rows.is_empty() {
        let text = match (app.has_looked(), app.filter.is_empty()) {
            (false, _) => "Looking …".to_owned(),
            (true, true) => {
                "No microVM runs. Start one: lightv run -d hello-world, or: lightv help run"
                    .to_owned()
            }
            (true, false) => format!("No microVM fits the filter {}", printable(&app.filter)),
        };
        let text = Paragraph::new(text).alignment(Alignment::Center);
        let [_, middle, _] = Layout::vertical([
            Constraint::Fill(1),
            Constraint::Length(2),
            Constraint::Fill(1),
        ])
        .areas(area);
        frame.render_widget(text.wrap(Wrap { trim: true }), middle);
        return;
    }
    let shown = fitting(area.width, app.sort);
    let cells = |row: &&Row| {
        let cells = shown
            .iter()
            .map(|(shown, width)| cell(app, row, *shown, *width));
        TableRow::new(cells.collect::<Vec<_>>())
    };
    let titles = shown
        .iter()
        .map(|(shown, width)| title(app, *shown, *width));
    let widths = shown.iter().map(|(_, width)| Constraint::Length(*width));
    let table = Table::new(rows.iter().map(cells).collect::<Vec<_>>(), widths)
        .header(TableRow::new(titles.collect::<Vec<_>>()))
        .column_spacing(1)
        .row_highlight_style(app.theme.selected());
    let mut state = app.table;
    frame.render_stateful_widget(table, area, &mut state);
    app.table = state;
}

/// A text of `width` characters, on the left or on the right.
fn aligned(text: &str, width: u16, is_left: bool) -> String {
    let width = usize::from(width);
    let is_cut = text.chars().count() > width;
    match is_left {
        true if is_cut => {
            let kept: String = text.chars().take(width.saturating_sub(1)).collect();
            format!("{kept}…")
        }
        true => format!("{text:<width$}"),
        false => format!("{text:>width$}"),
    }
}

fn title(app: &App, shown: Shown, width: u16) -> Cell<'static> {
    let (text, is_left, style) = match shown {
        Shown::Column(column) => {
            let is_sorted = column == app.sort;
            let is_upwards = column.is_text() != app.is_reversed;
            let mark = match (is_sorted, is_upwards) {
                (false, _) => "",
                (true, true) => "▴",
                (true, false) => "▾",
            };
            let style = if is_sorted {
                app.theme.sorted()
            } else {
                app.theme.title()
            };
            (format!("{}{mark}", column.title()), column.is_text(), style)
        }
        Shown::CpuGraph => ("CPU".to_owned(), true, app.theme.title()),
        Shown::TransferGraph => ("I/O".to_owned(), true, app.theme.title()),
    };
    let padding = usize::from(width).saturating_sub(text.chars().count());
    let padding = Span::raw(" ".repeat(padding));
    let text = Span::styled(text, style);
    Cell::from(Line::from(match is_left {
        true => vec![text, padding],
        false => vec![padding, text],
    }))
}

fn cell(app: &App, row: &Row, shown: Shown, width: u16) -> Cell<'static> {
    let line = |of: fn(&super::app::Past) -> &History, floor| {
        let past = app.past(row).map(of);
        past.map(|past| past.line(usize::from(width), floor))
            .unwrap_or_default()
    };
    let (text, style) = match shown {
        Shown::Column(column) => {
            let style = match column {
                Column::State => app.theme.state(row.state),
                _ => Style::new(),
            };
            let text = column.cell(row, app.now());
            (aligned(&text, width, column.is_text()), style)
        }
        Shown::CpuGraph => (line(|past| &past.cpu, CORE), app.theme.cpu()),
        Shown::TransferGraph => {
            let graph = line(|past| &past.transfer, TRANSFER_FLOOR);
            (graph, app.theme.transfer())
        }
    };
    // Reversed, a colour would be a bar across the row.
    let style = match app.is_selected(row) {
        true => Style::new(),
        false => style,
    };
    Cell::from(Span::styled(text, style))
}

/// All that is known of the selected one.
fn draw_details(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let Some(row) = app.selected() else {
        return;
    };
    let facts = facts(app, row);
    let height = u16::try_from(facts.len()).unwrap_or(u16::MAX);
    let [above, below] =
        Layout::vertical([Constraint::Max(height), Constraint::Min(0)]).areas(area);
    frame.render_widget(Paragraph::new(facts), above);
    if below.height < 3 {
        return;
    }
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(below);
    let Some(past) = app.past(row) else {
        return;
    };
    #[expect(clippy::cast_precision_loss, reason = "tenths of a percent")]
    let percent = |tenths: u64| format!("{:.1} %", tenths as f64 / 10.0);
    let rate = |bytes: u64| format!("{}/s", text::bytes(bytes));
    draw_graph(
        frame,
        left,
        &past.cpu,
        ("CPU", &percent, CPU_FLOOR),
        app.theme.cpu(),
    );
    let transfer = (
        "disks and networks",
        &rate as &dyn Fn(u64) -> String,
        TRANSFER_FLOOR,
    );
    draw_graph(frame, right, &past.transfer, transfer, app.theme.transfer());
}

fn draw_graph(
    frame: &mut Frame<'_>,
    area: Rect,
    history: &History,
    (name, text, floor): (&str, &dyn Fn(u64) -> String, u64),
    style: Style,
) {
    let width = usize::from(area.width.saturating_sub(2));
    let values: Vec<u64> = history.last(width).collect();
    let highest = values.iter().copied().max().unwrap_or(0).max(floor);
    let now = values.last().copied().unwrap_or(0);
    let title = format!(" {name}: {}, at most {} ", text(now), text(highest));
    // The newest on the right.
    let empty = vec![0; width - values.len()];
    let graph = Sparkline::default()
        .block(Block::bordered().title(title))
        .data([empty, values].concat())
        .max(highest)
        .style(style);
    frame.render_widget(graph, area);
}

fn facts(app: &App, row: &Row) -> Vec<Line<'static>> {
    let vm = &row.vm;
    let path = |path: &Option<std::path::PathBuf>| {
        path.as_ref().map_or_else(
            || "-".to_owned(),
            |path| printable(&path.display().to_string()),
        )
    };
    let cell = |column: Column| column.cell(row, app.now());
    let details = row.taken.and_then(|taken| taken.details);
    let kib = |kib: Option<u64>| {
        kib.map_or_else(
            || "-".to_owned(),
            |kib| text::bytes(kib.saturating_mul(1024)),
        )
    };
    let count = |count: Option<usize>| count.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let process = format!(
        "{}, LightV {}, {} threads, {} open files",
        vm.pid,
        printable(&vm.version),
        count(row.taken.map(|taken| taken.threads)),
        count(details.map(|details| details.open_files)),
    );
    let memory = format!(
        "{} resident; own {}, guest {}, of it alone {}",
        cell(Column::Memory),
        kib(details.map(|details| details.own_kib)),
        kib(details.map(|details| details.guest_kib)),
        kib(details.map(|details| details.guest_private_kib)),
    );
    let now = format!(
        "CPU {} %, {} exits/s",
        cell(Column::Cpu),
        cell(Column::Exits)
    );
    let rates = format!(
        "read {}/s, write {}/s, receive {}/s, send {}/s",
        cell(Column::Read),
        cell(Column::Written),
        cell(Column::Received),
        cell(Column::Sent),
    );
    let line = |name: &str, value: String| {
        let name = Span::styled(format!("{name:<9} "), app.theme.title());
        Line::from(vec![name, Span::raw(value)])
    };
    let state = Span::styled(row.state.to_string(), app.theme.state(row.state));
    let up = format!(", up {}", cell(Column::Up));
    let name = Span::styled(format!("{:<9} ", printable(&vm.id)), app.theme.title());
    vec![
        Line::from(vec![name, state, Span::raw(up)]),
        line("process", process),
        line("source", path(&vm.source)),
        line("API", path(&vm.api_socket)),
        line("log", path(&vm.log)),
        line("memory", memory),
        line("now", now),
        line("I/O", rates),
        line("in all", moved(row)),
    ]
}

/// What was moved since the start.
fn moved(row: &Row) -> String {
    match row.taken.and_then(|taken| taken.moved) {
        Some(moved) => format!(
            "read {}, written {}, received {}, sent {}, {} exits",
            text::bytes(moved.disk_read_bytes),
            text::bytes(moved.disk_written_bytes),
            text::bytes(moved.net_received_bytes),
            text::bytes(moved.net_sent_bytes),
            moved.exits
        ),
        None => "- (no API is served, or it does not answer)".to_owned(),
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
