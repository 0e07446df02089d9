//! What is at the host's end of a network card's cable.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys::guest_buffers::GuestBuffers;
use crate::virtio::net::config::Offloads;
use crate::virtio::net::frame::HEADER_BYTES;
use crate::virtio::net::stream::{FrameStream, LENGTH_BYTES};
use crate::virtio::net::tap::Tap;

/// The host's end.
#[derive(Debug)]
pub enum Backend {
    /// A tap.
    Tap(Tap),
    /// A network in user space.
    Stream(Box<FrameStream>),
}

/// What has become of a frame.
pub(super) enum Given {
    /// The host has it.
    Whole,
    /// The host has so many bytes of it, length or header included: the rest is to be kept.
    Part(usize),
}

impl Backend {
    pub(super) const fn offloads(&self) -> Offloads {
        match self {
            Self::Tap(tap) if tap.has_uso() => Offloads::TcpAndUdp,
            Self::Tap(_) => Offloads::Tcp,
            Self::Stream(_) => Offloads::None,
        }
    }

    /// Tells the host what it may leave to the guest.
    pub(super) fn set_offload(&mut self, acked_features: u64) -> io::Result<()> {
        match self {
            Self::Tap(tap) => tap.set_offload(acked_features),
            Self::Stream(_) => Ok(()),
        }
    }

    /// Whether a frame may be sent now. Of the one before, all is then sent.
    ///
    /// # Errors
    /// The host's end is gone.
    pub(super) fn can_send(&mut self) -> io::Result<bool> {
        match self {
            Self::Tap(_) => Ok(true),
            Self::Stream(stream) => stream.flush(),
        }
    }

    /// What goes before the frame, whose header is `header` and whose length is `frame_bytes`.
    pub(super) fn prefix(&self, header: &[u8; HEADER_BYTES], frame_bytes: u64) -> Prefix {
        match self {
            Self::Tap(_) => Prefix::Header(*header),
            Self::Stream(_) => {
                Prefix::Length(u32::try_from(frame_bytes).unwrap_or(0).to_be_bytes())
            }
        }
    }

    /// Number of queue pairs that it serves: 1 or more.
    pub(super) fn pairs(&self) -> usize {
        match self {
            Self::Tap(tap) => tap.pairs(),
            Self::Stream(_) => 1,
        }
    }

    /// Gives the host's frames to the first `count` pairs alone.
    pub(super) fn attach(&mut self, count: usize) -> io::Result<()> {
        match self {
            Self::Tap(tap) => tap.attach(count),
            Self::Stream(_) => Ok(()),
        }
    }

    /// Sends `start` and then what is in `buffers`, a frame of `pair`.
    ///
    /// # Errors
    /// The kernel's, EINTR not among them.
    pub(super) fn send(
        &self,
        pair: usize,
        buffers: &mut GuestBuffers,
        start: &[u8],
    ) -> io::Result<Given> {
        loop {
            let sent = match self {
                // A tap takes a frame whole or not at all.
                Self::Tap(tap) => buffers
                    .send_frame(tap.queue(pair), start)
                    .map(|_bytes| Given::Whole),
                Self::Stream(stream) => {
                    let all = buffers.bytes().saturating_add(start.len() as u64);
                    match buffers.send_bytes(stream.socket(), start) {
                        Ok(bytes) if (bytes as u64) < all => Ok(Given::Part(bytes)),
                        Err(cause) if cause.kind() == ErrorKind::WouldBlock => Ok(Given::Part(0)),
                        sent => sent.map(|_bytes| Given::Whole),
                    }
                }
            };
            match sent {
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                sent => return sent,
            }
        }
    }
}

/// What goes before a frame.
#[derive(Debug, Clone, Copy)]
pub(super) enum Prefix {
    /// Virtio's.
    Header([u8; HEADER_BYTES]),
    /// The frame's length.
    Length([u8; LENGTH_BYTES]),
}

impl Prefix {
    pub(super) const fn bytes(&self) -> &[u8] {
        match self {
            Self::Header(bytes) => bytes,
            Self::Length(bytes) => bytes,
        }
    }
}

/// What is readable when the host has something for the card.
impl AsFd for Backend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tap(tap) => tap.watched(),
            Self::Stream(stream) => stream.as_fd(),
        }
    }
}

impl From<Tap> for Backend {
    fn from(tap: Tap) -> Self {
        Self::Tap(tap)
    }
}

impl From<FrameStream> for Backend {
    fn from(stream: FrameStream) -> Self {
        Self::Stream(Box::new(stream))
    }
}
