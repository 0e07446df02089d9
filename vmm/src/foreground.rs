//! A run with a terminal is two processes: the monitor, and the one that was started, which waits for it. So the monitor can
//! go on when the user detaches, while the shell has its command back, and the terminal is restored however the monitor ends.
//!
//! ```text
//!   shell --starts--> waits (Ended) --fork--> monitor (Leash)
//!                        |  ends                  |
//!                        |<------ its status -----+
//!                        |<------ Leash::let_go --+---> a session of its own, without the terminal
//! ```
//!
//! The monitor does not outlive a process that waits for it: it is told by a signal.

use std::io::{self, PipeReader, PipeWriter, Read, Write};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getppid, kill_process, pidfd_open, setsid,
    waitpid,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::report;
use crate::sandbox::{self, ThreadKind};
use crate::sys::process::{Forked, fork, signal_when_parent_ends};
use crate::sys::signal::{self, SignalFd};
use crate::terminal::Terminal;

/// Why there is no monitor with a terminal.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {what}")]
pub struct ForegroundError {
    /// What was tried.
    what: &'static str,
    /// The kernel's reason.
    #[source]
    cause: io::Error,
}

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Split {
    /// The monitor.
    Monitor(Leash),
    /// The other one. The monitor has ended with this status, or was let go.
    Ended(u8),
}

/// What a monitor with a terminal has of the process that waits for it.
#[derive(Debug)]
pub struct Leash {
    terminal: Terminal,
    pipe: PipeWriter,
}

/// Written when the monitor is let go.
const LET_GO: u8 = b'd';

/// Becomes two processes, of which one is the monitor. To be called before there is a second thread. In the other it comes
/// back when the monitor has ended or was let go, and the terminal is as it was.
///
/// # Errors
/// [`ForegroundError`], in the process that was started.
pub fn split() -> Result<Split, ForegroundError> {
    let failed = |what| move |cause| ForegroundError { what, cause };
    let terminal = Terminal::of_stdin().map_err(failed("read the terminal's settings"))?;
    // What comes from here on waits, and is passed on.
    signal::prepare().map_err(failed("set up signals"))?;
    let (reader, pipe) = io::pipe().map_err(failed("make a pipe"))?;
    let own = rustix::process::getpid();
    match fork().map_err(failed("start the monitor"))? {
        Forked::Child => {
            drop(reader);
            signal_when_parent_ends(signal::parent_gone())
                .map_err(failed("be told of the parent's end"))?;
            // It may have ended before the line above.
            if getppid() != Some(own) {
                crate::sys::process::exit_now(lightv_api::exit::FAILURE);
            }
            Ok(Split::Monitor(Leash { terminal, pipe }))
        }
        Forked::Parent(pid) => {
            drop(pipe);
            let status = wait(pid, reader);
            terminal.restore();
            match status.map_err(failed("wait for the monitor"))? {
                Waited::Ended(status) => Ok(Split::Ended(status)),
                Waited::LetGo => {
                    report::say(&format!(
                        "detached; the machine goes on as process {pid}: kill {pid} ends it"
                    ));
                    Ok(Split::Ended(lightv_api::exit::OK))
                }
            }
        }
    }
}

/// How a wait ended.
enum Waited {
    Ended(u8),
    LetGo,
}

/// Waits for the monitor, and passes on signals.
fn wait(pid: i32, mut reader: PipeReader) -> io::Result<Waited> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
    let monitor = pidfd_open(pid, PidfdFlags::empty())?;
    let signals = SignalFd::open()?;
    sandbox::catch_forbidden()?;
    sandbox::confine(ThreadKind::Foreground, None).map_err(io::Error::other)?;
    let mut may_let_go = true;
    loop {
        let pipe_flags = if may_let_go {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let mut fds = [
            PollFd::new(&monitor, PollFlags::IN),
            PollFd::new(&signals, PollFlags::IN),
            PollFd::new(&reader, pipe_flags),
        ];
        // Without the pipe, whose end is not news twice.
        let watched = if may_let_go { 3 } else { 2 };
        match poll(fds.get_mut(..watched).unwrap_or_default(), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(cause) => return Err(cause.into()),
        }
        let [has_ended, _, has_word] = fds.map(|fd| !fd.revents().is_empty());
        if may_let_go && has_word {
            let mut word = [0];
            if matches!(reader.read(&mut word), Ok(1)) && word == [LET_GO] {
                return Ok(Waited::LetGo);
            }
            may_let_go = false;
        }
        if has_ended {
            let ended = waitpid(Some(pid), WaitOptions::empty())?;
            return Ok(Waited::Ended(
                ended.map_or(lightv_api::exit::FAILURE, |(_, status)| status_of(status)),
            ));
        }
        while let Some(number) = signals.next() {
            pass_on(pid, number);
        }
    }
}

/// Passes a signal on to `pid`. The size of a terminal is told to its whole group.
pub(crate) fn pass_on(pid: Pid, number: libc::c_int) {
    if number == libc::SIGWINCH {
        return;
    }
    if let Some(signal) = Signal::from_named_raw(number) {
        // A monitor that has just ended does not need it.
        let _ = kill_process(pid, signal);
    }
}

/// The exit status that says how a process has ended.
pub(crate) fn status_of(status: WaitStatus) -> u8 {
    let code = status
        .exit_status()
        .and_then(|code| u8::try_from(code).ok());
    let by_signal = || {
        let number = status.terminating_signal()?;
        u8::try_from(number).ok().map(lightv_api::exit::by_signal)
    };
    code.or_else(by_signal).unwrap_or(lightv_api::exit::FAILURE)
}

impl Leash {
    /// The terminal.
    #[must_use]
    pub const fn terminal(&self) -> &Terminal {
        &self.terminal
    }

    /// Leaves the terminal to the process that waits, which then ends: a session of our own, and standard streams that lead
    /// nowhere.
    pub fn let_go(mut self) {
        // Neither can fail: a new process leads no group, and /dev/null is there.
        let _ = setsid();
        if let Ok(null) = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
        {
            let _ = dup2_stdin(&null);
            let _ = dup2_stdout(&null);
            let _ = dup2_stderr(&null);
        }
        report::end_lines_for_raw_terminal(false);
        // It is there, or we would not be.
        let _ = self.pipe.write_all(&[LET_GO]);
    }
}
