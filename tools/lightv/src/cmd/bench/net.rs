//! `lightv bench net`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use lightv_api::config::{BootSource, MachineSpec, NetSpec, VmSpec};
use lightv_bench::net::{self, LARGE, NETMASK, NetBench, USUAL, Wire};
use lightv_bench::report::Case;

use super::sides::{TransferArgs, until_stopped};
use super::{BenchError, RegisterArgs, temporary_folder};
use crate::build::{self, BuildPlan, Kernel, Overwrite, SaveAt, WorkingSet};
use crate::failure::Failure;

/// The guest's app.
const APP: &str = "net-bench";
/// The setting of the report that names it.
const CONGESTION: &str = "tcp_congestion_control";
/// How long a guest may take to be ready.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A guest and the host over a tap, next to the host with itself over its loopback: TCP and UDP both ways, and requests
///
/// `g2h` is from the guest's user code to a socket of the host, `h2g` the way back. Segments and datagrams fill frames of an MTU
/// of 1500, those of `.64k` one of 65,521; those of `.uso` cross the tap 44 at a time (USO, Linux 6.2). A rate is what came to its end. `net.rr` is one byte there and back by TCP. All is
/// done in a network name space of its own, where the taps and the loopback are: no interface of the host is touched, and it
/// goes with the last process in it. Needs root, or user name spaces. Exits are KVM's own counts for a MB or a request, start and
/// end of the run included (Linux 5.14 and later; `-` where KVM does not tell them). The first round of each case does not count.
///
/// TCP of both sides has the host's congestion control, or the one that is said: with BBR, which sends no faster than it thinks
/// that the way takes, `h2g` says more of that than of the way.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv bench net                       5 rounds of half a second each side
  lightv bench net --count 20 --time 2000
  lightv bench net --congestion reno     where the host's TCP has BBR
  lightv bench net --json --out n.json   one JSON object, also in a file
  lightv bench net --plot n.svg          the table, and a picture of it")]
pub(super) struct NetArgs {
    #[command(flatten)]
    transfer: TransferArgs,
    /// Congestion control of both sides' TCP (default: the host's)
    #[arg(long, value_name = "NAME")]
    congestion: Option<String>,
    #[command(flatten)]
    registers: RegisterArgs,
}

/// Carries it out.
pub(super) fn run(args: &NetArgs) -> Result<ExitCode, Failure> {
    args.transfer.run("net", |transfer| {
        // The first thing, while there is one thread: all that is started from here on is there too.
        let has_uso = net::enter()?;
        let congestion = net::congestion(args.congestion.as_deref())?;
        let mut settings = args.registers.settings();
        settings.extend(congestion.map(|name| (CONGESTION.to_owned(), name)));
        let cases = measure(transfer, &args.registers, has_uso)?;
        Ok((cases, settings))
    })
}

fn measure(
    args: &TransferArgs,
    registers: &RegisterArgs,
    has_uso: bool,
) -> Result<Vec<Case>, BenchError> {
    if !has_uso {
        eprintln!("net.udp.uso.* left out: this kernel's taps cut no UDP (Linux 6.2 and newer do)");
    }
    let work = temporary_folder()?;
    let guest = |wire: Wire| {
        let image = work.path().join(format!("{}.lv", wire.tap));
        build_guest(registers, &image, wire)?;
        let metrics = work.path().join("metrics");
        Ok::<_, BenchError>(args.guest.guest(image, Some(metrics)))
    };
    let bench = NetBench {
        usual: guest(USUAL)?,
        large: guest(LARGE)?,
        has_uso,
        rounds: args.count,
        time: args.time(),
    };
    until_stopped(|progress| net::measure(&bench, progress))
}

/// The image of a guest at the other end of `wire`.
fn build_guest(registers: &RegisterArgs, image: &Path, wire: Wire) -> Result<(), BenchError> {
    let (address, gateway) = (wire.guest, wire.host);
    let boot_args = format!("app={APP} net.offload=on ip={address}::{gateway}:{NETMASK}::eth0:off");
    let interface = NetSpec {
        iface_id: "eth0".into(),
        host_dev_name: Some(wire.tap.into()),
        mtu: Some(wire.mtu.into()),
        ..NetSpec::default()
    };
    let plan = BuildPlan {
        spec: VmSpec {
            boot_source: Some(BootSource {
                boot_args: Some(boot_args),
                ..BootSource::default()
            }),
            machine_config: MachineSpec {
                register_pages: !registers.no_register_pages,
                ..MachineSpec::default()
            },
            network_interfaces: vec![interface],
            ..VmSpec::default()
        },
        kernel: Kernel::Embedded,
        rootfs: None,
        out: image.to_owned(),
        overwrite: Overwrite::Refuse,
        save_at: SaveAt::Doorbell,
        timeout: TIMEOUT,
        working_set: WorkingSet::Unknown,
    };
    let built = build::build(plan);
    built
        .map(drop)
        .map_err(|cause| BenchError::BuildGuest { app: APP, cause })
}
