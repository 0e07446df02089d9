//! What needs unsafe code: processor time of children and their end with us, disk I/O of many requests at a time, and interfaces of
//! the network.

pub(crate) mod link;
mod uring;

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

pub(crate) use self::uring::{Completion, Ring};

/// Has the process that `command` starts be sent SIGTERM when the calling thread ends, however that happens (prctl(2)).
pub(crate) fn end_with_caller(command: &mut Command) {
    let parent = getpid();
    let bind = move || {
        set_parent_process_death_signal(Some(Signal::TERM))?;
        // It may have ended before.
        match getppid() == Some(parent) {
            true => Ok(()),
            false => Err(io::ErrorKind::NotConnected.into()),
        }
    };
    // SAFETY: between fork and exec `bind` makes two system calls, and neither allocates nor takes a lock: an error that it makes is
    // a number or a kind.
    unsafe { command.pre_exec(bind) };
}

/// Processor time, user's and system's, of all children that have ended and were waited for (getrusage(2)).
pub(crate) fn cpu_of_children() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel fills the struct, which is ours.
    let result = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) };
    if result != 0 {
        return Duration::ZERO;
    }
    // SAFETY: all zeroes are a valid value, and the kernel has written others.
    let usage = unsafe { usage.assume_init() };
    let of = |time: libc::timeval| {
        let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
        seconds + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
    };
    of(usage.ru_utime) + of(usage.ru_stime)
}
