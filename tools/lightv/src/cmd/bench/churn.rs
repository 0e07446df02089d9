//! `lightv bench churn`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use lightv_bench::churn::{self, ChurnBench};
use lightv_bench::report::Case;

use super::sides::until_stopped;
use super::{BenchError, OutputArgs, report, show_cases};
use crate::cache;
use crate::cmd::run::own_program;
use crate::failure::Failure;

/// MicroVMs of hello-world that start and end all the time: how many in a second, and what they leave behind
///
/// `churn.start` is from before the spawn to the first byte. Every ten seconds the machines pause, and the host's memory
/// (MemAvailable), LightV's processes and the host's open files are compared with those of before: `churn.left.…` is how many more there
/// are for each start. What others do meanwhile counts too; what every start leaves is in the smallest value, which is 0 otherwise.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv bench churn                       a minute of two callers
  lightv bench churn --seconds 600 --callers 10
  lightv bench churn --json --out c.json   one JSON object, also in a file")]
pub(super) struct ChurnArgs {
    /// How long
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// How many start machines at the same time, each one after the other
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    callers: u32,
    #[command(flatten)]
    output: OutputArgs,
}

/// Carries it out.
pub(super) fn run(args: &ChurnArgs) -> Result<ExitCode, Failure> {
    args.output.check()?;
    let report = report("churn", measure(args)?)?;
    args.output.show(&report, show_cases)
}

fn measure(args: &ChurnArgs) -> Result<Vec<Case>, BenchError> {
    let (name, app) = super::start::APP;
    let bench = ChurnBench {
        lightv: own_program(),
        image: cache::image(name, app)?,
        callers: args.callers,
        time: Duration::from_secs(args.seconds),
    };
    until_stopped(|progress| churn::measure(&bench, progress))
}
