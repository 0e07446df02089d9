//! The sandboxes: each with what is written down of it, its process, and who waits for it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use lightv_api::agent::host::AgentCounts;
use lightv_api::agent::sandbox::{Sandbox, SandboxState};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use crate::folders::{Durability, WriteError, write_json};
use crate::process::Process;

/// What is written down of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// As clients see it.
    #[serde(flatten)]
    pub sandbox: Sandbox,
    /// When its process started, in clock ticks since the host's boot: another process of the same id is told apart.
    #[serde(default)]
    pub start_ticks: Option<u64>,
    /// The process that stays outside of its jail, whose start that is then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<u32>,
}

impl Record {
    /// One that has no process yet.
    #[must_use]
    pub const fn new(sandbox: Sandbox) -> Self {
        Self {
            sandbox,
            start_ticks: None,
            keeper: None,
        }
    }

    /// The process whose end is that of the sandbox.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.keeper.or(self.sandbox.pid)
    }

    /// Whether its process is gone.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.sandbox.state == SandboxState::Ended
    }

    /// Says that it has ended.
    pub fn set_ended(&mut self, at_unix_ms: u64, exit_code: Option<u8>, reason: String) {
        let sandbox = &mut self.sandbox;
        sandbox.state = SandboxState::Ended;
        sandbox.pid = None;
        sandbox.ended_unix_ms = Some(at_unix_ms);
        sandbox.exit_code = exit_code;
        sandbox.end_reason = Some(reason);
        self.start_ticks = None;
        self.keeper = None;
    }
}

/// A sandbox.
#[derive(Debug)]
pub struct Entry {
    id: String,
    /// Its record's file.
    file: PathBuf,
    record: RefCell<Record>,
    process: RefCell<Option<Rc<Process>>>,
    changed: watch::Sender<()>,
    writing: Mutex<()>,
    /// What is on the disk is older.
    is_unwritten: Cell<bool>,
    /// Somebody is taking it away.
    is_going: Cell<bool>,
    /// Clients have been told that it runs, or are about to be: so they are told of its end.
    is_announced: Cell<bool>,
    /// It is a run's: it is forgotten at its end, so that is not written down.
    is_run: Cell<bool>,
}

impl Entry {
    /// One that is written down in `file`.
    #[must_use]
    pub fn new(record: Record, file: PathBuf) -> Self {
        Self {
            id: record.sandbox.id.clone(),
            file,
            record: RefCell::new(record),
            process: RefCell::default(),
            changed: watch::Sender::new(()),
            writing: Mutex::new(()),
            is_unwritten: Cell::new(false),
            is_going: Cell::new(false),
            is_announced: Cell::new(false),
            is_run: Cell::new(false),
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// As clients see it.
    #[must_use]
    pub fn sandbox(&self) -> Sandbox {
        self.record.borrow().sandbox.clone()
    }

    /// The process whose end is its end, as it is written down.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.record.borrow().process_id()
    }

    /// What it does.
    #[must_use]
    pub fn state(&self) -> SandboxState {
        self.record.borrow().sandbox.state
    }

    /// Whether its process is gone.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.record.borrow().has_ended()
    }

    /// Clients are told of it.
    pub fn announce(&self) {
        self.is_announced.set(true);
    }

    /// The same of a run, of which nothing is remembered.
    pub fn announce_run(&self) {
        self.is_run.set(true);
        self.announce();
    }

    /// Whether it is a run, of which nothing is remembered.
    #[must_use]
    pub fn is_run(&self) -> bool {
        self.is_run.get()
    }

    /// Whether clients have been told of it.
    #[must_use]
    pub fn is_announced(&self) -> bool {
        self.is_announced.get()
    }

    /// Whether its process, as it is written down, started at `ticks`.
    #[must_use]
    pub fn has_started_at(&self, ticks: u64) -> bool {
        self.record.borrow().start_ticks == Some(ticks)
    }

    /// Its process, while there is one.
    #[must_use]
    pub fn process(&self) -> Option<Rc<Process>> {
        self.process.borrow().clone()
    }

    /// Sets its process.
    pub fn set_process(&self, process: Option<Rc<Process>>) {
        *self.process.borrow_mut() = process;
    }

