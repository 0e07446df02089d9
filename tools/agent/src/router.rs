//! What is asked for by which path, and who answers.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use lightv_api::agent::event::AgentHappening;
use lightv_api::agent::exec::ExecSpec;
use lightv_api::agent::image::ImageSpec;
use lightv_api::agent::pool::PoolSpec;
use lightv_api::agent::sandbox::{ForkSandboxSpec, SandboxSpec, SandboxState, StopSpec};
use lightv_api::contract::vm::VmState;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use crate::agent::Agent;
use crate::answer::{HttpAnswer, done, json, pieces, whole};
use crate::end;
use crate::exec;
use crate::figures;
use crate::folders::Durability;
use crate::fork;
use crate::images::PutImageError;
use crate::limits;
use crate::logs::{self, Wanted};
use crate::observe;
use crate::openapi;
use crate::pool_requests as pools;
use crate::query::Query;
use crate::refusal::{Refusal, chain};
use crate::sandboxes::Entry;
use crate::start;
use crate::vm_api::{VmApi, VmApiError};

const LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const METRICS: HeaderValue = HeaderValue::from_static(figures::CONTENT_TYPE);
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A request.
#[derive(Debug)]
pub struct Asked {
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: String,
    /// What stands behind `?`.
    pub query: String,
    /// Its body.
    pub body: Vec<u8>,
    /// When it had come.
    pub at: Instant,
}

type Answered = Result<HttpAnswer, Refusal>;

/// Answers `asked`.
///
/// # Errors
/// The refusal.
pub async fn answer(agent: &Rc<Agent>, asked: Asked) -> Answered {
    let path = asked.path.trim_start_matches('/').to_owned();
    let parts: Vec<&str> = match path.as_str() {
        "" => Vec::new(),
        path => path.split('/').collect(),
    };
    let query = Query::parse(&asked.query)?;
    let method = asked.method.as_str().to_owned();
    match (method.as_str(), parts.as_slice()) {
        ("GET", []) => Ok(json(StatusCode::OK, &agent.info())),
        ("GET", ["openapi.json"]) => Ok(whole(StatusCode::OK, JSON, openapi::document())),
        ("GET", ["events"]) => events(agent, &query),
        ("GET", ["images"]) => Ok(json(StatusCode::OK, &agent.images.list())),
        (_, ["images", name]) => image(agent, name, asked).await,
        ("GET", ["pools"]) => Ok(json(StatusCode::OK, &pools::list(agent))),
        (method, ["pools", image]) => pool(agent, image, method, &asked).await,
        ("GET", ["metrics"]) => {
            let text = observe::metrics(agent).await;
            Ok(whole(StatusCode::OK, METRICS, text))
        }
        ("GET", ["stats"]) => agent.answers.json(&observe::stats(agent).await),
        ("GET", ["sandboxes"]) => list(agent, &query),
        ("POST", ["sandboxes"]) => create(agent, asked).await,
        (_, ["sandboxes", id, rest @ ..]) => {
            let entry = agent.sandboxes.find(id).ok_or_else(|| {
                Refusal::missing(format!(
                    "There is no sandbox {id:?}; GET /sandboxes lists them."
                ))
            })?;
            sandbox(agent, entry, (rest, asked, query)).await
        }
        _ => Err(unknown(&asked)),
    }
}

fn unknown(asked: &Asked) -> Refusal {
    let (method, path) = (&asked.method, &asked.path);
    Refusal::missing(format!(
        "There is no {method} {path}; GET /openapi.json lists what there is."
    ))
}

/// The body as JSON.
fn body_of<T: DeserializeOwned>(asked: &Asked) -> Result<T, Refusal> {
    serde_json::from_slice(&asked.body)
        .map_err(|cause| Refusal::bad(format!("The body is not what it should be: {cause}.")))
}

/// The same for a body that may be left out.
fn optional_body_of<T: DeserializeOwned + Default>(asked: &Asked) -> Result<T, Refusal> {
    if asked.body.is_empty() {
        return Ok(T::default());
    }
    body_of(asked)
}

/// Does `work` to its end, whether or not the client waits for it.
async fn to_the_end<T: 'static>(
    agent: &Rc<Agent>,
    work: impl Future<Output = Result<T, Refusal>> + 'static,
) -> Result<T, Refusal> {
    let place = agent.take_place()?;
    let (sender, receiver) = oneshot::channel();
    spawn_local(async move {
        let result = work.await;
        drop(place);
        // A client that is gone has lost its answer, not what it asked for.
        let _ = sender.send(result);
    });
    let lost = |_| Err(Refusal::unavailable("The agent has ended."));
    receiver.await.unwrap_or_else(lost)
}

