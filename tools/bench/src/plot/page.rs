//! The page: sections of one unit each, with an axis of their own.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::scale::Scale;
use super::target::{self, Of, Target};
use crate::report::{Case, Report};

const WIDTH: i32 = 1120;
const MARGIN: i32 = 24;
/// Title, where it ran, and what the marks mean.
const HEAD: i32 = 104;
/// Above the rows of a section: its name and the names of columns.
const SECTION_HEAD: i32 = 44;
const ROW: i32 = 30;
/// Below the rows: the values at the axis, and room to the next section.
const SECTION_FOOT: i32 = 36;
const NAME_END: i32 = 292;
const VALUES: Span = Span(308, 700);
/// Right ends of the columns of numbers.
const GUEST_END: i32 = 782;
const NATIVE_END: i32 = 864;
const RATIOS: Span = Span(890, 1030);
const RATIO_END: i32 = WIDTH - MARGIN;
/// From the middle of a row to each of the two sides.
const SIDE: i32 = 6;

const INK: RGBColor = RGBColor(31, 41, 55);
const FAINT: RGBColor = RGBColor(107, 114, 128);
const GRID: RGBColor = RGBColor(226, 230, 236);
const BAND: RGBColor = RGBColor(247, 248, 250);
const GUEST: RGBColor = RGBColor(29, 99, 190);
const NATIVE: RGBColor = RGBColor(148, 156, 168);
const TARGET: RGBColor = RGBColor(22, 133, 84);
const MISSED: RGBColor = RGBColor(200, 78, 20);

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
#[error("Cannot draw the report: {reason}")]
pub struct PlotError {
    /// What the drawing library says.
    reason: String,
}

impl PlotError {
    pub(super) fn of(cause: impl std::fmt::Display) -> Self {
        Self {
            reason: cause.to_string(),
        }
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// From left to right, in pixels.
#[derive(Debug, Clone, Copy)]
struct Span(i32, i32);

impl Span {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a place on the page: within the span, which is narrower than 2^31"
    )]
    fn at(self, scale: &Scale, value: f64) -> i32 {
        self.0 + (scale.place(value) * f64::from(self.1 - self.0)).round() as i32
    }
}

/// A case, and the one that it is compared with if that is another.
#[derive(Debug)]
struct Row<'a> {
    case: &'a Case,
    reference: Option<&'a Case>,
    target: Option<Target>,
}

/// Rows of one unit.
#[derive(Debug)]
struct Section<'a> {
    unit: &'a str,
    rows: Vec<Row<'a>>,
}

/// Draws `report` as one SVG page.
///
/// # Errors
/// [`PlotError`].
pub fn draw(report: &Report) -> Result<String, PlotError> {
    let sections = sections(&report.cases);
    let heights: i32 = sections.iter().map(Section::height).sum();
    let height = HEAD + heights + MARGIN;
    let size = [WIDTH, height].map(i32::unsigned_abs);
    let mut svg = String::new();
    let drawn = {
        let pen = Pen {
            area: SVGBackend::with_string(&mut svg, size.into()).into_drawing_area(),
        };
        draw_page(&pen, report, &sections).and_then(|()| pen.area.present())
    };
    drawn.map_err(PlotError::of)?;
    Ok(svg)
}

/// Cases by unit, each in the order of the report; first those that are compared with others. References have no row of their
/// own.
fn sections(cases: &[Case]) -> Vec<Section<'_>> {
    let mut sections: Vec<Section<'_>> = Vec::new();
    let is_reference = |case: &Case| {
        cases
            .iter()
            .any(|other| other.reference == case.name && other.name != case.name)
    };
    for case in cases.iter().filter(|case| !is_reference(case)) {
        let reference = cases
            .iter()
            .find(|other| other.name == case.reference && other.name != case.name);
        let row = Row {
            case,
            reference,
            target: target::of(case),
        };
        match sections
            .iter_mut()
            .find(|section| section.unit == case.unit)
        {
            Some(section) => section.rows.push(row),
            None => sections.push(Section {
                unit: &case.unit,
                rows: vec![row],
            }),
        }
    }
    sections.sort_by_key(|section| !section.has_references());
    sections
}

