//! How a sandbox ends: seen, told, stopped, forgotten.

use std::fs;
use std::rc::Rc;
use std::time::{Duration, Instant};

use lightv_api::agent::event::AgentHappening;
use lightv_api::agent::sandbox::{Sandbox, SandboxState};
use lightv_api::exit;
use lightv_launch::monitor::last_message;
use rustix::process::Signal;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use crate::agent::Agent;
use crate::clock::unix_ms;
use crate::folders::{Durability, Folders};
use crate::jail::remove_folder;
use crate::limits;
use crate::process::ProcessEnd;
use crate::refusal::{Refusal, chain};
use crate::sandboxes::Entry;
use crate::vm_api::VmApi;

/// The status of a process that SIGKILL has ended.
const KILLED: u8 = exit::by_signal(9);

/// An end that a monitor itself tells of: its exit status, and why.
pub type Told = JoinHandle<Option<(u8, String)>>;

/// Waits for the end of the process of `entry`, and writes it down. `told` says how one has ended that is not our child.
pub async fn watch(agent: Rc<Agent>, entry: Rc<Entry>, told: Option<Told>) {
    let Some(process) = entry.process() else {
        return;
    };
    process.over().await;
    // While nobody has waited for it no other process comes to its id.
    remove_sockets(&agent.folders, &entry.sandbox(), Some(process.pid()));
    leave_jail(&agent, &entry.sandbox()).await;
    let end = process.reap();
    let told = match told {
        // Its connection has ended with it.
        Some(told) => timeout(limits::TOLD_TIME_MAX, told).await.ok(),
        None => None,
    };
    let told = told.and_then(Result::ok).flatten();
    entry.set_process(None);
    let (exit_code, reason) = describe_end(&agent, &entry, (end, told));
    entry.change(|record| record.set_ended(unix_ms(), exit_code, reason));
    // Whoever starts it looks at that, before anybody is told of it.
    if entry.is_announced() {
        finish(&agent, &entry).await;
    }
}

/// Tells of an end, and writes it down, but for a run's.
pub async fn finish(agent: &Rc<Agent>, entry: &Entry) {
    tell(agent, entry);
    if entry.is_run() {
        return;
    }
    write(agent, entry).await;
    forget_oldest(agent).await;
}

/// Tells of an end.
pub fn tell(agent: &Agent, entry: &Entry) {
    let sandbox = entry.sandbox();
    agent.events.publish(AgentHappening::Ended {
        sandbox: sandbox.id,
        exit_code: sandbox.exit_code,
        reason: sandbox.end_reason.unwrap_or_default(),
    });
}

/// Writes an end down. A host that crashes ends all sandboxes: nothing needs a sync.
async fn write(agent: &Agent, entry: &Entry) {
    if let Err(error) = entry.write(Durability::Agent).await {
        // It is tried again; until then a new agent would say that it does not know the status.
        agent.warn(chain(&error));
    }
}

async fn forget_oldest(agent: &Rc<Agent>) {
    while let Some(entry) = agent.sandboxes.oldest_ended(limits::ENDED_KEPT) {
        if !entry.begin_going() {
            return;
        }
        forget(agent, &entry).await;
    }
}

/// The exit status and why.
fn describe_end(
    agent: &Agent,
    entry: &Entry,
    (end, told): (ProcessEnd, Option<(u8, String)>),
) -> (Option<u8>, String) {
    match (end, told) {
        (ProcessEnd::Unknown, Some((status, reason))) => (Some(status), reason),
        (ProcessEnd::Unknown, None) => {
            let reason = "its status is not known: the agent that started it has ended before it";
            (None, reason.to_owned())
        }
        (ProcessEnd::Killed(signal), _) => (
            end.exit_code(),
            format!("its process was killed by signal {signal}"),
        ),
        // What its keeper ends with when the process in the jail was killed; no machine ends so by itself.
        (ProcessEnd::Exited(status), _) if entry.sandbox().jailed && status == KILLED => {
            let number = Signal::KILL.as_raw();
            let reason = format!("its process was killed by signal {number}");
            (Some(status), reason)
        }
        (ProcessEnd::Exited(status), _) => {
            let message = match status {
                0 | 2..=127 => None,
                _ => last_message(&agent.folders.log(entry.id())),
            };
            let plain = || format!("it ended with status {status}");
            (Some(status), message.unwrap_or_else(plain))
        }
    }
}

