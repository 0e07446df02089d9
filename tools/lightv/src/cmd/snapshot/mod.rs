//! `lightv snapshot`: snapshots of two files, as the REST API makes them.

pub(super) mod load;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};
use lightv_api::contract::snapshot::{SnapshotCreate, SnapshotType};
use lightv_api::exit;
use lightv_api_client::{Client, ClientError};
use lightv_vmm::snapshot::memory_file::{self, MergeError};

use super::inspect;
use crate::failure::{Coded, Failure};
use crate::vms::{self, VmError};

/// Save and restore microVMs as two files: state and memory
#[derive(Debug, Parser)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    Create(CreateArgs),
    Load(Box<load::LoadArgs>),
    Merge(MergeArgs),
    Inspect(InspectArgs),
}

/// Save a paused microVM, or one that runs, which goes on afterwards
///
/// Killed by SIGKILL in between it leaves the microVM paused: `lightv resume`. With --live it stands still for some
/// milliseconds only, and its disks must not be written, or have overlays in memory.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv snapshot create web web.state web.memory
  lightv snapshot create web web.state web.memory --live    while it runs
  lightv snapshot create web web2.state web2.diff --diff    what has changed")]
struct CreateArgs {
    /// Id, name of a sandbox, beginning of an id, or process id
    vm: String,
    /// File for the state
    state: PathBuf,
    /// File for guest memory
    memory: PathBuf,
    /// Save only the memory that has changed: since the snapshot before, or since the load
    #[arg(long)]
    diff: bool,
    /// Let a microVM that runs go on while memory is written
    #[arg(long, conflicts_with = "diff")]
    live: bool,
}

/// Make one memory file of a full one and the differences that came after it
///
/// The result goes with the state of the last difference.
#[derive(Debug, Parser)]
#[command(after_help = "\
Example:
  lightv snapshot merge web.memory web2.diff web3.diff -o web3.memory")]
struct MergeArgs {
    /// Memory file of the full snapshot
    base: PathBuf,
    /// Memory files of the differential snapshots, oldest first
    #[arg(required = true)]
    diffs: Vec<PathBuf>,
    /// The file to make; the base may be named
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Show what the state of a snapshot holds
#[derive(Debug, Parser)]
struct InspectArgs {
    /// File with the state
    state: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Coded for MergeError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Open(_) => exit::BAD_CONFIG,
            Self::Write(_) => exit::SAVE_FAILED,
        }
    }
}

/// Carries out what was named.
pub(crate) fn run(args: &SnapshotArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        SnapshotCommand::Create(args) => create(args),
        SnapshotCommand::Load(args) => load::run(args),
        SnapshotCommand::Merge(args) => {
            memory_file::merge(&args.base, &args.diffs, &args.output)?;
            Ok(ExitCode::SUCCESS)
        }
        SnapshotCommand::Inspect(args) => inspect::image(&args.state, args.json),
    }
}

fn create(args: &CreateArgs) -> Result<ExitCode, Failure> {
    let client = vms::client(&args.vm)?;
    let target = SnapshotCreate {
        snapshot_path: absolute(&args.state),
        mem_file_path: absolute(&args.memory),
        snapshot_type: if args.diff {
            SnapshotType::Diff
        } else {
            SnapshotType::Full
        },
        live: args.live,
    };
    if args.live {
        let saved = client.put("/snapshot/create", &target);
        saved.map_err(VmError::Client)?;
        return Ok(ExitCode::SUCCESS);
    }
    while_paused(&client, || client.put("/snapshot/create", &target))
}

/// Does `work` with a microVM that stands still; one that ran goes on afterwards.
pub(super) fn while_paused(
    client: &Client,
    work: impl FnOnce() -> Result<(), ClientError>,
) -> Result<ExitCode, Failure> {
    use lightv_api::contract::instance::{InstanceInfo, InstanceState};
    use lightv_api::contract::vm::{VmState, VmStatePatch};
    let info: InstanceInfo = client.get("/").map_err(VmError::Client)?;
    let set_state = |state| {
        let done = client.patch("/vm", &VmStatePatch { state });
        done.map_err(VmError::Client)
    };
    let was_running = info.state == InstanceState::Running;
    // One that was paused for us goes on, also when we are asked to end.
    let is_over = hold_signals()?;
    if was_running {
        set_state(VmState::Paused)?;
    }
    let done = work();
    if was_running {
        set_state(VmState::Resumed)?;
    }
    done.map_err(VmError::Client)?;
    if is_over.load(Ordering::SeqCst) {
        return Ok(ExitCode::from(exit::by_signal(INTERRUPT)));
    }
    Ok(ExitCode::SUCCESS)
}

/// Number of SIGINT, as shells have it in a status.
const INTERRUPT: u8 = 2;

/// Has SIGINT and SIGTERM noted instead of obeyed.
fn hold_signals() -> Result<Arc<AtomicBool>, SignalError> {
    let is_over = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&is_over)).map_err(SignalError)?;
    }
    Ok(is_over)
}

/// Signals cannot be held.
#[derive(Debug, thiserror::Error)]
#[error("Cannot hold signals while the microVM is paused")]
struct SignalError(#[source] std::io::Error);

impl Coded for SignalError {
    fn exit_code(&self) -> u8 {
        exit::HOST_FAILURE
    }
}

/// The monitor may have another working directory than we.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
