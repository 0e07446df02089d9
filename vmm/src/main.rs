//! `lightv-vmm`: flags → configuration → machine → loop.

#![forbid(unsafe_code)]

use std::env;

use clap::Parser;
use clap::error::ErrorKind;
use lightv_api::exit;
use lightv_vmm::args::{self, Cli, Job};
use lightv_vmm::{job, report};

fn main() {
    // A VM takes longer to make than flags to read.
    let begun = args::names_a_machine(env::args_os()).then(job::begin);
    let status = match Cli::try_parse() {
        Ok(cli) => match cli.into_job() {
            Some(Job::Run(run)) if run.is_tty => job::run_with_terminal(*run),
            Some(Job::Run(run)) => begun.unwrap_or_else(job::begin).run(*run, None),
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
