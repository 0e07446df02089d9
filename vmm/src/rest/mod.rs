//! The REST API of this process: socket, server, and the machine behind them.
//!
//! ```text
//!   client --> thread api (hyper) --> thread api-machine, or main: Controller --> Monitor --orders--> control
//! ```
//!
//! A machine that is there from the beginning has the main thread as its vCPU 0, as without an API; else the main thread
//! is the controller.

pub mod late;
mod machine;
mod prometheus;

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use lightv_api::contract::instance::InstanceState;
use lightv_api::exit;
use lightv_api_server::controller::{Controller, Setup, split};
use lightv_api_server::exporter::Exporter;
use lightv_api_server::feed::Feed;
use lightv_api_server::machine::Machine as _;
use lightv_api_server::server;
use lightv_api_server::settings::Settings;

use self::machine::{Begin, Monitor, StartMachineError};
use crate::args::{ApiJob, ServeJob};
use crate::builder::PrepareError;
use crate::jail::Inhabitant;
use crate::jail_plan::JailPlan;
use crate::job::{self, Begun, RunError};
use crate::listen::{ListenError, Purpose, listen};
use crate::metadata::{MetadataError, MetadataFile};
use crate::sandbox::{self, ConfineError, ThreadKind};
use crate::sys::process;
use crate::{at_end, feed, jail, limits, metrics, report, runtime_dir, service_manager, starter};

