//! One connection: a socket of the host on one side, packets of the guest on the other.
//!
//! ```text
//!   host connects:   Asked --RESPONSE--> Open            guest connects:   Open
//!   Open --the host has closed: SHUTDOWN of both ways--> Closing --RST, or time--> (gone)
//!   Open --the guest has closed: SHUTDOWN of both ways--> answered RST; Draining while the host has bytes to take
//! ```
//!
//! Nothing grows: the guest may send as much as [`VSOCK_BUFFER_BYTES`] has room for, and of the host no byte is read that
//! the guest has no room for.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use crate::limits::{VSOCK_BUFFER_BYTES, VSOCK_CLOSE_MS, VSOCK_DRAIN_MS, VSOCK_REQUEST_MS};
use crate::virtio::vsock::packet::{Header, Pair, op, shutdown};

/// Bytes that the guest may have under way; as it is told.
const BUFFER_BYTES_U32: u32 = 64 << 10;
const _: () = assert!(BUFFER_BYTES_U32 as usize == VSOCK_BUFFER_BYTES);

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The guest has been asked, or will be, and has not answered.
    Asked,
    /// Bytes go both ways, as far as neither side has said otherwise.
    Open,
    /// The host has closed it, and the guest been told.
    Closing,
    /// The guest has closed it, and the host has bytes of it to take.
    Draining,
}

/// What a packet of the guest makes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Stays,
    /// The guest has closed it in good order, and is to be answered.
    Closed,
    /// The guest has broken it off.
    Gone,
    /// The guest has broken the rules: it is broken off.
    Broken,
}

/// What the guest is still to be told, each once.
#[derive(Debug, Default)]
struct Owed {
    request: bool,
    response: bool,
    credit_update: bool,
    credit_request: bool,
}

/// How many bytes each side has sent, taken, and may send; all modulo 2^32 (virtio 1.2 §5.10.6.3).
#[derive(Debug, Default)]
struct Credit {
    /// From the guest.
    received: u32,
    /// Of them, what is not kept here any more.
    forwarded: u32,
    /// What of that the guest knows.
    told_forwarded: u32,
    /// To the guest.
    sent: u32,
    guest_forwarded: u32,
    guest_bytes: u32,
}

impl Credit {
    /// Bytes that the guest has room for. A guest that says nonsense has none, or gets more than it has room for; either
    /// is its own affair.
    const fn of_guest(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_bytes.saturating_sub(under_way)
    }

    /// Whether the guest would soon hold back, and need not: it knows of less than half of the room.
    const fn is_update_due(&self) -> bool {
        let believed_kept = self.received.wrapping_sub(self.told_forwarded);
        self.forwarded != self.told_forwarded && believed_kept > BUFFER_BYTES_U32 / 2
    }
}

/// A packet for the guest, its addresses apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Bytes after the header.
    pub(super) len: usize,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) pair: Pair,
    pub(super) stream: OwnedFd,
    stage: Stage,
    deadline: Option<Instant>,
    /// What the host has not taken.
    buffer: VecDeque<u8>,
    credit: Credit,
    owed: Owed,
    /// The host's socket has, or may have, bytes.
    is_readable: bool,
    /// The host sends no more.
    is_host_mute: bool,
    /// The host takes no more.
    is_host_deaf: bool,
    /// What the guest does no more: flags of [`shutdown`].
    guest_shut: u32,
    /// What the guest knows of the host in this respect.
    told_shut: u32,
}

impl Connection {
    /// One that a client of the host asks for, on the host's port of `pair`.
    pub(super) fn asked(pair: Pair, stream: OwnedFd, now: Instant) -> Self {
        let mut connection = Self::new(pair, stream, Stage::Asked);
        connection.owed.request = true;
        connection.restart_clock(now);
        connection
    }

    /// One that the guest has asked for by `request`, and that the host has taken.
    pub(super) fn accepted(stream: OwnedFd, request: &Header) -> Self {
        let mut connection = Self::new(request.pair(), stream, Stage::Open);
        connection.owed.response = true;
        connection.take_credit(request);
        connection
    }

