//! How much of each resource of a host machines take, over their number: an SVG page.

use plotters::prelude::*;

use super::page::PlotError;
use crate::simulate::{self, Costs, Host, Resource};

const SIZE: (u32, u32) = (1120, 640);
const STEPS: u64 = 200;
/// More of a resource than this is cut off: 1 is all that there is.
const TAKEN_MAX: f64 = 1.25;
const INK: RGBColor = RGBColor(31, 41, 55);
const GRID: RGBColor = RGBColor(226, 230, 236);
const LIMIT: RGBColor = RGBColor(200, 78, 20);
const COLOURS: [RGBColor; 5] = [
    RGBColor(29, 99, 190),
    RGBColor(22, 133, 84),
    RGBColor(140, 80, 180),
    RGBColor(190, 140, 20),
    RGBColor(107, 114, 128),
];

/// A picture of `costs` on `host`, which `title` describes, up to `machines`. Each of `measured`, a number of machines and the part
/// of a resource that they took, is a dot.
///
/// # Errors
/// [`PlotError`].
pub fn draw(
    title: &str,
    (costs, host): (&Costs, &Host),
    machines: u64,
    measured: &[(u64, Resource, f64)],
) -> Result<String, PlotError> {
    let mut svg = String::new();
    let drawn = draw_into(&mut svg, title, (costs, host), (machines.max(1), measured));
    drawn.map_err(PlotError::of)?;
    Ok(svg)
}

type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn draw_into(
    svg: &mut String,
    title: &str,
    (costs, host): (&Costs, &Host),
    (machines, measured): (u64, &[(u64, Resource, f64)]),
) -> Drawn {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20).into_font().color(&INK))
        .margin(24)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..machines as f64, 0.0..TAKEN_MAX)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .x_desc("machines")
        .y_desc("taken of what there is")
        .x_label_formatter(&|value| format!("{value:.0}"))
        .y_label_formatter(&|part| format!("{:.0} %", part * 100.0))
        .draw()?;
    for (resource, colour) in Resource::ALL.into_iter().zip(COLOURS) {
        let at = |step| {
            let count = machines * step / STEPS;
            let part = simulate::taken(costs, host, resource, count)?;
            Some((count as f64, part))
        };
        let line: Vec<(f64, f64)> = (0..=STEPS)
            .filter_map(at)
            .filter(|(_, part)| *part <= TAKEN_MAX)
            .collect();
        if line.is_empty() {
            continue;
        }
        chart
            .draw_series([PathElement::new(line, colour.stroke_width(3))])?
            .label(resource.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(3)));
        let dots = measured.iter().filter(|(_, of, _)| *of == resource);
        let dots =
            dots.map(|(count, _, part)| Circle::new((*count as f64, *part), 5, colour.filled()));
        chart.draw_series(dots)?;
    }
    let all = [(0.0, 1.0), (machines as f64, 1.0)];
    chart.draw_series([PathElement::new(all, LIMIT.stroke_width(1))])?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(GRID)
        .draw()?;
    area.present()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::Line;

    #[test]
    fn lines_of_what_is_limited_are_drawn_with_their_names() {
        let level = |first| Line { first, slope: 0.0 };
        let costs = Costs {
            memory_kib: level(1024.0),
            idle_cores: level(0.0001),
            start_s: level(0.01),
            threads: None,
            files: None,
        };
        let host = Host {
            cores: 2.0,
            memory_kib: 1e7,
            cpu_share: 0.5,
            starts_per_s: 0.0,
            start_within_s: None,
            threads_max: None,
            files_max: None,
        };
        let measured = [(1000, Resource::Memory, 0.1)];
        let svg = draw("2 cores", (&costs, &host), 10_000, &measured).expect("a picture");
        for text in ["<svg ", "2 cores", "\nmemory\n", "\nCPU\n", "<circle "] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        assert!(!svg.contains("\nopen files\n"), "it has no limit");
    }
}
