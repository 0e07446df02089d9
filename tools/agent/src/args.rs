//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::limits;

/// The host agent of LightV: owns images, pools and running microVMs of this host
///
/// Serves a REST API at agent.sock in the runtime directory (docs/agent.md). MicroVMs go on when it ends; the next one
/// takes them over.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(name = "lightv-agent", version, after_help = EXAMPLES)]
pub struct Cli {
    /// Folder for images, records and logs [default: /var/lib/lightv for root, else lightv in XDG_STATE_HOME or ~/.local/state]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Sandboxes that may run at a time
    #[arg(long, value_name = "N", default_value_t = limits::SANDBOXES_MAX, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub max_sandboxes: u64,
    /// Guest memory that they may have together, in MiB [default: what the host gives]
    #[arg(long, value_name = "MIB")]
    pub max_memory: Option<u64>,
    /// Memory of the host that starts leave alone, in MiB
    #[arg(long, value_name = "MIB", default_value_t = limits::KEPT_MEMORY_MIB)]
    pub keep_memory: u64,
    /// Requests that may be carried out at a time; the next one is refused
    #[arg(long, value_name = "N", default_value_t = limits::REQUESTS_MAX, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub max_requests: u64,
    /// Kept of a sandbox's log, in MiB: the oldest is lost
    #[arg(long, value_name = "MIB", default_value_t = limits::LOG_MIB_MAX, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub max_log: u64,
}

const EXAMPLES: &str = "\
Examples:
  lightv serve
  lightv serve --state /srv/lightv --max-sandboxes 1000 --max-memory 65536

Requests:
  curl --unix-socket /run/lightv/agent.sock http://localhost/
  curl --unix-socket /run/lightv/agent.sock -X PUT -d '{\"path\": \"/srv/web.lv\"}' http://localhost/images/web
  curl --unix-socket /run/lightv/agent.sock -X POST -d '{\"image\": \"web\"}' http://localhost/sandboxes";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        for bad in ["--max-sandboxes=0", "--max-requests=x", "--max-log=0", "a"] {
            assert!(Cli::try_parse_from(["lightv-agent", bad]).is_err(), "{bad}");
        }
    }
}
