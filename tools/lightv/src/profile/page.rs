//! A profile as a picture (SVG), and as a page with it (HTML). Both stand alone: no script, no font, nothing is fetched.

use std::fmt::Write as _;

use super::text::{address, by_name, count, heading, served, time};
use super::{Profile, STEPS};

/// Size of the picture, in pixels: its width, the room for names of threads, and the height of a row.
const WIDTH: f64 = 1080.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 32.0;
const ROW: f64 = 30.0;
const BAR: f64 = 22.0;
/// Of a letter, about: what is wider than its bar is not written into it.
const LETTER: f64 = 6.4;
/// Lines of the time axis, at most.
const TICKS_MAX: f64 = 12.0;

/// Light and dark; steps have one colour each, which tells them apart for those too who see few.
const COLOURS: &str = "\
:root{--ink:#1f2328;--aside:#59636e;--paper:#ffffff;--line:#d1d9e0;--soft:#f6f8fa;\
--spawn:#8c959f;--image_load:#0969da;--sandbox:#8250df;--resources:#bf5b04;--process:#1a7f37;--after:#8c959f}\
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--aside:#9198a1;--paper:#0d1117;--line:#3d444d;--soft:#151b23;\
--spawn:#656c76;--image_load:#2f81f7;--sandbox:#a371f7;--resources:#d18616;--process:#2ea043;--after:#656c76}}";

/// Of the picture.
const PICTURE: &str = "\
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}\
svg .in{fill:#ffffff;pointer-events:none}svg .aside{fill:var(--aside)}\
svg .tick{stroke:var(--line);stroke-width:1}svg .bar{stroke:var(--paper);stroke-width:1}";

/// Of the page.
const PAGE: &str = "\
body{font:14px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1080px;margin:24px auto;padding:0 16px}\
h1{font-size:20px;margin:0}h2{font-size:15px;margin:28px 0 6px}p{margin:4px 0;color:var(--aside)}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{padding:3px 10px;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}\
th{font-weight:600;background:var(--soft)}td.n,th.n{text-align:right}\
.key{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px}\
.two{display:grid;grid-template-columns:1fr 1fr;gap:0 28px}@media (max-width:800px){.two{grid-template-columns:1fr}}\
svg{width:100%;height:auto;display:block;margin-top:14px}";

/// The picture alone, as a file.
pub(crate) fn svg(profile: &Profile) -> String {
    let style = format!("<style>{COLOURS}{PICTURE}</style>");
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}",
        picture(profile, &style)
    )
}

/// Time from left to right.
struct Scale {
    start_us: f64,
    end_us: f64,
}

impl Scale {
    fn of(profile: &Profile) -> Self {
        let starts = profile.steps.iter().map(|step| step.start_us);
        let spans = profile.spans.iter();
        let ends = profile.steps.iter().map(|step| step.end_us);
        let end = ends
            .chain(spans.map(|span| span.end_us))
            .fold(1.0, f64::max);
        Self {
            start_us: starts.fold(0.0, f64::min),
            end_us: end,
        }
    }

    fn x(&self, us: f64) -> f64 {
        let part = (us - self.start_us) / (self.end_us - self.start_us);
        LEFT + part * (WIDTH - LEFT - RIGHT)
    }

    /// Round times, from one line of the axis to the next.
    fn tick_us(&self) -> f64 {
        let least = (self.end_us - self.start_us) / TICKS_MAX;
        let mut tick = 1.0;
        let factors = [2.0, 2.5, 2.0].into_iter().cycle();
        for factor in factors {
            if tick >= least {
                break;
            }
            tick *= factor;
        }
        tick
    }
}

