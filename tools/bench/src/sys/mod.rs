//! What needs unsafe code: processor time of children, disk I/O of many requests at a time, and interfaces of the network.

pub(crate) mod link;
mod uring;

use std::time::Duration;

pub(crate) use self::uring::{Completion, Ring};

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
