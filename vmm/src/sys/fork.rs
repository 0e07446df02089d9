//! A second process that goes on with this one's memory as it is now, made while other threads run.

use std::io;
use std::os::fd::RawFd;

use rustix::process::{Pid, WaitOptions, waitpid};

use super::process::Forked;

/// Makes a process that goes on from here: it has this thread alone, this process's memory as it is now, and all of its
/// descriptors.
///
/// Locks that other threads hold now are never opened in it, those of the C library's heap excepted, which fork(3) takes care
/// of. So it must do nothing but use what this thread owns, allocate, and make system calls; and it must end by
/// [`super::process::exit_now`].
///
/// # Errors
/// The kernel's: no memory, or no processes left.
pub fn fork_thread() -> io::Result<Forked> {
    // SAFETY: the new process is a copy, in which no other thread is half-way through anything that Rust counts on: what
    // they have written is there or not, and what a lock guards is not looked at (see above).
    match unsafe { libc::fork() } {
        0 => Ok(Forked::Child),
        pid if pid > 0 => Ok(Forked::Parent(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes all descriptors of this process but the standard streams and `kept`. What owned one of them must not be used any
/// more, nor dropped.
///
/// # Errors
/// The kernel's: it has no close_range(2) before Linux 5.9.
pub fn close_all_but(mut kept: Vec<RawFd>) -> io::Result<()> {
    kept.retain(|fd| *fd > libc::STDERR_FILENO);
    kept.sort_unstable();
    kept.dedup();
    let mut first = libc::STDERR_FILENO.unsigned_abs() + 1;
    for fd in kept.iter().map(|fd| fd.unsigned_abs()) {
        if first < fd {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: integers only; the caller of `close_all_but` promises that nothing in this process uses these descriptors.
    if unsafe { libc::close_range(first, last, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The process id of the process that started this one; 0 for one outside this name space.
#[must_use]
pub fn parent() -> i32 {
    rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get())
}

/// How a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildEnd {
    /// With this status.
    Exited(i32),
    /// By the signal of this number.
    Killed(i32),
}

/// Waits for the end of the child `pid`, which is over or about to be.
///
/// # Errors
/// The kernel's: it is no child of ours.
pub fn reap(pid: i32) -> io::Result<ChildEnd> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD))?;
    let found = rustix::io::retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()))?;
    // Without WNOHANG there is always one.
    let Some((_, status)) = found else {
        return Err(io::Error::from_raw_os_error(libc::ECHILD));
    };
    Ok(match (status.terminating_signal(), status.exit_status()) {
        (Some(signal), _) => ChildEnd::Killed(signal),
        (None, status) => ChildEnd::Exited(status.unwrap_or(0)),
    })
}
