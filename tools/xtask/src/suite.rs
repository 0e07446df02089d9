//! Running tests and counting them, whichever runner there is.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use crate::commands::{self, TaskError};
use crate::{build, clients, fuzz, linux, prerequisites};

/// The crate whose tests boot real guests.
const GUEST_TESTS: &str = "lightv-tests";

/// Ends tests that hang.
const NEXTEST_CONFIG: &str = "tools/xtask/nextest.toml";

/// File to which a test that cannot run here appends one line (its name and why), and then passes.
const SKIP_LOG: &str = "LIGHTV_SKIP_LOG";

/// Without it no guest runs.
const KVM: &str = "/dev/kvm";

/// How many tests ended in which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Tally {
    fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }

    /// A test that skipped itself was counted as passed by its runner.
    fn with_self_skipped(self, skipped: u64) -> Self {
        let skipped = skipped.min(self.passed);
        Self {
            passed: self.passed - skipped,
            skipped: self.skipped + skipped,
            ..self
        }
    }

    /// The plain closing line.
    fn closing_line(self) -> String {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        match skipped {
            0 => format!("{passed} passed, {failed} failed"),
            _ => format!("{passed} passed, {failed} failed, {skipped} skipped"),
        }
    }
}

/// A finished run: its counts, and the runner's own verdict.
#[derive(Debug)]
pub(crate) struct Run {
    tally: Tally,
    command: String,
    status: ExitStatus,
}

impl Run {
    /// What `cargo xtask TASK` came to.
    pub(crate) fn of(task: &str, passed: u64, failed: u64) -> Self {
        let tally = Tally {
            passed,
            failed,
            skipped: 0,
        };
        Self {
            tally,
            command: format!("xtask {task}"),
            status: ExitStatus::default(),
        }
    }

    /// # Errors
    /// When a test failed, or the runner itself (a build error, for example).
    pub(crate) fn verdict(&self) -> Result<(), TaskError> {
        if self.tally.failed > 0 {
            return Err(TaskError::Tests {
                failed: self.tally.failed,
            });
        }
        if self.status.success() {
            return Ok(());
        }
        Err(TaskError::Suite {
            command: self.command.clone(),
            status: self.status,
        })
    }
}

/// Everything that can be tested here, what is quick first; ends with the closing line.
pub(crate) fn test() -> Result<(), TaskError> {
    build::release()?;
    let skip_log = commands::target_dir().join("skipped-tests.log");
    fs::write(&skip_log, "").map_err(|cause| TaskError::File {
        path: skip_log.clone(),
        cause,
    })?;
    let mut runs = unit_tests()?;
    runs.push(fuzz::smoke());
    runs.push(guest_tests(&skip_log)?);
    runs.push(client_tests(&skip_log)?);
    runs.push(linux_tests(&skip_log)?);
    let skips = fs::read_to_string(&skip_log).map_err(|cause| TaskError::File {
        path: skip_log.clone(),
        cause,
    })?;
    for skip in skips.lines() {
        println!("skipped: {skip}");
    }
    let self_skipped = skips.lines().count().try_into().unwrap_or(u64::MAX);
    let tally = runs
        .iter()
        .fold(Tally::default(), |sum, run| sum.plus(run.tally))
        .with_self_skipped(self_skipped);
    println!("{}", tally.closing_line());
    runs.iter().try_for_each(Run::verdict)?;
    if tally.skipped > 0 && env::var_os("LIGHTV_REQUIRE_KVM").is_some_and(|value| value == "1") {
        return Err(TaskError::Skipped {
            skipped: tally.skipped,
        });
    }
    Ok(())
}

/// Tests that boot no guest: of the workspace, and of the pure parts of the minimal guest and of the agent.
pub(crate) fn unit_tests() -> Result<Vec<Run>, TaskError> {
    let workspace = runner(&["--workspace", "--exclude", GUEST_TESTS], commands::cargo);
    let guest = runner(&["--lib"], commands::guest_cargo);
    let agent = runner(&["--lib"], commands::agent_cargo);
    [workspace, guest, agent]
        .into_iter()
        .map(|mut command| count(&mut command))
        .collect()
}

