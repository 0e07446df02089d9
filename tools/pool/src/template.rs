//! A template: a process that has an image open and proved, and makes machines of it by forking.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lightv_api::template::{Refusal, TemplateAnswer, TemplateOrder};
use lightv_packet::{PacketSocket, ReceiveError, SendError};

use crate::child::{Graves, Process};
use crate::machine::{Link, Starting};
use crate::wait;

/// What all machines of a template have in common, beside the image: flags of `lightv-vmm` (docs/pool.md).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// `--net`: networks in user space, of which each machine has its own.
    pub nets: Vec<String>,
    /// `--vsock`: a path with `{pid}` in it, in whose place each machine has its process id.
    pub vsock: Option<PathBuf>,
    /// `--env`.
    pub env: Vec<(String, String)>,
    /// Arguments of machines whose assignment has none; `None`: the image's.
    pub args: Option<Vec<String>>,
    /// Machines can serve the REST API: each has two threads more.
    pub has_api: bool,
    /// Other flags.
    pub flags: Vec<OsString>,
}

/// Variables that a template, and with it each machine's process, has of ours. No guest sees them.
const KEPT: [&str; 5] = [
    "PATH",
    "LIGHTV_RUNTIME_DIR",
    "XDG_RUNTIME_DIR",
    "TMPDIR",
    "RUST_BACKTRACE",
];

/// Why there is no template, or no machine of it.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It cannot be started.
    #[error("Cannot start {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It refuses the image, or cannot fork.
    #[error("{}", .0.text)]
    Refused(Refusal),
    /// Its process has ended.
    #[error("The template (process {pid}) has ended; standard error may say why")]
    Gone {
        /// Process id.
        pid: u32,
    },
    /// It does not answer as it should.
    #[error("The template (process {pid}) does not answer as expected: is it of another version?")]
    Confused {
        /// Process id.
        pid: u32,
    },
    /// It does not answer in time.
    #[error("Cannot wait for the template (process {pid})")]
    Wait {
        /// Process id.
        pid: u32,
        /// Why; `TimedOut`: the patience is over.
        #[source]
        cause: io::Error,
    },
    /// An order cannot be given.
    #[error("Cannot give an order to the template (process {pid})")]
    Send {
        /// Process id.
        pid: u32,
        /// Why.
        #[source]
        cause: SendError,
    },
    /// An answer cannot be had.
    #[error("Cannot hear of the template (process {pid})")]
    Receive {
        /// Process id.
        pid: u32,
        /// Why.
        #[source]
        cause: ReceiveError,
    },
}

/// What is heard of a template.
#[derive(Debug)]
pub enum TemplateEvent {
    /// The image is proved: it can be ordered to fork.
    Ready,
    /// A machine is being made.
    Forked(Starting),
    /// An order was not carried out; of a template that was not ready: the image is refused, and it ends.
    Refused(Refusal),
}

/// The process. Readable when there is an event. Dropped, it ends; machines that were made of it do not.
#[derive(Debug)]
pub struct Template {
    child: Child,
    socket: PacketSocket,
    graves: Arc<Graves>,
}

impl Template {
    /// Starts `program` (`lightv-vmm`) as a template of `image`. Standard error is ours: that of machines too, until they are
    /// given work. Of the environment they have what says where programs and LightV's files are, and no more. Comes back before the image is proved; see [`Self::wait_ready`].
    ///
    /// # Errors
    /// [`TemplateError::Start`].
    pub fn start(program: &Path, image: &Path, options: &Options) -> Result<Self, TemplateError> {
        let mut command = Command::new(program);
        command.env_clear();
        command.envs(std::env::vars_os().filter(|(name, _)| KEPT.iter().any(|kept| name == kept)));
        Self::spawn(command, image, options)
    }

