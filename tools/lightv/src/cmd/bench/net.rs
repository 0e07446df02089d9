//! `lightv bench net`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::Parser;
use lightv_api::config::{BootSource, NetSpec, VmSpec};
use lightv_bench::guest::Guest;
use lightv_bench::net::{self, LARGE, NETMASK, NetBench, NetBenchError, USUAL, Wire};
use lightv_bench::report::{Case, Report};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use super::{BenchError, OutputArgs, host_line, progress_bar, report, temporary_folder};
use crate::build::{self, BuildPlan, Kernel, Overwrite, SaveAt, WorkingSet};
use crate::cmd::run::own_program;
use crate::cmd::show;
use crate::failure::Failure;
use crate::table::Table;

/// The guest's app.
const APP: &str = "net-bench";
/// How long a guest may take to be ready.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A guest and the host over a tap, next to the host with itself over its loopback: TCP and UDP both ways, and requests
///
/// `g2h` is from the guest's user code to a socket of the host, `h2g` the way back. Segments and datagrams fill frames of an MTU
/// of 1500, those of `.64k` one of 65,521. A rate is what came to its end. `net.rr` is one byte there and back by TCP. All is
/// done in a network name space of its own, where the taps and the loopback are: no interface of the host is touched, and it
/// goes with the last process in it. Needs root, or user name spaces. The first round of each case does not count.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv bench net                       5 rounds of half a second each side
  lightv bench net --count 20 --time 2000
  lightv bench net --json --out n.json   one JSON object on standard output, and in a file")]
pub(super) struct NetArgs {
    /// Rounds of each case that count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// Milliseconds that each side of a round sends
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    time: u64,
    #[command(flatten)]
    output: OutputArgs,
}

/// Carries it out.
pub(super) fn run(args: &NetArgs) -> Result<ExitCode, Failure> {
    let report = report("net", measure(args)?)?;
    args.output.show(&report, show_table)
}

fn measure(args: &NetArgs) -> Result<Vec<Case>, BenchError> {
    // The first thing, while there is one thread: all that is started from here on is there too.
    net::enter().map_err(NetBenchError::from)?;
    let work = temporary_folder()?;
    let bench = NetBench {
        usual: guest(work.path(), USUAL)?,
        large: guest(work.path(), LARGE)?,
        rounds: args.count,
        time: Duration::from_millis(args.time),
    };
    let stop = stop_signal()?;
    let bar = progress_bar();
    let cases = net::measure(&bench, |done, of| {
        bar.set_length(of.into());
        bar.set_position(done.into());
        match stop.load(Ordering::Relaxed) {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    });
    bar.finish_and_clear();
    // The guest may have got the signal too, and failed of it.
    match u8::try_from(stop.load(Ordering::Relaxed)) {
        Ok(0) => Ok(cases?),
        signal => Err(BenchError::Stopped {
            signal: signal.unwrap_or_default(),
        }),
    }
}

/// The number of the signal that asks us to stop, or 0: the images are removed first.
fn stop_signal() -> Result<Arc<AtomicUsize>, BenchError> {
    let stop = Arc::new(AtomicUsize::new(0));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let number = usize::try_from(signal).unwrap_or_default();
        flag::register_usize(signal, Arc::clone(&stop), number).map_err(BenchError::Signals)?;
    }
    Ok(stop)
}

/// A guest at the other end of `wire`.
fn guest(work: &Path, wire: Wire) -> Result<Guest, BenchError> {
    let image = work.join(format!("{}.lv", wire.tap));
    let (address, gateway) = (wire.guest, wire.host);
    let boot_args = format!("app={APP} net.offload=on ip={address}::{gateway}:{NETMASK}::eth0:off");
    let interface = NetSpec {
        iface_id: "eth0".into(),
        host_dev_name: wire.tap.into(),
        mtu: Some(wire.mtu.into()),
        ..NetSpec::default()
    };
    let plan = BuildPlan {
        spec: VmSpec {
            boot_source: Some(BootSource {
                boot_args: Some(boot_args),
                ..BootSource::default()
            }),
            network_interfaces: vec![interface],
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
    build::build(plan).map_err(|cause| BenchError::BuildGuest { app: APP, cause })?;
    Ok(Guest {
        lightv: own_program(),
        image,
    })
}

/// A row for each case: the guest's and the host's beside each other.
fn show_table(report: &Report) -> Result<ExitCode, Failure> {
    let cases: BTreeMap<&str, &Case> = report
        .cases
        .iter()
        .map(|case| (case.name.as_str(), case))
        .collect();
    let mut table = Table::new(&[
        "case", ">n", ">min", ">p50", ">p99", ">native", ">p99", ">unit", ">ratio", ">CPU",
    ]);
    let is_guest = |case: &&Case| !case.name.starts_with("native.") && !case.name.ends_with(".cpu");
    for case in report.cases.iter().filter(is_guest) {
        let native = cases.get(case.reference.as_str()).copied().unwrap_or(case);
        let cpu = match cases.get(format!("{}.cpu", case.name).as_str()) {
            Some(cpu) => format!("{:.1} {}", cpu.p50, cpu.unit),
            None => "-".to_owned(),
        };
        table.row([
            case.name.clone(),
            case.n.to_string(),
            format!("{:.1}", case.min),
            format!("{:.1}", case.p50),
            format!("{:.1}", case.p99),
            format!("{:.1}", native.p50),
            format!("{:.1}", native.p99),
            case.unit.clone(),
            format!("{:.3}", case.ratio),
            cpu,
        ]);
    }
    show(|out| {
        table.write(out)?;
        writeln!(out, "{}; ratio of p50", host_line(report))
    })
}
