//! A program that the host wants started: what it is, and its start in a process of its own.
//!
//! Everything is made ready before the process is, which then makes system calls alone: another thread of the agent may hold
//! any lock at that moment.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use lightv_contract::agent::AgentSpec;
use lightv_contract::exec::{StartSpec, TerminalSize, VERSION};
use rustix::fs::{Mode, OFlags, Uid};
use rustix::io::{Errno, FdFlags};
use rustix::pipe::PipeFlags;
use rustix::process::Pid;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::account::{self, Account, FindAccountError};
use crate::control::{ControlError, Orders};
use crate::program::{self, NOT_FOUND, NOT_RUNNABLE, c_string};
use crate::sys::process::{self, Side, Strings};
use crate::sys::signals;

/// Why nothing is started.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    /// No [`StartSpec`].
    #[error("the host's order is none")]
    Form(#[source] serde_json::Error),
    /// Another protocol.
    #[error(
        "the host speaks version {found} of this protocol, and the agent of this guest {VERSION}: build its image anew"
    )]
    Version {
        /// The host's.
        found: u32,
    },
    /// No words.
    #[error("no program is named")]
    Nothing,
    /// The machine's own orders, which say what is not asked for.
    #[error("the orders of the machine")]
    Orders(#[source] ControlError),
    /// Nobody to run it.
    #[error("cannot run {name}")]
    Account {
        /// The program.
        name: String,
        /// Why.
        #[source]
        cause: FindAccountError,
    },
    /// No terminal, pipe or process.
    #[error("cannot make {what} for {name}")]
    Resource {
        /// Which of them.
        what: &'static str,
        /// The program.
        name: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The new process could not become the program.
    #[error("cannot run {name}{}", step.text())]
    Run {
        /// The program, or the folder.
        name: String,
        /// What it tried.
        step: Step,
        /// Why not.
        #[source]
        cause: io::Error,
    },
}

impl LaunchError {
    /// The exit status that a shell has for it.
    #[must_use]
    pub(super) fn status(&self) -> u8 {
        let status = match self {
            Self::Nothing => NOT_FOUND,
            Self::Run {
                step: Step::Execute,
                cause,
                ..
            } if cause.raw_os_error() == Some(libc::ENOENT) => NOT_FOUND,
            _ => NOT_RUNNABLE,
        };
        u8::try_from(status).unwrap_or(u8::MAX)
    }
}

/// What a new process does before it is the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A session of its own, streams, terminal, limits.
    Session,
    /// The folder.
    Folder,
    /// The user.
    User,
    /// `execve`.
    Execute,
}

impl Step {
    const ALL: [Self; 4] = [Self::Session, Self::Folder, Self::User, Self::Execute];

    const fn text(self) -> &'static str {
        match self {
            Self::Session => ": session",
            Self::Folder => ": folder",
            Self::User => ": user",
            Self::Execute => "",
        }
    }
}

/// What a new process tells when it cannot go on: the step, and the error's number.
const REPORT_BYTES: usize = 5;

/// A program, ready to be started.
#[derive(Debug)]
pub(super) struct Launch {
    name: String,
    folder: String,
    words: Strings,
    env: Strings,
    candidates: Vec<CString>,
    workdir: CString,
    account: Account,
    terminal: Option<TerminalSize>,
    has_stdin: bool,
}

/// One that was started.
#[derive(Debug)]
pub(super) struct Launched {
    /// Its process, the leader of its group and session.
    pub(super) pid: Pid,
    /// Tells by its end that the program runs, or by [`read_report`] that it does not.
    pub(super) report: OwnedFd,
    /// Its input.
    pub(super) stdin: Option<OwnedFd>,
    /// Its standard output and error; of a terminal, both are the first.
    pub(super) outputs: [Option<OwnedFd>; 2],
}

/// The agent's ends of a program's streams, and the program's.
struct Streams {
    stdin: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
    own: [OwnedFd; 3],
}

