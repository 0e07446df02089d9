//! `lightv bench preset`.

use std::fs;
use std::process::ExitCode;

use clap::Parser;
use lightv_bench::preset::{self, PresetBench};
use lightv_bench::report::Case;

use super::sides::until_stopped;
use super::vsock::image_of;
use super::{BenchError, OutputArgs, build_image, report, show_cases, temporary_folder};
use crate::cmd::run::own_program;
use crate::failure::Failure;

/// The guest's app that writes much memory: routines of `lightv bench mem`, once.
const APP: &str = "mem";
/// Each routine once.
const ARGUMENTS: [&str; 2] = ["--", "1"];
/// The guest's app that is asked: it sends back what comes to port 7.
const VSOCK_APP: &str = "vsock";

/// What each preset brings (docs/presets.md), next to the same without one
///
/// In each round: `preset.startup`, from the spawn to the first byte of a guest that writes much memory first; `preset.performance`,
/// the same guest to its end; `preset.concurrency.memory`, the own share of memory of processes that have just started, eight at a
/// time; `….prefetch`, of one whose guest has not come to its working set. Each next to `none.…`, without a preset. The first round does not
/// count.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv bench preset                      20 rounds
  lightv bench preset --count 100 --json   one JSON object on standard output")]
pub(super) struct PresetBenchArgs {
    /// Rounds that count
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// MiB of the guest that writes nearly all of them
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(16..=4096))]
    memory: u32,
    #[command(flatten)]
    output: OutputArgs,
}

/// Carries it out.
pub(super) fn run(args: &PresetBenchArgs) -> Result<ExitCode, Failure> {
    args.output.check()?;
    let report = report("preset", measure(args)?)?;
    args.output.show(&report, show_cases)
}

fn measure(args: &PresetBenchArgs) -> Result<Vec<Case>, BenchError> {
    let work = temporary_folder()?;
    let [image, startup_image, warm_image] =
        ["plain.lv", "startup.lv", "warm.lv"].map(|name| work.path().join(name));
    let memory = args.memory.to_string();
    let options = ["--memory", &memory];
    build_image(APP, &[options, ARGUMENTS].concat(), &image)?;
    for (how, image) in [
        ("--optimize-startup", &startup_image),
        ("--warm", &warm_image),
    ] {
        build_image(APP, &[&options[..], &[how], &ARGUMENTS].concat(), image)?;
    }
    let sockets = ["preset", "none"].map(|name| work.path().join(name));
    for folder in &sockets {
        fs::create_dir(folder).map_err(|cause| BenchError::File {
            path: folder.clone(),
            cause,
        })?;
    }
    let socket = work.path().join("0.sock");
    let bench = PresetBench {
        lightv: own_program(),
        image,
        startup_image,
        warm_image,
        vsock_image: image_of(VSOCK_APP, work.path().join("vsock.lv"), &socket)?,
        work: sockets,
        rounds: args.count,
    };
    until_stopped(|progress| preset::measure(&bench, progress))
}
