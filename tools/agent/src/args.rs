//! The command line.

use clap::Parser;
use lightv_launch::serve::{EXAMPLES, JAIL_HELP, ServeArgs};
use lightv_vmm::args::JailArgs;

/// The host agent of LightV: owns images, pools and running microVMs of this host
///
/// Serves a REST API at agent.sock in the runtime directory (docs/agent.md). MicroVMs go on when it ends; the next one
/// takes them over.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(name = "lightv-agent", version, after_help = EXAMPLES, mut_arg("jail", |arg| arg.help(JAIL_HELP)))]
pub struct Cli {
    /// What the operator says.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// Jails of its sandboxes.
    #[command(flatten)]
    pub jail: JailArgs,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        for bad in [
            "--max-sandboxes=0",
            "--max-requests=x",
            "--max-log=0",
            "a",
            "--listen=here",
            "--listen=127.0.0.1:1",
            "--insecure-loopback",
            "--jail-uid=7",
            "--jail --jail-cgroup=memory.max",
        ] {
            assert!(Cli::try_parse_from(["lightv-agent", bad]).is_err(), "{bad}");
        }
    }
}
