//! `lightv`: builds, runs and looks at microVMs. `run` is the monitor itself; the rest starts `lightv-vmm` processes.

#![deny(unsafe_code)]

mod agent;
mod agent_run;
mod background;
mod build;
mod cache;
mod cache_folder;
mod cli;
mod cmd;
mod embedded;
mod exec;
mod failure;
mod metrics_text;
mod monitor;
mod profile;
mod report_file;
mod rootfs;
mod spec_args;
mod stats;
mod table;
mod text;
mod top;
mod vms;
mod watch;

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use self::cmd::run::RunArgs;

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().collect();
    // The most frequent command must not wait for a command line parser.
    let result = match RunArgs::parse_plain(&args) {
        Some(run) => cmd::run::run(run),
        None => cli::run(&args),
    };
    result.unwrap_or_else(|failure| failure.report())
}
