//! Pools: for an image, a template and machines that are ready (docs/pool.md).
//!
//! ```text
//!   keep --Template::start--> template --fork--> Starting --> Ready, in `ready` --take--> a sandbox
//!    ^                                                            |
//!    +--- the image's name leads elsewhere, or the pool goes: ----+--> dropped, which ends them
//! ```
//!
//! A pool is kept by a task of its own. Machines that are ready and templates end with the agent, by their sockets.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use lightv_api::agent::pool::{Pool as PoolInfo, PoolSpec};
use lightv_pool::{Bounds, Policy, Ready};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::{Mutex, Notify};

use crate::limits;

/// The file of a socket that a machine listens on which is killed: it does not take it away itself.
#[derive(Debug)]
pub struct SocketFile(Option<PathBuf>);

impl SocketFile {
    /// That at `path`, if there is one.
    #[must_use]
    pub const fn at(path: Option<PathBuf>) -> Self {
        Self(path)
    }

    /// Leaves it to somebody else.
    fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // One that was not made yet is not made any more.
            let _ = fs::remove_file(path);
        }
    }
}

/// Why an agent that starts sandboxes in jails has no pools.
pub const NO_POOLS: &str = "Machines of a pool cannot be in jails, and this agent starts sandboxes in jails alone (--jail); start them without a pool.";

/// A machine that is ready. Dropped, it ends, and then its socket goes.
#[derive(Debug)]
pub struct Idle {
    /// The machine.
    pub ready: Ready,
    /// Where it listens for vsock.
    pub vsock: SocketFile,
}

impl Idle {
    /// Itself, to be given work; its socket is its sandbox's from now on.
    fn take(self) -> Ready {
        self.vsock.leave();
        self.ready
    }

