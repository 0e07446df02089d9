//! SIGSYS: what the kernel sends to a thread whose filter forbids the system call that it has just tried.

use std::io;
use std::sync::OnceLock;

/// `si_code` of a SIGSYS that comes from a filter (siginfo.h). Nobody but the kernel can send a signal with it.
const SYS_SECCOMP: libc::c_int = 1;

/// The beginning of `siginfo_t`, as it is for a SIGSYS (sigaction(2)).
#[repr(C)]
struct SigsysInfo {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    _pad: libc::c_int,
    call_addr: *mut libc::c_void,
    call: libc::c_int,
    arch: libc::c_uint,
}

const _: () = assert!(size_of::<SigsysInfo>() <= size_of::<libc::siginfo_t>());

/// A forbidden call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForbiddenCall {
    /// Its number.
    pub number: i32,
    /// The lower half of its second argument: of many calls it says what they do.
    pub second: u32,
}

/// What is done about it.
pub type OnForbidden = fn(ForbiddenCall) -> !;

static ON_FORBIDDEN: OnceLock<OnForbidden> = OnceLock::new();

/// Has `on_forbidden` called in a thread that makes a forbidden call. It runs in a signal handler, at any place of that
/// thread's work: it must not allocate, take a lock, or call what does. A SIGSYS that somebody has sent is passed over.
///
/// # Errors
/// The kernel's.
pub fn catch(on_forbidden: OnForbidden) -> io::Result<()> {
    let _ = ON_FORBIDDEN.set(on_forbidden);
    // SAFETY: an all-zero `sigaction` is valid: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_flags = libc::SA_SIGINFO;
    action.sa_sigaction = caught as *const () as libc::sighandler_t;
    // SAFETY: `action` is initialised; its handler has the form that SA_SIGINFO asks for, and does nothing that a handler
    // must not do.
    let result = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

extern "C" fn caught(_signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a `siginfo_t` of this thread's, which is longer than what is read
    // of it; all of it is integers.
    let info = unsafe { &*info.cast::<SigsysInfo>() };
    if info.code == SYS_SECCOMP
        && let Some(on_forbidden) = ON_FORBIDDEN.get()
    {
        // SAFETY: the third argument of a handler with SA_SIGINFO is a `ucontext_t` of this thread's; registers are integers.
        let context = unsafe { &*context.cast::<libc::ucontext_t>() };
        // The second argument of a system call is in rsi (syscall(2)).
        let second = context.uc_mcontext.gregs.get(libc::REG_RSI as usize);
        on_forbidden(ForbiddenCall {
            number: info.call,
            second: second.map_or(0, |value| u32::try_from(value & 0xffff_ffff).unwrap_or(0)),
        });
    }
}

/// Sleeps for `ms` milliseconds, by a call that every filter allows. May be called in a signal handler.
pub fn sleep_in_handler(ms: u32) {
    let never_changed: u32 = 0;
    let time = libc::timespec {
        tv_sec: i64::from(ms / 1000),
        tv_nsec: i64::from(ms % 1000) * 1_000_000,
    };
    let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word and the time are this frame's, and outlive the call; the word is as expected, so the kernel waits
    // for a wake-up that nobody sends, until the time is over.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            &raw const never_changed,
            operation,
            0,
            &raw const time,
        )
    };
}