    fn new(pair: Pair, stream: OwnedFd, stage: Stage) -> Self {
        Self {
            pair,
            stream,
            stage,
            deadline: None,
            buffer: VecDeque::new(),
            credit: Credit::default(),
            owed: Owed::default(),
            is_readable: false,
            is_host_mute: false,
            is_host_deaf: false,
            guest_shut: 0,
            told_shut: 0,
        }
    }

    /// When it has to have gone on.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Gives what it waits for its whole time: the machine has stood still, or it has only begun.
    pub(super) fn restart_clock(&mut self, now: Instant) {
        let ms = match self.stage {
            Stage::Asked => VSOCK_REQUEST_MS,
            Stage::Closing => VSOCK_CLOSE_MS,
            Stage::Draining => VSOCK_DRAIN_MS,
            Stage::Open => {
                self.deadline = None;
                return;
            }
        };
        self.deadline = Some(now + Duration::from_millis(ms));
    }

    fn enter(&mut self, stage: Stage, now: Instant) {
        self.stage = stage;
        self.restart_clock(now);
    }

    /// Whether the guest has forgotten it.
    pub(super) fn is_draining(&self) -> bool {
        self.stage == Stage::Draining
    }

    /// Whether the guest has heard of it, and not forgotten it.
    pub(super) fn is_known_to_guest(&self) -> bool {
        !self.is_draining() && !self.owed.request
    }

    /// Whether the host has bytes to take.
    pub(super) fn has_bytes_for_host(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The guest has closed it. False if there is nothing left to do.
    pub(super) fn drain(&mut self, now: Instant) -> bool {
        self.flush();
        self.enter(Stage::Draining, now);
        self.has_bytes_for_host()
    }

    /// Takes a packet of the guest that is no REQUEST; `payload` are the bytes after the header, `None` when the buffers do
    /// not have what the header says.
    pub(super) fn take(&mut self, header: &Header, payload: Option<&[u8]>) -> Fate {
        self.take_credit(header);
        match (header.op, self.stage) {
            (op::RST, _) => Fate::Gone,
            (op::RESPONSE, Stage::Asked) => {
                self.stage = Stage::Open;
                self.deadline = None;
                self.say_ok()
            }
            (op::RW, Stage::Open | Stage::Closing) => self.take_bytes(payload),
            (op::SHUTDOWN, Stage::Open | Stage::Closing) => self.take_shutdown(header.flags),
            (op::CREDIT_UPDATE, Stage::Open | Stage::Closing) => Fate::Stays,
            (op::CREDIT_REQUEST, Stage::Open | Stage::Closing) => {
                self.owed.credit_update = true;
                Fate::Stays
            }
            // One that closes before it has answered.
            (op::SHUTDOWN, Stage::Asked) => Fate::Closed,
            _ => Fate::Broken,
        }
    }

    const fn take_credit(&mut self, header: &Header) {
        self.credit.guest_bytes = header.buf_alloc;
        self.credit.guest_forwarded = header.fwd_cnt;
        if self.credit.of_guest() > 0 {
            self.owed.credit_request = false;
        }
    }

    /// Tells the client that it is connected: it may write now, and be answered.
    fn say_ok(&mut self) -> Fate {
        let line = format!("OK {}\n", self.pair.host);
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::send(&self.stream, line.as_bytes(), flags) {
            Ok(sent) if sent == line.len() => Fate::Stays,
            // It has gone; what it sent before is the guest's all the same.
            Err(Errno::PIPE | Errno::CONNRESET) => {
                self.is_host_deaf = true;
                Fate::Stays
            }
            // An empty socket has room for a line.
            _ => Fate::Broken,
        }
    }

    fn take_bytes(&mut self, payload: Option<&[u8]>) -> Fate {
        let room = VSOCK_BUFFER_BYTES.saturating_sub(self.buffer.len());
        let is_legal = self.guest_shut & shutdown::SEND == 0;
        let Some(bytes) = payload.filter(|bytes| is_legal && bytes.len() <= room) else {
            return Fate::Broken;
        };
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.credit.received = self.credit.received.wrapping_add(length);
        let sent = if self.buffer.is_empty() {
            self.send(bytes)
        } else {
            0
        };
        if self.is_host_deaf {
            self.drop_buffer();
        } else {
            self.buffer.extend(bytes.get(sent..).unwrap_or_default());
            let kept = u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
            self.credit.forwarded = self.credit.received.wrapping_sub(kept);
        }
        Fate::Stays
    }

    fn take_shutdown(&mut self, flags: u32) -> Fate {
        self.guest_shut |= flags & shutdown::BOTH;
        if self.guest_shut == shutdown::BOTH {
            return Fate::Closed;
        }
        if self.guest_shut & shutdown::RECEIVE != 0 {
            // Who writes to it learns that nobody reads.
            let _ = rustix::net::shutdown(&self.stream, Shutdown::Read);
        }
        self.end_if_all_sent();
        Fate::Stays
    }

    /// Passes on that the guest sends no more, after its last byte.
    fn end_if_all_sent(&self) {
        if self.guest_shut & shutdown::SEND != 0 && self.buffer.is_empty() {
            let _ = rustix::net::shutdown(&self.stream, Shutdown::Write);
        }
    }

    /// Gives the host what it takes of `bytes` without waiting; says how much.
    fn send(&mut self, bytes: &[u8]) -> usize {
        let mut sent = 0_usize;
        while !self.is_host_deaf {
            let rest = bytes.get(sent..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&self.stream, rest, flags) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(some) => sent = sent.saturating_add(some),
                Err(Errno::INTR) => {}
                Err(_) => self.is_host_deaf = true,
            }
        }
        sent
    }

