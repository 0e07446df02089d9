//! `ptrace`, as much of it as holds a program before its first instruction. Memory is read and written through
//! `/proc/PID/mem`.

use std::io;
use std::mem::offset_of;
use std::ptr;

use rustix::process::Pid;

/// `ptrace` takes and gives words of this size.
type Word = libc::c_long;

fn request(code: libc::c_uint, pid: libc::pid_t, address: usize, data: usize) -> io::Result<Word> {
    let (address, data) = (
        ptr::without_provenance_mut::<libc::c_void>(address),
        ptr::without_provenance_mut::<libc::c_void>(data),
    );
    // SAFETY: none of the requests below has a pointer into our memory as an argument, except PEEKUSER's result, which
    // glibc puts into a variable of its own.
    let answer = unsafe { libc::ptrace(code, pid, address, data) };
    Ok(answer)
}

fn check(answer: Word) -> io::Result<()> {
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The next instruction's address. Registers are named by where they stand in `struct user`, which begins with them.
pub const INSTRUCTION: usize = offset_of!(libc::user_regs_struct, rip);
/// Where the thread's data begin.
pub const THREAD: usize = offset_of!(libc::user_regs_struct, fs_base);

/// The caller is traced by its parent from now on: it stops at its next `execve`.
///
/// # Errors
/// When it may not be.
pub fn trace_me() -> io::Result<()> {
    check(request(libc::PTRACE_TRACEME, 0, 0, 0)?)
}

/// Lets the stopped `pid` run on, with `signal` delivered to it, or 0.
///
/// # Errors
/// When it is not traced, or not stopped.
pub fn go_on(pid: Pid, signal: i32) -> io::Result<()> {
    let signal = usize::try_from(signal).unwrap_or(0);
    check(request(
        libc::PTRACE_CONT,
        pid.as_raw_nonzero().get(),
        0,
        signal,
    )?)
}

/// Lets the stopped `pid` run on, traced no longer.
///
/// # Errors
/// When it is not traced, or not stopped.
pub fn detach(pid: Pid) -> io::Result<()> {
    check(request(
        libc::PTRACE_DETACH,
        pid.as_raw_nonzero().get(),
        0,
        0,
    )?)
}

/// Value of a register of the stopped `pid`.
///
/// # Errors
/// When it is not traced, or not stopped.
pub fn register(pid: Pid, register: usize) -> io::Result<u64> {
    // A word of any value is an answer here: glibc tells a failure by errno alone.
    // SAFETY: the pointer is that of this thread's errno.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: valid as long as the thread lives.
    unsafe { *errno = 0 };
    let pid = pid.as_raw_nonzero().get();
    let answer = request(libc::PTRACE_PEEKUSER, pid, register, 0)?;
    match io::Error::last_os_error().raw_os_error() {
        Some(0) | None => Ok(answer.cast_unsigned()),
        Some(code) => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Sets a register of the stopped `pid`.
///
/// # Errors
/// When it is not traced, or not stopped.
pub fn set_register(pid: Pid, register: usize, value: u64) -> io::Result<()> {
    let value = usize::try_from(value).map_err(|_| io::ErrorKind::InvalidInput)?;
    let pid = pid.as_raw_nonzero().get();
    check(request(libc::PTRACE_POKEUSER, pid, register, value)?)
}
