//! `lightv run --timings`: where the time of a start went.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus};

use anstream::AutoStream;
use lightv_api::exit;
use lightv_api::timings::StartTimings;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::time::{ClockId, clock_gettime};

use crate::failure::Coded;
use crate::monitor::{self, MonitorError};
use crate::table::Table;
use crate::text::{BAD, GOOD, styled};
use crate::watch::{Event, Watch};

/// When our caller began, in nanoseconds of `CLOCK_MONOTONIC`; a benchmark sets it just before it spawns us.
const STARTED_AT: &str = "LIGHTV_STARTED_AT_NS";

/// What is promised of each step, in milliseconds (README).
const TARGETS_MS: [f64; 4] = [1.0, 2.0, 2.0, 5.0];
const SUM_TARGET_MS: f64 = 10.0;

/// How timings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TimingsForm {
    /// A table on standard error, after the run
    Table,
    /// One line of JSON on standard error, after the run
    Json,
}

/// Why there are no timings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TimingsError {
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error("Cannot make a file in memory for the timings")]
    File(#[source] io::Error),
    #[error("Cannot start or watch {}", program.display())]
    Watch {
        program: PathBuf,
        #[source]
        cause: io::Error,
    },
}

impl Coded for TimingsError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Monitor(cause) => cause.exit_code(),
            Self::File(_) | Self::Watch { .. } => exit::HOST_FAILURE,
        }
    }
}

/// When this start began.
pub(crate) fn started_at_ns() -> u64 {
    let given = env::var(STARTED_AT).ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| {
        let now = clock_gettime(ClockId::Monotonic);
        u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).unwrap_or(0)
    })
}

/// Runs the monitor as a child, prints its timings after its end, and gives its exit status.
pub(crate) fn run(
    mut args: Vec<OsString>,
    form: TimingsForm,
    started_at_ns: u64,
) -> Result<ExitCode, TimingsError> {
    let program = monitor::find()?;
    // Not close-on-exec: the child opens it under the same number.
    let file = memfd_create("lightv-timings", MemfdFlags::empty());
    let mut file = File::from(file.map_err(|errno| TimingsError::File(errno.into()))?);
    let options = [
        format!("--timings=/proc/self/fd/{}", file.as_raw_fd()).into(),
        "--started-at-ns".into(),
        started_at_ns.to_string().into(),
    ];
    args.splice(2..2, options);
    let status = watch(Command::new(&program).args(args))
        .map_err(|cause| TimingsError::Watch { program, cause })?;
    let mut json = String::new();
    file.read_to_string(&mut json).map_err(TimingsError::File)?;
    // Nobody reads a table whose terminal is gone.
    let _ = print(&json, form);
    Ok(exit_code(status))
}

/// Runs `command` to its end; signals are for it.
fn watch(command: &mut Command) -> io::Result<ExitStatus> {
    let mut watch = Watch::spawn(command)?;
    loop {
        match watch.next(None)? {
            Event::Ended(status) => return Ok(status),
            Event::Signal(signal) => watch.pass_on(signal),
            Event::TimedOut => {}
        }
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(
        code.and_then(|code| u8::try_from(code).ok())
            .unwrap_or(exit::FAILURE),
    )
}

fn print(json: &str, form: TimingsForm) -> io::Result<()> {
    let mut stderr = AutoStream::auto(io::stderr().lock());
    match (form, serde_json::from_str(json)) {
        (TimingsForm::Json, Ok(StartTimings { .. })) => writeln!(stderr, "{}", json.trim_end()),
        (TimingsForm::Table, Ok(timings)) => table(&timings).write(&mut stderr),
        (_, Err(_)) => writeln!(stderr, "lightv: no timings: the guest gave out no byte"),
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

    #[test]
    fn exit_status_is_the_childs() {
        let code = |raw| format!("{:?}", exit_code(ExitStatus::from_raw(raw)));
        assert_eq!(code(7 << 8), format!("{:?}", ExitCode::from(7)));
        assert_eq!(code(15), format!("{:?}", ExitCode::from(143)));
    }
}
