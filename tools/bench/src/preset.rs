//! `lightv bench preset`: for each preset a figure that it improves, next to the same without one, in turn.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::first_byte;
use crate::fleet::{Fleet, Recipe};
use crate::process;
use crate::report::{self, Case};
use crate::stats::Sample;

/// After each process: KVM takes a VM apart after its process has ended.
const PAUSE: Duration = Duration::from_millis(20);
/// Machines of each side whose memory is looked at.
const MACHINES: u32 = 8;
/// What a guest is told whose first routine takes longer than it is looked at.
const LONG: [&str; 2] = ["--", "1000s"];
/// After the last has started: longer than a machine of many waits until it gives memory back, shorter than others do.
const YOUNG: Duration = Duration::from_millis(400);

/// What is measured.
#[derive(Debug, Clone)]
pub struct PresetBench {
    /// The program `lightv`.
    pub lightv: PathBuf,
    /// An image whose guest writes much memory before it prints something and ends.
    pub image: PathBuf,
    /// The same, built with the preset for startup.
    pub startup_image: PathBuf,
    /// The same, built with a working set and no preset. Its guest does each routine for as long as it is told.
    pub warm_image: PathBuf,
    /// An image whose guest sends back what comes to port 7 of its vsock.
    pub vsock_image: PathBuf,
    /// Folders for sockets, with the preset and without.
    pub work: [PathBuf; 2],
    /// Rounds that count.
    pub rounds: u32,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum PresetError {
    /// A process could not be started or watched.
    #[error("Cannot run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A machine failed: its time says nothing.
    #[error("`{case}`: a machine ended with {status}, or printed nothing")]
    Failed {
        /// The case.
        case: &'static str,
        /// How it ended.
        status: ExitStatus,
    },
    /// Machines did not answer.
    #[error("`{case}`: {failures} answers did not come")]
    Silent {
        /// The case.
        case: &'static str,
        /// How many.
        failures: u32,
    },
    /// No round was asked for.
    #[error("The number of rounds must be at least 1")]
    NoRounds,
    /// It was to end.
    #[error("Stopped")]
    Stopped,
}

/// Measures each preset and the same without, in turn, after a round that does not count: `preset.startup`, from the spawn to the
/// first byte; `preset.performance`, from the spawn to the end; both in microseconds. `preset.concurrency.memory`, the process's own share
/// in KiB soon after its start; `….prefetch`, the same of a guest that has not come to all pages of its working set. Each is compared
/// with `none.…`.
///
/// # Errors
/// [`PresetError`].
pub fn measure(
    bench: &PresetBench,
    progress: &(dyn Fn(u32, u32) -> ControlFlow<()> + Sync),
) -> Result<Vec<Case>, PresetError> {
    let startup = ["--optimize-startup"];
    let performance = ["--optimize-performance"];
    let concurrency = ["--optimize-concurrency"];
    let mut found: [[Vec<f64>; 2]; 4] = Default::default();
    for round in 0..=bench.rounds {
        let each = [
            [
                first_byte(bench, "preset.startup", &startup, &bench.startup_image)?,
                first_byte(bench, "none.startup", &[], &bench.image)?,
            ],
            [
                until_end(bench, "preset.performance", &performance)?,
                until_end(bench, "none.performance", &[])?,
            ],
            [
                young(bench, &concurrency, &bench.work[0])?,
                young(bench, &[], &bench.work[1])?,
            ],
            [early(bench, &concurrency)?, early(bench, &[])?],
        ];
        if round > 0 {
            for (found, each) in found.iter_mut().flatten().zip(each.into_iter().flatten()) {
                found.push(each);
            }
        }
        if progress(round, bench.rounds).is_break() {
            return Err(PresetError::Stopped);
        }
    }
    let mut cases = Vec::new();
    let names = [
        ("startup", "us"),
        ("performance", "us"),
        ("concurrency.memory", "KiB"),
        ("concurrency.prefetch", "KiB"),
    ];
    for ((name, unit), [with, without]) in names.into_iter().zip(found) {
        let sample = |values| Sample::new(values).ok_or(PresetError::NoRounds);
        let (preset, none) = (format!("preset.{name}"), format!("none.{name}"));
        let both = [
            (preset.as_str(), sample(with)?),
            (none.as_str(), sample(without)?),
        ];
        cases.extend(report::cases(unit, &both));
    }
    Ok(cases)
}

fn command(bench: &PresetBench, options: &[&str], image: &Path) -> Command {
    let mut command = Command::new(&bench.lightv);
    command.arg("run").args(options).arg("--no-tty").arg(image);
    command
}

fn failed(bench: &PresetBench) -> impl Fn(io::Error) -> PresetError {
    let program = bench.lightv.clone();
    move |cause| PresetError::Run {
        program: program.clone(),
        cause,
    }
}

fn first_byte(
    bench: &PresetBench,
    case: &'static str,
    options: &[&str],
    image: &Path,
) -> Result<f64, PresetError> {
    let start = first_byte::measure(&mut command(bench, options, image)).map_err(failed(bench))?;
    thread::sleep(PAUSE);
    match start.first_byte.filter(|_| start.status.success()) {
        Some(took) => Ok(took.as_secs_f64() * 1e6),
        None => Err(PresetError::Failed {
            case,
            status: start.status,
        }),
    }
}

fn until_end(
    bench: &PresetBench,
    case: &'static str,
    options: &[&str],
) -> Result<f64, PresetError> {
    let mut command = command(bench, options, &bench.image);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let began = Instant::now();
    let status = command.status().map_err(failed(bench))?;
    let took = began.elapsed();
    thread::sleep(PAUSE);
    match status.success() {
        true => Ok(took.as_secs_f64() * 1e6),
        false => Err(PresetError::Failed { case, status }),
    }
}

fn start_fleet(bench: &PresetBench, options: &[&str], work: &Path) -> Result<Fleet, PresetError> {
    let recipe = Recipe {
        lightv: &bench.lightv,
        image: &bench.vsock_image,
        work,
        options,
    };
    let started = Fleet::start(recipe, MACHINES, 1, &|| true).map_err(failed(bench))?;
    match started.failures {
        0 => Ok(started.fleet),
        failures => Err(PresetError::Silent {
            case: "concurrency.memory",
            failures,
        }),
    }
}

/// A machine's own share of memory soon after its start: the median of some.
fn young(bench: &PresetBench, options: &[&str], work: &Path) -> Result<f64, PresetError> {
    let fleet = start_fleet(bench, options, work)?;
    thread::sleep(YOUNG);
    let pss_kib = fleet.pss_kib().map_err(|cause| PresetError::Run {
        program: "/proc".into(),
        cause,
    })?;
    let sample = Sample::new(pss_kib).ok_or(PresetError::NoRounds)?;
    Ok(sample.percentile(50))
}

/// Memory of a machine whose guest has just begun.
fn early(bench: &PresetBench, options: &[&str]) -> Result<f64, PresetError> {
    let mut command = command(bench, options, &bench.warm_image);
    command
        .args(LONG)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let mut child = command.spawn().map_err(failed(bench))?;
    thread::sleep(YOUNG);
    let pss_kib = process::pss_kib(child.id());
    // It has no end by itself.
    let _ = child.kill();
    let ended = child.wait();
    thread::sleep(PAUSE);
    ended.map_err(failed(bench))?;
    pss_kib.map_err(|cause| PresetError::Run {
        program: "/proc".into(),
        cause,
    })
}
