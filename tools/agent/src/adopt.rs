//! What an agent does before it serves: it finds what the one before it has left.
//!
//! | written down as | its process | then |
//! |---|---|---|
//! | running, paused | lives: id, start and name are as written | adopted |
//! | running, paused | is gone | ended; its status is not known |
//! | starting | whatever | nobody was told of it: it is killed, and nothing of it stays |
//! | ended | | as it is |

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::rc::Rc;

use lightv_api::agent::event::AgentHappening;
use lightv_api::agent::sandbox::{Sandbox, SandboxState};
use lightv_api::contract::instance::InstanceState;
use lightv_vmm::runtime_dir;
use rustix::io::Errno;
use rustix::process::Signal;
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::agent::Agent;
use crate::clock::unix_ms;
use crate::end::{self, leave_jail, remove_sockets};
use crate::folders::{DRAFT, Durability, read_json};
use crate::fork;
use crate::jail::remove_folder;
use crate::limits;
use crate::process::{Process, serves, serving};
use crate::refusal::chain;
use crate::sandboxes::{Entry, Record};
use crate::vm_api::VmApi;

/// A process cannot be looked at. Nothing was changed: another agent finds what this one has found.
#[derive(Debug, thiserror::Error)]
#[error(
    "Cannot watch process {pid} of sandbox {id}; this process may need more descriptors (ulimit -n)"
)]
pub struct AdoptError {
    /// Which sandbox.
    pub id: String,
    /// Its process.
    pub pid: u32,
    /// Why not.
    #[source]
    pub cause: io::Error,
}

/// Takes over what is there, and tells of it.
///
/// # Errors
/// [`AdoptError`].
pub async fn adopt_all(agent: &Rc<Agent>) -> Result<(), AdoptError> {
    let (mut adopted, mut reaped) = (Vec::new(), 0);
    for record in read_records(agent) {
        let id = record.sandbox.id.clone();
        if record.sandbox.state == SandboxState::Starting {
            reap(agent, &record).await?;
            reaped += 1;
            continue;
        }
        let entry = Rc::new(Entry::new(record, agent.folders.record(&id)));
        entry.announce();
        agent.sandboxes.insert(Rc::clone(&entry));
        if entry.has_ended() {
            continue;
        }
        match open(agent, &entry)? {
            Some(process) => {
                entry.set_process(Some(Rc::new(process)));
                adopted.push(entry);
            }
            None => note_dead(agent, &entry).await,
        }
    }
    remove_strange_logs(agent);
    remove_strange_sockets(agent);
    let count = adopted.len() as u64;
    let asked: Vec<_> = adopted
        .into_iter()
        .map(|entry| spawn_local(adopt(Rc::clone(agent), entry)))
        .collect();
    for task in asked {
        // A task of ours neither panics nor is cancelled.
        let _ = task.await;
    }
    agent.events.publish(AgentHappening::AgentStarted {
        adopted: count,
        reaped,
    });
    for entry in agent.sandboxes.all() {
        let has_just_ended = entry.has_ended() && entry.is_unwritten();
        if has_just_ended {
            end::tell(agent, &entry);
            if let Err(error) = entry.write(Durability::Agent).await {
                agent.warn(chain(&error));
            }
        }
    }
    Ok(())
}

/// The records; what is none is told of and left.
fn read_records(agent: &Agent) -> Vec<Record> {
    let mut records = Vec::new();
    let entries = fs::read_dir(agent.folders.sandboxes());
    for entry in entries.into_iter().flatten().flatten() {
        let path = entry.path();
        let ends_with = |end: &str| path.extension().is_some_and(|found| found == end);
        if ends_with(DRAFT) {
            // It was not whole when its writer was killed.
            let _ = fs::remove_file(&path);
            continue;
        }
        if !ends_with("json") {
            continue;
        }
        match read_json::<Record>(&path) {
            Ok(Some(record)) if agent.folders.record(&record.sandbox.id) == path => {
                records.push(record);
            }
            Ok(None) => {}
            Ok(Some(_)) => agent.warn(format!(
                "{} is passed over: it is the record of another sandbox",
                path.display()
            )),
            Err(error) => agent.warn(chain(&error)),
        }
    }
    records
}

/// The process of `entry`, if it is still the one that was written down.
fn open(agent: &Agent, entry: &Entry) -> Result<Option<Process>, AdoptError> {
    let Some(pid) = entry.process_id() else {
        return Ok(None);
    };
    let Some(process) = open_process(&entry.sandbox(), pid)? else {
        return Ok(None);
    };
    // Looked at when the descriptor is there: from here on it is this very process.
    let ticks = runtime_dir::start_ticks(pid);
    let is_same = ticks.is_some_and(|ticks| entry.has_started_at(ticks));
    let socket = agent.folders.vm_socket(entry.id());
    Ok((is_same && (serves(pid, &socket) || socket.exists())).then_some(process))
}

/// The process `pid`, if there is one.
fn open_process(sandbox: &Sandbox, pid: u32) -> Result<Option<Process>, AdoptError> {
    match Process::open_of(sandbox, pid) {
        Ok(process) => Ok(Some(process)),
        Err(cause) if cause.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(None),
        Err(cause) => Err(AdoptError {
            id: sandbox.id.clone(),
            pid,
            cause,
        }),
    }
}

