//! `lightv bench`: measures the claims on this host.

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use lightv_api::exit;
use lightv_api::host::HostReport;
use lightv_bench::report::{self, Report};
use lightv_bench::start::{self, StartBench, StartBenchError};

use super::run::own_program;
use super::{show, show_json};
use crate::cache::{self, CacheError};
use crate::failure::{Coded, Failure};
use crate::monitor;
use crate::table::Table;

/// The image that is measured when none is named, and the app in it.
const IMAGE: &str = "hello-world.lv";
const APP: (&str, &str) = ("hello-world", "hello");

/// Measure LightV on this host
#[derive(Debug, Parser)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    Start(StartArgs),
}

/// Time from before the spawn to the first byte from the guest
///
/// In each round: `run` restores the image, `cold` boots it, `floor` makes only the KVM calls and page touches that no
/// restore can leave out. 10 rounds of warm-up are discarded.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv bench start                        200 rounds of hello-world
  lightv bench start --count 50 --json      one JSON object on standard output
  lightv bench start --image linux.lv       a Linux image; cold starts only in 5 of the rounds")]
struct StartArgs {
    /// Rounds that count
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// Rounds in which a cold start is measured too, where it takes over half a second
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    cold_count: u32,
    /// The image (default: hello-world.lv here, else the embedded app)
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write the JSON into a file too
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A folder for the floor's guest memory (default: a temporary one)
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error("Cannot find lightv-floor beside {}: build it (cargo xtask bench)", beside.display())]
    NoFloor { beside: PathBuf },
    #[error("There is no image {}", path.display())]
    NoImage { path: PathBuf },
    #[error(transparent)]
    Image(#[from] CacheError),
    #[error("Cannot use {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error(transparent)]
    Start(#[from] StartBenchError),
}

impl Coded for BenchError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::NoImage { .. } => exit::BAD_CONFIG,
            Self::Image(cause) => cause.exit_code(),
            _ => exit::FAILURE,
        }
    }
}

/// Carries out the benchmark that was named.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode, Failure> {
    match &args.bench {
        Bench::Start(args) => run_start(args),
    }
}

fn run_start(args: &StartArgs) -> Result<ExitCode, Failure> {
    let host: HostReport = monitor::query(&["--check-host".as_ref()])?;
    let report = Report {
        bench: "start".into(),
        host: (&host).into(),
        cases: measure(args)?,
    };
    if let Some(path) = &args.out {
        let json = serde_json::to_vec_pretty(&report).unwrap_or_default();
        fs::write(path, json).map_err(|cause| BenchError::File {
            path: path.clone(),
            cause,
        })?;
    }
    if args.json {
        show_json(&report)
    } else {
        show_table(&report)
    }
}

fn measure(args: &StartArgs) -> Result<Vec<report::Case>, BenchError> {
    let lightv = own_program();
    let floor = lightv.with_file_name("lightv-floor");
    if !floor.is_file() {
        return Err(BenchError::NoFloor { beside: lightv });
    }
    let temporary = match &args.work {
        Some(_) => None,
        None => Some(tempfile::tempdir().map_err(|cause| BenchError::File {
            path: std::env::temp_dir(),
            cause,
        })?),
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
    Ok(report::cases("us", &samples?))
}

fn image(args: &StartArgs) -> Result<PathBuf, BenchError> {
    match &args.image {
        Some(path) if path.is_file() => Ok(path.clone()),
        Some(path) => Err(BenchError::NoImage { path: path.clone() }),
        None if Path::new(IMAGE).is_file() => Ok(IMAGE.into()),
        None => Ok(cache::image(APP.0, APP.1)?),
    }
}

fn progress_bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} rounds, {eta} left");
    let bar = ProgressBar::new(0);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
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
    let host = &report.host;
    let case = |name: &str| Some(report.cases.iter().find(|case| case.name == name)?.p50);
    show(|out| {
        table.write(out)?;
        if let (Some(run), Some(cold)) = (case("run"), case("cold")) {
            writeln!(out, "run takes {:.2} % of cold (p50)", run / cold * 100.0)?;
        }
        writeln!(
            out,
            "{}, {} cores, Linux {}, {} KVM; from before the spawn to the first byte; ratio of p50",
            host.cpu, host.cores, host.kernel, host.kvm
        )
    })
}
