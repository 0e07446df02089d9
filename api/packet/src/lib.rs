//! Messages between LightV's processes on one host: each is one packet of a Unix socket (SOCK_SEQPACKET), JSON, and may bring
//! descriptors with it (SCM_RIGHTS).
//!
//! A packet comes whole or not at all, so there is no framing, and the end of the other process is the end of the socket.

#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a packet: arguments and environment of a run, and far below what the kernel keeps for a socket.
pub const BYTES_MAX: usize = 128 << 10;
/// Descriptors of a packet: three standard streams, and one more.
pub const FDS_MAX: usize = 4;

/// What has come.
#[derive(Debug)]
pub struct Packet<T> {
    /// The message.
    pub message: T,
    /// Its descriptors, which are closed on exec.
    pub fds: Vec<OwnedFd>,
}

/// Why a message was not sent. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It is too long.
    #[error("A message of {bytes} bytes is too long; allowed: {BYTES_MAX}")]
    TooLong {
        /// How long.
        bytes: usize,
    },
    /// It has too many descriptors.
    #[error("A message with {count} descriptors is not sent; allowed: {FDS_MAX}")]
    TooManyFds {
        /// How many.
        count: usize,
    },
    /// It is no JSON.
    #[error("A message cannot be written as JSON")]
    Json(#[source] serde_json::Error),
    /// The kernel refuses: the other end is gone (EPIPE), or does not read (EAGAIN).
    #[error("Cannot send a message")]
    Socket(#[source] io::Error),
}

/// Why what has come is no message. It is taken from the socket, and its descriptors are closed.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// It is too long.
    #[error("A message of {bytes} bytes came; allowed: {BYTES_MAX}")]
    TooLong {
        /// How long.
        bytes: usize,
    },
    /// It has more descriptors than there may be, or than this process may have.
    #[error("A message came with descriptors that do not fit; allowed: {FDS_MAX}, see `ulimit -n`")]
    LostFds,
    /// It is no such JSON.
    #[error("A message came that is refused: {0}")]
    Json(serde_json::Error),
    /// The kernel refuses; EAGAIN: nothing is there, and the socket does not wait.
    #[error("Cannot receive a message")]
    Socket(#[source] io::Error),
}

impl ReceiveError {
    /// Whether nothing has come yet, of a socket that does not wait.
    #[must_use]
    pub fn is_would_block(&self) -> bool {
        matches!(self, Self::Socket(cause) if cause.kind() == io::ErrorKind::WouldBlock)
    }
}

/// One end.
pub struct PacketSocket(OwnedFd);

impl fmt::Debug for PacketSocket {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("PacketSocket").field(&self.0).finish()
    }
}

