//! A process that is watched: by a descriptor, so that no other one is ever meant.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use lightv_api::agent::sandbox::Sandbox;
use lightv_launch::monitor::children_of;
use lightv_pool::{Exit, MachineError, News, Running};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, pidfd_open,
    pidfd_send_signal, waitid, waitpid,
};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// A monitor's process.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    descriptor: AsyncFd<OwnedFd>,
    /// A machine of a pool, which waits for its process itself.
    pooled: RefCell<Option<Running>>,
    /// The one outside of a jail, which takes away what the machine has outside when that has ended.
    is_keeper: bool,
    /// What it keeps was told to end.
    has_killed: Cell<bool>,
    is_over: Cell<bool>,
}

/// Kills the child `pid`, which nobody has waited for, and waits for it: one that cannot be watched.
pub fn end_child(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // One that has ended does not get it; nobody else has its id before it is waited for.
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
}

/// How a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessEnd {
    /// By itself, with this status.
    Exited(u8),
    /// By this signal.
    Killed(u8),
    /// It was not our child: nobody can say.
    Unknown,
}

impl ProcessEnd {
    /// As shells have it: 128 and the signal's number for one that was killed.
    #[must_use]
    pub const fn exit_code(self) -> Option<u8> {
        match self {
            Self::Exited(code) => Some(code),
            Self::Killed(signal) => Some(128_u8.saturating_add(signal)),
            Self::Unknown => None,
        }
    }
}

impl Process {
    /// The process `pid`, as it is now. Whoever started it has not waited for it, or proves afterwards which one it is.
    ///
    /// # Errors
    /// The kernel's; ESRCH when there is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or(io::Error::from(Errno::SRCH))?;
        let descriptor = pidfd_open(raw, PidfdFlags::NONBLOCK)?;
        Ok(Self {
            pid,
            descriptor: sys::watch(descriptor)?,
            pooled: RefCell::default(),
            is_keeper: false,
            has_killed: Cell::new(false),
            is_over: Cell::new(false),
        })
    }

    /// The same, which may be the keeper of the jail of `sandbox`.
    ///
    /// # Errors
    /// The kernel's; ESRCH when there is none.
    pub fn open_of(sandbox: &Sandbox, pid: u32) -> io::Result<Self> {
        Ok(Self {
            is_keeper: sandbox.jailed,
            ..Self::open(pid)?
        })
    }

    /// That of a machine of a pool.
    ///
    /// # Errors
    /// The kernel's; it is killed then.
    pub fn of_pool(running: Running) -> io::Result<Self> {
        let copy = || {
            let descriptor = running.pidfd().ok_or(io::Error::from(Errno::SRCH))?;
            sys::watch_copy(&descriptor)
        };
        let descriptor = match copy() {
            Ok(descriptor) => descriptor,
            Err(cause) => {
                // Without it nobody would see its end, and it goes on without us.
                let _ = running.signal(Signal::KILL);
                return Err(cause);
            }
        };
        Ok(Self {
            pid: running.pid(),
            descriptor,
            pooled: RefCell::new(Some(running)),
            is_keeper: false,
            has_killed: Cell::new(false),
            is_over: Cell::new(false),
        })
    }

    /// What a machine of a pool says next, without waiting. Of any other process nothing will be heard.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn news(&self) -> Result<Option<News>, MachineError> {
        match &*self.pooled.borrow() {
            Some(running) => running.next(),
            None => Ok(Some(News::Closed)),
        }
    }

    /// Its id.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has been seen to be over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over.get()
    }

    /// Sends it `signal`. One that has ended does not get it. SIGKILL to a keeper is for what it keeps, so that it tidies up and
    /// ends with the status of that; the second one is its own. Before it has started that, SIGTERM has it end in order.
    ///
    /// # Errors
    /// The kernel's.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let is_for_kept =
            self.is_keeper && signal == Signal::KILL && !self.has_killed.replace(true);
        let signal = match is_for_kept {
            true if kill_children(self.pid)? => return Ok(()),
            true => Signal::TERM,
            false => signal,
        };
        match pidfd_send_signal(self.descriptor.get_ref(), signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(cause) => Err(cause.into()),
        }
    }

    /// Waits until it is over. Its id stays taken until [`reap`](Self::reap).
    pub async fn over(&self) {
        // The descriptor is readable from its end on, for ever.
        let readable = self.descriptor.readable().await;
        if let Ok(mut guard) = readable {
            guard.retain_ready();
        }
        self.is_over.set(true);
    }

    /// How it has ended; to be called once, after [`over`](Self::over).
    #[must_use]
    pub fn reap(&self) -> ProcessEnd {
        if let Some(running) = &mut *self.pooled.borrow_mut() {
            return match running.exit() {
                Ok(Some(Exit::Status(status))) => ProcessEnd::Exited(status),
                Ok(Some(Exit::Signal(signal))) => ProcessEnd::Killed(signal),
                Ok(None) | Err(_) => ProcessEnd::Unknown,
            };
        }
        let id = WaitId::PidFd(self.descriptor.get_ref().as_fd());
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let Ok(Some(status)) = waitid(id, options) else {
            return ProcessEnd::Unknown;
        };
        let small = |number: Option<i32>| number.and_then(|number| u8::try_from(number).ok());
        match (
            small(status.exit_status()),
            small(status.terminating_signal()),
        ) {
            (Some(code), _) => ProcessEnd::Exited(code),
            (None, Some(signal)) => ProcessEnd::Killed(signal),
            (None, None) => ProcessEnd::Unknown,
        }
    }
}

/// Kills the children of the process `pid`; whether there was one.
fn kill_children(pid: u32) -> io::Result<bool> {
    let mut has_killed = false;
    for child in children_of(pid) {
        let Some(child_pid) = i32::try_from(child).ok().and_then(Pid::from_raw) else {
            continue;
        };
        let Ok(descriptor) = pidfd_open(child_pid, PidfdFlags::empty()) else {
            // It has ended.
            continue;
        };
        // Now it is this very process, and a child if it still is one.
        if children_of(pid).contains(&child) {
            match pidfd_send_signal(&descriptor, Signal::KILL) {
                Ok(()) => has_killed = true,
                Err(Errno::SRCH) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
    }
    Ok(has_killed)
}

/// The processes of this host that serve a microVM's API at `socket`, by their command lines: what a start has left that was
/// never written down.
pub fn serving(socket: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| serves(*pid, socket)).collect()
}

/// Whether the process `pid` was started to serve `socket`.
#[must_use]
pub fn serves(pid: u32, socket: &Path) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let socket = socket.as_os_str().as_encoded_bytes();
    words
        .windows(2)
        .any(|pair| pair == [&b"--api-sock"[..], socket])
}
