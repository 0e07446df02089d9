//! `lightv disk`: overlays of drives.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lightv_api::contract::drive::{OverlayAction, OverlayCall};
use lightv_api::exit;
use lightv_vmm::export::{self, MergeDiskError};

use super::snapshot::{absolute, while_paused};
use crate::failure::{Coded, Failure};
use crate::vms::{self, VmError};

/// Reset or export disks that have an overlay
#[derive(Debug, Parser)]
pub(crate) struct DiskArgs {
    #[command(subcommand)]
    command: DiskCommand,
}

#[derive(Debug, Subcommand)]
enum DiskCommand {
    Reset(ResetArgs),
    Export(ExportArgs),
    Merge(MergeArgs),
}

/// Forget what a microVM has written over the base of a disk
///
/// The guest's own caches do not know of it: it should have unmounted the disk before.
#[derive(Debug, Parser)]
struct ResetArgs {
    /// Id, name of a sandbox, beginning of an id, or process id
    vm: String,
    /// Id of the drive
    drive: String,
}

/// Write a disk as the guest sees it into a file of its own
///
/// A microVM that runs is paused meanwhile. What the guest has not written to its disk yet is not in it. Killed by SIGKILL in
/// between it leaves the microVM paused: `lightv resume`.
#[derive(Debug, Parser)]
struct ExportArgs {
    /// Id, name of a sandbox, beginning of an id, or process id
    vm: String,
    /// Id of the drive
    drive: String,
    /// The file to make: raw, sparse
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Make one file of a base and a delta that no microVM uses
#[derive(Debug, Parser)]
#[command(after_help = "\
Example:
  lightv disk merge root.ext4 vm7.delta -o vm7.ext4")]
struct MergeArgs {
    /// The disk that the delta was made over
    base: PathBuf,
    /// File of the delta (overlay.path)
    delta: PathBuf,
    /// The file to make: raw, sparse
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

impl Coded for MergeDiskError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Base(_) | Self::Lock(_) | Self::Delta(_) => exit::BAD_CONFIG,
            Self::Export(_) => exit::SAVE_FAILED,
        }
    }
}

/// Carries out what was named.
pub(crate) fn run(args: &DiskArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        DiskCommand::Reset(args) => {
            let call = OverlayCall {
                action: OverlayAction::Reset,
                path: None,
            };
            let client = vms::client(&args.vm)?;
            let done = client.put(&overlay_of(&args.drive), &call);
            done.map_err(VmError::Client)?;
            Ok(ExitCode::SUCCESS)
        }
        DiskCommand::Export(args) => {
            let call = OverlayCall {
                action: OverlayAction::Export,
                path: Some(absolute(&args.output)),
            };
            let client = vms::client(&args.vm)?;
            while_paused(&client, || client.put(&overlay_of(&args.drive), &call))
        }
        DiskCommand::Merge(args) => {
            export::merge(&args.base, &args.delta, &args.output)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn overlay_of(drive: &str) -> String {
    format!("/drives/{drive}/overlay")
}
