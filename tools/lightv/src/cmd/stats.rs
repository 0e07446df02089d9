//! `lightv stats`: what microVMs take.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Parser;

use super::{show, show_json};
use crate::failure::Failure;
use crate::stats::{Look, Stats};
use crate::table::Table;
use crate::text::bytes;
use crate::vms::{self, VmError};

/// Show what the microVMs that run take of the host
///
/// CPU is processor time over the interval, in percent of one core, RESIDENT all memory that the process uses. For root alone:
/// OWN is the monitor's memory, GUEST what the host holds of the guest's, each with its share of what several have together;
/// ALONE is what no other clone has of it. Data moved and exits are totals, asked for where a REST API is served.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv stats                 a table of all, after a second of looking
  lightv stats web --watch     one of them, again and again
  lightv stats --json          an array for a script; with --watch one a line")]
pub(crate) struct StatsArgs {
    /// Id, name of a sandbox, beginning of an id, or process id (default: all)
    vm: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Go on until interrupted, or until there is none left
    #[arg(long)]
    watch: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = parse_interval)]
    interval: f64,
}

/// Shortest and longest interval, in seconds.
const INTERVALS: std::ops::RangeInclusive<f64> = 0.1..=3600.0;

pub(crate) fn parse_interval(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|value| INTERVALS.contains(value));
    seconds.ok_or_else(|| {
        let (least, most) = (INTERVALS.start(), INTERVALS.end());
        format!("a number of seconds from {least} to {most}")
    })
}

/// Shows them.
pub(crate) fn run(args: &StatsArgs) -> Result<ExitCode, Failure> {
    let mut looks = look(args)?;
    loop {
        thread::sleep(Duration::from_secs_f64(args.interval));
        let stats: Vec<Stats> = looks.iter().filter_map(Look::stats).collect();
        let shown = present(args, &stats)?;
        if !args.watch || (stats.is_empty() && !looks.is_empty()) {
            return Ok(shown);
        }
        looks = match look(args) {
            // The one that was asked for has ended.
            Err(VmError::Missing { .. }) => return Ok(shown),
            looks => looks?,
        };
    }
}

fn look(args: &StatsArgs) -> Result<Vec<Look>, VmError> {
    let vms = match &args.vm {
        Some(name) => vec![vms::find(name)?],
        None => vms::list()?,
    };
    Ok(vms.into_iter().filter_map(Look::at).collect())
}

fn present(args: &StatsArgs, stats: &[Stats]) -> Result<ExitCode, Failure> {
    match (args.json, args.watch) {
        (true, false) => show_json(&stats),
        (true, true) => show(|out| {
            serde_json::to_writer(&mut *out, stats)?;
            out.write_all(b"\n")
        }),
        (false, is_again) => show(|out| {
            if is_again && io::stdout().is_terminal() {
                out.write_all(CLEAR)?;
            }
            table(stats).write(out)
        }),
    }
}

/// Clears a terminal and goes to its first line (ECMA-48: ED, CUP).
const CLEAR: &[u8] = b"\x1b[2J\x1b[H";

fn table(stats: &[Stats]) -> Table {
    let mut table = Table::new(&[
        "ID",
        ">PID",
        ">CPU %",
        ">RESIDENT",
        ">OWN",
        ">GUEST",
        ">ALONE",
        ">READ",
        ">WRITTEN",
        ">RECEIVED",
        ">SENT",
        ">EXITS",
    ]);
    for vm in stats {
        let kib = |kib: u64| bytes(kib.saturating_mul(1024));
        let detail = |of: fn(&crate::stats::Details) -> u64| {
            let details = vm.taken.details.as_ref();
            details.map_or_else(|| "-".to_owned(), |details| kib(of(details)))
        };
        let moved = |of: fn(&crate::stats::Moved) -> String| {
            vm.taken.moved.as_ref().map_or_else(|| "-".to_owned(), of)
        };
        table.row([
            vm.id.clone(),
            vm.pid.to_string(),
            format!("{:.2}", vm.cpu_percent),
            kib(vm.taken.resident_kib),
            detail(|details| details.own_kib),
            detail(|details| details.guest_kib),
            detail(|details| details.guest_private_kib),
            moved(|moved| bytes(moved.disk_read_bytes)),
            moved(|moved| bytes(moved.disk_written_bytes)),
            moved(|moved| bytes(moved.net_received_bytes)),
            moved(|moved| bytes(moved.net_sent_bytes)),
            moved(|moved| moved.exits.to_string()),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_numbers_in_a_range() {
        assert_eq!(parse_interval("0.5"), Ok(0.5));
        for refused in ["0", "-1", "NaN", "inf", "1s", "", "3601"] {
            assert!(parse_interval(refused).is_err(), "{refused}");
        }
    }
}
