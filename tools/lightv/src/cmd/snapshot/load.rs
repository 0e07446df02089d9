//! `lightv snapshot load`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use lightv_api::contract::net::NetworkOverride;
use lightv_api::contract::snapshot::{
    DriveOverride, LoadHugePages, MemBackend, MemBackendType, SnapshotLoad, VsockOverride,
};
use lightv_api::exit;
use lightv_vmm::net_override::NetOverride;

use super::absolute;
use crate::background::Background;
use crate::failure::{Coded, Failure};
use crate::spec_args::Replacement;
use crate::vms::VmError;

/// Restore a microVM from a snapshot, in the background
///
/// Prints its id. It serves the REST API; `lightv stop` ends it, `lightv logs` shows its output.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv snapshot load web.state web.memory
  lightv snapshot load web2.state web.memory --diff web2.diff    without a merge
  lightv snapshot load web.state web.memory --net eth0=tap7 --disk data=copy.img")]
pub(super) struct LoadArgs {
    /// File with the state
    state: PathBuf,
    /// File with guest memory
    memory: PathBuf,
    /// Memory file of a differential snapshot, laid over MEMORY; oldest first
    #[arg(long, value_name = "FILE")]
    diff: Vec<PathBuf>,
    /// Name of the microVM: 1–64 letters, digits and `-` [default: from the state's name]
    #[arg(long)]
    name: Option<String>,
    /// Use another tap, an inherited one (fd=N), or a network in user space (user) for interface ID (eth0)
    ///
    /// [ID=]TAP, [ID=]fd=N or [ID=]user[,publish=[A:]PORT:PORT[/udp]][,host-loopback] (docs/network.md).
    #[arg(long, value_name = "[ID=]NET")]
    net: Vec<NetOverride>,
    /// Use another file for disk ID
    #[arg(long, value_name = "ID=PATH", value_parser = Replacement::disk)]
    disk: Vec<Replacement>,
    /// Use another file for the delta of disk ID, which has an overlay
    #[arg(long, value_name = "ID=PATH", value_parser = Replacement::disk)]
    delta: Vec<Replacement>,
    /// Use another path for the socket of vsock
    #[arg(long, value_name = "PATH")]
    vsock: Option<PathBuf>,
    /// Leave it paused
    #[arg(long)]
    paused: bool,
    /// Note which memory changes, for differential snapshots of what has changed since the one before
    #[arg(long)]
    track: bool,
    /// Advance the guest's clock by the time that has passed since the save
    #[arg(long)]
    advance_clock: bool,
}

/// Why nothing is restored.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(
        "--net {id}: allowed: [ID=]TAP, [ID=]fd=N, or [ID=]user with publish and host-loopback; a machine that goes on keeps its \
         address and its number of queues"
    )]
    Net { id: String },
}

impl Coded for LoadError {
    fn exit_code(&self) -> u8 {
        exit::BAD_ARGUMENTS
    }
}

/// Restores it.
pub(super) fn run(args: &LoadArgs) -> Result<ExitCode, Failure> {
    let nets = network_overrides(&args.net)?;
    let background = Background::named(args.name.as_deref(), &args.state)?;
    let started = background.start(&[])?;
    if let Err(refused) = started.client().put("/snapshot/load", &body(args, nets)) {
        started.end();
        return Err(VmError::Client(refused).into());
    }
    started.show_id()
}

/// What `nets` say, which is nothing but what interfaces are connected to.
pub(crate) fn network_overrides(nets: &[NetOverride]) -> Result<Vec<NetworkOverride>, Failure> {
    let of_load = |net: &NetOverride| {
        let id = || net.id.clone();
        net.of_load()
            .ok_or_else(|| LoadError::Net { id: id() }.into())
    };
    nets.iter().map(of_load).collect()
}

fn body(args: &LoadArgs, nets: Vec<NetworkOverride>) -> SnapshotLoad {
    SnapshotLoad {
        snapshot_path: absolute(&args.state),
        mem_backend: Some(MemBackend {
            backend_type: MemBackendType::File,
            backend_path: absolute(&args.memory),
            diffs: args.diff.iter().map(|diff| absolute(diff)).collect(),
        }),
        mem_file_path: None,
        track_dirty_pages: args.track,
        enable_diff_snapshots: false,
        resume_vm: !args.paused,
        network_overrides: nets,
        vsock_override: args.vsock.as_ref().map(|path| VsockOverride {
            uds_path: absolute(path),
        }),
        clock_realtime: args.advance_clock,
        huge_pages: LoadHugePages::Snapshot,
        drive_overrides: drive_overrides(&args.disk, &args.delta),
        tuning: None,
    }
}

/// Other files for disks and their deltas, as a load has them.
pub(crate) fn drive_overrides(disks: &[Replacement], deltas: &[Replacement]) -> Vec<DriveOverride> {
    let disks = disks.iter().map(Replacement::pair);
    let disks = disks.map(|(drive_id, path)| DriveOverride {
        drive_id,
        path_on_host: Some(absolute(&path)),
        overlay_path: None,
    });
    let deltas = deltas.iter().map(Replacement::pair);
    let deltas = deltas.map(|(drive_id, path)| DriveOverride {
        drive_id,
        path_on_host: None,
        overlay_path: Some(absolute(&path)),
    });
    disks.chain(deltas).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_a_load_bring_no_address_and_no_queues() {
        let overrides = |text: &str| network_overrides(&[text.parse().expect(text)]);
        for text in ["tap7", "eth1=fd=5", "eth1=user,publish=8080:80"] {
            assert_eq!(overrides(text).expect(text).len(), 1, "{text}");
        }
        for text in ["a=tap7,ip=10.0.0.2/24", "a=tap7,queues=2"] {
            let refused = overrides(text).expect_err(text);
            let allowed = "--net a: allowed: [ID=]TAP, [ID=]fd=N, or [ID=]user";
            assert!(refused.text().contains(allowed), "{}", refused.text());
        }
    }
}
