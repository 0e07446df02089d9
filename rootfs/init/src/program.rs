//! The program: its words, environment, identity, and its start.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;

use lightv_contract::agent::AgentSpec;
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, Signal};

use crate::account::{self, Account, FindAccountError};
use crate::control::Orders;
use crate::message::{plain, say};
use crate::sys::process::{self, Side, Strings};
use crate::sys::{ptrace, signals};

/// Exit status when the program is not found, as of a shell.
pub const NOT_FOUND: i32 = 127;
/// Exit status when it cannot be run.
pub const NOT_RUNNABLE: i32 = 126;

/// Where programs are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Open files that a program may ask for; the kernel's own default for PID 1 is 4096.
const OPEN_FILES_MAX: u64 = 524_288;

/// Why there is no program to run.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Neither the orders nor the run name one.
    #[error("no program to run: neither an entrypoint nor arguments are given")]
    Nothing,
    /// Nobody to run it.
    #[error("cannot run the program")]
    Account(#[source] FindAccountError),
}

impl PlanError {
    /// What the machine ends with.
    #[must_use]
    pub fn status(&self) -> i32 {
        match self {
            Self::Nothing => NOT_FOUND,
            Self::Account(_) => NOT_RUNNABLE,
        }
    }
}

/// Whether a program waits before its first instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It runs at once.
    AtOnce,
    /// It is traced, and stops after `execve`.
    Held,
}

/// What is to be run.
#[derive(Debug)]
pub struct Program {
    words: Strings,
    env: Strings,
    /// Files to try, in this order.
    candidates: Vec<CString>,
    workdir: String,
    account: Account,
    has_terminal: bool,
}

impl Program {
    /// The program of these orders, in this guest.
    ///
    /// # Errors
    /// When nothing is to be run, or nobody is there to run it.
    pub fn plan(orders: &Orders, spec: &AgentSpec) -> Result<Self, PlanError> {
        let entrypoint = spec.entrypoint.iter().map(String::as_bytes);
        let words: Vec<CString> = entrypoint.chain(orders.args()).map(c_string).collect();
        let name = words.first().ok_or(PlanError::Nothing)?;
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let user = spec.user.as_deref();
        let account = account::find(user, &read("/etc/passwd"), &read("/etc/group"))
            .map_err(PlanError::Account)?;
        let env = environment(orders.env(), &account.home, orders.has_terminal);
        let path = value(&env, b"PATH").unwrap_or_default();
        Ok(Self {
            candidates: candidates(name, path),
            words: Strings::new(words),
            env: Strings::new(env),
            workdir: spec.workdir.clone().unwrap_or_else(|| "/".to_owned()),
            account,
            has_terminal: orders.has_terminal,
        })
    }

    /// Starts it in a process of its own.
    ///
    /// # Errors
    /// When there is no room for another process. What fails in the new one is said there, and is its exit status.
    pub fn start(&self, start: Start) -> io::Result<Pid> {
        // One that cannot be made is told when the process cannot go there.
        let _ = fs::create_dir_all(&self.workdir);
        match process::fork()? {
            Side::Parent(pid) => Ok(pid),
            Side::Child => process::exit_now(self.become_program(start)),
        }
    }

    /// Returns when that is not possible, with the exit status.
    fn become_program(&self, start: Start) -> i32 {
        if let Err((what, error)) = self.prepare() {
            say(format_args!(
                "cannot run {}: {what}: {}",
                self.name(),
                plain(&error)
            ));
            return NOT_RUNNABLE;
        }
        signals::restore_defaults();
        if start == Start::Held && ptrace::trace_me().is_err() {
            // Who waits for us sees a stop in any case; untraced, it is before `execve` instead of after it.
            let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::STOP);
        }
        let mut error = io::Error::from(Errno::NOENT);
        for candidate in &self.candidates {
            let found = process::execute(candidate, &self.words, &self.env);
            let is_absent = [libc::ENOENT, libc::ENOTDIR].map(Some);
            if is_absent.contains(&found.raw_os_error()) {
                continue;
            }
            error = found;
            // As execvp(3): perhaps a later folder of PATH has one that may be run.
            if error.raw_os_error() != Some(libc::EACCES) {
                break;
            }
        }
        say(format_args!(
            "cannot run {}: {}",
            self.name(),
            plain(&error)
        ));
        if error.raw_os_error() == Some(libc::ENOENT) {
            NOT_FOUND
        } else {
            NOT_RUNNABLE
        }
    }

    /// Session, terminal, limits, folder, identity, in this order: the last takes the right to the others away.
    fn prepare(&self) -> Result<(), (String, io::Error)> {
        let at = |what: &str| {
            let what = what.to_owned();
            move |cause: Errno| (what, cause.into())
        };
        let _ = rustix::process::setsid().map_err(at("session"))?;
        if self.has_terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(at("terminal"))?;
        }
        limit_files().map_err(at("limits"))?;
        rustix::process::chdir(&*self.workdir).map_err(at(&self.workdir))?;
        let Account {
            uid, gid, groups, ..
        } = &self.account;
        process::become_user(*uid, *gid, groups).map_err(|cause| ("user".to_owned(), cause))
    }

    fn name(&self) -> String {
        let name = self.words.first().map(CStr::to_string_lossy);
        name.unwrap_or_default().into_owned()
    }
}

