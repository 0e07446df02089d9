//! The program `lightv-vmm`: where it is, and what it answers.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use lightv_api::exit;
use serde::de::DeserializeOwned;

use crate::failure::Coded;

/// Names another `lightv-vmm` than the one beside `lightv`.
const OVERRIDE: &str = "LIGHTV_VMM";
const NAME: &str = "lightv-vmm";

/// Why `lightv-vmm` gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MonitorError {
    #[error(
        "Cannot find lightv-vmm: it is neither beside lightv nor on PATH. Install both together, or set {OVERRIDE}"
    )]
    NotFound,
    #[error("Cannot start {}", program.display())]
    Start {
        program: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{message}")]
    Refused { message: String, exit_code: u8 },
    #[error("{} did not answer as expected: is it of another version than lightv?", program.display())]
    Answer {
        program: PathBuf,
        #[source]
        cause: serde_json::Error,
    },
}

impl Coded for MonitorError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound | Self::Start { .. } => exit::HOST_FAILURE,
            Self::Refused { exit_code, .. } => *exit_code,
            Self::Answer { .. } => exit::FAILURE,
        }
    }
}

/// Where `lightv-vmm` is: LIGHTV_VMM, else beside our own program, else on PATH.
pub(crate) fn find() -> Result<PathBuf, MonitorError> {
    if let Some(program) = overridden() {
        return Ok(program);
    }
    let on_path = || {
        let path = env::var_os("PATH")?;
        env::split_paths(&path)
            .map(|folder| folder.join(NAME))
            .find(|program| program.is_file())
    };
    beside_us()
        .filter(|program| program.is_file())
        .or_else(on_path)
        .ok_or(MonitorError::NotFound)
}

/// The `lightv-vmm` that LIGHTV_VMM names, if it does.
pub(crate) fn overridden() -> Option<PathBuf> {
    env::var_os(OVERRIDE).map(PathBuf::from)
}

/// Becomes `program`. Comes back only when that failed.
pub(crate) fn exec(program: PathBuf, args: &[OsString]) -> MonitorError {
    let cause = Command::new(&program).args(args).exec();
    MonitorError::Start { program, cause }
}

/// What `lightv-vmm` prints as JSON.
pub(crate) fn query<T: DeserializeOwned>(args: &[&OsStr]) -> Result<T, MonitorError> {
    let (program, stdout) = output(args)?;
    serde_json::from_slice(&stdout).map_err(|cause| MonitorError::Answer { program, cause })
}

/// What `lightv-vmm --version` prints, without the name.
pub(crate) fn version() -> Result<String, MonitorError> {
    let (_, stdout) = output(&["--version".as_ref()])?;
    let text = String::from_utf8_lossy(&stdout);
    Ok(text
        .split_whitespace()
        .last()
        .unwrap_or_default()
        .to_owned())
}

fn output(args: &[&OsStr]) -> Result<(PathBuf, Vec<u8>), MonitorError> {
    let program = find()?;
    let output = match Command::new(&program).args(args).output() {
        Ok(output) => output,
        Err(cause) => return Err(MonitorError::Start { program, cause }),
    };
    if output.status.success() {
        return Ok((program, output.stdout));
    }
    let exit_code = output.status.code().and_then(|code| code.try_into().ok());
    let stderr = String::from_utf8_lossy(&output.stderr);
    let message = stderr.trim().trim_start_matches("lightv-vmm: ");
    let message = if message.is_empty() {
        "lightv-vmm failed"
    } else {
        message
    };
    Err(MonitorError::Refused {
        message: message.to_owned(),
        exit_code: exit_code.unwrap_or(exit::FAILURE),
    })
}

fn beside_us() -> Option<PathBuf> {
    Some(
        env::current_exe()
            .ok()?
            .parent()
            .unwrap_or(Path::new("."))
            .join(NAME),
    )
}
