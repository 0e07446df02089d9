//! How a sandbox starts that comes from a pool: a machine that is ready is given what is this sandbox's own.
//!
//! ```text
//!   written down as starting, with its process  ->  assigned  ->  runs  ->  written down as running  ->  answered
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use lightv_api::agent::sandbox::SandboxState;
use lightv_api::exit;
use lightv_launch::monitor;
use lightv_packet::{BYTES_MAX, SendError};
use lightv_pool::{AssignError, Assignment, MachineError, News, Ready, Refusal as PoolRefusal};
use lightv_vmm::runtime_dir;
use tokio::io::unix::AsyncFd;
use tokio::task::{spawn_blocking, spawn_local};
use tokio::time::timeout;

use crate::agent::Agent;
use crate::end;
use crate::folders::{Durability, WriteError};
use crate::limits;
use crate::plan::Plan;
use crate::process::Process;
use crate::sandboxes::Entry;
use crate::sys::watch_copy;

/// The standard streams of a machine: input, output, error.
pub type Streams = [OwnedFd; 3];

/// Why a machine that was ready does not run.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// It refuses its assignment.
    #[error("The microVM was not started: {}", .0.text)]
    Refused(PoolRefusal),
    /// It has ended, or cannot be talked to: another way may do.
    #[error("A microVM that was ready has ended before it was given work")]
    Gone,
    /// It has ended since, without a word.
    #[error("The microVM has ended as it was given work")]
    Lost,
    /// It does not run in time.
    #[error("The microVM was not started: it did not run within {} s", limits::START_TIME_MAX.as_secs())]
    Silent,
    /// What it says is not understood.
    #[error("The microVM was not started")]
    Machine(#[source] MachineError),
    /// The host refuses.
    #[error("Cannot watch the process of a microVM")]
    Host(#[source] io::Error),
    /// It cannot be written down.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl WarmError {
    /// Whether the guest may have begun.
    #[must_use]
    pub const fn has_begun(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Gone => false,
            Self::Lost | Self::Silent | Self::Machine(_) | Self::Host(_) | Self::Write(_) => true,
        }
    }

    /// What a run ends with.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(refusal) => refusal.exit_code,
            _ => exit::HOST_FAILURE,
        }
    }
}

/// What a sandbox that comes from a pool is started with.
#[derive(Debug)]
pub struct Warm<'a> {
    /// What was asked for.
    pub plan: &'a Plan,
    /// Its standard streams.
    pub streams: Streams,
    /// Whether the answer must be there after a crash of the host.
    pub durability: Durability,
    /// When it was asked for.
    pub asked: Instant,
}

/// Gives `ready` to `entry`, and waits until it runs, or its guest is done.
///
/// # Errors
/// [`WarmError`]; the machine ends, or has ended.
pub async fn start(
    agent: &Rc<Agent>,
    entry: &Rc<Entry>,
    ready: Ready,
    warm: Warm<'_>,
) -> Result<(), WarmError> {
    let pid = ready.pid();
    let is_vsock = warm.plan.image.image().vsock;
    entry.change(|record| {
        let sandbox = &mut record.sandbox;
        sandbox.pid = Some(pid);
        sandbox.warm = true;
        sandbox.vsock_socket = is_vsock.then(|| agent.folders.pool_vsock(pid));
        record.start_ticks = runtime_dir::start_ticks(pid);
    });
    // An agent that finds it so knows the process, and ends it.
    entry.write(Durability::Agent).await?;
    let assignment = Assignment {
        id: entry.id().to_owned(),
        args: warm.plan.args(),
        env: warm.plan.env(),
        api_socket: Some(agent.folders.vm_socket(entry.id())),
        ends_with_pool: false,
    };
    let [stdin, stdout, stderr] = &warm.streams;
    let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let running = ready.assign(&assignment, streams);
    let running = running.map_err(|error| refused_or_gone(&error))?;
    drop(warm.streams);
    let socket = watch_copy(&running);
    let process = Rc::new(Process::of_pool(running).map_err(WarmError::Host)?);
    entry.set_process(Some(Rc::clone(&process)));
    spawn_local(end::watch(Rc::clone(agent), Rc::clone(entry), None));
    // Whoever takes it away kills it: it is watched.
    let socket = socket.map_err(WarmError::Host)?;
    let runs = timeout(limits::START_TIME_MAX, wait_running(&process, &socket)).await;
    runs.unwrap_or(Err(WarmError::Silent))?;
    entry.change(|record| {
        let took = warm.asked.elapsed().as_micros();
        record.sandbox.start_us = Some(u64::try_from(took).unwrap_or(u64::MAX));
        // One that has ended since was done.
        if record.sandbox.state == SandboxState::Starting {
            record.sandbox.state = SandboxState::Running;
        }
    });
    Ok(entry.write(warm.durability).await?)
}

/// Why it has no work: what is too long for it is too long for every other machine too.
fn refused_or_gone(error: &AssignError) -> WarmError {
    match error.cause {
        SendError::TooLong { bytes } => WarmError::Refused(PoolRefusal {
            text: format!(
                "args and env: as JSON for a machine of a pool, with its name and socket, they have {bytes} bytes; \
                 allowed: {BYTES_MAX}"
            ),
            exit_code: exit::BAD_CONFIG,
        }),
        _ => WarmError::Gone,
    }
}

/// Waits until it runs, or has run.
async fn wait_running(process: &Process, socket: &AsyncFd<OwnedFd>) -> Result<(), WarmError> {
    loop {
        let mut guard = socket.readable().await.map_err(WarmError::Host)?;
        match process.news().map_err(WarmError::Machine)? {
            Some(News::Running | News::Ended(_)) => return Ok(()),
            Some(News::Closed) => return Err(WarmError::Lost),
            Some(News::Refused(refusal)) => return Err(WarmError::Refused(refusal)),
            None => guard.clear_ready(),
        }
    }
}

/// The streams of a sandbox that nobody is connected to: no input, and its log.
///
/// # Errors
/// The kernel's, with the file.
pub async fn to_log(agent: &Agent, id: &str) -> Result<Streams, WriteError> {
    let path = agent.folders.log(id);
    let lost = path.clone();
    let failed = |what, path| move |cause| WriteError { what, path, cause };
    let opened = spawn_blocking(move || {
        let log = monitor::open_log(&path).map_err(failed("make", path.clone()))?;
        let null: io::Result<File> = OpenOptions::new().read(true).open("/dev/null");
        let null = null.map_err(failed("open", "/dev/null".into()))?;
        let copy = log.try_clone().map_err(failed("open", path))?;
        Ok([null.into(), log.into(), copy.into()])
    });
    let opened = opened.await;
    opened.unwrap_or_else(|cause| Err(failed("make", lost)(io::Error::other(cause))))
}
