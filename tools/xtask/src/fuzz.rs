//! `cargo xtask fuzz`: what is fuzzed lies in tests/fuzz, in the layout of cargo-fuzz, which is not needed
//! (docs/fuzzing.md).

use std::collections::VecDeque;
use std::env;
use std::fs::{self, File};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::cache::{file_error, read};
use crate::commands::{self, TaskError};
use crate::{prerequisites, suite};

const WORKSPACE: &str = "tests/fuzz";

/// What cargo-fuzz builds with where there is no sanitizer: the counters and comparisons by which libFuzzer finds its way.
/// Stable compilers have these.
const FLAGS: [&str; 6] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Limits of each run, as libFuzzer has them. One allocation has its limit in tests/fuzz.
const LIMITS: [&str; 4] = [
    "-timeout=5",
    "-rss_limit_mb=512",
    "-max_len=16384",
    "-print_final_stats=1",
];

/// Seconds that each target has in `cargo xtask test`: all of them, two at a time, take less than a minute.
const SMOKE_SECONDS: u32 = 6;
/// Seconds that each has when nothing is said.
const SECONDS: u32 = 60;
/// Targets that run at a time, whatever the host has: each needs half a GiB.
const JOBS_MAX: usize = 8;
/// Lines of what a target says that are shown of one that failed.
const LOG_LINES: usize = 60;
/// Bytes of an input that are shown.
const INPUT_BYTES_SHOWN: usize = 8192;

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
enum Job {
    Run { seconds: u32, targets: Vec<String> },
    Replay { target: String, input: PathBuf },
    Seeds,
}

/// How targets are run.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// Each target's.
    seconds: u32,
    /// Of libFuzzer's random numbers; another one each time if absent.
    seed: Option<u32>,
}

/// Repeats itself as far as time lets it: that a change breaks something is to be seen at this change.
const SMOKE: Plan = Plan {
    seconds: SMOKE_SECONDS,
    seed: Some(1),
};

/// What a target's run came to.
#[derive(Debug)]
struct Outcome {
    target: String,
    log: String,
    is_success: bool,
}

/// `fuzz [--seconds N] [TARGET…]`, `fuzz --replay FILE TARGET`, `fuzz --seeds`.
pub(crate) fn fuzz(args: &[String]) -> Result<(), TaskError> {
    match parse(args)? {
        Job::Seeds => write_seeds(),
        Job::Replay { target, input } => {
            build(std::slice::from_ref(&target))?;
            commands::run(Command::new(program(&target)).args(&LIMITS[..2]).arg(input))
        }
        Job::Run { seconds, targets } => {
            let plan = Plan {
                seconds,
                seed: None,
            };
            let outcomes = run(&targets, plan)?;
            match failures(&outcomes) {
                0 => Ok(()),
                findings => Err(TaskError::Findings { findings }),
            }
        }
    }
}

/// All targets, for a short time: each is a test.
pub(crate) fn smoke() -> suite::Run {
    let outcomes = targets().and_then(|targets| run(&targets, SMOKE));
    match outcomes {
        Ok(outcomes) => {
            let failed = failures(&outcomes);
            suite::Run::of("fuzz", outcomes.len() as u64 - failed, failed)
        }
        Err(error) => suite::not_built("fuzz", &error),
    }
}

/// Format and clippy of the targets.
pub(crate) fn check() -> Result<(), TaskError> {
    commands::run(&mut cargo(&["fmt", "--check"]))?;
    // Without libFuzzer itself, which would be compiled once more.
    let clippy = [
        "clippy",
        "--all-targets",
        "--no-default-features",
        "--",
        "-D",
        "warnings",
    ];
    commands::run(&mut cargo(&clippy))
}

/// `cargo` in the targets' workspace. Without their flags it uses what is compiled already for other tasks.
fn cargo(args: &[&str]) -> Command {
    let mut command = commands::cargo(args);
    command.current_dir(commands::root().join(WORKSPACE));
    command.env("CARGO_TARGET_DIR", commands::target_dir());
    command
}

/// Where everything is that is made here.
fn folder() -> PathBuf {
    commands::target_dir().join("fuzz")
}

fn program(target: &str) -> PathBuf {
    folder().join(commands::TARGET).join("release").join(target)
}