/// Tests of real guests, against the release binaries: half as many again at a time as there are CPUs, for much of what they do
/// is to wait for a guest.
fn guest_tests(skip_log: &Path) -> Result<Run, TaskError> {
    let mut command = runner(&["--package", GUEST_TESTS], commands::cargo);
    if prerequisites::has_nextest() {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        command.arg(format!("--test-threads={}", threads + threads.div_ceil(2)));
    }
    command
        .env("LIGHTV_BIN_DIR", commands::release_dir())
        .env(SKIP_LOG, skip_log);
    count(&mut command)
}

/// The tests of public clients alone; ends with the closing line.
pub(crate) fn clients() -> Result<(), TaskError> {
    build::release()?;
    let run = client_tests(&commands::target_dir().join("skipped-tests.log"))?;
    println!("{}", run.tally.closing_line());
    run.verdict()
}

/// Tests of public clients, which are built unless they are there; that they cannot be built is a failed test.
fn client_tests(skip_log: &Path) -> Result<Run, TaskError> {
    let arguments = [
        "--package",
        GUEST_TESTS,
        "--features",
        "clients",
        "--test",
        "clients",
    ];
    let mut command = runner(&arguments, commands::cargo);
    command
        .env("LIGHTV_BIN_DIR", commands::release_dir())
        .env(SKIP_LOG, skip_log);
    match clients::build() {
        Ok(clients) => command
            .env("LIGHTV_CLIENTS", clients.programs)
            .env("LIGHTV_CLIENTS_PYTHON", clients.python),
        Err(error) => return Ok(not_built("clients", &error)),
    };
    count(&mut command)
}

/// What a test needs cannot be had.
pub(crate) fn not_built(task: &str, error: &TaskError) -> Run {
    eprintln!("xtask: cannot test without `cargo xtask {task}`: {error}");
    Run::of(task, 0, 1)
}

/// The tests of a Linux guest alone; ends with the closing line.
pub(crate) fn linux_test() -> Result<(), TaskError> {
    build::release()?;
    let run = linux_tests(&commands::target_dir().join("skipped-tests.log"))?;
    println!("{}", run.tally.closing_line());
    run.verdict()
}

/// Tests of a Linux guest. Its kernel is built unless it is in the cache, which takes minutes; that it cannot be built is
/// a failed test. Where no guest runs it is not needed.
fn linux_tests(skip_log: &Path) -> Result<Run, TaskError> {
    let mut command = runner(
        &[
            "--package",
            GUEST_TESTS,
            "--features",
            "linux,clients",
            "--test",
            "linux",
            "--test",
            "agent",
            "--test",
            "exec",
            "--test",
            "linux_console",
            "--test",
            "linux_images",
            "--test",
            "linux_io",
            "--test",
            "linux_mmds",
            "--test",
            "linux_balloon",
            "--test",
            "microheart",
            "--test",
            "vsock_linux",
        ],
        commands::cargo,
    );
    if prerequisites::has_nextest() {
        command.args(["--profile", "linux"]);
    }
    command
        .env("LIGHTV_BIN_DIR", commands::release_dir())
        .env(SKIP_LOG, skip_log);
    if Path::new(KVM).exists() {
        match linux::kernel(&[]) {
            Ok(kernel) => command.env("LIGHTV_LINUX_KERNEL", kernel),
            Err(error) => return Ok(not_built("linux", &error)),
        };
        match clients::build_python() {
            Ok(python) => command.env("LIGHTV_CLIENTS_PYTHON", python),
            Err(error) => return Ok(not_built("clients", &error)),
        };
    }
    count(&mut command)
}

fn runner(packages: &[&str], cargo: fn(&[&str]) -> Command) -> Command {
    let mut command = if prerequisites::has_nextest() {
        let mut command = cargo(&["nextest", "run", "--no-fail-fast", "--no-tests=pass"]);
        // Named, because the guest is a workspace of its own.
        command
            .arg("--config-file")
            .arg(commands::root().join(NEXTEST_CONFIG));
        command
    } else {
        cargo(&["test", "--no-fail-fast"])
    };
    command.args(packages).env("CARGO_TERM_COLOR", "never");
    command
}

