//! Runs a guest that measures itself, and reads what it prints.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::sys;

/// A guest of an image that is restored for each run.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The program `lightv`.
    pub lightv: PathBuf,
    /// The image.
    pub image: PathBuf,
}

/// Why a run says nothing.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The program could not be started.
    #[error("Cannot start {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The guest failed.
    #[error("`{command}` ended with {status}: {stderr}")]
    Failed {
        /// What was run.
        command: String,
        /// How it ended.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// A value that should be there is not.
    #[error("`{command}` printed no number {name}: {stdout}")]
    Silent {
        /// What was run.
        command: String,
        /// The name of the value.
        name: &'static str,
        /// What it printed.
        stdout: String,
    },
}

/// What a guest printed: a record a line, each of `name=value` words.
#[derive(Debug)]
pub struct Printed {
    command: String,
    stdout: String,
    /// Processor time of the whole process, its start and end included.
    pub cpu: Duration,
}

impl Guest {
    /// Runs it with `args`, to its end.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn run(&self, args: &[&str]) -> Result<Printed, GuestError> {
        let mut command = Command::new(&self.lightv);
        command.arg("run").arg("--no-tty").arg(&self.image);
        command.arg("--").args(args).stdin(Stdio::null());
        let before = sys::cpu_of_children();
        let output = command.output().map_err(|cause| GuestError::Start {
            program: self.lightv.clone(),
            cause,
        })?;
        let cpu = sys::cpu_of_children().saturating_sub(before);
        let command = format!("{} -- {}", name_of(&self.image), args.join(" "));
        if !output.status.success() {
            return Err(GuestError::Failed {
                command,
                status: output.status.to_string(),
                stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(Printed {
            command,
            stdout,
            cpu,
        })
    }
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

impl Printed {
    /// Its records.
    pub fn records(&self) -> impl Iterator<Item = BTreeMap<&str, &str>> {
        self.stdout.lines().map(|line| {
            line.split(' ')
                .filter_map(|word| word.split_once('='))
                .collect()
        })
    }

    /// The number `name` of `record`.
    ///
    /// # Errors
    /// [`GuestError::Silent`].
    pub fn number(
        &self,
        record: &BTreeMap<&str, &str>,
        name: &'static str,
    ) -> Result<f64, GuestError> {
        let number = record.get(name).and_then(|text| text.parse().ok());
        number.ok_or_else(|| self.silent(name))
    }

    /// That `name` is missing.
    #[must_use]
    pub fn silent(&self, name: &'static str) -> GuestError {
        GuestError::Silent {
            command: self.command.clone(),
            name,
            stdout: self.stdout.trim().to_owned(),
        }
    }
}
