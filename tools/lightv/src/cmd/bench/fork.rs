//! `lightv bench fork`.

use std::process::ExitCode;

use clap::Parser;
use lightv_bench::fork::{self, ForkBench};
use lightv_bench::report::Case;

use super::{BenchError, OutputArgs, build_image, report, show_cases, temporary_folder};
use crate::failure::Failure;
use crate::monitor;

/// The image that is measured: a guest that writes memory all the time, and says when it could not.
const APP: &str = "dirty";
/// More than it writes.
const MEMORY_MIB: &str = "192";

/// Forks of a guest of 192 MiB that writes 8, 64 or 128 MiB all the time
///
/// `fork.pause` is how long the machine stands still, `fork.gap` the longest time in which its program did not come to write a
/// page, `fork.answer` the time from the call to the first line of the machine that begins from it, whose monitor was started
/// before. The host must allow userfaultfd to this user.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv bench fork                 10 forks of each size
  lightv bench fork --json          one JSON object on standard output")]
pub(super) struct ForkArgs {
    /// Forks of each size that count
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    #[command(flatten)]
    output: OutputArgs,
}

/// Carries it out.
pub(super) fn run(args: &ForkArgs) -> Result<ExitCode, Failure> {
    args.output.check()?;
    let report = report("fork", measure(args)?)?;
    args.output.show(&report, show_cases)
}

fn measure(args: &ForkArgs) -> Result<Vec<Case>, BenchError> {
    let work = temporary_folder()?;
    let image = work.path().join("dirty.lv");
    build_image(APP, &["--memory", MEMORY_MIB], &image)?;
    let bench = ForkBench {
        monitor: monitor::find()?,
        image,
        work: work.path().to_owned(),
        rounds: args.count,
    };
    Ok(fork::measure(&bench)?)
}
