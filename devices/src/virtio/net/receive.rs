//! Frames from the tap, and from the metadata service, to the guest.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_queue::Queue;

use crate::counters::Counters;
use crate::limiter::Limiter;
use crate::limits::{CHAIN_DESCRIPTORS_MAX, FRAME_BYTES_MAX, NET_FRAMES_PER_TURN};
use crate::sys::guest_buffers::GuestBuffers;
use crate::virtio::chain::{Chain, lie_in_ram, total_bytes, write_at};
use crate::virtio::net::config::feature;
use crate::virtio::net::frame::{HEADER_BYTES, NUM_BUFFERS_AT};
use crate::virtio::net::stream::FrameStream;
use crate::virtio::ring::{Popped, Ring};

/// Bytes that are gathered for a frame when the guest takes no large ones: more is rare, and copied.
const SMALL_FRAME_BYTES: u64 = 2048;
/// Pieces after which no more chains are gathered for a frame: with one more chain, still fewer than a system call
/// takes.
const GATHERED_PIECES: usize = 2 * CHAIN_DESCRIPTORS_MAX as usize;

/// The receive queue at work.
///
/// Chains are taken from the ring before a frame is, since only then its length is known. Those that the frame does
/// not need wait here for the next one, and go back to the ring when the device stops.
#[derive(Debug)]
pub(super) struct Receiver {
    ring: Ring,
    /// Chains for the next frames, in the order of the ring.
    waiting: VecDeque<Chain>,
    /// The buffers of the first `gathered_chains` of those that wait: kept over frames, so that each is looked up once.
    buffers: GuestBuffers,
    gathered_chains: usize,
    /// Where the part of a frame goes that is longer than what was gathered. Made when the first frame is received.
    rest: Vec<u8>,
    /// A frame may be spread over several chains.
    is_mergeable: bool,
    /// Bytes to gather for a frame, if there are as many.
    wanted_bytes: u64,
    /// The ring has been found empty since buffers last came, and the driver knows that it has to notify.
    is_starved: bool,
}

/// Whether the guest has been given a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    /// It has.
    Now,
    /// It has no buffers, and tells when it has some.
    Later,
    /// Its buffers are too small: the frame is lost.
    Never,
}

impl Receiver {
    pub(super) fn new(ring: Ring, acked_features: u64) -> Self {
        let large =
            feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::GUEST_USO4 | feature::GUEST_USO6;
        let is_large = acked_features & large != 0;
        let buffers = GuestBuffers::new(Arc::clone(ring.mem()));
        let mut receiver = Self {
            ring,
            waiting: VecDeque::new(),
            buffers,
            gathered_chains: 0,
            rest: Vec::new(),
            is_mergeable: acked_features & feature::MRG_RXBUF != 0,
            wanted_bytes: if is_large {
                FRAME_BYTES_MAX as u64
            } else {
                SMALL_FRAME_BYTES
            },
            is_starved: true,
        };
        receiver.buffers_came();
        receiver
    }

    /// Gives the queue back, with the chains that no frame has used.
    pub(super) fn into_queue(mut self) -> Queue {
        self.ring.put_back(self.waiting.into_iter());
        self.ring.notify();
        self.ring.into_queue()
    }

    /// The driver has put buffers into the ring, or may have.
    pub(super) fn buffers_came(&mut self) {
        self.is_starved = false;
        if self.ring.has_waiting() {
            self.ring.pause_kicks();
        } else if self.waiting.is_empty() {
            // Looked at again after asking for notifications, so that none is missed.
            self.is_starved = !self.ring.resume_kicks();
        }
    }

    pub(super) const fn has_buffers(&self) -> bool {
        !self.is_starved
    }

    /// Receives frames up to the limit of a turn.
    ///
    /// # Errors
    /// The tap cannot be read any more.
    pub(super) fn serve_turn(
        &mut self,
        tap: BorrowedFd<'_>,
        counters: &Counters,
        limiter: &mut Limiter,
    ) -> io::Result<()> {
        let mut result = Ok(());
        for _ in 0..NET_FRAMES_PER_TURN {
            if limiter.is_blocked() {
                Counters::add_one(&counters.throttled_to_guest);
                break;
            }
            self.gather();
            if self.gathered_chains == 0 {
                break;
            }
            if self.rest.is_empty() {
                // Zeroed by the kernel: pages that no frame reaches cost nothing.
                self.rest = vec![0; FRAME_BYTES_MAX];
            }
            match self.buffers.receive_frame(tap, &mut self.rest) {
                Ok(bytes) if bytes <= HEADER_BYTES => {
                    Counters::add_one(&counters.frames_dropped_to_guest);
                    // The other end of a frame socket is closed; a tap never gives this.
                    if bytes == 0 {
                        result = Err(ErrorKind::UnexpectedEof.into());
                        break;
                    }
                }
                Ok(bytes) => {
                    self.deliver(bytes as u64, counters);
                    limiter.charge(bytes as u64);
                }
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => break,
                Err(cause) => {
                    result = Err(cause);
                    break;
                }
            }
        }
        self.ring.notify();
        result
    }