impl PacketSocket {
    /// Both ends of a new one, which are closed on exec.
    ///
    /// # Errors
    /// The kernel's, when there are no descriptors left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(one), Self(other)))
    }

    /// Connects to the socket at `path`; it is closed on exec.
    ///
    /// # Errors
    /// The kernel's: nobody listens there, or `path` is too long.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(socket))
    }

    /// Has sending and receiving come back at once, or wait.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_nonblocking(&self, is_nonblocking: bool) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.0, is_nonblocking)?)
    }

    /// Sends `message` and copies of `fds`. A receiver that is gone is an error, no signal.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), SendError> {
        let bytes = serde_json::to_vec(message).map_err(SendError::Json)?;
        if bytes.len() > BYTES_MAX {
            let bytes = bytes.len();
            return Err(SendError::TooLong { bytes });
        }
        if fds.len() > FDS_MAX {
            return Err(SendError::TooManyFds { count: fds.len() });
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(SendError::TooManyFds { count: fds.len() });
        }
        let send = || {
            rustix::net::sendmsg(
                &self.0,
                &[IoSlice::new(&bytes)],
                &mut control,
                SendFlags::NOSIGNAL,
            )
        };
        let sent = rustix::io::retry_on_intr(send);
        sent.map(drop)
            .map_err(|cause| SendError::Socket(cause.into()))
    }

    /// The next message; `None` when the other end is gone.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub fn receive<T: DeserializeOwned>(&self) -> Result<Option<Packet<T>>, ReceiveError> {
        // A packet says how long it is before it is taken.
        let peek = RecvFlags::PEEK | RecvFlags::TRUNC;
        let Some(bytes) =
            self.or_closed(|| rustix::net::recv(&self.0, &mut [0_u8; 0][..], peek))?
        else {
            return Ok(None);
        };
        let (_, length) = bytes;
        let mut buffer = vec![0; length.min(BYTES_MAX)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let receive = || {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            rustix::net::recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
        };
        let received = rustix::io::retry_on_intr(receive);
        let flags = received
            .map_err(|cause| ReceiveError::Socket(cause.into()))?
            .flags;
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fds: Vec<OwnedFd> = rights.flatten().collect();
        if length > BYTES_MAX || flags.contains(ReturnFlags::TRUNC) {
            return Err(ReceiveError::TooLong { bytes: length });
        }
        // There is room for one more by alignment.
        if flags.contains(ReturnFlags::CTRUNC) || fds.len() > FDS_MAX {
            return Err(ReceiveError::LostFds);
        }
        let message = serde_json::from_slice(&buffer).map_err(ReceiveError::Json)?;
        Ok(Some(Packet { message, fds }))
    }

    /// What `receive` gives; `None` when the other end is gone.
    fn or_closed<B>(
        &self,
        receive: impl FnMut() -> Result<(B, usize), Errno>,
    ) -> Result<Option<(B, usize)>, ReceiveError> {
        match rustix::io::retry_on_intr(receive) {
            // Nobody sends an empty packet.
            Ok((_, 0)) | Err(Errno::CONNRESET | Errno::PIPE) => Ok(None),
            Ok(received) => Ok(Some(received)),
            Err(cause) => Err(ReceiveError::Socket(cause.into())),
        }
    }
}

impl From<OwnedFd> for PacketSocket {
    /// A socket of this type, connected.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<PacketSocket> for OwnedFd {
    fn from(socket: PacketSocket) -> Self {
        socket.0
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _, pipe};

    use super::*;

    #[test]
    fn a_message_comes_with_its_descriptors() {
        let (one, other) = PacketSocket::pair().unwrap();
        let (mut reader, writer) = pipe().unwrap();
        one.send(&("a", 1), &[writer.as_fd()]).unwrap();
        one.send(&("b", 2), &[]).unwrap();
        drop((one, writer));
        let first: Packet<(String, u8)> = other.receive().unwrap().unwrap();
        assert_eq!(first.message, ("a".to_owned(), 1));
        let [fd] = <[OwnedFd; 1]>::try_from(first.fds).unwrap();
        File::from(fd).write_all(b"x").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        let second: Packet<(String, u8)> = other.receive().unwrap().unwrap();
        assert_eq!(second.message.1, 2);
        assert!(other.receive::<()>().unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_refused_and_the_next_one_comes() {
        let (one, other) = PacketSocket::pair().unwrap();
        one.send(&"text", &[]).unwrap();
        one.send(&7, &[]).unwrap();
        assert!(matches!(other.receive::<u8>(), Err(ReceiveError::Json(_))));
        assert_eq!(other.receive::<u8>().unwrap().unwrap().message, 7);
        other.set_nonblocking(true).unwrap();
        assert!(other.receive::<u8>().unwrap_err().is_would_block());
        let long = vec![0_u8; BYTES_MAX];
        assert!(matches!(
            one.send(&long, &[]),
            Err(SendError::TooLong { .. })
        ));
        let fds = [other.as_fd(); FDS_MAX + 1];
        let refused = one.send(&7, &fds);
        assert!(matches!(refused, Err(SendError::TooManyFds { count: 5 })));
        // By somebody who sends more than we do.
        rustix::net::send(&one, &vec![b'1'; BYTES_MAX + 1], SendFlags::NOSIGNAL).unwrap();
        assert!(matches!(
            other.receive::<u8>(),
            Err(ReceiveError::TooLong { bytes }) if bytes == BYTES_MAX + 1
        ));
        drop(other);
        assert!(matches!(one.send(&7, &[]), Err(SendError::Socket(_))));
    }
}
