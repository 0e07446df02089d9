//! `lightv bench simulate`.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use lightv_api::exit;
use lightv_bench::plot::curve;
use lightv_bench::process::host_number;
use lightv_bench::report::{self as reports, Case, Report};
use lightv_bench::simulate::{self, Check, Costs, Host, Point, Resource};
use lightv_bench::stats::Sample;

use super::output::write;
use super::{BenchError, density, report};
use crate::cmd::{show, show_json};
use crate::failure::Failure;
use crate::report_file::folder_of;
use crate::table::Table;

/// Machines that are measured when no report is given: enough for what each takes to stand out.
const MEASURED: u32 = 50;
/// Seconds for which they are left alone.
const IDLE_S: u64 = 2;
const KIB_PER_MIB: f64 = 1024.0;

/// How many idle microVMs a host carries, by what was measured of fewer
///
/// Costs of a machine (memory, processor time of a start and of an idle machine, process ids, open files) come from reports of `lightv
/// bench density`; without one, 50 machines are measured. Each cost is taken as a line over the number of machines: with one
/// report level, with more a line through them. Guests that do nothing are assumed, all of one image. --check compares what is
/// foretold of another report's host and number with what it measured.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv bench simulate                            this host, measured quickly
  lightv bench density --count 200 --out d200.json
  lightv bench density --out d.json
  lightv bench simulate --from d200.json --check d.json         is it foretold?
  lightv bench simulate --from d.json --cores 64 --memory 262144 --plot s.svg

Exit codes: 1 when what is foretold is off by more than --tolerance;
`lightv --help` lists the others.")]
pub(super) struct SimulateArgs {
    /// A report of `lightv bench density`; may be repeated, with other numbers of machines
    #[arg(long, value_name = "FILE")]
    from: Vec<PathBuf>,
    /// A report to compare with; may be repeated
    #[arg(long, value_name = "FILE")]
    check: Vec<PathBuf>,
    /// How far what is foretold may be off, in per cent
    #[arg(long, value_name = "PERCENT", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=1000))]
    tolerance: u32,
    /// Cores of the host [default: as here]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    cores: Option<u32>,
    /// Its memory in MiB [default: as here]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    memory: Option<u64>,
    /// Memory in MiB that machines may not have
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    reserve: u64,
    /// Per cent of all cores that idle machines and starts may take
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100))]
    cpu_share: u32,
    /// Machines that are started in each second, while others end
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    starts_per_second: u32,
    /// Seconds within which all are to be started [default: any time]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    start_within: Option<u32>,
    /// Process ids of the host [default: as here]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pids: Option<u32>,
    /// Machines up to which it is shown
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    up_to: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write the JSON into a file too
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Draw what is taken over the number of machines into a file, as SVG
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// What was found.
struct Found {
    costs: Costs,
    host: Host,
    points: Vec<Point>,
    checks: Vec<(u64, Check)>,
}

/// Carries it out.
pub(super) fn run(args: &SimulateArgs) -> Result<ExitCode, Failure> {
    for path in args.out.iter().chain(&args.plot) {
        let folder = folder_of(path);
        if !folder.is_dir() {
            return Err(BenchError::NoFolder {
                path: path.clone(),
                folder: folder.into(),
            }
            .into());
        }
    }
    let found = find(args)?;
    let report = report("simulate", cases(&found)?)?;
    if let Some(path) = &args.out {
        let json = serde_json::to_vec_pretty(&report).unwrap_or_default();
        write(path, &json)?;
    }
    if let Some(path) = &args.plot {
        write(path, draw(args, &found)?.as_bytes())?;
    }
    match args.json {
        true => show_json(&report)?,
        false => show_text(args, &found)?,
    };
    let tolerance = 1.0 + f64::from(args.tolerance) / 100.0;
    let is_off = |(_, check): &&(u64, Check)| check.off_by() > tolerance;
    match found.checks.iter().find(is_off) {
        None => Ok(ExitCode::from(exit::OK)),
        Some((machines, check)) => Err(BenchError::Foretold {
            what: check.what,
            machines: *machines,
            off_by: check.off_by(),
            tolerance,
        }
        .into()),
    }
}

fn find(args: &SimulateArgs) -> Result<Found, BenchError> {
    let points = match args.from.as_slice() {
        [] => vec![point(&density::quick(MEASURED, IDLE_S)?, None)?],
        files => points(files)?,
    };
    let unreadable = |cause: lightv_bench::simulate::CostsError| BenchError::Report {
        path: args.from.first().cloned().unwrap_or_default(),
        cause: cause.into(),
    };
    let costs = Costs::of(&points).map_err(unreadable)?;
    let checked = points_of_checks(args)?;
    let checks = checked.iter().flat_map(|point| {
        let checks = simulate::check(&costs, point);
        checks.into_iter().map(|check| (point.machines, check))
    });
    Ok(Found {
        checks: checks.collect(),
        host: host(args),
        points: points.iter().chain(&checked).copied().collect(),
        costs,
    })
}

fn points_of_checks(args: &SimulateArgs) -> Result<Vec<Point>, BenchError> {
    points(&args.check)
}

fn points(files: &[PathBuf]) -> Result<Vec<Point>, BenchError> {
    let read = |path: &PathBuf| {
        let failed = |cause| BenchError::File {
            path: path.clone(),
            cause,
        };
        let json = fs::read(path).map_err(failed)?;
        let report: Report = serde_json::from_slice(&json).map_err(|cause| BenchError::Report {
            path: path.clone(),
            cause: cause.into(),
        })?;
        point(&report, Some(path))
    };
    files.iter().map(read).collect()
}

