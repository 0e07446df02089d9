//! The command line of the host agent, which `lightv serve` and `lightv-agent` both take.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

/// Sandboxes that have not ended, unless `--max-sandboxes` says otherwise: four times what is measured on a host.
pub const SANDBOXES_MAX: u64 = 4096;

/// Requests that are being carried out or wait for it, unless `--max-requests` says otherwise: some seconds of starts.
pub const REQUESTS_MAX: u64 = 512;

/// Memory of the host that starts leave alone, in MiB, unless `--keep-memory` says otherwise.
pub const KEPT_MEMORY_MIB: u64 = 256;

/// Bytes of a log that are kept, unless `--max-log` says otherwise, in MiB.
pub const LOG_MIB_MAX: u64 = 16;

/// What the operator says.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ServeArgs {
    /// Folder for images, records and logs [default: /var/lib/lightv for root, else lightv in XDG_STATE_HOME or ~/.local/state]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Sandboxes that may run at a time
    #[arg(long, value_name = "N", default_value_t = SANDBOXES_MAX, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub max_sandboxes: u64,
    /// Guest memory that they may have together, in MiB [default: what the host gives]
    #[arg(long, value_name = "MIB")]
    pub max_memory: Option<u64>,
    /// Memory of the host that starts leave alone, in MiB
    #[arg(long, value_name = "MIB", default_value_t = KEPT_MEMORY_MIB)]
    pub keep_memory: u64,
    /// Requests that may be carried out at a time; the next one is refused
    #[arg(long, value_name = "N", default_value_t = REQUESTS_MAX, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub max_requests: u64,
    /// Kept of a sandbox's log, in MiB: the oldest is lost
    #[arg(long, value_name = "MIB", default_value_t = LOG_MIB_MAX, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub max_log: u64,
    /// TCP.
    #[command(flatten)]
    pub tcp: TcpArgs,
}

/// What the operator says of TCP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "TCP and the web page")]
pub struct TcpArgs {
    /// Serve the REST API and the web page at this address too, with TLS, for those who have a token
    #[arg(long, value_name = "ADDRESS:PORT", requires = "token_file")]
    pub listen: Option<SocketAddr>,
    /// Tokens that clients may come with, one a line, of 32–512 characters; nobody else may be able to read the file
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub token_file: Option<PathBuf>,
    /// The server's certificate and those that vouch for it (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["listen", "tls_key"], conflicts_with = "insecure_loopback")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM), which others must not be able to read
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Serve without TLS; allowed at an address of this host alone (127.0.0.0/8, ::1)
    #[arg(long, requires = "listen")]
    pub insecure_loopback: bool,
}

/// What `--jail` is to an agent, where it is one of the flags of `lightv-vmm`.
pub const JAIL_HELP: &str = "\
Start each sandbox in a jail of its own: user, processes, network, IPC and mounts of its own, a root with only what the \
machine names, and no privileges. What cannot be in one is refused: pools";

/// What stands below the options.
pub const EXAMPLES: &str = "\
Examples:
  lightv serve
  lightv serve --state /srv/lightv --max-sandboxes 1000 --max-memory 65536
  lightv serve --jail --jail-uid 1007 --jail-gid 1007 --jail-cgroup pids.max=64

The web page and the REST API over TCP (docs/agent-web.md):
  (umask 077; openssl rand -hex 32 > tokens)
  lightv serve --listen 127.0.0.1:9443 --insecure-loopback --token-file tokens
  lightv serve --listen 0.0.0.0:9443 --token-file tokens \\
    --tls-cert cert.pem --tls-key key.pem

Requests:
  curl --unix-socket /run/lightv/agent.sock http://localhost/
  lightv images push web web.lv
  lightv api --agent POST /sandboxes '{\"image\": \"web\"}'";
