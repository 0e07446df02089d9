//! `lightv bench api`.

use std::process::ExitCode;

use clap::Parser;
use lightv_bench::api::{self, ApiBench};

use super::{BenchError, OutputArgs, report, show_cases, temporary_folder};
use crate::cache;
use crate::failure::Failure;
use crate::monitor;

/// The image that is measured, and the app in it: a guest that sleeps.
const APP: (&str, &str) = ("idle", "idle");

/// Round trip of `GET /`, and what the server of the REST API takes
///
/// `api.get` asks on one connection, `api.get.new` on a new one each time; `echo` and `echo.new` are a thread that answers
/// as many bytes over a socket of the same kind. `api.cpu` is the server's processor time for a request, `api.pss.idle` the
/// memory of the whole monitor with an idle guest before the first request, `api.pss.used` after the last.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv bench api                  2000 requests of each kind
  lightv bench api --json           one JSON object on standard output")]
pub(super) struct ApiArgs {
    /// Requests of each kind that count
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    #[command(flatten)]
    output: OutputArgs,
}

/// Carries it out.
pub(super) fn run(args: &ApiArgs) -> Result<ExitCode, Failure> {
    args.output.check()?;
    let report = report("api", measure(args)?)?;
    args.output.show(&report, show_cases)
}

fn measure(args: &ApiArgs) -> Result<Vec<lightv_bench::report::Case>, BenchError> {
    let work = temporary_folder()?;
    let bench = ApiBench {
        monitor: monitor::find()?,
        image: cache::image(APP.0, APP.1)?,
        work: work.path().to_owned(),
        rounds: args.count,
    };
    Ok(api::measure(&bench)?)
}
