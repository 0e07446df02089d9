//! `lightv serve`: becomes the host agent.

use std::ffi::OsString;

use clap::Parser;
use lightv_launch::program::Program;
use lightv_launch::serve::{self, EXAMPLES, JAIL_HELP};
use lightv_vmm::args::JailArgs;

use crate::failure::Failure;
use crate::monitor::{self, MonitorError};

/// Serve the host agent, which owns images, pools and running microVMs of this host
///
/// It is the program lightv-agent, and serves a REST API at agent.sock in the runtime directory (docs/agent.md). MicroVMs go
/// on when it ends; the next one takes them over.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES, mut_arg("jail", |arg| arg.help(JAIL_HELP)))]
pub(crate) struct ServeCommand {
    /// Checked here, so that a mistake is told of as every other one; the agent reads them again.
    #[command(flatten)]
    _serve: serve::ServeArgs,
    #[command(flatten)]
    _jail: JailArgs,
}

/// Becomes it. Comes back only when that failed; `args` are those behind `serve`.
pub(crate) fn run(args: &[OsString]) -> Failure {
    match Program::Agent.find() {
        Ok(program) => monitor::exec(program, args).into(),
        Err(error) => MonitorError::from(error).into(),
    }
}
