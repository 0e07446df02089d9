//! Machines' processes, which are children of this one, and their ends.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

/// How a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Status(u8),
    /// By this signal.
    Signal(u8),
}

impl Exit {
    /// The status as a shell has it.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Status(status) => status,
            Self::Signal(number) => lightv_api::exit::by_signal(number),
        }
    }
}

/// Processes that nobody holds any more and that have not been waited for.
#[derive(Debug, Default)]
pub(crate) struct Graves(Mutex<Vec<OwnedFd>>);

impl Graves {
    fn lock(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes away those that have ended, without waiting.
    pub(crate) fn reap(&self) {
        self.lock()
            .retain(|pidfd| matches!(ended(pidfd.as_fd()), Ok(None)));
    }

    /// How many have not ended.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }
}

/// A process. Dropped, it is waited for by [`Graves::reap`]; it ends in good order by its socket, which is closed.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    pidfd: Option<OwnedFd>,
    exit: Option<Exit>,
    graves: Arc<Graves>,
}

impl Process {
    pub(crate) fn new(pid: u32, pidfd: OwnedFd, graves: &Arc<Graves>) -> Self {
        Self {
            pid,
            pidfd: Some(pidfd),
            exit: None,
            graves: Arc::clone(graves),
        }
    }

    pub(crate) const fn pid(&self) -> u32 {
        self.pid
    }

    /// Readable once the process has ended; `None` once it was waited for.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(|pidfd| pidfd.as_fd())
    }

    /// How it has ended, if it has. It is waited for then.
    pub(crate) fn exit(&mut self) -> io::Result<Option<Exit>> {
        if let Some(pidfd) = &self.pidfd {
            self.exit = ended(pidfd.as_fd())?;
            if self.exit.is_some() {
                self.pidfd = None;
            }
        }
        Ok(self.exit)
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match &self.pidfd {
            Some(pidfd) => Ok(pidfd_send_signal(pidfd, signal)?),
            None => Ok(()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pidfd) = self.pidfd.take() {
            self.graves.lock().push(pidfd);
        }
        self.graves.reap();
    }
}

/// How the child behind `pidfd` has ended, if it has.
fn ended(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let found = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(pidfd), options))?;
    let byte = |number: i32| u8::try_from(number & 0xff).unwrap_or(u8::MAX);
    Ok(found.and_then(|status| {
        let by_status = status.exit_status().map(|code| Exit::Status(byte(code)));
        by_status.or_else(|| Some(Exit::Signal(byte(status.terminating_signal()?))))
    }))
}