impl Section<'_> {
    fn height(&self) -> i32 {
        SECTION_HEAD + self.rows_height() + SECTION_FOOT
    }

    fn rows_height(&self) -> i32 {
        ROW * i32::try_from(self.rows.len()).unwrap_or(0)
    }

    fn has_references(&self) -> bool {
        self.rows.iter().any(|row| row.reference.is_some())
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        self.rows.iter().flat_map(|row| {
            let cases = std::iter::once(row.case).chain(row.reference);
            let bounds = cases.flat_map(|case| [case.min, case.p50, case.p99]);
            bounds.chain(row.target_of(Of::P50).map(|target| target.value))
        })
    }

    fn ratios(&self) -> impl Iterator<Item = f64> {
        let rows = self.rows.iter().filter(|row| row.reference.is_some());
        rows.flat_map(|row| {
            let target = row.target_of(Of::Ratio).map(|target| target.value);
            std::iter::once(row.case.ratio).chain(target)
        })
    }
}

impl Row<'_> {
    fn target_of(&self, of: Of) -> Option<Target> {
        self.target.filter(|target| target.of == of)
    }
}

fn draw_page(pen: &Pen<'_>, report: &Report, sections: &[Section<'_>]) -> Drawn {
    pen.area.fill(&WHITE)?;
    let title = format!("lightv bench {}", report.bench);
    pen.text(&title, (MARGIN, 32), Look::new(22.0, &INK).bold())?;
    pen.text(&report.place(), (MARGIN, 56), Look::new(13.0, &FAINT))?;
    draw_legend(pen, sections)?;
    let mut top = HEAD;
    for section in sections {
        draw_section(pen, section, top)?;
        top += section.height();
    }
    Ok(())
}

/// What the marks mean.
fn draw_legend(pen: &Pen<'_>, sections: &[Section<'_>]) -> Drawn {
    let y = 82;
    let rows = || sections.iter().flat_map(|section| &section.rows);
    let mut x = MARGIN + 4;
    let mut entry = |color: RGBColor, label: &str, is_line: bool| -> Drawn {
        if is_line {
            pen.line((x + 14, y - 8), (x + 14, y + 8), &color, 2)?;
        } else {
            pen.range(Span(x, x + 28), x + 12, y, &color)?;
        }
        pen.text(label, (x + 38, y), Look::new(13.0, &INK))?;
        x += 38 + width_of(label) + 28;
        Ok(())
    };
    entry(GUEST, "LightV: min, p50 (dot), p99", false)?;
    let mut references: Vec<&str> = rows()
        .filter_map(|row| Some(name_of_side(&row.reference?.name)))
        .collect();
    references.dedup();
    if let [first, rest @ ..] = references.as_slice() {
        let is_one = rest.iter().all(|name| name == first);
        let label = if is_one {
            first
        } else {
            "what it is compared with"
        };
        entry(NATIVE, label, false)?;
    }
    if rows().any(|row| row.target.is_some()) {
        entry(TARGET, "target", true)?;
    }
    Ok(())
}

/// What a reference is, for the legend.
fn name_of_side(name: &str) -> &str {
    if name.starts_with("native.") {
        "native: the host with itself"
    } else {
        name
    }
}

/// Of a text of 13 pixels, about: fonts differ.
fn width_of(text: &str) -> i32 {
    i32::try_from(text.chars().count()).unwrap_or(0) * 7
}

fn draw_section(pen: &Pen<'_>, section: &Section<'_>, top: i32) -> Drawn {
    let rows_top = top + SECTION_HEAD;
    let rows_end = rows_top + section.rows_height();
    let (values, ratios) = (
        Scale::of(section.values()),
        Scale::of(section.ratios().chain([1.0])),
    );
    let has_references = section.has_references();
    let kind = if values.is_log() { " (log)" } else { "" };
    let unit = format!("{}{kind}", unit_text(section.unit));
    pen.text(&unit, (MARGIN, top + 30), Look::new(15.0, &INK).bold())?;
    pen.column("p50", GUEST_END, top + 30, &FAINT)?;
    if has_references {
        pen.column("reference", NATIVE_END, top + 30, &FAINT)?;
        pen.column("p50 ÷ reference", RATIO_END, top + 30, &FAINT)?;
    }
    for (number, row) in (0..).zip(&section.rows) {
        let y = rows_top + number * ROW;
        if number % 2 == 0 {
            pen.rectangle((MARGIN - 8, y), (WIDTH - MARGIN + 8, y + ROW), &BAND)?;
        }
        pen.name(&row.case.name, y + ROW / 2)?;
    }
    draw_axis(pen, &values, VALUES, (rows_top, rows_end))?;
    if has_references {
        draw_axis(pen, &ratios, RATIOS, (rows_top, rows_end))?;
        let one = RATIOS.at(&ratios, 1.0);
        pen.line((one, rows_top), (one, rows_end), &FAINT, 1)?;
    }
    for (number, row) in (0..).zip(&section.rows) {
        let y = rows_top + number * ROW + ROW / 2;
        draw_values(pen, row, &values, y)?;
        draw_ratio(pen, row, &ratios, y)?;
    }
    Ok(())
}

