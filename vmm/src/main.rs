//! `lightv-vmm`: flags → configuration → machine → loop.

#![forbid(unsafe_code)]

use std::env;

use clap::error::ErrorKind;
use lightv_api::exit;
use lightv_vmm::args::{self, Cli, Job};
use lightv_vmm::job::Begun;
use lightv_vmm::{boot_timer, job, report, rest};

fn main() {
    // A VM takes longer to make than flags to read.
    let begun = args::names_a_machine(env::args_os()).then(job::begin);
    let status = match Cli::parse_from_name(env::args_os().collect()) {
        Ok(cli) => {
            warn_of_flags(&cli);
            if cli.has_boot_timer() {
                boot_timer::start();
            }
            run(cli.into_job(), begun)
        }
        Err(error) => {
            // A standard stream that cannot be written to is no reason to fail.
            let _ = error.print();
            match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => exit::OK,
                _ => exit::BAD_ARGUMENTS,
            }
        }
    };
    job::end_process(status)
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
        None => {
            report::say(
                "nothing to do; give --config, --restore, --boot or --api-sock, or see --help",
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
