//! Runs a guest that measures itself, and reads what it prints and what KVM counted of it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::sys;

/// A guest of an image that is restored for each run.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The program `lightv`.
    pub lightv: PathBuf,
    /// The image.
    pub image: PathBuf,
    /// A file for the machine's metrics, made anew by each run: with it, [`Printed::exits`] are counted.
    pub metrics: Option<PathBuf>,
    /// More options of `lightv run`.
    pub options: Vec<String>,
}

/// How often vCPUs left the guest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exits {
    /// In all, as KVM counts.
    pub all: f64,
    /// Back to the monitor.
    pub user: f64,
}

impl Exits {
    /// Those that are not `other`'s too.
    #[must_use]
    pub fn less(self, other: Self) -> Self {
        Self {
            all: (self.all - other.all).max(0.0),
            user: (self.user - other.user).max(0.0),
        }
    }

    /// For each of `count`.
    #[must_use]
    pub fn per(self, count: f64) -> Self {
        Self {
            all: self.all / count,
            user: self.user / count,
        }
    }
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
    /// The metrics could not be read.
    #[error("Cannot read the machine's metrics {}", path.display())]
    Metrics {
        /// The file.
        path: PathBuf,
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
    /// Exits of the whole run, its start and end included; `None` where KVM does not tell them (before Linux 5.14).
    pub exits: Option<Exits>,
}

impl Guest {
    /// Runs it with `args`, to its end.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn run(&self, args: &[&str]) -> Result<Printed, GuestError> {
        let mut command = Command::new(&self.lightv);
        command.arg("run").arg("--no-tty");
        if let Some(metrics) = &self.metrics {
            // Lines are added to a file that is there; that there is none is what is wanted.
            let _ = fs::remove_file(metrics);
            command.arg("--metrics-path").arg(metrics);
        }
        command.args(&self.options).arg(&self.image);
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
            exits: self.exits()?,
        })
    }

    fn exits(&self) -> Result<Option<Exits>, GuestError> {
        let Some(path) = &self.metrics else {
            return Ok(None);
        };
        let text = fs::read_to_string(path).map_err(|cause| GuestError::Metrics {
            path: path.clone(),
            cause,
        })?;
        Ok(exits_of(&text))
    }
}

/// Exits in lines of metrics: each has what was counted since the line before.
fn exits_of(lines: &str) -> Option<Exits> {
    let mut sum = None;
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).ok()?;
        let count = |name: &str| line["kvm"][name].as_f64();
        let Some((all, user)) = count("exits").zip(count("user_exits")) else {
            continue;
        };
        let Exits { all: a, user: u } = sum.unwrap_or(Exits {
            all: 0.0,
            user: 0.0,
        });
        sum = Some(Exits {
            all: a + all,
            user: u + user,
        });
    }
    sum
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_the_sum_of_all_lines_or_unknown() {
        let line = |all: u32, user: u32| {
            format!("{{\"kvm\":{{\"exits\":{all},\"user_exits\":{user}}},\"vcpu\":{{}}}}\n")
        };
        let found = exits_of(&(line(100, 7) + &line(20, 3)));
        let expected = Exits {
            all: 120.0,
            user: 10.0,
        };
        assert_eq!(found, Some(expected));
        for unknown in [
            "",
            "{\"vcpu\":{}}\n",
            "{\"kvm\":{\"exits\":1}}\n",
            "no JSON\n",
        ] {
            assert_eq!(exits_of(unknown), None, "{unknown}");
        }
        let each = expected
            .less(Exits {
                all: 20.0,
                user: 20.0,
            })
            .per(50.0);
        assert_eq!((each.all, each.user), (2.0, 0.0));
    }
}