fn events(agent: &Rc<Agent>, query: &Query) -> Answered {
    query.only(&["since"])?;
    let after = query.number("since")?.unwrap_or(0);
    let agent = Rc::clone(agent);
    Ok(pieces(LINES, |out| async move {
        agent.events.tell(after, &out).await;
    }))
}

async fn image(agent: &Rc<Agent>, name: &str, asked: Asked) -> Answered {
    let missing = || {
        Refusal::missing(format!(
            "There is no image {name:?}; GET /images lists them."
        ))
    };
    match asked.method.as_str() {
        "GET" => {
            let image = agent.images.find(name).ok_or_else(missing)?;
            Ok(json(StatusCode::OK, &image))
        }
        "PUT" => {
            let spec: ImageSpec = body_of(&asked)?;
            let image = to_the_end(
                agent,
                put_image(Rc::clone(agent), name.to_owned(), spec.path),
            );
            Ok(json(StatusCode::OK, &image.await?))
        }
        "DELETE" => {
            let (its, name) = (Rc::clone(agent), name.to_owned());
            let deleted = to_the_end(agent, async move {
                let deleted = its.images.delete(&name).await;
                let deleted = deleted.map_err(|cause| Refusal::no_room(chain(&cause)))?;
                if deleted {
                    its.pools.wake_all();
                    its.events
                        .publish(AgentHappening::ImageDeleted { image: name });
                }
                Ok(deleted)
            });
            match deleted.await? {
                true => Ok(done()),
                false => Err(missing()),
            }
        }
        _ => Err(unknown(&asked)),
    }
}

async fn put_image(
    agent: Rc<Agent>,
    name: String,
    path: PathBuf,
) -> Result<lightv_api::agent::image::StoredImage, Refusal> {
    let image = agent.images.put(&name, path).await.map_err(|error| {
        let text = chain(&error);
        match error {
            PutImageError::Copy { .. } | PutImageError::Write(_) => Refusal::no_room(text),
            PutImageError::TooMany => Refusal::too_many(text),
            _ => Refusal::bad(text),
        }
    })?;
    agent.pools.wake_all();
    agent.events.publish(AgentHappening::ImageSet {
        image: image.name.clone(),
        digest: image.digest.clone(),
    });
    Ok(image)
}

async fn pool(agent: &Rc<Agent>, image: &str, method: &str, asked: &Asked) -> Answered {
    let missing = || {
        Refusal::missing(format!(
            "There is no pool of {image:?}; GET /pools lists them."
        ))
    };
    let (its, name) = (Rc::clone(agent), image.to_owned());
    match method {
        "GET" => {}
        "PUT" => {
            let spec: PoolSpec = optional_body_of(asked)?;
            to_the_end(agent, async move { pools::set(&its, &name, spec).await }).await?;
        }
        "DELETE" => {
            let deleted = to_the_end(agent, async move { pools::delete(&its, &name).await });
            return match deleted.await? {
                true => Ok(done()),
                false => Err(missing()),
            };
        }
        _ => return Err(unknown(asked)),
    }
    let pool = agent.pools.find(image).ok_or_else(missing)?;
    Ok(json(StatusCode::OK, &pool.info()))
}

fn list(agent: &Rc<Agent>, query: &Query) -> Answered {
    query.only(&["label", "state"])?;
    let mut sandboxes: Vec<_> = agent
        .sandboxes
        .all()
        .iter()
        .map(|it| it.sandbox())
        .collect();
    if let Some(state) = query.text("state") {
        let known = ["starting", "running", "paused", "ended"];
        if !known.contains(&state) {
            return Err(Refusal::bad(format!(
                "state: {state:?} is not allowed: one of {}.",
                known.join(", ")
            )));
        }
        sandboxes.retain(|sandbox| sandbox.state.name() == state);
    }
    for label in query.all("label") {
        let (name, value) = label
            .split_once('=')
            .ok_or_else(|| Refusal::bad(format!("label: {label:?} is not allowed: NAME=VALUE.")))?;
        sandboxes.retain(|sandbox| sandbox.labels.get(name).is_some_and(|it| it == value));
    }
    sandboxes.sort_by(|a, b| (a.created_unix_ms, &a.id).cmp(&(b.created_unix_ms, &b.id)));
    agent.answers.json(&sandboxes)
}

async fn create(agent: &Rc<Agent>, asked: Asked) -> Answered {
    let spec: SandboxSpec = body_of(&asked)?;
    let its = Rc::clone(agent);
    let work = async move { start::create(&its, spec, asked.at).await };
    let sandbox = to_the_end(agent, work).await?;
    Ok(json(StatusCode::CREATED, &sandbox))
}

