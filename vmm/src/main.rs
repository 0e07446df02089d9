//! `lightv-vmm`: flags → configuration → machine → loop.

#![forbid(unsafe_code)]

use std::env;

use clap::Parser as _;
use clap::error::ErrorKind;
use lightv_api::exit;
use lightv_vmm::args::{self, Cli, JailerCli, Job};
use lightv_vmm::jail::jailer;
use lightv_vmm::jail_plan::JailPlan;
use lightv_vmm::job::Begun;
use lightv_vmm::{boot_timer, job, report, rest, template};

fn main() {
    if args::is_jailer(env::args_os().next().as_ref()) {
        let status = match JailerCli::try_parse() {
            Ok(cli) => jailer::run(&cli.into()),
            Err(error) => refuse(&error),
        };
        job::end_process(status);
    }
    // A VM takes longer to make than flags to read.
    let begun = args::names_a_machine(env::args_os()).then(job::begin);
    let status = match Cli::parse_from_name(env::args_os().collect()) {
        Ok(cli) => {
            warn_of_flags(&cli);
            if cli.has_boot_timer() {
                boot_timer::start();
            }
            match cli.jail() {
                Some(jail) => run_in_jail(&jail, cli.into_job()),
                None => run(cli.into_job(), begun),
            }
        }
        Err(error) => refuse(&error),
    };
    job::end_process(status)
}

fn refuse(error: &clap::Error) -> u8 {
    // A standard stream that cannot be written to is no reason to fail.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => exit::OK,
        _ => exit::BAD_ARGUMENTS,
    }
}

/// What has nothing to do with a machine has no use for a jail.
fn run_in_jail(jail: &JailPlan, job: Option<Job>) -> u8 {
    match job {
        Some(Job::Run(run)) => job::run_in_jail(jail, *run),
        Some(Job::Serve(serve)) => rest::run_in_jail(jail, *serve),
        other => run(other, None),
    }
}

fn run(job: Option<Job>, begun: Option<Begun>) -> u8 {
    match job {
        Some(Job::Run(run)) if run.is_tty => job::run_with_terminal(*run),
        Some(Job::Run(run)) => begun.unwrap_or_else(job::begin).run(*run, None),
        Some(Job::Serve(serve)) => rest::run(begun.unwrap_or_else(job::begin), *serve),
        Some(Job::Describe(path)) => job::describe(&path),
        Some(Job::SnapshotVersion) => job::snapshot_version(),
        Some(Job::DescribeSnapshot(path)) => job::describe_snapshot(&path),
        Some(Job::CheckHost) => job::check_host(),
        Some(Job::InspectPid(pid)) => job::inspect_pid(pid),
        Some(Job::Template(template)) => template::run(*template),
        None => {
            report::say(
                "nothing to do; give --config, --restore, --boot, --template or --api-sock, or see --help",
            );
            exit::BAD_ARGUMENTS
        }
    }
}

fn warn_of_flags(cli: &Cli) {
    if cli.has_enable_pci() {
        report::say("--enable-pci: there is no PCI; devices are on virtio-mmio");
    }
}