/// Lines over all rows, and the values below them.
fn draw_axis(pen: &Pen<'_>, scale: &Scale, span: Span, (top, end): (i32, i32)) -> Drawn {
    let mut free_from = i32::MIN;
    for tick in &scale.ticks {
        let x = span.at(scale, *tick);
        pen.line((x, top), (x, end + 4), &GRID, 1)?;
        let label = short(*tick);
        let half = width_of(&label) / 2;
        // One that would touch the one before is left out; its line says enough.
        if x - half >= free_from {
            pen.centered(&label, (x, end + 14))?;
            free_from = x + half + 6;
        }
    }
    Ok(())
}

fn draw_values(pen: &Pen<'_>, row: &Row<'_>, scale: &Scale, y: i32) -> Drawn {
    let side = |case: &Case, y: i32, color: &RGBColor| {
        let ends = Span(VALUES.at(scale, case.min), VALUES.at(scale, case.p99));
        pen.range(ends, VALUES.at(scale, case.p50), y, color)
    };
    match row.reference {
        Some(reference) => {
            side(reference, y + SIDE, &NATIVE)?;
            side(row.case, y - SIDE, &GUEST)?;
            pen.column(&short(reference.p50), NATIVE_END, y, &FAINT)?;
        }
        None => side(row.case, y, &GUEST)?,
    }
    let target = row.target_of(Of::P50);
    if let Some(target) = target {
        let x = VALUES.at(scale, target.value);
        pen.line((x, y - ROW / 2), (x, y + ROW / 2), &TARGET, 2)?;
    }
    let color = color_of(row, target);
    pen.column(&short(row.case.p50), GUEST_END, y, color)
}

fn draw_ratio(pen: &Pen<'_>, row: &Row<'_>, scale: &Scale, y: i32) -> Drawn {
    if row.reference.is_none() {
        return Ok(());
    }
    let target = row.target_of(Of::Ratio);
    if let Some(target) = target {
        let x = RATIOS.at(scale, target.value);
        pen.line((x, y - ROW / 2), (x, y + ROW / 2), &TARGET, 2)?;
    }
    let (one, x) = (RATIOS.at(scale, 1.0), RATIOS.at(scale, row.case.ratio));
    pen.line((one, y), (x, y), &GUEST, 2)?;
    pen.dot((x, y), &GUEST)?;
    let color = color_of(row, target);
    pen.column(&short(row.case.ratio), RATIO_END, y, color)
}

/// Of a number: whether its target is met.
fn color_of(row: &Row<'_>, target: Option<Target>) -> &'static RGBColor {
    match target {
        Some(target) if target.is_met(row.case) => &TARGET,
        Some(_) => &MISSED,
        None => &INK,
    }
}

fn unit_text(unit: &str) -> &str {
    match unit {
        "us" => "µs",
        "s/GB" => "processor time, s/GB",
        "M/s" => "millions a second",
        other => other,
    }
}

/// Three digits that count; thousands as k, millions as M.
fn short(value: f64) -> String {
    let (value, suffix) = match value.abs() {
        size if size >= 999_500.0 => (value / 1e6, "M"),
        size if size >= 9_995.0 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.0995 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{suffix}")
}

/// How a text looks.
#[derive(Clone, Copy)]
struct Look<'a> {
    size: f64,
    color: &'a RGBColor,
    style: FontStyle,
}

impl<'a> Look<'a> {
    const fn new(size: f64, color: &'a RGBColor) -> Self {
        Self {
            size,
            color,
            style: FontStyle::Normal,
        }
    }

    const fn bold(self) -> Self {
        Self {
            style: FontStyle::Bold,
            ..self
        }
    }
}

/// Marks on the page.
struct Pen<'a> {
    area: Area<'a>,
}

