//! `lightv completions`: for a shell, made from the command line itself.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Command, Parser};
use clap_complete::Shell;

use super::show;
use crate::failure::Failure;

/// Print completions for a shell
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv completions bash > /etc/bash_completion.d/lightv
  lightv completions fish > ~/.config/fish/completions/lightv.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints the completions of `tree`.
pub(crate) fn run(args: &CompletionsArgs, mut tree: Command) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut tree, "lightv", &mut script);
    show(|out| out.write_all(&script))
}
