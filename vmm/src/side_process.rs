//! A process beside this one, with its memory as it was at one moment, while the machine goes on
//! (docs/adr/0022-live-snapshots.md).
//!
//! ```text
//!   loop:  vCPUs and devices stand still --fork--> they go on; hears by epoll, as of a device
//!   child:                                  +----> closes what is not its own, works, says what went wrong, ends
//! ```
//!
//! The child has the loop's thread, its filter of system calls, and guest memory: what the machine writes from then on goes to
//! pages of the machine's own.

use std::error::Error;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;

use lightv_api::exit;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{Errno, read, retry_on_intr, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, getpid, kill_process};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::limits;
use crate::report;
use crate::sys::fork::{self, ChildEnd};
use crate::sys::process::{self, Forked};

/// Why the process has not done its work. The machine goes on.
#[derive(Debug, thiserror::Error)]
pub enum SideProcessError {
    /// It was not started.
    #[error("Cannot make a copy of the monitor; a machine that is paused is saved without one")]
    Start(#[source] io::Error),
    /// It says why.
    #[error("{0}")]
    Failed(String),
    /// It was killed.
    #[error("The copy of the monitor that was to do it was ended by signal {0}")]
    Killed(i32),
    /// It has ended and not said why.
    #[error("The copy of the monitor that was to do it ended with status {0}")]
    Ended(i32),
    /// How it ended is not known.
    #[error("Cannot learn how the copy of the monitor has ended")]
    Wait(#[source] io::Error),
}

/// What such a process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SideWork {
    /// It writes a snapshot. It ends with this process.
    Write,
    /// It gives out frozen memory to machines that begin from it, and would stand still without it.
    GiveOut,
}

impl SideWork {
    /// The name of the process.
    const fn name(self) -> &'static CStr {
        match self {
            Self::Write => c"lightv-save",
            Self::GiveOut => c"lightv-fork",
        }
    }
}

/// What is heard of the process.
#[derive(Debug)]
pub enum News {
    /// It has come to what others wait for.
    Ready,
    /// It has ended.
    Ended(Result<(), SideProcessError>),
}

/// The process, at work.
#[derive(Debug)]
pub struct SideProcess {
    pid: i32,
    letter: Letter,
    /// What it says; it ends when the process does.
    words: OwnedFd,
    said: Vec<u8>,
}

/// What the child is told after it was made: what takes a while to find out, and need not be known while the machine stands
/// still.
#[derive(Debug)]
struct Letter {
    /// A file in memory.
    sheet: File,
    /// A byte goes through it when the letter is written.
    sealed: OwnedFd,
}

/// The child's side of it.
#[derive(Debug)]
pub struct Parent {
    mouth: OwnedFd,
    sheet: File,
    sealed: OwnedFd,
}

/// What is said by [`Parent::ready`]: no text begins with it.
const READY: u8 = 6;

impl Parent {
    /// What this process is told by [`SideProcess::tell`]. Waits for it.
    ///
    /// # Errors
    /// The kernel's; that it is told nothing any more.
    pub fn hear(&self) -> io::Result<Vec<u8>> {
        let mut byte = [0];
        if retry_on_intr(|| read(&self.sealed, &mut byte))? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bytes = self.sheet.metadata()?.len();
        let mut text = vec![0; usize::try_from(bytes).unwrap_or(0)];
        self.sheet.read_exact_at(&mut text, 0)?;
        Ok(text)
    }

    /// Says that others can count on the child now. It says so once, and before anything else.
    pub fn ready(&self) {
        // Nobody who does not listen waits.
        let _ = write(&self.mouth, &[READY]);
    }

    fn tell(&self, error: &dyn Error) {
        let text = report::text_of(error);
        let length = text.len().min(limits::SIDE_WORDS_BYTES_MAX);
        let bytes = text.as_bytes().get(..length).unwrap_or_default();
        // A pipe takes that much at once. If it does not, the status says that something was wrong.
        let _ = write(&self.mouth, bytes);
    }
}

impl SideProcess {
    /// Starts a process that does `work` with this process's memory as it is now, and holds none of its descriptors but those in
    /// `kept`. To be called by the loop, while vCPUs and devices stand still.
    ///
    /// `work` uses what the calling thread owns, and nothing that another thread may have locked: see
    /// [`fork::fork_thread`].
    ///
    /// # Errors
    /// [`SideProcessError::Start`].
    pub fn start<E: Error>(
        what: SideWork,
        kept: Vec<RawFd>,
        work: impl FnOnce(&Parent) -> Result<(), E>,
    ) -> Result<Self, SideProcessError> {
        let (words, letter, ours) = make_ends().map_err(SideProcessError::Start)?;
        let parent = getpid().as_raw_nonzero().get();
        match fork::fork_thread().map_err(SideProcessError::Start)? {
            Forked::Parent(pid) => Ok(Self {
                pid,
                letter,
                words,
                said: Vec::new(),
            }),
            Forked::Child => {
                let _ends = EndsHere;
                if let Err(error) = begin(what, parent, (&ours, kept)) {
                    ours.tell(&error);
                } else if let Err(error) = work(&ours) {
                    ours.tell(&error);
                } else {
                    process::exit_now(exit::OK);
                }
                process::exit_now(exit::SAVE_FAILED)
            }
        }
    }

