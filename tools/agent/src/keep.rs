//! How pools are kept: each by a task of its own, which has a template and machines made of it.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use lightv_api::agent::image::StoredImage;
use lightv_api::agent::pool::PoolSpec;
use lightv_pool::{
    MachineError, Options, Progress, Ready, Starting, Template, TemplateError, TemplateEvent,
};
use tokio::io::unix::AsyncFd;
use tokio::task::{spawn_blocking, spawn_local};
use tokio::time::{sleep, timeout};

use crate::agent::Agent;
use crate::host;
use crate::images::HeldImage;
use crate::limits;
use crate::pools::{Idle, Pool, SocketFile};
use crate::race::{Raced, race};
use crate::refusal::chain;
use crate::sys::watch_copy;

/// Makes the pool of `image`, or changes it.
pub fn set(agent: &Rc<Agent>, image: &str, spec: PoolSpec) {
    if let Some(pool) = agent.pools.set(image, spec) {
        spawn_local(keep(Rc::clone(agent), pool));
    }
}

/// Why a pool's template is of no use.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("Cannot watch a template")]
    Watch(#[source] std::io::Error),
    #[error("A template has not proved its image within {} s", limits::START_TIME_MAX.as_secs())]
    Silent,
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
        pool.template_pid.set(None);
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
    let socket = watch_copy(&template).map_err(KeepError::Watch)?;
    let making = Rc::new(());
    let served = serve(agent, pool, (&template, &socket, image.image()), &making).await;
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
    (template, socket, image): (&Template, &AsyncFd<OwnedFd>, &StoredImage),
    making: &Rc<()>,
) -> Result<(), KeepError> {
    let (digest, has_vsock) = (&image.digest, image.vsock);
    let is_wanted = || {
        let image = agent.images.find(&pool.image);
        !pool.is_over.get() && image.is_some_and(|image| image.digest == *digest)
    };
    let began = Instant::now();
    while is_wanted() {
        if pool.template_pid.get().is_some() {
            pool.drop_dead();
            template.reap();
            refill(agent, pool, template)?;
        } else if began.elapsed() > limits::START_TIME_MAX {
            return Err(KeepError::Silent);
        }
        let waited = timeout(
            limits::POOL_TICK,
            race(socket.readable(), pool.wake.notified()),
        );
        if let Ok(Raced::First(Ok(mut guard))) = waited.await {
            match template.next()? {
                None => guard.clear_ready(),
                Some(TemplateEvent::Ready) => {
                    (*digest).clone_into(&mut pool.digest.borrow_mut());
                    *pool.fault.borrow_mut() = None;
                    pool.starting.set(0);
                    pool.template_pid.set(Some(template.pid()));
                }
                Some(TemplateEvent::Forked(starting)) => {
                    let vsock = agent.folders.pool_vsock(starting.pid());
                    let made = Made {
                        digest: digest.clone(),
                        vsock: SocketFile::at(has_vsock.then_some(vsock)),
                        starting,
                        _turn: Rc::clone(making),
                    };
                    spawn_local(await_ready(Rc::clone(pool), made));
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

/// A machine whose process is there.
struct Made {
    /// What it is made of.
    digest: String,
    starting: Starting,
    /// Dropped after it.
    vsock: SocketFile,
    /// Its template is waited for as long as this lives.
    _turn: Rc<()>,
}

/// Waits until a machine is ready, and puts it to the others.
async fn await_ready(pool: Rc<Pool>, made: Made) {
    let Made {
        digest,
        starting,
        vsock,
        _turn,
    } = made;
    let ready = timeout(limits::START_TIME_MAX, make_ready(starting)).await;
    if *pool.digest.borrow() != digest {
        // It was made for those before.
        return;
    }
    match ready {
        Ok(Ok(ready)) => {
            *pool.fault.borrow_mut() = None;
            pool.ready.borrow_mut().push_back(Idle { ready, vsock });
        }
        Ok(Err(error)) => pool.rest(chain(&error)),
        Err(_) => pool.rest("a machine was not ready in time".to_owned()),
    }
    pool.has_made();
}

async fn make_ready(mut starting: Starting) -> Result<Ready, MachineError> {
    let pid = starting.pid();
    let failed = |cause| MachineError::Wait { pid, cause };
    let socket = watch_copy(&starting).map_err(failed)?;
    loop {
        let mut guard = socket.readable().await.map_err(failed)?;
        match starting.check()? {
            Progress::Ready(ready) => return Ok(ready),
            Progress::NotYet(again) => starting = again,
        }
        guard.clear_ready();
    }
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

/// Orders what is missing, as long as nobody waits for a processor.
fn refill(agent: &Agent, pool: &Pool, template: &Template) -> Result<(), TemplateError> {
    if pool
        .rests_until
        .get()
        .is_some_and(|until| Instant::now() < until)
    {
        return Ok(());
    }
    let target = pool.target();
    let parallel = pool.spec.borrow().refill.parallel;
    loop {
        let ready = u32::try_from(pool.ready.borrow().len()).unwrap_or(u32::MAX);
        let starting = pool.starting.get();
        let is_enough = ready.saturating_add(starting) >= target || starting >= parallel;
        if is_enough || agent.is_busy() {
            break;
        }
        let kept = agent.settings.kept_memory_mib;
        if host::available_mib().is_some_and(|available| available < kept) {
            let text = format!("the host has less than {kept} MiB of memory left (--keep-memory)");
            pool.rest(text);
            return Ok(());
        }
        template.order_fork()?;
        pool.starting.set(starting + 1);
    }
    // More than demand asks for is given back, one at a time: demand may come again.
    let surplus = pool.ready.borrow().len() > target as usize;
    if surplus {
        pool.ready.borrow_mut().pop_back();
    }
    Ok(())
}
