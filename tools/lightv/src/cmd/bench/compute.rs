//! `lightv bench cpu` and `lightv bench mem`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use lightv_bench::compute::{self, ComputeBench, Suite};
use lightv_bench::report::Report;

use super::{BenchError, GuestArgs, OutputArgs, progress_bar, report, show_cases};
use crate::cache;
use crate::failure::Failure;

/// The same routines in a guest's user code and on the host, in turn
///
/// Rates are millions of units a second: bytes hashed, numbers sieved, points of a picture; bytes moved, steps of a chase. The
/// ratio is the guest's median over the host's: 1 is native. The first round does not count.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv bench cpu                    30 rounds
  lightv bench mem --count 5 --json   one JSON object on standard output")]
pub(super) struct ComputeArgs {
    /// Rounds that count
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// Milliseconds for each routine, on each side of a round
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    time: u64,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    guest: GuestArgs,
}

/// Carries it out.
pub(super) fn run(args: &ComputeArgs, suite: Suite) -> Result<ExitCode, Failure> {
    args.output.check()?;
    let image = cache::image(suite.name(), suite.name()).map_err(BenchError::from)?;
    let bench = ComputeBench {
        guest: args.guest.guest(image, None),
        suite,
        rounds: args.count,
        time: Duration::from_millis(args.time),
    };
    let bar = progress_bar();
    let cases = compute::measure(&bench, |done, of| {
        bar.set_length(of.into());
        bar.set_position(done.into());
    });
    bar.finish_and_clear();
    let report = Report {
        settings: args.guest.settings(),
        ..report(suite.name(), cases.map_err(BenchError::from)?)?
    };
    args.output.show(&report, show_cases)
}