/// Steps and threads, each in its row, over an axis of time.
fn picture(profile: &Profile, style: &str) -> String {
    let mut threads: Vec<&str> = Vec::new();
    for span in &profile.spans {
        if !threads.contains(&span.thread.as_str()) {
            threads.push(&span.thread);
        }
    }
    let scale = Scale::of(profile);
    #[expect(clippy::cast_precision_loss, reason = "a few threads")]
    let rows = threads.len() as f64 + 1.0;
    let bottom = 8.0 + rows * ROW;
    let height = bottom + 26.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>{}</title>{style}\n",
        escaped(&heading(profile))
    );
    draw_axis(&mut out, &scale, bottom);
    draw_name(&mut out, 8.0, "steps");
    for step in &profile.steps {
        let name = step.name.replace('_', " ");
        let ends = (step.start_us, step.end_us);
        draw_bar(&mut out, (&scale, 8.0), ends, (step.name, &name));
    }
    let mut top = 8.0;
    for thread in threads {
        top += ROW;
        draw_name(&mut out, top, thread);
        for span in profile.spans.iter().filter(|span| span.thread == thread) {
            let ends = (span.start_us, span.end_us);
            draw_bar(&mut out, (&scale, top), ends, (span.step, &span.name));
        }
    }
    out.push_str("</svg>\n");
    out
}

fn draw_axis(out: &mut String, scale: &Scale, bottom: f64) {
    let tick = scale.tick_us();
    let mut at = (scale.start_us / tick).ceil() * tick;
    while at <= scale.end_us {
        let x = scale.x(at);
        let label = match at.abs() < f64::EPSILON {
            true => "main".to_owned(),
            false if at < 0.0 => format!("−{}", time(-at)),
            false => time(at),
        };
        let _ = writeln!(
            out,
            "<line class=\"tick\" x1=\"{x:.1}\" y1=\"4\" x2=\"{x:.1}\" y2=\"{bottom}\"/>\
             <text class=\"aside\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
            bottom + 16.0
        );
        at += tick;
    }
}

fn draw_name(out: &mut String, top: f64, name: &str) {
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        LEFT - 8.0,
        top + 15.5,
        escaped(name)
    );
}

fn draw_bar(
    out: &mut String,
    (scale, top): (&Scale, f64),
    (start_us, end_us): (f64, f64),
    (step, name): (&str, &str),
) {
    let (x, end) = (scale.x(start_us), scale.x(end_us));
    let width = (end - x).max(0.5);
    let length = time(end_us - start_us);
    let name = escaped(name);
    let _ = writeln!(
        out,
        "<rect class=\"bar\" x=\"{x:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\" \
         fill=\"var(--{step})\"><title>{name}: {length}, {}</title></rect>",
        step.replace('_', " ")
    );
    #[expect(clippy::cast_precision_loss, reason = "a name is short")]
    let letters = |text: &str| text.chars().count() as f64 * LETTER + 8.0;
    let whole = format!("{name} {length}");
    let text = [whole.as_str(), name.as_str()]
        .into_iter()
        .find(|text| letters(text) <= width);
    if let Some(text) = text {
        let _ = writeln!(
            out,
            "<text class=\"in\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
            x + 5.0,
            top + 15.5
        );
    }
}

/// The page.
pub(crate) fn html(profile: &Profile) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{subject} – lightv profile</title>\n<style>{COLOURS}{PICTURE}{PAGE}</style>\n\
         <h1>lightv profile {subject}</h1>\n<p>{}</p>\n",
        escaped(&heading(profile)),
        subject = escaped(&profile.subject),
    );
    if !profile.steps.is_empty() {
        out.push_str(&picture(profile, ""));
        write_steps(&mut out, profile);
    }
    out.push_str("<div class=\"two\">\n<div>\n");
    write_calls(&mut out, profile);
    out.push_str("</div>\n<div>\n");
    write_exits(&mut out, profile);
    write_pages(&mut out, profile);
    write_devices(&mut out, profile);
    out.push_str("</div>\n</div>\n");
    write_spans(&mut out, profile);
    out.push_str("</html>\n");
    out
}

/// A table under a title; titles of columns that start with `>` stand over numbers. Cells are escaped here.
fn write_table(out: &mut String, title: &str, columns: &[&str], rows: &[Vec<String>]) {
    let class = |column: &str| {
        if column.starts_with('>') {
            " class=\"n\""
        } else {
            ""
        }
    };
    let _ = write!(out, "<h2>{}</h2>\n<table>\n<tr>", escaped(title));
    for column in columns {
        let name = column.trim_start_matches('>');
        let _ = write!(out, "<th{}>{name}", class(column));
    }
    for row in rows {
        out.push_str("\n<tr>");
        for (cell, column) in row.iter().zip(columns) {
            let _ = write!(out, "<td{}>{}", class(column), escaped(cell));
        }
    }
    out.push_str("\n</table>\n");
}

