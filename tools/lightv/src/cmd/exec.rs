//! `lightv exec`: runs another program in a running Linux guest.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use lightv_api::contract::instance::{InstanceInfo, InstanceState};
use lightv_api::contract::vm::FullConfig;
use lightv_api::runtime::VmRecord;
use lightv_api_client::Client;
use lightv_contract::exec::{START_BYTES_MAX, StartSpec, VERSION};
use lightv_vmm::runtime_dir;
use lightv_vmm::terminal::{self, Terminal};

use crate::exec::{Connection, ExecError, Seat, carry, size};
use crate::failure::Failure;
use crate::spec_args::EnvArg;
use crate::vms::{self, VmError};

/// Run a program in a running microVM
///
/// For Linux guests whose image was built with --exec, and others that have LightV's agent and vsock (docs/exec.md). The
/// program's output is ours, and so is its exit status, 128 + N when signal N ended it; 127: not found, 126: not to be run.
/// SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1 and SIGUSR2 go to its process group; three of one within two seconds end us too.
/// When we end before it, it gets SIGHUP.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv exec web -- ps                         as in a shell of the guest
  lightv exec -it web -- /bin/sh                a shell here; Ctrl-] leaves it
  lightv exec -i web -- tar -C /srv -x < a.tar  our standard input
  lightv exec -u nobody -w /tmp -e A=b web -- env

Exit codes: the program's own; 137 when the microVM ends before it;
`lightv --help` lists ours.")]
pub(crate) struct ExecArgs {
    /// Id, name of a sandbox, beginning of an id, or process id
    vm: String,
    /// Give the program our standard input; without it, it has none
    #[arg(short, long)]
    interactive: bool,
    /// Give the program our terminal
    #[arg(short, long)]
    tty: bool,
    /// Set a variable of its environment, which is else that of the microVM's own program; without VALUE it is passed through
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<EnvArg>,
    /// Folder that it starts in [default: that of the microVM's own program]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Who runs it [default: who runs the microVM's own program]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM ARGS")]
    words: Vec<String>,
}

/// How long a monitor may take to say what it does.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a monitor may take to end after its connections.
const END_PATIENCE: Duration = Duration::from_secs(2);
const END_INTERVAL: Duration = Duration::from_millis(10);

/// Runs it; gives its exit status.
pub(crate) fn run(args: ExecArgs) -> Result<ExitCode, Failure> {
    let seat = Seat {
        has_stdin: args.interactive || args.tty,
        terminal: args.tty.then(own_terminal).transpose()?,
    };
    let vm = vms::find(&args.vm)?;
    let socket = socket_of(&vm)?;
    let start = serde_json::to_vec(&args.into_start()).unwrap_or_default();
    if start.len() > START_BYTES_MAX {
        return Err(ExecError::TooLong {
            bytes: start.len(),
            allowed: START_BYTES_MAX,
        }
        .into());
    }
    let mut connection = Connection::dial(&socket)?;
    let status = match connection.start(start)? {
        true => carry(connection, seat)?,
        false => None,
    };
    match status {
        Some(status) => Ok(ExitCode::from(status)),
        None if has_ended(&vm) => Err(ExecError::MachineEnded.into()),
        None => Err(ExecError::Lost.into()),
    }
}

fn own_terminal() -> Result<Terminal, ExecError> {
    if !terminal::is_there() {
        return Err(ExecError::NoTerminal);
    }
    Terminal::of_stdin().map_err(ExecError::Terminal)
}

/// The socket of the machine's vsock, once the machine runs.
fn socket_of(vm: &VmRecord) -> Result<PathBuf, Failure> {
    let (id, pid) = (vm.id.clone(), vm.pid);
    let mut named = None;
    if let Some(api) = &vm.api_socket {
        let client = Client::with_patience(api, PATIENCE);
        let info: InstanceInfo = client.get("/").map_err(VmError::Client)?;
        match info.state {
            InstanceState::Running => {}
            InstanceState::Paused => return Err(ExecError::Paused { id }.into()),
            InstanceState::NotStarted => return Err(ExecError::NotStarted { id }.into()),
        }
        let config: FullConfig = client.get("/vm/config").map_err(VmError::Client)?;
        named = config
            .vsock
            .map(|vsock| jailed_socket(&id).unwrap_or(vsock.uds_path));
    }
    let own = || Some(runtime_dir::folder().join(runtime_dir::vsock_name(pid)));
    // A relative path is one of the monitor's folder, which the monitor knows best.
    let known = named.filter(|path| path.is_absolute() || vm.vsock_socket.is_none());
    let socket = known.or_else(|| vm.vsock_socket.clone());
    let socket = socket.or_else(|| own().filter(|path| path.exists()));
    Ok(socket.ok_or(ExecError::NoVsock { id })?)
}

/// The socket of the sandbox `id`, if it is in a jail of the host agent's. What its monitor says does not count: one that was taken
/// over would name another machine's.
fn jailed_socket(id: &str) -> Option<PathBuf> {
    let jail = runtime_dir::folder().join(runtime_dir::jail_name(id));
    jail.is_dir().then(|| runtime_dir::jailed_vsock(&jail))
}

/// Whether the machine has ended, or does so now.
fn has_ended(vm: &VmRecord) -> bool {
    let began = Instant::now();
    while runtime_dir::is_alive(vm) {
        if began.elapsed() > END_PATIENCE {
            return false;
        }
        thread::sleep(END_INTERVAL);
    }
    true
}

impl ExecArgs {
    fn into_start(self) -> StartSpec {
        let terminal = self.tty.then(|| env::var("TERM").ok()).flatten();
        let terminal = terminal.map(|kind| ("TERM".to_owned(), kind));
        let given = self.env.into_iter().map(|env| (env.name, env.value));
        let env: BTreeMap<String, String> = terminal.into_iter().chain(given).collect();
        StartSpec {
            version: VERSION,
            words: self.words,
            env,
            workdir: self.workdir,
            user: self.user,
            terminal: self.tty.then(size),
            has_stdin: self.interactive || self.tty,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_the_order_to_the_agent() {
        let line = "exec -i -e A=b -w /tmp -u nobody vm -- ls -l --color";
        let args = ExecArgs::try_parse_from(line.split(' ')).expect("valid");
        let start = args.into_start();
        let expected = StartSpec {
            version: VERSION,
            words: ["ls", "-l", "--color"].map(str::to_owned).to_vec(),
            env: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
            workdir: Some("/tmp".to_owned()),
            user: Some("nobody".to_owned()),
            terminal: None,
            has_stdin: true,
        };
        assert_eq!(start, expected);
    }
}
