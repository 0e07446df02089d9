//! `lightv bench idle`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use lightv_bench::idle::{self, IdleBench};
use lightv_bench::report::Case;

use super::sides::until_stopped;
use super::vsock::image_of;
use super::{BenchError, OutputArgs, report, show_cases, temporary_folder};
use crate::cmd::run::own_program;
use crate::failure::Failure;

/// The guest's app: it sends back what comes to port 7.
const APP: &str = "vsock";

/// What idle microVMs take of the host: one, and then many at a time
///
/// Each has answered once on its vsock, and has nothing to do from then on. `idle.cpu.N` is the processor time of a machine's
/// threads, of N at a time; `idle.wakeups.N` how often one of them was put on a CPU in a second (schedstat(5) of each); `idle.pss.N`
/// its process's own share of memory.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv bench idle                        one machine for a minute, then 100
  lightv bench idle --count 1000 --seconds 10
  lightv bench idle --json --out i.json    one JSON object, also in a file")]
pub(super) struct IdleArgs {
    /// Machines at a time, after the one
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// How long they are watched
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    #[command(flatten)]
    output: OutputArgs,
}

/// Carries it out.
pub(super) fn run(args: &IdleArgs) -> Result<ExitCode, Failure> {
    args.output.check()?;
    let report = report("idle", measure(args)?)?;
    args.output.show(&report, show_cases)
}

fn measure(args: &IdleArgs) -> Result<Vec<Case>, BenchError> {
    let work = temporary_folder()?;
    let socket = work.path().join("0.sock");
    let bench = IdleBench {
        lightv: own_program(),
        image: image_of(APP, work.path().join("vsock.lv"), &socket)?,
        work: work.path().into(),
        count: args.count,
        time: Duration::from_secs(args.seconds),
    };
    until_stopped(|progress| idle::measure(&bench, progress))
}