    /// The same from a network in user space. True if a frame has come that the limit of a turn has left over.
    ///
    /// # Errors
    /// The other end is gone.
    pub(super) fn serve_stream(
        &mut self,
        stream: &mut FrameStream,
        counters: &Counters,
        limiter: &mut Limiter,
    ) -> io::Result<bool> {
        let result = self.take_frames(stream, counters, limiter);
        self.ring.notify();
        result
    }

    fn take_frames(
        &mut self,
        stream: &mut FrameStream,
        counters: &Counters,
        limiter: &mut Limiter,
    ) -> io::Result<bool> {
        for _ in 0..NET_FRAMES_PER_TURN {
            if limiter.is_blocked() {
                Counters::add_one(&counters.throttled_to_guest);
                return Ok(false);
            }
            // No buffers, no frame: what has not been read holds the other end up.
            self.gather();
            if self.gathered_chains == 0 {
                return Ok(false);
            }
            let Some(frame) = stream.peek()? else {
                return Ok(false);
            };
            if self.give(frame, counters) == Given::Now {
                limiter.charge((frame.len() as u64).saturating_add(HEADER_BYTES as u64));
            }
            stream.pass();
        }
        Ok(stream.has_frame())
    }

    /// Gives the guest a frame of ours, without header.
    pub(super) fn give(&mut self, frame: &[u8], counters: &Counters) -> Given {
        self.gather();
        if self.gathered_chains == 0 {
            return Given::Later;
        }
        let bytes = (frame.len() as u64).saturating_add(HEADER_BYTES as u64);
        if let Some(chains) = self.reserve(bytes) {
            // No flags, no segmentation: the checksums are right.
            let header = [0; HEADER_BYTES];
            if self.write(chains, &[&header, frame]).is_some() {
                self.complete_frame(chains, bytes, counters);
                return Given::Now;
            }
        }
        self.drop_frame(counters);
        Given::Never
    }

    /// Tells the driver of what it was given.
    pub(super) fn notify(&mut self) {
        self.ring.notify();
    }