/// Why the API is not served.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Start(#[from] StartMachineError),
    #[error("Cannot start the thread of the REST API")]
    Thread(#[source] io::Error),
    #[error(transparent)]
    Confine(#[from] ConfineError),
}

impl ServeError {
    const fn exit_status(&self) -> u8 {
        match self {
            Self::Run(cause) => cause.exit_status(),
            Self::Start(cause) => cause.exit_status(),
            Self::Metadata(_) => exit::BAD_CONFIG,
            Self::Listen(_) => exit::FAILURE,
            Self::Thread(_) | Self::Confine(_) => exit::HOST_FAILURE,
        }
    }
}

/// Serves the API until the machine ends, and the process with it. Returns an exit status when it cannot.
#[must_use]
pub fn run(begun: Begun, job: ServeJob) -> u8 {
    run_on(begun, job, None)
}

/// The same in the jail of `plan`. To be called before there is a second thread.
#[must_use]
pub fn run_in_jail(plan: &JailPlan, job: ServeJob) -> u8 {
    match jail::enter_or_end(plan, Inhabitant::serve(&job)) {
        Ok(inside) => {
            let begun = job::begin_in_jail(inside.began_ns, inside.marks);
            run_on(begun, job, inside.listener)
        }
        Err(status) => status,
    }
}

fn run_on(begun: Begun, job: ServeJob, listener: Option<UnixListener>) -> u8 {
    match serve(begun, job, listener) {
        Ok(never) => match never {},
        Err(error) => {
            report::warn(&error);
            error.exit_status()
        }
    }
}

fn serve(
    begun: Begun,
    job: ServeJob,
    listener: Option<UnixListener>,
) -> Result<Infallible, ServeError> {
    let (main_ns, control) = begun.into_control()?;
    let events = open_feed();
    let ServeJob {
        id,
        api,
        outputs,
        confinement,
        run,
    } = job;
    confinement
        .choose(Some(&api.socket))
        .map_err(RunError::from)?;
    control.confine();
    outputs
        .open(&id)
        .map_err(|cause| RunError::from(PrepareError::Outputs(cause)))?;
    let metadata = api.metadata.as_ref().map(MetadataFile::read).transpose()?;
    let made_outside = listener.map(Ok);
    let listener = made_outside.unwrap_or_else(|| listen_at(&api))?;
    let source = run.as_ref().map(|run| run.origin.path().to_owned());
    if run.is_none() {
        let _at = control.wait_confined()?;
        // Networks in user space may be asked for, by a thread that must not start programs.
        starter::start().map_err(ServeError::Thread)?;
    }
    // Before there is a machine, whose vsock is announced with it.
    runtime_dir::announce(&id, source.as_deref(), Some(&api.socket));
    let mut monitor = Monitor::new(control, &id);
    if let Some(metadata) = &metadata {
        monitor.put_metadata(metadata);
    }
    let first = run.map(|run| monitor.begin(Begin { run, main_ns }));
    let (spec, vcpu) = match first.transpose()? {
        Some((spec, vcpu)) => (Some(spec), Some(vcpu)),
        None => (None, None),
    };
    let setup = Setup {
        state: if spec.is_some() {
            InstanceState::Running
        } else {
            InstanceState::NotStarted
        },
        spec: spec.unwrap_or_default(),
        metadata,
        metadata_bytes_max: usize::try_from(api.metadata_bytes_max).unwrap_or(usize::MAX),
        feed: events,
        ..Setup::new(&id)
    };
    let exporter = Arc::new(Exporter::new(prometheus::Machine));
    count_for_lines(&exporter);
    let (service, worker) = split(Controller::new(monitor, setup), Some(exporter));
    let (door, wait) = door();
    server::spawn(listener, service, settings(&api), wait, fail).map_err(ServeError::Thread)?;
    note_startup_cpu(&api);
    runtime_dir::register_announced();
    if !jail::is_inside() {
        service_manager::tell_ready();
    }
    if let Some(vcpu) = vcpu {
        let spawned = worker.spawn(|| sandbox::confine(ThreadKind::ApiMachine, None));
        spawned.map_err(ServeError::Thread)??;
        vcpu.confine()?;
        door.open()?;
        vcpu.run()
    }
    sandbox::confine(ThreadKind::ApiMachine, None)?;
    door.open()?;
    worker.run();
    // The server never lets go of its end.
    job::end_process(exit::FAILURE)
}

/// The server cannot go on.
fn fail(cause: io::Error) {
    report::warn(&ServeError::Thread(cause));
    job::end_process(exit::FAILURE)
}

/// What the server waits behind until all threads are confined.
struct Door {
    confined: Receiver<Result<(), ConfineError>>,
    opened: Sender<()>,
}

/// The door, and how the server's thread waits behind it.
fn door() -> (Door, impl FnOnce() -> io::Result<()> + Send + 'static) {
    let (sender, confined) = channel();
    let (opened, is_open) = channel();
    let wait = move || {
        // Who opens it says what went wrong here, and ends the process.
        let _ = sender.send(sandbox::confine(ThreadKind::Api, None));
        is_open.recv().map_err(io::Error::other)
    };
    (Door { confined, opened }, wait)
}

impl Door {
    /// Lets the server begin.
    ///
    /// # Errors
    /// [`ConfineError`] of the server's thread, which then does not begin.
    fn open(&self) -> Result<(), ConfineError> {
        // A thread that is gone takes the process with it.
        self.confined.recv().unwrap_or(Ok(()))?;
        let _ = self.opened.send(());
        Ok(())
    }
}

fn listen_at(api: &ApiJob) -> Result<UnixListener, ServeError> {
    at_end::make(|| {
        let (listener, socket) = listen(&api.socket, Purpose::Api)?;
        Ok((listener, move || socket.remove()))
    })
}

/// The list of all that happens. The end is the last that clients are told, when the socket and all else that stands for the
/// process is gone: so it is registered before them.
fn open_feed() -> Feed {
    let events = Feed::default();
    let told = events.clone();
    feed::listen(move |what| told.publish(what));
    let told = events.clone();
    at_end::register(move || {
        if let Some(ended) = feed::ending() {
            told.publish(ended);
        }
        told.end(Duration::from_millis(limits::END_TOLD_MS));
    });
    events
}

/// The processor time of a start is that of the process, without what was before it, and of those who led to it.
fn note_startup_cpu(api: &ApiJob) {
    let own_us = process::cpu_us().saturating_sub(api.cpu_before_us);
    let all_us = own_us.saturating_add(api.cpu_of_parents_us);
    let counter = &metrics::get().startup_cpu_us;
    counter.store(all_us, Ordering::Relaxed);
}

/// Firecracker's metrics have the requests too.
fn count_for_lines(exporter: &Arc<Exporter>) {
    let exporter = Arc::clone(exporter);
    metrics::set_api_counts(move || {
        let counts = exporter.counts().into_iter();
        counts
            .map(|(route, count)| ((route.method, route.path), (count.requests, count.refusals)))
            .collect()
    });
}

fn settings(api: &ApiJob) -> Settings {
    Settings {
        body_bytes_max: usize::try_from(api.body_bytes_max).unwrap_or(usize::MAX),
        ..Settings::default()
    }
}