/// Runs a test runner, shows all it says, and counts.
fn count(command: &mut Command) -> Result<Run, TaskError> {
    let text = commands::describe(command);
    eprintln!("$ {text}");
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|cause| commands::start_error(command, cause))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    // nextest sums up on stderr, cargo test on stdout; either may fill its pipe first.
    let has_nextest = prerequisites::has_nextest();
    let show = move |stream: Box<dyn Read + Send>| show_and_count(stream, has_nextest);
    let from_stderr =
        thread::spawn(move || stderr.map_or_else(Tally::default, |stderr| show(Box::new(stderr))));
    let from_stdout = stdout.map_or_else(Tally::default, |stdout| show(Box::new(stdout)));
    let tally = from_stdout.plus(from_stderr.join().unwrap_or_default());
    let status = child
        .wait()
        .map_err(|cause| commands::start_error(command, cause))?;
    Ok(Run {
        tally,
        command: text,
        status,
    })
}

fn show_and_count(stream: impl Read, is_nextest: bool) -> Tally {
    let mut tally = Tally::default();
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        eprintln!("{line}");
        tally = tally.plus(parse_summary(&line, is_nextest).unwrap_or_default());
    }
    tally
}

/// The counts of a summary line of nextest or of `cargo test`; `None` for any other line.
///
/// `Summary [ 0.1s] 3 tests run: 2 passed (1 slow), 1 failed, 0 skipped` and
/// `test result: FAILED. 2 passed; 1 failed; 0 ignored; …`. What nextest calls skipped was filtered out by the
/// caller or is marked `#[ignore]`. nextest shows a failed test's own `test result` too, which counts it a second time.
fn parse_summary(line: &str, is_nextest: bool) -> Option<Tally> {
    let counts = if is_nextest {
        let summary = line.trim().strip_prefix("Summary [")?;
        summary.split_once("run: ")?.1
    } else {
        line.strip_prefix("test result: ")?
    };
    let mut tally = Tally::default();
    for part in counts.split([';', ',', '.']) {
        let mut words = part.split_whitespace();
        let (Some(number), Some(what)) = (words.next(), words.next()) else {
            continue;
        };
        let Ok(number) = number.parse::<u64>() else {
            continue;
        };
        match what {
            "passed" => tally.passed += number,
            "failed" | "timed" | "exec" => tally.failed += number,
            "skipped" | "ignored" => tally.skipped += number,
            _ => {}
        }
    }
    Some(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, is_nextest: bool, expected: Option<(u64, u64, u64)>) {
        let expected = expected.map(|(passed, failed, skipped)| Tally {
            passed,
            failed,
            skipped,
        });
        assert_eq!(parse_summary(line, is_nextest), expected, "{line}");
    }

    #[test]
    fn summary_lines_of_both_runners_are_counted() {
        check(
            "     Summary [   0.1s] 3 tests run: 2 passed (1 slow), 1 failed, 4 skipped",
            true,
            Some((2, 1, 4)),
        );
        check(
            "     Summary [   0.1s] 1 test run: 1 passed, 0 skipped",
            true,
            Some((1, 0, 0)),
        );
        check(
            "     Summary [   9.1s] 2 tests run: 1 passed, 1 timed out, 0 skipped",
            true,
            Some((1, 1, 0)),
        );
        check(
            "test result: FAILED. 2 passed; 1 failed; 3 ignored; 0 measured; 9 filtered out; finished in 0.00s",
            false,
            Some((2, 1, 3)),
        );
    }

    #[test]
    fn other_lines_are_not_counted() {
        check("running 3 tests", false, None);
        check("test a ... ok", false, None);
        check("  3 passed", true, None);
        let inner = "    test result: FAILED. 0 passed; 1 failed; 0 ignored; finished in 0.39s";
        check(inner, true, None);
    }

    #[test]
    fn closing_line_names_skips_only_when_there_are_some() {
        let none = Tally {
            passed: 4,
            failed: 0,
            skipped: 0,
        };
        assert_eq!(none.closing_line(), "4 passed, 0 failed");
        assert_eq!(
            none.with_self_skipped(1).closing_line(),
            "3 passed, 0 failed, 1 skipped"
        );
    }
}
