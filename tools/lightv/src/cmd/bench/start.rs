//! `lightv bench start`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use lightv_bench::report::{self as reports, Report};
use lightv_bench::start::{self, StartBench};

use super::{BenchError, OutputArgs, progress_bar, report, temporary_folder};
use crate::cache;
use crate::cmd::run::own_program;
use crate::cmd::show;
use crate::failure::Failure;
use crate::table::Table;

/// The image that is measured when none is named, and the app in it.
const IMAGE: &str = "hello-world.lv";
pub(super) const APP: (&str, &str) = ("hello-world", "hello");

/// Time from before the spawn to the first byte from the guest
///
/// In each round: `run` restores the image, `no_seccomp` does without filters of system calls, `cold` boots it, `jail` restores
/// it in a jail, `floor` makes only the KVM calls and page touches that no restore can leave out. 10 rounds of warm-up are
/// discarded.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv bench start                        200 rounds of hello-world
  lightv bench start --count 50 --json      one JSON object on standard output
  lightv bench start --image linux.lv       a Linux image; cold only in 5 rounds")]
pub(super) struct StartArgs {
    /// Rounds that count
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// Rounds in which a cold start is measured too, where it takes over half a second
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    cold_count: u32,
    /// The image (default: hello-world.lv here, else the embedded app)
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    /// A folder for the floor's guest memory (default: a temporary one)
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
}

/// Carries it out.
pub(super) fn run(args: &StartArgs) -> Result<ExitCode, Failure> {
    args.output.check()?;
    let report = report("start", measure(args)?)?;
    args.output.show(&report, show_table)
}

fn measure(args: &StartArgs) -> Result<Vec<reports::Case>, BenchError> {
    let lightv = own_program();
    let floor = lightv.with_file_name("lightv-floor");
    if !floor.is_file() {
        return Err(BenchError::NoFloor { beside: lightv });
    }
    let temporary = match &args.work {
        Some(_) => None,
        None => Some(temporary_folder()?),
    };
    let work = match (&args.work, &temporary) {
        (Some(work), _) => work.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => std::env::temp_dir(),
    };
    let bench = StartBench {
        lightv,
        floor,
        image: image(args)?,
        work,
        rounds: args.count,
        slow_cold_rounds: args.cold_count,
    };
    let bar = progress_bar();
    let samples = start::measure(&bench, |done, of| {
        bar.set_length(of.into());
        bar.set_position(done.into());
    });
    bar.finish_and_clear();
    Ok(reports::cases("us", &samples?))
}

fn image(args: &StartArgs) -> Result<PathBuf, BenchError> {
    match &args.image {
        Some(path) if path.is_file() => Ok(path.clone()),
        Some(path) => Err(BenchError::NoImage { path: path.clone() }),
        None if Path::new(IMAGE).is_file() => Ok(IMAGE.into()),
        None => Ok(cache::image(APP.0, APP.1)?),
    }
}

fn show_table(report: &Report) -> Result<ExitCode, Failure> {
    let mut table = Table::new(&["case", ">n", ">min", ">p50", ">p99", ">max", ">ratio"]);
    for case in &report.cases {
        let ms = |us: f64| format!("{:.2} ms", us / 1000.0);
        table.row([
            case.name.clone(),
            case.n.to_string(),
            ms(case.min),
            ms(case.p50),
            ms(case.p99),
            ms(case.max),
            format!("{:.2} × {}", case.ratio, case.reference),
        ]);
    }
    let case = |name: &str| Some(report.cases.iter().find(|case| case.name == name)?.p50);
    show(|out| {
        table.write(out)?;
        if let (Some(run), Some(cold)) = (case("run"), case("cold")) {
            writeln!(out, "run takes {:.2} % of cold (p50)", run / cold * 100.0)?;
        }
        let host = report.place();
        writeln!(
            out,
            "{host}; from before the spawn to the first byte; ratio of p50"
        )
    })
}
