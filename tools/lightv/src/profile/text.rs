//! A profile as tables of text.

use std::io::{self, Write};

use super::{Profile, SystemCall};
use crate::table::Table;
use crate::text::{BOLD, styled};

/// Rows of a table of which there may be many; `--json` has all.
const ROWS_MAX: usize = 15;

/// A time, in the unit that suits it.
pub(crate) fn time(us: f64) -> String {
    if us >= 1e6 {
        format!("{:.2} s", us / 1e6)
    } else if us >= 1e5 {
        format!("{:.0} ms", us / 1000.0)
    } else if us >= 1e4 {
        format!("{:.1} ms", us / 1000.0)
    } else if us >= 1000.0 {
        format!("{:.2} ms", us / 1000.0)
    } else {
        format!("{us:.0} µs")
    }
}

/// How long exits were served; that by which the guest gave out its first byte still was.
pub(crate) fn served(us: f64) -> String {
    match us > 0.0 {
        true => time(us),
        false => "-".to_owned(),
    }
}

/// A count that may not be known.
pub(crate) fn count(count: Option<u64>) -> String {
    count.map_or_else(|| "-".to_owned(), |count| count.to_string())
}

/// An address that there may not be.
pub(crate) fn address(address: Option<u64>) -> String {
    address.map_or_else(|| "-".to_owned(), |address| format!("{address:#x}"))
}

/// What was profiled, in one line.
pub(crate) fn heading(profile: &Profile) -> String {
    let Profile {
        subject,
        way,
        starts,
        total_us,
        ..
    } = profile;
    match starts {
        0 => format!("{subject}: its guest has given out nothing yet, or its start was not kept"),
        1 => format!(
            "{subject}: one start ({way}), {} to the first byte",
            time(*total_us)
        ),
        _ => format!(
            "{subject}: {starts} starts ({way}), {} to the first byte; times are medians",
            time(*total_us)
        ),
    }
}

/// Calls of one name and thread over all steps, those that took longest first.
pub(crate) fn by_name(calls: &[SystemCall]) -> Vec<SystemCall> {
    let mut sums: Vec<SystemCall> = Vec::new();
    for call in calls {
        let known = sums
            .iter_mut()
            .find(|sum| sum.name == call.name && sum.thread == call.thread);
        match known {
            Some(sum) => {
                sum.count += call.count;
                sum.us += call.us;
            }
            None => sums.push(call.clone()),
        }
    }
    sums.sort_by(|a, b| b.us.total_cmp(&a.us));
    sums
}

/// Writes all of it.
pub(crate) fn write(out: &mut impl Write, profile: &Profile) -> io::Result<()> {
    writeln!(out, "{}", heading(profile))?;
    write_steps(out, profile)?;
    write_spans(out, profile)?;
    write_calls(out, profile)?;
    write_exits(out, profile)?;
    write_pages(out, profile)?;
    write_devices(out, profile)
}

fn title(out: &mut impl Write, text: &str) -> io::Result<()> {
    writeln!(out, "\n{}", styled(BOLD, text))
}

fn write_steps(out: &mut impl Write, profile: &Profile) -> io::Result<()> {
    if profile.steps.is_empty() {
        return Ok(());
    }
    title(out, "Steps")?;
    let mut table = Table::new(&[
        "STEP",
        ">MEDIAN",
        ">LEAST",
        ">MOST",
        ">SHARE",
        ">SYSTEM CALLS",
        ">PAGE FAULTS",
    ]);
    for step in &profile.steps {
        table.row([
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
        ]);
    }
    table.write(out)
}

fn write_spans(out: &mut impl Write, profile: &Profile) -> io::Result<()> {
    if profile.spans.is_empty() {
        return Ok(());
    }
    title(out, "Threads, from the first line of main")?;
    let mut table = Table::new(&["THREAD", "UP TO", ">FROM", ">TIME"]);
    for span in &profile.spans {
        table.row([
            span.thread.clone(),
            span.name.clone(),
            time(span.start_us),
            time(span.end_us - span.start_us),
        ]);
    }
    table.write(out)
}

