//! `lightv pause` and `lightv resume`.

use std::process::ExitCode;

use clap::Parser;
use lightv_api::contract::vm::{VmState, VmStatePatch};

use crate::failure::Failure;
use crate::vms::{self, VmError};

/// Let a microVM stand still: its CPUs and devices stop, its memory stays
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv pause web      by its id
  lightv pause 4242     by its process id")]
pub(crate) struct PauseArgs {
    /// Id, name of a sandbox, beginning of an id, or process id
    vm: String,
}

/// Let a paused microVM go on
#[derive(Debug, Parser)]
#[command(after_help = "\
Example:
  lightv resume web")]
pub(crate) struct ResumeArgs {
    /// Id, name of a sandbox, beginning of an id, or process id
    vm: String,
}

/// Pauses it.
pub(crate) fn pause(args: &PauseArgs) -> Result<ExitCode, Failure> {
    set_state(&args.vm, VmState::Paused)
}

/// Resumes it.
pub(crate) fn resume(args: &ResumeArgs) -> Result<ExitCode, Failure> {
    set_state(&args.vm, VmState::Resumed)
}

fn set_state(vm: &str, state: VmState) -> Result<ExitCode, Failure> {
    let client = vms::client(vm)?;
    let done = client.patch("/vm", &VmStatePatch { state });
    done.map_err(VmError::Client)?;
    Ok(ExitCode::SUCCESS)
}
