//! The run socket, by which `lightv run` is served from a pool: one connection a run, whose client's standard streams the
//! guest has.
//!
//! ```text
//!   client --RunRequest, 3 descriptors--> agent     refused: the client goes on alone
//!          <------- Running ------------
//!          ------- RunSignal --------->
//!          <------- Ended ------------             a client that is gone: SIGTERM
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use lightv_api::agent::event::AgentHappening;
use lightv_api::agent::run::{RunAnswer, RunRequest, RunSignal};
use lightv_api::agent::sandbox::SandboxSpec;
use lightv_api::exit;
use lightv_packet::{Packet, PacketSocket};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Signal;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::agent::Agent;
use crate::end;
use crate::figures::StartWay;
use crate::folders::Durability;
use crate::limits;
use crate::plan::Plan;
use crate::race::{Raced, race};
use crate::refusal::chain;
use crate::sandboxes::{Entry, Record};
use crate::server::Connections;
use crate::start::discard;
use crate::sys;
use crate::warm::{self, Streams, Warm};

/// Clients that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Listens at `path`; a socket that is there is another agent's that has ended: who calls has the lock.
///
/// # Errors
/// The kernel's.
pub fn listen(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::SEQPACKET;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    sys::watch(socket)
}

/// Serves all who come, for ever.
pub async fn accept_all(agent: Rc<Agent>, listener: AsyncFd<OwnedFd>, connections: Connections) {
    loop {
        let Ok(mut guard) = listener.readable().await else {
            return;
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let client = match rustix::net::accept_with(&listener, flags) {
            Ok(client) => client,
            Err(rustix::io::Errno::AGAIN) => {
                guard.clear_ready();
                continue;
            }
            // The client may have gone, or descriptors may be short.
            Err(_) => {
                sleep(limits::ACCEPT_PAUSE).await;
                continue;
            }
        };
        let client = PacketSocket::from(client);
        let max = agent.settings.connections_max;
        let Some(place) = connections.take(max) else {
            let text = format!("{max} connections are open; no more are allowed");
            // The socket is new and its buffer empty: the answer fits or the client is gone.
            let _ = client.send(&refused(text), &[]);
            continue;
        };
        let agent = Rc::clone(&agent);
        spawn_local(async move {
            serve(&agent, client).await;
            drop(place);
        });
    }
}

/// The refusal of what has not begun: the client goes on alone.
fn refused(text: impl Into<String>) -> RunAnswer {
    RunAnswer::Refused {
        refused: text.into(),
        exit_code: exit::HOST_FAILURE,
        begun: false,
    }
}

/// A client, and the descriptor by which it is waited for.
struct Client {
    socket: PacketSocket,
    readable: AsyncFd<OwnedFd>,
}

impl Client {
    /// The next message; `None` when the client is gone, or says what it should not.
    async fn receive<T: DeserializeOwned>(&self) -> Option<Packet<T>> {
        loop {
            let mut guard = self.readable.readable().await.ok()?;
            match self.socket.receive() {
                Ok(packet) => return packet,
                Err(cause) if cause.is_would_block() => guard.clear_ready(),
                Err(_) => return None,
            }
        }
    }

    /// Tells it something. One that is gone, or never reads, does not hear it.
    fn tell(&self, answer: &RunAnswer) {
        let _ = self.socket.send(answer, &[]);
    }
}

async fn serve(agent: &Rc<Agent>, socket: PacketSocket) {
    let Ok(readable) = sys::watch_copy(&socket) else {
        return;
    };
    let client = Client { socket, readable };
    let request = timeout(limits::RUN_REQUEST_TIME_MAX, client.receive::<RunRequest>()).await;
    let Ok(Some(Packet { message, fds })) = request else {
        return;
    };
    let asked = Instant::now();
    match begin(agent, message, (fds, asked)).await {
        Ok(entry) => {
            client.tell(&RunAnswer::Running {
                sandbox: entry.id().to_owned(),
                pid: entry.sandbox().pid.unwrap_or_default(),
                warm: true,
            });
            attend(agent, &client, &entry).await;
            let status = entry.sandbox().exit_code.unwrap_or(exit::FAILURE);
            client.tell(&RunAnswer::Ended { ended: status });
        }
        Err(refusal) => client.tell(&refusal),
    }
}

/// Starts a run, if a machine is ready for it.
async fn begin(
    agent: &Rc<Agent>,
    request: RunRequest,
    (fds, asked): (Vec<OwnedFd>, Instant),
) -> Result<Rc<Entry>, RunAnswer> {
    let streams: Streams = fds.try_into().map_err(|_| {
        refused("The request has not three descriptors: standard input, output and error")
    })?;
    let _place = agent.take_place().map_err(|cause| refused(cause.message))?;
    let image = agent.images.find_bytes(&request.image);
    let image = image.filter(|digest| agent.pools.has_ready(digest));
    let none = || refused(format!("There is no VM ready for {}", request.image));
    let image = image.ok_or_else(none)?;
    let spec = SandboxSpec {
        image,
        args: request.args,
        env: request.env,
        ..SandboxSpec::default()
    };
    let plan = Plan::prove(agent, spec).map_err(|cause| refused(cause.message))?;
    let ready = agent.pools.take(&plan.sandbox.digest);
    let ready = ready.ok_or_else(none)?;
    let id = plan.sandbox.id.clone();
    let record = Record::new(plan.sandbox.clone());
    let entry = Rc::new(Entry::new(record, agent.folders.record(&id)));
    agent.sandboxes.insert(Rc::clone(&entry));
    let warm = Warm {
        plan: &plan,
        streams,
        // It ends with its client, and with the host.
        durability: Durability::Agent,
        asked,
    };
    if let Err(error) = warm::start(agent, &entry, ready, warm).await {
        discard(agent, &entry).await;
        let begun = error.has_begun();
        if begun {
            // Else its client starts it.
            agent.figures.note_failure();
        }
        return Err(RunAnswer::Refused {
            refused: chain(&error),
            exit_code: error.exit_code(),
            begun,
        });
    }
    entry.announce_run();
    let start_us = entry.sandbox().start_us.unwrap_or_default();
    agent.figures.note_start(StartWay::Warm, start_us);
    agent.events.publish(AgentHappening::Created {
        sandbox: id,
        start_us,
        warm: true,
    });
    if entry.has_ended() {
        end::finish(agent, &entry).await;
    }
    Ok(entry)
}

/// Passes on signals until the run has ended; a client that is gone is one that wants it to end. Nothing of it is remembered.
async fn attend(agent: &Rc<Agent>, client: &Client, entry: &Rc<Entry>) {
    let ended = entry.wait(std::time::Duration::MAX, Entry::has_ended);
    let mut ended = std::pin::pin!(ended);
    loop {
        match race(&mut ended, client.receive::<RunSignal>()).await {
            Raced::First(_) => break,
            Raced::Second(Some(packet)) => {
                let signal = Signal::from_named_raw(packet.message.signal);
                if let (Some(signal), Some(process)) = (signal, entry.process()) {
                    // One that has ended does not get it.
                    let _ = process.signal(signal);
                }
            }
            Raced::Second(None) => {
                if let Err(refusal) = end::stop(agent, entry, limits::RUN_END_TIME_MAX).await {
                    // It is listed still, and can be stopped.
                    agent.warn(refusal.message);
                    return;
                }
                break;
            }
        }
    }
    if entry.begin_going() {
        end::forget(agent, entry).await;
        end::tell_deleted(agent, entry);
    }
}
