//! Sandboxes that begin where another one is now.
//!
//! ```text
//!   process without a machine -> source: memory frozen -> process: loads, goes on -> written down, answered
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use lightv_api::agent::sandbox::{ForkSandboxSpec, Sandbox, SandboxState};
use lightv_api::contract::net::NetworkOverride;
use lightv_api::contract::snapshot::{ForkSpec, SnapshotLoad, VsockOverride};

use crate::agent::Agent;
use crate::jail::{Jails, connect};
use crate::limits;
use crate::plan;
use crate::refusal::Refusal;
use crate::sandboxes::{Entry, Record};
use crate::start::{self, StartError};
use crate::vm_api::VmApi;

/// Starts a sandbox that is what `source` is now, and goes on by itself; `asked` is when the request had come.
///
/// # Errors
/// The refusal; nothing is left then, and the source goes on.
pub async fn fork(
    agent: &Rc<Agent>,
    source: &Rc<Entry>,
    spec: ForkSandboxSpec,
    asked: Instant,
) -> Result<Sandbox, Refusal> {
    let (found, id) = (source.sandbox(), source.id());
    if !matches!(found.state, SandboxState::Running | SandboxState::Paused) {
        let text = format!(
            "Sandbox {id} is {}; one that runs is forked.",
            found.state.name()
        );
        return Err(Refusal::conflict(text));
    }
    let nets = plan::prove_overrides(&spec.net)?;
    let sandbox = plan::prove_fork(agent, &found, spec)?;
    let file = agent.folders.record(&sandbox.id);
    let entry = Rc::new(Entry::new(Record::new(sandbox), file));
    // From here on it counts, and its name is taken.
    agent.sandboxes.insert(Rc::clone(&entry));
    let started = begin(agent, (source, &entry), nets, asked).await;
    start::tell(agent, &entry, started).await
}

async fn begin(
    agent: &Rc<Agent>,
    (source, entry): (&Entry, &Rc<Entry>),
    nets: Vec<NetworkOverride>,
    asked: Instant,
) -> Result<(), StartError> {
    // The semaphore is never closed; without a permit it would only be slower.
    let _turn = agent.starts.acquire().await.ok();
    let vsock = entry.sandbox().vsock_socket;
    // It is there before the source stands still.
    start::launch(agent, entry, vsock.clone(), Vec::new()).await?;
    let passage = Passage::new(agent, &source.sandbox(), &entry.sandbox());
    let spec = ForkSpec {
        snapshot_path: passage.from.state.clone(),
        mem_socket_path: passage.from.memory.clone(),
        clones: 1,
    };
    let (from, to) = [source, entry]
        .map(|it| agent.folders.vm_socket(it.id()))
        .into();
    let patience = limits::VM_ANSWER_TIME_MAX;
    VmApi::at(&from, patience).fork(&spec).await?;
    let opened = passage.open(agent.settings.jails.as_ref());
    let loaded = match opened {
        Ok(()) => load(&to, (&passage.to, nets, vsock)).await,
        Err(cause) => Err(StartError::Host {
            what: "bring a fork into its jail by",
            path: passage.from.state.clone(),
            cause,
        }),
    };
    if loaded.is_err() {
        // Frozen memory waits for nobody then. It may be gone already.
        drop(connect(&passage.from.memory).await);
    }
    loaded?;
    start::acknowledge(entry, asked).await
}

/// Has the monitor at `socket` go on with what came by `way`.
async fn load(
    socket: &Path,
    (way, nets, vsock): (&Way, Vec<NetworkOverride>, Option<PathBuf>),
) -> Result<(), StartError> {
    let Way { state, memory } = way.clone();
    let load = SnapshotLoad {
        network_overrides: nets,
        vsock_override: vsock.map(|uds_path| VsockOverride { uds_path }),
        ..SnapshotLoad::of_fork(state, memory)
    };
    let patience = limits::VM_ANSWER_TIME_MAX;
    Ok(VmApi::at(socket, patience).load(&load).await?)
}

/// Where a monitor has the state, and the socket of the memory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Way {
    state: PathBuf,
    memory: PathBuf,
}

impl Way {
    /// That of the fork `id` by `folder`.
    fn by(folder: &Path, id: &str) -> Self {
        let path = |end: &str| folder.join(format!("fork-{id}.{end}"));
        Self {
            state: path("state"),
            memory: path("memory.sock"),
        }
    }
}

/// How state and memory come from one to the other: by the runtime directory, but by their own folders for those in jails.
struct Passage {
    from: Way,
    to: Way,
}

/// Takes away what an agent that was killed has left in the runtime directory of the fork `id`: the folders of jails have the rest.
pub async fn take_away(agent: &Agent, id: &str) {
    let left = Way::by(agent.folders.runtime(), id);
    // Frozen memory waits for nobody then. Of any other start there is none.
    drop(connect(&left.memory).await);
    for path in [left.state, left.memory] {
        let _ = fs::remove_file(path);
    }
}

impl Passage {
    fn new(agent: &Agent, source: &Sandbox, fork: &Sandbox) -> Self {
        let way = |of: Option<&Sandbox>| match of {
            None => Way::by(agent.folders.runtime(), &fork.id),
            Some(of) => Way::by(&agent.folders.jail(&of.id), &fork.id),
        };
        let to = fork.jailed.then_some(fork);
        Self {
            // One that is in no jail reaches that of its fork.
            from: way(source.jailed.then_some(source).or(to)),
            to: way(to),
        }
    }

    /// Gives the fork what its source has made. Neither sees the folder of the other: these are other names of the same files.
    fn open(&self, jails: Option<&Jails>) -> io::Result<()> {
        let Some(jails) = jails else {
            return Ok(());
        };
        if self.from != self.to {
            fs::hard_link(&self.from.state, &self.to.state)?;
            fs::hard_link(&self.from.memory, &self.to.memory)?;
        }
        // Its source may be another user's.
        jails.give(&self.to.state)?;
        jails.give(&self.to.memory)
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        // The new one has it open. The socket is the frozen memory's to take away.
        let _ = fs::remove_file(&self.from.state);
        if self.from != self.to {
            let _ = fs::remove_file(&self.to.state);
            let _ = fs::remove_file(&self.to.memory);
        }
    }
}