    /// Nobody wants it any more.
    fn drop_buffer(&mut self) {
        self.buffer = VecDeque::new();
        self.credit.forwarded = self.credit.received;
    }

    /// Gives the host what it takes of what is kept for it.
    pub(super) fn flush(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        while !buffer.is_empty() {
            let sent = self.send(buffer.as_slices().0);
            if sent == 0 {
                break;
            }
            buffer.drain(..sent.min(buffer.len()));
            let sent = u32::try_from(sent).unwrap_or(u32::MAX);
            self.credit.forwarded = self.credit.forwarded.wrapping_add(sent);
        }
        if self.is_host_deaf {
            return self.drop_buffer();
        }
        if !buffer.is_empty() {
            self.buffer = buffer;
        }
        self.end_if_all_sent();
    }

    /// Something has happened to the host's socket.
    pub(super) fn fired(&mut self, events: EventFlags) {
        let kept = self.buffer.len();
        if events.contains(EventFlags::OUT) || self.has_bytes_for_host() {
            self.flush();
        }
        if self.is_draining() && self.buffer.len() < kept {
            // A host that takes some of it has the whole time for the rest.
            self.restart_clock(Instant::now());
        }
        if events.intersects(EventFlags::HUP | EventFlags::ERR) && !self.may_read() {
            // All that it sent has been read, or nobody wants it.
            self.is_host_mute = true;
            self.hang_up_if_gone();
        }
        self.is_readable |= events.contains(EventFlags::IN);
    }

    /// The host has closed its socket, and not only one way of it.
    fn hang_up_if_gone(&mut self) {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        let ready = poll(&mut fds, Some(&Timespec::default()));
        let [fd] = &fds;
        let is_gone = fd.revents().intersects(PollFlags::HUP | PollFlags::ERR);
        if ready.is_ok_and(|ready| ready > 0) && is_gone {
            self.is_host_deaf = true;
            self.drop_buffer();
        }
    }

    /// Whether the guest wants bytes of the host, and there may be some yet.
    fn may_read(&self) -> bool {
        let is_wanted = self.guest_shut & shutdown::RECEIVE == 0;
        self.stage == Stage::Open && !self.is_host_mute && is_wanted
    }

    fn can_read(&self) -> bool {
        self.may_read() && self.credit.of_guest() > 0
    }

    /// What of SHUTDOWN the guest does not know.
    fn new_shut(&self) -> u32 {
        let mute = if self.is_host_mute { shutdown::SEND } else { 0 };
        let deaf = if self.is_host_deaf {
            shutdown::RECEIVE
        } else {
            0
        };
        match self.stage {
            // What the host sent before it closed has been read: only then is it known to be mute.
            Stage::Open => (mute | deaf) & !self.told_shut,
            _ => 0,
        }
    }