async fn sandbox(
    agent: &Rc<Agent>,
    entry: Rc<Entry>,
    (rest, asked, query): (&[&str], Asked, Query),
) -> Answered {
    let its = Rc::clone(agent);
    let same = Rc::clone(&entry);
    match (asked.method.as_str(), rest) {
        ("GET", []) => {}
        ("DELETE", []) => {
            let work = async move { end::delete(&its, &same).await };
            to_the_end(agent, work).await?;
            return Ok(done());
        }
        ("POST", ["stop"]) => {
            let StopSpec { time_s } = optional_body_of(&asked)?;
            if time_s > 86_400 {
                return Err(Refusal::bad(format!(
                    "time_s: {time_s} is not allowed: 0–86400."
                )));
            }
            let time = Duration::from_secs(time_s.into());
            let work = async move { end::stop(&its, &same, time).await };
            to_the_end(agent, work).await?;
        }
        ("POST", ["exec"]) => {
            let spec: ExecSpec = body_of(&asked)?;
            // A client that leaves leaves no program behind, not even one that has not started yet.
            let program = exec::start(&its, same, spec).await?;
            return Ok(pieces(LINES, |out| exec::tell(program, out)));
        }
        ("POST", ["fork"]) => {
            let spec: ForkSandboxSpec = optional_body_of(&asked)?;
            let work = async move { fork::fork(&its, &same, spec, asked.at).await };
            let sandbox = to_the_end(agent, work).await?;
            return Ok(json(StatusCode::CREATED, &sandbox));
        }
        ("POST", ["pause"]) => {
            to_the_end(agent, set_state(its, same, VmState::Paused)).await?;
        }
        ("POST", ["resume"]) => {
            to_the_end(agent, set_state(its, same, VmState::Resumed)).await?;
        }
        ("GET", ["wait"]) => {
            query.only(&["timeout_ms"])?;
            let patience = query.number("timeout_ms")?.map(Duration::from_millis);
            let patience = patience.unwrap_or(Duration::MAX);
            entry.wait(patience, Entry::has_ended).await;
        }
        ("GET", ["logs"]) => return logs(agent, entry, &query).await,
        _ => return Err(unknown(&asked)),
    }
    Ok(json(StatusCode::OK, &entry.sandbox()))
}

/// Lets a sandbox stand still or go on, by its monitor's own API.
async fn set_state(agent: Rc<Agent>, entry: Rc<Entry>, state: VmState) -> Result<(), Refusal> {
    let is_paused = state == VmState::Paused;
    if entry.has_ended() {
        let text = format!("Sandbox {} has ended.", entry.id());
        return Err(Refusal::conflict(text));
    }
    if entry.state() == SandboxState::Starting {
        let text = format!(
            "Sandbox {} is being started; wait until it runs.",
            entry.id()
        );
        return Err(Refusal::conflict(text));
    }
    let socket = agent.folders.vm_socket(entry.id());
    let set = VmApi::at(&socket, limits::VM_ANSWER_TIME_MAX)
        .set_state(state)
        .await;
    set.map_err(|error| match error {
        VmApiError::Refused(text) => Refusal::conflict(text),
        error => Refusal::unavailable(chain(&error)),
    })?;
    if entry.has_ended() {
        return Ok(());
    }
    let sandbox = entry.id().to_owned();
    let (state, what) = match is_paused {
        true => (SandboxState::Paused, AgentHappening::Paused { sandbox }),
        false => (SandboxState::Running, AgentHappening::Resumed { sandbox }),
    };
    entry.change(|record| record.sandbox.state = state);
    agent.events.publish(what);
    // A new agent asks the monitor itself: what is on the disk may be older.
    if let Err(error) = entry.write(Durability::Agent).await {
        agent.warn(chain(&error));
    }
    Ok(())
}

async fn logs(agent: &Rc<Agent>, entry: Rc<Entry>, query: &Query) -> Answered {
    query.only(&["follow", "tail"])?;
    let wanted = Wanted {
        tail: query.number("tail")?,
        follow: query.flag("follow")?,
    };
    let path = agent.folders.log(entry.id());
    let opened = tokio::task::spawn_blocking(move || {
        logs::open(&path, wanted).map_err(|cause| (path, cause))
    });
    let opened = opened
        .await
        .map_err(|cause| Refusal::unavailable(cause.to_string()))?;
    let file = opened.map_err(|(path, cause)| {
        Refusal::unavailable(format!("Cannot read {}: {cause}", path.display()))
    })?;
    Ok(pieces(TEXT, |out| {
        logs::tell(file, entry, wanted.follow, out)
    }))
}
