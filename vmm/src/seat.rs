//! A machine of a pool (docs/pool.md): it is ready before there is work for it, and waits for its assignment.
//!
//! ```text
//!   Ready --Assignment--> Running --> Ended         to the pool, on the machine's own socket
//!     |  ^--Refused--|
//!     +--the pool's end is closed--> the process ends
//! ```
//!
//! The thread `control` takes the assignment: it is held to its list by then, as all threads are, and vCPU 0 waits.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use lightv_api::config::VmSpec;
use lightv_api::exit;
use lightv_api::template::{Assignment, MachineNews, Refusal};
use lightv_devices::mmds::Mmds;
use lightv_packet::{Packet, PacketSocket, ReceiveError};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::arch::host::guest_tsc::GuestTsc;
use crate::device_set::DeviceSetError;
use crate::event::EventSender;
use crate::listen::{ListenError, Purpose, SocketFile, listen};
use crate::machine::Machine;
use crate::tell_run::{GuestClock, TellRunError, run_facts, tell_run};
use crate::vcpu::StartGate;
use crate::{at_end, limits, report, runtime_dir};

/// Why an assignment is refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant says it")]
pub enum RefuseWork {
    #[error("An assignment is refused")]
    Packet(#[source] ReceiveError),
    #[error("An assignment came with {count} descriptors; allowed: 3, the standard streams")]
    Streams { count: usize },
    #[error("id of an assignment is {id:?}; allowed: 1–64 letters, digits and `-`")]
    Id { id: String },
    #[error(
        "api_socket of an assignment is {}; allowed: nothing, the template was started without --template-api",
        path.display()
    )]
    NoApi { path: PathBuf },
    #[error(transparent)]
    Listen(ListenError),
    #[error(transparent)]
    Run(TellRunError),
}

/// Why an assignment that was accepted could not be begun. The machine ends.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant says it")]
pub enum BeginError {
    #[error("Cannot take over a standard stream")]
    Streams(#[source] std::io::Error),
    #[error(transparent)]
    Console(DeviceSetError),
}

/// What serves the REST API of a machine that runs.
#[derive(Debug)]
pub struct ApiWork {
    /// Name of the machine.
    pub id: String,
    /// What it is.
    pub spec: VmSpec,
    /// Where clients come.
    pub listener: UnixListener,
    /// The way to the loop.
    pub events: EventSender,
    /// The metadata service.
    pub mmds: Mmds,
}

/// Has the REST API served, by threads that wait for it.
pub type ServeApi = Box<dyn FnOnce(ApiWork) + Send>;

/// The pool's socket, for the process's last word.
static POOL: OnceLock<Arc<PacketSocket>> = OnceLock::new();

/// Says to the pool, if the process is a machine of one, how it ends. It does not wait.
pub fn tell_end(status: u8) {
    if let Some(pool) = POOL.get() {
        // One that is gone does not want to know.
        let _ = pool.send(&MachineNews::Ended(status), &[]);
    }
}

/// What a machine that waits for work has beside itself.
pub struct Seat {
    pool: Arc<PacketSocket>,
    start: Arc<StartGate>,
    source: PathBuf,
    tsc_khz: u32,
    tsc: Option<GuestTsc>,
    api: Option<ServeApi>,
}

impl fmt::Debug for Seat {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = out.debug_struct("Seat");
        out.field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// The socket of the pool, of a machine that runs.
#[derive(Debug)]
pub struct PoolLink {
    socket: Arc<PacketSocket>,
    ends_with_pool: bool,
}

/// What the socket of the pool has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolSays {
    /// Nothing of interest.
    Nothing,
    /// The pool is gone, and the machine ends with it.
    End,
    /// The pool is gone, and the machine goes on.
    Gone,
}

/// What came of what the pool has sent.
#[derive(Debug)]
pub enum Work {
    /// The machine runs.
    Begun(PoolLink),
    /// It waits.
    None,
    /// The pool is gone.
    PoolGone,
    /// It cannot run.
    Failed(BeginError),
}

impl Seat {
    /// For `machine`, which is complete and not started, made of the image `source`: work comes by `pool`, and `start` is
    /// opened by it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(
        pool: Arc<PacketSocket>,
        start: Arc<StartGate>,
        machine: &Machine,
        source: &Path,
    ) -> std::io::Result<Self> {
        pool.set_nonblocking(true)?;
        let first = machine.vcpus.first();
        Ok(Self {
            pool,
            start,
            source: source.to_owned(),
            tsc_khz: first.and_then(|vcpu| vcpu.get_tsc_khz().ok()).unwrap_or(0),
            tsc: first.and_then(|vcpu| GuestTsc::of(machine.vm.fd(), vcpu)),
            api: None,
        })
    }

    /// The same, of a machine whose REST API can be served by `api`.
    #[must_use]
    pub fn with_api(mut self, api: ServeApi) -> Self {
        self.api = Some(api);
        self
    }

    /// Says that it waits.
    pub fn tell_ready(&self) {
        self.tell(&MachineNews::Ready);
    }

    fn tell(&self, news: &MachineNews) {
        // A pool that is gone is found out by its socket.
        let _ = self.pool.send(news, &[]);
    }