fn point(report: &Report, path: Option<&Path>) -> Result<Point, BenchError> {
    Point::of(report).map_err(|cause| BenchError::Report {
        path: path.map(Path::to_owned).unwrap_or_default(),
        cause: cause.into(),
    })
}

fn host(args: &SimulateArgs) -> Host {
    let own_cores = std::thread::available_parallelism();
    let own_cores = own_cores.map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
    let memory_kib = args.memory.map_or_else(
        || host_number("/proc/meminfo", "MemTotal:").unwrap_or(0.0),
        |mib| mib as f64 * KIB_PER_MIB,
    );
    let pid_max = || host_number("/proc/sys/kernel/pid_max", "");
    let threads_max = || host_number("/proc/sys/kernel/threads-max", "");
    let own_pids = || Some(pid_max()?.min(threads_max()?));
    Host {
        cores: f64::from(args.cores.unwrap_or(own_cores)),
        memory_kib: (memory_kib - args.reserve as f64 * KIB_PER_MIB).max(1.0),
        cpu_share: f64::from(args.cpu_share) / 100.0,
        starts_per_s: f64::from(args.starts_per_second),
        start_within_s: args.start_within.map(f64::from),
        threads_max: args.pids.map(f64::from).or_else(own_pids),
        files_max: host_number("/proc/sys/fs/file-max", ""),
    }
}

/// `simulate.RESOURCE`: machines that it suffices for. `simulate.check.N.WHAT`: foretold, next to `measured.N.WHAT`.
fn cases(found: &Found) -> Result<Vec<Case>, BenchError> {
    let one = |value| Sample::new(vec![value]).ok_or(BenchError::NoNumber);
    let mut cases = Vec::new();
    for resource in Resource::ALL {
        if let Some(machines) = simulate::carried(&found.costs, &found.host, resource) {
            let name = format!(
                "simulate.{}",
                resource.name().replace(' ', "_").to_lowercase()
            );
            cases.extend(reports::cases(
                "machines",
                &[(&name, one(machines as f64)?)],
            ));
        }
    }
    for (machines, check) in &found.checks {
        let what = check
            .what
            .replace(", ", "_")
            .replace(' ', "_")
            .to_lowercase();
        let [foretold, measured] =
            ["simulate.check", "measured"].map(|side| format!("{side}.{machines}.{what}"));
        let both = [
            (foretold.as_str(), one(check.foretold)?),
            (measured.as_str(), one(check.measured)?),
        ];
        cases.extend(reports::cases(check.unit, &both));
    }
    Ok(cases)
}

fn draw(args: &SimulateArgs, found: &Found) -> Result<String, BenchError> {
    let Found {
        costs,
        host,
        points,
        ..
    } = found;
    let title = format!(
        "{} cores, {:.0} MiB for machines, {} % of the cores",
        host.cores,
        host.memory_kib / KIB_PER_MIB,
        args.cpu_share
    );
    let most = simulate::limit(costs, host).map_or(args.up_to, |(machines, _)| machines);
    let dots: Vec<(u64, Resource, f64)> = points
        .iter()
        .map(|point| {
            let taken = point.memory_kib * point.machines as f64 / host.memory_kib;
            (point.machines, Resource::Memory, taken)
        })
        .collect();
    let shown = args.up_to.max(most.saturating_mul(5) / 4);
    Ok(curve::draw(&title, (costs, host), shown, &dots)?)
}

fn show_text(args: &SimulateArgs, found: &Found) -> Result<ExitCode, Failure> {
    let Found { costs, host, .. } = found;
    let mut table = Table::new(&[
        ">machines",
        ">memory",
        ">CPU, idle",
        ">start of all",
        ">process ids",
    ]);
    let limit = simulate::limit(costs, host);
    let decades = (0..)
        .map(|power| 10_u64.pow(power))
        .take_while(|count| *count <= args.up_to);
    let mut counts: Vec<u64> = decades.chain([args.up_to]).collect();
    counts.extend(limit.map(|(machines, _)| machines));
    counts.sort_unstable();
    counts.dedup();
    for count in counts {
        let ids = costs
            .threads
            .map_or_else(|| "-".to_owned(), |each| format!("{:.0}", each.all(count)));
        table.row([
            count.to_string(),
            format!("{:.0} MiB", costs.memory_kib.all(count) / KIB_PER_MIB),
            format!("{:.2} cores", costs.idle_cores.all(count)),
            format!("{:.1} s", costs.start_s.all(count) / host.cores),
            ids,
        ]);
    }
    show(|out| {
        writeln!(
            out,
            "Assumed: {} cores, of which idle machines and {} starts a second take {} % at most; {:.0} MiB of memory after {} MiB \
             for others; all of one image, their guests idle; each costs as in {}",
            host.cores,
            host.starts_per_s,
            args.cpu_share,
            host.memory_kib / KIB_PER_MIB,
            args.reserve,
            match args.from.len() {
                0 => format!("a run of {MEASURED} here"),
                1 => "the report".to_owned(),
                more => format!("{more} reports, by a line through them"),
            }
        )?;
        table.write(out)?;
        match limit {
            Some((machines, resource)) => {
                writeln!(
                    out,
                    "{machines} machines; then there is no more {}",
                    resource.name()
                )?;
            }
            None => writeln!(out, "Nothing runs out")?,
        }
        for (machines, check) in &found.checks {
            writeln!(
                out,
                "{machines} machines, {}: foretold {:.2} {unit}, measured {:.2} {unit}",
                check.what,
                check.foretold,
                check.measured,
                unit = check.unit
            )?;
        }
        Ok(())
    })
}
