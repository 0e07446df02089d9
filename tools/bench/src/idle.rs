//! `lightv bench idle`: what machines take of the host that have nothing to do: one, and many at a time.

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::fleet::{Fleet, Recipe, Started};
use crate::process::Scheduled;
use crate::report::{self, Case};
use crate::stats::Sample;

/// A machine gives back the pages that only its start needed after a second of nothing to do.
const SETTLED: Duration = Duration::from_secs(3);
/// Callers that start machines at the same time.
const CALLERS: u32 = 2;

/// What is measured.
#[derive(Debug, Clone)]
pub struct IdleBench {
    /// The program `lightv`.
    pub lightv: PathBuf,
    /// An image whose guest sends back what comes to port 7 of its vsock.
    pub image: PathBuf,
    /// A folder for sockets.
    pub work: PathBuf,
    /// Machines of the second part; 1: there is none.
    pub count: u32,
    /// How long they are watched.
    pub time: Duration,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum IdleError {
    /// A process could not be started.
    #[error("Cannot start {}: see `ulimit -u` and the limits of its cgroup (pids.max, memory.max)", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A machine did not come up, and takes nothing.
    #[error("{failures} of {count} machines did not answer")]
    Silent {
        /// How many did not.
        failures: u32,
        /// Of how many.
        count: u32,
    },
    /// What a process takes cannot be read.
    #[error("Cannot read what machines take from /proc: one may have ended")]
    Proc(#[source] io::Error),
    /// It was to end.
    #[error("Stopped")]
    Stopped,
}

/// What each machine took of the host while it was watched.
struct Taken {
    cpu_percent: Sample,
    wakeups_per_s: Sample,
    pss_kib: Sample,
}

/// Watches one machine, and then many. `progress` is told of each start.
///
/// # Errors
/// [`IdleError`].
pub fn measure(
    bench: &IdleBench,
    progress: &(dyn Fn(u32, u32) -> ControlFlow<()> + Sync),
) -> Result<Vec<Case>, IdleError> {
    let one = watch(bench, 1, progress)?;
    let many = match bench.count {
        1 => None,
        count => Some((count, watch(bench, count, progress)?)),
    };
    let mut cases = Vec::new();
    for (what, unit, of) in [
        (
            "cpu",
            "% of a core",
            (|taken| &taken.cpu_percent) as fn(&Taken) -> &Sample,
        ),
        ("wakeups", "wakeups/s", |taken| &taken.wakeups_per_s),
        ("pss", "KiB", |taken| &taken.pss_kib),
    ] {
        // Each by itself: next to nothing at all there is no ratio.
        let many = many.as_ref().map(|(count, taken)| (*count, taken));
        for (count, taken) in many.into_iter().chain([(1, &one)]) {
            let name = format!("idle.{what}.{count}");
            cases.extend(report::cases(unit, &[(&name, of(taken).clone())]));
        }
    }
    Ok(cases)
}

fn watch(
    bench: &IdleBench,
    count: u32,
    progress: &(dyn Fn(u32, u32) -> ControlFlow<()> + Sync),
) -> Result<Taken, IdleError> {
    let begun = std::sync::atomic::AtomicU32::new(0);
    let goes_on = || {
        let begun = begun.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        progress(begun.min(count), count).is_continue()
    };
    let recipe = Recipe {
        lightv: &bench.lightv,
        image: &bench.image,
        work: &bench.work,
        options: &[],
    };
    let started = Fleet::start(recipe, count, CALLERS, &goes_on);
    let Started {
        fleet, failures, ..
    } = started.map_err(|cause| IdleError::Start {
        program: bench.lightv.clone(),
        cause,
    })?;
    if progress(count, count).is_break() {
        return Err(IdleError::Stopped);
    }
    let silent = IdleError::Silent { failures, count };
    if failures > 0 {
        return Err(silent);
    }
    thread::sleep(SETTLED);
    let before = fleet.scheduled().map_err(IdleError::Proc)?;
    let since = Instant::now();
    thread::sleep(bench.time);
    let after = fleet.scheduled().map_err(IdleError::Proc)?;
    let seconds = since.elapsed().as_secs_f64();
    let each = |of: &dyn Fn(&Scheduled) -> f64, scale: f64| {
        let pairs = before.iter().zip(&after);
        let values = pairs.map(|(before, after)| (of(after) - of(before)) / seconds * scale);
        Sample::new(values.collect())
    };
    let cpu_percent = each(&|each| each.cpu.as_secs_f64(), 100.0);
    let wakeups_per_s = each(&|each| each.runs as f64, 1.0);
    let pss_kib = Sample::new(fleet.pss_kib().map_err(IdleError::Proc)?);
    match (cpu_percent, wakeups_per_s, pss_kib) {
        (Some(cpu_percent), Some(wakeups_per_s), Some(pss_kib)) => Ok(Taken {
            cpu_percent,
            wakeups_per_s,
            pss_kib,
        }),
        _ => Err(silent),
    }
}
