//! A picture of a terminal's screen, as SVG: for the documentation.

use std::fmt::Write as _;

use vt100::{Cell, Color, Screen};

/// Size of a character in pixels, and the room around the screen.
const WIDTH: f64 = 8.4;
const HEIGHT: f64 = 18.0;
const MARGIN: f64 = 12.0;
const FONT_SIZE: f64 = 14.0;
/// Where letters stand in a character's height.
const BASELINE: f64 = 13.5;

const PAPER: &str = "#16181d";
const INK: &str = "#d6dae0";
/// The first sixteen colours of a terminal.
const COLOURS: [&str; 16] = [
    "#16181d", "#e06c75", "#7fc27a", "#e0b569", "#6aa5f0", "#c58ae0", "#56b6c2", "#d6dae0",
    "#7d8590", "#ff7b86", "#98d88f", "#f0cd80", "#8abaff", "#d7a6ee", "#74d0dc", "#ffffff",
];

/// How a stretch of a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    ink: &'static str,
    paper: &'static str,
    is_bold: bool,
    is_underlined: bool,
}

impl Look {
    fn of(cell: &Cell) -> Self {
        let colour = |colour, otherwise| match colour {
            Color::Idx(number) => COLOURS
                .get(usize::from(number))
                .copied()
                .unwrap_or(otherwise),
            Color::Default | Color::Rgb(..) => otherwise,
        };
        let (ink, paper) = (colour(cell.fgcolor(), INK), colour(cell.bgcolor(), PAPER));
        let (ink, paper) = match cell.inverse() {
            true => (paper, ink),
            false => (ink, paper),
        };
        Self {
            ink,
            paper,
            is_bold: cell.bold(),
            is_underlined: cell.underline(),
        }
    }
}

/// Draws `screen`.
#[must_use]
pub fn svg(screen: &Screen) -> String {
    let (rows, columns) = screen.size();
    let (rows, columns) = (u16::from(rows), u16::from(columns));
    let width = f64::from(columns) * WIDTH + 2.0 * MARGIN;
    let height = f64::from(rows) * HEIGHT + 2.0 * MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.1} {height:.1}\" \
         font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" font-size=\"{FONT_SIZE}\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{PAPER}\"/>\n"
    );
    for row in 0..rows {
        draw_row(&mut out, screen, row, columns);
    }
    out.push_str("</svg>\n");
    out
}

fn draw_row(out: &mut String, screen: &Screen, row: u16, columns: u16) {
    let mut stretch: Option<(u16, Look, String)> = None;
    for column in 0..columns {
        let Some(cell) = screen.cell(row, column) else {
            continue;
        };
        let look = Look::of(cell);
        let symbol = match cell.contents() {
            "" => " ",
            symbol => symbol,
        };
        match &mut stretch {
            Some((_, same, text)) if *same == look => text.push_str(symbol),
            _ => {
                if let Some(done) = stretch.replace((column, look, symbol.to_owned())) {
                    draw_stretch(out, row, &done);
                }
            }
        }
    }
    if let Some(done) = stretch {
        draw_stretch(out, row, &done);
    }
}

fn draw_stretch(out: &mut String, row: u16, (column, look, text): &(u16, Look, String)) {
    let (left, top) = (
        MARGIN + f64::from(*column) * WIDTH,
        MARGIN + f64::from(row) * HEIGHT,
    );
    let length = f64::from(u32::try_from(text.chars().count()).unwrap_or(0)) * WIDTH;
    if look.paper != PAPER {
        let paper = look.paper;
        let _ = writeln!(
            out,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{length:.1}\" height=\"{HEIGHT}\" fill=\"{paper}\"/>"
        );
    }
    // Bars are drawn: fonts leave gaps between them.
    let mut place = left;
    for symbol in text.chars() {
        if let Some(eighths) = eighths(symbol) {
            let high = HEIGHT * f64::from(eighths) / 8.0;
            let y = top + HEIGHT - high;
            let _ = writeln!(
                out,
                "<rect x=\"{place:.1}\" y=\"{y:.2}\" width=\"{WIDTH}\" height=\"{high:.2}\" fill=\"{}\"/>",
                look.ink
            );
        }
        place += WIDTH;
    }
    let letters: String = text
        .chars()
        .map(|symbol| {
            if eighths(symbol).is_some() {
                ' '
            } else {
                symbol
            }
        })
        .collect();
    if letters.trim().is_empty() && !look.is_underlined {
        return;
    }
    let weight = if look.is_bold {
        " font-weight=\"bold\""
    } else {
        ""
    };
    let line = if look.is_underlined {
        " text-decoration=\"underline\""
    } else {
        ""
    };
    let baseline = top + BASELINE;
    let _ = writeln!(
        out,
        "<text x=\"{left:.1}\" y=\"{baseline:.1}\" textLength=\"{length:.1}\" xml:space=\"preserve\" \
         fill=\"{}\"{weight}{line}>{}</text>",
        look.ink,
        escaped(&letters)
    );
}

/// How high a bar is.
const fn eighths(symbol: char) -> Option<u8> {
    match symbol {
        '▁' => Some(1),
        '▂' => Some(2),
        '▃' => Some(3),
        '▄' => Some(4),
        '▅' => Some(5),
        '▆' => Some(6),
        '▇' => Some(7),
        '█' => Some(8),
        _ => None,
    }
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;");
    text.replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_keep_their_places_and_bars_are_drawn() {
        let size = |length| std::num::NonZeroU16::new(length).expect("a size");
        let mut terminal = vt100::Parser::new(size(2), size(20), 0);
        terminal.process("a<b \u{1b}[1;32mok\u{1b}[0m ▄█\r\n\u{1b}[7msel\u{1b}[0m".as_bytes());
        let picture = svg(terminal.screen());
        assert!(picture.contains(">a&lt;b </text>"), "{picture}");
        assert!(
            picture.contains("font-weight=\"bold\">ok</text>"),
            "{picture}"
        );
        assert_eq!(
            picture.matches("<rect x=").count(),
            3,
            "two bars, one reversed: {picture}"
        );
    }
}