    /// Changes it, and tells those who wait. Nothing is written.
    pub fn change(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.record.borrow_mut());
        self.is_unwritten.set(true);
        self.changed.send_replace(());
    }

    /// Writes it down. What is changed while that goes on is written at the next call.
    ///
    /// # Errors
    /// [`WriteError`]: it is tried again by whoever looks for [`is_unwritten`](Self::is_unwritten).
    pub async fn write(&self, durability: Durability) -> Result<(), WriteError> {
        let _turn = self.writing.lock().await;
        // It is about to be removed; if that fails, it is written later.
        if self.is_going.get() {
            return Ok(());
        }
        self.is_unwritten.set(false);
        let record = self.record.borrow().clone();
        let file = self.file.clone();
        let written = tokio::task::spawn_blocking(move || write_json(&file, &record, durability));
        let written = written.await.unwrap_or_else(|cause| {
            Err(WriteError {
                what: "write",
                path: self.file.clone(),
                cause: io::Error::other(cause),
            })
        });
        if written.is_err() {
            self.is_unwritten.set(true);
        }
        written
    }

    /// Whether something has changed since it was written.
    #[must_use]
    pub fn is_unwritten(&self) -> bool {
        self.is_unwritten.get() && !self.is_going.get()
    }

    /// Takes it away from others; whether nobody else has.
    #[must_use]
    pub fn begin_going(&self) -> bool {
        !self.is_going.replace(true)
    }

    /// Nobody takes it away any more.
    pub fn cancel_going(&self) {
        self.is_going.set(false);
    }

    /// Waits until nobody writes it, and removes what is written.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn remove_file(&self) -> Result<(), WriteError> {
        let _turn = self.writing.lock().await;
        match std::fs::remove_file(&self.file) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(WriteError {
                what: "remove",
                path: self.file.clone(),
                cause,
            }),
            _ => Ok(()),
        }
    }

    /// Waits until `is_so`, but not longer than `patience`; whether it is.
    pub async fn wait(&self, patience: Duration, is_so: impl Fn(&Self) -> bool) -> bool {
        let mut changed = self.changed.subscribe();
        let waited = timeout(patience, async {
            while !is_so(self) {
                // The sender lives as long as this.
                let _ = changed.changed().await;
            }
        });
        waited.await.is_ok()
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Sandboxes(RefCell<BTreeMap<String, Rc<Entry>>>);

impl Sandboxes {
    /// Adds one.
    pub fn insert(&self, entry: Rc<Entry>) {
        self.0.borrow_mut().insert(entry.id.clone(), entry);
    }

    /// Forgets one.
    pub fn remove(&self, id: &str) {
        self.0.borrow_mut().remove(id);
    }

    /// All, by id.
    #[must_use]
    pub fn all(&self) -> Vec<Rc<Entry>> {
        self.0.borrow().values().cloned().collect()
    }

    /// Whether there is one of this id.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        self.0.borrow().contains_key(id)
    }

    /// The one that `name` means: an id, or a name; of several with the same name the one that has not ended, else the last.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Rc<Entry>> {
        let entries = self.0.borrow();
        if let Some(entry) = entries.get(name) {
            return Some(Rc::clone(entry));
        }
        let named = entries.values().filter(|entry| {
            let record = entry.record.borrow();
            record.sandbox.name.as_deref() == Some(name)
        });
        named
            .max_by_key(|entry| {
                let record = entry.record.borrow();
                let is_alive = record.sandbox.state != SandboxState::Ended;
                (is_alive, record.sandbox.created_unix_ms)
            })
            .cloned()
    }

    /// Whether one that has not ended is called `name`.
    #[must_use]
    pub fn is_taken(&self, name: &str) -> bool {
        self.find(name).is_some_and(|entry| !entry.has_ended())
    }

    /// How many there are of each kind; the other fields are 0.
    #[must_use]
    pub fn counts(&self) -> AgentCounts {
        let mut counts = AgentCounts::default();
        for entry in self.0.borrow().values() {
            let record = entry.record.borrow();
            *match record.sandbox.state {
                SandboxState::Starting => &mut counts.starting,
                SandboxState::Running => &mut counts.running,
                SandboxState::Paused => &mut counts.paused,
                SandboxState::Ended => &mut counts.ended,
            } += 1;
            if record.sandbox.state != SandboxState::Ended {
                counts.memory_mib += record.sandbox.memory_mib;
            }
        }
        counts
    }

    /// The one that has ended first, if there are more than `kept` of them.
    #[must_use]
    pub fn oldest_ended(&self, kept: usize) -> Option<Rc<Entry>> {
        let entries = self.0.borrow();
        let ended = || entries.values().filter(|entry| entry.has_ended());
        if ended().count() <= kept {
            return None;
        }
        let when = |entry: &&Rc<Entry>| entry.record.borrow().sandbox.ended_unix_ms;
        ended().min_by_key(when).cloned()
    }
}