/// As many open files as are usual, and room to ask for more.
pub(crate) fn limit_files() -> Result<(), Errno> {
    let files = Rlimit {
        current: Some(1024),
        maximum: Some(OPEN_FILES_MAX),
    };
    rustix::process::setrlimit(Resource::Nofile, files)
}

/// What the orders' strings are: they end at a NUL.
pub(crate) fn c_string(bytes: &[u8]) -> CString {
    let end = bytes.iter().position(|byte| *byte == 0);
    CString::new(&bytes[..end.unwrap_or(bytes.len())]).unwrap_or_default()
}

/// The run's environment, and what every program may rely on.
pub(crate) fn environment<'a>(
    given: impl Iterator<Item = &'a [u8]>,
    home: &str,
    has_terminal: bool,
) -> Vec<CString> {
    let mut env: Vec<CString> = given.map(c_string).collect();
    let terminal = has_terminal.then_some(("TERM", "xterm"));
    let defaults = [("PATH", DEFAULT_PATH), ("HOME", home)];
    for (name, default) in defaults.into_iter().chain(terminal) {
        if value(&env, name.as_bytes()).is_none() {
            env.push(c_string(format!("{name}={default}").as_bytes()));
        }
    }
    env
}

/// Value of the variable `name`.
pub(crate) fn value<'a>(env: &'a [CString], name: &[u8]) -> Option<&'a [u8]> {
    let of = |entry: &'a CString| entry.to_bytes().strip_prefix(name)?.strip_prefix(b"=");
    env.iter().find_map(of)
}

/// The files that `name` may mean: itself when it has a slash, else one in each folder of `path`.
pub(crate) fn candidates(name: &CStr, path: &[u8]) -> Vec<CString> {
    let bytes = name.to_bytes();
    if bytes.is_empty() {
        return Vec::new();
    }
    if bytes.contains(&b'/') {
        return vec![name.to_owned()];
    }
    let folders = path.split(|byte| *byte == b':');
    folders
        .map(|folder| if folder.is_empty() { b"." } else { folder })
        .map(|folder| c_string(&[folder, b"/", bytes].concat()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(strings: &[CString]) -> Vec<&str> {
        strings
            .iter()
            .map(|string| string.to_str().unwrap())
            .collect()
    }

    #[test]
    fn defaults_stand_in_for_what_is_absent() {
        let env = environment([&b"A=1"[..]].into_iter(), "/srv/me", true);
        let path = format!("PATH={DEFAULT_PATH}");
        assert_eq!(texts(&env), ["A=1", &path, "HOME=/srv/me", "TERM=xterm"]);
        let given = [&b"PATH=/x"[..], b"HOME=/y", b"TERM=z"];
        let env = environment(given.into_iter(), "/", true);
        assert_eq!(texts(&env), ["PATH=/x", "HOME=/y", "TERM=z"]);
        let env = environment(std::iter::empty(), "/", false);
        assert!(value(&env, b"TERM").is_none());
    }

    #[test]
    fn a_name_without_slash_is_looked_for_in_the_path() {
        let check = |name: &str, path: &str, expected: &[&str]| {
            let found = candidates(&c_string(name.as_bytes()), path.as_bytes());
            assert_eq!(texts(&found), expected, "{name} {path}");
        };
        check("sh", "/bin:/usr/bin", &["/bin/sh", "/usr/bin/sh"]);
        check("sh", "/bin::", &["/bin/sh", "./sh", "./sh"]);
        check("./sh", "/bin", &["./sh"]);
        check("/bin/sh", "/usr/bin", &["/bin/sh"]);
        check("", "/bin", &[]);
    }

    #[test]
    fn without_words_there_is_no_program() {
        let found = Program::plan(&Orders::default(), &AgentSpec::default());
        assert_eq!(found.unwrap_err().status(), NOT_FOUND);
    }
}
