//! A machine of a pool, from the moment at which its process is there to its end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use lightv_api::template::{Assignment, MachineNews, Refusal};
use lightv_packet::{PacketSocket, ReceiveError, SendError};
use rustix::process::Signal;

use crate::child::{Exit, Process};
use crate::wait;

/// Why there is no machine, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// It could not be made.
    #[error("{}", .0.text)]
    Refused(Refusal),
    /// Its process has ended without a word.
    #[error("Process {pid} of a machine has ended before it was ready; standard error may say why")]
    Gone {
        /// Process id.
        pid: u32,
    },
    /// It says what it should not.
    #[error(
        "Process {pid} of a machine says {news:?} where that cannot be: is it of another version?"
    )]
    Confused {
        /// Process id.
        pid: u32,
        /// What it said.
        news: MachineNews,
    },
    /// It is not ready in time.
    #[error("Cannot wait for process {pid} of a machine")]
    Wait {
        /// Process id.
        pid: u32,
        /// Why; `TimedOut`: the patience is over.
        #[source]
        cause: io::Error,
    },
    /// What it says is no message.
    #[error("Cannot hear of process {pid} of a machine")]
    Receive {
        /// Process id.
        pid: u32,
        /// Why.
        #[source]
        cause: ReceiveError,
    },
}

/// Why an assignment was not given. The machine has ended, or ends.
#[derive(Debug, thiserror::Error)]
#[error("Cannot give work to process {pid} of a machine")]
pub struct AssignError {
    /// Process id.
    pub pid: u32,
    /// Why; EPIPE: the machine has ended, and another may do.
    #[source]
    pub cause: SendError,
}

impl AssignError {
    /// Whether the machine has ended before: another may do.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(&self.cause, SendError::Socket(cause) if cause.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// A machine's socket and process.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) socket: PacketSocket,
    pub(crate) process: Process,
}

impl Link {
    const fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The next that it says, without waiting: `None`: nothing yet. `Err(Gone)`: the socket is closed.
    fn next(&self) -> Result<Option<MachineNews>, MachineError> {
        let pid = self.pid();
        match self.socket.receive() {
            Ok(Some(packet)) => Ok(Some(packet.message)),
            Ok(None) => Err(MachineError::Gone { pid }),
            Err(cause) if cause.is_would_block() => Ok(None),
            Err(cause) => Err(MachineError::Receive { pid, cause }),
        }
    }

    fn wait(&self, patience: Duration) -> Result<(), MachineError> {
        let pid = self.pid();
        wait::readable(self.socket.as_fd(), patience)
            .map_err(|cause| MachineError::Wait { pid, cause })
    }
}

/// A machine that is being made. Readable when it is ready, or is not going to be. Dropped, it ends.
#[derive(Debug)]
pub struct Starting(pub(crate) Link);

/// How far a machine is.
#[derive(Debug)]
pub enum Progress {
    /// It can be given work.
    Ready(Ready),
    /// It is still being made.
    NotYet(Starting),
}

impl Starting {
    /// Its process.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// How far it is, without waiting.
    ///
    /// # Errors
    /// [`MachineError`]: it does not become ready.
    pub fn check(self) -> Result<Progress, MachineError> {
        let pid = self.pid();
        match self.0.next()? {
            None => Ok(Progress::NotYet(self)),
            Some(MachineNews::Ready) => Ok(Progress::Ready(Ready(self.0))),
            Some(MachineNews::Refused(refusal)) => Err(MachineError::Refused(refusal)),
            Some(news) => Err(MachineError::Confused { pid, news }),
        }
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// [`MachineError`]: it does not become ready, or not within `patience`; it ends.
    pub fn wait(self, patience: Duration) -> Result<Ready, MachineError> {
        let mut starting = self;
        loop {
            starting.0.wait(patience)?;
            match starting.check()? {
                Progress::Ready(ready) => return Ok(ready),
                Progress::NotYet(again) => starting = again,
            }
        }
    }
}

impl AsFd for Starting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// A machine that waits for work. Readable when it has ended. Dropped, it ends.
#[derive(Debug)]
pub struct Ready(Link);

impl Ready {
    /// Its process.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Gives it work, with copies of `stdio` as its standard streams. Comes back at once: what becomes of it, [`Running`]
    /// says.
    ///
    /// # Errors
    /// [`AssignError`].
    pub fn assign(
        self,
        assignment: &Assignment,
        stdio: [BorrowedFd<'_>; 3],
    ) -> Result<Running, AssignError> {
        let Self(link) = self;
        let pid = link.pid();
        let sent = link.socket.send(assignment, &stdio);
        sent.map_err(|cause| AssignError { pid, cause })?;
        Ok(Running(link))
    }
}

impl AsFd for Ready {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// What is heard of a machine that was given work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// It runs.
    Running,
    /// The assignment was refused, and nothing has run: see [`Running::into_ready`].
    Refused(Refusal),
    /// It has ended, and its process ends with this status.
    Ended(u8),
    /// Nothing will be heard any more: the process ends, or has ended; [`Running::exit`] says how.
    Closed,
}

/// A machine that was given work. Readable when there is news. Dropped, it goes on, unless its assignment has it end with
/// the pool.
#[derive(Debug)]
pub struct Running(Link);

impl Running {
    /// Its process.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Its process, as a descriptor that is readable when it has ended; `None` after [`Self::exit`] has said how.
    #[must_use]
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.0.process.pidfd()
    }

    /// The next news, without waiting.
    ///
    /// # Errors
    /// [`MachineError`]: what has come cannot be understood.
    pub fn next(&self) -> Result<Option<News>, MachineError> {
        let pid = self.pid();
        match self.0.next() {
            Ok(None) => Ok(None),
            Ok(Some(MachineNews::Running)) => Ok(Some(News::Running)),
            Ok(Some(MachineNews::Refused(refusal))) => Ok(Some(News::Refused(refusal))),
            Ok(Some(MachineNews::Ended(status))) => Ok(Some(News::Ended(status))),
            Ok(Some(news @ MachineNews::Ready)) => Err(MachineError::Confused { pid, news }),
            Err(MachineError::Gone { .. }) => Ok(Some(News::Closed)),
            Err(error) => Err(error),
        }
    }

    /// Waits for news.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn wait(&self, patience: Duration) -> Result<News, MachineError> {
        loop {
            self.0.wait(patience)?;
            if let Some(news) = self.next()? {
                return Ok(news);
            }
        }
    }

    /// After [`News::Refused`]: the machine, which waits for another assignment.
    #[must_use]
    pub fn into_ready(self) -> Ready {
        Ready(self.0)
    }

    /// Sends its process `signal`; one that has ended does not get it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.0.process.signal(signal) {
            Err(cause) if cause.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                Ok(())
            }
            done => done,
        }
    }

    /// How its process has ended, if it has, without waiting.
    ///
    /// # Errors
    /// The kernel's; ECHILD: somebody else has waited for it.
    pub fn exit(&mut self) -> io::Result<Option<Exit>> {
        self.0.process.exit()
    }

    /// Waits for the end of its process.
    ///
    /// # Errors
    /// The kernel's; `TimedOut` when `patience` is over.
    pub fn wait_exit(&mut self, patience: Duration) -> io::Result<Exit> {
        loop {
            if let Some(exit) = self.exit()? {
                return Ok(exit);
            }
            if let Some(pidfd) = self.pidfd() {
                wait::readable(pidfd, patience)?;
            }
        }
    }
}

impl AsFd for Running {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}
