//! A template (docs/pool.md): a process with one thread that has an image open and proved, and makes machines of it by
//! forking. Each is a process of its own that waits, complete, for its work ([`crate::seat`]).
//!
//! ```text
//!   pool --Fork--> template --clone--> machine: VM, slots, vCPUs, devices, threads, filters --Ready--> pool
//! ```
//!
//! The pool orders by standard input, and is the parent of all of them.

mod sharing;

use std::convert::Infallible;
use std::error::Error;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use lightv_api::exit;
use lightv_api::template::{MachineNews, Refusal, TemplateAnswer, TemplateOrder};
use lightv_devices::mmds::Mmds;
use lightv_packet::{PacketSocket, ReceiveError, SendError};
use rustix::net::SocketType;

use self::sharing::vsock_of;
use crate::args::TemplateJob;
use crate::boot::Site;
use crate::builder::{PrepareError, Restorable, prove_spec};
use crate::config::{ConfigFaults, MachineConfig};
use crate::confinement::{Confinement, ConfinementError, Written};
use crate::control_thread::{Assignment, ControlThread};
use crate::device_set::HostSide;
use crate::job::{self, RunError};
use crate::machine::Machine;
use crate::outputs;
use crate::report;
use crate::rest::late::{self, LateApiError};
use crate::sandbox::{self, SandboxError};
use crate::seat::{self, Seat, ServeApi};
use crate::snapshot::page_log::PageLog;
use crate::stamps::Stamps;
use crate::sys::process::{self, Sibling};
use crate::vcpu::{self, StartGate};