    /// Tells it something, once. It may be gone: that is heard by its end.
    ///
    /// # Errors
    /// The kernel's: no memory.
    pub fn tell(&self, text: &[u8]) -> io::Result<()> {
        (&self.letter.sheet).write_all(text)?;
        let _ = write(&self.letter.sealed, &[1]);
        Ok(())
    }

    /// Ends it, and waits until it has ended.
    pub fn end(&self) {
        // Not waited for yet, so the number is its own.
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = fork::reap(self.pid);
    }

    /// What there is to know, without waiting.
    pub fn news(&mut self) -> Option<News> {
        let mut chunk = [0; 512];
        loop {
            match retry_on_intr(|| read(&self.words, &mut chunk)) {
                Ok(0) => return Some(News::Ended(self.reap())),
                Ok(count) => {
                    let first = chunk.first().copied().filter(|_| self.said.is_empty());
                    if first == Some(READY) {
                        // The rest, if any, is the reason of an end, which comes at once.
                        self.said.extend(chunk.iter().take(count).skip(1));
                        return Some(News::Ready);
                    }
                    let room = limits::SIDE_WORDS_BYTES_MAX.saturating_sub(self.said.len());
                    self.said.extend(chunk.iter().take(count.min(room)));
                }
                Err(Errno::AGAIN) => return None,
                Err(cause) => {
                    return Some(News::Ended(Err(SideProcessError::Wait(cause.into()))));
                }
            }
        }
    }

    /// Its end of the pipe is closed: it is ending, its memory is gone already.
    fn reap(&self) -> Result<(), SideProcessError> {
        match fork::reap(self.pid) {
            Ok(ChildEnd::Exited(status)) if status == i32::from(exit::OK) => Ok(()),
            Ok(ChildEnd::Exited(status)) if self.said.is_empty() => {
                Err(SideProcessError::Ended(status))
            }
            Ok(ChildEnd::Exited(_)) => {
                let text = String::from_utf8_lossy(&self.said).into_owned();
                Err(SideProcessError::Failed(text))
            }
            Ok(ChildEnd::Killed(signal)) => Err(SideProcessError::Killed(signal)),
            Err(cause) => Err(SideProcessError::Wait(cause)),
        }
    }
}

impl AsFd for SideProcess {
    /// Becomes readable when there is something to know.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.words.as_fd()
    }
}

/// What is heard of the child, what it is told by, and its side of both.
fn make_ends() -> io::Result<(OwnedFd, Letter, Parent)> {
    let (words, mouth) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let (waited_for, sealed) = pipe_with(PipeFlags::CLOEXEC)?;
    let sheet = File::from(memfd_create("lightv-letter", MemfdFlags::CLOEXEC)?);
    let child = Parent {
        mouth,
        sheet: sheet.try_clone()?,
        sealed: waited_for,
    };
    Ok((words, Letter { sheet, sealed }, child))
}

/// In the child: whatever happens, it never becomes a second loop.
struct EndsHere;

impl Drop for EndsHere {
    fn drop(&mut self) {
        process::exit_now(exit::FAILURE)
    }
}

/// In the child: gives up what is the machine's.
fn begin(what: SideWork, parent: i32, (ours, mut kept): (&Parent, Vec<RawFd>)) -> io::Result<()> {
    match what {
        SideWork::Write => {
            process::signal_when_parent_ends(libc::SIGKILL)?;
            if fork::parent() != parent {
                process::exit_now(exit::FAILURE);
            }
        }
        SideWork::GiveOut => {}
    }
    process::set_name(what.name());
    // Who waits for the end of this process's output does not wait for the child. What is said on standard error all the same,
    // of a forbidden system call, is heard here.
    dup2_stdin(&ours.mouth)?;
    dup2_stdout(&ours.mouth)?;
    dup2_stderr(&ours.mouth)?;
    kept.extend([
        ours.mouth.as_raw_fd(),
        ours.sheet.as_raw_fd(),
        ours.sealed.as_raw_fd(),
    ]);
    fork::close_all_but(kept)
}