impl Pen<'_> {
    fn write(&self, text: &str, at: (i32, i32), look: Look<'_>, anchor: HPos) -> Drawn {
        let style = TextStyle::from(("sans-serif", look.size, look.style).into_font())
            .color(look.color)
            .pos(Pos::new(anchor, VPos::Center));
        self.area.draw(&Text::new(text.to_owned(), at, style))
    }

    /// From its left end on.
    fn text(&self, text: &str, at: (i32, i32), look: Look<'_>) -> Drawn {
        self.write(text, at, look, HPos::Left)
    }

    /// A value at an axis.
    fn centered(&self, text: &str, at: (i32, i32)) -> Drawn {
        self.write(text, at, Look::new(11.0, &FAINT), HPos::Center)
    }

    /// A case's name.
    fn name(&self, name: &str, y: i32) -> Drawn {
        self.write(name, (NAME_END, y), Look::new(13.0, &INK), HPos::Right)
    }

    /// A number, or the name of its column.
    fn column(&self, text: &str, end: i32, y: i32, color: &RGBColor) -> Drawn {
        self.write(text, (end, y), Look::new(12.0, color), HPos::Right)
    }

    fn line(&self, from: (i32, i32), to: (i32, i32), color: &RGBColor, width: u32) -> Drawn {
        let style = color.stroke_width(width);
        self.area.draw(&PathElement::new(vec![from, to], style))
    }

    fn rectangle(&self, from: (i32, i32), to: (i32, i32), color: &RGBColor) -> Drawn {
        self.area.draw(&Rectangle::new([from, to], color.filled()))
    }

    fn dot(&self, at: (i32, i32), color: &RGBColor) -> Drawn {
        self.area.draw(&Circle::new(at, 4, color.filled()))
    }

    /// From the smallest value to the 99th percentile, and the median.
    fn range(&self, ends: Span, p50: i32, y: i32, color: &RGBColor) -> Drawn {
        let Span(min, p99) = ends;
        self.line((min, y), (p99, y), color, 2)?;
        for end in [min, p99] {
            self.line((end, y - 3), (end, y + 3), color, 2)?;
        }
        self.dot((p50, y), color)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Host, Settings};

    fn case(name: &str, unit: &str, reference: &str) -> Case {
        Case {
            name: name.into(),
            unit: unit.into(),
            n: 3,
            min: 10.0,
            p50: 20.0,
            p99: 40.0,
            max: 50.0,
            reference: reference.into(),
            ratio: 0.5,
        }
    }

    fn report() -> Report {
        Report {
            bench: "net <1>".into(),
            host: Host {
                kernel: "6.18".into(),
                cpu: "a CPU".into(),
                cores: 2,
                kvm: "software".into(),
            },
            settings: Settings::new(),
            cases: vec![
                case("net.tcp.g2h.cpu", "s/GB", "net.tcp.g2h.cpu"),
                case("net.tcp.g2h", "MB/s", "native.net.tcp.g2h"),
                case("native.net.tcp.g2h", "MB/s", "native.net.tcp.g2h"),
            ],
        }
    }

    #[test]
    fn each_case_has_a_row_beside_its_reference_and_its_unit_an_axis() {
        let report = report();
        let sections = sections(&report.cases);
        let found: Vec<_> = sections
            .iter()
            .map(|section| (section.unit, section.rows.len(), section.has_references()))
            .collect();
        assert_eq!(found, [("MB/s", 1, true), ("s/GB", 1, false)]);
        let svg = draw(&report).expect("a picture");
        for text in [
            "lightv bench net &lt;1&gt;",
            "a CPU, 2 cores, Linux 6.18, software KVM",
            "net.tcp.g2h.cpu",
            "native: the host with itself",
            "target",
        ] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn nothing_lies_beyond_the_page() {
        let mut report = report();
        let odd = [0.0, f64::NAN, f64::INFINITY, -1.0, 1e300];
        for (number, value) in odd.into_iter().enumerate() {
            let mut case = case(&format!("odd.{number}"), "MB/s", "native.net.tcp.g2h");
            (case.min, case.p50, case.p99, case.ratio) = (value, value, value, value);
            report.cases.push(case);
        }
        let svg = draw(&report).expect("a picture");
        for name in ["x", "x1", "x2", "cx"] {
            for part in svg.split(&format!(" {name}=\"")).skip(1) {
                let number = part.split('"').next().and_then(|text| text.parse().ok());
                let x: f64 = number.expect("a number");
                assert!((0.0..=f64::from(WIDTH)).contains(&x), "{name}={x}");
            }
        }
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.0123, "0.012"),
            (0.5, "0.5"),
            (9.996, "10"),
            (66.45, "66.5"),
            (1655.2, "1655"),
            (9999.0, "10k"),
            (66_400.0, "66.4k"),
            (1_500_000.0, "1.5M"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
