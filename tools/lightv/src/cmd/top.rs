//! `lightv top`: all microVMs on a screen.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use super::stats::parse_interval;
use crate::failure::Failure;
use crate::top;

/// Watch the microVMs of this host on a screen, and stop them
///
/// The numbers are those of `lightv stats`; disks, networks and exits are shown a second. CPU is new at each look; the others
/// are asked for ten microVMs at a time, so that a hundred of them cost no more than ten. Colours are left out where NO_COLOR is
/// set.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv top                   all that run, looked at every second
  lightv top --interval 5      for many, or over a slow line

Keys:
  ↑ ↓ PgUp PgDn Home End   select a microVM
  ← →   sort by another column      r   the other way round
  /     only what has a text in id, process id, state or source; esc: all
  enter details of the selected one; esc: back
  s     stop it (as `lightv stop`), k   kill it; both ask first
  q     quit                        Ctrl-Z   suspend")]
pub(crate) struct TopArgs {
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = parse_interval)]
    interval: f64,
}

/// Shows them until it is told to end.
pub(crate) fn run(args: &TopArgs) -> Result<ExitCode, Failure> {
    top::run(Duration::from_secs_f64(args.interval))
}
