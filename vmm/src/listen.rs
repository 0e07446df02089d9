//! Sockets on which the process listens, for the API and for vsock: made, found stale, taken away.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::limits;

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Clients of the REST API.
    Api,
    /// Clients of the guest's sockets.
    Vsock,
    /// Machines that begin from a frozen one.
    Frozen,
}

impl Purpose {
    const fn name(self) -> &'static str {
        match self {
            Self::Api => "API socket",
            Self::Vsock => "vsock socket",
            Self::Frozen => "memory socket",
        }
    }

    const fn backlog(self) -> i32 {
        match self {
            Self::Api => limits::API_BACKLOG,
            Self::Vsock => limits::VSOCK_BACKLOG,
            Self::Frozen => limits::FROZEN_BACKLOG,
        }
    }
}

/// Why there is no socket to listen on. Nothing was made, and what lay there lies there.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A Unix socket cannot have such a name.
    #[error(
        "Failed to open the {} at: {}: the path has {} bytes; allowed: 1–{}",
        purpose.name(), path.display(), path.as_os_str().len(), limits::SOCKET_PATH_BYTES_MAX
    )]
    PathLength {
        /// What for.
        purpose: Purpose,
        /// The path.
        path: PathBuf,
    },
    /// Something else is there.
    #[error(
        "Failed to open the {} at: {}. Check that it is not already used.: {found}",
        purpose.name(), path.display()
    )]
    InUse {
        /// What for.
        purpose: Purpose,
        /// The path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The host refuses.
    #[error("Failed to open the {} at: {}", purpose.name(), path.display())]
    Host {
        /// What for.
        purpose: Purpose,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// What tells a file from another one that has come in its place. That may have the same inode, so when it was made belongs to it:
/// nobody writes a socket, and another mode or owner leaves that time as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    modified: (i64, i64),
}

impl Identity {
    fn of(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            modified: (found.mtime(), found.mtime_nsec()),
        }
    }
}

/// The file of a socket that is listened on. Dropped or removed, the file goes; but never one that somebody else has put
/// in its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Identity,
}

impl SocketFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the file away: what to call before the process ends without dropping anything.
    pub fn remove(&self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // Gone already, or not to be had: there is nobody to tell.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Leaves the file to another process that listens too, and takes it away.
    pub fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Listens on `path`. A socket that nobody listens on any more, left by a process that was killed, is replaced; one that
/// is in use, and whatever else lies there, is respected.
///
/// # Errors
/// [`ListenError`].
pub fn listen(path: &Path, purpose: Purpose) -> Result<(UnixListener, SocketFile), ListenError> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.len() > limits::SOCKET_PATH_BYTES_MAX || bytes.contains(&0) {
        let path = path.into();
        return Err(ListenError::PathLength { purpose, path });
    }
    let host = |cause: io::Error| ListenError::Host {
        purpose,
        path: path.into(),
        cause,
    };
    let bound = match bind(path, purpose) {
        Err(Errno::ADDRINUSE) => {
            remove_stale(path, purpose)?;
            bind(path, purpose)
        }
        bound => bound,
    };
    let listener = bound.map_err(|cause| host(cause.into()))?;
    let identity = identity(path).map_err(host)?;
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    Ok((listener, SocketFile { path, identity }))
}

fn bind(path: &Path, purpose: Purpose) -> Result<UnixListener, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, purpose.backlog())?;
    Ok(UnixListener::from(socket))
}

/// Removes the socket at `path` if nobody listens on it; anything else is left alone. Not followed.
///
/// # Errors
/// [`ListenError`]: why it is still there, or that there is none.
pub fn remove_stale(path: &Path, purpose: Purpose) -> Result<(), ListenError> {
    let in_use = |found| ListenError::InUse {
        purpose,
        path: path.into(),
        found,
    };
    let host = |cause| ListenError::Host {
        purpose,
        path: path.into(),
        cause,
    };
    // Not followed: a symbolic link is something else, whatever it leads to.
    let found = fs::symlink_metadata(path).map_err(host)?;
    if !found.file_type().is_socket() {
        return Err(in_use("a file that is no socket is there"));
    }
    match connect(path) {
        Err(Errno::CONNREFUSED) => {}
        // A full queue (EAGAIN) is one that somebody serves.
        Ok(()) | Err(_) => return Err(in_use("a process listens on it")),
    }
    // Another process may have come to the same end, and listen already.
    if identity(path).map_err(host)? == Identity::of(&found) {
        fs::remove_file(path).map_err(host)?;
    }
    Ok(())
}

fn connect(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    // Who gives out frozen memory takes one that leaves without a word for a machine that will not come; this is none, and what it
    // says nobody understands. Whether it is heard does not matter.
    let _ = rustix::net::send(&socket, &[0], SendFlags::NOSIGNAL);
    Ok(())
}

fn identity(path: &Path) -> io::Result<Identity> {
    fs::symlink_metadata(path).map(|found| Identity::of(&found))
}

#[cfg(test)]
#[path = "listen_tests.rs"]
mod tests;
