//! Sandboxes that begin where another one is now.
//!
//! ```text
//!   process without a machine -> source: memory frozen -> process: loads, goes on -> written down, answered
//! ```

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use lightv_api::agent::sandbox::{ForkSandboxSpec, Sandbox, SandboxState};
use lightv_api::contract::net::NetworkOverride;
use lightv_api::contract::snapshot::{ForkSpec, SnapshotLoad, VsockOverride};
use tokio::net::UnixStream;

use crate::agent::Agent;
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
    let record = Record {
        sandbox,
        start_ticks: None,
    };
    let file = agent.folders.record(&record.sandbox.id);
    let entry = Rc::new(Entry::new(record, file));
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
    let passage = Passage::new(agent, entry.id());
    let spec = ForkSpec {
        snapshot_path: passage.state.clone(),
        mem_socket_path: passage.memory.clone(),
        clones: 1,
    };
    let (from, to) = [source, entry]
        .map(|it| agent.folders.vm_socket(it.id()))
        .into();
    let patience = limits::VM_ANSWER_TIME_MAX;
    VmApi::at(&from, patience).fork(&spec).await?;
    let load = SnapshotLoad {
        network_overrides: nets,
        vsock_override: vsock.map(|uds_path| VsockOverride { uds_path }),
        ..SnapshotLoad::of_fork(passage.state.clone(), passage.memory.clone())
    };
    let loaded = VmApi::at(&to, patience).load(&load).await;
    if loaded.is_err() {
        // Frozen memory waits for nobody then. It may be gone already.
        drop(UnixStream::connect(&passage.memory).await);
    }
    loaded?;
    start::acknowledge(entry, asked).await
}

/// How state and memory come from one to the other.
struct Passage {
    state: PathBuf,
    memory: PathBuf,
}

impl Passage {
    fn new(agent: &Agent, id: &str) -> Self {
        let path = |end: &str| agent.folders.runtime().join(format!("fork-{id}.{end}"));
        Self {
            state: path("state"),
            memory: path("memory.sock"),
        }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        // The new one has it open. The socket is the frozen memory's to take away.
        let _ = std::fs::remove_file(&self.state);
    }
}
