//! The agent: what it owns, and what it may.

use std::cell::{Cell, RefCell};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use lightv_api::agent::host::{AgentInfo, AgentLimits};
use tokio::sync::Semaphore;

use crate::answer::AnswerBytes;
use crate::clock::unix_ms;
use crate::events::Feed;
use crate::figures::Figures;
use crate::folders::Folders;
use crate::host;
use crate::images::Images;
use crate::jail::Jails;
use crate::limits;
use crate::meter::Meter;
use crate::pools::Pools;
use crate::refusal::Refusal;
use crate::sandboxes::Sandboxes;

/// What the operator can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `lightv-vmm`.
    pub monitor: PathBuf,
    /// Sandboxes that have not ended.
    pub sandboxes_max: u64,
    /// Guest memory of those, in MiB.
    pub memory_mib_max: Option<u64>,
    /// Memory of the host that is left alone, in MiB.
    pub kept_memory_mib: u64,
    /// Requests that are being carried out.
    pub requests_max: u64,
    /// Machines that all pools together may keep ready.
    pub ready_max: u64,
    /// Programs that run in guests.
    pub programs_max: u64,
    /// Connections.
    pub connections_max: u64,
    /// Bytes of a log, in MiB.
    pub log_mib_max: u64,
    /// Jails of sandboxes, if they are in jails.
    pub jails: Option<Jails>,
}

/// The agent. Everything is done on one thread, but for what waits for a disk.
#[derive(Debug)]
pub struct Agent {
    /// What the operator wants.
    pub settings: Settings,
    /// Where things are.
    pub folders: Folders,
    /// The images.
    pub images: Images,
    /// The sandboxes.
    pub sandboxes: Sandboxes,
    /// The pools.
    pub pools: Pools,
    /// What happens.
    pub events: Feed,
    /// What is counted.
    pub figures: Figures,
    /// What sandboxes take of the host.
    pub meter: Meter,
    /// Starts that go on at the same time.
    pub starts: Semaphore,
    /// Bytes of long answers that their clients have not taken.
    pub answers: AnswerBytes,
    requests: Cell<u64>,
    programs: Cell<u64>,
    started_unix_ms: u64,
    started: Instant,
    /// The run is over: no more sandboxes are started.
    is_ending: Cell<bool>,
    /// Why something could not be written down, which is tried again.
    last_warning: RefCell<String>,
}

/// A request that is being carried out, or a program that runs; its place is free when this is dropped.
#[derive(Debug)]
pub struct Place {
    agent: Rc<Agent>,
    count: fn(&Agent) -> &Cell<u64>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let count = (self.count)(&self.agent);
        count.set(count.get().saturating_sub(1));
    }
}

impl Agent {
    /// One with these settings, folders and images, and no sandbox yet.
    #[must_use]
    pub fn new(settings: Settings, folders: Folders, images: Images) -> Self {
        Self {
            settings,
            folders,
            images,
            sandboxes: Sandboxes::default(),
            pools: Pools::default(),
            events: Feed::default(),
            figures: Figures::default(),
            meter: Meter::default(),
            starts: Semaphore::new(host::cpus() * limits::STARTS_PER_CPU),
            answers: AnswerBytes::default(),
            requests: Cell::new(0),
            programs: Cell::new(0),
            started_unix_ms: unix_ms(),
            started: Instant::now(),
            is_ending: Cell::new(false),
            last_warning: RefCell::default(),
        }
    }

    /// A place among the requests that are being carried out.
    ///
    /// # Errors
    /// 503: there are as many as there may be, or the agent ends.
    pub fn take_place(self: &Rc<Self>) -> Result<Place, Refusal> {
        let max = self.settings.requests_max;
        self.take(|agent| &agent.requests, max, || {
            Refusal::unavailable(format!(
                "{max} requests are being carried out; no more are allowed (--max-requests). Try again."
            ))
        })
    }

    /// A place among the programs that run in guests.
    ///
    /// # Errors
    /// 429: there are as many as there may be. 503: the agent ends.
    pub fn take_program(self: &Rc<Self>) -> Result<Place, Refusal> {
        let max = self.settings.programs_max;
        self.take(|agent| &agent.programs, max, || {
            Refusal::too_many(format!(
                "{max} programs of the agent run in guests; no more are allowed. Wait for the end of one."
            ))
        })
    }

    /// One more of those that `count` counts, of whom there may be `max`; with all of them taken, `full`.
    fn take(
        self: &Rc<Self>,
        count: fn(&Self) -> &Cell<u64>,
        max: u64,
        full: impl FnOnce() -> Refusal,
    ) -> Result<Place, Refusal> {
        if self.is_ending.get() {
            return Err(Refusal::unavailable("The agent is ending."));
        }
        let taken = count(self);
        if taken.get() >= max {
            return Err(full());
        }
        taken.set(taken.get() + 1);
        let agent = Rc::clone(self);
        Ok(Place { agent, count })
    }

    /// Whether starts wait for a processor: nothing else is to be begun.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.starts.available_permits() == 0
    }

    /// From here on no request is begun that changes anything.
    pub fn end(&self) {
        self.is_ending.set(true);
    }

    /// Requests that are being carried out.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// When it was started.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Says on standard error what went wrong that no request can be told of; the same thing once.
    pub fn warn(&self, text: String) {
        let mut last = self.last_warning.borrow_mut();
        if *last != text {
            // A full disk or a closed pipe there is no reason to end.
            let _ = writeln!(io::stderr(), "lightv-agent: {text}");
            *last = text;
        }
    }

    /// The answer to `GET /`.
    #[must_use]
    pub fn info(&self) -> AgentInfo {
        let mut counts = self.sandboxes.counts();
        counts.images = self.images.count() as u64;
        counts.pools = self.pools.count() as u64;
        counts.programs = self.programs.get();
        AgentInfo {
            lightv_version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_unix_ms: self.started_unix_ms,
            state_folder: self.folders.state().to_owned(),
            jails: self.settings.jails.is_some(),
            counts,
            limits: AgentLimits {
                sandboxes: self.settings.sandboxes_max,
                memory_mib: self.settings.memory_mib_max,
                requests: self.settings.requests_max,
                programs: self.settings.programs_max,
                connections: self.settings.connections_max,
            },
            host: host::info(),
        }
    }
}
