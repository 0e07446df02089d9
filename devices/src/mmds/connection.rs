//! One connection: the request that comes over it, and the answer that goes back.

use std::time::{Duration, Instant};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};

use super::answer::{Answer, answer};
use super::http::{Framing, Parsed, parse};
use super::service::{MmdsOptions, Service};
use crate::limits::{MMDS_GIVES_WAY_MS, MMDS_REQUEST_BYTES_MAX, MMDS_REQUESTS_PER_TURN};

/// A connection, or a socket that waits for one.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: SocketHandle,
    /// It was counted: somebody has connected.
    pub(super) is_begun: bool,
    /// What has come and is not answered.
    input: Vec<u8>,
    /// The answer under way, from `sent` on.
    output: Vec<u8>,
    sent: usize,
    /// No more requests are read: the answer under way is the last.
    is_last: bool,
    /// When anything was read or sent last.
    moved: Instant,
}

/// What a connection is of use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    /// Nobody has connected yet, or is on the way to.
    Opening,
    /// Nothing was moved for a while.
    Idle,
    /// It is at work.
    Busy,
}

impl Connection {
    pub(super) fn new(socket: SocketHandle, now: Instant) -> Self {
        Self {
            socket,
            is_begun: false,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            is_last: false,
            moved: now,
        }
    }

    /// Bytes of answers that wait for their reader.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.output.len().saturating_sub(self.sent)
    }

    /// What it is of use for, and since when it is no more than that.
    pub(super) fn usefulness(&self, socket: &Socket<'_>, now: Instant) -> (Use, Instant) {
        let gives_way = Duration::from_millis(MMDS_GIVES_WAY_MS);
        let is_idle = now.saturating_duration_since(self.moved) >= gives_way;
        let usefulness = match socket.state() {
            State::SynReceived => Use::Opening,
            _ if is_idle => Use::Idle,
            _ => Use::Busy,
        };
        (usefulness, self.moved)
    }

    /// Reads and answers what has come; `may_answer` says whether one more answer may be made. True if anything was moved.
    pub(super) fn serve(
        &mut self,
        socket: &mut Socket<'_>,
        (mmds, options): (&Service, &MmdsOptions),
        may_answer: bool,
        now: Instant,
    ) -> bool {
        let mut has_moved = false;
        for _ in 0..MMDS_REQUESTS_PER_TURN {
            let mut moves = self.send(socket);
            if self.waiting_bytes() == 0 {
                moves |= self.receive(socket);
                moves |= may_answer && self.answer_next(mmds, options);
            }
            if !moves {
                break;
            }
            has_moved = true;
        }
        has_moved |= self.send(socket);
        if has_moved {
            self.moved = now;
        }
        let is_answered = self.waiting_bytes() == 0;
        // The client sends no more, or was told that it gets no more answers. What is half a request stays one.
        let is_over = self.is_last || (socket.state() == State::CloseWait && !socket.can_recv());
        if is_answered && is_over && (self.is_last || !self.has_request()) {
            socket.close();
        }
        has_moved
    }

    fn send(&mut self, socket: &mut Socket<'_>) -> bool {
        let rest = self.output.get(self.sent..).unwrap_or_default();
        if rest.is_empty() || !socket.can_send() {
            return false;
        }
        // Sendable, as was looked at.
        let bytes = socket.send_slice(rest).unwrap_or(0);
        self.sent = self.sent.saturating_add(bytes);
        if self.waiting_bytes() == 0 {
            self.output = Vec::new();
            self.sent = 0;
        }
        bytes > 0
    }

    /// Takes as much as a request may have; of a connection without more requests, all, and forgets it.
    fn receive(&mut self, socket: &mut Socket<'_>) -> bool {
        let mut has_moved = false;
        while socket.can_recv() {
            let room = MMDS_REQUEST_BYTES_MAX.saturating_sub(self.input.len());
            let (input, is_last) = (&mut self.input, self.is_last);
            let taken = socket.recv(|bytes| {
                if is_last {
                    return (bytes.len(), bytes.len());
                }
                let taken = bytes.get(..room).unwrap_or(bytes);
                input.extend_from_slice(taken);
                (taken.len(), taken.len())
            });
            match taken {
                Ok(bytes) if bytes > 0 => has_moved = true,
                _ => break,
            }
        }
        has_moved
    }

    fn has_request(&self) -> bool {
        !self.is_last && !matches!(parse(&self.input), Parsed::Partial)
    }

    /// Makes the answer to the first request.
    fn answer_next(&mut self, mmds: &Service, options: &MmdsOptions) -> bool {
        if self.is_last {
            return false;
        }
        let (answer, framing, bytes) = match parse(&self.input) {
            Parsed::Partial => return false,
            Parsed::Whole(request) => {
                let answer = answer(mmds, options, &request);
                (answer, request.framing, request.bytes)
            }
            Parsed::Bad(bad) => (Answer::to_bad(bad), Framing::LAST, self.input.len()),
        };
        self.output = answer.bytes(framing);
        self.sent = 0;
        self.is_last = !framing.keeps_alive;
        self.input.drain(..bytes.min(self.input.len()));
        true
    }
}