    /// What the host's socket is to be watched for.
    pub(super) fn wanted_events(&self) -> Option<EventFlags> {
        let output = match self.has_bytes_for_host() {
            true => EventFlags::OUT,
            false => EventFlags::empty(),
        };
        let is_gone = self.is_host_deaf && self.is_host_mute;
        match self.stage {
            Stage::Draining => Some(output),
            Stage::Open if self.can_read() && !self.is_readable => Some(EventFlags::IN | output),
            // An end that comes after all was read, or of one that takes nothing any more.
            Stage::Open if !(self.may_read() || is_gone) => Some(output),
            Stage::Open | Stage::Closing if !output.is_empty() => Some(output),
            _ => None,
        }
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn has_for_guest(&self) -> bool {
        let Owed {
            request,
            response,
            credit_update,
            credit_request,
        } = self.owed;
        let is_owed = request || response || credit_update || credit_request;
        let has_bytes = self.is_readable && self.can_read();
        let is_update_due = self.stage == Stage::Open && self.credit.is_update_due();
        !self.is_draining() && (is_owed || has_bytes || is_update_due || self.new_shut() != 0)
    }

    /// The next packet for the guest, its bytes in `target`, if there is one.
    pub(super) fn next_for_guest(&mut self, target: &mut [u8], now: Instant) -> Option<Outgoing> {
        let bare = |op| Outgoing {
            op,
            flags: 0,
            len: 0,
        };
        if self.is_draining() {
            return None;
        }
        if std::mem::take(&mut self.owed.request) {
            self.restart_clock(now);
            return Some(bare(op::REQUEST));
        }
        if std::mem::take(&mut self.owed.response) {
            return Some(bare(op::RESPONSE));
        }
        if let Some(len) = self.read(target) {
            let op = op::RW;
            return Some(Outgoing { op, flags: 0, len });
        }
        let shut = self.new_shut();
        if shut != 0 {
            self.told_shut |= shut;
            if self.told_shut == shutdown::BOTH {
                self.enter(Stage::Closing, now);
            }
            let (op, flags) = (op::SHUTDOWN, self.told_shut);
            return Some(Outgoing { op, flags, len: 0 });
        }
        if std::mem::take(&mut self.owed.credit_update) || self.credit.is_update_due() {
            return Some(bare(op::CREDIT_UPDATE));
        }
        let is_asked = std::mem::take(&mut self.owed.credit_request);
        is_asked.then(|| bare(op::CREDIT_REQUEST))
    }

    /// Says in `header`, which is about to be sent, how many bytes more the guest may send.
    pub(super) const fn tell_credit(&mut self, header: &mut Header) {
        header.buf_alloc = BUFFER_BYTES_U32;
        header.fwd_cnt = self.credit.forwarded;
        self.credit.told_forwarded = self.credit.forwarded;
        self.owed.credit_update = false;
    }

    /// Reads what the guest has room for.
    fn read(&mut self, target: &mut [u8]) -> Option<usize> {
        if !self.is_readable || !self.can_read() {
            return None;
        }
        let room = usize::try_from(self.credit.of_guest()).unwrap_or(usize::MAX);
        let length = room.min(target.len());
        let target = target.get_mut(..length).filter(|part| !part.is_empty())?;
        loop {
            let got = rustix::net::recv(&self.stream, &mut *target, RecvFlags::DONTWAIT);
            match got {
                Ok((got @ 1.., _)) => {
                    // Less than there is room for: there was no more.
                    self.is_readable = got == length;
                    let sent = u32::try_from(got).unwrap_or(u32::MAX);
                    self.credit.sent = self.credit.sent.wrapping_add(sent);
                    self.owed.credit_request = self.credit.of_guest() == 0;
                    return Some(got);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.is_readable = false;
                    return None;
                }
                Ok((0, _)) | Err(_) => {
                    self.is_readable = false;
                    self.is_host_mute = true;
                    self.hang_up_if_gone();
                    return None;
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
