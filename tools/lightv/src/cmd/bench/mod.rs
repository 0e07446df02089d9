//! `lightv bench`: measures the claims on this host.

mod api;
mod churn;
mod compute;
mod density;
mod disk;
mod fork;
mod idle;
mod net;
mod output;
mod pool;
mod preset;
mod sides;
mod simulate;
mod start;
mod vsock;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use lightv_api::exit;
use lightv_api::host::HostReport;
use lightv_bench::api::ApiBenchError;
use lightv_bench::churn::ChurnError;
use lightv_bench::compute::Suite;
use lightv_bench::density::DensityError;
use lightv_bench::disk::DiskBenchError;
use lightv_bench::fork::ForkBenchError;
use lightv_bench::guest::{Guest, GuestError};
use lightv_bench::idle::IdleError;
use lightv_bench::net::PlaceError;
use lightv_bench::plot::PlotError;
use lightv_bench::pool::PoolBenchError;
use lightv_bench::preset::PresetError;
use lightv_bench::report::{Case, Report, Settings};
use lightv_bench::start::StartBenchError;
use lightv_bench::two_sided::TransferError;
use tempfile::TempDir;

use self::output::OutputArgs;
use crate::build::BuildError;
use crate::cache::CacheError;
use crate::cmd::run::own_program;
use crate::cmd::show;
use crate::failure::{Coded, Failure};
use crate::monitor::{self, MonitorError};
use crate::table::Table;

