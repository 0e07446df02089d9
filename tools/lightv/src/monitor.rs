//! The program `lightv-vmm`: where it is, and what it answers.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use lightv_api::exit;
use lightv_launch::program::{NotFound, Program};
use serde::de::DeserializeOwned;

use crate::failure::Coded;

/// Why `lightv-vmm` gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MonitorError {
    #[error(transparent)]
    NotFound(#[from] NotFound),
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
            Self::NotFound(_) | Self::Start { .. } => exit::HOST_FAILURE,
            Self::Refused { exit_code, .. } => *exit_code,
            Self::Answer { .. } => exit::FAILURE,
        }
    }
}

/// Where `lightv-vmm` is.
pub(crate) fn find() -> Result<PathBuf, MonitorError> {
    Ok(Program::Monitor.find()?)
}

/// The `lightv-vmm` that LIGHTV_VMM names, if it does.
pub(crate) fn overridden() -> Option<PathBuf> {
    Program::Monitor.overridden()
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
