//! `lightv bench density`: many idle machines of one image on this host.

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::fleet::{Fleet, Recipe, Started, by_callers};
use crate::process::{available_kib, kernel_kib};
use crate::report::{self, Case};
use crate::stats::Sample;

/// A machine gives back the pages that only its start needed after a second of nothing to do.
const SETTLED: Duration = Duration::from_secs(3);
/// Machines that are asked once more, at places without an order.
const ASKED_AGAIN: usize = 100;
/// Between two of those places: no host has so many machines that it divides their number.
const STRIDE: usize = 7919;
/// Callers that start machines at the same time.
const CALLERS: u32 = 2;

/// What is measured.
#[derive(Debug, Clone)]
pub struct DensityBench {
    /// The program `lightv`.
    pub lightv: PathBuf,
    /// An image whose guest sends back what comes to port 7 of its vsock.
    pub image: PathBuf,
    /// A folder for sockets.
    pub work: PathBuf,
    /// Machines.
    pub count: u32,
    /// How long they are left alone.
    pub idle: Duration,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum DensityError {
    /// A process could not be started.
    #[error("Cannot start {}: see `ulimit -u` and the limits of its cgroup (pids.max, memory.max)", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// What a process takes cannot be read.
    #[error("Cannot read what machines take from /proc: one may have ended")]
    Proc(#[source] io::Error),
    /// It was to end.
    #[error("Stopped")]
    Stopped,
    /// No machine answered.
    #[error("None of the machines answered")]
    Silent,
}

/// Starts all machines and asks each for an answer; leaves them alone; asks all, and then some of them, again. What they take of
/// the host's memory and time is measured while they are idle. `progress` is told of each machine.
///
/// # Errors
/// [`DensityError`]. Machines that do not answer are no error: they are counted.
pub fn measure(
    bench: &DensityBench,
    progress: &(dyn Fn(u32, u32) -> ControlFlow<()> + Sync),
) -> Result<Vec<Case>, DensityError> {
    let floor = spawn_all(bench)?;
    let before_kib = available_kib().map_err(DensityError::Proc)?;
    let kernel_before = kernel_kib().map_err(DensityError::Proc)?;
    let began = Instant::now();
    let Started {
        fleet,
        latencies_us,
        failures,
    } = start_all(bench, progress)?;
    let start_all = began.elapsed();
    thread::sleep(SETTLED);
    let cpu = fleet.cpu().map_err(DensityError::Proc)?;
    let idle_since = Instant::now();
    thread::sleep(bench.idle);
    let cpu = fleet.cpu().map_err(DensityError::Proc)?.saturating_sub(cpu);
    let idle_percent = cpu.as_secs_f64() / idle_since.elapsed().as_secs_f64() * 100.0;
    let after_kib = available_kib().map_err(DensityError::Proc)?;
    let kernel = kernel_cases(&kernel_before, bench.count)?;
    let pss_kib = fleet.pss_kib().map_err(DensityError::Proc)?;
    let machines = fleet.len();
    let silent = fleet.silent(0..machines) + fleet.silent(places(machines));
    let per_vm_kib = (before_kib - after_kib) / f64::from(bench.count);
    let sample = |values| Sample::new(values).ok_or(DensityError::Silent);
    let one = |value: f64| sample(vec![value]);
    let mut cases = report::cases("us", &[("density.start", sample(latencies_us)?)]);
    let both = [
        ("density.start_all", one(start_all.as_secs_f64() * 1000.0)?),
        ("floor.spawn_all", one(floor.as_secs_f64() * 1000.0)?),
    ];
    cases.extend(report::cases("ms", &both));
    cases.extend(kernel);
    let threads = fleet.threads().map_err(DensityError::Proc)?;
    let counts = [("density.threads_per_vm", Sample::new(threads))];
    let counts = counts
        .into_iter()
        .chain([("density.files_per_vm", Sample::new(fleet.files()))]);
    for (name, values) in counts.filter_map(|(name, values)| Some((name, values?))) {
        cases.extend(report::cases("each", &[(name, values)]));
    }
    for (name, unit, values) in [
        ("density.memory_per_vm", "KiB", one(per_vm_kib)?),
        ("density.pss_per_vm", "KiB", sample(pss_kib)?),
        ("density.idle_cpu", "% of a core", one(idle_percent)?),
        (
            "density.failures",
            "answers",
            one(f64::from(failures + silent))?,
        ),
    ] {
        cases.extend(report::cases(unit, &[(name, values)]));
    }
    Ok(cases)
}

/// What the kernel has taken for itself since `before`, for each of `count` machines.
fn kernel_cases(before: &[(&'static str, f64)], count: u32) -> Result<Vec<Case>, DensityError> {
    let after = kernel_kib().map_err(DensityError::Proc)?;
    let mut cases = Vec::new();
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        let each = (after - before) / f64::from(count);
        let sample = Sample::new(vec![each]).ok_or(DensityError::Silent)?;
        cases.extend(report::cases(
            "KiB",
            &[(&format!("density.kernel.{name}"), sample)],
        ));
    }
    Ok(cases)
}

fn start_all(
    bench: &DensityBench,
    progress: &(dyn Fn(u32, u32) -> ControlFlow<()> + Sync),
) -> Result<Started, DensityError> {
    let begun = AtomicU32::new(0);
    let goes_on = || {
        let begun = begun.fetch_add(1, Ordering::Relaxed) + 1;
        progress(begun.min(bench.count), bench.count).is_continue()
    };
    let recipe = Recipe {
        lightv: &bench.lightv,
        image: &bench.image,
        work: &bench.work,
        options: &[],
    };
    let started = Fleet::start(recipe, bench.count, CALLERS, &goes_on);
    let started = started.map_err(|cause| start_error(bench, cause))?;
    if progress(bench.count, bench.count).is_break() {
        return Err(DensityError::Stopped);
    }
    Ok(started)
}

/// The least that as many processes take: of the same program, which says its version.
fn spawn_all(bench: &DensityBench) -> Result<Duration, DensityError> {
    let began = Instant::now();
    let next = AtomicU32::new(0);
    let ends = by_callers(CALLERS, || -> io::Result<()> {
        while next.fetch_add(1, Ordering::Relaxed) < bench.count {
            let mut command = Command::new(&bench.lightv);
            command.arg("--version").stdout(Stdio::null()).status()?;
        }
        Ok(())
    });
    ends.map_err(|cause| start_error(bench, cause))?;
    Ok(began.elapsed())
}

fn start_error(bench: &DensityBench, cause: io::Error) -> DensityError {
    DensityError::Start {
        program: bench.lightv.clone(),
        cause,
    }
}

/// Places of machines, [`ASKED_AGAIN`] or as many as there are.
fn places(machines: usize) -> impl Iterator<Item = usize> {
    (1..=ASKED_AGAIN.min(machines)).map(move |number| number * STRIDE % machines.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_different_and_there() {
        for machines in [1, 2, 99, 100, 1000, 10_000] {
            let mut found: Vec<usize> = places(machines).collect();
            found.sort_unstable();
            found.dedup();
            assert_eq!(found.len(), machines.min(ASKED_AGAIN), "{machines}");
            assert!(found.iter().all(|place| *place < machines));
        }
    }
}
