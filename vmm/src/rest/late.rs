//! The REST API of a machine of a pool: its threads wait, held to their lists, until the machine is given work, and with it a
//! name and a socket.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use lightv_api::contract::instance::InstanceState;
use lightv_api_server::controller::{Controller, ControllerService, Setup, split};
use lightv_api_server::exporter::Exporter;
use lightv_api_server::server;
use lightv_api_server::settings::Settings;

use super::machine::Monitor;
use super::{count_for_lines, fail, open_feed, prometheus};
use crate::control_thread::ControlThread;
use crate::runtime_dir;
use crate::sandbox::{self, ConfineError, ThreadKind};
use crate::seat::{ApiWork, ServeApi};

/// Why the threads do not wait.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant says it")]
pub enum LateApiError {
    #[error("Cannot start a thread of the REST API")]
    Thread(#[source] io::Error),
    #[error(transparent)]
    Confine(#[from] ConfineError),
}

/// Stacks: as those of the server and the controller of any machine.
const STACK_BYTES: usize = 256 << 10;

/// What the server begins with.
type Opening = (UnixListener, ControllerService);

/// Starts the threads, and gives what has them begin. They are confined when this comes back. The loop's `control` is kept
/// for them.
///
/// # Errors
/// [`LateApiError`].
pub fn wait_for_work(control: ControlThread) -> Result<ServeApi, LateApiError> {
    let (open, opening) = channel::<Opening>();
    let (serve, work) = channel::<ApiWork>();
    let server = spawn("api", ThreadKind::Api, move || serve_when_opened(&opening))?;
    let controller = spawn("api-machine", ThreadKind::ApiMachine, move || {
        control_when_told(control, &work, &open);
    })?;
    for confined in [server, controller] {
        // A thread that says nothing takes the process with it.
        confined.recv().unwrap_or(Ok(()))?;
    }
    // The threads wait as long as the process lives.
    Ok(Box::new(move |work| drop(serve.send(work))))
}

fn spawn(
    name: &str,
    kind: ThreadKind,
    body: impl FnOnce() + Send + 'static,
) -> Result<Receiver<Result<(), ConfineError>>, LateApiError> {
    let (sender, confined) = channel();
    let thread = thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_BYTES);
    let started = thread.spawn(move || {
        let result = sandbox::confine(kind, None);
        let is_confined = result.is_ok();
        let _ = sender.send(result);
        if is_confined {
            body();
        }
    });
    started.map(drop).map_err(LateApiError::Thread)?;
    Ok(confined)
}

fn serve_when_opened(opening: &Receiver<Opening>) {
    if let Ok((listener, service)) = opening.recv() {
        match server::run(listener, service, Settings::default()) {
            Ok(never) => match never {},
            Err(cause) => fail(cause),
        }
    }
}

fn control_when_told(control: ControlThread, work: &Receiver<ApiWork>, open: &Sender<Opening>) {
    let Ok(work) = work.recv() else { return };
    let feed = open_feed();
    let monitor = Monitor::of_running(control, &work);
    let setup = Setup {
        state: InstanceState::Running,
        spec: work.spec,
        feed,
        ..Setup::new(&work.id)
    };
    let exporter = Arc::new(Exporter::new(prometheus::Machine));
    count_for_lines(&exporter);
    let (service, worker) = split(Controller::new(monitor, setup), Some(exporter));
    // The server's thread waits as long as the process lives.
    let _ = open.send((work.listener, service));
    runtime_dir::register_announced();
    worker.run();
}