/// Name of the process, as `ps` has it.
const PROCESS_NAME: &CStr = c"lightv-template";

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "each variant is the failure of the step that its source names"
)]
pub enum TemplateError {
    #[error(
        "--template: standard input is no socket of type SOCK_SEQPACKET; a template is started by a pool (docs/pool.md)"
    )]
    NoPool,
    #[error("--template: cannot take the pool's socket from standard input")]
    Socket(#[source] io::Error),
    #[error("The template cannot limit itself")]
    Sandbox(#[source] SandboxError),
    #[error(transparent)]
    Confinement(#[from] ConfinementError),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error("The image is no template: {0}")]
    Shared(ConfigFaults),
    #[error("Cannot hear of the pool")]
    Receive(#[source] ReceiveError),
    #[error("Cannot answer the pool")]
    Send(#[source] SendError),
}

impl TemplateError {
    const fn exit_status(&self) -> u8 {
        match self {
            Self::NoPool => exit::BAD_ARGUMENTS,
            Self::Prepare(cause) => cause.exit_status(),
            Self::Confinement(_) | Self::Shared(_) => exit::BAD_CONFIG,
            Self::Socket(_) | Self::Sandbox(_) | Self::Receive(_) | Self::Send(_) => exit::FAILURE,
        }
    }
}

/// Why a machine was not made.
#[derive(Debug, thiserror::Error)]
enum MakeError {
    #[error("Cannot make a process for a machine")]
    Fork(#[source] io::Error),
    #[error("Cannot prepare the process of a machine")]
    Process(#[source] io::Error),
    #[error("Cannot track changed pages: no random bytes from the host")]
    PageLog(#[source] io::Error),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Api(#[from] LateApiError),
}

impl MakeError {
    const fn exit_status(&self) -> u8 {
        match self {
            Self::Run(cause) => cause.exit_status(),
            Self::Fork(_) | Self::Process(_) | Self::PageLog(_) | Self::Api(_) => {
                exit::HOST_FAILURE
            }
        }
    }
}

/// What all machines have of the template.
struct Template {
    image: Restorable,
    job: TemplateJob,
}

/// What became of an order, in which process.
enum Made {
    /// The template goes on.
    Elsewhere,
    /// We are the machine.
    Here(PacketSocket),
}

/// Makes machines until the pool is gone, and returns an exit status. In a machine's process it does not return.
#[must_use]
pub fn run(job: TemplateJob) -> u8 {
    process::set_name(PROCESS_NAME);
    let pool = match take_pool() {
        Ok(pool) => pool,
        Err(error) => return refuse_all(None, &error),
    };
    let template = match Template::open(job) {
        Ok(template) => template,
        Err(error) => return refuse_all(Some(&pool), &error),
    };
    match template.serve(&pool) {
        Ok(Some(machine)) => {
            // It is the template's alone.
            drop(pool);
            template.become_machine(machine)
        }
        Ok(None) => exit::OK,
        Err(error) => refuse_all(Some(&pool), &error),
    }
}

fn refuse_all(pool: Option<&PacketSocket>, error: &TemplateError) -> u8 {
    report::warn(error);
    let exit_code = error.exit_status();
    if let Some(pool) = pool {
        // One that is gone needs no reason.
        let _ = pool.send(&TemplateAnswer::Refused(refusal(error, exit_code)), &[]);
    }
    exit_code
}

fn refusal(error: &dyn Error, exit_code: u8) -> Refusal {
    Refusal {
        text: report::text_of(error),
        exit_code,
    }
}

/// The pool's socket, out of the way of machines' standard input.
fn take_pool() -> Result<PacketSocket, TemplateError> {
    let stdin = io::stdin();
    let found = rustix::net::sockopt::socket_type(stdin.as_fd());
    if found != Ok(SocketType::SEQPACKET) {
        return Err(TemplateError::NoPool);
    }
    let failed = TemplateError::Socket;
    let socket = rustix::io::fcntl_dupfd_cloexec(stdin.as_fd(), 3);
    let socket = socket.map_err(|cause| failed(cause.into()))?;
    let null = File::open("/dev/null").map_err(failed)?;
    rustix::stdio::dup2_stdin(&null).map_err(|cause| failed(cause.into()))?;
    Ok(PacketSocket::from(socket))
}

impl Template {
    fn open(job: TemplateJob) -> Result<Self, TemplateError> {
        sandbox::prepare_template().map_err(TemplateError::Sandbox)?;
        job.confinement.choose(None)?;
        let image = Restorable::open(&job.image, job.overrides.clone())?;
        sharing::check(image.config()).map_err(TemplateError::Shared)?;
        Ok(Self { image, job })
    }

    /// Carries out orders until the pool is gone; or, in the process of a machine, gives the machine's socket.
    fn serve(&self, pool: &PacketSocket) -> Result<Option<PacketSocket>, TemplateError> {
        pool.send(&TemplateAnswer::Ready, &[])
            .map_err(TemplateError::Send)?;
        loop {
            let order = match pool.receive::<TemplateOrder>() {
                Ok(Some(packet)) => packet.message,
                Ok(None) => return Ok(None),
                Err(cause @ ReceiveError::Socket(_)) => return Err(TemplateError::Receive(cause)),
                Err(cause) => {
                    let answer = TemplateAnswer::Refused(refusal(&cause, exit::BAD_ARGUMENTS));
                    pool.send(&answer, &[]).map_err(TemplateError::Send)?;
                    continue;
                }
            };
            match order {
                TemplateOrder::Fork => {
                    if let Made::Here(socket) = fork(pool)? {
                        return Ok(Some(socket));
                    }
                }
            }
        }
    }

    /// The rest of the life of a machine's process.
    fn become_machine(&self, pool: PacketSocket) -> ! {
        let pool = Arc::new(pool);
        seat::set_pool(&pool);
        let status = match self.make_and_run(&pool) {
            Ok(never) => match never {},
            Err(error) => {
                report::warn(&error);
                let status = error.exit_status();
                let news = MachineNews::Refused(refusal(&error, status));
                // A pool that is gone needs no reason.
                let _ = pool.send(&news, &[]);
                status
            }
        };
        job::end_process(status)
    }

    /// The recipe: all that is the same for every run, and then vCPU 0, which waits for work.
    fn make_and_run(&self, pool: &Arc<PacketSocket>) -> Result<Infallible, MakeError> {
        // A session of its own: a terminal's signals are for who has started the pool.
        rustix::process::setsid().map_err(|cause| MakeError::Process(cause.into()))?;
        // For what can be opened once only; then it is forbidden again.
        process::allow_dumps().map_err(MakeError::Process)?;
        job::name_process();
        let (main_ns, control) = job::begin().into_control()?;
        let stamps = Arc::new(Stamps::new("restore", main_ns, None, None));
        let site = Site {
            control: &control,
            stamps,
            host: HostSide::default(),
            held: None,
            serial: None,
            mmds: Mmds::default(),
        };
        let config = self.config_of(std::process::id());
        let config = config.map_err(RunError::Prepare)?;
        let prepared = self.image.prepare(config, site);
        let mut machine = prepared.map_err(RunError::Prepare)?;
        if let Some(first) = machine.vcpus.first_mut() {
            vcpu::warm_up(first, self.image.written());
        }
        control.wait_confined().map_err(RunError::Confine)?;
        // Clients of the API name more of them later.
        let is_restricted = !self.job.has_api;
        let rules = is_restricted.then(|| rules(&self.job.confinement, &machine.config));
        let start = Arc::new(StartGate::default());
        let seat = Seat::new(
            Arc::clone(pool),
            Arc::clone(&start),
            &machine,
            &self.job.image,
        );
        let mut seat = seat.map_err(MakeError::Process)?;
        let orders = control.orders();
        if self.job.has_api {
            seat = seat.with_api(wait_for_clients(control, &mut machine)?);
        }
        let (running, first) = machine.start(false).map_err(RunError::Start)?;
        // A proved configuration has at least one vCPU.
        let first = first.ok_or(RunError::NoVcpu)?;
        first.confine().map_err(RunError::Confine)?;
        orders.assign(Assignment {
            running,
            rules: rules.flatten(),
            plan: None,
            leash: None,
            seat: Some(seat),
        });
        first.run_from(&start)
    }

    /// The configuration of the machine whose process id is `pid`.
    fn config_of(&self, pid: u32) -> Result<MachineConfig, PrepareError> {
        let config = self.image.config();
        let Some(vsock) = config.vsock() else {
            return Ok(config.clone());
        };
        let mut spec = config.spec().clone();
        if let Some(spec) = &mut spec.vsock {
            spec.uds_path = vsock_of(&vsock.path, pid);
        }
        prove_spec(spec)
    }
}

/// Has the REST API of `machine` wait, and all be there that it can be asked for.
fn wait_for_clients(control: ControlThread, machine: &mut Machine) -> Result<ServeApi, MakeError> {
    outputs::attach(machine);
    if machine.config.tracks_dirty_pages() {
        machine.page_log = Some(PageLog::new(&machine.ram).map_err(MakeError::PageLog)?);
    }
    Ok(late::wait_for_work(control)?)
}

/// The files that a machine's loop may open.
fn rules(confinement: &Confinement, config: &MachineConfig) -> Option<sandbox::Rules> {
    let nothing = Written {
        images: [None, None],
        timings: None,
    };
    confinement.rules(config, &nothing)
}

/// Makes the process of a machine, and tells the pool.
fn fork(pool: &PacketSocket) -> Result<Made, TemplateError> {
    let made = PacketSocket::pair().and_then(|(ours, theirs)| {
        Ok(match process::fork_sibling()? {
            Sibling::New => (Made::Here(ours), None),
            Sibling::Made { pid, pidfd } => (Made::Elsewhere, Some((pid, pidfd, theirs))),
        })
    });
    let answered = match made {
        Ok((made @ Made::Here(_), _) | (made, None)) => return Ok(made),
        Ok((Made::Elsewhere, Some((pid, pidfd, socket)))) => {
            let fds = [socket.as_fd(), pidfd.as_fd()];
            pool.send(&TemplateAnswer::Forked { pid }, &fds)
        }
        Err(cause) => {
            let error = MakeError::Fork(cause);
            let answer = TemplateAnswer::Refused(refusal(&error, error.exit_status()));
            pool.send(&answer, &[])
        }
    };
    answered.map_err(TemplateError::Send)?;
    Ok(Made::Elsewhere)
}
