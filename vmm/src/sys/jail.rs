//! What a jail is made of and no crate has without `unsafe`: name spaces, flags of mounts, programs run by descriptor.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use rustix::thread::UnshareFlags;

/// Puts the calling process into new name spaces; those of processes are for its children. For a process with one thread.
///
/// # Errors
/// The kernel's; `EINVAL` for a user name space and more than one thread.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: only name spaces are asked for (never CLONE_FILES, by which threads would come to have different descriptors),
    // and this is the only thread.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// What is set of a mount; what it has already stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountFlags(u64);

impl MountFlags {
    /// No programs, and none with privileges of their owner.
    pub const NO_PROGRAMS: Self = Self(libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC);
    /// No device is opened by a file in it.
    pub const NO_DEVICES: Self = Self(libc::MOUNT_ATTR_NODEV);
    /// Nothing is written.
    pub const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How deep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// This mount.
    One,
    /// And all that are on it.
    All,
}

/// Sets `flags` of the mount at `path` (mount_setattr(2)).
///
/// # Errors
/// The kernel's.
pub fn restrict_mount(path: &Path, flags: MountFlags, depth: Depth) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let attributes = libc::mount_attr {
        attr_set: flags.0,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let depth = match depth {
        Depth::One => 0,
        Depth::All => libc::AT_RECURSIVE,
    };
    // SAFETY: `path` is a NUL-terminated string and `attributes` a structure of the length that is said; both live over the
    // call, which only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            depth,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    outcome(result)
}

/// Closes the descriptors that this process was started with, but for the standard streams and `kept`. To be called before
/// it holds any that it has opened itself.
///
/// # Errors
/// The kernel's, when they cannot be listed.
pub fn close_inherited(kept: &[RawFd]) -> io::Result<()> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        found.extend(number.filter(|number: &RawFd| *number > libc::STDERR_FILENO));
    }
    for number in found.into_iter().filter(|number| !kept.contains(number)) {
        // SAFETY: the caller promises that nothing in this process owns `number`; that of the list itself is closed already.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Has all descriptors but the standard streams closed by the next exec.
///
/// # Errors
/// The kernel's.
pub fn close_at_exec() -> io::Result<()> {
    let first = libc::STDERR_FILENO.unsigned_abs() + 1;
    let flags = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: integers only; no descriptor is closed now.
    outcome(unsafe { libc::close_range(first, u32::MAX, flags) }.into())
}

/// Becomes `program`, an open file. Comes back only when that failed.
///
/// # Errors
/// The kernel's; `ENOENT` also for one that needs a loader which is not there.
pub fn exec(
    program: BorrowedFd<'_>,
    args: &[CString],
    environment: &[CString],
) -> io::Result<Infallible> {
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        let texts = texts.iter().map(|text| text.as_ptr());
        texts.chain([std::ptr::null()]).collect()
    };
    let (args, environment) = (pointers(args), pointers(environment));
    let empty: &CStr = c"";
    // SAFETY: both lists are of NUL-terminated strings and end with a null pointer; they and the strings, which the caller
    // has borrowed to us, live over the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            empty.as_ptr(),
            args.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(io::Error::last_os_error())
}

fn outcome(result: libc::c_long) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