fn write_calls(out: &mut impl Write, profile: &Profile) -> io::Result<()> {
    let Some(traced) = &profile.system_calls else {
        return Ok(());
    };
    let sums = by_name(&traced.calls);
    let all: u64 = sums.iter().map(|call| call.count).sum();
    title(
        out,
        &format!(
            "System calls: {all} of one start under strace, which took {}",
            time(traced.total_us)
        ),
    )?;
    let mut table = Table::new(&["CALL", "THREAD", ">COUNT", ">TIME"]);
    for call in sums.iter().take(ROWS_MAX) {
        table.row([
            call.name.clone(),
            call.thread.clone(),
            call.count.to_string(),
            time(call.us),
        ]);
    }
    table.write(out)?;
    note_left_out(out, sums.len())
}

fn note_left_out(out: &mut impl Write, rows: usize) -> io::Result<()> {
    match rows.saturating_sub(ROWS_MAX) {
        0 => Ok(()),
        left => writeln!(out, "and {left} more: --json has all"),
    }
}

fn write_exits(out: &mut impl Write, profile: &Profile) -> io::Result<()> {
    if profile.exits.is_empty() && profile.kvm.is_empty() {
        return Ok(());
    }
    title(out, "Exits of vCPUs to the monitor")?;
    let mut exits = profile.exits.clone();
    exits.sort_by_key(|exit| std::cmp::Reverse(exit.count));
    let mut table = Table::new(&["REASON", ">ADDRESS", "PLACE", ">COUNT", ">TIME"]);
    for exit in exits.iter().take(ROWS_MAX) {
        table.row([
            exit.reason.clone(),
            address(exit.address),
            exit.place.clone(),
            exit.count.to_string(),
            served(exit.us),
        ]);
    }
    table.write(out)?;
    note_left_out(out, exits.len())?;
    let counters = profile.kvm.iter().filter(|(_, value)| **value > 0);
    let counters: Vec<String> = counters
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    match counters.is_empty() {
        true => Ok(()),
        false => writeln!(out, "KVM's counters: {}", counters.join(", ")),
    }
}

fn write_pages(out: &mut impl Write, profile: &Profile) -> io::Result<()> {
    let Some(pages) = &profile.pages else {
        return Ok(());
    };
    title(
        out,
        &format!(
            "Pages of RAM: {} written, {} mapped as they are in the image",
            pages.written, pages.read
        ),
    )?;
    let mut table = Table::new(&[">ADDRESS", ">PAGES", ""]);
    for run in pages.runs.iter().take(ROWS_MAX) {
        table.row([
            address(Some(run.address)),
            run.pages.to_string(),
            if run.is_written { "written" } else { "mapped" }.to_owned(),
        ]);
    }
    table.write(out)?;
    note_left_out(out, pages.runs.len())
}

fn write_devices(out: &mut impl Write, profile: &Profile) -> io::Result<()> {
    if profile.devices.is_empty() {
        return Ok(());
    }
    title(out, "Devices, since the start")?;
    let mut table = Table::new(&["DEVICE", "KIND", ">REQUESTS", ">MOVED", ">INTERRUPTS"]);
    for device in &profile.devices {
        table.row([
            device.device.clone(),
            device.kind.clone(),
            device.requests.to_string(),
            crate::text::bytes(device.bytes),
            device.interrupts.to_string(),
        ]);
    }
    table.write(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_unit_that_suits_them() {
        for (us, expected) in [
            (0.4, "0 µs"),
            (999.0, "999 µs"),
            (1000.0, "1.00 ms"),
            (12_345.0, "12.3 ms"),
            (123_456.0, "123 ms"),
            (7_740_000.0, "7.74 s"),
        ] {
            assert_eq!(time(us), expected);
        }
    }

    #[test]
    fn calls_are_added_up_over_steps() {
        let call = |step, thread: &str, count, us| SystemCall {
            step,
            thread: thread.to_owned(),
            name: "mmap".to_owned(),
            count,
            us,
        };
        let sums = by_name(&[
            call("spawn", "main", 1, 1.0),
            call("sandbox", "main", 2, 2.0),
            call("sandbox", "control", 1, 9.0),
        ]);
        assert_eq!(sums.len(), 2);
        assert_eq!((sums[0].count, sums[1].count, sums[1].us), (1, 3, 3.0));
    }
}