fn parse(args: &[String]) -> Result<Job, TaskError> {
    let known = targets()?;
    let check = |name: &String| match known.contains(name) {
        true => Ok(name.clone()),
        false => Err(TaskError::FuzzTarget {
            name: name.clone(),
            known: known.join(", "),
        }),
    };
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--seeds"] => Ok(Job::Seeds),
        ["--replay", input, _] => Ok(Job::Replay {
            target: check(&args[2])?,
            // Relative to where the user is, which is where `cargo xtask` runs.
            input: PathBuf::from(input),
        }),
        ["--seconds", seconds, rest @ ..] if seconds.parse::<u32>().is_ok_and(|n| n > 0) => {
            Ok(Job::Run {
                seconds: seconds.parse().unwrap_or(SECONDS),
                targets: chosen(&args[args.len() - rest.len()..], &known, check)?,
            })
        }
        [first, ..] if first.starts_with('-') => Err(TaskError::FuzzUsage),
        _ => Ok(Job::Run {
            seconds: SECONDS,
            targets: chosen(args, &known, check)?,
        }),
    }
}

/// Those that are named, or all.
fn chosen(
    names: &[String],
    known: &[String],
    check: impl Fn(&String) -> Result<String, TaskError>,
) -> Result<Vec<String>, TaskError> {
    if names.is_empty() {
        return Ok(known.to_vec());
    }
    names.iter().map(check).collect()
}

/// Names of all targets, in order.
fn targets() -> Result<Vec<String>, TaskError> {
    let folder = commands::root().join(WORKSPACE).join("fuzz_targets");
    let entries = fs::read_dir(&folder).map_err(|cause| file_error(&folder, cause))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.map_err(|cause| file_error(&folder, cause))?.path();
        let name = path.file_stem().map(|name| name.to_string_lossy());
        names.extend(name.map(|name| name.into_owned()));
    }
    names.sort();
    Ok(names)
}

fn build(targets: &[String]) -> Result<(), TaskError> {
    prerequisites::require()?;
    let mut command = cargo(&["build", "--release"]);
    command
        .env("CARGO_TARGET_DIR", folder())
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    for target in targets {
        command.arg("--bin").arg(target);
    }
    commands::run(&mut command)
}

/// Writes the seeds anew. What they were is in git.
fn write_seeds() -> Result<(), TaskError> {
    let folder = commands::root().join(WORKSPACE).join("seeds");
    let mut command = cargo(&["run", "--no-default-features", "--example", "seeds", "--"]);
    commands::run(command.arg(folder))
}

fn run(targets: &[String], plan: Plan) -> Result<Vec<Outcome>, TaskError> {
    build(targets)?;
    let waiting: Mutex<VecDeque<&String>> = Mutex::new(targets.iter().collect());
    let next = || {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.pop_front()
    };
    let work = || -> Result<Vec<Outcome>, TaskError> {
        let mut outcomes = Vec::new();
        while let Some(target) = next() {
            let outcome = run_one(target, plan)?;
            outcome.tell();
            outcomes.push(outcome);
        }
        Ok(outcomes)
    };
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.min(JOBS_MAX)).map(|_| scope.spawn(work)).collect();
        let mut outcomes = Vec::new();
        for worker in workers {
            let result = worker.join();
            outcomes.extend(result.unwrap_or_else(|panic| resume_unwind(panic))?);
        }
        Ok(outcomes)
    })
}

fn run_one(target: &str, plan: Plan) -> Result<Outcome, TaskError> {
    let workspace = commands::root().join(WORKSPACE);
    let made = |kind: &str| -> Result<PathBuf, TaskError> {
        let path = folder().join(kind).join(target);
        fs::create_dir_all(&path).map_err(|cause| file_error(&path, cause))?;
        Ok(path)
    };
    let (corpus, artifacts) = (made("corpus")?, made("artifacts")?);
    let log_path = made("logs")?.join("log");
    let log = File::create(&log_path).map_err(|cause| file_error(&log_path, cause))?;
    let mut command = Command::new(program(target));
    command
        .args(LIMITS)
        .arg(format!("-max_total_time={}", plan.seconds))
        .arg(format!("-artifact_prefix={}/", artifacts.display()));
    if let Some(seed) = plan.seed {
        command.arg(format!("-seed={seed}"));
    }
    let dictionary = workspace.join("dictionaries").join(target);
    if dictionary.is_file() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    // New inputs go to the first folder.
    command
        .arg(corpus)
        .arg(workspace.join("seeds").join(target));
    // Files of disks and sockets are in memory, where they can.
    let memory = Path::new("/dev/shm");
    if memory.is_dir() && env::var_os("TMPDIR").is_none() {
        command.env("TMPDIR", memory);
    }
    let copy = log.try_clone();
    command.stderr(copy.map_err(|cause| file_error(&log_path, cause))?);
    let status = command.stdout(log).status();
    let status = status.map_err(|cause| commands::start_error(&command, cause))?;
    Ok(Outcome {
        target: target.to_owned(),
        log: String::from_utf8_lossy(&read(&log_path)?).into_owned(),
        is_success: status.success(),
    })
}