fn write_steps(out: &mut String, profile: &Profile) {
    let keys = STEPS
        .iter()
        .filter(|name| profile.steps.iter().any(|step| step.name == **name));
    let keys: Vec<String> = keys
        .map(|name| {
            format!(
                "<span class=\"key\" style=\"background:var(--{name})\"></span>{}",
                name.replace('_', " ")
            )
        })
        .collect();
    let _ = writeln!(out, "<p>{}</p>", keys.join(" &ensp; "));
    let columns = [
        "Step",
        ">Median",
        ">Least",
        ">Most",
        ">Share",
        ">System calls",
        ">Page faults",
    ];
    let rows = profile.steps.iter().map(|step| {
        vec![
            step.name.replace('_', " "),
            time(step.median_us),
            time(step.min_us),
            time(step.max_us),
            format!(
                "{:.0} %",
                step.median_us / profile.total_us.max(f64::EPSILON) * 100.0
            ),
            count(step.system_calls),
            count(step.faults),
        ]
    });
    write_table(out, "Steps", &columns, &rows.collect::<Vec<_>>());
}

fn write_spans(out: &mut String, profile: &Profile) {
    if profile.spans.is_empty() {
        return;
    }
    let rows = profile.spans.iter().map(|span| {
        vec![
            span.thread.clone(),
            span.name.clone(),
            span.step.replace('_', " "),
            time(span.start_us),
            time(span.end_us - span.start_us),
        ]
    });
    let columns = ["Thread", "Up to", "Step", ">From", ">Time"];
    let title = "Threads, from the first line of main";
    write_table(out, title, &columns, &rows.collect::<Vec<_>>());
}

fn write_calls(out: &mut String, profile: &Profile) {
    let Some(traced) = &profile.system_calls else {
        return;
    };
    let sums = by_name(&traced.calls);
    let rows = sums.iter().map(|call| {
        vec![
            call.name.clone(),
            call.thread.clone(),
            call.count.to_string(),
            time(call.us),
        ]
    });
    let all: u64 = sums.iter().map(|call| call.count).sum();
    let title = format!("{all} system calls");
    let columns = ["Call", "Thread", ">Count", ">Time"];
    write_table(out, &title, &columns, &rows.collect::<Vec<_>>());
    let _ = writeln!(
        out,
        "<p>Of one start under strace, which took {}.</p>",
        time(traced.total_us)
    );
}

fn write_exits(out: &mut String, profile: &Profile) {
    if !profile.exits.is_empty() {
        let mut exits = profile.exits.clone();
        exits.sort_by_key(|exit| std::cmp::Reverse(exit.count));
        let rows = exits.iter().map(|exit| {
            vec![
                exit.reason.clone(),
                address(exit.address),
                exit.place.clone(),
                exit.count.to_string(),
                served(exit.us),
            ]
        });
        let columns = ["Reason", ">Address", "Place", ">Count", ">Time"];
        let title = "Exits of vCPUs to the monitor";
        write_table(out, title, &columns, &rows.collect::<Vec<_>>());
    }
    let counters = profile.kvm.iter().filter(|(_, value)| **value > 0);
    let rows: Vec<Vec<String>> = counters
        .map(|(name, value)| vec![name.clone(), value.to_string()])
        .collect();
    if !rows.is_empty() {
        write_table(out, "KVM’s own counters", &["Counter", ">Count"], &rows);
    }
}

fn write_pages(out: &mut String, profile: &Profile) {
    let Some(pages) = &profile.pages else {
        return;
    };
    let title = format!(
        "Pages of RAM: {} written, {} mapped as in the image",
        pages.written, pages.read
    );
    let rows = pages.runs.iter().map(|run| {
        let what = if run.is_written { "written" } else { "mapped" };
        vec![
            address(Some(run.address)),
            run.pages.to_string(),
            what.to_owned(),
        ]
    });
    write_table(
        out,
        &title,
        &[">Address", ">Pages", ""],
        &rows.collect::<Vec<_>>(),
    );
}

