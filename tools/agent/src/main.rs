//! `lightv-agent`: flags → folders → what is there already → server.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;
use lightv_agent::args::Cli;
use lightv_agent::refusal::chain;
use lightv_agent::run;
use lightv_api::exit;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match run::run(cli.serve, &cli.jail) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "lightv-agent: {}", chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

fn refuse(error: &clap::Error) -> ExitCode {
    // A standard stream that cannot be written to is no reason to fail.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(exit::BAD_ARGUMENTS),
    }
}