/// Goes on with one that lives.
async fn adopt(agent: Rc<Agent>, entry: Rc<Entry>) {
    let socket = agent.folders.vm_socket(entry.id());
    let told = spawn_local({
        let socket = socket.clone();
        async move {
            let api = VmApi::at(&socket, limits::VM_ANSWER_TIME_MAX);
            api.end().await
        }
    });
    spawn_local(end::watch(Rc::clone(&agent), Rc::clone(&entry), Some(told)));
    let api = VmApi::at(&socket, limits::ADOPT_ANSWER_TIME_MAX);
    let state = match api.state().await {
        Ok(InstanceState::Paused) => SandboxState::Paused,
        Ok(_) => SandboxState::Running,
        Err(error) => {
            // It lives, whatever it does: it can be stopped.
            agent.warn(format!("sandbox {}: {}", entry.id(), chain(&error)));
            return;
        }
    };
    if entry.state() != state && !entry.has_ended() {
        entry.change(|record| record.sandbox.state = state);
    }
}

/// Notes the end of one that died while nobody looked. It is written down when the agent has said that it is here.
async fn note_dead(agent: &Agent, entry: &Entry) {
    let sandbox = entry.sandbox();
    remove_sockets(&agent.folders, &sandbox, None);
    leave_jail(agent, &sandbox).await;
    if let Some(pid) = sandbox.pid {
        remove_stale_record(agent, pid);
    }
    let reason = "it ended while no agent ran, so its status is not known";
    entry.change(|record| record.set_ended(unix_ms(), None, reason.to_owned()));
}

/// Takes away what a monitor said of itself, unless another one that runs says it.
fn remove_stale_record(agent: &Agent, pid: u32) {
    // Listing takes away those of processes that are gone.
    let running = runtime_dir::list().unwrap_or_default();
    if !running.iter().any(|record| record.pid == pid) {
        let _ = fs::remove_file(agent.folders.vm_record(pid));
    }
}

/// Ends a start that nobody was told of.
async fn reap(agent: &Agent, record: &Record) -> Result<(), AdoptError> {
    let id = &record.sandbox.id;
    let socket = agent.folders.vm_socket(id);
    // One of a pool was written down before it was given its work; its command line is its template's.
    let assigned = record.process_id().into_iter();
    for pid in serving(&socket).into_iter().chain(assigned) {
        let Some(process) = open_process(&record.sandbox, pid)? else {
            continue;
        };
        // From here on it is this very process.
        let ticks = runtime_dir::start_ticks(pid);
        let is_assigned = ticks.is_some() && ticks == record.start_ticks;
        if !serves(pid, &socket) && !is_assigned {
            continue;
        }
        // The second time for the keeper of a jail itself.
        for _ in 0..2 {
            if let Err(cause) = process.signal(Signal::KILL) {
                agent.warn(format!(
                    "Cannot end process {pid} of a start that failed: {cause}"
                ));
            }
            let over = timeout(limits::KILL_TIME_MAX, process.over());
            if over.await.is_ok() {
                break;
            }
        }
        let _ = process.reap();
        remove_stale_record(agent, pid);
    }
    remove_sockets(&agent.folders, &record.sandbox, None);
    fork::take_away(agent, id).await;
    leave_jail(agent, &record.sandbox).await;
    let _ = fs::remove_file(agent.folders.log(id));
    if let Err(cause) = fs::remove_file(agent.folders.record(id)) {
        agent.warn(format!(
            "Cannot remove {}: {cause}",
            agent.folders.record(id).display()
        ));
    }
    Ok(())
}

/// Takes away logs whose sandboxes are forgotten.
fn remove_strange_logs(agent: &Agent) {
    let known: BTreeSet<_> = agent
        .sandboxes
        .all()
        .iter()
        .map(|entry| agent.folders.log(entry.id()))
        .collect();
    let entries = fs::read_dir(agent.folders.logs()).into_iter().flatten();
    for entry in entries.flatten() {
        let path = entry.path();
        let is_log = path.extension().is_some_and(|end| end == "log");
        // A record that cannot be read keeps its log.
        let record = path
            .file_stem()
            .map(|id| agent.folders.record(&id.to_string_lossy()));
        if is_log && !known.contains(&path) && !record.is_some_and(|record| record.exists()) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Takes away sockets of a pool's machines that were killed while they were ready, and folders of jails whose sandboxes are
/// forgotten. What a machine listens on that lives stays: it may be of an agent with another state folder, or its record one that
/// cannot be read.
fn remove_strange_sockets(agent: &Agent) {
    let Ok(running) = runtime_dir::list() else {
        // Whose they are is looked for again at the next start.
        return;
    };
    let all = agent.sandboxes.all();
    let jails: BTreeSet<_> = all
        .iter()
        .map(|entry| agent.folders.jail(entry.id()))
        .chain(running.iter().map(|vm| agent.folders.jail(&vm.id)))
        .collect();
    let known: BTreeSet<_> = all
        .iter()
        .filter_map(|entry| entry.sandbox().vsock_socket)
        .chain(running.iter().map(|vm| agent.folders.pool_vsock(vm.pid)))
        .collect();
    let entries = fs::read_dir(agent.folders.runtime()).into_iter().flatten();
    for path in entries.flatten().map(|entry| entry.path()) {
        let pid = path.file_name().and_then(|name| {
            let name = name.to_str()?;
            name.strip_prefix("pool-")?
                .strip_suffix(".vsock")?
                .parse::<u32>()
                .ok()
        });
        let is_pools = pid.is_some_and(|pid| agent.folders.pool_vsock(pid) == path);
        if is_pools && !known.contains(&path) {
            let _ = fs::remove_file(path);
        } else if agent.folders.is_jail(&path) && !jails.contains(&path) {
            // It is looked for again at the next start.
            let _ = remove_folder(&path);
        }
    }
}
