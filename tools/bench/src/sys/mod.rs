//! What needs unsafe code: processor time of children and their end with us, disk I/O of many requests at a time, and interfaces of
//! the network.

pub(crate) mod link;
mod uring;

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;
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

/// Processor time that all threads of process `pid` have had so far, those that have ended too (clock_getcpuclockid(3)).
pub(crate) fn cpu_of(pid: u32) -> io::Result<Duration> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from(Errno::SRCH))?;
    let mut clock = libc::CLOCK_MONOTONIC;
    // SAFETY: the C library writes the number of a clock into the integer, which is ours.
    let result = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes the time into the struct, which is ours; for a clock that there is not any more it fails.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
    Ok(seconds + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0)))
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
