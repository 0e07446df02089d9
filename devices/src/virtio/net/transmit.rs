//! Frames from the guest to the host's end, or to the metadata service.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::Queue;

use crate::counters::Counters;
use crate::fault::GuestFault;
use crate::limiter::Limiter;
use crate::limits::NET_FRAMES_PER_TURN;
use crate::mmds::{Detour, PEEK_BYTES, TakenFrame};
use crate::sys::guest_buffers::GuestBuffers;
use crate::virtio::chain::{Chain, parts, read_at, total_bytes};
use crate::virtio::device::Progress;
use crate::virtio::net::backend::{Backend, Given, Prefix};
use crate::virtio::net::frame::{HEADER_BYTES, TransmitHeader};
use crate::virtio::ring::{Popped, Ring};

/// Bytes that go before the buffers: a header and the start of a frame.
const START_BYTES: usize = HEADER_BYTES + PEEK_BYTES;

/// The transmit queue at work.
#[derive(Debug)]
pub(super) struct Transmitter {
    ring: Ring,
    buffers: GuestBuffers,
    acked_features: u64,
}

/// How a turn went.
pub(super) struct Turn {
    pub(super) progress: Progress,
    /// The host took a frame.
    pub(super) has_sent: bool,
    /// The host's end has gone in this turn.
    pub(super) gone: Option<io::Error>,
}

/// What has become of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// The host took it.
    ToHost,
    /// It was the metadata service's.
    Diverted,
    /// It was malformed, or the host did not take it.
    Dropped,
}

/// Where frames go to.
pub(super) struct Ways<'a> {
    pub(super) backend: &'a mut Backend,
    /// By which of its queues.
    pub(super) pair: usize,
    /// Frames are lost on the way to the host.
    pub(super) is_gone: bool,
    pub(super) detour: Option<&'a mut Detour>,
}

/// A frame that can be sent; the rest of it is in [`Transmitter::buffers`].
struct Prepared {
    header: TransmitHeader,
    /// Without header.
    frame_bytes: u64,
    /// The start of the frame as far as it was looked at: it is not read again.
    head: [u8; PEEK_BYTES],
    head_bytes: usize,
}

impl Prepared {
    /// The start of the frame.
    fn head(&self) -> &[u8] {
        self.head.get(..self.head_bytes).unwrap_or_default()
    }

    /// What goes before the buffers: `prefix` and the start of the frame, in `space`.
    fn start<'a>(&self, prefix: Prefix, space: &'a mut [u8; START_BYTES]) -> &'a [u8] {
        let (prefix, head) = (prefix.bytes(), self.head());
        let bytes = prefix.len().saturating_add(head.len());
        let (first, rest) = space.split_at_mut(prefix.len().min(START_BYTES));
        first.copy_from_slice(prefix);
        if let Some(place) = rest.get_mut(..head.len()) {
            place.copy_from_slice(head);
        }
        space.get(..bytes).unwrap_or_default()
    }

    /// Where in its chain the bytes are that `head` does not have.
    const fn rest_at(&self) -> u64 {
        (HEADER_BYTES as u64).saturating_add(self.head_bytes as u64)
    }
}

impl Transmitter {
    pub(super) fn new(ring: Ring, acked_features: u64) -> Self {
        let buffers = GuestBuffers::new(Arc::clone(ring.mem()));
        Self {
            ring,
            buffers,
            acked_features,
        }
    }

    pub(super) fn into_queue(self) -> Queue {
        self.ring.into_queue()
    }

    /// Sends what waits, up to the limit of a turn; what is for the metadata service goes there. A frame that cannot be sent
    /// is dropped, as on any network; where the host's end takes them one after the other, they wait in the ring for that.
    pub(super) fn serve_turn(
        &mut self,
        mut ways: Ways<'_>,
        counters: &Counters,
        limiter: &mut Limiter,
    ) -> Turn {
        let mut turn = Turn {
            progress: Progress::More,
            has_sent: false,
            gone: None,
        };
        self.ring.pause_kicks();
        for _ in 0..NET_FRAMES_PER_TURN {
            let throttled = &counters.throttled_from_guest;
            if limiter.holds_up(throttled, || self.ring.has_waiting()) {
                turn.progress = Progress::Done;
                break;
            }
            if !ways.are_open(&mut turn) {
                turn.progress = Progress::Done;
                break;
            }
            match self.ring.pop() {
                Popped::Chain(chain) => {
                    let sent = self.send(&chain, &mut ways, counters, &mut turn);
                    turn.has_sent |= sent == Sent::ToHost;
                    // What goes to the service is no traffic of the network.
                    if sent != Sent::Diverted {
                        limiter.charge(total_bytes(chain.readable()));
                    }
                    self.ring.complete(chain, 0);
                }
                Popped::Malformed => Counters::add_one(&counters.frames_dropped_from_guest),
                Popped::Empty => {
                    if !self.ring.resume_kicks() {
                        turn.progress = Progress::Done;
                        break;
                    }
                }
            }
        }
        self.ring.notify();
        turn
    }

