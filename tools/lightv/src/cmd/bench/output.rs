//! Where a report goes: standard output, and files of JSON and of its picture.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use lightv_bench::plot;
use lightv_bench::report::Report;

use super::BenchError;
use crate::cmd::show_json;
use crate::failure::Failure;

/// Of a file that anybody may read, as far as the process's umask lets it.
const FILE_MODE: u32 = 0o666;

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
            publish(path, &json)?;
        }
        if let Some(path) = &self.plot {
            let svg = plot::draw(report).map_err(BenchError::from)?;
            publish(path, svg.as_bytes())?;
        }
        if self.json {
            show_json(report)
        } else {
            table(report)
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    folder.unwrap_or(Path::new("."))
}

/// Writes a file that is there as a whole or not at all: under another name, then renamed. What a link leads to is replaced and
/// not the link; a pipe or a device is written to.
fn publish(path: &Path, bytes: &[u8]) -> Result<(), BenchError> {
    let failed = |cause| BenchError::File {
        path: path.into(),
        cause,
    };
    let found = fs::canonicalize(path);
    let path = found.as_deref().unwrap_or(path);
    if path.exists() && !path.is_file() {
        return fs::write(path, bytes).map_err(failed);
    }
    let mut file = tempfile::Builder::new()
        .prefix(".lightv-bench-")
        .permissions(Permissions::from_mode(FILE_MODE))
        .tempfile_in(folder_of(path))
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    match file.persist(path) {
        Ok(_) => Ok(()),
        Err(refused) => Err(failed(refused.error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.json");
        for text in ["first, and longer", "second"] {
            publish(&path, text.as_bytes()).expect("to be written");
            assert_eq!(fs::read_to_string(&path).expect("the file"), text);
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        publish(&link, b"third").expect("to be written");
        assert_eq!(fs::read(&path).expect("the file"), b"third");
        assert!(link.is_symlink());
        publish(Path::new("/dev/null"), b"goes nowhere").expect("to be written");
        assert!(publish(folder.path(), b"a folder is there").is_err());
        let left = fs::read_dir(folder.path()).expect("the folder");
        assert_eq!(left.count(), 2);
        assert_eq!(folder_of(Path::new("a.json")), Path::new("."));
    }
}
