//! New processes, and programs in them.

use std::ffi::{CStr, CString};
use std::io;
use std::ptr;

use rustix::process::Pid;

/// Which of the two a process is after [`fork`].
#[derive(Debug, Clone, Copy)]
pub enum Side {
    /// The new process.
    Child,
    /// The old one.
    Parent(Pid),
}

/// Makes a copy of this process. While it has one thread, the copy may do what the process may. Beside the doorbell's thread it
/// may make system calls and nothing else: it takes no lock and no memory until it is another program.
///
/// # Errors
/// Those of `fork`.
pub fn fork() -> io::Result<Side> {
    // SAFETY: the machine's own program is started while the agent has one thread, so no lock is held by a thread that the
    // copy does not have. Programs that the host starts (`exec::launch`) may come while the doorbell's thread waits: their
    // copies take no lock, as all that they need is made before.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Pid::from_raw(pid).map_or(Side::Child, Side::Parent))
}

/// Strings as `execve` takes them.
#[derive(Debug)]
pub struct Strings {
    /// Into `owned`, NULL last.
    pointers: Vec<*const libc::c_char>,
    owned: Vec<CString>,
}

impl Strings {
    /// For these.
    #[must_use]
    pub fn new(owned: Vec<CString>) -> Self {
        let ends = [ptr::null()];
        let pointers = owned
            .iter()
            .map(|string| string.as_ptr())
            .chain(ends)
            .collect();
        Self { pointers, owned }
    }

    /// The first, if there is one.
    #[must_use]
    pub fn first(&self) -> Option<&CStr> {
        self.owned.first().map(CString::as_c_str)
    }
}

/// Runs the program `path` in place of this one. Returns when that is not possible.
#[must_use]
pub fn execute(path: &CStr, args: &Strings, env: &Strings) -> io::Error {
    // SAFETY: `path` and all strings end with NUL, both lists with NULL; they are read only, and live until this returns.
    let _ = unsafe { libc::execve(path.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends this process and runs nothing before.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: no memory is involved.
    unsafe { libc::_exit(status) }
}

/// Whom the calling process, which has one thread, is from now on.
///
/// # Errors
/// When it is not root.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: `groups` is a list of that many numbers.
    let done = unsafe { libc::setgroups(groups.len(), groups.as_ptr()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no memory is involved.
    let done = unsafe { libc::setgid(gid) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no memory is involved.
    let done = unsafe { libc::setuid(uid) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
