//! The socket at a path, whoever may write there.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

/// A socket in a folder that a machine may write to. A link in its place is not followed: a monitor that was taken over may have
/// made it, and it would lead to another machine's socket, or the host agent's.
#[derive(Debug)]
pub struct HeldSocket {
    file: File,
}

impl HeldSocket {
    /// The one that is at `path` now.
    ///
    /// # Errors
    /// The kernel's; `ConnectionRefused` for what is no socket.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(CWD, path, flags, Mode::empty())?);
        if !file.metadata()?.file_type().is_socket() {
            let kind = io::ErrorKind::ConnectionRefused;
            return Err(io::Error::new(kind, "it is not a socket"));
        }
        Ok(Self { file })
    }

    /// By which to connect to this very socket, as long as it is held, whatever has come to its path since.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }
}
