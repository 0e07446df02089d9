//! Starting other programs, and where their results lie.

use std::env;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use lightv_rootfs::{BuildRootfsError, DetectSourceError};

/// The one platform that is built for (.cargo/config.toml).
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

const GUEST: &str = "guest-kernel/minimal";
const AGENT: &str = "rootfs/init";

/// Why a task ended without success.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    #[error("Cannot start {program}: {cause}")]
    Start { program: String, cause: io::Error },
    #[error("`{command}` ended with {status}")]
    Failed { command: String, status: ExitStatus },
    #[error("{} rule(s) broken", broken)]
    Tidy { broken: usize },
    #[error("{broken} finding(s) by deny.toml")]
    Supply { broken: usize },
    #[error("Cannot read {}: {cause}", path.display())]
    Policy {
        path: PathBuf,
        cause: toml::de::Error,
    },
    #[error("{0} is no argument of this task")]
    Argument(String),
    #[error("{} come out different in another folder", if names.is_empty() { "No binaries".to_owned() } else { names.join(" and ") })]
    NotReproducible { names: Vec<String> },
    #[error("{failed} test(s) failed")]
    Tests { failed: u64 },
    #[error("{skipped} test(s) skipped, and LIGHTV_REQUIRE_KVM=1 allows none")]
    Skipped { skipped: u64 },
    #[error("`{command}` ended with {status}, although no test failed")]
    Suite { command: String, status: ExitStatus },
    #[error("Tools are missing (see above)")]
    Prerequisites,
    #[error("Cannot read or write {}: {cause}", path.display())]
    File { path: PathBuf, cause: io::Error },
    #[error("Name a root file system: `cargo xtask rootfs busybox`")]
    Recipe,
    #[error("There is no static busybox in PATH; Debian's package busybox-static has it (./setup)")]
    Busybox,
    #[error("{}", chain(.0))]
    Rootfs(BuildRootfsError),
    #[error("{}", chain(.0))]
    RootfsSource(DetectSourceError),
    #[error("Neither XDG_CACHE_HOME nor HOME says where a cache can be")]
    NoCache,
    #[error("`cargo metadata` answered with something that is not its format")]
    Metadata,
    #[error("There is no fuzz target {name}; there are {known}")]
    FuzzTarget { name: String, known: String },
    #[error("Usage: cargo xtask fuzz [--seconds N] [TARGET…] | --replay FILE TARGET | --seeds")]
    FuzzUsage,
    #[error("{findings} fuzz target(s) failed")]
    Findings { findings: u64 },
    #[error("The guest printed {found:?} instead of `Hello, world!`")]
    Hello { found: String },
}

/// An error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    // tools/xtask lies two levels below it.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// `cargo` in the repository, with `args`.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    command
}

/// `cargo` for the minimal guest: no member of the workspace, because it is built for no operating system.
pub(crate) fn guest_cargo(args: &[&str]) -> Command {
    let mut command = cargo(args);
    // The workspace's flags in .cargo/config.toml must not reach it; an empty value overrides them.
    command
        .current_dir(root().join(GUEST))
        .env("CARGO_ENCODED_RUSTFLAGS", "");
    command.env("CARGO_TARGET_DIR", target_dir().join("guest"));
    command
}

/// `cargo` for the agent of a Linux guest: no member of the workspace, because it has flags of its own, which cargo finds by
/// the folder.
pub(crate) fn agent_cargo(args: &[&str]) -> Command {
    let mut command = cargo(args);
    command.current_dir(root().join(AGENT));
    command.env("CARGO_TARGET_DIR", target_dir().join("agent"));
    command
}

/// The target directory: CARGO_TARGET_DIR, or target/ of the repository.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Where release binaries lie.
pub(crate) fn release_dir() -> PathBuf {
    target_dir().join(TARGET).join("release")
}

/// Runs `command` to its end, showing it first.
pub(crate) fn run(command: &mut Command) -> Result<(), TaskError> {
    let text = describe(command);
    eprintln!("$ {text}");
    let status = command
        .status()
        .map_err(|cause| start_error(command, cause))?;
    if status.success() {
        Ok(())
    } else {
        Err(TaskError::Failed {
            command: text,
            status,
        })
    }
}

/// What `command` printed on standard output; its standard error is ours.
pub(crate) fn output(command: &mut Command) -> Result<String, TaskError> {
    command.stderr(std::process::Stdio::inherit());
    let output = command
        .output()
        .map_err(|cause| start_error(command, cause))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(TaskError::Failed {
            command: describe(command),
            status: output.status,
        })
    }
}

/// The error of a command that could not be started.
pub(crate) fn start_error(command: &Command, cause: io::Error) -> TaskError {
    TaskError::Start {
        program: command.get_program().to_string_lossy().into_owned(),
        cause,
    }
}

/// `command` as one would type it; of the program only its name.
pub(crate) fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(name).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
