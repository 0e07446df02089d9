//! What benchmarks of two sides, a guest and the host with itself, have in common.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::Args;
use lightv_bench::report::{Case, Report, Settings};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use super::{BenchError, GuestArgs, OutputArgs, progress_bar, report};
use crate::cmd::show;
use crate::failure::Failure;
use crate::table::Table;

/// Of a benchmark that transfers for some time, by one side after the other.
#[derive(Debug, Args)]
pub(super) struct TransferArgs {
    /// Rounds of each case that count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) count: u32,
    /// Milliseconds that each side of a round sends
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    time: u64,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    pub(super) guest: GuestArgs,
}

impl TransferArgs {
    /// How long each side of a round sends.
    pub(super) const fn time(&self) -> Duration {
        Duration::from_millis(self.time)
    }

    /// Measures, and shows the report of `bench`.
    pub(super) fn run(
        &self,
        bench: &str,
        measure: impl FnOnce(&Self) -> Result<(Vec<Case>, Settings), BenchError>,
    ) -> Result<ExitCode, Failure> {
        self.output.check()?;
        let (cases, mut settings) = measure(self)?;
        settings.extend(self.guest.settings());
        let report = Report {
            settings,
            ..report(bench, cases)?
        };
        self.output.show(&report, show_sides)
    }
}

/// Measures with a progress bar. A signal that asks us to stop ends it after a round: what was made is removed first.
pub(super) fn until_stopped<E>(
    measure: impl FnOnce(&(dyn Fn(u32, u32) -> ControlFlow<()> + Sync)) -> Result<Vec<Case>, E>,
) -> Result<Vec<Case>, BenchError>
where
    BenchError: From<E>,
{
    let stop = stop_signal()?;
    let bar = progress_bar();
    let cases = measure(&|done, of| {
        bar.set_length(of.into());
        bar.set_position(done.into());
        match stop.load(Ordering::Relaxed) {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    });
    bar.finish_and_clear();
    // The guest may have got the signal too, and failed of it.
    match u8::try_from(stop.load(Ordering::Relaxed)) {
        Ok(0) => Ok(cases?),
        signal => Err(BenchError::Stopped {
            signal: signal.unwrap_or_default(),
        }),
    }
}

/// The number of the signal that asks us to stop, or 0.
fn stop_signal() -> Result<Arc<AtomicUsize>, BenchError> {
    let stop = Arc::new(AtomicUsize::new(0));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let number = usize::try_from(signal).unwrap_or_default();
        flag::register_usize(signal, Arc::clone(&stop), number).map_err(BenchError::Signals)?;
    }
    Ok(stop)
}

/// A row for each case: the guest's and the host's beside each other.
fn show_sides(report: &Report) -> Result<ExitCode, Failure> {
    let cases: BTreeMap<&str, &Case> = report
        .cases
        .iter()
        .map(|case| (case.name.as_str(), case))
        .collect();
    let mut table = Table::new(&[
        "case", ">n", ">min", ">p50", ">p99", ">native", ">p99", ">unit", ">ratio", ">CPU",
        ">exits", ">user",
    ]);
    let is_guest =
        |case: &&Case| case.reference.starts_with("native.") && case.name != case.reference;
    for case in report.cases.iter().filter(is_guest) {
        let native = cases.get(case.reference.as_str()).copied().unwrap_or(case);
        let beside = |suffix: &str| match cases.get(format!("{}{suffix}", case.name).as_str()) {
            Some(case) => format!("{:.2} {}", case.p50, case.unit.trim_start_matches("exits")),
            None => "-".to_owned(),
        };
        table.row([
            case.name.clone(),
            case.n.to_string(),
            format!("{:.1}", case.min),
            format!("{:.1}", case.p50),
            format!("{:.1}", case.p99),
            format!("{:.1}", native.p50),
            format!("{:.1}", native.p99),
            case.unit.clone(),
            format!("{:.3}", case.ratio),
            beside(".cpu"),
            beside(".exits"),
            beside(".exits.user"),
        ]);
    }
    show(|out| {
        table.write(out)?;
        let about = "ratio of p50; exits in all and to user space";
        writeln!(out, "{}; {about}", report.place())
    })
}
