//! A network in user space at the other end of a stream socket: each frame after its length in four bytes, big-endian, as
//! QEMU's `-netdev stream` has it. Frames have no virtio header: nothing is left to either side.
//!
//! Nothing waits here: what the socket does not take of one frame is kept, and the others stay in the guest's ring.

use std::cell::Cell;
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{RecvFlags, SendFlags};

use crate::limits::{FRAME_BYTES_MAX, STREAM_INBOX_BYTES};
use crate::virtio::net::frame::{ETHERNET_BYTES, HEADER_BYTES};

/// Bytes of the length before each frame.
pub(super) const LENGTH_BYTES: usize = 4;
/// Bytes of the longest frame: as of a tap, without the virtio header.
const LONGEST_BYTES: usize = FRAME_BYTES_MAX - HEADER_BYTES;
/// Bytes of the shortest.
const SHORTEST_BYTES: usize = 14;
const _: () = assert!(SHORTEST_BYTES as u64 == ETHERNET_BYTES);
const _: () = assert!(STREAM_INBOX_BYTES >= LENGTH_BYTES + LONGEST_BYTES);

/// Who is at the other end.
pub trait StreamPeer: Send + fmt::Debug {
    /// What it is.
    fn name(&self) -> &str;

    /// Why it has gone, as far as that is known: for the operator.
    fn why_gone(&mut self) -> String;
}

/// Our end of the socket.
#[derive(Debug)]
pub struct FrameStream {
    socket: OwnedFd,
    peer: Box<dyn StreamPeer>,
    /// For the loop: it takes one descriptor, and watches it for data.
    epoll: OwnedFd,
    /// What `epoll` watches `socket` for.
    watched: Cell<EventFlags>,
    /// The rest of a frame that the socket has not taken, from `unsent_at` on.
    unsent: Vec<u8>,
    unsent_at: usize,
    /// What has come: `inbox[start..end]`. Made when the first bytes are received.
    inbox: Vec<u8>,
    start: usize,
    end: usize,
}

/// A frame in the inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// It has not come, or not all of it.
    NotYet,
    /// Its length.
    Frame(usize),
    /// No frame has this length.
    Impossible(u32),
}

impl FrameStream {
    /// On a connected stream socket, of which `peer` has the other end.
    ///
    /// # Errors
    /// No epoll is to be had.
    pub fn new(socket: OwnedFd, peer: Box<dyn StreamPeer>) -> io::Result<Self> {
        Ok(Self {
            socket,
            peer,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            watched: Cell::new(EventFlags::empty()),
            unsent: Vec::new(),
            unsent_at: 0,
            inbox: Vec::new(),
            start: 0,
            end: 0,
        })
    }

    /// The socket itself, to send frames by: only while [`flush`](Self::flush) says that it may be.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Watches for frames, for room, for both, or for nothing at all.
    pub(super) fn watch(&self, wants_frames: bool) {
        let mut wanted = EventFlags::empty();
        wanted.set(EventFlags::IN, wants_frames);
        wanted.set(EventFlags::OUT, self.has_unsent());
        let watched = self.watched.replace(wanted);
        if watched == wanted {
            return;
        }
        let data = EventData::new_u64(0);
        // A socket takes all of these; out of the epoll, its end is not seen either.
        let _ = match (watched.is_empty(), wanted.is_empty()) {
            (_, true) => epoll::delete(&self.epoll, &self.socket),
            (true, false) => epoll::add(&self.epoll, &self.socket, data, wanted),
            (false, false) => epoll::modify(&self.epoll, &self.socket, data, wanted),
        };
    }

    /// Whether a part of a frame waits for room.
    pub(super) const fn has_unsent(&self) -> bool {
        self.unsent_at < self.unsent.len()
    }

    /// Keeps the rest of a frame, of which the socket has taken a part or nothing.
    pub(super) fn keep_unsent(&mut self, rest: Vec<u8>) {
        self.unsent = rest;
        self.unsent_at = 0;
    }