    /// Copies `pieces` one after the other into the first `chains` of those that wait, which have the room.
    fn write(&self, chains: usize, pieces: &[&[u8]]) -> Option<()> {
        let mut waiting = self.waiting.range(..chains.min(self.waiting.len()));
        let mut chain = waiting.next()?;
        let mut at = 0;
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let room = total_bytes(chain.writable()).saturating_sub(at);
                if room == 0 {
                    chain = waiting.next()?;
                    at = 0;
                    continue;
                }
                let taken = usize::try_from(room).map_or(rest.len(), |room| room.min(rest.len()));
                let (now, later) = rest.split_at(taken);
                write_at(self.ring.mem(), chain.writable(), at, now).ok()?;
                at = at.saturating_add(taken as u64);
                rest = later;
            }
        }
        Some(())
    }

    /// Collects the buffers of as many chains as a frame may need: one, or with mergeable buffers up to the bytes
    /// wanted, as far as the ring has them.
    fn gather(&mut self) {
        while self.wants_more() {
            if self.gathered_chains == self.waiting.len() && !self.take_chain() {
                return;
            }
            let Some(chain) = self.waiting.get(self.gathered_chains) else {
                return;
            };
            for &segment in chain.writable() {
                // It lies in RAM, or it would not wait.
                let _ = self.buffers.push(segment);
            }
            self.gathered_chains = self.gathered_chains.saturating_add(1);
        }
    }

    const fn wants_more(&self) -> bool {
        if self.is_mergeable {
            self.buffers.bytes() < self.wanted_bytes && self.buffers.pieces() <= GATHERED_PIECES
        } else {
            self.gathered_chains == 0
        }
    }

    /// Takes one more chain from the ring, if there is one, behind those that wait.
    fn take_chain(&mut self) -> bool {
        // Chains that are of no use count too: a ring has at most its size of them.
        for _ in 0..self.ring.size() {
            match self.ring.pop() {
                Popped::Chain(chain) if self.is_useful(&chain) => {
                    self.waiting.push_back(chain);
                    return true;
                }
                Popped::Chain(chain) => self.ring.refuse(chain),
                Popped::Malformed => {}
                Popped::Empty => {
                    if !self.ring.resume_kicks() {
                        self.is_starved = self.waiting.is_empty();
                        return false;
                    }
                }
            }
        }
        false
    }

    /// It holds more than a header (virtio 1.2 §5.1.6.3.1), in RAM.
    fn is_useful(&self, chain: &Chain) -> bool {
        total_bytes(chain.writable()) > HEADER_BYTES as u64
            && lie_in_ram(self.ring.mem(), chain.writable())
    }

    /// Gives the guest a frame of `bytes` with its header, which lies in what was gathered and then in `rest`.
    fn deliver(&mut self, bytes: u64, counters: &Counters) {
        match self.place(bytes) {
            Some(chains) => self.complete_frame(chains, bytes, counters),
            None => self.drop_frame(counters),
        }
    }

    /// There is no room for a frame.
    fn drop_frame(&mut self, counters: &Counters) {
        Counters::add_one(&counters.frames_dropped_to_guest);
        if !self.is_mergeable {
            // This chain is too small for the frames that come here: the next may not be.
            self.give_back(1, 0);
        }
    }

    /// Completes the first `chains` of those that wait, in which a frame of `bytes` with its header lies.
    fn complete_frame(&mut self, chains: usize, bytes: u64, counters: &Counters) {
        let count = u16::try_from(chains).unwrap_or(u16::MAX).to_le_bytes();
        if let Some(first) = self.waiting.front() {
            // It holds the header, in RAM.
            let _ = write_at(self.ring.mem(), first.writable(), NUM_BUFFERS_AT, &count);
        }
        self.give_back(chains, bytes);
        Counters::add_one(&counters.reads);
        Counters::add(
            &counters.bytes_to_guest,
            bytes.saturating_sub(HEADER_BYTES as u64),
        );
    }

    /// Completes the first `chains` of those that wait, filled with `bytes` altogether.
    fn give_back(&mut self, chains: usize, bytes: u64) {
        let Self {
            waiting,
            buffers,
            gathered_chains,
            ring,
            ..
        } = self;
        let mut left = bytes;
        let used = waiting.drain(..chains).map(|chain| {
            let room = total_bytes(chain.writable());
            if let Some(others) = gathered_chains.checked_sub(1) {
                *gathered_chains = others;
                buffers.advance(usize::try_from(room).unwrap_or(usize::MAX));
            }
            let used_bytes = room.min(left);
            left = left.saturating_sub(used_bytes);
            (chain, u32::try_from(used_bytes).unwrap_or(u32::MAX))
        });
        ring.complete_together(used);
    }

    /// How many of the chains that wait hold `bytes`, more of which are taken from the ring if need be; `None` if there are
    /// not enough.
    fn reserve(&mut self, bytes: u64) -> Option<usize> {
        let gathered_bytes = self.buffers.bytes();
        if bytes <= gathered_bytes {
            return Some(self.chains_for(bytes));
        }
        if !self.is_mergeable {
            return None;
        }
        let mut room = gathered_bytes;
        let mut chains = self.gathered_chains;
        while room < bytes {
            if chains == self.waiting.len() && !self.take_chain() {
                return None;
            }
            room = room.saturating_add(total_bytes(self.waiting.get(chains)?.writable()));
            chains = chains.saturating_add(1);
        }
        Some(chains)
    }

    /// Copies what lies in `rest` into further chains. Returns how many chains the frame has, or `None` if there are
    /// not enough.
    fn place(&mut self, bytes: u64) -> Option<usize> {
        let chains = self.reserve(bytes)?;
        let gathered_bytes = self.buffers.bytes();
        if bytes <= gathered_bytes {
            return Some(chains);
        }
        let length = usize::try_from(bytes.saturating_sub(gathered_bytes)).ok()?;
        let mut rest = self.rest.get(..length)?;
        for chain in self.waiting.range(self.gathered_chains..chains) {
            let room = usize::try_from(total_bytes(chain.writable())).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(room.min(rest.len()));
            write_at(self.ring.mem(), chain.writable(), 0, now).ok()?;
            rest = later;
        }
        Some(chains)
    }

    /// How many of the chains that wait hold `bytes`.
    fn chains_for(&self, bytes: u64) -> usize {
        let mut left = bytes;
        let is_needed = |chain: &&Chain| {
            let is_needed = left > 0;
            left = left.saturating_sub(total_bytes(chain.writable()));
            is_needed
        };
        self.waiting.iter().take_while(is_needed).count()
    }
}
