//! `lightv bench density`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use lightv_bench::density::{self, DensityBench};
use lightv_bench::report::{Case, Report};

use super::sides::until_stopped;
use super::vsock::image_of;
use super::{BenchError, OutputArgs, report, show_cases, temporary_folder};
use crate::cmd::run::own_program;
use crate::failure::Failure;

/// The guest's app: it sends back what comes to port 7.
const APP: &str = "vsock";

/// Many idle microVMs of one image: how long all take to start, and what each takes of the host
///
/// Two callers start them, each one after the other: a machine is started when it has answered on its vsock. They are left alone
/// for a while; then all are asked for an answer, and a hundred of them once more. `density.memory_per_vm` is what the host's
/// free memory (MemAvailable) has lost for each, KVM's share included; `density.pss_per_vm` is a process's own share;
/// `density.idle_cpu` is the time of all threads together; `density.failures` counts answers that did not come.
/// `density.kernel.…` is what the host's kernel has taken for itself (/proc/meminfo), for each; threads are process ids.
/// `floor.spawn_all` is as many processes that only say their version.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv bench density                     1000 machines, idle for 60 seconds
  lightv bench density --count 1 --idle 60 what one machine takes
  lightv bench density --json --out d.json one JSON object, also in a file")]
pub(super) struct DensityArgs {
    /// Machines
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// Seconds for which they are left alone
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    idle: u64,
    #[command(flatten)]
    output: OutputArgs,
}

/// Carries it out.
pub(super) fn run(args: &DensityArgs) -> Result<ExitCode, Failure> {
    args.output.check()?;
    let report = report("density", measure(args)?)?;
    args.output.show(&report, show_cases)
}

fn measure(args: &DensityArgs) -> Result<Vec<Case>, BenchError> {
    measure_many(args.count, args.idle)
}

/// A report of few machines that are not left alone for long.
pub(super) fn quick(count: u32, idle_s: u64) -> Result<Report, BenchError> {
    report("density", measure_many(count, idle_s)?)
}

fn measure_many(count: u32, idle_s: u64) -> Result<Vec<Case>, BenchError> {
    let work = temporary_folder()?;
    let bench = DensityBench {
        lightv: own_program(),
        image: image_of(
            APP,
            work.path().join("vsock.lv"),
            &work.path().join("0.sock"),
        )?,
        work: work.path().into(),
        count,
        idle: Duration::from_secs(idle_s),
    };
    until_stopped(|progress| density::measure(&bench, progress))
}