    /// The same by `command`, which says the program, and what it and all machines have of this process: environment, working
    /// folder, arguments before all others.
    ///
    /// # Errors
    /// [`TemplateError::Start`].
    pub fn spawn(
        mut command: Command,
        image: &Path,
        options: &Options,
    ) -> Result<Self, TemplateError> {
        let program = PathBuf::from(command.get_program());
        let failed = |cause| TemplateError::Start {
            program: program.clone(),
            cause,
        };
        let (ours, theirs) = PacketSocket::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        command.arg("--template").arg(image);
        options.add_to(&mut command);
        command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null());
        let child = command.spawn().map_err(failed)?;
        Ok(Self {
            child,
            socket: ours,
            graves: Arc::default(),
        })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Orders it to make a machine; [`Self::next`] says when its process is there. Comes back at once.
    ///
    /// # Errors
    /// [`TemplateError::Send`].
    pub fn order_fork(&self) -> Result<(), TemplateError> {
        self.reap();
        let pid = self.pid();
        let sent = self.socket.send(&TemplateOrder::Fork, &[]);
        sent.map_err(|cause| TemplateError::Send { pid, cause })
    }

    /// The next event, without waiting.
    ///
    /// # Errors
    /// [`TemplateError`]; after [`TemplateError::Gone`] nothing will come.
    pub fn next(&self) -> Result<Option<TemplateEvent>, TemplateError> {
        let pid = self.pid();
        let packet = match self.socket.receive() {
            Ok(Some(packet)) => packet,
            Ok(None) => return Err(TemplateError::Gone { pid }),
            Err(cause) if cause.is_would_block() => return Ok(None),
            Err(cause) => return Err(TemplateError::Receive { pid, cause }),
        };
        Ok(Some(match packet.message {
            TemplateAnswer::Ready => TemplateEvent::Ready,
            TemplateAnswer::Refused(refusal) => TemplateEvent::Refused(refusal),
            TemplateAnswer::Forked { pid: machine } => {
                let fds = <[OwnedFd; 2]>::try_from(packet.fds);
                let [socket, pidfd] = fds.map_err(|_| TemplateError::Confused { pid })?;
                let socket = PacketSocket::from(socket);
                let nonblocking = socket.set_nonblocking(true);
                nonblocking.map_err(|cause| TemplateError::Wait { pid, cause })?;
                let process = Process::new(machine, pidfd, &self.graves);
                TemplateEvent::Forked(Starting(Link { socket, process }))
            }
        }))
    }

    /// Waits until the image is proved: the first event.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn wait_ready(&self, patience: Duration) -> Result<(), TemplateError> {
        match self.wait(patience)? {
            TemplateEvent::Ready => Ok(()),
            TemplateEvent::Refused(refusal) => Err(TemplateError::Refused(refusal)),
            TemplateEvent::Forked(_) => Err(TemplateError::Confused { pid: self.pid() }),
        }
    }

    /// Makes a machine, and waits until its process is there: some 0.2 ms.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn fork(&self, patience: Duration) -> Result<Starting, TemplateError> {
        self.order_fork()?;
        match self.wait(patience)? {
            TemplateEvent::Forked(starting) => Ok(starting),
            TemplateEvent::Refused(refusal) => Err(TemplateError::Refused(refusal)),
            TemplateEvent::Ready => Err(TemplateError::Confused { pid: self.pid() }),
        }
    }

    /// Waits for an event.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn wait(&self, patience: Duration) -> Result<TemplateEvent, TemplateError> {
        let pid = self.pid();
        loop {
            let waited = wait::readable(self.socket.as_fd(), patience);
            waited.map_err(|cause| TemplateError::Wait { pid, cause })?;
            if let Some(event) = self.next()? {
                return Ok(event);
            }
        }
    }

    /// Waits for processes of machines that were dropped and have ended, without waiting for others. Done by every order
    /// and every drop too.
    pub fn reap(&self) {
        self.graves.reap();
    }

    /// Machines that were dropped and have not ended yet.
    #[must_use]
    pub fn dying(&self) -> usize {
        self.graves.len()
    }
}

impl AsFd for Template {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        // It has nothing to tidy up. One that has ended does not get it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Options {
    fn add_to(&self, command: &mut Command) {
        for net in &self.nets {
            command.args(["--net", net]);
        }
        if let Some(vsock) = &self.vsock {
            command.arg("--vsock").arg(vsock);
        }
        for (name, value) in &self.env {
            command.args(["--env", &format!("{name}={value}")]);
        }
        if self.has_api {
            command.arg("--template-api");
        }
        command.args(&self.flags);
        if let Some(args) = &self.args {
            command.arg("--").args(args);
        }
    }
}
