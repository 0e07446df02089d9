//! Guest memory that another process serves page by page: Firecracker's hand-shake (`mem_backend` of the type `Uffd`).
//!
//! One message to the socket: where in this process which part of the memory file belongs, as JSON, and the descriptor by
//! which faults are told. Nothing more is said from here, and the connection stays. A process that serves no more leaves a guest, and
//! whoever touches its memory here, waiting, unless it is one of ours ([`crate::memory_watch`]).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Serialize;

use super::memory_file::file_offset;
use crate::memory::GuestRam;
use crate::memory_watch;
use crate::sys::mapping::PAGE_BYTES;
use crate::sys::uffd::Userfault;

/// A part of RAM, as it is told.
#[derive(Debug, Serialize)]
struct Region {
    base_host_virt_addr: u64,
    size: u64,
    /// In the memory file.
    offset: u64,
    page_size: u64,
    /// Firecracker's old name; in bytes too.
    page_size_kib: u64,
}

/// Why memory is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeMemoryError {
    /// No userfaultfd.
    #[error(
        "Cannot have page faults served (userfaultfd); it needs root, CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1"
    )]
    Userfault(#[source] io::Error),
    /// Nobody listens.
    #[error("Cannot reach the process that serves guest memory at {path}")]
    Connect {
        /// The socket.
        path: String,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// It does not take the message.
    #[error("Cannot send the hand-shake to {path}")]
    Send {
        /// The socket.
        path: String,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// Nobody would see that it has ended.
    #[error("Cannot watch the process that serves guest memory")]
    Watch(#[source] io::Error),
}

/// Has all of `ram`, which is untouched, served by the process behind `socket`.
///
/// # Errors
/// [`ServeMemoryError`].
pub fn hand_over(ram: &mut GuestRam, socket: &Path) -> Result<(), ServeMemoryError> {
    let path = socket.display().to_string();
    let connect = |cause| ServeMemoryError::Connect {
        path: path.clone(),
        cause,
    };
    let stream = UnixStream::connect(socket).map_err(connect)?;
    let userfault = Userfault::new().map_err(ServeMemoryError::Userfault)?;
    for part in ram.parts() {
        let registered = userfault.register(&part.mapping);
        registered.map_err(ServeMemoryError::Userfault)?;
    }
    let sent = send(&stream, &userfault, &message(ram));
    sent.map_err(|cause| ServeMemoryError::Send { path, cause })?;
    let other = stream.try_clone().map_err(ServeMemoryError::Watch)?;
    let served = ram.serve_by(userfault, stream);
    memory_watch::start(other, &served).map_err(ServeMemoryError::Watch)
}

fn message(ram: &GuestRam) -> Vec<u8> {
    let regions = ram.parts().iter().map(|part| Region {
        base_host_virt_addr: part.mapping.address() as u64,
        size: part.mapping.bytes() as u64,
        offset: file_offset(part.base.0),
        page_size: PAGE_BYTES as u64,
        page_size_kib: PAGE_BYTES as u64,
    });
    // Numbers: nothing that JSON cannot say.
    serde_json::to_vec(&regions.collect::<Vec<_>>()).unwrap_or_default()
}

fn send(stream: &UnixStream, userfault: &Userfault, message: &[u8]) -> io::Result<()> {
    let fds = [userfault.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    // Some hundred bytes: a socket takes them whole.
    let sent = sendmsg(
        stream,
        &[IoSlice::new(message)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    if sent == message.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}
