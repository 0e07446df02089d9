//! Frames from the guest to the tap, or to the metadata service.

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
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
use crate::virtio::net::frame::{HEADER_BYTES, TransmitHeader};
use crate::virtio::ring::{Popped, Ring};

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
    /// The tap took a frame.
    pub(super) has_sent: bool,
}

/// What has become of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// The tap took it.
    ToTap,
    /// It was the metadata service's.
    Diverted,
    /// It was malformed, or the tap did not take it.
    Dropped,
}

/// A frame that can be sent; the rest of it is in [`Transmitter::buffers`].
struct Prepared {
    header: TransmitHeader,
    /// Without header.
    frame_bytes: u64,
    /// The header, and the start of the frame as far as it was looked at: it is not read again.
    start: [u8; HEADER_BYTES + PEEK_BYTES],
    start_bytes: usize,
}

impl Prepared {
    /// What goes before the buffers.
    fn start(&self) -> &[u8] {
        self.start.get(..self.start_bytes).unwrap_or_default()
    }

    /// The start of the frame.
    fn head(&self) -> &[u8] {
        self.start().get(HEADER_BYTES..).unwrap_or_default()
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
    /// is dropped, as on any network.
    pub(super) fn serve_turn(
        &mut self,
        tap: BorrowedFd<'_>,
        counters: &Counters,
        limiter: &mut Limiter,
        mut detour: Option<&mut Detour>,
    ) -> Turn {
        let mut turn = Turn {
            progress: Progress::More,
            has_sent: false,
        };
        self.ring.pause_kicks();
        for _ in 0..NET_FRAMES_PER_TURN {
            if limiter.holds_up(|| self.ring.has_waiting()) {
                Counters::add_one(&counters.throttled_from_guest);
                turn.progress = Progress::Done;
                break;
            }
            match self.ring.pop() {
                Popped::Chain(chain) => {
                    let sent = self.send(&chain, tap, counters, detour.as_deref_mut());
                    turn.has_sent |= sent == Sent::ToTap;
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
        tap: BorrowedFd<'_>,
        counters: &Counters,
        mut detour: Option<&mut Detour>,
    ) -> Sent {
        let peek_bytes = detour.as_ref().map_or(0, |_| PEEK_BYTES);
        let prepared = match self.prepare(chain, peek_bytes) {
            Ok(prepared) => prepared,
            Err(_) => {
                counters.guest_fault();
                Counters::add_one(&counters.frames_dropped_from_guest);
                if let Some(detour) = detour {
                    detour.note_bad();
                }
                return Sent::Dropped;
            }
        };
        if let Some(detour) = detour.as_mut()
            && detour.takes(prepared.head())
        {
            self.divert(chain, &prepared, detour);
            return Sent::Diverted;
        }
        let frame_bytes = prepared.frame_bytes;
        let began = Instant::now();
        match send_whole(&mut self.buffers, tap, prepared.start()) {
            Ok(()) => {
                counters.write_time.record_since(began);
                Counters::add_one(&counters.writes);
                Counters::add(&counters.bytes_from_guest, frame_bytes);
                Sent::ToTap
            }
            Err(cause) => {
                Counters::add_one(&counters.frames_dropped_from_guest);
                // EINVAL is the kernel's word on a header that this device let pass.
                if cause.raw_os_error() == Some(libc::EINVAL) {
                    counters.guest_fault();
                } else if cause.kind() != ErrorKind::WouldBlock {
                    counters.host_fault(&cause);
                }
                Sent::Dropped
            }
        }
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
        let skip = prepared.start_bytes as u64;
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
        let mut start = [0; HEADER_BYTES + PEEK_BYTES];
        let (first, peeked) = start.split_at_mut(HEADER_BYTES);
        first.copy_from_slice(header.bytes());
        let peek_bytes =
            usize::try_from(frame_bytes).map_or(peek_bytes, |most| peek_bytes.min(most));
        let peeked = peeked.get_mut(..peek_bytes).unwrap_or_default();
        read_at(self.ring.mem(), chain.readable(), header_bytes, peeked)?;
        let start_bytes = HEADER_BYTES.saturating_add(peeked.len());
        for part in parts(chain.readable(), start_bytes as u64, frame_bytes) {
            self.buffers.push(part)?;
        }
        Ok(Prepared {
            header,
            frame_bytes,
            start,
            start_bytes,
        })
    }
}

fn send_whole(buffers: &mut GuestBuffers, tap: BorrowedFd<'_>, start: &[u8]) -> io::Result<()> {
    loop {
        match buffers.send_frame(tap, start) {
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            // A tap takes a frame whole or not at all.
            other => return other.map(|_bytes| ()),
        }
    }
}