    fn refuse(&self, error: &dyn std::error::Error, exit_code: u8) {
        self.tell(&MachineNews::Refused(Refusal {
            text: report::text_of(error),
            exit_code,
        }));
    }

    /// Takes what the pool has sent, without waiting. An assignment that is refused changes nothing.
    pub fn take_work(&mut self, machine: &mut Machine) -> Work {
        let packet = match self.pool.receive() {
            Ok(Some(packet)) => Ok(packet),
            Ok(None) => return Work::PoolGone,
            Err(cause) if cause.is_would_block() => return Work::None,
            Err(ReceiveError::Socket(_)) => return Work::PoolGone,
            Err(cause) => Err(RefuseWork::Packet(cause)),
        };
        match packet.and_then(|packet| self.accept(packet, machine)) {
            Ok(accepted) => match self.begin(accepted, machine) {
                Ok(link) => Work::Begun(link),
                Err(error) => {
                    self.refuse(&error, exit::HOST_FAILURE);
                    Work::Failed(error)
                }
            },
            Err(error) => {
                self.refuse(&error, exit::BAD_CONFIG);
                Work::None
            }
        }
    }

    /// Proves an assignment, and tells the guest what it holds.
    fn accept(
        &self,
        packet: Packet<Assignment>,
        machine: &mut Machine,
    ) -> Result<Accepted, RefuseWork> {
        let Packet { message, fds } = packet;
        let count = fds.len();
        let streams = <[OwnedFd; 3]>::try_from(fds);
        let streams = streams.map_err(|_| RefuseWork::Streams { count })?;
        let Assignment {
            id,
            args,
            env,
            api_socket,
            ends_with_pool,
        } = message;
        if !is_id(&id) {
            return Err(RefuseWork::Id { id });
        }
        let api = match api_socket {
            Some(path) if self.api.is_none() => return Err(RefuseWork::NoApi { path }),
            Some(path) => Some(listen(&path, Purpose::Api).map_err(RefuseWork::Listen)?),
            None => None,
        };
        let mut config = machine.config.clone();
        config.set_run(args, env);
        let tsc = self.tsc.and_then(|tsc| tsc.now());
        let clock = GuestClock {
            khz: self.tsc_khz,
            value: tsc.unwrap_or(0),
        };
        let facts = run_facts(&config, machine.restores, clock, false);
        tell_run(machine, facts).map_err(RefuseWork::Run)?;
        machine.config = config;
        if tsc.is_none() {
            self.start.ask_for_clock();
        }
        Ok(Accepted {
            id,
            streams,
            api,
            ends_with_pool,
        })
    }

    /// Lets the guest run, with the streams of its assignment.
    fn begin(&mut self, work: Accepted, machine: &mut Machine) -> Result<PoolLink, BeginError> {
        let Accepted {
            id,
            streams: [stdin, stdout, stderr],
            api,
            ends_with_pool,
        } = work;
        let taken = dup2_stdin(&stdin).and_then(|()| dup2_stdout(&stdout));
        let taken = taken.and_then(|()| dup2_stderr(&stderr));
        taken.map_err(|cause| BeginError::Streams(cause.into()))?;
        let output = machine.bus.output().clone();
        let reopened = machine.devices.reopen_console(&output);
        reopened.map_err(BeginError::Console)?;
        self.start.open();
        self.tell(&MachineNews::Running);
        let socket = api.as_ref().map(|(_, file)| file.path().to_owned());
        runtime_dir::announce(&id, Some(&self.source), socket.as_deref());
        if let (Some((listener, file)), Some(serve)) = (api, self.api.take()) {
            at_end::register(move || file.remove());
            serve(ApiWork {
                id,
                spec: machine.config.spec().clone(),
                listener,
                events: machine.sender.clone(),
                mmds: machine.mmds.clone(),
            });
        }
        Ok(PoolLink {
            socket: Arc::clone(&self.pool),
            ends_with_pool,
        })
    }
}

impl AsFd for Seat {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pool.as_fd()
    }
}

/// An assignment that is proved.
#[derive(Debug)]
struct Accepted {
    id: String,
    streams: [OwnedFd; 3],
    api: Option<(UnixListener, SocketFile)>,
    ends_with_pool: bool,
}

impl PoolLink {
    /// What the socket says, which is readable.
    #[must_use]
    pub fn look(&self) -> PoolSays {
        match self.socket.receive::<serde_json::Value>() {
            // It has nothing to say to a machine that runs.
            Ok(Some(_)) => PoolSays::Nothing,
            Err(cause) if cause.is_would_block() => PoolSays::Nothing,
            Err(ReceiveError::Json(_) | ReceiveError::TooLong { .. } | ReceiveError::LostFds) => {
                PoolSays::Nothing
            }
            Ok(None) | Err(ReceiveError::Socket(_)) if self.ends_with_pool => PoolSays::End,
            Ok(None) | Err(ReceiveError::Socket(_)) => PoolSays::Gone,
        }
    }
}

impl AsFd for PoolLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Has [`tell_end`] speak to `pool`.
pub fn set_pool(pool: &Arc<PacketSocket>) {
    // A process is a machine of one pool.
    let _ = POOL.set(Arc::clone(pool));
}

fn is_id(id: &str) -> bool {
    let is_plain = id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    is_plain && (1..=limits::ID_BYTES_MAX).contains(&id.len())
}