/// Takes away what a monitor that was killed leaves: its sockets, and what it said of itself.
pub fn remove_sockets(folders: &Folders, sandbox: &Sandbox, pid: Option<u32>) {
    let record = pid.map(|pid| folders.vm_record(pid));
    let sockets = [sandbox.api_socket.clone(), sandbox.vsock_socket.clone()];
    for path in sockets.into_iter().flatten().chain(record) {
        // One that has ended in order has left nothing.
        let _ = fs::remove_file(path);
    }
}

/// Takes away the folder of its jail, if it was in one.
pub async fn leave_jail(agent: &Agent, sandbox: &Sandbox) {
    if !sandbox.jailed {
        return;
    }
    let folder = agent.folders.jail(&sandbox.id);
    let path = folder.clone();
    // A monitor that was taken over may have filled it.
    let removed = spawn_blocking(move || remove_folder(&path)).await;
    if let Ok(Err(cause)) = removed {
        agent.warn(format!("Cannot remove {}: {cause}", folder.display()));
    }
}

/// Takes away what is left of a sandbox that has ended: its log, its record, and what is known of it.
pub async fn forget(agent: &Rc<Agent>, entry: &Rc<Entry>) {
    let sandbox = entry.sandbox();
    remove_sockets(&agent.folders, &sandbox, sandbox.pid);
    leave_jail(agent, &sandbox).await;
    // One that cannot be removed is at the next start of the agent.
    let _ = fs::remove_file(agent.folders.log(entry.id()));
    if let Err(error) = entry.remove_file().await {
        agent.warn(chain(&error));
    }
    agent.sandboxes.remove(entry.id());
}

/// Asks a sandbox to end, and ends it when it has not after `time`: by Ctrl-Alt-Del where its guest hears of it, then by
/// SIGTERM, then by SIGKILL.
///
/// # Errors
/// It starts yet, or cannot be ended.
pub async fn stop(agent: &Rc<Agent>, entry: &Rc<Entry>, time: Duration) -> Result<(), Refusal> {
    if entry.state() == SandboxState::Starting {
        return Err(still_starts(entry));
    }
    let began = Instant::now();
    let socket = agent.folders.vm_socket(entry.id());
    let api = VmApi::at(&socket, limits::PRESS_TIME_MAX);
    let is_running = entry.state() == SandboxState::Running;
    if is_running && !time.is_zero() && api.press_ctrl_alt_del().await.is_ok() {
        entry.wait(time / 2, Entry::has_ended).await;
    }
    let left = time.saturating_sub(began.elapsed());
    for (signal, patience) in [(Signal::TERM, left), (Signal::KILL, limits::KILL_TIME_MAX)] {
        if signal == Signal::TERM && time.is_zero() {
            continue;
        }
        let Some(process) = entry.process() else {
            break;
        };
        process.signal(signal).map_err(|cause| {
            Refusal::unavailable(format!(
                "Cannot signal sandbox {} (process {}): {cause}",
                entry.id(),
                process.pid()
            ))
        })?;
        if entry.wait(patience, Entry::has_ended).await {
            break;
        }
    }
    if entry.wait(Duration::ZERO, Entry::has_ended).await {
        return Ok(());
    }
    Err(Refusal::unavailable(format!(
        "The process of sandbox {} has not ended {} s after SIGKILL; the host may be short of memory.",
        entry.id(),
        limits::KILL_TIME_MAX.as_secs()
    )))
}

/// Ends a sandbox at once, if it runs, and forgets it.
///
/// # Errors
/// It starts yet, or cannot be ended.
pub async fn delete(agent: &Rc<Agent>, entry: &Rc<Entry>) -> Result<(), Refusal> {
    if entry.state() == SandboxState::Starting {
        return Err(still_starts(entry));
    }
    if !entry.begin_going() {
        let text = format!("Sandbox {} is being deleted already.", entry.id());
        return Err(Refusal::conflict(text));
    }
    if let Err(refusal) = stop(agent, entry, Duration::ZERO).await {
        entry.cancel_going();
        return Err(refusal);
    }
    forget(agent, entry).await;
    tell_deleted(agent, entry);
    Ok(())
}

/// Tells that it is forgotten.
pub fn tell_deleted(agent: &Agent, entry: &Entry) {
    let sandbox = entry.id().to_owned();
    agent.events.publish(AgentHappening::Deleted { sandbox });
}

fn still_starts(entry: &Entry) -> Refusal {
    let id = entry.id();
    Refusal::conflict(format!(
        "Sandbox {id} is being started; wait until it runs."
    ))
}
