//! `lightv bench start`: how long a microVM takes to give out its first byte, next to the least that KVM allows.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Duration;

use crate::first_byte;
use crate::stats::Sample;

/// Rounds before the first that counts: page cache, directory entries and the CPU's clock settle.
const WARM_UP_ROUNDS: u32 = 10;

/// After each process: KVM takes a VM apart after its process has ended, and that would disturb the next start.
const PAUSE: Duration = Duration::from_millis(20);
/// After a jail, whose network the host's kernel takes apart, too.
const PAUSE_AFTER_JAIL: Duration = Duration::from_millis(100);

/// Pages that the restored hello-world guest reads only, besides that of its code, before its first byte.
///
/// Counted, with the next, by `perf stat -e kvmmmu:kvm_mmu_set_spte lightv-vmm --restore hello-world.lv`: KVM maps
/// four pages. The image's working set says which two of them are written.
pub const FLOOR_PAGES_READ: u32 = 1;
/// Pages that the restored hello-world guest writes before its first byte.
pub const FLOOR_PAGES_WRITTEN: u32 = 2;

/// Name of the case that boots.
const COLD: &str = "cold";
/// Name of the case that runs in a jail.
const JAIL: &str = "jail";

/// What is measured.
#[derive(Debug, Clone)]
pub struct StartBench {
    /// The program `lightv`.
    pub lightv: PathBuf,
    /// The program `lightv-floor`.
    pub floor: PathBuf,
    /// The image that is run.
    pub image: PathBuf,
    /// A folder for the floor's guest memory.
    pub work: PathBuf,
    /// Rounds that count.
    pub rounds: u32,
    /// In how many of them a cold start is measured too, when it takes longer than [`SLOW_COLD_US`]; else in all.
    pub slow_cold_rounds: u32,
}

/// A cold start that takes longer than this, in microseconds, is not measured in each round: a Linux guest takes
/// seconds to boot where KVM is emulated.
pub const SLOW_COLD_US: f64 = 500_000.0;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum StartBenchError {
    /// A program could not be started.
    #[error("Cannot start {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A program failed: its time says nothing.
    #[error("`{case}` ended with {status} in round {round}")]
    Failed {
        /// The case.
        case: &'static str,
        /// From 0, warm-up included.
        round: u32,
        /// How it ended.
        status: ExitStatus,
    },
    /// A program ended well but gave nothing out.
    #[error("`{case}` printed nothing in round {round}")]
    Silent {
        /// The case.
        case: &'static str,
        /// From 0, warm-up included.
        round: u32,
    },
    /// No round was asked for.
    #[error("The number of rounds must be at least 1")]
    NoRounds,
}

/// Measures `run`, the same with `no_seccomp`, `cold`, `jail` and `floor` in turn, round by round, in microseconds; `floor`
/// is the reference.
///
/// `progress` is told of every round: how many are done, and of how many.
///
/// # Errors
/// The first start that does not succeed ends the benchmark: a failure is no measurement.
pub fn measure(
    bench: &StartBench,
    mut progress: impl FnMut(u32, u32),
) -> Result<Vec<(&'static str, Sample)>, StartBenchError> {
    let memory = bench.work.join("floor.memory");
    prepare_floor(&bench.floor, &memory)?;
    let mut cases = [
        Timed::new(
            "run",
            command(&bench.lightv, &["run".as_ref(), &bench.image]),
        ),
        Timed::new(
            "no_seccomp",
            command(
                &bench.lightv,
                &["run".as_ref(), "--no-seccomp".as_ref(), &bench.image],
            ),
        ),
        Timed::new(
            COLD,
            command(
                &bench.lightv,
                &["run".as_ref(), "--cold".as_ref(), &bench.image],
            ),
        ),
        Timed::new(
            JAIL,
            command(
                &bench.lightv,
                &["run".as_ref(), "--jail".as_ref(), &bench.image],
            ),
        ),
        Timed::new("floor", command(&bench.floor, &[&memory])),
    ];
    let rounds = bench.rounds + WARM_UP_ROUNDS;
    // Found out in the first round.
    let mut cold_every = 1;
    for round in 0..rounds {
        let counts = round >= WARM_UP_ROUNDS;
        for case in &mut cases {
            if case.name == COLD && !is_cold_round(round, cold_every) {
                continue;
            }
            let us = case.start(round)?;
            if case.name == COLD && round == 0 && us > SLOW_COLD_US {
                cold_every = bench.rounds.div_ceil(bench.slow_cold_rounds.max(1));
            }
            if counts {
                case.values_us.push(us);
            }
            thread::sleep(if case.name == JAIL {
                PAUSE_AFTER_JAIL
            } else {
                PAUSE
            });
        }
        progress(round + 1, rounds);
    }
    let sample = |case: Timed| Some((case.name, Sample::new(case.values_us)?));
    cases
        .into_iter()
        .map(sample)
        .collect::<Option<Vec<_>>>()
        .ok_or(StartBenchError::NoRounds)
}

/// Whether a cold start is measured in this round: of those that count, the first and each `every`th after it.
const fn is_cold_round(round: u32, every: u32) -> bool {
    match round.checked_sub(WARM_UP_ROUNDS) {
        Some(counted) => counted.is_multiple_of(every),
        None => every == 1,
    }
}

/// A case and what was measured of it.
struct Timed {
    name: &'static str,
    command: Command,
    values_us: Vec<f64>,
}

impl Timed {
    fn new(name: &'static str, command: Command) -> Self {
        Self {
            name,
            command,
            values_us: Vec::new(),
        }
    }

    fn start(&mut self, round: u32) -> Result<f64, StartBenchError> {
        let case = self.name;
        let start =
            first_byte::measure(&mut self.command).map_err(|cause| StartBenchError::Start {
                program: self.command.get_program().into(),
                cause,
            })?;
        if !start.status.success() {
            return Err(StartBenchError::Failed {
                case,
                round,
                status: start.status,
            });
        }
        let first_byte = start
            .first_byte
            .ok_or(StartBenchError::Silent { case, round })?;
        Ok(first_byte.as_secs_f64() * 1e6)
    }
}

fn command(program: &Path, args: &[&Path]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

fn prepare_floor(floor: &Path, memory: &Path) -> Result<(), StartBenchError> {
    let mut prepare = command(floor, &["--prepare".as_ref(), memory]);
    prepare
        .arg(FLOOR_PAGES_READ.to_string())
        .arg(FLOOR_PAGES_WRITTEN.to_string());
    let status = prepare.status().map_err(|cause| StartBenchError::Start {
        program: floor.to_owned(),
        cause,
    })?;
    match status.success() {
        true => Ok(()),
        false => Err(StartBenchError::Failed {
            case: "floor",
            round: 0,
            status,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_cold_starts_are_spread_over_the_rounds_that_count() {
        let rounds =
            |every| (0..WARM_UP_ROUNDS + 20).filter(move |round| is_cold_round(*round, every));
        assert_eq!(rounds(1).count(), 30);
        assert_eq!(rounds(10).collect::<Vec<_>>(), [10, 20]);
        assert_eq!(rounds(7).collect::<Vec<_>>(), [10, 17, 24]);
    }
}
