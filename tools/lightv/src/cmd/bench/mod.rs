//! `lightv bench`: measures the claims on this host.

mod api;
mod start;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lightv_api::exit;
use lightv_api::host::HostReport;
use lightv_bench::api::ApiBenchError;
use lightv_bench::report::{Case, Report};
use lightv_bench::start::StartBenchError;
use tempfile::TempDir;

use crate::cache::CacheError;
use crate::failure::{Coded, Failure};
use crate::monitor::{self, MonitorError};

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
    #[error(transparent)]
    Start(#[from] StartBenchError),
    #[error(transparent)]
    Api(#[from] ApiBenchError),
}

impl Coded for BenchError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::NoImage { .. } => exit::BAD_CONFIG,
            Self::Image(cause) => cause.exit_code(),
            Self::Monitor(cause) => cause.exit_code(),
            _ => exit::FAILURE,
        }
    }
}

/// Carries out the benchmark that was named.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode, Failure> {
    match &args.bench {
        Bench::Start(args) => start::run(args),
        Bench::Api(args) => api::run(args),
    }
}

/// The report of a benchmark on this host.
fn report(bench: &str, cases: Vec<Case>) -> Result<Report, BenchError> {
    let host: HostReport = monitor::query(&["--check-host".as_ref()])?;
    Ok(Report {
        bench: bench.into(),
        host: (&host).into(),
        cases,
    })
}

/// Writes the report into a file, if one is named.
fn write_out(report: &Report, path: Option<&Path>) -> Result<(), BenchError> {
    let Some(path) = path else {
        return Ok(());
    };
    let json = serde_json::to_vec_pretty(report).unwrap_or_default();
    fs::write(path, json).map_err(|cause| BenchError::File {
        path: path.into(),
        cause,
    })
}

/// Where it ran.
fn host_line(report: &Report) -> String {
    let host = &report.host;
    format!(
        "{}, {} cores, Linux {}, {} KVM",
        host.cpu, host.cores, host.kernel, host.kvm
    )
}

fn temporary_folder() -> Result<TempDir, BenchError> {
    tempfile::tempdir().map_err(|cause| BenchError::File {
        path: std::env::temp_dir(),
        cause,
    })
}
