//! Files that appear whole or not at all, and the standard streams without a buffer.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Opens a file without a name in `directory`, with `mode` as the process's umask lets it: when the process dies, nothing is
/// left.
///
/// # Errors
/// The kernel's; `EOPNOTSUPP` or `EISDIR` where the file system has no such files.
pub fn open_unnamed(directory: &Path, mode: u32) -> io::Result<File> {
    let directory = CString::new(directory.as_os_str().as_bytes())?;
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: `directory` is a NUL-terminated string that lives over the call.
    let fd = unsafe { libc::open(directory.as_ptr(), flags, mode) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is new and belongs to nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Gives an unnamed file the name `path`, which must be free.
///
/// # Errors
/// The kernel's; `EEXIST` when the name is taken.
pub fn link_unnamed(file: &File, path: &Path) -> io::Result<()> {
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both are NUL-terminated strings that live over the call.
    let result = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Standard output and error, unbuffered: what a guest prints is out before its next instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandardStream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

impl io::Write for StandardStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fd = match self {
            Self::Stdout => libc::STDOUT_FILENO,
            Self::Stderr => libc::STDERR_FILENO,
        };
        // SAFETY: `bytes` is valid for a read of its length. The descriptor is ours: Rust's runtime opens /dev/null
        // for those of 0–2 that the caller left closed.
        let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