fn failures(outcomes: &[Outcome]) -> u64 {
    outcomes
        .iter()
        .filter(|outcome| !outcome.is_success)
        .count() as u64
}

impl Outcome {
    /// Prints what a run came to; of one that failed, why, and the input.
    fn tell(&self) {
        let Self { target, log, .. } = self;
        let figures = Figures::of(log);
        if self.is_success {
            println!("fuzz {target}: {figures}, no finding");
            return;
        }
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.len().saturating_sub(LOG_LINES);
        println!("{}", lines[last..].join("\n"));
        println!("fuzz {target}: {figures}, FAILED (docs/fuzzing.md tells what to do)");
        if let Some(path) = artifact(log) {
            let bytes = fs::read(path).unwrap_or_default();
            let shown = &bytes[..bytes.len().min(INPUT_BYTES_SHOWN)];
            let digits: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
            println!("fuzz {target}: {} bytes in {path}: {digits}", bytes.len());
        }
    }
}

/// Where libFuzzer has put the input of a finding.
fn artifact(log: &str) -> Option<&str> {
    let line = log
        .lines()
        .find(|line| line.contains("Test unit written to"))?;
    line.split_once("written to ").map(|(_, path)| path.trim())
}

/// What libFuzzer counts.
#[derive(Debug, PartialEq, Eq)]
struct Figures {
    executions: u64,
    per_second: u64,
    /// Edges of the code that were passed.
    coverage: u64,
}

impl Figures {
    fn of(log: &str) -> Self {
        let number = |text: Option<&str>| text.and_then(|text| text.parse().ok()).unwrap_or(0);
        let statistic = |name: &str| {
            let line = log.lines().rev().find_map(|line| line.strip_prefix(name));
            number(line.map(str::trim))
        };
        let mut words = log.split_whitespace().rev();
        let mut after = None;
        let coverage = words.find_map(|word| {
            let found = (word == "cov:").then_some(after);
            after = Some(word);
            found
        });
        Self {
            executions: statistic("stat::number_of_executed_units:"),
            per_second: statistic("stat::average_exec_per_sec:"),
            coverage: number(coverage.flatten()),
        }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            executions,
            per_second,
            coverage,
        } = self;
        write!(
            out,
            "{executions} executions, {per_second}/s, {coverage} edges"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn targets_are_found_and_others_refused() {
        let all = targets().unwrap();
        assert!(all.contains(&"block".to_owned()), "{all:?}");
        let two = Job::Run {
            seconds: 5,
            targets: words("block net"),
        };
        assert_eq!(parse(&words("--seconds 5 block net")).unwrap(), two);
        let every = Job::Run {
            seconds: SECONDS,
            targets: all,
        };
        assert_eq!(parse(&[]).unwrap(), every);
        for bad in [
            "blok",
            "--seconds 0",
            "--seconds x",
            "--seconds",
            "--replay f",
            "--replay f blok",
            "--other",
        ] {
            assert!(parse(&words(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_target_has_seeds_and_a_program() {
        let workspace = commands::root().join(WORKSPACE);
        let manifest = fs::read_to_string(workspace.join("Cargo.toml")).unwrap();
        for target in targets().unwrap() {
            let seeds = fs::read_dir(workspace.join("seeds").join(&target));
            assert!(seeds.is_ok_and(|seeds| seeds.count() > 0), "{target}");
            let path = format!("path = \"fuzz_targets/{target}.rs\"");
            assert!(manifest.contains(&path), "{target}");
        }
    }

    #[test]
    fn figures_are_the_last_that_are_told() {
        let log = "#1 NEW cov: 12 ft: 3\n#9\tNEW    cov: 345 ft: 7 corp: 1/1b\n\
                   artifact_prefix='x/'; Test unit written to x/crash-1\n\
                   stat::number_of_executed_units: 1234\nstat::average_exec_per_sec:     56\n";
        let expected = Figures {
            executions: 1234,
            per_second: 56,
            coverage: 345,
        };
        assert_eq!(Figures::of(log), expected);
        assert_eq!(artifact(log), Some("x/crash-1"));
    }
}
