//! `lightv bench pool`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use lightv_bench::pool::{self, PoolBench};
use lightv_bench::report::Case;
use lightv_launch::program::Program;

use super::sides::until_stopped;
use super::{BenchError, OutputArgs, report, show_cases, temporary_folder};
use crate::cache;
use crate::failure::Failure;
use crate::monitor::{self, MonitorError};

/// How long a microVM that is ready takes from the request to its guest's first byte
///
/// `pool.1`: requests one after the other; `pool.N`: N at the same time, and how many of those are served a second;
/// `pool.refill`: how long another one takes to be ready. `pool.agent.1` and `pool.agent.N`, in turn with those, are runs by a host
/// agent of the benchmark's own, which keeps N ready (docs/agent.md): from before the connection to its run socket.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv bench pool                        hello-world, ten at once
  lightv bench pool --image my.lv          another image
  lightv bench pool --json --out p.json    one JSON object, also in a file")]
pub(super) struct PoolArgs {
    /// The image; its guest prints something and ends with status 0 (default: the embedded hello-world)
    #[arg(long, value_name = "IMAGE")]
    image: Option<PathBuf>,
    /// Requests one after the other
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rounds: u32,
    /// How many come at the same time
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=1000))]
    callers: u32,
    /// How often they do
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    bursts: u32,
    #[command(flatten)]
    output: OutputArgs,
}

/// Carries it out.
pub(super) fn run(args: &PoolArgs) -> Result<ExitCode, Failure> {
    args.output.check()?;
    let report = report("pool", measure(args)?)?;
    args.output.show(&report, show_cases)
}

fn measure(args: &PoolArgs) -> Result<Vec<Case>, BenchError> {
    let (name, app) = super::start::APP;
    let image = match &args.image {
        Some(path) if path.is_file() => path.clone(),
        Some(path) => return Err(BenchError::NoImage { path: path.clone() }),
        None => cache::image(name, app)?,
    };
    let work = temporary_folder()?;
    let bench = PoolBench {
        vmm: monitor::find()?,
        agent: Program::Agent.find().map_err(MonitorError::from)?,
        work: work.path().into(),
        image,
        rounds: args.rounds,
        callers: args.callers,
        bursts: args.bursts,
    };
    until_stopped(|progress| pool::measure(&bench, &mut |done, of| progress(done, of)))
}