impl Launch {
    /// What `json` asks for; `orders` say what it leaves out.
    ///
    /// # Errors
    /// When it asks for nothing that can be started.
    pub(super) fn plan(json: &[u8], orders: &Orders) -> Result<Self, LaunchError> {
        let start: StartSpec = serde_json::from_slice(json).map_err(LaunchError::Form)?;
        if start.version != VERSION {
            let found = start.version;
            return Err(LaunchError::Version { found });
        }
        let spec = orders.spec().map_err(LaunchError::Orders)?;
        let name = start.words.first().ok_or(LaunchError::Nothing)?.clone();
        let account = find_account(&start, &spec).map_err(|cause| {
            let name = name.clone();
            LaunchError::Account { name, cause }
        })?;
        let env = environment(&start, orders, &account.home);
        let path = program::value(&env, b"PATH").unwrap_or_default();
        let words: Vec<CString> = start
            .words
            .iter()
            .map(|word| c_string(word.as_bytes()))
            .collect();
        let candidates = program::candidates(&c_string(name.as_bytes()), path);
        let folder = start.workdir.or(spec.workdir);
        let folder = folder.unwrap_or_else(|| "/".to_owned());
        Ok(Self {
            words: Strings::new(words),
            env: Strings::new(env),
            candidates,
            workdir: c_string(folder.as_bytes()),
            account,
            terminal: start.terminal,
            has_stdin: start.has_stdin,
            name,
            folder,
        })
    }

    /// Starts it.
    ///
    /// # Errors
    /// When a process, a pipe or a terminal is not to be had.
    pub(super) fn start(&self) -> Result<Launched, LaunchError> {
        let resource = |what| {
            let name = self.name.clone();
            move |cause: Errno| LaunchError::Resource {
                what,
                name,
                cause: cause.into(),
            }
        };
        let streams = match self.terminal {
            Some(size) => self.open_terminal(size).map_err(resource("a terminal"))?,
            None => self.open_pipes().map_err(resource("pipes"))?,
        };
        let (report, told) = pipe().map_err(resource("a pipe"))?;
        let side = process::fork().map_err(|cause| LaunchError::Resource {
            what: "a process",
            name: self.name.clone(),
            cause,
        })?;
        match side {
            Side::Parent(pid) => Ok(Launched {
                pid,
                report,
                stdin: streams.stdin,
                outputs: streams.outputs,
            }),
            Side::Child => {
                let (step, cause) = self.become_program(&streams.own);
                let number = cause.raw_os_error().unwrap_or(0).to_le_bytes();
                let index = Step::ALL.iter().position(|known| *known == step);
                let [a, b, c, d] = number;
                let index = index.and_then(|index| u8::try_from(index).ok());
                // Nobody is there to hear that this fails.
                let _ = rustix::io::write(&told, &[index.unwrap_or(0), a, b, c, d]);
                process::exit_now(NOT_RUNNABLE)
            }
        }
    }

    /// System calls only. Returns when one fails.
    fn become_program(&self, streams: &[OwnedFd; 3]) -> (Step, io::Error) {
        if let Err(cause) = self.begin_session(streams) {
            return (Step::Session, cause.into());
        }
        if let Err(cause) = rustix::process::chdir(self.workdir.as_c_str()) {
            return (Step::Folder, cause.into());
        }
        let Account {
            uid, gid, groups, ..
        } = &self.account;
        if let Err(cause) = process::become_user(*uid, *gid, groups) {
            return (Step::User, cause);
        }
        signals::restore_defaults();
        let mut error = io::Error::from_raw_os_error(libc::ENOENT);
        for candidate in &self.candidates {
            let found = process::execute(candidate, &self.words, &self.env);
            let number = found.raw_os_error();
            if number == Some(libc::ENOENT) || number == Some(libc::ENOTDIR) {
                continue;
            }
            error = found;
            // As execvp(3): perhaps a later folder of PATH has one that may be run.
            if number != Some(libc::EACCES) {
                break;
            }
        }
        (Step::Execute, error)
    }

