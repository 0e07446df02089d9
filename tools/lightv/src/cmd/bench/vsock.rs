//! `lightv bench vsock`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use lightv_api::config::{BootSource, VmSpec};
use lightv_api::contract::vsock::VsockSpec;
use lightv_bench::report::{Case, Settings};
use lightv_bench::vsock::{self, VsockBench};

use super::sides::{TransferArgs, until_stopped};
use super::{BenchError, temporary_folder};
use crate::build::{self, BuildPlan, Kernel, Overwrite, SaveAt, WorkingSet};
use crate::failure::Failure;

/// The guest's app.
const APP: &str = "vsock-bench";
/// How long a guest may take to be ready.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Of the guest: the first that is nobody's.
const GUEST_CID: u32 = 3;

/// A guest and the host over vsock, next to the host with itself over a Unix socket: streams both ways, requests, connections
///
/// `g2h` is from the guest's user code to a Unix socket of the host, `h2g` the way back; `rr` is one byte there and back, and
/// `connect` one connection after the other, opened and closed by the guest. Next to it a thread of the host does the same over
/// a Unix socket. A rate is what came to its end. Exits are KVM's own counts for a MB, a request or a connection, start and end
/// of the run included (Linux 5.14 and later; `-` where KVM does not tell them). The first round of each case does not count.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv bench vsock                       5 rounds of half a second each side
  lightv bench vsock --count 20 --time 2000
  lightv bench vsock --json --out v.json   one JSON object, also in a file")]
pub(super) struct VsockArgs {
    #[command(flatten)]
    transfer: TransferArgs,
}

/// Carries it out.
pub(super) fn run(args: &VsockArgs) -> Result<ExitCode, Failure> {
    let measured = |transfer: &_| Ok((measure(transfer)?, Settings::new()));
    args.transfer.run("vsock", measured)
}

fn measure(args: &TransferArgs) -> Result<Vec<Case>, BenchError> {
    let work = temporary_folder()?;
    let socket = work.path().join("v.sock");
    let bench = VsockBench {
        guest: args.guest.guest(
            image_of(APP, work.path().join("vsock.lv"), &socket)?,
            Some(work.path().join("metrics")),
        ),
        socket,
        rounds: args.count,
        time: args.time(),
    };
    until_stopped(|progress| vsock::measure(&bench, progress))
}

/// An image of `app`, with vsock at `socket`.
pub(super) fn image_of(
    app: &'static str,
    image: PathBuf,
    socket: &Path,
) -> Result<PathBuf, BenchError> {
    let plan = BuildPlan {
        spec: VmSpec {
            boot_source: Some(BootSource {
                boot_args: Some(format!("app={app}")),
                ..BootSource::default()
            }),
            vsock: Some(VsockSpec {
                guest_cid: GUEST_CID,
                uds_path: socket.into(),
                vsock_id: None,
            }),
            ..VmSpec::default()
        },
        kernel: Kernel::Embedded,
        rootfs: None,
        out: image.clone(),
        overwrite: Overwrite::Refuse,
        save_at: SaveAt::Doorbell,
        timeout: TIMEOUT,
        working_set: WorkingSet::Unknown,
    };
    build::build(plan).map_err(|cause| BenchError::BuildGuest { app, cause })?;
    Ok(image)
}
