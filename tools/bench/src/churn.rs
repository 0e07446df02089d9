//! `lightv bench churn`: machines that start and end all the time, and what they leave behind.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::first_byte;
use crate::fleet::by_callers;
use crate::process::available_kib;
use crate::report::{self, Case};
use crate::stats::Sample;

/// Before memory is compared: KVM takes machines apart after their processes have ended.
const SETTLED: Duration = Duration::from_secs(3);
/// Starts before memory is looked at for the first time: caches of the host's kernel fill.
const WARM_UP: Duration = Duration::from_secs(2);

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

/// Starts machines for the time, and compares the host's memory and the number of its processes before and after.
/// `progress` is told how many of its tenths have gone.
///
/// # Errors
/// [`ChurnError`].
pub fn measure(
    bench: &ChurnBench,
    progress: &(dyn Fn(u32, u32) -> ControlFlow<()> + Sync),
) -> Result<Vec<Case>, ChurnError> {
    start_for(bench, WARM_UP, &|_, _| ControlFlow::Continue(()))?;
    thread::sleep(SETTLED);
    let before = Host::look().map_err(ChurnError::Proc)?;
    let began = Instant::now();
    let latencies_us = start_for(bench, bench.time, progress)?;
    let seconds = began.elapsed().as_secs_f64();
    thread::sleep(SETTLED);
    let after = Host::look().map_err(ChurnError::Proc)?;
    let starts = u32::try_from(latencies_us.len()).map_or(f64::MAX, f64::from);
    let sample = |values| Sample::new(values).ok_or(ChurnError::None);
    let mut cases = report::cases("us", &[("churn.start", sample(latencies_us)?)]);
    let left = |before: f64, after: f64| (after - before).max(0.0);
    for (name, unit, value) in [
        ("churn.rate", "starts/s", starts / seconds),
        (
            "churn.left.memory",
            "KiB",
            left(after.available_kib, before.available_kib),
        ),
        (
            "churn.left.processes",
            "processes",
            left(before.processes, after.processes),
        ),
    ] {
        cases.extend(report::cases(unit, &[(name, sample(vec![value])?)]));
    }
    Ok(cases)
}

/// What machines could leave behind.
struct Host {
    available_kib: f64,
    processes: f64,
}

impl Host {
    fn look() -> io::Result<Self> {
        let is_process = |entry: &fs::DirEntry| {
            let name = entry.file_name();
            name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
        };
        let processes = fs::read_dir("/proc")?.flatten().filter(is_process).count();
        Ok(Self {
            available_kib: available_kib()?,
            processes: u32::try_from(processes).map_or(f64::MAX, f64::from),
        })
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