    /// Sends what was kept. True if nothing is left: then another frame may be sent.
    ///
    /// # Errors
    /// The other end is gone.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        while self.has_unsent() {
            let rest = self.unsent.get(self.unsent_at..).unwrap_or_default();
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, rest, flags) {
                Ok(bytes) => self.unsent_at = self.unsent_at.saturating_add(bytes),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(cause) => return Err(self.gone(&cause.into())),
            }
        }
        // A frame may be 64 KiB, and is not kept for ever.
        self.unsent = Vec::new();
        self.unsent_at = 0;
        Ok(true)
    }

    /// The next frame, if it has come: until [`pass`](Self::pass).
    ///
    /// # Errors
    /// The other end is gone, or says what is no frame.
    pub(super) fn peek(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            match self.next() {
                Next::Frame(bytes) => {
                    let from = self.start.saturating_add(LENGTH_BYTES);
                    return Ok(self.inbox.get(from..from.saturating_add(bytes)));
                }
                Next::Impossible(bytes) => {
                    let text = format!(
                        "{} sent a frame of {bytes} bytes; allowed: {SHORTEST_BYTES}–{LONGEST_BYTES}",
                        self.peer.name()
                    );
                    return Err(io::Error::new(ErrorKind::InvalidData, text));
                }
                Next::NotYet if self.fill()? => {}
                Next::NotYet => return Ok(None),
            }
        }
    }

    /// Whether a whole frame has come, and no call to the kernel is needed for it.
    pub(super) fn has_frame(&self) -> bool {
        matches!(self.next(), Next::Frame(_))
    }

    /// Done with the frame of [`peek`](Self::peek).
    pub(super) fn pass(&mut self) {
        if let Next::Frame(bytes) = self.next() {
            let passed = LENGTH_BYTES.saturating_add(bytes);
            self.start = self.start.saturating_add(passed);
        }
    }

    fn next(&self) -> Next {
        let come = self.inbox.get(self.start..self.end).unwrap_or_default();
        let Some((length, rest)) = come.split_first_chunk::<LENGTH_BYTES>() else {
            return Next::NotYet;
        };
        let length = u32::from_be_bytes(*length);
        match usize::try_from(length) {
            Ok(bytes) if (SHORTEST_BYTES..=LONGEST_BYTES).contains(&bytes) => {
                if rest.len() < bytes {
                    Next::NotYet
                } else {
                    Next::Frame(bytes)
                }
            }
            _ => Next::Impossible(length),
        }
    }

    /// Takes what has come; the inbox holds no whole frame. False if nothing has.
    fn fill(&mut self) -> io::Result<bool> {
        if self.inbox.is_empty() {
            // Zeroed by the kernel: pages that nothing reaches cost nothing.
            self.inbox = vec![0; STREAM_INBOX_BYTES];
        }
        self.inbox.copy_within(self.start..self.end, 0);
        self.end = self.end.saturating_sub(self.start);
        self.start = 0;
        let room = self.inbox.get_mut(self.end..).unwrap_or_default();
        loop {
            match rustix::net::recv(&self.socket, &mut *room, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(self.gone(&ErrorKind::UnexpectedEof.into())),
                Ok((_, bytes)) => {
                    self.end = self.end.saturating_add(bytes);
                    return Ok(true);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(cause) => return Err(self.gone(&cause.into())),
            }
        }
    }

    /// The same error with what is known of the other end.
    pub(super) fn gone(&mut self, cause: &io::Error) -> io::Error {
        self.unsent = Vec::new();
        self.unsent_at = 0;
        let why = self.peer.why_gone();
        let text = format!("{} is gone ({cause}): {why}", self.peer.name());
        io::Error::new(cause.kind(), text)
    }
}

impl AsFd for FrameStream {
    /// The epoll: readable while something that is watched for is there.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
