//! `lightv-vmm`: flags → configuration → machine → loop.

#![forbid(unsafe_code)]

use clap::Parser;
use clap::error::ErrorKind;
use lightv_api::exit;
use lightv_vmm::args::{Cli, Job};
use lightv_vmm::{job, report};

fn main() {
    let main_ns = job::now_ns();
    let status = match Cli::try_parse() {
        Ok(cli) => match cli.into_job() {
            Some(Job::Run(run)) => job::run(*run, main_ns),
            Some(Job::Describe(path)) => job::describe(&path),
            Some(Job::CheckHost) => job::check_host(),
            Some(Job::InspectPid(pid)) => job::inspect_pid(pid),
            None => {
                report::say("nothing to do; give --config, --restore or --boot, or see --help");
                exit::BAD_ARGUMENTS
            }
        },
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