/// Measure LightV on this host
#[derive(Debug, Parser)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    Start(start::StartArgs),
    Api(api::ApiArgs),
    Disk(disk::DiskArgs),
    Net(net::NetArgs),
    Cpu(compute::ComputeArgs),
    Mem(compute::ComputeArgs),
    Vsock(vsock::VsockArgs),
    Density(density::DensityArgs),
    Churn(churn::ChurnArgs),
    Pool(pool::PoolArgs),
    Fork(fork::ForkArgs),
    Idle(idle::IdleArgs),
    Preset(preset::PresetBenchArgs),
    Simulate(simulate::SimulateArgs),
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
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error("Cannot use {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("Cannot write {}: {} is no folder", path.display(), folder.display())]
    NoFolder { path: PathBuf, folder: PathBuf },
    #[error(transparent)]
    Plot(#[from] PlotError),
    #[error(transparent)]
    Start(#[from] StartBenchError),
    #[error(transparent)]
    Api(#[from] ApiBenchError),
    #[error(transparent)]
    Disk(#[from] DiskBenchError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Density(#[from] DensityError),
    #[error(transparent)]
    Churn(#[from] ChurnError),
    #[error(transparent)]
    Pool(#[from] PoolBenchError),
    #[error(transparent)]
    Fork(#[from] ForkBenchError),
    #[error(transparent)]
    Idle(#[from] IdleError),
    #[error(transparent)]
    Preset(#[from] PresetError),
    #[error("Cannot use the report {}", path.display())]
    Report {
        path: PathBuf,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("A figure of the simulation is no number")]
    NoNumber,
    #[error(
        "{machines} machines, {what}: what was foretold and what was measured differ by a factor of {off_by:.2}, more than \
         {tolerance:.2} (--tolerance)"
    )]
    Foretold {
        what: &'static str,
        machines: u64,
        off_by: f64,
        tolerance: f64,
    },
    #[error("Cannot watch for signals")]
    Signals(#[source] io::Error),
    #[error("Stopped by signal {signal}")]
    Stopped { signal: u8 },
    #[error("Cannot build the image of {app}")]
    BuildGuest {
        app: &'static str,
        #[source]
        cause: BuildError,
    },
    #[error("Cannot build the image of {app}: {stderr}")]
    Build { app: &'static str, stderr: String },
}

impl Coded for BenchError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::NoImage { .. } | Self::Report { .. } => exit::BAD_CONFIG,
            Self::NoFolder { .. } => exit::BAD_ARGUMENTS,
            Self::Image(cause) => cause.exit_code(),
            Self::Monitor(cause) => cause.exit_code(),
            Self::BuildGuest { cause, .. } => cause.exit_code(),
            Self::Stopped { signal } => exit::by_signal(*signal),
            Self::Place(_) | Self::Signals(_) => exit::HOST_FAILURE,
            _ => exit::FAILURE,
        }
    }
}

/// Carries out the benchmark that was named.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode, Failure> {
    match &args.bench {
        Bench::Start(args) => start::run(args),
        Bench::Api(args) => api::run(args),
        Bench::Disk(args) => disk::run(args),
        Bench::Net(args) => net::run(args),
        Bench::Cpu(args) => compute::run(args, Suite::Cpu),
        Bench::Mem(args) => compute::run(args, Suite::Mem),
        Bench::Vsock(args) => vsock::run(args),
        Bench::Density(args) => density::run(args),
        Bench::Churn(args) => churn::run(args),
        Bench::Pool(args) => pool::run(args),
        Bench::Fork(args) => fork::run(args),
        Bench::Idle(args) => idle::run(args),
        Bench::Preset(args) => preset::run(args),
        Bench::Simulate(args) => simulate::run(args),
    }
}

/// Builds an image of an embedded app for one benchmark.
fn build_image(app: &'static str, options: &[&str], image: &Path) -> Result<(), BenchError> {
    let program = own_program();
    let mut command = Command::new(&program);
    command.args(["build", app, "-o"]).arg(image).args(options);
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|cause| BenchError::File {
        path: program,
        cause,
    })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(BenchError::Build { app, stderr })
}

/// How many rounds are done, where a user sees it.
fn progress_bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} rounds, {eta} left");
    let bar = ProgressBar::new(0);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// The report of a benchmark on this host.
fn report(bench: &str, cases: Vec<Case>) -> Result<Report, BenchError> {
    let host: HostReport = monitor::query(&["--check-host".as_ref()])?;
    Ok(Report {
        bench: bench.into(),
        host: (&host).into(),
        settings: Settings::new(),
        cases,
    })
}

/// How a benchmark's guest is run.
#[derive(Debug, Args)]
struct GuestArgs {
    /// Options of `lightv run` for the guest
    #[arg(last = true, value_name = "RUN_OPTION")]
    options: Vec<String>,
}

impl GuestArgs {
    /// The guest of `image`, whose metrics go to the file `metrics`, if they are wanted.
    fn guest(&self, image: PathBuf, metrics: Option<PathBuf>) -> Guest {
        Guest {
            lightv: own_program(),
            image,
            metrics,
            options: self.options.clone(),
        }
    }

    /// As a report has them.
    fn settings(&self) -> Settings {
        let options = (!self.options.is_empty()).then(|| self.options.join(" "));
        let named = options.map(|options| ("run_options".to_owned(), options));
        named.into_iter().collect()
    }
}

/// How a benchmark's guest reads the registers of its devices.
#[derive(Debug, Args)]
struct RegisterArgs {
    /// A guest that reads its devices' registers by exits
    #[arg(long)]
    no_register_pages: bool,
}

impl RegisterArgs {
    /// As a report has them.
    fn settings(&self) -> Settings {
        let said = self
            .no_register_pages
            .then(|| ("register_pages".to_owned(), "false".to_owned()));
        said.into_iter().collect()
    }
}

/// A row for each case.
fn show_cases(report: &Report) -> Result<ExitCode, Failure> {
    let mut table = Table::new(&["case", ">n", ">min", ">p50", ">p99", ">unit", ">ratio"]);
    for case in &report.cases {
        // A file for every hundredth start is much.
        let digits = if case.unit.ends_with("/start") { 3 } else { 1 };
        let number = |value: f64| format!("{value:.digits$}");
        table.row([
            case.name.clone(),
            case.n.to_string(),
            number(case.min),
            number(case.p50),
            number(case.p99),
            case.unit.clone(),
            format!("{:.3} × {}", case.ratio, case.reference),
        ]);
    }
    show(|out| {
        table.write(out)?;
        writeln!(out, "{}; ratio of p50", report.place())
    })
}

fn temporary_folder() -> Result<TempDir, BenchError> {
    tempfile::tempdir().map_err(|cause| BenchError::File {
        path: std::env::temp_dir(),
        cause,
    })
}