    fn begin_session(&self, [stdin, stdout, stderr]: &[OwnedFd; 3]) -> Result<(), Errno> {
        rustix::process::setsid()?;
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)?;
        if self.terminal.is_some() {
            rustix::process::ioctl_tiocsctty(stdin)?;
        }
        program::limit_files()
    }

    fn open_terminal(&self, size: TerminalSize) -> Result<Streams, Errno> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::unlockpt(&master)?;
        let own = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        resize(&master, size);
        // Programs that change their user open it anew. One that cannot be given away is still inherited.
        let _ = rustix::fs::fchown(&own, Some(Uid::from_raw(self.account.uid)), None);
        make_nonblocking(&master)?;
        Ok(Streams {
            stdin: Some(copy(&master)?),
            outputs: [Some(master), None],
            own: [copy(&own)?, copy(&own)?, own],
        })
    }

    fn open_pipes(&self) -> Result<Streams, Errno> {
        let (stdin, own_stdin) = if self.has_stdin {
            let (reader, writer) = pipe()?;
            make_nonblocking(&writer)?;
            (Some(writer), reader)
        } else {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            (None, rustix::fs::open("/dev/null", flags, Mode::empty())?)
        };
        let (stdout, own_stdout) = pipe()?;
        let (stderr, own_stderr) = pipe()?;
        for reader in [&stdout, &stderr] {
            make_nonblocking(reader)?;
        }
        Ok(Streams {
            stdin,
            outputs: [Some(stdout), Some(stderr)],
            own: [own_stdin, own_stdout, own_stderr],
        })
    }

    /// What the new process has told: `None` when the program runs.
    #[must_use]
    pub(super) fn read_report(&self, report: &OwnedFd) -> Option<LaunchError> {
        let mut bytes = [0; REPORT_BYTES];
        let length = rustix::io::read(report, &mut bytes).unwrap_or(0);
        let [step, number @ ..] = bytes;
        if length < REPORT_BYTES {
            return None;
        }
        let step = Step::ALL.get(usize::from(step)).copied();
        let step = step.unwrap_or(Step::Session);
        let name = match step {
            Step::Folder => format!("{} in {}", self.name, self.folder),
            _ => self.name.clone(),
        };
        let cause = io::Error::from_raw_os_error(i32::from_le_bytes(number));
        Some(LaunchError::Run { name, step, cause })
    }

    /// Whether it has a terminal.
    #[must_use]
    pub(super) fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }
}

/// Gives the terminal behind `master` another size.
pub(super) fn resize(master: &OwnedFd, size: TerminalSize) {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // One without a size is as good as it gets.
    let _ = rustix::termios::tcsetwinsize(master, size);
}

fn find_account(start: &StartSpec, spec: &AgentSpec) -> Result<Account, FindAccountError> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let user = start.user.as_deref().or(spec.user.as_deref());
    account::find(user, &read("/etc/passwd"), &read("/etc/group"))
}

/// The machine's environment, with what is asked for in place of what has the same name.
fn environment(start: &StartSpec, orders: &Orders, home: &str) -> Vec<CString> {
    let is_replaced = |entry: &&[u8]| {
        let name = entry.split(|byte| *byte == b'=').next();
        let name = name.and_then(|name| std::str::from_utf8(name).ok());
        name.is_some_and(|name| start.env.contains_key(name))
    };
    let asked: Vec<String> = start
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let kept = orders.env().filter(|entry| !is_replaced(entry));
    let given = kept.chain(asked.iter().map(String::as_bytes));
    program::environment(given, home, start.terminal.is_some())
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
}

fn copy(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    let copy = rustix::io::dup(fd)?;
    rustix::io::fcntl_setfd(&copy, FdFlags::CLOEXEC)?;
    Ok(copy)
}

fn make_nonblocking(fd: &OwnedFd) -> Result<(), Errno> {
    rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_takes_the_place_of_the_same_name() {
        let start = StartSpec {
            env: [("HOME", "/x"), ("A", "b")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ..StartSpec::default()
        };
        let env = environment(&start, &Orders::default(), "/root");
        let texts: Vec<&str> = env.iter().filter_map(|entry| entry.to_str().ok()).collect();
        assert_eq!(texts[..2], ["A=b", "HOME=/x"]);
        assert!(
            texts[2].starts_with("PATH=") && texts.len() == 3,
            "{texts:?}"
        );
    }

    #[test]
    fn only_a_program_that_is_not_there_is_not_found() {
        let status = |step, number| {
            let (name, cause) = (String::new(), io::Error::from_raw_os_error(number));
            LaunchError::Run { name, step, cause }.status()
        };
        assert_eq!(status(Step::Execute, libc::ENOENT), 127);
        assert_eq!(status(Step::Execute, libc::EACCES), 126);
        assert_eq!(status(Step::Folder, libc::ENOENT), 126);
    }
}