    /// Whether it has ended.
    fn is_over(&self) -> bool {
        // It says nothing before it is given work: only an end makes it readable.
        let mut fds = [PollFd::new(&self.ready, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0)
    }
}

/// A pool.
#[derive(Debug)]
pub struct Pool {
    pub(crate) image: String,
    /// Since when demand is looked at.
    began: Instant,
    pub(crate) spec: RefCell<PoolSpec>,
    policy: RefCell<Policy>,
    /// What machines are made of; empty while there is no template.
    pub(crate) digest: RefCell<String>,
    pub(crate) ready: RefCell<VecDeque<Idle>>,
    pub(crate) starting: Cell<u32>,
    served: Cell<u64>,
    missed: Cell<u64>,
    pub(crate) template_pid: Cell<Option<u32>>,
    pub(crate) fault: RefCell<Option<String>>,
    /// No machine is ordered before that.
    pub(crate) rests_until: Cell<Option<Instant>>,
    pub(crate) wake: Notify,
    pub(crate) is_over: Cell<bool>,
}

/// All pools, by the name of their image.
#[derive(Debug, Default)]
pub struct Pools(RefCell<BTreeMap<String, Rc<Pool>>>, Mutex<()>);

impl Pools {
    /// Held by whoever changes what is written down.
    #[must_use]
    pub const fn changing(&self) -> &Mutex<()> {
        &self.1
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// That of `image`.
    #[must_use]
    pub fn find(&self, image: &str) -> Option<Rc<Pool>> {
        self.0.borrow().get(image).cloned()
    }

    /// All.
    #[must_use]
    pub fn all(&self) -> Vec<Rc<Pool>> {
        self.0.borrow().values().cloned().collect()
    }

    /// What each is to be, as it is written down.
    #[must_use]
    pub fn specs(&self) -> BTreeMap<String, PoolSpec> {
        let pools = self.0.borrow();
        let specs = pools.iter();
        specs
            .map(|(image, pool)| (image.clone(), pool.spec.borrow().clone()))
            .collect()
    }

    /// Changes that of `image`; gives it if it is new, to be kept.
    #[must_use]
    pub fn set(&self, image: &str, spec: PoolSpec) -> Option<Rc<Pool>> {
        if let Some(pool) = self.find(image) {
            pool.policy.borrow_mut().set_bounds(bounds(&spec));
            *pool.spec.borrow_mut() = spec;
            pool.wake.notify_one();
            return None;
        }
        let pool = Rc::new(Pool {
            image: image.to_owned(),
            began: Instant::now(),
            policy: RefCell::new(Policy::new(bounds(&spec))),
            spec: RefCell::new(spec),
            digest: RefCell::default(),
            ready: RefCell::default(),
            starting: Cell::new(0),
            served: Cell::new(0),
            missed: Cell::new(0),
            template_pid: Cell::new(None),
            fault: RefCell::default(),
            rests_until: Cell::new(None),
            wake: Notify::new(),
            is_over: Cell::new(false),
        });
        let known = image.to_owned();
        self.0.borrow_mut().insert(known, Rc::clone(&pool));
        Some(pool)
    }

    /// Ends that of `image`, with its template and what is ready; whether there was one.
    #[must_use]
    pub fn remove(&self, image: &str) -> bool {
        let removed = self.0.borrow_mut().remove(image);
        if let Some(pool) = &removed {
            pool.is_over.set(true);
            pool.wake.notify_one();
        }
        removed.is_some()
    }

    /// A machine made of `digest`, if one is ready; `image` is how it was named. What is asked for is noted.
    #[must_use]
    pub fn take(&self, digest: &str) -> Option<Ready> {
        let pools = self.0.borrow();
        let same = pools
            .values()
            .find(|pool| *pool.digest.borrow() == digest)?;
        same.take()
    }

    /// Whether a machine made of `digest` is ready.
    #[must_use]
    pub fn has_ready(&self, digest: &str) -> bool {
        let pools = self.0.borrow();
        let mut same = pools
            .values()
            .filter(|pool| *pool.digest.borrow() == digest);
        same.any(|pool| !pool.ready.borrow().is_empty())
    }

    /// Looks whether names lead where they did.
    pub fn wake_all(&self) {
        for pool in self.0.borrow().values() {
            pool.wake.notify_one();
        }
    }
}

const fn bounds(spec: &PoolSpec) -> Bounds {
    Bounds {
        min: spec.min,
        max: spec.max,
    }
}

impl Pool {
    /// As clients see it.
    #[must_use]
    pub fn info(&self) -> PoolInfo {
        let spec = self.spec.borrow();
        PoolInfo {
            image: self.image.clone(),
            digest: self.digest.borrow().clone(),
            min: spec.min,
            max: spec.max,
            ready: u32::try_from(self.ready.borrow().len()).unwrap_or(u32::MAX),
            target: self.target(),
            starting: self.starting.get(),
            served: self.served.get(),
            missed: self.missed.get(),
            template_pid: self.template_pid.get(),
            fault: self.fault.borrow().clone(),
        }
    }

    /// How many should be ready now.
    pub(crate) fn target(&self) -> u32 {
        self.policy.borrow_mut().on_tick(self.began.elapsed())
    }

    fn take(&self) -> Option<Ready> {
        let mut all = self.ready.borrow_mut();
        // One that has ended a moment ago is nobody's.
        while all.front().is_some_and(Idle::is_over) {
            all.pop_front();
        }
        let ready = all.pop_front().map(Idle::take);
        drop(all);
        let count = match ready {
            Some(_) => &self.served,
            None => &self.missed,
        };
        count.set(count.get() + 1);
        let now = self.began.elapsed();
        self.policy.borrow_mut().on_request(now, ready.is_some());
        self.wake.notify_one();
        ready
    }

    pub(crate) fn rest(&self, fault: String) {
        *self.fault.borrow_mut() = Some(fault);
        self.rests_until
            .set(Some(Instant::now() + limits::POOL_REST));
    }

    pub(crate) fn has_made(&self) {
        self.starting.set(self.starting.get().saturating_sub(1));
        self.wake.notify_one();
    }

    /// Forgets machines that have ended while they were ready.
    pub(crate) fn drop_dead(&self) {
        self.ready.borrow_mut().retain(|machine| !machine.is_over());
    }
}
