//! `lightv run --timings`: where the time of a start went.

use std::env;
use std::io::{self, Write as _};

use anstream::AutoStream;
use lightv_api::timings::StartTimings;
use rustix::time::{ClockId, clock_gettime};

use crate::table::Table;
use crate::text::{BAD, GOOD, styled};

/// When our caller began, in nanoseconds of `CLOCK_MONOTONIC`; a benchmark sets it just before it spawns us.
const STARTED_AT: &str = "LIGHTV_STARTED_AT_NS";

/// What is promised of each step, in milliseconds (README).
const TARGETS_MS: [f64; 4] = [1.0, 2.0, 2.0, 5.0];
const SUM_TARGET_MS: f64 = 10.0;

/// How timings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TimingsForm {
    /// A table on standard error
    Table,
    /// One line of JSON on standard error
    Json,
}

/// When this start began.
pub(crate) fn started_at_ns() -> u64 {
    let given = env::var(STARTED_AT).ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| {
        let now = clock_gettime(ClockId::Monotonic);
        u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).unwrap_or(0)
    })
}

impl TimingsForm {
    /// Prints timings on standard error, as soon as the guest's first byte is out.
    pub(crate) fn printer(self) -> fn(&StartTimings) {
        match self {
            Self::Table => print_table,
            Self::Json => print_json,
        }
    }
}

fn print_table(timings: &StartTimings) {
    // Nobody reads a table whose terminal is gone.
    let _ = table(timings).write(&mut AutoStream::auto(io::stderr().lock()));
}

fn print_json(timings: &StartTimings) {
    if let Ok(line) = serde_json::to_string(timings) {
        // As above.
        let _ = writeln!(io::stderr().lock(), "{line}");
    }
}

fn table(timings: &StartTimings) -> Table {
    let ms = |us: f64| format!("{:.2} ms", us / 1000.0);
    let steps = [
        ("image load", timings.image_load_us),
        ("sandbox", timings.sandbox_us),
        ("resources", timings.resources_us),
        ("process", timings.process_us),
    ];
    let mut table = Table::new(&["step", ">time", ">target", "met"]);
    table.row([
        "spawn".into(),
        ms(timings.spawn_us),
        String::new(),
        String::new(),
    ]);
    let targets = steps.into_iter().zip(TARGETS_MS);
    let sum = (("sum of the four", timings.sum_us), SUM_TARGET_MS);
    for ((name, us), target_ms) in targets.chain([sum]) {
        let met = if us / 1000.0 < target_ms {
            styled(GOOD, "✔")
        } else {
            styled(BAD, "✘")
        };
        table.row([name.into(), ms(us), format!("< {target_ms} ms"), met]);
    }
    table.row([
        "spawn to first byte".into(),
        ms(timings.total_us),
        String::new(),
        String::new(),
    ]);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_says_which_targets_are_met() {
        let timings = StartTimings {
            image_load_us: 999.0,
            sandbox_us: 2000.0,
            sum_us: 3000.0,
            total_us: 3500.0,
            ..StartTimings::default()
        };
        let mut out = Vec::new();
        table(&timings)
            .write(&mut out)
            .expect("a vector takes everything");
        let text = anstream::adapter::strip_bytes(&out).into_vec();
        let text = String::from_utf8(text).expect("text");
        let rows: Vec<&str> = text.lines().filter(|row| row.contains('<')).collect();
        let met: Vec<bool> = rows.iter().map(|row| row.ends_with('✔')).collect();
        assert_eq!(met, [true, false, true, true, true], "{text}");
    }
}
