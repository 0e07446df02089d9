//! `lightv bench churn`: machines that start and end all the time, and what they leave behind.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::getpgrp;

use crate::first_byte;
use crate::fleet::by_callers;
use crate::process::{available_kib, host_number};
use crate::report::{self, Case};
use crate::stats::Sample;

/// Before memory is compared: KVM takes machines apart after their processes have ended.
const SETTLED: Duration = Duration::from_secs(3);
/// Starts before memory is looked at for the first time: caches of the host's kernel fill.
const WARM_UP: Duration = Duration::from_secs(2);
/// Parts of the time are so long at the most.
const LOOKED_AFTER: Duration = Duration::from_secs(10);

/// What is measured.
#[derive(Debug, Clone)]
pub struct ChurnBench {
    /// The program `lightv`.
    pub lightv: PathBuf,
    /// The image; its guest prints something and ends.
    pub image: PathBuf,
    /// How many start machines at the same time, each one after the other.
    pub callers: u32,
    /// How long.
    pub time: Duration,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ChurnError {
    /// A process could not be started.
    #[error("Cannot start {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A machine failed: its time says nothing.
    #[error("A machine ended with {status}, or printed nothing")]
    Failed {
        /// How it ended.
        status: ExitStatus,
    },
    /// The host's memory, or its processes, cannot be read.
    #[error("Cannot read the host's memory and processes from /proc")]
    Proc(#[source] io::Error),
    /// The time was too short.
    #[error("No machine was started in the time")]
    None,
}

/// Starts machines for the time, and looks at the host before, each [`LOOKED_AFTER`], and after. `progress` is told how much of the
/// time has gone.
///
/// `churn.left.…` is what the host has more of after a part of the time, for each machine that was started in it, and 0 where it has
/// less: other processes come and go. What every machine leaves is in every part, and so in the smallest value.
///
/// # Errors
/// [`ChurnError`].
pub fn measure(
    bench: &ChurnBench,
    progress: &(dyn Fn(u32, u32) -> ControlFlow<()> + Sync),
) -> Result<Vec<Case>, ChurnError> {
    start_for(bench, WARM_UP, &|_, _| ControlFlow::Continue(()))?;
    let looked_after = LOOKED_AFTER.as_millis();
    let parts = u32::try_from(bench.time.as_millis().div_ceil(looked_after)).unwrap_or(u32::MAX);
    let parts = parts.max(1);
    let (mut latencies_us, mut seconds, mut left) = (Vec::new(), 0.0, Left::default());
    let mut before = Host::settled()?;
    for part in 0..parts {
        let began = Instant::now();
        let of_all = |tenth, tenths| progress(part * tenths + tenth, parts * tenths);
        let found = start_for(bench, bench.time / parts, &of_all)?;
        seconds += began.elapsed().as_secs_f64();
        let after = Host::settled()?;
        left.note(&before, &after, found.len());
        before = after;
        latencies_us.extend(found);
        if of_all(10, 10).is_break() {
            break;
        }
    }
    let starts = latencies_us.len() as f64;
    let sample = |values| Sample::new(values).ok_or(ChurnError::None);
    let mut cases = report::cases("us", &[("churn.start", sample(latencies_us)?)]);
    for (name, unit, values) in [
        ("churn.rate", "starts/s", vec![starts / seconds]),
        ("churn.left.memory", "KiB/start", left.memory_kib),
        ("churn.left.processes", "processes/start", left.processes),
        ("churn.left.files", "files/start", left.files),
    ] {
        cases.extend(report::cases(unit, &[(name, sample(values)?)]));
    }
    Ok(cases)
}

/// What machines could leave behind.
#[derive(Debug, Clone, Copy)]
struct Host {
    available_kib: f64,
    /// Of LightV, and those in our process group: machines are, whatever they are called.
    processes: f64,
    /// Files that all processes have open.
    files: f64,
}

impl Host {
    /// After a while of rest.
    fn settled() -> Result<Self, ChurnError> {
        thread::sleep(SETTLED);
        Self::look().map_err(ChurnError::Proc)
    }

    fn look() -> io::Result<Self> {
        let group = getpgrp().as_raw_nonzero().get().to_string();
        let is_ours = |entry: &fs::DirEntry| {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            is_of_group(&stat, &group)
        };
        let processes = fs::read_dir("/proc")?.flatten().filter(is_ours).count();
        let files = host_number("/proc/sys/fs/file-nr", "");
        Ok(Self {
            available_kib: available_kib()?,
            processes: processes as f64,
            files: files.ok_or(io::ErrorKind::InvalidData)?,
        })
    }
}

/// Whether a line of proc_pid_stat(5) is of a process of LightV, or of the process group `group`.
fn is_of_group(stat: &str, group: &str) -> bool {
    let Some((name, rest)) = stat.rsplit_once(") ") else {
        return false;
    };
    let name = name.split_once('(').map_or("", |(_, name)| name);
    // State, parent, group.
    name.starts_with("lightv") || rest.split(' ').nth(2) == Some(group)
}

/// What was left for each start, in each part of the time.
#[derive(Debug, Default)]
struct Left {
    memory_kib: Vec<f64>,
    processes: Vec<f64>,
    files: Vec<f64>,
}

impl Left {
    fn note(&mut self, before: &Host, after: &Host, starts: usize) {
        let each = |more: f64| (more / starts.max(1) as f64).max(0.0);
        self.memory_kib
            .push(each(before.available_kib - after.available_kib));
        self.processes
            .push(each(after.processes - before.processes));
        self.files.push(each(after.files - before.files));
    }
}

/// From before each spawn to the first byte, in microseconds.
fn start_for(
    bench: &ChurnBench,
    time: Duration,
    progress: &(dyn Fn(u32, u32) -> ControlFlow<()> + Sync),
) -> Result<Vec<f64>, ChurnError> {
    let began = Instant::now();
    let found = Mutex::new(Vec::new());
    let caller = || -> Result<(), ChurnError> {
        let mut command = Command::new(&bench.lightv);
        command.args(["run", "--no-tty"]).arg(&bench.image);
        while began.elapsed() < time {
            let tenths = began.elapsed().as_millis() * 10 / time.as_millis().max(1);
            if progress(u32::try_from(tenths).unwrap_or(10), 10).is_break() {
                break;
            }
            let start = first_byte::measure(&mut command);
            let start = start.map_err(|cause| ChurnError::Start {
                program: bench.lightv.clone(),
                cause,
            })?;
            let Some(took) = start.first_byte.filter(|_| start.status.success()) else {
                return Err(ChurnError::Failed {
                    status: start.status,
                });
            };
            let mut found = found.lock().unwrap_or_else(|broken| broken.into_inner());
            found.push(took.as_secs_f64() * 1e6);
        }
        Ok(())
    };
    by_callers(bench.callers, caller)?;
    Ok(found
        .into_inner()
        .unwrap_or_else(|broken| broken.into_inner()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_start_leaves_is_in_every_part_and_what_others_do_is_not() {
        let host = |available_kib, processes, files| Host {
            available_kib,
            processes,
            files,
        };
        let mut left = Left::default();
        let looks = [
            host(10_000.0, 5.0, 100.0),
            host(9_000.0, 6.0, 300.0),
            host(8_500.0, 6.0, 500.0),
            host(8_500.0, 5.0, 701.0),
        ];
        for pair in looks.windows(2) {
            left.note(&pair[0], &pair[1], 100);
        }
        assert_eq!(left.memory_kib, [10.0, 5.0, 0.0]);
        assert_eq!(left.processes, [0.01, 0.0, 0.0]);
        let least = Sample::new(left.files).expect("numbers").min();
        assert_eq!(least.total_cmp(&2.0), std::cmp::Ordering::Equal);
    }

    #[test]
    fn processes_are_ours_by_name_or_group() {
        for (stat, is_ours) in [
            ("12 (lightv-vmm) S 1 12 12 0", true),
            ("12 (sleep) S 1 7 7 0", true),
            ("12 (a) b (sh) S 1 7 7 0", true),
            ("12 (sh) S 7 8 7 0", false),
            ("", false),
        ] {
            assert_eq!(is_of_group(stat, "7"), is_ours, "{stat}");
        }
    }
}
