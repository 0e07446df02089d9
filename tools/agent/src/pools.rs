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
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use lightv_api::agent::pool::{Pool as PoolInfo, PoolSpec};
use lightv_pool::{
    Bounds, MachineError, Options, Policy, Progress, Ready, Starting, Template, TemplateError,
    TemplateEvent,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, Notify};
use tokio::task::{spawn_blocking, spawn_local};
use tokio::time::{sleep, timeout};

use crate::agent::Agent;
use crate::host;
use crate::images::HeldImage;
use crate::limits;
use crate::race::race;
use crate::refusal::chain;
use crate::sys;

/// A pool.
#[derive(Debug)]
pub struct Pool {
    image: String,
    spec: RefCell<PoolSpec>,
    policy: RefCell<Policy>,
    /// What machines are made of; empty while there is no template.
    digest: RefCell<String>,
    ready: RefCell<VecDeque<Ready>>,
    starting: Cell<u32>,
    served: Cell<u64>,
    missed: Cell<u64>,
    template_pid: Cell<Option<u32>>,
    fault: RefCell<Option<String>>,
    /// No machine is ordered before.
    rests_until: Cell<Option<Instant>>,
    wake: Notify,
    is_over: Cell<bool>,
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

    /// Makes that of `image`, or changes it.
    pub fn set(&self, agent: &Rc<Agent>, image: &str, spec: PoolSpec) {
        if let Some(pool) = self.find(image) {
            pool.policy.borrow_mut().set_bounds(bounds(&spec));
            *pool.spec.borrow_mut() = spec;
            pool.wake.notify_one();
            return;
        }
        let pool = Rc::new(Pool {
            image: image.to_owned(),
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
        spawn_local(keep(Rc::clone(agent), pool));
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
    pub fn take(&self, agent: &Agent, digest: &str) -> Option<Ready> {
        let pools = self.0.borrow();
        let same = pools
            .values()
            .find(|pool| *pool.digest.borrow() == digest)?;
        same.take(agent)
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
    pub fn info(&self, agent: &Agent) -> PoolInfo {
        let spec = self.spec.borrow();
        PoolInfo {
            image: self.image.clone(),
            digest: self.digest.borrow().clone(),
            min: spec.min,
            max: spec.max,
            ready: u32::try_from(self.ready.borrow().len()).unwrap_or(u32::MAX),
            target: self.policy.borrow_mut().on_tick(agent.started().elapsed()),
            starting: self.starting.get(),
            served: self.served.get(),
            missed: self.missed.get(),
            template_pid: self.template_pid.get(),
            fault: self.fault.borrow().clone(),
        }
    }

    fn take(&self, agent: &Agent) -> Option<Ready> {
        // One that has ended a moment ago is nobody's.
        self.drop_dead();
        let ready = self.ready.borrow_mut().pop_front();
        let count = match ready {
            Some(_) => &self.served,
            None => &self.missed,
        };
        count.set(count.get() + 1);
        let now = agent.started().elapsed();
        self.policy.borrow_mut().on_request(now, ready.is_some());
        self.wake.notify_one();
        ready
    }

    /// Orders what is missing, as long as nobody waits for a processor.
    fn refill(&self, agent: &Agent, template: &Template) -> Result<(), TemplateError> {
        if self
            .rests_until
            .get()
            .is_some_and(|until| Instant::now() < until)
        {
            return Ok(());
        }
        let target = self.policy.borrow_mut().on_tick(agent.started().elapsed());
        let parallel = self.spec.borrow().refill.parallel;
        loop {
            let ready = u32::try_from(self.ready.borrow().len()).unwrap_or(u32::MAX);
            let starting = self.starting.get();
            let is_enough = ready.saturating_add(starting) >= target || starting >= parallel;
            if is_enough || agent.is_busy() {
                break;
            }
            let kept = agent.settings.kept_memory_mib;
            if host::available_mib().is_some_and(|available| available < kept) {
                let text =
                    format!("the host has less than {kept} MiB of memory left (--keep-memory)");
                self.rest(text);
                return Ok(());
            }
            template.order_fork()?;
            self.starting.set(starting + 1);
        }
        // More than demand asks for is given back, one at a time: demand may come again.
        let surplus = self.ready.borrow().len() > target as usize;
        if surplus {
            self.ready.borrow_mut().pop_back();
        }
        Ok(())
    }

    fn rest(&self, fault: String) {
        *self.fault.borrow_mut() = Some(fault);
        self.rests_until
            .set(Some(Instant::now() + limits::POOL_REST));
    }

    fn has_made(&self) {
        self.starting.set(self.starting.get().saturating_sub(1));
        self.wake.notify_one();
    }

    /// Forgets machines that have ended while they were ready.
    fn drop_dead(&self) {
        let mut ready = self.ready.borrow_mut();
        let now = Timespec::default();
        let ended: Vec<bool> = {
            let mut fds: Vec<PollFd<'_>> = ready
                .iter()
                .map(|machine| PollFd::from_borrowed_fd(machine.as_fd(), PollFlags::IN))
                .collect();
            match poll(&mut fds, Some(&now)) {
                Ok(0) | Err(_) => return,
                Ok(_) => fds.iter().map(|fd| !fd.revents().is_empty()).collect(),
            }
        };
        let mut ended = ended.into_iter();
        ready.retain(|_| ended.next() == Some(false));
    }
}

/// Why a pool's template is of no use.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("Cannot watch a template")]
    Watch(#[source] std::io::Error),
    #[error("Cannot start a template")]
    Thread(#[source] tokio::task::JoinError),
}

/// Keeps `pool` until it is over.
async fn keep(agent: Rc<Agent>, pool: Rc<Pool>) {
    let mut pause = limits::POOL_PAUSE_MIN;
    while !pool.is_over.get() {
        let Some(image) = agent.images.hold(&pool.image) else {
            // The name is gone; it may come again.
            *pool.fault.borrow_mut() = Some(format!("there is no image {:?}", pool.image));
            pool.wake.notified().await;
            continue;
        };
        let began = Instant::now();
        let kept = keep_template(&agent, &pool, image).await;
        *pool.digest.borrow_mut() = String::new();
        pool.template_pid.set(None);
        pool.ready.borrow_mut().clear();
        if let Err(error) = kept {
            let text = chain(&error);
            agent.warn(format!("the pool of {}: {text}", pool.image));
            *pool.fault.borrow_mut() = Some(text);
            if began.elapsed() > limits::POOL_PAUSE_MAX {
                pause = limits::POOL_PAUSE_MIN;
            }
            let _ = timeout(pause, pool.wake.notified()).await;
            pause = (pause * 2).min(limits::POOL_PAUSE_MAX);
        }
    }
}

/// One template's life: until the pool is over, or its name leads to another image.
async fn keep_template(
    agent: &Rc<Agent>,
    pool: &Rc<Pool>,
    image: HeldImage,
) -> Result<(), KeepError> {
    let digest = image.image().digest.clone();
    let options = Options {
        vsock: image
            .image()
            .vsock
            .then(|| agent.folders.pool_vsock("{pid}")),
        has_api: true,
        ..Options::default()
    };
    let (program, path) = (agent.settings.monitor.clone(), image.path().to_owned());
    let started = spawn_blocking(move || Template::start(&program, &path, &options)).await;
    let template = started.map_err(KeepError::Thread)??;
    let socket = watched(&template).map_err(KeepError::Watch)?;
    let making = Rc::new(());
    let served = serve(agent, pool, (&template, &socket, &digest), &making).await;
    pool.digest.borrow_mut().clear();
    pool.ready.borrow_mut().clear();
    drop(socket);
    spawn_local(retire(template, making));
    // Its file stays as long as the template may open it.
    drop(image);
    served
}

async fn serve(
    agent: &Rc<Agent>,
    pool: &Rc<Pool>,
    (template, socket, digest): (&Template, &AsyncFd<OwnedFd>, &String),
    making: &Rc<()>,
) -> Result<(), KeepError> {
    let is_wanted = || {
        let image = agent.images.find(&pool.image);
        !pool.is_over.get() && image.is_some_and(|image| image.digest == *digest)
    };
    while is_wanted() {
        if pool.template_pid.get().is_some() {
            pool.drop_dead();
            pool.refill(agent, template)?;
        }
        let waited = timeout(
            limits::POOL_TICK,
            race(socket.readable(), pool.wake.notified()),
        );
        if let Ok(crate::race::Raced::First(Ok(mut guard))) = waited.await {
            match template.next()? {
                None => guard.clear_ready(),
                Some(TemplateEvent::Ready) => {
                    (*digest).clone_into(&mut pool.digest.borrow_mut());
                    *pool.fault.borrow_mut() = None;
                    pool.starting.set(0);
                    pool.template_pid.set(Some(template.pid()));
                }
                Some(TemplateEvent::Forked(starting)) => {
                    let turn = Rc::clone(making);
                    spawn_local(await_ready(Rc::clone(pool), digest.clone(), starting, turn));
                }
                Some(TemplateEvent::Refused(refusal)) if pool.template_pid.get().is_none() => {
                    return Err(TemplateError::Refused(refusal).into());
                }
                Some(TemplateEvent::Refused(refusal)) => {
                    pool.rest(refusal.text);
                    pool.has_made();
                }
            }
        }
    }
    Ok(())
}

/// Waits until a machine is ready, and puts it to the others.
async fn await_ready(pool: Rc<Pool>, digest: String, starting: Starting, _turn: Rc<()>) {
    let ready = timeout(limits::START_TIME_MAX, make_ready(starting)).await;
    if *pool.digest.borrow() != digest {
        // It was made for those before.
        return;
    }
    match ready {
        Ok(Ok(ready)) => {
            *pool.fault.borrow_mut() = None;
            pool.ready.borrow_mut().push_back(ready);
        }
        Ok(Err(error)) => pool.rest(chain(&error)),
        Err(_) => pool.rest("a machine was not ready in time".to_owned()),
    }
    pool.has_made();
}

async fn make_ready(mut starting: Starting) -> Result<Ready, MachineError> {
    let pid = starting.pid();
    let failed = |cause| MachineError::Wait { pid, cause };
    let socket = watched(&starting).map_err(failed)?;
    loop {
        let mut guard = socket.readable().await.map_err(failed)?;
        match starting.check()? {
            Progress::Ready(ready) => return Ok(ready),
            Progress::NotYet(again) => starting = again,
        }
        guard.clear_ready();
    }
}

/// A copy of a descriptor, to be waited for.
pub(crate) fn watched(it: &impl AsFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    sys::watch(it.as_fd().try_clone_to_owned()?)
}

/// Waits for machines of a template that were not used, so that nothing of them stays, and ends it. `making` is held by whoever
/// has one that is being made.
async fn retire(template: Template, making: Rc<()>) {
    let began = Instant::now();
    let is_awaited = || Rc::strong_count(&making) > 1 || template.dying() > 0;
    while is_awaited() && began.elapsed() < limits::START_TIME_MAX + limits::KILL_TIME_MAX {
        template.reap();
        sleep(limits::REAP_INTERVAL).await;
    }
    // It is waited for.
    spawn_blocking(move || drop(template));
}