    /// Sends the frame in `chain`.
    fn send(
        &mut self,
        chain: &Chain,
        ways: &mut Ways<'_>,
        counters: &Counters,
        turn: &mut Turn,
    ) -> Sent {
        let peek_bytes = ways.detour.as_ref().map_or(0, |_| PEEK_BYTES);
        let prepared = match self.prepare(chain, peek_bytes) {
            Ok(prepared) => prepared,
            Err(_) => {
                counters.guest_fault();
                Counters::add_one(&counters.frames_dropped_from_guest);
                if let Some(detour) = &mut ways.detour {
                    detour.note_bad();
                }
                return Sent::Dropped;
            }
        };
        if let Some(detour) = &mut ways.detour
            && detour.takes(prepared.head())
        {
            self.divert(chain, &prepared, detour);
            return Sent::Diverted;
        }
        if ways.is_gone && matches!(ways.backend, Backend::Stream(_)) {
            Counters::add_one(&counters.frames_dropped_from_guest);
            return Sent::Dropped;
        }
        let began = Instant::now();
        match self.give(chain, &prepared, ways) {
            Ok(()) => {
                counters.write_time.record_since(began);
                Counters::add_one(&counters.writes);
                Counters::add(&counters.bytes_from_guest, prepared.frame_bytes);
                Sent::ToHost
            }
            Err(cause) => {
                Counters::add_one(&counters.frames_dropped_from_guest);
                if let Backend::Stream(stream) = &mut *ways.backend {
                    ways.is_gone = true;
                    turn.gone = Some(stream.gone(&cause));
                // EINVAL is the kernel's word on a header that this device let pass.
                } else if cause.raw_os_error() == Some(libc::EINVAL) {
                    counters.guest_fault();
                } else if cause.kind() != ErrorKind::WouldBlock {
                    counters.host_fault(&cause);
                }
                Sent::Dropped
            }
        }
    }

    /// Gives the host the frame, of which it keeps what the host does not take at once.
    fn give(&mut self, chain: &Chain, prepared: &Prepared, ways: &mut Ways<'_>) -> io::Result<()> {
        let backend = &mut *ways.backend;
        let prefix = backend.prefix(prepared.header.bytes(), prepared.frame_bytes);
        let mut space = [0; START_BYTES];
        let start = prepared.start(prefix, &mut space);
        let Given::Part(taken) = backend.send(ways.pair, &mut self.buffers, start)? else {
            return Ok(());
        };
        let Backend::Stream(stream) = backend else {
            return Ok(());
        };
        let mut unsent = start.get(taken..).unwrap_or_default().to_vec();
        let skip = taken.saturating_sub(start.len()) as u64;
        let from = unsent.len();
        let rest = self.buffers.bytes().saturating_sub(skip);
        unsent.resize(from.saturating_add(usize::try_from(rest).unwrap_or(0)), 0);
        let rest = unsent.get_mut(from..).unwrap_or_default();
        let at = prepared.rest_at().saturating_add(skip);
        // The chain is as long as was found, and its buffers lie in RAM.
        read_at(self.ring.mem(), chain.readable(), at, rest)
            .map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
        stream.keep_unsent(unsent);
        Ok(())
    }

    /// Gives the frame in `chain` to the metadata service.
    fn divert(&self, chain: &Chain, prepared: &Prepared, detour: &mut Detour) {
        let frame_bytes = usize::try_from(prepared.frame_bytes).unwrap_or(usize::MAX);
        if !Detour::reads(frame_bytes) {
            return detour.note_too_long();
        }
        let mut frame = prepared.head().to_vec();
        let peeked = frame.len();
        frame.resize(frame_bytes, 0);
        let rest = frame.get_mut(peeked..).unwrap_or_default();
        let skip = prepared.rest_at();
        // The chain is as long as was found, and its buffers lie in RAM.
        if read_at(self.ring.mem(), chain.readable(), skip, rest).is_ok() {
            detour.accept(TakenFrame {
                bytes: &frame,
                is_without_checksum: prepared.header.needs_csum(),
            });
        }
    }

    /// Checks the frame in `chain`, reads its first `peek_bytes`, and collects the buffers of the rest. A chain with a
    /// writable buffer is no frame.
    fn prepare(&mut self, chain: &Chain, peek_bytes: usize) -> Result<Prepared, GuestFault> {
        self.buffers.clear();
        if !chain.writable().is_empty() {
            return Err(GuestFault::BadFrame);
        }
        let mut header = [0; HEADER_BYTES];
        read_at(self.ring.mem(), chain.readable(), 0, &mut header)?;
        let header_bytes = HEADER_BYTES as u64;
        let frame_bytes = total_bytes(chain.readable()).saturating_sub(header_bytes);
        let header = TransmitHeader::check(header, frame_bytes, self.acked_features)?;
        let mut head = [0; PEEK_BYTES];
        let head_bytes =
            usize::try_from(frame_bytes).map_or(peek_bytes, |most| peek_bytes.min(most));
        let peeked = head.get_mut(..head_bytes).unwrap_or_default();
        read_at(self.ring.mem(), chain.readable(), header_bytes, peeked)?;
        let prepared = Prepared {
            header,
            frame_bytes,
            head,
            head_bytes,
        };
        for part in parts(chain.readable(), prepared.rest_at(), frame_bytes) {
            self.buffers.push(part)?;
        }
        Ok(prepared)
    }
}

impl Ways<'_> {
    /// Whether a frame may be sent now. To a host's end that has gone one may: it is lost.
    fn are_open(&mut self, turn: &mut Turn) -> bool {
        if self.is_gone {
            return true;
        }
        match self.backend.can_send() {
            Ok(can_send) => can_send,
            Err(cause) => {
                self.is_gone = true;
                turn.gone = Some(cause);
                true
            }
        }
    }
}
