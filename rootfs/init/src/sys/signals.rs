//! Signals of PID 1: blocked, and read from a file descriptor.

use std::fs::File;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};

use rustix::process::Pid;

fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: writes the whole set.
    let _ = unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the set is initialised; a number that is no signal is refused.
        let _ = unsafe { libc::sigaddset(set.as_mut_ptr(), *signal) };
    }
    // SAFETY: initialised by sigemptyset.
    unsafe { set.assume_init() }
}

/// Signals that wait to be read.
#[derive(Debug)]
pub struct Signals {
    file: File,
}

impl Signals {
    /// Blocks `signals` for this thread and those that it starts, and collects them. PID 1 gets no signal that it neither
    /// handles nor blocks.
    ///
    /// # Errors
    /// Those of `sigprocmask` and `signalfd`.
    pub fn collect(signals: &[i32]) -> io::Result<Self> {
        let set = set_of(signals);
        // SAFETY: the set is ours; no old one is asked for.
        let done =
            unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: -1 asks for a new descriptor; the set is ours.
        let fd = unsafe { libc::signalfd(-1, &raw const set, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nothing else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        Ok(Self { file })
    }

    /// The next signal, if one waits.
    pub fn take(&mut self) -> Option<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.file.read_exact(&mut info).ok()?;
        // The number comes first (signalfd(2)).
        let number = info.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))?;
        i32::try_from(number).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Gives the calling process what a program expects: nothing blocked, SIGPIPE ends it (Rust's runtime ignores it).
pub fn restore_defaults() {
    let none = set_of(&[]);
    // SAFETY: the set is ours; no old one is asked for.
    let _ = unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
    // SAFETY: the default action is no function of ours.
    let _ = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Takes a blocked `signal` back that waits for this process, if it does.
pub fn forget(signal: i32) {
    let set = set_of(&[signal]);
    let at_once = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: set and time are ours; no more than the number is asked for.
    let _ = unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const at_once) };
}

/// Sends `signal`, of whatever number, to `pid`. A program that is gone, or a number that is none, is ignored.
pub fn send(pid: Pid, signal: i32) {
    // SAFETY: no memory is involved.
    let _ = unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) };
}

/// Sends `signal` to all processes of the group that `leader` leads. A group that is gone, or a number that is none, is ignored.
pub fn send_to_group(leader: Pid, signal: i32) {
    // SAFETY: no memory is involved.
    let _ = unsafe { libc::kill(-leader.as_raw_nonzero().get(), signal) };
}
