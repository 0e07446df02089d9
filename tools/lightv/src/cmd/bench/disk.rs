//! `lightv bench disk`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use lightv_bench::disk::{self, DiskBench};
use lightv_bench::report::{Case, Report};

use super::{BenchError, GuestArgs, OutputArgs, RegisterArgs, build_image, progress_bar, report};
use crate::cmd::show;
use crate::failure::Failure;
use crate::table::Table;

/// The guest's app.
const APP: &str = "disk-bench";

/// A guest's disk next to the file that it is: sequential and random, cached and direct, one request and 32 at a time
///
/// Requests are of 1 MiB (sequential) and 4 KiB (random). The guest reads and writes from its user code; the host reads and
/// writes the same file by the same plan: by calls that wait, or, for direct requests at depth, by io_uring. Cached drives have
/// the engine `sync`, direct ones `async`. Writes are not synced. Exits are KVM's own
/// counts, less those of a run of one request (Linux 5.14 and later; `-` where KVM does not tell them). The doorbell is the guest's
/// write that tells the device of requests: none can be quicker where the device sleeps. The first round of each case does not count.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv bench disk                       5 rounds on a file of 256 MiB
  lightv bench disk --folder /mnt/nvme    on another disk
  lightv bench disk --no-register-pages   for its exits
  lightv bench disk -- --optimize-performance    a guest with that preset
  lightv bench disk --json --out d.json   one JSON object, also in a file")]
pub(super) struct DiskArgs {
    /// Rounds of each case that count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// Size of the file in MiB; a case moves as much in a round, or a 16th of it where that is slow
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=65_536))]
    size: u64,
    /// Where the file is made, and removed again [default: the temporary folder]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    #[command(flatten)]
    registers: RegisterArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    guest: GuestArgs,
}

/// Carries it out.
pub(super) fn run(args: &DiskArgs) -> Result<ExitCode, Failure> {
    args.output.check()?;
    let mut settings = args.guest.settings();
    settings.extend(args.registers.settings());
    let report = Report {
        settings,
        ..report("disk", measure(args)?)?
    };
    args.output.show(&report, show_table)
}

fn measure(args: &DiskArgs) -> Result<Vec<Case>, BenchError> {
    let folder = args.folder.clone().unwrap_or_else(std::env::temp_dir);
    let work = tempfile::Builder::new()
        .prefix("lightv-bench-")
        .tempdir_in(&folder);
    let work = work.map_err(|cause| BenchError::File {
        path: folder,
        cause,
    })?;
    let file = work.path().join("disk");
    disk::make_file(&file, args.size << 20)?;
    let guest = |name: &str, options: &str| {
        let image = work.path().join(name);
        let disk = format!("d={}{options}", file.display());
        let registers = args.registers.no_register_pages;
        let more = registers.then_some("--no-register-pages");
        let options: Vec<_> = ["--disk", &disk].into_iter().chain(more).collect();
        build_image(APP, &options, &image)?;
        let metrics = work.path().join("metrics");
        Ok::<_, BenchError>(args.guest.guest(image, Some(metrics)))
    };
    let bench = DiskBench {
        cached: guest("cached.lv", "")?,
        direct: match disk::has_direct(&file) {
            true => Some(guest("direct.lv", ",direct,engine=async")?),
            false => None,
        },
        file: file.clone(),
        rounds: args.count,
        bytes: args.size << 20,
    };
    let bar = progress_bar();
    let cases = disk::measure(&bench, |done, of| {
        bar.set_length(of.into());
        bar.set_position(done.into());
    });
    bar.finish_and_clear();
    // The folder goes with its handle; the file may be large, and a signal would leave it.
    let _ = fs::remove_file(&file);
    Ok(cases?)
}

/// A row for each way: throughput, latency and processor time beside each other, the guest's and the host's.
fn show_table(report: &Report) -> Result<ExitCode, Failure> {
    let cases: BTreeMap<&str, &Case> = report
        .cases
        .iter()
        .map(|case| (case.name.as_str(), case))
        .collect();
    let value = |name: &str, digits: usize| match cases.get(name) {
        Some(case) => format!("{:.digits$}", case.p50),
        None => "-".to_owned(),
    };
    let mut table = Table::new(&[
        "case",
        ">MB/s",
        ">native",
        ">ratio",
        ">p50 µs",
        ">native",
        ">p99 µs",
        ">native",
        ">CPU s/GB",
        ">exits",
        ">user",
    ]);
    for case in report
        .cases
        .iter()
        .filter(|case| case.unit == "MB/s" && !case.name.starts_with("native."))
    {
        let name = &case.name;
        table.row([
            name.clone(),
            value(name, 0),
            value(&case.reference, 0),
            format!("{:.2}", case.ratio),
            value(&format!("{name}.p50"), 1),
            value(&format!("{}.p50", case.reference), 1),
            value(&format!("{name}.p99"), 1),
            value(&format!("{}.p99", case.reference), 1),
            value(&format!("{name}.cpu"), 2),
            value(&format!("{name}.exits"), 2),
            value(&format!("{name}.exits.user"), 2),
        ]);
    }
    let doorbell = value("disk.doorbell", 1);
    show(|out| {
        table.write(out)?;
        writeln!(out, "the doorbell alone: {doorbell} µs")?;
        let about = "medians of rounds; exits are for each request, in all and to user space";
        writeln!(out, "{}; {about}", report.place())
    })
}
