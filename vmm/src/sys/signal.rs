//! Signals: those that the control loop reads, and the one that takes a vCPU out of the guest.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The signal that makes a system call of a vCPU thread return EINTR.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Signals that the control loop serves.
pub const SERVED: [libc::c_int; 8] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    libc::SIGPWR,
];

/// Those of [`SERVED`] that do not end a process.
const HARMLESS: [libc::c_int; 3] = [libc::SIGUSR1, libc::SIGWINCH, libc::SIGPWR];

/// The signal that the kernel sends when the process that waits for a monitor with a terminal is gone. Served too.
#[must_use]
pub fn parent_gone() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

/// The signal by which a thread tells the loop that the process cannot go on. Served too.
#[must_use]
pub fn cannot_go_on() -> libc::c_int {
    libc::SIGRTMIN() + 2
}

/// Blocks the served signals for this thread and all that it will start, so that they wait until
/// [`open_signal_fd`]'s reader comes; ignores SIGPIPE and SIGXFSZ, which become errors of the write that caused
/// them; and installs the kick.
///
/// # Errors
/// The kernel's.
pub fn prepare() -> io::Result<()> {
    let set = served_set();
    // SAFETY: `set` is an initialised signal set; the old mask is not wanted.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    set_action(libc::SIGPIPE, libc::SIG_IGN)?;
    set_action(libc::SIGXFSZ, libc::SIG_IGN)?;
    set_action(kick_signal(), nothing as *const () as libc::sighandler_t)
}

/// Does nothing: that it runs at all ends the system call that the thread is in.
extern "C" fn nothing(_signal: libc::c_int) {}

fn set_action(signal: libc::c_int, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: an all-zero `sigaction` is valid: no flags (so no SA_RESTART), an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    // SAFETY: `action` is initialised; the handler is SIG_IGN or `nothing`, which touches nothing.
    let result = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn served_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is valid for the write of an empty set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the line above has initialised it.
    let mut set = unsafe { set.assume_init() };
    for signal in SERVED.into_iter().chain([parent_gone(), cannot_go_on()]) {
        // SAFETY: `set` is initialised and `signal` is a valid number.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

/// A descriptor from which the served signals are read.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Opens it, non-blocking.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        let set = served_set();
        // SAFETY: `set` is initialised; -1 asks for a new descriptor.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is new and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal that waits, if any.
    #[must_use]
    pub fn next(&self) -> Option<libc::c_int> {
        self.next_with_origin().map(|(number, _)| number)
    }

    /// The next signal that waits and that somebody has sent: one that a terminal gives to all of a group is passed over.
    #[must_use]
    pub fn next_sent(&self) -> Option<libc::c_int> {
        loop {
            let (number, origin) = self.next_with_origin()?;
            if origin != libc::SI_KERNEL {
                return Some(number);
            }
        }
    }

    fn next_with_origin(&self) -> Option<(libc::c_int, libc::c_int)> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let bytes = size_of::<libc::signalfd_siginfo>();
        // SAFETY: `info` is valid for a write of `bytes`.
        let read = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), bytes) };
        if usize::try_from(read) != Ok(bytes) {
            return None;
        }
        // SAFETY: the kernel has filled the whole structure.
        let info = unsafe { info.assume_init() };
        let number = libc::c_int::try_from(info.ssi_signo).ok()?;
        Some((number, info.ssi_code))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// The signal that waits for this process and ends it, if any: a long job asks now and then.
#[must_use]
pub fn waiting_end() -> Option<u8> {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: `set` is valid for a write.
    if unsafe { libc::sigpending(set.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: `sigpending` has filled it.
    let set = unsafe { set.assume_init() };
    let ends = SERVED.iter().filter(|signal| !HARMLESS.contains(signal));
    let waiting = ends.copied().find(|signal| {
        // SAFETY: `set` is initialised and `signal` is a valid number.
        unsafe { libc::sigismember(&raw const set, *signal) == 1 }
    });
    waiting.and_then(|signal| u8::try_from(signal).ok())
}

/// A thread that can be kicked.
#[derive(Debug, Clone, Copy)]
pub struct KickTarget(libc::pid_t);

impl KickTarget {
    /// The calling thread.
    #[must_use]
    pub fn current_thread() -> Self {
        // SAFETY: gettid has no preconditions.
        Self(unsafe { libc::gettid() })
    }

    /// Makes the system call that the thread is in, KVM_RUN among them, return EINTR. A thread that is gone is no
    /// error.
    pub fn kick(self) {
        self.send(kick_signal());
    }

    /// Sends the thread `signal`. May be called in a signal handler.
    pub fn send(self, signal: libc::c_int) {
        let process = std::process::id();
        // SAFETY: tgkill only addresses threads of this process by the process id, so a reused thread id can at
        // worst kick another thread of ours, whose calls are all repeated on EINTR.
        unsafe { libc::syscall(libc::SYS_tgkill, process, self.0, signal) };
    }
}
