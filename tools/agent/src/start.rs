//! How a sandbox is started: a list of steps, each of which can be told apart from the next after a crash.
//!
//! ```text
//!   written down as starting  ->  process  ->  serves  ->  written down as running, synced  ->  answered
//!   '------------- an agent that finds it so takes it away ---------'  '----- ... adopts it -----'
//! ```

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::{Duration, Instant};

use lightv_api::agent::event::AgentHappening;
use lightv_api::agent::sandbox::{Sandbox, SandboxSpec, SandboxState};
use lightv_api::exit;
use lightv_launch::monitor::{self, EarlyEnd, Place};
use lightv_pool::Ready;
use lightv_vmm::runtime_dir;
use rustix::process::Signal;
use tokio::task::{spawn_blocking, spawn_local};

use crate::agent::Agent;
use crate::end;
use crate::figures::StartWay;
use crate::folders::{Durability, WriteError};
use crate::limits;
use crate::plan::Plan;
use crate::pools::NO_POOLS;
use crate::process::{Process, end_child};
use crate::refusal::{Refusal, chain};
use crate::sandboxes::{Entry, Record};
use crate::sys;
use crate::vm_api::VmApiError;
use crate::warm::{self, Warm, WarmError};

/// Why a sandbox was not started. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The host refuses.
    #[error("Cannot {what} {}", path.display())]
    Host {
        /// What was being done.
        what: &'static str,
        /// With which file or program.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// The monitor ended.
    #[error("The microVM was not started: {0}")]
    Ended(#[source] EarlyEnd),
    /// A machine of a pool does not run.
    #[error(transparent)]
    Warm(#[from] WarmError),
    /// It does not serve.
    #[error("The microVM was not started: it did not serve its API within {} s", limits::START_TIME_MAX.as_secs())]
    Silent,
    /// It cannot be written down.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A fork that a monitor refuses, of either sandbox.
    #[error(transparent)]
    Fork(#[from] VmApiError),
}

impl StartError {
    fn refusal(&self) -> Refusal {
        let text = match self {
            // Its source is its own words.
            Self::Ended(end) => format!("The microVM was not started: {}", end.message),
            other => chain(other),
        };
        match self {
            Self::Ended(end) if end.exit_code == exit::HOST_FAILURE => Refusal::unavailable(text),
            Self::Warm(WarmError::Refused(refusal)) if refusal.exit_code != exit::HOST_FAILURE => {
                Refusal::bad(text)
            }
            Self::Fork(VmApiError::Refused(_)) => Refusal::conflict(text),
            Self::Ended(_) => Refusal::bad(text),
            Self::Write(_) => Refusal::no_room(text),
            Self::Host { cause, .. } if is_full(cause) => Refusal::no_room(text),
            Self::Host { .. } | Self::Silent | Self::Warm(_) | Self::Fork(_) => {
                Refusal::unavailable(text)
            }
        }
    }
}

fn is_full(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Starts what `spec` asks for, and gives it as it runs; `asked` is when the request had come.
///
/// # Errors
/// The refusal; nothing is left then.
pub async fn create(
    agent: &Rc<Agent>,
    spec: SandboxSpec,
    asked: Instant,
) -> Result<Sandbox, Refusal> {
    let plan = Plan::prove(agent, spec)?;
    let ready = match plan.can_be_warm() {
        true => agent.pools.take(&plan.sandbox.digest),
        false => None,
    };
    if ready.is_none() && plan.must_be_warm() {
        return Err(not_warm(agent, &plan));
    }
    let record = Record::new(plan.sandbox.clone());
    let id = plan.sandbox.id.clone();
    let entry = Rc::new(Entry::new(record, agent.folders.record(&id)));
    // From here on it counts, and its name is taken.
    agent.sandboxes.insert(Rc::clone(&entry));
    let mut ready = ready;
    let started = loop {
        let Some(machine) = ready.take() else {
            break start(agent, &entry, &plan, asked).await;
        };
        match start_warm(agent, &entry, (&plan, machine), asked).await {
            Err(StartError::Warm(WarmError::Gone)) => {
                // It had ended, and nobody had seen it yet: another one may do.
                ready = agent.pools.take(&plan.sandbox.digest);
                if ready.is_none() && plan.must_be_warm() {
                    break Err(WarmError::Gone.into());
                }
            }
            started => break started,
        }
    };
    tell(agent, &entry, started).await
}

/// Says what became of a start, and takes away what is left of one that failed.
///
/// # Errors
/// The refusal.
pub async fn tell(
    agent: &Rc<Agent>,
    entry: &Rc<Entry>,
    started: Result<(), StartError>,
) -> Result<Sandbox, Refusal> {
    let sandbox = entry.id().to_owned();
    match started {
        Ok(()) => {
            entry.announce();
            let Sandbox { start_us, warm, .. } = entry.sandbox();
            let start_us = start_us.unwrap_or_default();
            agent.figures.note_start(StartWay::of(warm), start_us);
            agent.events.publish(AgentHappening::Created {
                sandbox,
                start_us,
                warm,
            });
            if entry.has_ended() {
                end::finish(agent, entry).await;
            }
            Ok(entry.sandbox())
        }
        Err(error) => {
            agent.figures.note_failure();
            discard(agent, entry).await;
            let reason = chain(&error);
            agent
                .events
                .publish(AgentHappening::Failed { sandbox, reason });
            Err(error.refusal())
        }
    }
}

/// Why there is no machine ready that must be.
fn not_warm(agent: &Agent, plan: &Plan) -> Refusal {
    let image = &plan.sandbox.image;
    if plan.sandbox.jailed {
        return Refusal::conflict(NO_POOLS);
    }
    if !plan.can_be_warm() {
        let text = "warm: a sandbox with networks of its own (net) comes from no pool.";
        return Refusal::bad(text);
    }
    let pools = agent.pools.all();
    let infos = pools.iter().map(|pool| pool.info());
    let mut same = infos.filter(|pool| pool.digest == plan.sandbox.digest || pool.image == *image);
    Refusal::unavailable(match same.next() {
        None => format!(
            "warm: there is no pool of the image {image:?}; make one by PUT /pools/{{image}}."
        ),
        Some(pool) => format!(
            "warm: the pool of {} has nothing ready{}. Try again.",
            pool.image,
            pool.fault
                .map_or_else(String::new, |fault| format!(": {fault}"))
        ),
    })
}

/// Starts it from a machine that is ready.
async fn start_warm(
    agent: &Rc<Agent>,
    entry: &Rc<Entry>,
    (plan, ready): (&Plan, Ready),
    asked: Instant,
) -> Result<(), StartError> {
    let streams = warm::to_log(agent, entry.id()).await?;
    let warm = Warm {
        plan,
        streams,
        durability: Durability::Host,
        asked,
    };
    let started = warm::start(agent, entry, ready, warm).await;
    started.map_err(|error| match error {
        WarmError::Write(error) => StartError::Write(error),
        error => StartError::Warm(error),
    })
}

async fn start(
    agent: &Rc<Agent>,
    entry: &Rc<Entry>,
    plan: &Plan,
    asked: Instant,
) -> Result<(), StartError> {
    // The semaphore is never closed; without a permit it would only be slower.
    let _turn = agent.starts.acquire().await.ok();
    let vsock = plan.sandbox.vsock_socket.clone();
    if let Some(jails) = &agent.settings.jails {
        let image = plan.image.path();
        jails.open_image(image).map_err(|cause| StartError::Host {
            what: "let the user of a jail read",
            path: image.to_owned(),
            cause,
        })?;
    }
    launch(agent, entry, vsock, plan.monitor_args()).await?;
    acknowledge(entry, asked).await
}

/// Starts the monitor of `entry`, whose vsock will be at `vsock`, with `args`, and waits until it serves.
///
/// # Errors
/// [`StartError`].
pub async fn launch(
    agent: &Rc<Agent>,
    entry: &Rc<Entry>,
    vsock: Option<PathBuf>,
    args: Vec<OsString>,
) -> Result<(), StartError> {
    entry.write(Durability::Agent).await?;
    let sandbox = entry.sandbox();
    let mut words = prepare_jail(agent, &sandbox)?;
    words.extend(args);
    let pid = spawn(agent, entry.id(), words).await?;
    let process = match Process::open_of(&sandbox, pid) {
        Ok(process) => Rc::new(process),
        Err(cause) => {
            // Descriptors are short. Nobody would see its end.
            let _ = spawn_blocking(move || end_child(pid)).await;
            return Err(StartError::Host {
                what: "watch the process of",
                path: agent.settings.monitor.clone(),
                cause,
            });
        }
    };
    entry.set_process(Some(process));
    entry.change(|record| {
        record.sandbox.pid = Some(pid);
        record.sandbox.warm = false;
        record.sandbox.vsock_socket = vsock;
        record.keeper = sandbox.jailed.then_some(pid);
        record.start_ticks = runtime_dir::start_ticks(pid);
    });
    spawn_local(end::watch(Rc::clone(agent), Rc::clone(entry), None));
    wait_served(agent, entry, pid).await
}

/// Makes the folder of the jail of `sandbox`, if it is to be in one; gives what its monitor is called with.
fn prepare_jail(agent: &Agent, sandbox: &Sandbox) -> Result<Vec<OsString>, StartError> {
    let Some(jails) = agent.settings.jails.as_ref().filter(|_| sandbox.jailed) else {
        return Ok(Vec::new());
    };
    let folder = agent.folders.jail(&sandbox.id);
    jails
        .make_folder(&folder)
        .map_err(|cause| StartError::Host {
            what: "make the folder of a jail,",
            path: folder.clone(),
            cause,
        })?;
    Ok(jails.monitor_args(&folder))
}

/// Writes down that it runs: then it may be answered.
///
/// # Errors
/// [`StartError::Write`].
pub async fn acknowledge(entry: &Entry, asked: Instant) -> Result<(), StartError> {
    entry.change(|record| {
        let took = asked.elapsed().as_micros();
        record.sandbox.start_us = Some(u64::try_from(took).unwrap_or(u64::MAX));
        if record.sandbox.state == SandboxState::Starting {
            record.sandbox.state = SandboxState::Running;
        }
    });
    entry.write(Durability::Host).await?;
    Ok(())
}

/// Starts the monitor, on a thread that may wait.
async fn spawn(agent: &Rc<Agent>, id: &str, args: Vec<OsString>) -> Result<u32, StartError> {
    let program = agent.settings.monitor.clone();
    let id = id.to_owned();
    let socket = agent.folders.vm_socket(&id);
    let log = agent.folders.log(&id);
    let spawned = spawn_blocking(move || {
        let place = Place {
            id: &id,
            socket: &socket,
            log: &log,
        };
        let command = monitor::command(&program, place, &args);
        let mut command = command.map_err(|cause| StartError::Host {
            what: "write",
            path: log.clone(),
            cause,
        })?;
        sys::in_own_session(&mut command);
        // It is waited for by its descriptor.
        let child = command.spawn().map_err(|cause| StartError::Host {
            what: "start",
            path: program,
            cause,
        })?;
        Ok(child.id())
    });
    spawned.await.unwrap_or_else(|cause| {
        Err(StartError::Host {
            what: "start",
            path: agent.settings.monitor.clone(),
            cause: io::Error::other(cause),
        })
    })
}

/// Waits until the monitor serves. A guest that was done before is no failure.
async fn wait_served(agent: &Rc<Agent>, entry: &Rc<Entry>, pid: u32) -> Result<(), StartError> {
    let began = Instant::now();
    while began.elapsed() < limits::START_TIME_MAX {
        if entry.has_ended() {
            let log = agent.folders.log(entry.id());
            let code = entry.sandbox().exit_code.unwrap_or(exit::FAILURE);
            let status = ExitStatus::from_raw(i32::from(code) << 8);
            return monitor::early_end(status, &log).map_err(StartError::Ended);
        }
        if let Some(listed) = monitor::listed(agent.folders.runtime(), pid, entry.id()) {
            // In a jail it is another one than the one that was started.
            entry.change(|record| {
                if !record.has_ended() {
                    record.sandbox.pid = Some(listed);
                }
            });
            return Ok(());
        }
        entry.wait(limits::START_POLL, Entry::has_ended).await;
    }
    Err(StartError::Silent)
}

/// Takes away a start that failed.
pub async fn discard(agent: &Rc<Agent>, entry: &Rc<Entry>) {
    let _ = entry.begin_going();
    if let Some(process) = entry.process() {
        // One that has ended does not get it.
        let _ = process.signal(Signal::KILL);
        if !entry.wait(limits::KILL_TIME_MAX, Entry::has_ended).await {
            // Its record stays as long as it does.
            let text = "its process has not ended after SIGKILL; it is taken away when it has";
            agent.warn(format!("sandbox {}: {text}", entry.id()));
            let (agent, entry) = (Rc::clone(agent), Rc::clone(entry));
            spawn_local(async move {
                entry.wait(Duration::MAX, Entry::has_ended).await;
                end::forget(&agent, &entry).await;
            });
            return;
        }
    }
    end::forget(agent, entry).await;
}
