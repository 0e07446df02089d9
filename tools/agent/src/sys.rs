//! What of a process can only be set between fork and exec, and how a descriptor is watched.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has `command` start a session of its own: no terminal's end and no group's signal reaches it.
pub(crate) fn in_own_session(command: &mut Command) {
    let start = || rustix::process::setsid().map(drop).map_err(Into::into);
    // SAFETY: the closure makes one system call and touches no memory but its result, so it may run between fork and exec
    // whatever locks other threads of this process hold; an `Errno` becomes an `io::Error` without allocation.
    unsafe { command.pre_exec(start) };
}

/// `descriptor`, to be waited for until it is readable.
///
/// # Errors
/// The kernel's.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` gives one and the same descriptor, which is open as long as it lives; the `AsyncFd` owns it, and
    // lets go of its registration before it drops it.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    watched.map_err(Into::into)
}

/// A copy of a descriptor, to be waited for until it is readable.
///
/// # Errors
/// The kernel's.
pub(crate) fn watch_copy(it: &impl AsFd) -> io::Result<AsyncFd<OwnedFd>> {
    watch(it.as_fd().try_clone_to_owned()?)
}
