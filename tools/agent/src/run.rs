//! From the command line to a server, and to its end.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::rc::Rc;
use std::time::Instant;

use lightv_api::agent::pool::PoolSpec;
use lightv_api::exit;
use lightv_launch::program::{NotFound, Program};
use lightv_launch::serve::ServeArgs;
use lightv_vmm::args::JailArgs;
use lightv_vmm::listen::{ListenError, Purpose, listen};
use rustix::process::geteuid;
use signal_hook::consts::{SIGINT, SIGTERM};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

use crate::adopt::{AdoptError, adopt_all};
use crate::agent::{Agent, Settings};
use crate::care;
use crate::folders::{Folders, OpenFoldersError, ReadJsonError, read_json};
use crate::host;
use crate::images::Images;
use crate::jail::Jails;
use crate::keep;
use crate::limits;
use crate::run_socket;
use crate::server::{Connections, accept_all};
use crate::tcp::{self, TcpError, TcpPlan};

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No monitor, no microVMs.
    #[error(transparent)]
    NoMonitor(#[from] NotFound),
    /// No folder.
    #[error(transparent)]
    Folders(#[from] OpenFoldersError),
    /// What is written there is not to be read.
    #[error(transparent)]
    State(#[from] ReadJsonError),
    /// No socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// What is there cannot be taken over.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    /// TCP is not to be served.
    #[error(transparent)]
    Tcp(#[from] TcpError),
    /// The host refuses what a server needs.
    #[error("Cannot serve")]
    Host(#[source] io::Error),
    /// Another user needs privileges.
    #[error(
        "--jail-uid and --jail-gid need root; leave them out: jails have user {uid} then, in a name space of their own"
    )]
    JailUser {
        /// This user.
        uid: u32,
    },
    /// Too few descriptors.
    #[error("This process may have {found} descriptors; at least {least} are needed (ulimit -n)")]
    Files {
        /// How many there may be.
        found: u64,
        /// How many are needed.
        least: u64,
    },
}

impl RunError {
    /// What the process ends with.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::State(_) => exit::BAD_CONFIG,
            Self::Listen(_) => exit::FAILURE,
            Self::JailUser { .. } => exit::BAD_ARGUMENTS,
            Self::Tcp(error) => error.exit_code(),
            _ => exit::HOST_FAILURE,
        }
    }
}

/// Serves until SIGTERM or SIGINT. MicroVMs go on.
///
/// # Errors
/// [`RunError`]: nothing was begun.
pub fn run(args: ServeArgs, jail: &JailArgs) -> Result<(), RunError> {
    let files = host::allow_files();
    let least = limits::FILES_KEPT * 2;
    if files < least {
        return Err(RunError::Files {
            found: files,
            least,
        });
    }
    let monitor = Program::Monitor.find()?;
    let tcp = tcp::prove(&args.tcp)?;
    let jails = prove_jails(jail)?;
    let folders = Folders::open(args.state)?;
    let images = Images::open(&folders)?;
    let spare = files - limits::FILES_KEPT;
    let settings = Settings {
        monitor,
        // The other half is for connections, pools and programs.
        sandboxes_max: args
            .max_sandboxes
            .min(spare / 2 / limits::FILES_PER_SANDBOX),
        memory_mib_max: args.max_memory,
        kept_memory_mib: args.keep_memory,
        requests_max: args.max_requests,
        ready_max: spare / 8 / limits::FILES_PER_READY,
        // The last sixteenth is for what requests need.
        programs_max: limits::PROGRAMS_MAX.min(spare / 16),
        connections_max: limits::CONNECTIONS_MAX.min(spare / 4),
        log_mib_max: args.max_log,
        jails,
    };
    let agent = Rc::new(Agent::new(settings, folders, images));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(host::cpus() * limits::STARTS_PER_CPU + limits::DISK_THREADS)
        .build()
        .map_err(RunError::Host)?;
    let local = LocalSet::new();
    local.block_on(&runtime, serve(agent, tcp))
}

/// The jails that are asked for, if this user can make them.
fn prove_jails(args: &JailArgs) -> Result<Option<Jails>, RunError> {
    let (jails, user) = (Jails::of(args), geteuid());
    if jails.as_ref().is_some_and(Jails::change_user) && !user.is_root() {
        let uid = user.as_raw();
        return Err(RunError::JailUser { uid });
    }
    Ok(jails)
}

async fn serve(agent: Rc<Agent>, tcp: Option<TcpPlan>) -> Result<(), RunError> {
    let signals = signals().map_err(RunError::Host)?;
    let pools: BTreeMap<String, PoolSpec> = read_json(&agent.folders.pools())?.unwrap_or_default();
    let (listener, socket) = listen(&agent.folders.socket(), Purpose::Api)?;
    let listener = UnixListener::from_std(listener).map_err(RunError::Host)?;
    let runs = run_socket::listen(&agent.folders.run_socket()).map_err(RunError::Host)?;
    // Whoever connects already waits until all that lives is known.
    adopt_all(&agent).await?;
    if agent.settings.jails.is_none() {
        for (image, spec) in pools {
            keep::set(&agent, &image, spec);
        }
    } else if !pools.is_empty() {
        // They stay written down.
        let count = pools.len();
        agent.warn(format!(
            "{count} pools wait for an agent without --jail: their machines cannot be in jails"
        ));
    }
    spawn_local(care::go_on(Rc::clone(&agent)));
    let connections = Connections::default();
    let all = connections.clone();
    if let Some(tcp) = tcp {
        let server = tcp.into_server().map_err(RunError::Host)?;
        // With port 0 nobody else knows.
        let url = server.page_url().map_err(RunError::Host)?;
        let _ = writeln!(io::stderr(), "lightv-agent: {url}");
        spawn_local(server.serve(Rc::clone(&agent), connections.clone()));
    }
    spawn_local(accept_all(Rc::clone(&agent), listener, connections));
    let runs = spawn_local(run_socket::accept_all(Rc::clone(&agent), runs, all));
    // The other end is never closed.
    let _ = signals.readable().await;
    // Nobody comes any more; what is being done is done, so that nothing has to be reaped.
    socket.remove();
    runs.abort();
    let _ = std::fs::remove_file(agent.folders.run_socket());
    agent.end();
    let began = Instant::now();
    while agent.requests() > 0 && began.elapsed() < limits::END_TIME_MAX {
        sleep(limits::ACCEPT_PAUSE).await;
    }
    care::write_all(&agent).await;
    Ok(())
}

/// A stream on which there is a byte for each signal that ends the agent.
fn signals() -> io::Result<UnixStream> {
    let (read, write) = std::os::unix::net::UnixStream::pair()?;
    read.set_nonblocking(true)?;
    for signal in [SIGTERM, SIGINT] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    UnixStream::from_std(read)
}
