//! Where a report goes: standard output, and files of JSON and of its picture.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use lightv_bench::plot;
use lightv_bench::report::Report;

use super::BenchError;
use crate::cmd::show_json;
use crate::failure::Failure;
use crate::report_file::{folder_of, publish};

/// Where a report goes.
#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write the JSON into a file too
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Draw the report into a file, as SVG: min, p50 and p99 of both sides of each case, and their ratio
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

impl OutputArgs {
    /// That there is a place for each file, before anything is measured for minutes.
    pub(super) fn check(&self) -> Result<(), BenchError> {
        for path in self.out.iter().chain(&self.plot) {
            let folder = folder_of(path);
            if !folder.is_dir() {
                return Err(BenchError::NoFolder {
                    path: path.clone(),
                    folder: folder.into(),
                });
            }
        }
        Ok(())
    }

    /// Writes `report` where it was asked for, and shows it: as JSON, or by `table`.
    pub(super) fn show(
        &self,
        report: &Report,
        table: fn(&Report) -> Result<ExitCode, Failure>,
    ) -> Result<ExitCode, Failure> {
        if let Some(path) = &self.out {
            let json = serde_json::to_vec_pretty(report).unwrap_or_default();
            write(path, &json)?;
        }
        if let Some(path) = &self.plot {
            let svg = plot::draw(report).map_err(BenchError::from)?;
            write(path, svg.as_bytes())?;
        }
        if self.json {
            show_json(report)
        } else {
            table(report)
        }
    }
}

/// Writes a file that is there as a whole or not at all.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), BenchError> {
    publish(path, bytes).map_err(|cause| BenchError::File {
        path: path.into(),
        cause,
    })
}
