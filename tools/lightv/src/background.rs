//! Monitors in the background: with the REST API in the runtime directory, and their output in a file there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use lightv_api::agent::SOCKET_NAME;
use lightv_api::agent::run::RUN_SOCKET_NAME;
use lightv_api::exit;
use lightv_api_client::Client;
use lightv_launch::monitor::{self as launch, EarlyEnd, Place, is_name};
use lightv_vmm::runtime_dir::{self, RegisterError};

use crate::cmd::show;
use crate::failure::{Coded, Failure};
use crate::monitor::{self, MonitorError};
use crate::vms::{self, VmError};

/// How long a monitor may take until it serves: a cold boot of a large image reads all of it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at it.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// Names that are tried when none is given.
const NAMES_MAX: u32 = 10_000;
/// Logs of those that have ended are kept so long.
const LOG_KEPT: Duration = Duration::from_secs(24 * 3600);

/// Why there is nothing in the background.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackgroundError {
    #[error("--name {name}: 1–64 letters, digits and `-` are allowed")]
    Name { name: String },
    #[error("--name {name}: the host agent's socket has that name; choose another one")]
    Reserved { name: String },
    #[error("There is a microVM {name} already; choose another --name, or stop it")]
    Taken { name: String },
    #[error(transparent)]
    Folder(#[from] RegisterError),
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error("Cannot write {}", path.display())]
    Log {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("Cannot start {}", program.display())]
    Start {
        program: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("The microVM was not started: {0}")]
    Ended(#[from] EarlyEnd),
    #[error("The microVM does not serve its API; its messages are in {}", log.display())]
    Silent { log: PathBuf },
}

impl Coded for BackgroundError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Name { .. } | Self::Reserved { .. } | Self::Taken { .. } => exit::BAD_ARGUMENTS,
            Self::Monitor(cause) => cause.exit_code(),
            Self::Vm(cause) => cause.exit_code(),
            Self::Ended(end) => end.exit_code,
            _ => exit::HOST_FAILURE,
        }
    }
}

/// One to be started.
#[derive(Debug)]
pub(crate) struct Background {
    name: String,
    folder: PathBuf,
    /// One at a time: a name is free until its monitor serves.
    _lock: File,
}

impl Background {
    /// Called `name`; or else by the stem of the file that it comes from, with a number if that is taken.
    pub(crate) fn named(name: Option<&str>, source: &Path) -> Result<Self, BackgroundError> {
        let folder = runtime_dir::ensure_folder()?;
        let lock = lock(&folder)?;
        let running: Vec<String> = vms::list()?.into_iter().map(|vm| vm.id).collect();
        forget_old_logs(&folder, &running);
        let is_taken = |name: &String| {
            is_reserved(name)
                || running.contains(name)
                || folder.join(format!("{name}.sock")).exists()
        };
        let name = match name {
            Some(name) => {
                let name = name.to_owned();
                if !is_name(&name) {
                    return Err(BackgroundError::Name { name });
                }
                if is_reserved(&name) {
                    return Err(BackgroundError::Reserved { name });
                }
                if running.contains(&name) {
                    return Err(BackgroundError::Taken { name });
                }
                name
            }
            None => free_name(source, is_taken),
        };
        Ok(Self {
            name,
            folder,
            _lock: lock,
        })
    }

    /// Starts a monitor with `args`, and waits until it serves.
    pub(crate) fn start(&self, args: &[OsString]) -> Result<Started, BackgroundError> {
        let program = monitor::find()?;
        let socket = self.folder.join(format!("{}.sock", self.name));
        let log = self.folder.join(runtime_dir::log_name(&self.name));
        let place = Place {
            id: &self.name,
            socket: &socket,
            log: &log,
        };
        let command = launch::command(&program, place, args);
        let mut command = command.map_err(|cause| BackgroundError::Log {
            path: log.clone(),
            cause,
        })?;
        // Of a group of its own: Ctrl-C at our terminal is not for it.
        command.process_group(0);
        let child = command
            .spawn()
            .map_err(|cause| BackgroundError::Start { program, cause })?;
        let mut started = Started {
            name: self.name.clone(),
            child,
            client: Client::at(&socket),
        };
        started.wait(&log)?;
        Ok(started)
    }
}

/// The lock of the directory, once nobody else has it.
fn lock(folder: &Path) -> Result<File, BackgroundError> {
    let locked = File::open(folder).and_then(|folder| {
        folder.lock()?;
        Ok(folder)
    });
    locked.map_err(|cause| BackgroundError::Log {
        path: folder.to_owned(),
        cause,
    })
}

/// Whether one of the host agent's sockets is called so. It may come to serve later.
fn is_reserved(name: &str) -> bool {
    [SOCKET_NAME, RUN_SOCKET_NAME]
        .iter()
        .any(|socket| socket.strip_suffix(".sock") == Some(name))
}

fn free_name(source: &Path, is_taken: impl Fn(&String) -> bool) -> String {
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let stem: String = stem.chars().map(plain).take(50).collect();
    let stem = if stem.is_empty() { "vm".into() } else { stem };
    let numbered = (2..NAMES_MAX).map(|number| format!("{stem}-{number}"));
    let mut names = std::iter::once(stem.clone()).chain(numbered);
    let free = names.find(|name| !is_taken(name));
    free.unwrap_or_else(|| format!("{stem}-{}", std::process::id()))
}

/// Takes away logs whose machines have long ended. One that cannot be is left.
fn forget_old_logs(folder: &Path, running: &[String]) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_old = || {
            let modified = entry.metadata().and_then(|found| found.modified());
            modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > LOG_KEPT))
        };
        let id = name.strip_suffix(".log");
        if id.is_some_and(|id| !running.iter().any(|known| known == id)) && is_old() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// One that serves.
#[derive(Debug)]
pub(crate) struct Started {
    name: String,
    child: Child,
    client: Client,
}

impl Started {
    fn wait(&mut self, log: &Path) -> Result<(), BackgroundError> {
        let began = Instant::now();
        let folder = runtime_dir::folder();
        loop {
            let status = self.child.try_wait().ok().flatten();
            if let Some(status) = status {
                return Ok(launch::early_end(status, log)?);
            }
            // Written once it serves, for this very process, or for that in its jail.
            if launch::listed(&folder, self.child.id(), &self.name).is_some() {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                self.end();
                return Err(BackgroundError::Silent {
                    log: log.to_owned(),
                });
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Its API.
    pub(crate) const fn client(&self) -> &Client {
        &self.client
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Ends it: it is of no use.
    pub(crate) fn end(&self) {
        let pid = i32::try_from(self.child.id()).ok();
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            // Gone already: that is what is wanted.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    /// Prints its id.
    pub(crate) fn show_id(&self) -> Result<ExitCode, Failure> {
        show(|out| writeln!(out, "{}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_comes_from_the_file_and_is_free() {
        let name = |source: &str, taken: &[&str]| {
            free_name(Path::new(source), |name| taken.contains(&name.as_str()))
        };
        assert_eq!(name("a/web.lv", &[]), "web");
        assert_eq!(name("web.lv", &["web", "web-2"]), "web-3");
        assert_eq!(name("my_app é.lv", &[]), "my-app--");
        assert!(is_name(&name("x".repeat(200).as_str(), &[])));
    }
}
