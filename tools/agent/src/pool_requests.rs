//! What clients ask of pools: proved, written down, done.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use lightv_api::agent::event::AgentHappening;
use lightv_api::agent::pool::{Pool, PoolSpec};
use tokio::task::spawn_blocking;

use crate::agent::Agent;
use crate::folders::{Durability, WriteError, write_json};
use crate::keep;
use crate::limits;
use crate::pools::NO_POOLS;
use crate::refusal::{Refusal, chain};

/// All pools.
#[must_use]
pub fn list(agent: &Agent) -> Vec<Pool> {
    let pools = agent.pools.all();
    pools.iter().map(|pool| pool.info()).collect()
}

/// Makes the pool of `image`, or changes it.
///
/// # Errors
/// 400, 404, 409, 429, 507.
pub async fn set(agent: &Rc<Agent>, image: &str, spec: PoolSpec) -> Result<(), Refusal> {
    if agent.settings.jails.is_some() {
        return Err(Refusal::conflict(NO_POOLS));
    }
    prove(agent, image, &spec)?;
    let _turn = agent.pools.changing().lock().await;
    let mut specs = agent.pools.specs();
    specs.insert(image.to_owned(), spec.clone());
    write(agent, specs).await?;
    keep::set(agent, image, spec);
    let image = image.to_owned();
    agent.events.publish(AgentHappening::PoolSet { image });
    Ok(())
}

/// Ends the pool of `image`; whether there was one.
///
/// # Errors
/// 507.
pub async fn delete(agent: &Rc<Agent>, image: &str) -> Result<bool, Refusal> {
    let _turn = agent.pools.changing().lock().await;
    let mut specs = agent.pools.specs();
    if specs.remove(image).is_none() {
        return Ok(false);
    }
    write(agent, specs).await?;
    let removed = agent.pools.remove(image);
    let image = image.to_owned();
    agent.events.publish(AgentHappening::PoolDeleted { image });
    Ok(removed)
}

fn prove(agent: &Agent, image: &str, spec: &PoolSpec) -> Result<(), Refusal> {
    let known = agent.images.find(image).filter(|found| found.name == image);
    if known.is_none() {
        return Err(Refusal::missing(format!(
            "There is no image of the name {image:?}; put one by PUT /images/{{name}}."
        )));
    }
    let max = limits::POOL_MAX;
    if !(1..=max).contains(&spec.max) {
        let text = format!("max: {} is not allowed: 1–{max}.", spec.max);
        return Err(Refusal::bad(text));
    }
    if spec.min > spec.max {
        let text = format!("min: {} is more than max, {}.", spec.min, spec.max);
        return Err(Refusal::bad(text));
    }
    let parallel_max = limits::POOL_PARALLEL_MAX;
    let parallel = spec.refill.parallel;
    if !(1..=parallel_max).contains(&parallel) {
        return Err(Refusal::bad(format!(
            "refill.parallel: {parallel} is not allowed: 1–{parallel_max}."
        )));
    }
    let specs = agent.pools.specs();
    let others = specs.iter().filter(|(name, _)| *name != image);
    let (count, ready) = others.fold((0, 0), |(count, ready), (_, other)| {
        (count + 1, ready + u64::from(other.max))
    });
    if count >= limits::POOLS_MAX {
        let text = format!("There are {count} pools; no more are allowed. Delete one.");
        return Err(Refusal::too_many(text));
    }
    let ready_max = agent.settings.ready_max;
    if ready + u64::from(spec.max) > ready_max {
        return Err(Refusal::too_many(format!(
            "max: the other pools have {ready} together; with this one {ready_max} are allowed, by descriptors of the agent (ulimit -n)."
        )));
    }
    Ok(())
}

async fn write(agent: &Agent, specs: BTreeMap<String, PoolSpec>) -> Result<(), Refusal> {
    let path = agent.folders.pools();
    let lost = path.clone();
    let written = spawn_blocking(move || write_json(&path, &specs, Durability::Host)).await;
    let written = written.unwrap_or_else(|cause| {
        Err(WriteError {
            what: "write",
            path: lost,
            cause: io::Error::other(cause),
        })
    });
    written.map_err(|error| Refusal::no_room(chain(&error)))
}