fn write_devices(out: &mut String, profile: &Profile) {
    if profile.devices.is_empty() {
        return;
    }
    let rows = profile.devices.iter().map(|device| {
        vec![
            device.device.clone(),
            device.kind.clone(),
            device.requests.to_string(),
            crate::text::bytes(device.bytes),
            device.interrupts.to_string(),
        ]
    });
    let columns = ["Device", "Kind", ">Requests", ">Moved", ">Interrupts"];
    write_table(
        out,
        "Devices, since the start",
        &columns,
        &rows.collect::<Vec<_>>(),
    );
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;");
    let text = text.replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use lightv_api::timings::{ExitsAt, PagesTouched};

    use super::*;
    use crate::profile::{Span, StepProfile, SystemCall, Traced};

    fn profile() -> Profile {
        let step = |name, start_us, median_us| StepProfile {
            name,
            start_us,
            end_us: start_us + median_us,
            median_us,
            min_us: median_us,
            max_us: median_us,
            system_calls: Some(3),
            faults: None,
        };
        let span = |thread: &str, name: &str, start_us, end_us| Span {
            thread: thread.to_owned(),
            name: name.to_owned(),
            step: "sandbox",
            start_us,
            end_us,
        };
        Profile {
            subject: "<script>.lv".to_owned(),
            way: "restore".to_owned(),
            starts: 20,
            total_us: 1500.0,
            steps: vec![step("spawn", -500.0, 500.0), step("process", 0.0, 1000.0)],
            spans: vec![
                span("main", "a & b", 0.0, 900.0),
                span("main", "short", 900.0, 901.0),
                span("control", "vm created", 100.0, 400.0),
            ],
            system_calls: Some(Traced {
                total_us: 9000.0,
                calls: vec![SystemCall {
                    step: "spawn",
                    thread: "main".to_owned(),
                    name: "ioctl KVM_RUN".to_owned(),
                    count: 3,
                    us: 12.0,
                }],
            }),
            exits: vec![ExitsAt {
                reason: "mmio_write".to_owned(),
                address: Some(0xc000_0010),
                place: "control device +0x10".to_owned(),
                count: 2,
                us: 3.0,
            }],
            kvm: [("exits".to_owned(), 90)].into(),
            pages: Some(PagesTouched::default()),
            devices: Vec::new(),
        }
    }

    #[test]
    fn a_page_has_all_of_it_and_needs_nothing_else() {
        let page = html(&profile());
        for part in [
            "lightv profile &lt;script&gt;.lv",
            "ioctl KVM_RUN",
            "0xc0000010",
            "control device +0x10",
            "prefers-color-scheme:dark",
            "a &amp; b 900 µs",
            "vm created",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        for part in ["<script", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(part), "{part}");
        }
        // What has no room for its name has it for those who point at it.
        assert!(page.contains("<title>short: 1 µs") && !page.contains(">short</text>"));
    }

    #[test]
    fn the_picture_stands_alone_and_its_bars_lie_in_it() {
        let picture = svg(&profile());
        assert!(picture.starts_with("<?xml") && picture.contains("--sandbox:"));
        let bars = picture.split("<rect class=\"bar\" x=\"").skip(1);
        let mut count = 0;
        for bar in bars {
            let numbers: Vec<f64> = bar
                .split('"')
                .filter_map(|part| part.parse().ok())
                .collect();
            let [x, _, width, ..] = numbers[..] else {
                panic!("{bar}")
            };
            assert!(x >= LEFT - 0.1 && x + width <= WIDTH - RIGHT + 0.6, "{bar}");
            count += 1;
        }
        assert_eq!(count, 5);
    }

    #[test]
    fn an_axis_has_few_round_lines_whatever_a_start_takes() {
        for end_us in [1.0, 1700.0, 60_000.0, 8e6, 1e9] {
            let scale = Scale {
                start_us: -0.1 * end_us,
                end_us,
            };
            let lines = (end_us * 1.1) / scale.tick_us();
            assert!((1.0..=TICKS_MAX).contains(&lines), "{end_us}: {lines}");
        }
    }

    #[test]
    fn a_microvm_without_a_start_has_a_page_too() {
        let empty = Profile {
            steps: Vec::new(),
            spans: Vec::new(),
            starts: 0,
            ..profile()
        };
        assert!(!html(&empty).contains("<svg"));
        assert!(svg(&empty).contains("<svg"));
    }
}
